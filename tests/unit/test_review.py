"""A queue goes out to people and comes back whole: nothing foreign, nothing edited, nothing twice, nothing lost."""

import csv
import json
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from little_shop import little_pairs
from sklearn.metrics import cohen_kappa_score

from prodsim.core import RESULTS, ProdsimError
from prodsim.data import load_pairs
from prodsim.quality import review
from prodsim.quality.review import (
    OUTCOMES,
    agreement,
    apply_reviews,
    conflicts,
    cross_fitted,
    decided_labels,
    doubt,
    export_csv,
    export_html,
    import_reviews,
    join_readings,
    label_changes,
    marked_difference,
    outcomes,
    pair_ids,
    pair_table,
    queue_id,
    read_doubts,
    read_marks,
    read_trail,
    review_numbers,
    review_queue,
    review_sheet,
)

NASTY = [
    "</script><script>alert(1)</script>",
    '"quoted" & \'single\' <b onclick="x()">bold</b>',
    '=HYPERLINK("http://x","y")',
    "-5 dB, a comma; a semicolon\tand a tab",
    "'=already quoted",
    "第一行\n第二行 电视 55英寸",
    "+1 @home",
    "<!-- ]]> \\u003c {{x}} ${y}",
]


def some_pairs():
    n = len(NASTY)
    return Dataset.from_dict(
        {
            "left_id": [f"l{i}" for i in range(n)],
            "right_id": [f"r{i}" for i in range(n)],
            "left_title": NASTY,
            "right_title": [f"{t} black" for t in NASTY],
            "left_price": ["9.99", None] * (n // 2),
            "right_price": [None] * n,
            "label": [0, 1] * (n // 2),
        }
    )


@pytest.fixture
def pairs():
    return some_pairs()


@pytest.fixture
def queue(pairs):
    return review_queue(pairs, np.linspace(1, 0, len(pairs)), n=6)


def fill(path, verdicts, **cells):
    "Write a reader's verdicts into an exported CSV, as a spreadsheet would: row number → verdict."
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for i, verdict in verdicts.items():
        rows[i] |= {"verdict": verdict, **cells}
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return rows


def marks_json(path, queue, verdicts, who="ann", reading=1, when="2026-01-02T03:04:05+00:00", words=""):
    marks = [
        {"pair_id": queue["pair_id"][i], "verdict": v, "deciding_words": words, "when": when}
        for i, v in verdicts.items()
    ]
    head = {"format": "prodsim-review-marks", "version": 1, "queue": queue_id(queue), "reading": reading, "who": who}
    path.write_text(json.dumps(head | {"marks": marks}), encoding="utf-8")
    return path


# Which rows are read


def test_the_most_doubtful_stand_first_and_each_pair_once(pairs):
    twice = Dataset.from_dict({c: [*pairs[c], pairs[c][0]] for c in pairs.column_names})
    swapped = Dataset.from_dict(
        {
            c: [*pairs[c], pairs[re.sub("left|right", lambda m: {"left": "right", "right": "left"}[m[0]], c)][0]]
            for c in pairs.column_names
        }
    )
    for data in (twice, swapped):
        doubts = np.array([0.5, 0.9, 0.1, 0.9, 0, 0, 0, 0, 0.4])
        queue = review_queue(data, doubts, n=4)
        assert queue["row"].tolist() == [1, 3, 0, 2]
        assert queue["label"].tolist() == [data["label"][r] for r in queue["row"]]
        assert len(review_queue(data, doubts, n=99)) == 8


def test_doubt_is_one_minus_the_probability_of_the_given_label():
    assert doubt([0.9, 0.2], [1, 1]).tolist() == pytest.approx([0.1, 0.8])
    assert doubt([0.9, 0.2], [0, 0]).tolist() == pytest.approx([0.9, 0.2])
    assert doubt([0.5, 0.0, 1.0, 0.75]).tolist() == pytest.approx([1, 0, 0, 0.5])


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".tsv", ".jsonl", ".parquet"])
def test_doubts_come_from_any_table(tmp_path, suffix):
    path, table = tmp_path / f"d{suffix}", pd.DataFrame({"id": ["a", "b"], "score": [0.25, 1.0]})
    write = {
        ".npy": lambda: np.save(path, table["score"]),
        ".csv": lambda: table.to_csv(path, index=False),
        ".tsv": lambda: table.to_csv(path, index=False, sep="\t"),
        ".jsonl": lambda: table.to_json(path, orient="records", lines=True),
        ".parquet": lambda: table.to_parquet(path),
    }
    write[suffix]()
    assert read_doubts(path, 2).tolist() == [0.25, 1.0]
    with pytest.raises(ProdsimError, match="2 numbers for 3 rows"):
        read_doubts(path, 3)


# What the page shows


class Page(HTMLParser):
    "Elements and attributes as a browser sees them, and the text of each table cell."

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.cells, self.inside = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "td":
            self.cells.append("")
            self.inside = True

    def handle_endtag(self, tag):
        if tag == "td":
            self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.cells[-1] += data


def test_a_title_does_no_harm_on_the_page(tmp_path, queue):
    export_html(queue, tmp_path / "q.html", who="</script><b>", title="<i>x</i>")
    text = (tmp_path / "q.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("script") == 2 and text.count("</script>") == 2
    assert not {"b", "i", "img", "link", "iframe"} & set(page.tags)
    assert not [k for k, _ in page.attributes if k.startswith("on") or k in ("src", "href")]
    titles = [t for i in range(6) for side in ("left", "right") for t in [queue[f"{side}_title"][i]]]
    assert [c for c in page.cells if c in titles] == titles
    assert "http" not in re.sub(r"http-equiv", "", re.sub(r"http://x", "", text)), "the page asks for something outside"
    assert "default-src 'none'" in dict(page.attributes)["content"] or any(
        "default-src 'none'" in v for k, v in page.attributes if k == "content"
    )


@given(st.text(max_size=30), st.text(max_size=30))
@settings(max_examples=60, deadline=None)
def test_any_text_reads_back_from_the_page_as_it_was(left, right):
    page = Page(f"<body>{pair_table({'left_a': left, 'right_a': right})}</body>")
    clean = [re.sub("\r\n?", "\n", t) for t in (left, right)]
    assert [re.sub("\r\n?", "\n", c) for c in page.cells] == clean
    assert set(page.tags) <= {"body", "table", "tr", "th", "td", "mark"}
    for text, pieces in zip((left, right), marked_difference(left, right), strict=True):
        assert "".join(p for p, _ in pieces) == text


@pytest.mark.parametrize("missing", [None, float("nan"), ""])
def test_a_missing_value_is_an_empty_cell(missing):
    assert Page(f"<body>{pair_table({'left_a': missing, 'right_a': 'x'})}</body>").cells == ["", "x"]


def test_the_differing_words_are_marked_in_both_languages():
    def marked(a, b):
        return [[t.strip() for t, d in side if d] for side in marked_difference(a, b)]

    assert marked("Acme AB-1234 55 inch black", "acme ab1234 65 inch BLACK") == [["55"], ["65"]]
    assert marked("液晶电视55英寸黑色", "液晶电视65英寸白色") == [["55", "黑"], ["65", "白"]]
    assert marked("a, b", "b a!") == [[], []]


def test_a_blind_page_tells_neither_label_nor_doubt_nor_order(tmp_path, queue):
    for kind, export in (("html", export_html), ("csv", export_csv)):
        open_, blind, again, other = (tmp_path / f"{n}.{kind}" for n in "abcd")
        export(queue, open_)
        export(queue, blind, blind=True, seed=1, reading=2)
        export(queue, again, blind=True, seed=1, reading=2)
        export(queue, other, blind=True, seed=2, reading=2)
        order = [
            re.findall(r"(?<!queue)pair-[0-9a-f]{16}", p.read_text(encoding="utf-8"))
            for p in (open_, blind, again, other)
        ]
        assert order[0] == queue["pair_id"].tolist()
        assert order[1] == order[2] != order[3] and sorted(order[1]) == sorted(order[0]) and order[1] != order[0]
        text = blind.read_text(encoding="utf-8")
        assert "labelled" not in text and "doubt" not in text and "label," not in text
        relabelled = queue.assign(label=1 - queue["label"], doubt=queue["doubt"][::-1].to_numpy(), row=0)
        export(relabelled, other, blind=True, seed=1, reading=2)
        assert other.read_bytes() == blind.read_bytes(), "what an earlier reading knew shows through"


BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


@pytest.mark.skipif(not BROWSER, reason="no chromium to open the page with")
def test_the_page_works_in_a_browser(tmp_path, pairs, queue):
    "Keys judge, words are kept, a second opening finds the progress, and both downloads can be imported."
    export_html(queue, tmp_path / "q.html")
    text = (tmp_path / "q.html").read_text(encoding="utf-8")
    probe = """<script>
      const pressed = key => new KeyboardEvent("keydown", {key, bubbles: true});
      const press = (key, at) => (at || document.body).dispatchEvent(pressed(key));
      press("m"); press("n"); press("k"); press("w");
      const box = document.querySelector(".pair.now .words");
      const focused = document.activeElement === box;
      box.value = '=x "55" <b>'; box.dispatchEvent(new Event("input", {bubbles: true}));
      press("m", box); press("Enter", box); press("j"); press("c");
      who.value = "安"; who.dispatchEvent(new Event("input", {bubbles: true}));
      const out = document.createElement("pre"); out.id = "out";
      const stored = JSON.parse(localStorage.getItem(key)); const shown = document.getElementById("count").textContent;
      out.textContent = JSON.stringify({json: asJson(), csv: asCsv(), stored: stored, shown: shown, focused: focused});
      document.body.append(out);
    </script></body>"""
    for page, name in ((text, "inert"), (re.sub(r"<meta http-equiv[^>]*>", "", text), "open")):
        (tmp_path / f"{name}.html").write_text(page.replace("</body>", probe), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --dump-dom"
    command = [BROWSER, *flags.split(), "--virtual-time-budget=2000", f"--user-data-dir={tmp_path / 'profile'}"]

    def opened(name):
        done = subprocess.run(
            [*command, f"file://{tmp_path}/{name}.html"], capture_output=True, timeout=120, check=True
        )
        return done.stdout.decode("utf-8")

    assert 'id="out"' not in opened("inert"), "the page's policy let a foreign script run"

    class Out(HTMLParser):
        text, inside = "", False

        def handle_starttag(self, tag, attrs):
            self.inside = ("id", "out") in attrs

        def handle_data(self, data):
            self.text += data if self.inside else ""

    parser = Out()
    parser.feed(opened("open"))
    said = json.loads(parser.text)
    assert said["focused"] and said["shown"] == "3 of 6 read"
    ids = queue["pair_id"].tolist()
    assert {k: v["verdict"] for k, v in said["stored"]["marks"].items()} == dict(
        zip(ids, ["match", "no match", "cannot tell"], strict=False)
    )
    for kind in ("json", "csv"):
        path = tmp_path / f"marks.{kind}"
        path.write_text(said[kind], encoding="utf-8", newline="")
        trail = tmp_path / f"{kind}.jsonl"
        assert import_reviews(path, trail, pairs)["new"] == 3
        entries = read_trail(trail)
        assert [e["verdict"] for e in entries] == ["match", "no match", "cannot tell"]
        assert entries[1]["words"] == '=x "55" <b>' and entries[0]["who"] == "安" and entries[0]["when"]


# Out and in again


def test_a_spreadsheet_goes_out_and_comes_back(tmp_path, pairs, queue):
    path, trail = tmp_path / "q.csv", tmp_path / "trail.jsonl"
    export_csv(queue, path)
    with open(path, encoding="utf-8-sig", newline="") as file:
        cells = [c for row in csv.reader(file) for c in row]
    assert not [c for c in cells if c[:1] in "=+-@\t" and c], "a spreadsheet would run this cell"
    fill(path, {0: "Match", 2: "0", 3: "cannot tell"}, who="ann", deciding_words="55 英寸")
    summary = import_reviews(path, trail, pairs)
    assert summary == {"marks": 3, "new": 3, "known": 0, "changed": 1, "cannot_tell": 1, "conflicts": 0}
    entries = read_trail(trail)
    assert [(e["pair_id"], e["old"], e["new"]) for e in entries] == [
        (queue["pair_id"][0], 0, 1),
        (queue["pair_id"][2], 0, 0),
        (queue["pair_id"][3], 1, None),
    ]
    assert all(e["who"] == "ann" and e["words"] == "55 英寸" and e["when"] for e in entries)


def test_a_second_import_appends_nothing(tmp_path, pairs, queue):
    trail, path = tmp_path / "trail.jsonl", tmp_path / "q.csv"
    export_csv(queue, path, who="bo")
    fill(path, {0: "match", 1: "no match"})
    page = marks_json(tmp_path / "m.json", queue, {2: "match"})
    assert import_reviews([path, page], trail, pairs)["new"] == 3
    before = trail.read_bytes()
    again = import_reviews([page, path], trail, pairs)
    assert again["new"] == 0 and again["known"] == 3 and trail.read_bytes() == before
    corrected = apply_reviews(pairs, trail)
    assert import_reviews([page, path], trail, corrected)["new"] == 0


def test_a_reader_may_think_again_and_the_trail_keeps_both(tmp_path, pairs, queue):
    trail = tmp_path / "trail.jsonl"
    for when, verdict in (("2026-01-01", "match"), ("2026-01-02", "no match"), ("2026-01-03", "match")):
        import_reviews(marks_json(tmp_path / "m.json", queue, {0: verdict}, when=when), trail, pairs)
    assert [e["verdict"] for e in read_trail(trail)] == ["match", "no match", "match"]
    assert decided_labels(trail) == {queue["pair_id"][0]: 1} and not len(conflicts(trail))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["match", "no match", "cannot tell"])), min_size=1),
    st.sampled_from(["keep", "majority", "latest"]),
)
def test_applying_changes_labels_and_nothing_else(said, rule):
    pairs = some_pairs()
    keys = pair_ids(pairs)
    trail = [
        {"pair_id": keys[i], "old": pairs["label"][i], "new": review.VERDICTS[v], "verdict": v, "words": "",
         "who": f"r{k}", "when": f"2026-01-01T00:00:{k:02d}+00:00", "reading": 1, "queue": "", "source": ""}
        for k, (i, v) in enumerate(said)
    ]  # fmt: skip
    both = DatasetDict({"train": pairs, "test": pairs.select([3, 1])})
    out = apply_reviews(both, trail, rule)
    assert list(out) == list(both)
    for name, part in both.items():
        assert out[name].features == part.features
        assert out[name].remove_columns("label").to_dict() == part.remove_columns("label").to_dict()
    for i in range(len(pairs)):
        votes = [review.VERDICTS[v] for j, v in said if j == i and v != "cannot tell"]
        wanted = pairs["label"][i]
        if votes and (len(set(votes)) == 1 or rule == "latest"):
            wanted = votes[-1]
        elif votes and rule == "majority" and votes.count(1) != votes.count(0):
            wanted = int(votes.count(1) > votes.count(0))
        assert out["train"]["label"][i] == wanted
    assert out["test"]["label"] == [out["train"]["label"][3], out["train"]["label"][1]]
    assert len(label_changes(both, out)) == sum(
        a != b for n in both for a, b in zip(both[n]["label"], out[n]["label"], strict=True)
    )


def test_readers_who_disagree_are_reported_and_decide_nothing(tmp_path, pairs, queue):
    trail = tmp_path / "trail.jsonl"
    import_reviews(marks_json(tmp_path / "a.json", queue, {0: "match", 1: "match"}, who="ann"), trail, pairs)
    said = import_reviews(
        marks_json(tmp_path / "b.json", queue, {0: "no match", 1: "cannot tell"}, who="bo"), trail, pairs
    )
    assert said["conflicts"] == 1
    table = conflicts(trail)
    assert table.to_dict("records") == [
        {"pair_id": queue["pair_id"][0], "match": "ann (1)", "no_match": "bo (1)", "words": ""}
    ]
    assert decided_labels(trail) == {queue["pair_id"][1]: 1}
    with pytest.raises(ProdsimError, match="readers disagree"):
        apply_reviews(pairs, trail, "error")


def test_two_readings_are_joined_and_agree_as_scikit_learn_says(tmp_path, pairs, queue):
    trail = tmp_path / "trail.jsonl"
    first = ["match", "no match", "match", "cannot tell", "no match", "no match"]
    second = ["match", "no match", "no match", "cannot tell", "no match"]
    import_reviews(marks_json(tmp_path / "a.json", queue, dict(enumerate(first))), trail, pairs)
    path = tmp_path / "b.csv"
    export_csv(queue, path, blind=True, seed=3, reading=2, who="ann")
    rows = fill(path, {})
    at = {row["pair_id"]: i for i, row in enumerate(rows)}
    fill(path, {at[k]: v for k, v in zip(queue["pair_id"], second, strict=False)})
    import_reviews(path, trail, pairs)
    joined = join_readings(trail).set_index("pair_id").loc[queue["pair_id"][:5]]
    assert joined["verdict_1"].tolist() == first[:5] and joined["verdict_2"].tolist() == second
    assert joined["agree"].tolist() == [True, True, False, True, True]
    measured = agreement(join_readings(trail))
    assert measured["pairs"] == 5 and measured["agree"] == 0.8
    assert measured["kappa"] == pytest.approx(cohen_kappa_score(first[:5], second))
    assert measured["kappa_low"] <= measured["kappa"] <= measured["kappa_high"]
    assert measured["table"]["match"] == {"match": 1, "no match": 1, "cannot tell": 0}


def test_the_interval_of_kappa_covers_the_truth():
    "Readings that agree by a known kappa, drawn many times: the 95 % interval holds it about that often."
    rng, inside = np.random.default_rng(0), 0
    for _ in range(150):
        a = rng.random(120) < 0.4
        b = np.where(rng.random(120) < 0.7, a, rng.random(120) < 0.4)  # kappa 0.7 by construction
        names = np.array(["no match", "match"])
        said = agreement(pd.DataFrame({"verdict_1": names[a.astype(int)], "verdict_2": names[b.astype(int)]}), 300)
        inside += said["kappa_low"] <= 0.7 <= said["kappa_high"]
    assert 0.88 < inside / 150 <= 1


@pytest.mark.parametrize("said", [[], ["match"]])
def test_agreement_that_cannot_be_told_is_none(said):
    assert agreement(pd.DataFrame({"verdict_1": said, "verdict_2": said}))["kappa"] is None


# Doubts without a model at hand


def turned_over(part, sides=True):
    "The same pairs with the other label and, if `sides`, the records in the other order."
    other = {"left": "right", "right": "left"}
    names = {c: re.sub("^(left|right)", lambda m: other[m[0]], c) if sides else c for c in part.column_names}
    columns = {names[c]: list(part[c]) for c in part.column_names} | {"label": [1 - y for y in part["label"]]}
    return Dataset.from_dict({c: columns[c] for c in part.column_names})


@pytest.mark.parametrize("sides", [False, True])
def test_cross_fitted_probabilities_learn_nothing_from_copies_of_the_row(sides):
    data = little_pairs(seed=3)
    p = cross_fitted(data, "test")
    assert p.shape == (len(data["test"]),) and ((p > 0) & (p < 1)).all()
    lying = DatasetDict(
        {"extra": turned_over(data["test"], sides), **data}
    )  # every pair again, each with a wrong label
    assert np.allclose(cross_fitted(lying, "test"), p)
    doubled = concatenate_datasets([data["test"], data["test"]])
    assert np.allclose(cross_fitted(DatasetDict({**data, "test": doubled}), "test"), np.tile(p, 2))


def test_cross_fitted_probabilities_doubt_the_wrong_labels():
    data = little_pairs(seed=4, train=200)
    truth = np.array(data["test"]["label"])
    wrong = np.random.default_rng(0).choice(len(truth), 4, replace=False)
    labels = truth.copy()
    labels[wrong] = 1 - labels[wrong]
    data["test"] = data["test"].remove_columns("label").add_column("label", labels.tolist())
    doubts = doubt(cross_fitted(data, "test"), labels)
    assert doubts[wrong].mean() > 2 * np.delete(doubts, wrong).mean()


def test_cross_fitted_uses_all_splits_and_names_what_is_missing():
    data = little_pairs(seed=3)
    alone = DatasetDict({"test": data["test"]})
    assert not np.allclose(cross_fitted(alone, "test"), cross_fitted(data, "test"))
    with pytest.raises(ProdsimError, match="split 'gold': the data have train, valid, test"):
        cross_fitted(data, "gold")
    with pytest.raises(ProdsimError, match="too few for 5 folds"):
        cross_fitted(DatasetDict({"test": data["test"].select(range(6))}), "test")


# A sheet that stays, and the review that stands in the package


def read_twice(tmp_path, pairs, queue, first, second):
    trail = tmp_path / "twice.jsonl"
    for reading, said in ((1, first), (2, second)):
        who = f"reader {reading}"
        file = marks_json(
            tmp_path / f"r{reading}.json", queue, dict(enumerate(said)), who, reading, words=f"w{reading}"
        )
        import_reviews(file, trail, pairs)
    return trail


def test_a_sheet_holds_queue_and_readings_and_gives_the_numbers(tmp_path, pairs, queue):
    assert queue["label"].tolist() == [0, 1, 0, 1, 0, 1]
    first = ["no match", "match", "match", "cannot tell", "cannot tell", "no match"]
    second = ["no match", "match", "match", "cannot tell", "match", "match"]
    trail = read_twice(tmp_path, pairs, queue, first, second)
    sheet = review_sheet(queue, trail, pairs)
    assert sheet["rank"].tolist() == [1, 2, 3, 4, 5, 6] and sheet["left_id"].tolist() == [f"l{r}" for r in queue["row"]]
    for name in ("pair_id", "row", "label", "doubt"):
        assert sheet[name].tolist() == queue[name].tolist()
    assert sheet["verdict_1"].tolist() == first and sheet["verdict_2"].tolist() == second
    assert set(sheet["words_2"]) == {"w2"} and set(sheet["who_1"]) == {"reader 1"}
    confirmed, contradicted, cannot, disputed = OUTCOMES
    assert outcomes(sheet).tolist() == [confirmed, confirmed, contradicted, cannot, disputed, disputed]
    numbers = review_numbers(sheet)
    assert json.loads(json.dumps(numbers)) == numbers
    assert (numbers["flags"], numbers["right"], numbers["decided"]) == (6, 1, 3)
    assert numbers["right_share"] == 1 / 6 and numbers["right_of_decided_share"] == 1 / 3
    assert numbers["outcomes"] == {confirmed: 2, contradicted: 1, cannot: 1, disputed: 2}
    assert numbers["by_label"]["no match"] == {confirmed: 1, contradicted: 1, cannot: 0, disputed: 1}
    path = tmp_path / "sheet.csv"
    sheet.to_csv(path, index=False)
    assert review_numbers(pd.read_csv(path, keep_default_na=False)) == numbers


@pytest.mark.parametrize("right, n", [(0, 5), (1, 50), (20, 40), (7, 7)])
def test_the_interval_is_wilsons(right, n):
    said = ["no match"] * right + ["match"] * (n - right)
    numbers = review_numbers(pd.DataFrame({"label": 1, "verdict_1": said, "verdict_2": said}))
    z, p = 1.959963984540054, right / n
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    ends = [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
    assert np.allclose([numbers["right_low"], numbers["right_high"]], ends)


def test_nothing_decided_has_no_share():
    said = ["cannot tell"] * 3
    numbers = review_numbers(pd.DataFrame({"label": 1, "verdict_1": said, "verdict_2": said}))
    assert numbers["right_of_decided_share"] is None and numbers["right_share"] == 0
    empty = review_numbers(pd.DataFrame({"label": [], "verdict_1": [], "verdict_2": []}))
    assert empty["flags"] == 0 and empty["right_share"] is None


def test_a_sheet_is_refused_where_it_would_not_be_whole(tmp_path, pairs, queue):
    once = tmp_path / "once.jsonl"
    import_reviews(marks_json(tmp_path / "a.json", queue, dict.fromkeys(range(6), "match")), once, pairs)
    with pytest.raises(ProdsimError, match="6 of 6 pairs lack a first or a second reading: pair-"):
        review_sheet(queue, once)
    trail = read_twice(tmp_path, pairs, queue, ["match"] * 6, ["match"] * 6)
    with pytest.raises(ProdsimError, match="label 1, but the trail says 0"):
        review_sheet(queue.assign(label=1 - queue["label"]), trail)
    with pytest.raises(ProdsimError, match="was not made from these pairs"):
        review_sheet(queue, trail, pairs.select(range(7, -1, -1)))
    sheet = review_sheet(queue, trail)
    with pytest.raises(ProdsimError, match="column verdict_2 must be there and hold match, no match, cannot tell"):
        outcomes(sheet.assign(verdict_2="maybe"))
    with pytest.raises(ProdsimError, match="column label must be there"):
        outcomes(sheet.drop(columns="label"))


@pytest.fixture
def reviewed():
    "The committed review: sheet and trail."
    folder = RESULTS / "reviews"
    return pd.read_csv(folder / "abt-buy.test.csv", keep_default_na=False), folder / "abt-buy.test.jsonl"


def test_the_stored_reviews_numbers_follow_from_its_trail(reviewed):
    sheet, trail = reviewed
    said = {(e["pair_id"], e["reading"]): e for e in map(json.loads, trail.read_text().splitlines())}
    assert len(said) == 2 * len(sheet) == 100 and sheet["pair_id"].is_unique and sheet["doubt"].is_monotonic_decreasing
    for row in sheet.to_dict("records"):
        for reading in (1, 2):
            entry = said[row["pair_id"], reading]
            assert entry["old"] == row["label"]
            for name in ("who", "verdict", "words"):
                assert entry[name] == row[f"{name}_{reading}"]
    pairs_told = [(said[k, 1]["verdict"], said[k, 2]["verdict"]) for k in sheet["pair_id"]]
    alike = [a for a, b in pairs_told if a == b]
    new = {"match": 1, "no match": 0}
    right = sum(a == b and a in new and new[a] != y for (a, b), y in zip(pairs_told, sheet["label"], strict=True))
    numbers = review_numbers(sheet)
    assert numbers["flags"] == 50 and numbers["right"] == right == 1
    assert numbers["decided"] == sum(a in new for a in alike) == 43
    assert numbers["agreement"]["agree"] == len(alike) / 50 == 49 / 50
    assert numbers["agreement"]["kappa"] == pytest.approx(cohen_kappa_score(*zip(*pairs_told, strict=True)))
    assert numbers["by_label"]["match"]["label confirmed"] == 31
    assert sheet["rank"][outcomes(sheet) == "label contradicted"].tolist() == [7]
    assert review_sheet(sheet, trail)["verdict_2"].tolist() == sheet["verdict_2"].tolist()


def test_the_stored_review_speaks_of_the_stored_pairs(reviewed):
    sheet, _ = reviewed
    (path,) = (RESULTS / "pairs").glob("abt-buy.test.*.csv.gz")
    stored = pd.read_csv(path, dtype={"left_id": str, "right_id": str}).loc[sheet["row"]]
    for name in ("left_id", "right_id", "label"):
        assert stored[name].astype(str).tolist() == sheet[name].astype(str).tolist()


@pytest.mark.data
def test_the_stored_review_speaks_of_the_published_texts(reviewed):
    sheet, trail = reviewed
    test = load_pairs("abt-buy")["test"]
    pd.testing.assert_frame_equal(review_sheet(sheet, trail, test), sheet, check_dtype=False)


def test_imports_at_once_lose_nothing(tmp_path, pairs, queue):
    trail = tmp_path / "trail.jsonl"
    files = [marks_json(tmp_path / f"{k}.json", queue, {k % 6: "match"}, who=f"reader {k}") for k in range(8)]
    threads = [threading.Thread(target=import_reviews, args=(f, trail, pairs)) for f in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(e["who"] for e in read_trail(trail)) == [f"reader {k}" for k in range(8)]


def test_an_import_that_dies_leaves_the_trail_whole(tmp_path, pairs, queue, monkeypatch):
    trail = tmp_path / "trail.jsonl"
    import_reviews(marks_json(tmp_path / "a.json", queue, {0: "match"}), trail, pairs)
    before = trail.read_bytes()

    def die(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("prodsim.core.os.replace", die)
        with pytest.raises(OSError, match="no space left"):
            import_reviews(marks_json(tmp_path / "b.json", queue, {1: "match"}), trail, pairs)
    assert trail.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".trail.jsonl.") and p.suffix == ".jsonl"] == []


# Files that are not what they should be


def edited(path, old, new):
    text = path.read_text(encoding="utf-8-sig")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def bad_files(tmp_path, queue):
    "name → (a file, what the complaint says)."

    def exported(name):
        path = tmp_path / f"{name}.csv"
        export_csv(queue, path, who="ann")
        fill(path, {1: "match"})
        return path

    def other(name, text, kind="csv"):
        path = tmp_path / f"{name}.{kind}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    files = {}
    path = exported("text")
    edited(path, "&", "and")
    files[path] = "the records of pair-[0-9a-f]{16} were edited after the export"
    path = exported("label")
    rows = fill(path, {})
    fill(path, {1: "match"}, label=str(1 - int(rows[1]["label"])))
    files[path] = "label '0', but the data say 1"
    path = exported("verdict")
    fill(path, {1: "maybe"})
    files[path] = "line 3: verdict 'maybe' is none of match, no match, cannot tell"
    path = exported("nobody")
    fill(path, {1: "match"}, who="")
    files[path] = "nobody is named as the reader"
    path = exported("id")
    edited(path, queue["pair_id"][1], "1.2E+15")
    files[path] = "'1.2E.15' is no pair_id"
    path = exported("foreign")
    edited(path, queue["pair_id"][1], "pair-0123456789abcdef")
    files[path] = "is not in this data"
    path = exported("when")
    fill(path, {1: "match"}, when="yesterday")
    files[path] = "'yesterday' is no time"
    path = exported("reading")
    fill(path, {1: "match"}, reading="first")
    files[path] = "reading 'first' is no number"
    path = exported("column")
    edited(path, "left_title", "titel")
    files[path] = "the column left_title was removed"
    files[other("shop", "id,title\n1,lamp\n")] = "no column pair_id"
    files[other("empty", "")] = "no column pair_id"
    files[other("gbk", "pair_id,verdict\n电视".encode("gbk"))] = "not UTF-8 at byte"
    files[other("cells", "pair_id,verdict\na,b,c\n")] = "line 2: 3 cells for 2 columns"
    files[other("quote", 'pair_id,verdict\n"a"b,c\n')] = "line 2: not CSV"
    files[other("half", '{"format": "prodsim-review-marks", ', "json")] = "broken JSON"
    files[other("alien", '{"marks": []}', "json")] = "no marks of a review page"
    files[other("later", '{"format": "prodsim-review-marks", "version": 2, "marks": []}', "json")] = "version 2"
    files[other("list", '{"format": "prodsim-review-marks", "version": 1, "marks": [1]}', "json")] = (
        "mark 1: not an object"
    )
    files[marks_json(tmp_path / "unnamed.json", queue, {0: "match"}, who="")] = "mark 1: nobody is named"
    twice = marks_json(tmp_path / "twice.json", queue, {0: "match"})
    marks = json.loads(twice.read_text())
    marks["marks"].append(marks["marks"][0] | {"verdict": "no match"})
    twice.write_text(json.dumps(marks))
    files[twice] = "mark 2: pair-[0-9a-f]{16} has another verdict in .*mark 1"
    files[tmp_path / "nowhere.csv"] = "nowhere.csv: cannot be read"
    return files


def test_each_bad_file_gets_its_one_line_and_changes_nothing(tmp_path, pairs, queue):
    trail = tmp_path / "trail.jsonl"
    good = marks_json(tmp_path / "good.json", queue, {0: "match"})
    import_reviews(good, trail, pairs)
    before = trail.read_bytes()
    more = marks_json(tmp_path / "more.json", queue, {3: "match"})
    for path, says in bad_files(tmp_path, queue).items():
        with pytest.raises(ProdsimError, match=says) as error:
            import_reviews([more, path], trail, pairs)
        assert "\n" not in str(error.value) and path.name in str(error.value)
        assert trail.read_bytes() == before, f"{path.name}: half of an import was written"


def test_verdicts_can_come_by_pair_id_alone(tmp_path, pairs, queue):
    path = tmp_path / "short.csv"
    path.write_text(f"pair_id;verdict;who\n{queue['pair_id'][0]};match;ann\n{queue['pair_id'][1]};;ann\n")
    assert import_reviews(path, tmp_path / "trail.jsonl", pairs)["new"] == 1
    assert [m["who"] for m in read_marks(path)] == ["ann"]


ENTRY = dict.fromkeys(("pair_id", "verdict", "words", "who", "when", "queue", "source"), "match")
ENTRY |= {"old": 0, "new": 1, "reading": 1}
WRONG = {"when": 5, "verdict": ["match"], "who": None, "reading": "1", "pair_id": 3, "words": None, "old": "0"}


@pytest.mark.parametrize(
    "line, says",
    [
        ('{"pair_id": "x"', "line 2: broken JSON"),
        ('{"pair_id": "x"}', "line 2: no entry"),
        ("[1]", "line 2: no entry"),
        ("[" * 10**5, "line 2: broken JSON"),
        *((json.dumps(ENTRY | {key: value}), "line 2: no entry") for key, value in WRONG.items()),
    ],
)
def test_a_damaged_trail_is_refused_and_kept(tmp_path, pairs, queue, line, says):
    trail = tmp_path / "trail.jsonl"
    import_reviews(marks_json(tmp_path / "a.json", queue, {0: "match"}), trail, pairs)
    trail.write_text(trail.read_text() + line + "\n")
    before = trail.read_bytes()
    for call in (
        lambda: import_reviews(marks_json(tmp_path / "b.json", queue, {1: "match"}), trail, pairs),
        lambda: apply_reviews(pairs, trail),
    ):
        with pytest.raises(ProdsimError, match=says):
            call()
    assert trail.read_bytes() == before


def test_an_edited_trail_and_one_of_other_data_are_refused(tmp_path, pairs, queue):
    trail = tmp_path / "trail.jsonl"
    import_reviews(marks_json(tmp_path / "a.json", queue, {0: "match"}), trail, pairs)
    other = Dataset.from_dict({"left_t": ["a"], "right_t": ["b"], "label": [1]})
    with pytest.raises(ProdsimError, match="speaks of none of these pairs"):
        apply_reviews(other, trail)
    trail.write_text(trail.read_text().replace('"new": 1', '"new": 0'))
    with pytest.raises(ProdsimError, match="label 0 for verdict 'match': edited"):
        apply_reviews(pairs, trail)
    with pytest.raises(ProdsimError, match="no such audit trail"):
        apply_reviews(pairs, tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda p: review_queue(p, [0.1]), "1 doubts for 8 pairs"),
        (lambda p: review_queue(p, [np.nan] * 8), "doubts: nan in row 0"),
        (lambda p: review_queue(p, ["x"] * 8), "doubts must be numbers"),
        (lambda p: review_queue(p, np.ones((8, 2))), "one-dimensional"),
        (lambda p: review_queue(p, np.ones(8), n=0), "at least 1"),
        (lambda p: review_queue(p.remove_columns("label"), np.ones(8)), "no column label"),
        (lambda p: doubt([0.5, 1.5]), "1.5 in row 1"),
        (lambda p: doubt([0.5, 0.5], [1]), "1 labels for 2"),
        (lambda p: decided_labels([], "coin"), "on_conflict 'coin'"),
        (lambda p: read_doubts("x.doc", 2), "doubts are read from"),
        (lambda p: read_doubts("/nowhere/x.npy", 2), "cannot be read"),
    ],
)
def test_mistakes_get_one_line(pairs, call, says):
    with pytest.raises(ProdsimError, match=says) as error:
        call(pairs)
    assert "\n" not in str(error.value)
