"""Loaders: every format, every bad input, and what is known about the real files."""

import csv
import json
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from one_line import message

from prodsim import data
from prodsim.core import ProdsimError, hash_text
from prodsim.data import (
    attributes,
    data_hash,
    load_events,
    load_pairs,
    load_records,
    record_ids,
    repeated_pairs,
    save_pairs,
    seen_status,
    stream_pairs,
    stream_records,
    unique_records,
)

HEAD = "left_title,right_title,label\n"
LONG = "灯" * 100 + ",b,1\n"


def pairs_of(rows, names=("title", "brand")):
    "A Dataset of pairs from rows of (left values, right values, label)."
    table = {"left_id": [], "right_id": []}
    for at, side in enumerate(("left", "right")):
        for i, name in enumerate(names):
            table[f"{side}_{name}"] = [row[at][i] for row in rows]
        own = [json.dumps(row[at]) for row in rows]
        table[f"{side}_id"] = [hash_text(text) for text in own]
    return Dataset.from_dict({**table, "label": [row[2] for row in rows]})


# Any text but what no file of text can hold: NUL and half a surrogate pair.
anything = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
special = st.sampled_from(
    ["None", "NA", "null", "NaN", '27"', '"', '""', "a,b", "a\tb", "a\nb", "a\r\nb", "a\rb", "灯泡", "🎸🎸", "0049",
     "1e5", "-", "COL", "VAL", "COL VAL", "a\u2028b", "\ufeffx", "a\x85b", "{", "'", "\\", "\\n", "#"]
)  # fmt: skip
value = st.one_of(st.none(), special, anything).map(lambda text: (text or "").strip() or None)
record = st.tuples(value, value).filter(any)
rows = st.lists(st.tuples(record, record, st.integers(0, 1)), min_size=1, max_size=6)


def same(loaded, pairs):
    "Every value, label and id came back, in order."
    assert list(loaded) == list(pairs)
    assert data_hash(loaded) == data_hash(pairs)
    for split in pairs:
        ours, theirs = loaded[split].to_dict(), pairs[split].to_dict()
        assert ours == {column: theirs[column] for column in ours}, split


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(train=rows, test=rows)
@example(train=[(("a\rb", '"'), ("\ufeffx", None), 1)], test=[((None, "NA"), ("a\n\nb", "None"), 0)])
def test_round_trip(form, train, test, tmp_path):
    pairs = DatasetDict(train=pairs_of(train), test=pairs_of(test))
    save_pairs(pairs, tmp_path, form)
    same(load_pairs(tmp_path), pairs)
    chunks = pd.concat(stream_pairs(tmp_path / f"train.{form}", chunk_rows=2), ignore_index=True)
    assert chunks["left_title"].tolist() == list(pairs["train"]["left_title"])
    assert chunks["label"].tolist() == list(pairs["train"]["label"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(train=rows)
@example(train=[(("x COL y VAL z", None), ("a", None), 1)])
@example(train=[(("COL", "VAL COL"), ("COL x", "VAL"), 1)])
def test_round_trip_ditto_or_refusal(train, tmp_path):
    pairs = DatasetDict(train=pairs_of(train))
    text = "".join(filter(None, (cell for row in train for side in row[:2] for cell in side)))
    try:
        save_pairs(pairs, tmp_path, "txt")
    except ProdsimError:
        assert set(text) & set("\t\n") or "COL " in text, "refused without need"
        return
    loaded = load_pairs(tmp_path)
    assert data_hash(loaded) == data_hash(pairs)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(train=rows, test=rows)
def test_round_trip_magellan_and_single_file(train, test, tmp_path):
    pairs = DatasetDict(train=pairs_of(train), test=pairs_of(test))
    save_pairs(pairs, tmp_path / "magellan", "magellan")
    assert data_hash(load_pairs(tmp_path / "magellan")) == data_hash(pairs)
    whole = pd.concat([pd.DataFrame({"split": name, **part.to_dict()}) for name, part in pairs.items()])
    whole.to_parquet(tmp_path / "all.parquet")
    whole.to_csv(tmp_path / "all.csv", index=False, quoting=csv.QUOTE_ALL)  # pandas would leave a lone CR unquoted
    for name in ("all.parquet", "all.csv"):
        assert data_hash(load_pairs(tmp_path / name)) == data_hash(pairs)


def test_missing_values_are_none_and_names_are_names(tmp_path):
    (tmp_path / "a.csv").write_text("id,title,brand,price\n7,None,NA,\n8, null , ,1999.0\n", encoding="utf-8-sig")
    rows = list(load_records(tmp_path / "a.csv"))
    assert rows[0] == {"id": "7", "title": "None", "brand": "NA", "price": None}
    assert rows[1] == {"id": "8", "title": "null", "brand": None, "price": "1999.0"}
    frame = next(stream_records(tmp_path / "a.csv"))
    assert frame["price"].iloc[0] is None, "NaN would be true in `value or default`"


def test_numbers_keep_their_spelling(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"t": "a", "p": 1999.0, "n": 12345678901234567890, "b": true, "m": null}\n')
    row = load_records(tmp_path / "a.jsonl")[0]
    assert (row["p"], row["n"], row["b"], row["m"]) == ("1999.0", "12345678901234567890", "true", None)
    pd.DataFrame({"t": ["a"], "p": [1999.5], "n": [2**60], "nan": [np.nan]}).to_parquet(tmp_path / "a.parquet")
    row = load_records(tmp_path / "a.parquet")[0]
    assert (row["p"], row["n"], row["nan"]) == ("1999.5", str(2**60), None)


def test_keys_that_appear_late_in_jsonl(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"title": "a"}\n\n{"title": "b", "brand": "c"}\n')
    assert [row["brand"] for row in load_records(tmp_path / "a.jsonl")] == [None, "c"]
    frames = list(stream_records(tmp_path / "a.jsonl", chunk_rows=1))
    assert [list(frame) for frame in frames] == [["id", "title", "brand"]] * 2


def test_ids_depend_on_the_record_alone(tmp_path):
    (tmp_path / "a.csv").write_text("right_b,left_a,right_a,left_b,label\n2,1,1,2,1\n,1,1,,0\n")
    pairs = load_pairs(tmp_path / "a.csv")["test"]
    assert list(pairs["left_id"]) == list(pairs["right_id"]) == record_ids(pairs, "left")
    assert pairs["left_id"][0] != pairs["left_id"][1]
    (tmp_path / "r.csv").write_text("a\n1\n")
    assert load_records(tmp_path / "r.csv")[0]["id"] == pairs["left_id"][1], "a missing attribute is no attribute"


def test_given_ids_stay_and_gaps_are_filled(tmp_path):
    (tmp_path / "a.csv").write_text("left_id,left_t,right_id,right_t,label\nA,x,,y,1\n")
    row = load_pairs(tmp_path / "a.csv")["test"][0]
    assert row["left_id"] == "A" and row["right_id"] == record_ids(load_pairs(tmp_path / "a.csv")["test"], "right")[0]


def test_columns_stand_in_the_order_of_the_contract(tmp_path):
    (tmp_path / "a.csv").write_text("label,right_b,right_a,left_b,left_a,note\n1,a,b,c,d,e\n")
    pairs = load_pairs(tmp_path / "a.csv")["test"]
    assert pairs.column_names == ["left_id", "right_id", "left_b", "left_a", "right_b", "right_a", "label"]
    assert attributes(pairs) == ["b", "a"] == attributes(DatasetDict(test=pairs))
    assert str(pairs.features["label"]) == str(pairs.features["label"].__class__("int64"))


def test_data_hash_sees_content_and_nothing_else():
    base = [(("a", None), ("b", "c"), 1), (("d", "e"), ("f", None), 0)]
    pairs = DatasetDict(train=pairs_of(base))
    same_hash = data_hash(pairs)["train"]
    assert data_hash(DatasetDict(train=pairs_of([(("a", ""), ("b", "c"), 1), base[1]])))["train"] == same_hash
    renamed = pairs["train"].remove_columns("left_id").add_column("left_id", ["x", "y"])
    assert data_hash(DatasetDict(train=renamed))["train"] == same_hash
    others = [
        [base[1], base[0]],
        base[:1],
        [(("b", "c"), ("a", None), 1), base[1]],
        [(("a", None), ("b", "c"), 0), base[1]],
        [(("a ", None), ("b", "c"), 1), base[1]],
        [((None, "a"), ("b", "c"), 1), base[1]],
    ]
    hashes = {data_hash(DatasetDict(train=pairs_of(other)))["train"] for other in others}
    assert len(hashes) == len(others) and same_hash not in hashes


def test_seen_status_by_hand():
    def row(left, right, label=1):
        return ((left, None), (right, None), label)

    pairs = DatasetDict(
        train=pairs_of([row("a", "b"), row("c", "d", 0)]),
        valid=pairs_of([row("e", "a")]),
        test=pairs_of([row("b", "a", 0), row("d", "e"), row("a", "x"), row("x", "a"), row("x", "y"), row("a ", "b")]),
    )
    expected = ["seen", "seen", "half_seen", "half_seen", "unseen", "half_seen"]
    assert seen_status(pairs).tolist() == expected
    assert seen_status(pairs, "valid").tolist() == ["half_seen"]
    again = repeated_pairs(pairs)
    assert again.to_dict("list") == {"row": [0], "label": [0], "contradicts": [True]}
    assert set(unique_records(pairs)["title"]) == {"a", "b", "c", "d", "e", "x", "y", "a "}
    assert unique_records(pairs)["id"].is_unique
    assert "valid" in message(seen_status, DatasetDict(valid=pairs["valid"]), "test")


def test_variant_files_are_chosen_by_suffix(tmp_path):
    line = "COL title VAL {}\tCOL title VAL b\t1\n"
    for name in ("train.txt.small", "valid.txt.small", "train.txt.large", "test.txt"):
        (tmp_path / name).write_text(line.format(name))
    small = load_pairs(f"{tmp_path}:small")
    assert [part["left_title"][0] for part in small.values()] == ["train.txt.small", "valid.txt.small", "test.txt"]
    assert list(load_pairs(f"{tmp_path}:large")) == ["train", "test"]
    assert "small" in message(load_pairs, tmp_path) and "large" in message(load_pairs, f"{tmp_path}:tiny")


def test_single_file_without_split_is_a_test_split(tmp_path):
    (tmp_path / "a.tsv").write_text("left_t\tright_t\tlabel\na\tb\t1.0\n")
    assert {name: len(part) for name, part in load_pairs(tmp_path / "a.tsv").items()} == {"test": 1}


def test_magellan_joins_by_id_within_its_own_table(tmp_path):
    (tmp_path / "tableA.csv").write_text("id,title\n0,left zero\n1,left one\n")
    (tmp_path / "tableB.csv").write_text("id,title\n0,right zero\n")
    (tmp_path / "test.csv").write_text("ltable_id,rtable_id,label\n1,0,1\n")
    row = load_pairs(tmp_path)["test"][0]
    assert (row["left_title"], row["right_title"], row["left_id"], row["right_id"]) == (
        "left one",
        "right zero",
        "1",
        "0",
    )
    (tmp_path / "test.csv").write_text("ltable_id,rtable_id,label\n1,0,1\n1,5,0\n")
    text = message(load_pairs, tmp_path)
    assert "test.csv, line 3" in text and "'5'" in text and "tableB" in text


BAD_PAIRS = {
    "no label": ("a.csv", "left_t,right_t\na,b\n", ["a.csv", "label"]),
    "label 2": ("a.csv", HEAD + "a,b,1\na,b,2\n", ["a.csv, line 3", "'2'"]),
    "label word": ("a.jsonl", '{"left_t": "a", "right_t": "b", "label": "yes"}\n', ["line 1", "'yes'"]),
    "label empty": ("a.csv", HEAD + "a,b,\n", ["line 2", "missing"]),
    "label in parquet": ("a.parquet", {"left_t": ["a", "a"], "right_t": ["b", "b"], "label": [1, 3]}, ["row 2", "'3'"]),
    "label in Ditto": ("a.txt", "COL t VAL a\tCOL t VAL b\t1\nCOL t VAL a\tCOL t VAL b\t5\n", ["line 2", "'5'"]),
    "label after a long value": ("a.csv", HEAD + '"a\nb\nc",b,1\na,b,x\n', ["line 5", "'x'"]),
    "header only": ("a.csv", HEAD, ["a.csv", "no rows"]),
    "empty file": ("a.csv", "", ["a.csv", "empty"]),
    "empty parquet": ("a.parquet", {"left_t": [], "right_t": [], "label": []}, ["no rows"]),
    "binary": ("a.csv", b"\x00\x01\x02" * 100, ["byte 0"]),
    "binary jsonl": ("a.jsonl", b"PK\x03\x04" + b"\xff" * 50, ["byte 4"]),
    "latin-1": ("a.csv", (HEAD + "a,b,1\ncafé,b,1\n").encode("latin-1"), [f"byte {len(HEAD) + 6 + 3}", "0xe9"]),
    # beyond the first block of a megabyte, where the offset is counted on
    "late wrong byte": (
        "a.csv",
        (HEAD + LONG * 4000).encode() + b"\xff",
        [f"byte {len(HEAD) + len(LONG.encode()) * 4000}"],
    ),
    "cut character": ("a.txt", "COL t VAL 灯".encode()[:-1], ["byte 10"]),
    "utf-16": ("a.csv", HEAD.encode("utf-16"), ["UTF-16"]),
    "too many fields": ("a.csv", HEAD + "a,b,1\na,b,c,1\n", ["line 3", "4 fields", "3"]),
    "too few fields": ("a.tsv", "left_t\tright_t\tlabel\na\tb\n", ["line 2", "2 fields"]),
    "Ditto fields": ("a.txt", "COL t VAL a\tCOL t VAL b\tc\t1\n", ["line 1", "4 fields"]),
    "Ditto without COL": ("a.txt", "lamp\tCOL t VAL b\t1\n", ["line 1", "COL"]),
    "Ditto attribute twice": ("a.txt", "COL t VAL a COL t VAL c\tCOL t VAL b\t1\n", ["line 1", "twice"]),
    "open quote": ("a.csv", HEAD + 'a,b,1\n"a,b,1\na,b,1\n', ["line 3", "quote"]),
    "text after quote": ("a.csv", HEAD + '"a"b,b,1\n', ["line 2", "quote"]),
    "left empty": ("a.csv", HEAD + "a,b,1\n ,b,0\n", ["line 3", "left record"]),
    "right empty": ("a.txt", "COL t VAL a\tCOL t VAL \t1\n", ["line 1", "right record"]),
    "sides differ": ("a.csv", "left_t,left_p,right_t,label\na,b,c,1\n", ["left_p", "right_p"]),
    "one side only": ("a.csv", "left_t,label\na,1\n", ["left_", "right_"]),
    "column twice": ("a.csv", "left_t,left_t,right_t,label\na,b,c,1\n", ["left_t", "twice"]),
    "not JSON": ("a.jsonl", '{"left_t": "a", "right_t": "b", "label": 1}\n{"left_t"\n', ["line 2", "JSON"]),
    "JSON list": ("a.jsonl", "[1, 2]\n", ["line 1", "list"]),
    "nested JSON": ("a.jsonl", '{"left_t": ["a"], "right_t": "b", "label": 1}\n', ["line 1", "list"]),
    "half a character": ("a.jsonl", '{"left_t": "\\ud83d", "right_t": "b", "label": 1}\n', ["line 1", "surrogate"]),
    "not Parquet": ("a.parquet", b"PAR1 no", ["a.parquet", "not a Parquet file"]),
    "unknown format": ("a.xlsx", b"PK", [".xlsx", ".parquet"]),
    "unknown split": ("a.csv", "split,left_t,right_t,label\ndev,a,b,1\n", ["line 2", "'dev'", "valid"]),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_bad_pairs_get_one_line(name, tmp_path):
    file, content, expected = BAD_PAIRS[name]
    path = tmp_path / file
    if isinstance(content, dict):
        pd.DataFrame(content).to_parquet(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    text = message(load_pairs, path)
    assert str(path) in text
    for part in expected:
        assert part in text, text
    if path.suffix != ".xlsx" and name != "unknown split":  # the same reader streams
        assert message(lambda: list(stream_pairs(path, require_label=True))) == text


def test_bad_folders(tmp_path):
    assert "no train, valid or test" in message(load_pairs, tmp_path)
    (tmp_path / "train.csv").write_text(HEAD + "a,b,1\n")
    (tmp_path / "test.csv").write_text(HEAD)
    assert "test.csv: no rows" in message(load_pairs, tmp_path)
    (tmp_path / "test.csv").write_text("left_name,right_name,label\na,b,1\n")
    assert "test.csv" in message(load_pairs, tmp_path) and "train.csv" in message(load_pairs, tmp_path)
    (tmp_path / "test.tsv").write_text("x\n")
    assert "keep one file" in message(load_pairs, tmp_path)
    (tmp_path / "test.tsv").unlink()
    assert "no variant 'big'" in message(load_pairs, f"{tmp_path}:big")


def test_bad_records_and_events(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,title\n1,a\n2,b\n1,c\n")
    assert "line 4" in (text := message(load_records, path)) and "line 2" in text and "'1'" in text
    path.write_text("id,title\n1,a\n1,a\n")
    assert len(load_records(path)) == 2, "the same record twice is no contradiction"
    path.write_text("id,title\n1,a\n2, \n")
    assert "line 3" in message(load_records, path)
    path.write_text(",title\n1,a\n")
    assert "without a name" in message(load_records, path)
    path.write_text("id\n1\n")
    assert "no attributes" in message(load_records, path)
    for bad, parts in {
        "user,item,kind\nu,i,buy\n": ["'time'"],
        "user,item,kind,time\nu,,buy,2024-01-01\n": ["line 2", "item"],
        "user,item,kind,time\nu,i,buy,2024-01-01\nu,i,buy,soon\n": ["line 3", "'soon'"],
        "user,item,kind,time,price\nu,i,buy,2024-01-01,9 EUR\n": ["line 2", "price", "'9 EUR'"],
        "user,item,kind,time,quantity\nu,i,buy,2024-01-01,inf\n": ["line 2", "quantity"],
    }.items():
        path.write_text(bad)
        text = message(load_events, path)
        assert all(part in text for part in parts), text


def test_events_are_typed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("user,item,kind,time,price\nu,灯,buy,2024-05-31T14:30:00+08:00,1e2\nu,灯,look,2024-06-01,\n")
    events = load_events(path)
    assert [str(time) for time in events["time"]] == ["2024-05-31 06:30:00", "2024-06-01 00:00:00"]
    assert list(events["price"]) == [100.0, None] and "quantity" not in events.column_names


def test_streaming_holds_one_chunk(tmp_path):
    path = tmp_path / "a.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["left_t", "right_t"])
        writer.writerows([f"lamp {i}", "b"] for i in range(1000))
        writer.writerow(["one field"])
    stream = stream_pairs(path, chunk_rows=300)
    assert [len(next(stream)) for _ in range(3)] == [300] * 3, "the bad last line has not been read yet"
    assert "line 1002" in message(lambda: list(stream))


def test_streaming_without_labels(tmp_path):
    (tmp_path / "a.csv").write_text("left_t,right_t\na,b\n")
    assert "label" not in next(stream_pairs(tmp_path / "a.csv"))
    assert "'label'" in message(lambda: list(stream_pairs(tmp_path / "a.csv", require_label=True)))
    (tmp_path / "a.txt").write_text("COL t VAL a\tCOL t VAL b\n")
    assert next(stream_pairs(tmp_path / "a.txt"))["right_t"].tolist() == ["b"]
    (tmp_path / "b.csv").write_text(HEAD + "a,b,1\na,b,\n")
    labels = next(stream_pairs(tmp_path / "b.csv"))["label"]
    assert labels[0] == 1 and labels[1] is pd.NA
    (tmp_path / "c.csv").write_text(HEAD + "a,b,7\n")
    assert "'7'" in message(lambda: list(stream_pairs(tmp_path / "c.csv")))


def test_names_that_are_no_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("PRODSIM_DATA", str(tmp_path))
    assert "did you mean abt-buy?" in message(load_pairs, "abt-bay")
    assert "wdc-computers:small, wdc-computers:medium" in message(load_pairs, "wdc-computers")
    assert "'huge'" in message(load_pairs, "wdc-computers:huge")
    assert "offers" in message(load_pairs, "pricerunner") and "events" in message(load_records, "online-retail")
    assert "no such file" in message(load_pairs, tmp_path / "gone.csv")
    assert not list(tmp_path.iterdir())


# --- facts about the real files

FACTS = {  # splits; seen, unseen share of test (%); test pairs that stand again, with the other label
    "abt-buy": ((5743, 1916, 1916), ["name", "description", "price"], 95.5, 1.0, 24, 10),
    "amazon-google": ((6874, 2293, 2293), ["title", "manufacturer", "price"], 91.3, 2.2, 159, 7),
}


@pytest.mark.data
@pytest.mark.parametrize("name", FACTS)
def test_known_facts(name):
    sizes, names, seen, unseen, again, contradicting = FACTS[name]
    pairs = load_pairs(name)
    assert tuple(map(len, pairs.values())) == sizes and attributes(pairs) == names
    status = seen_status(pairs)
    assert round(100 * (status == "seen").mean(), 1) == seen
    assert round(100 * (status == "unseen").mean(), 1) == unseen
    table = repeated_pairs(pairs)
    assert (len(table), table["contradicts"].sum()) == (again, contradicting)


@pytest.mark.data
def test_registered_variants_have_their_sizes():
    for name, sizes in {"wdc-computers:small": (2231, 536, 1098), "wdc-cameras:medium": (4081, 924, 1057)}.items():
        assert tuple(map(len, load_pairs(name).values())) == sizes


@pytest.mark.data
def test_quotes_inside_wdc_titles_survive():
    first = load_pairs("wdc-computers:small")["train"][0]
    assert first["left_title"].startswith('"388504-B21 HP Storageworks Internal", "Null" Price')


@pytest.mark.data
def test_chinese_pairs():
    pairs = load_pairs("ecomgpt-zh:item-align")
    assert list(pairs) == ["test"] and len(pairs["test"]) == 500 and sum(pairs["test"]["label"]) == 224
    first = pairs["test"][0]
    assert first["left_title"] == "兰芝隔离霜正品官方旗舰店保湿提亮肤色防晒遮瑕妆前乳打底女大牌" and first["label"] == 1
    assert first["left_attributes"].startswith("功效: 遮瑕, 提亮肤色, 保湿, 隐形毛孔, 隔离; ")
    assert not any("#:#" in text or "#;#" in text for text in pairs["test"]["right_attributes"])


@pytest.mark.data
def test_catalogues():
    offers = load_records("pricerunner")
    assert len(offers) == 35311 and len(set(offers["cluster_id"])) == 13233 and len(set(offers["category"])) == 10
    products = load_records("chorus")
    assert len(products) == 19406 and len(set(products["id"])) == 19406
    assert products[0]["title"] == "Xerox 006R90321 toner cartridge Original Black 6 pc(s)"
    assert "printing colours: Black" in products[0]["attributes"]


@pytest.mark.data
def test_real_pairs_are_the_same_data_through_tables_of_records(tmp_path):
    pairs = load_pairs("wdc-cameras:small")
    save_pairs(pairs, tmp_path, "magellan")
    assert data_hash(load_pairs(tmp_path)) == data_hash(pairs)


def test_online_retail_is_read_as_events(monkeypatch):
    table = pd.DataFrame(
        {
            "InvoiceNo": ["2", "1", "C3", "4"],
            "StockCode": ["b", "a", "a", "c"],
            "Quantity": [2.0, 6.0, -1.0, 5.0],
            "InvoiceDate": [1291193160.0, 1291192000.0, 1291200000.0, 1291200001.0],
            "UnitPrice": [0.5, 2.55, 2.55, 1.0],
            "CustomerID": [17850.0, 17850.0, 13047.0, float("nan")],
        }
    )
    monkeypatch.setitem(sys.modules, "rdata", types.SimpleNamespace(read_rda=lambda path: {"onlineretail": table}))
    monkeypatch.setattr(data, "fetch", lambda name: Path(name))
    events = data.load_events("online-retail")
    assert events["user"] == ["17850", "17850", "13047"] and events["item"] == ["a", "b", "a"]
    assert events["kind"] == ["purchase", "purchase", "return"] and events["quantity"] == [6.0, 2.0, 1.0]
    assert str(events[1]["time"]) == "2010-12-01 08:46:00"
    monkeypatch.setitem(sys.modules, "rdata", None)
    with pytest.raises(ProdsimError, match="retail"):
        data.load_events("online-retail")
