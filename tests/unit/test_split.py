"""Splits: no record on two sides, whatever the pairs; few pairs lost; the same result on every machine."""

import importlib.metadata
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, concatenate_datasets
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prodsim import data, registry
from prodsim.core import ProdsimError
from prodsim.data import data_hash, load_pairs, repeated_pairs, save_pairs, seen_status
from prodsim.quality.split import disjoint, group_records, partition, record_keys, split_pairs, split_records
from prodsim.registry import catalog


def pairs_of(rows, **columns):
    "Pairs with titles from (left title, right title, label); further columns by keyword."
    base = {
        "left_id": [f"l{i}" for i in range(len(rows))],
        "right_id": [f"r{i}" for i in range(len(rows))],
        "left_title": [left for left, _, _ in rows],
        "right_title": [right for _, right, _ in rows],
        "label": [label for _, _, label in rows],
    }
    return Dataset.from_dict(base | columns)


def records_of(split):
    return set(record_keys(split, "left")) | set(record_keys(split, "right"))


def row_set(split):
    return sorted(zip(split["left_title"], split["right_title"], split["label"], strict=True))


def many(n=120, records=60, matches=0.3, seed=0):
    rng = np.random.default_rng(seed)
    rows = [(f"a{rng.integers(records)}", f"b{rng.integers(records)}", int(rng.random() < matches)) for _ in range(n)]
    return pairs_of(rows)


some_pairs = st.lists(
    st.tuples(st.integers(0, 14), st.integers(0, 14), st.integers(0, 1)), min_size=3, max_size=60
).map(lambda rows: pairs_of([(f"A-{a}", f"b {b}", label) for a, b, label in rows]))


# --- no record on two sides


@settings(max_examples=120, deadline=None)
@given(some_pairs, st.sampled_from(["record", "cluster"]), st.integers(0, 3))
def test_no_record_and_no_product_on_two_sides(pairs, by, seed):
    try:
        splits, report = split_pairs(pairs, by=by, seed=seed, sweeps=20)
    except ProdsimError as error:
        assume("would be empty" not in str(error) and "no pair is left" not in str(error))
        raise
    held = [records_of(part) for part in splits.values()]
    assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]
    assert (seen_status(splits) == "unseen").all() and (seen_status(splits, "valid") == "unseen").all()
    # nothing is invented, nothing vanishes without being counted
    kept = sorted(row for part in splits.values() for row in row_set(part))
    assert len(set(kept)) == len(kept) and set(kept) <= set(row_set(pairs))
    assert len(pairs) == len(kept) + report["cut"] + report["repeated"] + report["contradicting"]
    if by == "cluster":
        whole = concatenate_datasets(list(splits.values()))
        side = np.repeat(np.arange(3), [len(part) for part in splits.values()])
        sides = [record_keys(whole, name) for name in ("left", "right")]
        everywhere = [record_keys(pairs, name) for name in ("left", "right")]
        labels = pd.DataFrame({"pair": list(zip(*everywhere, strict=True)), "label": pairs["label"]})
        agreed = labels.groupby("pair")["label"].transform("nunique").to_numpy() == 1
        product = group_records(*everywhere, joined=(labels["label"] == 1).to_numpy() & agreed)
        homes = {}
        for name in sides:
            for record, s in zip(name, side, strict=True):
                homes.setdefault(product[record], set()).add(int(s))
        assert all(len(own) == 1 for own in homes.values()) and report["cut_matches"] == 0


@settings(max_examples=60, deadline=None)
@given(some_pairs, st.data())
def test_no_record_on_two_sides_by_time_and_source(pairs, draw):
    by = draw.draw(st.sampled_from(["time", "source"]))
    values = draw.draw(st.lists(st.integers(0, 9), min_size=len(pairs), max_size=len(pairs)))
    try:
        splits, report = split_pairs(pairs, by=by, column=values, sweeps=10)
    except ProdsimError as error:
        assert any(
            part in str(error) for part in ("would be empty", "no pair is left", "cannot be cut", "fewer sources")
        )
        return
    held = [records_of(part) for part in splits.values()]
    assert not held[0] & held[1] and not held[0] & held[2] and not held[1] & held[2]
    given_value = dict(zip(pairs["left_id"], values, strict=True))
    spans = [[given_value[name] for name in part["left_id"]] for part in splits.values()]
    if by == "time":
        assert max(spans[0]) < min(spans[1]) and max(spans[1]) < min(spans[2])
    else:
        assert (
            not set(spans[0]) & set(spans[1])
            and not set(spans[0]) & set(spans[2])
            and not set(spans[1]) & set(spans[2])
        )


@settings(max_examples=30, deadline=None)
@given(some_pairs, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(pairs, random):
    order = list(range(len(pairs)))
    random.shuffle(order)
    try:
        first = split_pairs(pairs, sweeps=10)
    except ProdsimError:
        return
    second = split_pairs(pairs.select(order), sweeps=10)
    assert first[1] == second[1]
    assert [part["left_title"] for part in first[0].values()] == [part["left_title"] for part in second[0].values()]


def test_seeds_are_other_splits_and_repeat():
    pairs = many()
    hashes = [split_pairs(pairs, seed=seed, sweeps=50)[1]["data_hash"]["test"] for seed in (0, 1, 0)]
    assert hashes[0] == hashes[2] != hashes[1]


def test_hash_is_the_same_in_another_process():
    "Python's own hashes differ from process to process; none may reach the split."
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_split import many; "
        "from prodsim.quality.split import split_pairs; print(split_pairs(many(), sweeps=50)[1]['data_hash'])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code, str(__import__("pathlib").Path(__file__).parent)],
            env=__import__("os").environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True, text=True, check=True, timeout=300,
        ).stdout
        for seed in (1, 2)
    ]  # fmt: skip
    assert runs[0] == runs[1] == f"{split_pairs(many(), sweeps=50)[1]['data_hash']}\n"


# --- what is kept


def test_separate_products_lose_nothing_and_shares_are_met():
    rows = [(f"a{i}", f"b{i}", int(i % 4 == 0)) for i in range(400)]
    splits, report = split_pairs(pairs_of(rows))
    assert report["cut"] == 0 and report["kept_share"] == 1
    assert {name: part["rows"] for name, part in report["splits"].items()} == {"train": 240, "valid": 80, "test": 80}
    assert {name: part["positives"] for name, part in report["splits"].items()} == {
        "train": 60,
        "valid": 20,
        "test": 20,
    }
    assert list(split_pairs(pairs_of(rows), shares=(4, 0, 1))[0]) == ["train", "test"]


def test_strata_are_met_too():
    rows = [(f"a{i}", f"b{i}", int(i % 5 == 0)) for i in range(500)]
    category = ["tv" if i < 100 else "lamp" for i in range(500)]
    pairs = pairs_of(rows, left_category=category, right_category=category)
    splits, _ = split_pairs(pairs, strata="category")
    counts = pd.DataFrame(
        {n: pd.Series(zip(p["left_category"], p["label"], strict=True)).value_counts() for n, p in splits.items()}
    )
    assert (abs(counts.div(counts.sum(axis=1), axis=0) - [0.6, 0.2, 0.2]) < 0.06).all(axis=None), counts
    given_values = split_pairs(pairs.remove_columns(["left_category", "right_category"]), strata=category)[0]
    assert {n: len(p) for n, p in given_values.items()} == {n: len(p) for n, p in splits.items()}


def test_strata_of_one_pair_each_do_not_empty_a_split():
    rows = [(f"a{i}", f"b{i}", int(i % 5 == 0)) for i in range(300)]
    price = [str(i if i % 3 else 7) for i in range(300)]  # a third has one price, each other pair its own
    splits, report = split_pairs(pairs_of(rows, left_price=price, right_price=price), strata="price")
    assert all(
        abs(len(splits[s]) / 300 - share) < 0.03 for s, share in {"train": 0.6, "valid": 0.2, "test": 0.2}.items()
    )
    assert report["cut"] == 0 and abs(sum(p == "7" for p in splits["test"]["left_price"]) - 20) <= 3


def test_repeats_count_once_and_contradictions_not_at_all():
    rows = [(f"a{i}", f"b{i}", 1) for i in range(20)]
    rows += [("A 0", "B-0!", 1), ("b1", "a1", 1), ("a2", "b2", 0)]
    splits, report = split_pairs(pairs_of(rows))
    assert (report["repeated"], report["contradicting"], report["cut"]) == (2, 2, 0)
    assert sum(map(len, splits.values())) == 19 == len(rows) - 4
    assert "a2" not in {title for part in splits.values() for title in part["left_title"]}


def test_a_giant_component_is_cut_between_its_lumps():
    "Five lumps of 40 dense pairs, joined in a row by one pair each: at most a few of the joints are lost."
    rows = []
    for lump in range(5):
        rows += [(f"a{lump}.{i}", f"b{lump}.{(i * k + k) % 10}", int(k == 1)) for i in range(10) for k in (1, 2, 3, 4)]
        rows += [(f"a{lump}.0", f"b{lump + 1}.0", 0)] if lump < 4 else []
    rows = sorted(set(rows))
    splits, report = split_pairs(pairs_of(rows), by="cluster", seed=0)
    dealt = split_pairs(pairs_of(rows), by="cluster", seed=0, sweeps=0)[1]
    assert report["cut"] <= 4 and report["cut"] <= dealt["cut"]
    assert np.allclose([len(part) / len(rows) for part in splits.values()], [0.6, 0.2, 0.2], atol=0.08)


def test_search_beats_grown_regions():
    pairs = load_pairs("shop:hard-3")
    grown, searched = (split_pairs(pairs, sweeps=sweeps)[1] for sweeps in (0, 200))
    assert searched["cut"] < 0.6 * grown["cut"] and searched["cut_share"] < 0.06
    shares = [part["positives"] / part["rows"] for part in searched["splits"].values()]
    assert max(shares) < 1.25 * min(shares)
    sizes = [part["rows"] for part in searched["splits"].values()]
    assert abs(sizes[0] / sum(sizes) - 0.6) < 0.03 and abs(sizes[1] - sizes[2]) < 0.1 * sizes[1]


def test_time_keeps_equal_times_together():
    rows = [(f"a{i}", f"b{i}", i % 2) for i in range(100)]
    days = ["2024-05-01"] * 55 + ["2024-05-02"] * 20 + ["2024-06-01T10:00:00+02:00"] * 5 + ["2025-01-01"] * 20
    splits, report = split_pairs(pairs_of(rows, left_day=days, right_day=["2023-01-01"] * 100), by="time", column="day")
    assert [len(part) for part in splits.values()] == [55, 25, 20] and report["cut"] == 0
    assert set(splits["test"]["left_day"]) == {"2025-01-01"}


def test_partition_by_hand():
    ring = [(i, (i + 1) % 6) for i in range(6)]
    rows = ring + [(a + 6, b + 6) for a, b in ring] + [(0, 6)]
    side = partition(*zip(*rows, strict=True), cells=[0] * len(rows), shares=(1, 1))
    assert len(set(side[:6])) == len(set(side[6:])) == 1 and side[0] != side[6]
    assert partition([], [], []) == [] and partition([0], [0], [0], shares=(1,)) == [0]
    with pytest.raises(ProdsimError, match="above zero"):
        partition([0], [1], [0], shares=(1, 0))


# --- records


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from("xyz")), min_size=30, max_size=150), st.integers(0, 2))
def test_split_records_keeps_groups_whole(rows, seed):
    records = pd.DataFrame(rows, columns=["product", "category"])
    assume(records["product"].nunique() > 12 and records["product"].value_counts().iloc[0] < len(records) / 5)
    parts = split_records(records, "product", "category", seed=seed)
    groups = [set(part["product"]) for part in parts.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert sorted(i for part in parts.values() for i in part.index) == list(range(len(records)))


def test_split_records_meets_strata():
    rng = np.random.default_rng(0)
    product = np.sort(rng.integers(0, 300, 1500))
    records = pd.DataFrame({"product": product, "category": np.where(product % 10 == 0, "rare", "usual")})
    parts = split_records(records, "product", "category")
    for category, total in records["category"].value_counts().items():
        shares = [(part["category"] == category).sum() / total for part in parts.values()]
        assert np.allclose(shares, [0.6, 0.2, 0.2], atol=0.04), (category, shares)
    with pytest.raises(ProdsimError, match="no column 'cluster'"):
        split_records(records, "cluster")
    with pytest.raises(ProdsimError, match="would be empty"):
        split_records(records, ["one"] * 1500)


# --- mistakes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"by": "row"}, "choose record, cluster, time or source"),
        ({"by": "time"}, "needs a column"),
        ({"by": "record", "column": "title"}, "takes no column"),
        ({"by": "source", "column": "shop"}, "no attribute 'shop'"),
        ({"by": "source", "column": ["x"] * 120}, "fewer sources than splits"),
        ({"by": "time", "column": [1.0] * 120}, "cannot be cut"),
        ({"by": "time", "column": "title"}, "neither a number nor a date"),
        ({"by": "time", "column": [None] * 120}, "pair 0 .* has no time"),
        ({"by": "time", "column": [1]}, "one time per pair"),
        ({"shares": (1, 1)}, "three numbers"),
        ({"shares": (0, 1, 1)}, "train above zero"),
        ({"strata": "kind"}, "no attribute 'kind' to stratify"),
        ({"strata": [1]}, "one per pair"),
    ],
)
def test_mistakes_are_answered(wrong, message):
    with pytest.raises(ProdsimError, match=message):
        split_pairs(many(), **{"sweeps": 0} | wrong)


def test_pairs_that_cannot_be_split():
    for pairs, message in (
        (many().remove_columns("label"), "needs a label"),
        (pairs_of([("a", "b", 1), ("a", "b", 0)]), "both labels"),
        (pairs_of([("a", "b", 1)]), "would be empty"),
    ):
        with pytest.raises(ProdsimError, match=message):
            split_pairs(pairs)


# --- NAME:disjoint


def test_disjoint_variant_of_names_files_and_folders(tmp_path, monkeypatch):
    pairs = DatasetDict(train=many(80, seed=1), valid=many(20, seed=2), test=many(20, seed=3))
    wanted = data_hash(disjoint(pairs))
    monkeypatch.setattr(
        data, "loader_plugins", lambda: {"mine": type("Entry", (), {"load": lambda self: lambda variant: pairs})()}
    )
    assert data_hash(load_pairs("mine:disjoint")) == data_hash(load_pairs("mine:small:disjoint")) == wanted
    save_pairs(pairs, tmp_path / "own")
    assert data_hash(load_pairs(f"{tmp_path / 'own'}:disjoint")) == wanted
    whole = concatenate_datasets(list(pairs.values()))
    save_pairs(DatasetDict(test=whole), tmp_path / "one")
    assert data_hash(load_pairs(f"{tmp_path / 'one' / 'test.csv'}:disjoint")) == wanted


def test_disjoint_is_listed_and_an_unknown_variant_is_not_built():
    names = set(catalog()["name"])
    assert {"abt-buy:disjoint", "amazon-google:disjoint", "wdc-computers:small:disjoint"} <= names
    assert "chorus:disjoint" not in names
    with pytest.raises(ProdsimError, match="choose a variant"):
        load_pairs("wdc-computers:disjoint")
    with pytest.raises(ProdsimError, match="no such data set"):
        load_pairs("nothing:disjoint")


def test_other_packages_can_add_variants(monkeypatch):
    pairs = load_pairs("shop:easy-5")
    entry = importlib.metadata.EntryPoint("half", "half_package:build", "prodsim.variants")
    monkeypatch.setitem(sys.modules, "half_package", type(sys)("half_package"))
    sys.modules["half_package"].build = lambda own: DatasetDict(test=own["test"].select(range(5)))
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [entry] if group == "prodsim.variants" else [])
    assert "abt-buy:half" in set(catalog()["name"])
    monkeypatch.setattr(
        data, "loader_plugins", lambda: {"mine": type("Entry", (), {"load": lambda self: lambda variant: pairs})()}
    )
    assert len(load_pairs("mine:half")["test"]) == 5
    sys.modules["half_package"].build = lambda own: 3
    with pytest.raises(ProdsimError, match="returned a int"):
        load_pairs("mine:half")


# What the public files give, on every machine: rows and matches of each split, pairs lost, hashes.
REBUILT = {
    "abt-buy": {
        "splits": {"train": (5683, 596), "valid": (1860, 220), "test": (1892, 199)},
        "lost": {"rows": 9575, "repeated": 39, "contradicting": 47, "cut": 54, "cut_matches": 0},
        "data_hash": {
            "train": "7f6f9bd2d68432deaa7c025dbd20b7ff5e3da7eeb153365e905a8cd250d76e82",
            "valid": "32f087c0936e7b78914e50251c07e06526d75e328c07579b1ea5cefd0de969cc",
            "test": "bcec21b5dad2c9dfbc5a62da7fc27039c0962c8619aa14cf4376f11f31741bcb",
        },
    },
    "amazon-google": {
        "splits": {"train": (6242, 668), "valid": (2081, 223), "test": (2080, 222)},
        "lost": {"rows": 11460, "repeated": 494, "contradicting": 44, "cut": 519, "cut_matches": 0},
        "data_hash": {
            "train": "8090e35a2a245899c20b671c9159d5a30aba76ffca555772964f9433e0dc8877",
            "valid": "9d2586fda4ac171bc0436605b62fd0298511fe24d56491c3b9692472dbd16a3b",
            "test": "79224ffac4fa0cf74a9727840c0c01d0c69c329757cf4fdc9d11095db1278036",
        },
    },
}


@pytest.mark.data
@pytest.mark.long(60)
@pytest.mark.parametrize("name", ["abt-buy", "amazon-google"])
def test_rebuilt_benchmarks(name):
    splits, report = split_pairs(load_pairs(name))
    assert data_hash(splits) == report["data_hash"] == REBUILT[name]["data_hash"]
    assert {split: (part["rows"], part["positives"]) for split, part in report["splits"].items()} == REBUILT[name][
        "splits"
    ]
    assert {key: report[key] for key in REBUILT[name]["lost"]} == REBUILT[name]["lost"]
    for split in ("valid", "test"):
        assert (seen_status(splits, split) == "unseen").all() and repeated_pairs(splits, split).empty
    shares = [part["positives"] / part["rows"] for part in report["splits"].values()]
    assert max(shares) < 1.15 * min(shares) and report["cut_share"] < 0.08


def test_imports_point_down():
    "Data finds the builder by name, and reads nothing above itself until it is asked for."
    code = "import sys, prodsim.registry as d; d.catalog(); print([m for m in sys.modules if 'quality' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"
