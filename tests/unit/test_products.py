"Known products: what training pairs say of other records, and nothing of the pair that is asked about."

import json

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from prodsim import products
from prodsim.cli import main
from prodsim.comparisons import Comparer, boosted_trees, train_comparisons
from prodsim.core import ProdsimError
from prodsim.data import save_pairs
from prodsim.encoders import load_model
from prodsim.evaluation import pair_metrics
from prodsim.products import (
    COLUMNS,
    KnownRecords,
    fold_judges,
    held_against,
    known_records,
    load_products,
    product_vectors,
    record_groups,
    save_products,
    train_products,
    twice_boosted,
    vector_group,
)
from prodsim.shop import simulate


@pytest.fixture(scope="module")
def shop():
    return simulate(120, 0, "medium", sizes=(300, 100, 80)).pairs


@pytest.fixture(scope="module")
def parts(shop):
    comparer = Comparer.fit(shop)
    known, fold = known_records(shop["train"], (*comparer.texts, *comparer.numbers))
    labels = np.asarray(shop["train"]["label"][:])
    judges = fold_judges(comparer.compare(shop["train"]), labels, fold, rounds=20)
    return comparer, known, fold, judges


@pytest.fixture(scope="module")
def model(shop):
    return train_products(shop, rounds=40, known="always")


def table(*rows):
    return pd.DataFrame(rows, columns=["left_title", "right_title", "label"])


CHAIN = table(("a", "b", 1), ("b", "c", 1), ("c", "d", 1), ("a", "e", 0), ("d", "e", 0))


def spelled(known, without):
    out = frozenset(known.number[(name,)] for name in without)
    found = known.products(set(range(len(known.cells))) - out, known.torn(out))
    return ["".join(sorted(known.cells[i][0] for i in product)) for product in found]


def test_a_product_that_only_the_asked_records_hold_together_falls_apart():
    known, fold = known_records(CHAIN, ("title",))
    assert spelled(known, "") == ["abcd", "e"] and spelled(known, "b") == ["a", "cd", "e"]
    assert spelled(known, "bd") == ["a", "c", "e"] and spelled(known, "abcde") == []
    assert len(fold) == len(CHAIN) and set(fold) == {0, 1}


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 1)), min_size=4, max_size=30))
@settings(max_examples=60, deadline=None)
def test_left_out_means_as_if_its_pairs_were_not_there(rows):
    rows += [(9, 10, 1), (9, 10, 1), (11, 12, 0), (10, 12, 0), (13, 9, 1)]
    frame = table(*((f"r{a}", f"r{b}", y) for a, b, y in rows))
    known, _ = known_records(frame, ("title",))
    for name in ("r0", "r9"):
        without = frozenset({known.number[(name,)]} if (name,) in known.number else ())
        rest = [p for p in known.pairs.tolist() if not without & set(p[:2])]
        less = KnownRecords(known.cells, np.array(rest).reshape(-1, 3), np.zeros(len(rest), int))
        everyone = [x for x in range(len(known.cells)) if x not in without]
        assert known.products(everyone, known.torn(without)) == less.products(everyone, {})


def test_labels_that_contradict_say_nothing():
    frame = pd.concat([CHAIN, table(("b", "a", 0), ("c", "b", 1))])  # in the other order, too
    known, fold = known_records(frame, ("title",))
    assert spelled(known, "") == ["a", "bcd", "e"] and len(known.pairs) == 5 and len(fold) == 7
    assert fold[0] == fold[5] and fold[1] == fold[6], "two pairs of the same two records stand in one fold"


def test_held_against_by_hand():
    known, _ = known_records(CHAIN, ("title",))  # records: a b c d e
    number = {name: known.number[(name,)] for name in "abcde"}
    like = np.zeros((2, 5))
    like[0, [number["a"], number["b"]]] = 0.9, 0.2  # the one resembles a
    like[1, [number["b"], number["e"]]] = 0.6, 0.8  # the other resembles e most, and b
    found = dict(zip(COLUMNS, held_against(known.products(range(5), {}), like, known), strict=True))
    assert found["closest"] == 0.6 and found["closest_of_several"] == 0.6 and found["offers"] == 4
    assert found["closest_on_average"] == pytest.approx(min(1.1 / 4, 0.6 / 4))
    assert (found["crosswise_most"], found["crosswise_least"]) == (0.6, 0.0)
    assert found["same"] == 0 and found["offers_if_same"] == 0 and found["called_different"] == 2  # a-e, d-e
    assert held_against(known.products(range(5), {}), like[::-1], known) == list(found.values())
    assert np.isnan(held_against([], like, known)).all()


def test_the_label_of_a_pair_is_not_in_its_own_columns(shop, parts):
    comparer, known, _, judges = parts
    row = int(np.flatnonzero(np.asarray(shop["train"]["label"][:]) == 1)[0])
    labels = np.asarray(shop["train"]["label"][:]).copy()
    labels[row] = 0
    turned = shop["train"].remove_columns("label").add_column("label", labels)
    other, _ = known_records(turned, (*comparer.texts, *comparer.numbers))
    other = KnownRecords(other.cells, other.pairs, known.fold)  # folds are dealt by label
    one = shop["train"].select([row])
    found, again = (product_vectors(one, comparer, k, judges) for k in (known, other))
    pd.testing.assert_frame_equal(found, again)
    assert 0 < found["known.words.closest"].item() < 0.999, "neither record is held against itself"


def test_a_training_pair_is_judged_by_trees_that_have_not_seen_it(shop, parts, monkeypatch):
    comparer, known, fold, _ = parts

    class Says:  # each judge says its own number
        def __init__(self, number):
            self.number = number

        def predict(self, vectors):
            return np.full(len(vectors), float(self.number))

    judges = [Says(k) for k in range(int(fold.max()) + 1)]
    cells, judged = list(known.cells), np.full((len(known.cells),) * 2, np.nan)
    a, b, _ = known.pairs[7]
    products._judge(judged, cells, [[int(b)] if k == a else [] for k in range(len(cells))], comparer, known, judges)
    assert judged[a, b] == known.fold[7] and np.isfinite(judged).sum() == 1
    products._judge(judged, [("new",) + (None,) * (len(cells[0]) - 1)], [[0]], comparer, known, judges)
    assert judged[0, 0] == np.mean(range(len(judges))), "a new record is judged by all"


def test_columns_have_no_order_and_no_company(shop, parts):
    comparer, known, _, judges = parts
    frame = shop["test"].to_pandas().head(40)
    whole = product_vectors(frame, comparer, known, judges)
    turned = frame.rename(columns=lambda c: {"l": "right_" + c[5:], "r": "left_" + c[6:]}.get(c[0], c))
    turned = turned.rename(columns={c: c for c in turned}).assign(label=frame["label"])
    pd.testing.assert_frame_equal(product_vectors(turned[list(frame)], comparer, known, judges), whole)
    alone = product_vectors(frame.iloc[[5]], comparer, known, judges)
    np.testing.assert_array_equal(alone.to_numpy(), whole.iloc[[5]].to_numpy())
    assert {vector_group(c) for c in whole} == {"known products"} and vector_group("all.words.jaccard") == "words"


def test_as_if_new_asks_other_kinds_only(shop, parts):
    comparer, known, _, judges = parts
    apart = record_groups(comparer, known)
    some = shop["train"].select(range(60))
    near, far = (product_vectors(some, comparer, known, judges, kinds) for kinds in (None, apart))
    assert 1 < len(set(apart.tolist())) <= 5
    assert far["known.words.closest"].mean() < near["known.words.closest"].mean() / 2
    one_kind = product_vectors(some, comparer, known, judges, np.zeros(len(known.cells), int))
    assert one_kind.isna().all(axis=None), "nothing is left to be asked"


def test_validation_pairs_choose(shop, monkeypatch):
    chosen = train_products(shop, rounds=15).run["known"]
    tried = chosen["average_precision"]
    assert set(tried) == {"known products", "words known", "words held out"}
    assert tried[chosen["chosen"]] == max(tried.values()) and chosen["used"] == (chosen["chosen"] == "known products")
    monkeypatch.setattr(products, "twice_boosted", lambda compared, asked, new, labels, *rest: boosted_trees(
        pd.concat([compared, asked], axis=1), 1 - labels, *rest))  # fmt: skip
    without = train_products(shop, rounds=15)
    assert not without.run["known"]["used"] and without.known is None and without.judges == []
    same = train_comparisons(shop, rounds=15)
    np.testing.assert_array_equal(without.score(shop["test"]), same.score(shop["test"]))
    assert without.threshold == same.threshold


def test_pairs_count_what_their_weights_say(shop, parts):
    comparer, known, fold, judges = parts
    labels, compared = np.asarray(shop["train"]["label"][:]), comparer.compare(shop["train"])
    own = product_vectors(shop["train"], comparer, known, judges)
    heard = np.arange(len(labels)) < 200
    part = compared[heard], own[heard], own[heard], labels[heard]
    few = twice_boosted(*part, rounds=10).predict(pd.concat([compared, own], axis=1))
    weighed = twice_boosted(compared, own, own, labels, rounds=10, weights=heard.astype(float))
    np.testing.assert_allclose(weighed.predict(pd.concat([compared, own], axis=1)), few, atol=1e-6)


def test_saved_whole_and_resumed(shop, model, tmp_path):
    again = train_products(shop, tmp_path / "run", rounds=40, known="always")
    scores = model.score(shop["test"])
    assert (again.score(shop["test"]) == scores).all() and scores.dtype == np.float32
    for opened in (load_model(tmp_path / "run"), load_products(tmp_path / "run")):
        assert (opened.score(shop["test"], chunk_rows=50) == scores).all() and opened.threshold == model.threshold
    resumed = train_products(shop, tmp_path / "run", rounds=40, known="always", resume=True)
    assert (resumed.score(shop["test"]) == scores).all()
    with pytest.raises(ProdsimError, match="other arguments"):
        train_products(shop, tmp_path / "run", rounds=41, known="always", resume=True)
    assert len(model.score(shop["test"].select([]))) == 0


def test_shares_add_up_to_the_log_odds(shop, model):
    some = shop["test"].select(range(20))
    labels = np.asarray(shop["valid"]["label"][:])
    assert model.run["valid"] == pair_metrics(labels, model.score(shop["valid"]), model.threshold)
    shares = model.explain(some)
    np.testing.assert_allclose(1 / (1 + np.exp(-shares.sum(axis=1))), model.score(some), atol=1e-5)


def test_bad_input_gets_one_line(shop, model, tmp_path):
    for changes, message in (({"known": "never"}, "known 'never': choose auto or always"), ({"rounds": 0}, "rounds")):
        with pytest.raises(ProdsimError, match=message):
            train_products(shop, tmp_path / "new", **changes)
    with pytest.raises(ProdsimError, match="is missing from the pairs"):
        model.score(shop["test"].remove_columns("left_title"))
    labels = np.asarray(shop["train"]["label"][:])
    one = DatasetDict({**shop, "train": shop["train"].select([*np.flatnonzero(labels == 0), np.argmax(labels)])})
    with pytest.raises(ProdsimError, match="1 training pairs of one class"):
        train_products(one, tmp_path / "new")
    assert not any(tmp_path.iterdir())
    save_products(model, tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(run | {"format": 99}))
    with pytest.raises(ProdsimError, match="as version 99 did"):
        load_model(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    (tmp_path / "run" / "products" / "known.json").write_text("{")
    with pytest.raises(ProdsimError, match="cannot be read"):
        load_model(tmp_path / "run")


def test_records_that_say_the_same_and_chinese(tmp_path):
    rows = [("小米手机 13 黑色 128GB", "小米 13 手机 黑色", 1), ("小米手机 13 黑色 128GB", "小米手机 13 黑色 128GB", 1)]
    rows += [("小米手机 13 黑色 128GB", "华为 P60 手机 白色", 0), ("华为 P60 手机 白色", "华为P60 白", 1)]
    rows += [("华为P60 白", "小米 13 手机 黑色", 0), ("荣耀 90 手机 绿色", "小米 13 手机 黑色", 0)]
    pairs = Dataset.from_pandas(table(*rows * 5), preserve_index=False)
    data = DatasetDict(train=pairs, valid=pairs)
    model = train_products(data, tmp_path / "run", rounds=10, known="always")
    assert np.isfinite(load_model(tmp_path / "run").score(pairs)).all() and len(model.known.cells) == 5


def test_command_line(shop, tmp_path, capsys):
    save_pairs(shop, tmp_path / "pairs")
    data, run = str(tmp_path / "pairs"), str(tmp_path / "run")
    train = ["train", data, "--recipe", "products", "--set", "rounds=20", "--set", "known=always", "--out", run]
    assert main(train) == 0 and main(["evaluate", run, data, "--json"]) == 0
    assert '"average_precision"' in capsys.readouterr().out
    assert main([*train[:-1], str(tmp_path / "x"), "--epochs", "3"]) == 2
    assert "--epochs is of encoders" in capsys.readouterr().err
    file = tmp_path / "some.csv"
    shop["test"].select(range(5)).to_pandas().drop(columns="label").to_csv(file, index=False)
    assert main(["compare", run, "--pairs", str(file), "--overall"]) == 0
    assert "known products" in capsys.readouterr().out
