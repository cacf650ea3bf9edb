"""Reading: broken files, findings and their advice."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from one_line import message

from prodsim.data import load_records
from prodsim.quality.audit import audit_data
from prodsim.quality.reading import advice, finding, open_for_audit, read_leniently


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.tsv"])
def test_each_format_is_read_on_after_a_bad_line(tmp_path, name):
    rows = {
        "a.jsonl": '{"left_title": "a", "right_title": "b", "label": 1}\n{"left_title": \n'
        '{"left_title": "c", "right_title": "d", "label": "0"}\n',
        "a.txt": "COL title VAL a\tCOL title VAL b\t1\nnonsense\nCOL title VAL c\tCOL title VAL d\t0\n",
        "a.tsv": "left_title\tright_title\tlabel\na\tb\t1\nx\nc\td\t0\n",
    }
    (tmp_path / name).write_text(rows[name])
    table, problems = read_leniently(tmp_path / name)
    assert table["left_title"].tolist() == ["a", "c"] and [p["where"] for p in problems] == [
        f"{name}, line {3 if name == 'a.tsv' else 2}"
    ]


WHOLE = "id,title\n1,红色 lamp\n2,blue desk\n"
AWRY = {  # what is wrong with the file as a whole: its bytes, what is said of it
    "UTF-16": (WHOLE.encode("utf-16"), "UTF-16"),
    "semicolons": (WHOLE.replace(",", ";").encode(), "semicolons between the fields"),
    "tabs": (WHOLE.replace(",", "\t").encode(), "tabs between the fields"),
    "old Mac line ends": (WHOLE.replace("\n", "\r").encode(), None),
    "line ends of two kinds": (WHOLE.replace("\n", "\r", 2).encode(), None),
}


@pytest.mark.parametrize("what", AWRY)
def test_a_file_that_is_awry_as_a_whole_is_read_whole(tmp_path, what):
    raw, said = AWRY[what]
    (tmp_path / "x.csv").write_bytes(raw)
    kind, tables, problems, _ = open_for_audit(tmp_path / "x.csv")
    assert kind == "records" and tables["all"]["title"].tolist() == ["红色 lamp", "blue desk"]
    assert [said in p["why"] for p in problems if said] == [True] * len(problems) and bool(problems) == bool(said)
    if said and what != "UTF-16":  # the loader does not take such a file for one column
        assert "line 1: " + said in message(load_records, tmp_path / "x.csv")


def test_json_that_no_encoding_holds_or_that_has_no_end(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"title": "a\\ud800b"}\n' + "[" * 10**5 + '\n{"title": "red lamp"}\n')
    table, problems = read_leniently(tmp_path / "x.jsonl")
    assert table["title"].tolist() == ["a\ufffdb", "red lamp"]
    assert [p["where"] for p in problems] == ["x.jsonl, line 1", "x.jsonl, line 2"]
    assert "line 1: half a surrogate" in message(load_records, tmp_path / "x.jsonl")
    (tmp_path / "y.jsonl").write_text("[" * 10**5)
    assert "line 1: not JSON" in message(load_records, tmp_path / "y.jsonl")


def test_where_there_is_no_row_or_no_attribute_there_is_one_line(tmp_path):
    pd.DataFrame({"id": [], "title": []}).to_parquet(tmp_path / "none.parquet")
    (tmp_path / "ids.csv").write_text("id\n1\n2\n")
    (tmp_path / "offers.xyz").write_text("id,title\n1,a\n")
    assert "empty" in message(open_for_audit, tmp_path / "none.parquet")
    assert "an attribute beside the id" in message(open_for_audit, tmp_path / "ids.csv")
    assert "unknown format '.xyz'" in message(open_for_audit, tmp_path / "offers.xyz")
    for table in (pd.DataFrame({"title": []}), pd.DataFrame({"left_a": ["x"], "right_a": ["y"], "label": ["?"]})):
        assert message(open_for_audit, table).startswith("DataFrame: ")


def test_columns_that_are_called_like_the_audits_own(tmp_path):
    names = ("key", "where", "uses", "weight", "label", "row", "split")
    rows = [{name: f"{name} {i}" for name in names} for i in range(12)]
    pd.DataFrame(rows).to_csv(tmp_path / "offers.csv", index=False)
    own = {"key_", "where_", "uses_", "weight", "label", "row", "split"}
    kind, tables, problems, _ = open_for_audit(tmp_path / "offers.csv")
    assert kind == "records" and set(tables["all"]) == {"id", *own} and not problems
    assert tables["all"]["label"][3] == "label 3" and set(load_records(tmp_path / "offers.csv")["weight"]) == {
        f"weight {i}" for i in range(12)
    }
    sides = [{f"{side}_{name}": value for side in ("left", "right") for name, value in row.items()} for row in rows]
    pd.DataFrame(sides).assign(label=[0, 1] * 6).to_csv(tmp_path / "pairs.csv", index=False)
    for name in ("offers.csv", "pairs.csv"):
        found = audit_data(tmp_path / name)
        assert set(found["columns"]) == own and found["records"] == 12


def test_a_variant_that_is_not_there_is_no_broken_file(tmp_path):
    (tmp_path / "test.csv").write_text("left_title,right_title,label\nred lamp,lamp,1\n")
    assert "no variant 'small'" in message(open_for_audit, f"{tmp_path}:small")
    (tmp_path / "test.csv").write_text("left_title,right_title,label\nred lamp,lamp,yes\n")
    assert "the label is 'yes'" in message(open_for_audit, tmp_path / "test.csv")


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_give_rows_or_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "x.csv"
    path.write_bytes(b"left_title,right_title,label\na,b,1\n" + data)
    table, _ = read_leniently(path)
    assert table["left_title"][0] == "a"


def test_every_finding_has_its_advice():
    for name, about in advice().items():
        assert about["effect"].endswith(".") and about["advice"].endswith("."), name
    with pytest.raises(KeyError):
        finding("note", "no such finding", 1, 1, [])
