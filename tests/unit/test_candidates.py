"""Candidates: BM25 by its formula, ranks that no tie flatters, a mix that learns, stored recall from stored ranks."""

import numpy as np
import pandas as pd
import pytest
from little_shop import little_pairs

from prodsim.candidates import (
    LexicalIndex,
    Mix,
    Signals,
    candidate_differences,
    candidate_recall,
    match_queries,
    match_ranks,
    model_numbers,
    propose,
    rank_matches,
    reciprocal_ranks,
    right_pool,
    shortlist,
    stored_candidates,
    stored_ranks,
    trigrams,
)
from prodsim.core import ProdsimError

POOL = pd.DataFrame(
    {
        "title": ["acme lamp MX-310", "acme lamp MX-320", "bolt desk", "小米手机 黑色"],
        "price": ["10", "12.5", None, "999"],
    },
    index=list("abcd"),
)


def toward_lamp(records):
    "An encoder with two directions: lamps, and all else."
    return np.array([[1.0, 0.0] if "lamp" in (t or "") else [0.0, 1.0] for t in records["title"]])


def test_bm25_is_its_formula():
    texts = ["a b b", "a c", "c c c d"]
    index = LexicalIndex.build(texts, str.split, k1=1.2, b=0.6)
    average = np.mean([len(t.split()) for t in texts])
    for query in ("b", "a c", "c d d zzz"):
        expected = []
        for text in texts:
            score = 0.0
            for term in set(query.split()):
                n = sum(term in t.split() for t in texts)
                f = text.split().count(term)
                score += (
                    np.log(1 + (3 - n + 0.5) / (n + 0.5)) * f / (f + 1.2 * (0.4 + 0.6 * len(text.split()) / average))
                )
            expected.append(score)
        assert np.allclose(index.scores([query])[0], expected, atol=1e-5)


@pytest.mark.parametrize("texts", [["", ""], ["!?", "🎧"]])
def test_a_pool_without_terms_answers_with_zeros(texts):
    index = LexicalIndex.build(texts, trigrams)
    assert not index.scores(["lamp", "", "!"]).any()


def test_an_empty_pool_is_an_error():
    with pytest.raises(ProdsimError, match="the catalogue is empty"):
        LexicalIndex.build([])


def test_terms():
    assert trigrams("Äb-1") == [" äb", "äb ", "b 1", " 1 "]
    assert trigrams("手机")[0] == " 手机" and trigrams("") == []
    assert model_numbers("Sony DSC-W120/B, 7.2") == ["dscw120b"]


def test_ties_stand_before_the_true_record():
    assert match_ranks(np.array([[1.0, 1, 0], [0, 2, 1], [0, 0, 0]]), np.array([1, 1, 2])).tolist() == [2, 1, 3]


def test_recall_counts_what_was_not_found():
    found = candidate_recall(np.array([1, 5, 6, np.nan]))
    assert found["recall"] == 0.5 and found["missed"] == 2 and found["low"] < 0.5 < found["high"]
    with pytest.raises(ProdsimError, match="at least one match"):
        candidate_recall(np.array([]))


def test_fused_ranks_do_not_depend_on_units():
    scores = np.random.default_rng(0).random((3, 20, 2))
    assert np.allclose(reciprocal_ranks(scores), reciprocal_ranks(scores * [1000, 0.1] + [5, -1]))


def test_signals_know_what_is_not_known():
    signals = Signals.fit(POOL, embed=toward_lamp)
    asked = pd.DataFrame({"title": ["lamp mx310", "手机"], "price": [None, "1000"]})
    table = signals.measure(asked)
    named = {n: table[..., i] for i, n in enumerate(signals.columns)}
    assert signals.numbers == ("price",)
    assert named["model numbers"][0].tolist() == [1, 0, 0, 0]  # mx310 is MX-310
    assert not named["price known"][0].any() and named["price known"][1].tolist() == [1, 1, 0, 1]
    assert named["price near"][1].argmax() == 3 and named["price near"][1, 2] == 0
    assert named["title words"][1].argmax() == 3 and named["meaning"][0].tolist() == [1, 1, 0, 0]


def test_unknown_attribute_and_wrong_mix():
    with pytest.raises(ProdsimError, match="no attribute 'colour'"):
        Signals.fit(POOL, ("title", "colour"))
    mix = Mix(["other"], np.ones(1))
    with pytest.raises(ProdsimError, match="the mix weighs other"):
        next(propose(Signals.fit(POOL), POOL, mix))


def test_the_mix_learns_which_signal_tells():
    random = np.random.default_rng(0)
    signals, gold = random.random((200, 30, 3)), random.integers(0, 30, 200)
    signals[np.arange(200), gold, 1] += 0.5  # the second signal knows, the others are noise
    mix = Mix.fit(["a", "b", "c"], signals[:100], np.where(np.arange(100) < 5, -1, gold[:100]))
    assert mix.weights[1] > 3 * np.abs(mix.weights[[0, 2]]).max()
    alone = match_ranks(signals[100:, :, 0], gold[100:])
    assert np.median(match_ranks(mix.scores(signals[100:]), gold[100:])) < np.median(alone) / 3
    with pytest.raises(ProdsimError, match="nothing to learn from"):
        Mix.fit(["a", "b", "c"], signals, np.full(200, -1))


def test_a_record_is_no_candidate_of_itself():
    signals = Signals.fit(POOL, embed=toward_lamp)
    own = pd.concat(propose(signals, POOL, k=3, own=np.arange(4), step=3))
    assert not (own["query"] == own["id"]).any() and own.groupby("query").size().tolist() == [3] * 4
    assert own.set_index("query").loc["a"].iloc[0]["id"] == "b"
    other = pd.concat(propose(signals, POOL, k=1))
    assert (other["query"] == other["id"]).all()


def test_proposals_do_not_depend_on_the_step():
    signals, asked = Signals.fit(POOL), POOL.iloc[[0, 2, 3]]
    one, many = (pd.concat(propose(signals, asked, k=2, step=s), ignore_index=True) for s in (1, 100))
    pd.testing.assert_frame_equal(one, many)
    assert shortlist(signals.measure(asked), signals.columns, 2).shape == (3, 2)


def test_ranks_of_a_data_set():
    pairs = little_pairs()
    pool = right_pool(pairs)
    assert pool.index.is_unique and len(pool) <= 176
    queries, gold = match_queries(pairs, "valid", pool)
    assert len(queries) == sum(pairs["valid"]["label"]) and (gold >= 0).all()
    ranks, facts = rank_matches(pairs, "valid")
    assert len(ranks) == len(queries) and facts["pool"] == len(pool) and "meaning" not in ranks
    assert candidate_recall(ranks["learned mix"], 5)["recall"] > 0.8
    with pytest.raises(ProdsimError, match="no split 'other'"):
        match_queries(pairs, "other", pool)


def test_stored_recall_follows_from_stored_ranks():
    results = stored_candidates()
    assert {r["name"] for r in results} >= {"abt-buy.test", "amazon-google.test"}
    for result in results:
        assert candidate_differences(result) == []
        assert result["revision"]["clean"]


def test_a_changed_rank_or_a_missing_file_is_noticed(monkeypatch, tmp_path):
    import shutil

    from prodsim.core import results_folder

    shutil.copytree(results_folder() / "candidates", tmp_path / "candidates")
    monkeypatch.setenv("PRODSIM_RESULTS", str(tmp_path))
    result = stored_candidates()[0]
    path = tmp_path / "candidates" / result["ranks_file"]
    ranks = stored_ranks(result)
    ranks.loc[ranks["learned mix"].idxmin(), "learned mix"] = 9999
    ranks.to_csv(path, index=False, compression="gzip")
    assert any("learned mix" in line for line in candidate_differences(result))
    path.unlink()
    with pytest.raises(ProdsimError, match="prodsim candidates"):
        candidate_differences(result)


@pytest.mark.data
@pytest.mark.parametrize("name", ["abt-buy", "amazon-google"])
def test_stored_ranks_are_what_bm25_gives(name):
    "The lexical ranks of the stored validation run, computed again from the data."
    from prodsim.data import attributes, load_pairs

    result = next(r for r in stored_candidates() if r["name"] == f"{name}.valid")
    pairs = load_pairs(name)
    pool = right_pool(pairs)
    assert len(pool) == result["pool"]
    queries, gold = match_queries(pairs, "valid", pool)
    title = attributes(pairs)[0]
    scores = LexicalIndex.build([v or "" for v in pool[title]], trigrams).scores([v or "" for v in queries[title]])
    ranks = stored_ranks(result)
    assert list(ranks["right_id"]) == list(pool.index[gold])
    agree = np.abs(match_ranks(scores, gold) - ranks["title 3-grams"]) <= 1  # a tie may fall apart in the last bit
    assert agree.mean() > 0.98
