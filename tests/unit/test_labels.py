"""Label suspects and agreement of raters."""

import numpy as np
import pandas as pd
import pytest
from little_shop import little_pairs

from prodsim.core import ProdsimError
from prodsim.quality.labels import (
    DOUBT,
    HEARD,
    WEAK,
    boosted,
    evidence,
    fold_groups,
    label_suspects,
    likeness,
    neighbourhood,
    out_of_fold,
    pair_features,
    rater_agreement,
    suspect_findings,
    trained_out_of_fold,
    turned_probability,
)
from prodsim.quality.reading import open_for_audit, rater_columns, record_table
from prodsim.quality.values import column_kinds
from prodsim.shop import simulate


@pytest.fixture(scope="module")
def little():
    "Clean pairs of a small shop."
    return simulate(products=300, seed=3, difficulty="easy", sizes=(400, 100, 150)).pairs


def test_confident_learning_finds_what_was_turned():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 600)
    x = y[:, None] * 2.0 + rng.normal(0, 0.5, (600, 3))
    turned = rng.choice(600, 30, replace=False)
    noisy = y.copy()
    noisy[turned] = 1 - noisy[turned]
    p = out_of_fold(x, noisy)
    found = set(label_suspects(noisy, p).tolist())
    assert len(found & set(turned.tolist())) >= 28 and len(found) <= 36
    again = set(label_suspects(noisy, out_of_fold(x, noisy, passes=2)).tolist())
    assert len(again & set(turned.tolist())) >= 28 and len(again) <= 36
    with pytest.raises(ProdsimError, match="too few"):
        out_of_fold(x[:20], np.array([1] + [0] * 19))


def test_the_probability_of_a_turned_label_by_hand():
    # A calibrated model that knows the truth and that one label in ten is turned says 0.9 or 0.1 of each row.
    truth = np.tile([0, 1], 500)
    turned = np.arange(1000) % 10 == np.arange(1000) % 2  # one row in ten, of both classes
    y = np.where(turned, 1 - truth, truth)
    p = np.where(truth == 1, 0.9, 0.1)
    doubt = turned_probability(y, p)
    assert doubt[turned].min() > 0.95 and doubt[~turned].max() < 0.05
    assert set(label_suspects(y, p)) == set(np.flatnonzero(turned)) == set(np.flatnonzero(doubt >= DOUBT))
    assert np.allclose(turned_probability(1 - y, 1 - p), doubt, atol=1e-3)  # the classes' names do not count
    assert set(label_suspects(y, 0.5 + 0.4 * (p - 0.5))) == set(np.flatnonzero(turned))  # nor how sure the model is


class Told:
    "A model that knows the truth and says it as a cosine or as a probability, each on a scale of its own."

    def __init__(self, kind, scale):
        self.kind, self.scale = kind, scale

    def score(self, pairs):
        same = [a.split()[2] == b.split()[2] for a, b in zip(pairs["left_title"], pairs["right_title"], strict=True)]
        return np.where(same, *((0.9 * self.scale, 0.2 * self.scale) if self.kind == "bi" else (0.99, 0.3)))


@pytest.mark.parametrize("kind", ["bi", "cross"])
def test_a_model_trained_fold_by_fold_never_sees_the_record_it_judges(kind):
    tables = open_for_audit(little_pairs(seed=1, train=200))[1]
    whole = pd.concat(tables.values(), ignore_index=True)
    groups, y = fold_groups(whole), whole["label"].to_numpy()
    number = dict(zip(zip(whole["left_id"], whole["right_id"], whole["left_title"], strict=True), groups, strict=True))
    seen, told = [], []

    def train(pairs, fold):
        assert set(pairs) == {"train", "valid"} and set(pairs["train"].column_names) == set(pairs["valid"].column_names)
        keys = [zip(p["left_id"], p["right_id"], p["left_title"], strict=True) for p in pairs.values()]
        of = [{number[key] for key in own} for own in keys]
        assert not of[0] & of[1]
        seen.append(of[0] | of[1])
        told.append(Told(kind, 1 - 0.15 * fold))
        return told[-1]

    p = trained_out_of_fold(tables, train)
    assert len(seen) == 5 and sum(len(set(groups) - own) for own in seen) == len(set(groups))
    assert p[y == 1].min() > 0.9 and p[y == 0].max() < 0.1  # one scale, though the models' scores had five
    with pytest.raises(ProdsimError, match="three"):
        trained_out_of_fold(tables, train, folds=2)


def test_a_suspect_that_another_finding_names_is_said_to_be_the_same_row(little):
    table = open_for_audit(little)[1]["train"]
    ids = table[["left_id", "right_id"]]
    wrong = np.flatnonzero(~ids.duplicated(keep=False))[:3]
    p = np.where(table["label"] == 1, 0.99, 0.01)
    p[wrong] = 1 - p[wrong]
    rows = [f"train {table['row'][i]}" for i in wrong]
    already = {"transitivity": [rows[0], "train 99999"], "labels_contradict": rows[:2]}
    found, numbers, _ = suspect_findings({"train": table}, {}, probabilities=ids.assign(probability=p), already=already)
    assert numbers["also_named"] == 2 and set(found[0]["where"]) == set(rows)
    assert found[0]["effect"].startswith("2 of these rows stand under transitivity or labels_contradict as well. ")
    found, numbers, _ = suspect_findings({"train": table}, {}, probabilities=ids.assign(probability=p))
    assert numbers["also_named"] == 0 and not found[0]["effect"].startswith("0")


def test_a_judge_that_knows_little_calls_no_error(little):
    "Probabilities that say nothing of the labels: the finding says so, and does not say: do not train."
    tables = open_for_audit(little)[1]
    whole = pd.concat(tables.values(), ignore_index=True)
    y = whole["label"].to_numpy()
    rng = np.random.default_rng(0)
    sure = np.where((y == 1) ^ (rng.random(len(y)) < 0.15), 0.95, 0.05)
    for p, level in ((rng.uniform(0.3, 0.7, len(y)), "warning"), (sure, "error")):
        given = whole[["left_id", "right_id"]].assign(probability=p)
        found, numbers, _ = suspect_findings(tables, {}, probabilities=given)
        assert (numbers["auc"] < WEAK) == ("AUC" in found[0]["effect"]) == (level == "warning")
        assert found[0]["level"] == level and found[0]["count"] > 0.1 * len(y)


def test_rows_of_a_record_stay_in_one_fold(little):
    _, tables, *_ = open_for_audit(little)
    groups, table = fold_groups(tables["train"]), tables["train"]
    assert len(groups) == len(table)
    assert (fold_groups(table.where(table.notna(), np.nan)) == groups).all()  # however a missing cell is written
    seen = table.assign(group=groups).groupby("group")[["left_title", "right_title"]].nunique()
    assert (seen == 1).all().any()  # one side is the same in each group
    rng = np.random.default_rng(0)
    record = np.repeat(np.arange(60), 30)
    labels = rng.integers(0, 2, 60)[record]  # a record has one label: who knows the record knows it
    x = record[:, None] + np.zeros((1, 2))
    leaks, holds = (np.mean((out_of_fold(x, labels, groups) > 0.5) == labels) for groups in (None, record))
    assert leaks > 0.95 and holds < 0.8


def around(*rows):
    "Pairs of one-text records, and their labels."
    left, right, labels = zip(*rows, strict=True)
    table = pd.DataFrame({"left_id": "x", "left_title": left, "right_id": "y", "right_title": right})
    return table, np.array(labels)


def test_what_other_labels_say_by_hand():
    red, blue, far = "lamp red", "lamp blue", "oven"
    table, y = around((red, blue, 1), (red, far, 0), (blue, "lamp red", 0), ("spoon", "fork", 1), ("spoon", far, 1))
    near, all_heard = neighbourhood(table), np.ones(5, bool)
    said = evidence(near, y, all_heard)
    kinds = ["no match", "match"]
    names = [f"{what} {end}" for what in (*kinds, *(f"count {k}" for k in kinds), "share") for end in ("less", "more")]
    said = pd.DataFrame(said[:, :10], columns=names)
    # the first pair: of `red` one other label (no match, with far); rows 0 and 2 are one pair, deaf to each other
    assert said.loc[[0, 2], ["count no match more", "count match more", "count no match less"]].to_numpy().tolist() == (
        [[1, 0, 0]] * 2
    )
    assert said.loc[0].equals(said.loc[2]) and said.loc[0, "no match more"] < 0.2  # the oven is no lamp
    # the oven with red: red's two labels with blue, one of either kind, and the spoon's match with the oven
    assert said.loc[1, ["count match less", "count match more", "count no match more"]].tolist() == [1, 1, 1]
    assert said.loc[1, "share more"] == pytest.approx((1 + 0.6) / 2) and said.loc[1, "match more"] < 0.2
    assert said.loc[3, "match more"] == pytest.approx(said.loc[3, "match less"])  # one side alone has other labels
    swapped = table.rename(columns=lambda c: {"l": "right", "r": "left"}[c[0]] + c[c.index("_") :])[list(table)]
    np.testing.assert_allclose(evidence(neighbourhood(swapped), y, all_heard)[:, :10], said, atol=1e-9)


def test_a_neighbourhood_reads_numbers_and_missing_cells():
    table, y = around(("lamp red", "lamp", 1), ("lamp red", "oven", 0), (None, "oven", 0))
    near = neighbourhood(table.assign(left_price=[1.5, 1.5, np.nan], right_price=[1.5, None, 2.0]))
    assert sorted(zip(near.row, near.other, strict=True)) == [(0, 1), (1, 0)]  # the two ovens differ in price
    assert np.isfinite(near.standing).all() and np.isfinite(evidence(near, y, y < 2)[:, 4:]).all()


def test_no_label_speaks_of_its_own_pair_and_none_that_is_not_heard(little):
    table = pd.concat(open_for_audit(little)[1].values(), ignore_index=True)
    y, near = table["label"].to_numpy(int), neighbourhood(table)
    assert len(near.row) > len(table) and near.alike.min() >= 0 and near.alike.max() <= 1 + 1e-9
    assert (near.row != near.other).all() and np.bincount(near.row).max() <= 2 * HEARD
    heard = np.arange(len(y)) % 3 > 0
    given = evidence(near, y, heard)
    assert np.array_equal(given, evidence(near, np.where(heard, y, 1 - y), heard), equal_nan=True)
    for row in np.flatnonzero(heard)[:20]:
        turned = np.where(np.arange(len(y)) == row, 1 - y, y)
        prior = given[:, 8:10], evidence(near, turned, heard)[:, 8:10]  # the share leans on the share of all labels
        again = evidence(near, turned, heard)
        assert np.array_equal(given[row, :8], again[row, :8], equal_nan=True)
        assert np.allclose(prior[0][row], prior[1][row], atol=0.01)
    groups, learned = fold_groups(table), []

    def fit(features, labels, judged, seed):
        learned.append((features, labels))
        return boosted(features, labels, judged, seed)

    x = np.arange(len(y), dtype=float)[:, None]  # a row's number, so that what was learned from can be told
    out_of_fold(x, y, groups, near=near, fit=fit)
    for features, labels in learned:
        known = np.isin(np.arange(len(y)), features[:, 0])
        judged_turned = np.where(known, y, 1 - y)
        assert np.array_equal(features[:, 1:], evidence(near, judged_turned, known)[known], equal_nan=True)
        assert np.array_equal(labels, y[known]) and not known.all()


def test_pair_features_are_symmetric_in_likeness(little):
    kind, tables, _, _ = open_for_audit(little)
    kinds = column_kinds(record_table(kind, tables))
    table = tables["train"].head(80).reset_index(drop=True)
    swap = {c: c.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right") for c in table}
    features = pair_features(table, kinds)
    turned = pair_features(table.rename(columns=swap)[list(table)], kinds)
    assert features.shape == (80, 46) and np.isfinite(features).mean() > 0.5
    alike = likeness({"train": table})["train"]
    assert ((alike >= 0) & (alike <= 1)).all()
    assert np.allclose(features, turned, atol=1e-2, equal_nan=True)


def test_agreement_by_hand():
    # Krippendorff (2011), "Computing Krippendorff's alpha-reliability", the example with four observers
    data = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, np.nan, np.nan, np.nan],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, np.nan, 3],
            [np.nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, np.nan],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, np.nan],
        ]
    ).T
    ratings = pd.DataFrame(data, columns=list("abcd"))
    for level, alpha in (("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)):
        assert round(rater_agreement(ratings, level)["alpha"], 3) == alpha
    with pytest.raises(ProdsimError):
        rater_agreement(ratings[["a"]])
    assert rater_columns(pd.DataFrame({"r1": ["1", "x"], "r2": ["1", "2"]})) == []
