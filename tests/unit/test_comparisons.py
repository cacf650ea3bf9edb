"Comparison vectors and the trees on top: what they say, what they forgive, what they refuse."

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from prodsim.cli import main
from prodsim.comparisons import (
    GROUPS,
    Comparer,
    amount,
    codes,
    compare_codes,
    compare_numbers,
    compare_words,
    comparison_group,
    held_out_vectors,
    load_comparisons,
    save_comparisons,
    text_facts,
    train_comparisons,
    words,
)
from prodsim.core import ProdsimError
from prodsim.data import load_pairs
from prodsim.encoders import load_model, squash
from prodsim.evaluation import lexical_scores, pair_metrics

TEXT = st.text(alphabet="abcdefg0123456789 -./小米手机é", max_size=40)


@pytest.fixture(scope="module")
def shop():
    pairs = load_pairs("shop:medium")
    return DatasetDict({s: pairs[s].select(range(n)) for s, n in (("train", 400), ("valid", 200), ("test", 200))})


@pytest.fixture(scope="module")
def model(shop):
    return train_comparisons(shop, seed=0, rounds=60, vocabulary="known")


def test_words_codes_and_amounts():
    assert words("Panasonic DMC-LC40S, 4.0 MP") == ["panasonic", "dmc-lc40s", "4.0", "mp"]
    assert words("小米手机 13") == ["小米", "米手", "手机", "13"]
    assert codes(words("DMC-LC40S 27560 1080 tv x1")) == {"dmclc40s", "27560"}
    assert squash("DMC-LC40S") == squash("dmc lc40s") == "dmclc40s"
    assert amount("$1,299.00") == 1299 and amount("799") == 799 and amount(" 59.90 EUR") == 59.9
    assert np.isnan(amount("2 for 1 offer")) and np.isnan(amount(None)) and np.isnan(amount(""))


@given(TEXT, TEXT)
@settings(max_examples=60, deadline=None)
def test_comparisons_have_no_left_and_right(a, b):
    a, b = text_facts(a), text_facts(b)
    for both, back in (
        (compare_words(a, b, lambda t: 1.5), compare_words(b, a, lambda t: 1.5)),
        (compare_codes(a, b), compare_codes(b, a)),
        (compare_numbers(a, b), compare_numbers(b, a)),
    ):
        np.testing.assert_allclose(list(both.values()), list(back.values()), equal_nan=True)


@given(TEXT)
@settings(max_examples=60, deadline=None)
def test_a_text_agrees_with_itself(text):
    one = text_facts(text)
    found = compare_words(one, one, lambda t: 2.0)
    assert found["heaviest_alone"] == 0 and (not one.words or abs(found["smaller_share"] - 1) < 1e-9)
    assert compare_codes(one, one)["more_not_held"] == 0


def test_model_numbers_decide_and_unknown_is_not_zero():
    a, same, other, none = map(text_facts, ("LG LDF6920BB", "lg ldf-6920bb washer", "LG LDF6920ST", "LG dishwasher"))
    assert compare_codes(a, same)["verdict"] == 1 and compare_codes(a, other)["verdict"] == -1
    assert compare_codes(a, none)["verdict"] == 0 and np.isnan(compare_codes(a, none)["closest"])
    assert np.isnan(compare_numbers(a, none)["overlap"])


def test_no_comparison_describes_one_record_alone(shop):
    # Against an empty record nothing may be left that tells which record the other is.
    comparer = Comparer.fit(shop)
    some = shop["train"].select(range(60)).to_pandas()
    blank = some.assign(**{c: "" for c in some if c.startswith("right_")})
    found = comparer.compare(blank).drop(columns=["title.words.heaviest_alone", "all.words.heaviest_alone"])
    counted = [c for c in found if c.endswith("more_not_held")]  # a small count: many records share it
    assert found.drop(columns=counted).nunique(dropna=False).max() == 1
    assert found[counted].nunique().max() <= 12


def test_a_pair_is_compared_alike_in_any_company(shop):
    comparer = Comparer.fit(shop)
    frame = shop["test"].to_pandas()
    whole = comparer.compare(frame)
    pd.testing.assert_frame_equal(
        comparer.compare(frame.iloc[7:8]).reset_index(drop=True), whole.iloc[[7]].reset_index(drop=True)
    )
    assert not whole.isna().all(axis=1).any() and np.isfinite(whole.fillna(0).to_numpy()).all()


def test_numbers_are_found_by_their_values():
    rows = {
        f"{s}_{k}": v
        for s in ("left", "right")
        for k, v in (("name", ["a1", "b2"]), ("cost", ["$5", "7.00"]), ("made", ["by x", "5"]))
    }
    pairs = DatasetDict(train=Dataset.from_dict({**rows, "label": [0, 1]}))
    comparer = Comparer.fit(pairs)
    assert comparer.numbers == ("cost",) and comparer.texts == ("name", "made")
    assert comparer.compare(pairs["train"])["cost.log_ratio"].tolist() == [0, 0]


def test_better_than_counting_characters(shop, model):
    labels, scores = np.asarray(shop["test"]["label"]), model.score(shop["test"])
    ours, theirs = (
        pair_metrics(labels, s, 0.5)["average_precision"] for s in (scores, lexical_scores(shop["train"], shop["test"]))
    )
    assert ours > theirs + 0.03 and scores.dtype == np.float32 and 0 <= scores.min() <= scores.max() <= 1


def test_same_seed_same_model_and_saved_whole(shop, model, tmp_path):
    again = train_comparisons(shop, tmp_path / "run", seed=0, rounds=60, vocabulary="known")
    scores = model.score(shop["test"])
    assert (again.score(shop["test"]) == scores).all()
    for opened in (load_model(tmp_path / "run"), load_comparisons(tmp_path / "run")):
        assert (opened.score(shop["test"], chunk_rows=50) == scores).all() and opened.threshold == model.threshold
    same = {"rounds": 60, "vocabulary": "known", "resume": True}
    assert train_comparisons(shop, tmp_path / "run", seed=0, **same).threshold == model.threshold
    with pytest.raises(ProdsimError, match="other arguments"):
        train_comparisons(shop, tmp_path / "run", seed=1, **same)
    assert len(model.score(shop["test"].select([]))) == 0


def test_shares_add_up_to_the_log_odds(shop, model):
    some = shop["test"].select(range(20))
    shares = model.explain(some)
    probability = 1 / (1 + np.exp(-shares.sum(axis=1)))
    np.testing.assert_allclose(probability, model.score(some), atol=1e-5)


def test_bad_input_gets_one_line(shop, model, tmp_path):
    with pytest.raises(ProdsimError, match="split valid is missing"):
        train_comparisons(DatasetDict(train=shop["train"]))
    with pytest.raises(ProdsimError, match="no attribute 'weight'"):
        train_comparisons(shop, names=("weight",))
    with pytest.raises(ProdsimError, match="is missing from the pairs"):
        model.score(shop["test"].remove_columns("left_title"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x.txt").write_text("mine")
    with pytest.raises(ProdsimError, match="is not a run"):
        save_comparisons(model, tmp_path / "notes")
    save_comparisons(model, tmp_path / "run")
    (tmp_path / "run" / "comparisons" / "trees.txt").unlink()
    with pytest.raises(ProdsimError, match="cannot be read"):
        load_model(tmp_path / "run")


def test_command_line(shop, tmp_path, capsys):
    from prodsim.data import save_pairs

    save_pairs(shop, tmp_path / "pairs")
    train = ["train", str(tmp_path / "pairs"), "--kind", "comparisons", "--out", str(tmp_path / "run")]
    assert main(train) == 0 and main(["evaluate", str(tmp_path / "run"), str(tmp_path / "pairs"), "--json"]) == 0
    assert '"average_precision"' in capsys.readouterr().out
    assert main([*train, "--epochs", "3"]) == 2
    assert "--epochs is of encoders" in capsys.readouterr().err


def test_new_words_weigh_what_known_ones_do(shop):
    # a model number of two new records must count like one that two training records share
    comparer = Comparer.fit(shop)
    shared = next(w for w, n in comparer.seen_in.items() if n == 2)
    assert (
        comparer.weight(shared)
        == comparer.weight("never-seen-0815")
        > comparer.weight(max(comparer.seen_in, key=comparer.seen_in.get))
    )
    known = pd.DataFrame({f"{s}_{k}": [None] for s in ("left", "right") for k in comparer.texts + comparer.numbers})
    new = known.assign(left_title=["zyqx9042 kettle"], right_title=["kettle zyqx9042"])
    known = known.assign(left_title=[f"{shared} kettle"], right_title=[f"kettle {shared}"])
    column = "title.words.heaviest_common"
    assert comparer.compare(new)[column].item() == comparer.compare(known)[column].item()


def test_held_out_words_look_as_those_of_new_records_do(shop):
    comparer = Comparer.fit(shop)
    held_out, known = held_out_vectors(comparer, shop), comparer.compare(shop["train"])
    assert list(held_out) == list(known) and len(held_out) == len(known) and (held_out.index == known.index).all()
    pd.testing.assert_frame_equal(held_out, held_out_vectors(comparer, shop))
    unweighted = [c for c in known if comparison_group(c) in ("codes", "numbers", "likeness", "attributes")]
    pd.testing.assert_frame_equal(held_out[unweighted], known[unweighted])
    weighted = held_out["all.words.heaviest_alone"] != known["all.words.heaviest_alone"]
    assert weighted.mean() > 0.9, "words weigh what records of other groups say"


def test_validation_pairs_choose_the_vocabulary(shop):
    model = train_comparisons(shop, seed=0, rounds=30)
    tried = model.run["vocabulary"]["average_precision"]
    assert set(tried) == {"known", "held_out"} and tried[model.run["vocabulary"]["chosen"]] == max(tried.values())
    assert model.run["valid"]["average_precision"] == pytest.approx(max(tried.values()))


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_of_comparisons_can_be_left_out(shop, group):
    some = shop["train"].select(range(20))
    whole, less = (Comparer.fit(shop, drop=drop).compare(some) for drop in ((), (group,)))
    assert set(whole) - set(less) == {c for c in whole if comparison_group(c) == group} != set()
    pd.testing.assert_frame_equal(less, whole[list(less)])


def test_a_model_of_another_version_is_refused(model, tmp_path):
    save_comparisons(model, tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(run | {"format": 1}))
    with pytest.raises(ProdsimError, match="compares as version 1 did"):
        load_model(tmp_path / "run")


def test_vectors_do_not_hang_on_the_hash_seed():
    code = """
from prodsim.comparisons import Comparer
from prodsim.data import load_pairs
pairs = load_pairs("shop:hard-60")
print(Comparer.fit(pairs).compare(pairs["test"]).to_numpy(float).tobytes().hex())
"""
    vectors = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(vectors) == 1 and len(next(iter(vectors))) > 1000, "sums over sets are exact, in whatever order"
