"""Reading: broken files, findings and their advice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prodsim.quality.reading import advice, finding, read_leniently


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
