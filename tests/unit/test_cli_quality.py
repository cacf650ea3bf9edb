"""Repair, split, review and augment from the command line."""

import csv
import json

import pytest
from little_shop import little_pairs

from prodsim.cli import main
from prodsim.data import load_pairs, save_pairs, seen_status


@pytest.fixture
def shop(tmp_path):
    save_pairs(little_pairs(), tmp_path / "pairs")
    return tmp_path


def called(capsys, *args):
    code = main([str(a) for a in args])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, folder, *args):
    "One line on stderr, exit code 2, nothing on stdout, nothing written."
    before = sorted(folder.rglob("*"))
    code, out, err = called(capsys, *args)
    assert code == 2 and not out and err.count("\n") == 1, (code, out, err)
    assert sorted(folder.rglob("*")) == before
    return err


def test_clean_keeps_rows_and_raw_text(shop, capsys):
    (shop / "offers.csv").write_text("id,title\n1,ＡＣＭＥ　lamp 1TB\n2,chair &amp; table\n", encoding="utf-8")
    code, out, _ = called(capsys, "clean", shop / "offers.csv", "--out", shop / "clean.csv", "--json")
    assert code == 0 and json.loads(out)["rows"] == 2
    with open(shop / "clean.csv", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert rows[1]["title"] == "chair & table" and rows[1]["raw_title"] == "chair &amp; table"
    assert rows[0]["raw_title"].startswith("ＡＣＭＥ") and rows[0]["title"].startswith("ACME")
    assert "no such file" in refused(capsys, shop, "clean", shop / "none.csv", "--out", shop / "x.csv")
    assert ".csv" in refused(capsys, shop, "clean", shop / "offers.csv", "--out", shop / "x.doc")
    (shop / "folder.csv").mkdir()
    clean = ("clean", shop / "offers.csv", "--out")
    assert "folder.csv: name a file" in refused(capsys, shop, *clean, shop / "folder.csv")
    assert "stays as it is" in refused(capsys, shop, *clean, shop / "pairs" / ".." / "offers.csv")
    assert "names with commas" in refused(capsys, shop, *clean, shop / "x.csv", "--columns", "title,")
    one = ("--rules", "html, width", "--rules", "unit", "--json")
    assert {r["rule"] for r in json.loads(called(capsys, *clean, shop / "y.csv", *one)[1])["rules"]} == {
        "html",
        "width",
    }


def test_a_table_shows_text_as_it_is(shop, capsys):
    "Neither marks nor pictures are made of what stands in the data."
    (shop / "marked.csv").write_text("id,title\n1,[/b]  [red] :date: lamp\n", encoding="utf-8")
    code, out, err = called(capsys, "clean", shop / "marked.csv", "--out", shop / "clean.csv")
    assert code == 0 and "[/b] [red] :date: lamp" in " ".join(out.split()), (out, err)


def test_split_leaves_no_record_on_two_sides(shop, capsys):
    code, out, _ = called(capsys, "split", shop / "pairs", "--out", shop / "apart", "--by", "record", "--json")
    assert code == 0
    report = json.loads(out)
    apart = load_pairs(shop / "apart")
    assert set(seen_status(apart)) == {"unseen"}
    assert sum(map(len, apart.values())) == sum(part["rows"] for part in report["splits"].values())
    assert "not empty" in refused(capsys, shop, "split", shop / "pairs", "--out", shop / "apart")
    assert "3:1:1" in refused(capsys, shop, "split", shop / "pairs", "--out", shop / "x", "--shares", "most")


def test_offers_become_pairs(shop, capsys):
    rows = "".join(f"{i},acme lamp {i // 2 * 100} {i % 2},p{i // 2}\n" for i in range(20))
    (shop / "listed.csv").write_text("id,title,gtin\n" + rows, encoding="utf-8")
    code, out, _ = called(capsys, "pair", shop / "listed.csv", "--product", "gtin", "--out", shop / "made", "--json")
    report, made = json.loads(out), load_pairs(shop / "made")
    assert code == 0 and {n: len(part) for n, part in made.items()} == {
        n: s["rows"] for n, s in report["splits"].items()
    }
    assert sum(s["positives"] for s in report["splits"].values()) == 10 and set(seen_status(made)) == {"unseen"}
    assert json.loads((shop / "made/pairs.json").read_text(encoding="utf-8")) == report
    assert "not empty" in refused(
        capsys, shop, "pair", shop / "listed.csv", "--product", "gtin", "--out", shop / "made"
    )
    assert "no column 'ean'" in refused(
        capsys, shop, "pair", shop / "listed.csv", "--product", "ean", "--out", shop / "x"
    )
    few = ("--shares", "1:0")
    assert "three numbers" in refused(
        capsys, shop, "pair", shop / "listed.csv", "--product", "gtin", "--out", shop / "x", *few
    )


def test_repeats_are_dropped(shop, capsys):
    before = load_pairs(shop / "pairs")
    code, out, _ = called(capsys, "dedupe-pairs", shop / "pairs", "--out", shop / "once", "--json")
    assert code == 0
    report, after = json.loads(out), load_pairs(shop / "once")
    assert report["repeated"] == sum(map(len, before.values())) - sum(map(len, after.values()))
    both = "left_title,right_title,label\nred lamp,lamp,1\nred lamp,lamp,0\n"
    (shop / "torn").mkdir()
    for split in ("train", "test"):
        (shop / "torn" / f"{split}.csv").write_text(both)
    command = ("dedupe-pairs", shop / "torn", "--out", shop / "x", "--conflicts", "drop")
    assert "nothing would be left of the split train" in refused(capsys, shop, *command)


def test_augmented_training_pairs_and_untouched_test(shop, capsys):
    code, _, _ = called(capsys, "augment", shop / "pairs", "--out", shop / "more", "--copies", 2)
    assert code == 0
    before, after = load_pairs(shop / "pairs"), load_pairs(shop / "more")
    assert len(after["train"]) > len(before["train"])
    assert after["test"]["label"] == before["test"]["label"]
    assert "not empty" in refused(capsys, shop, "augment", shop / "pairs", "--out", shop / "pairs")
    assert "from 0" in refused(capsys, shop, "augment", shop / "pairs", "--out", shop / "x", "--negatives", "inf")


def test_review_goes_out_and_comes_back(shop, capsys):
    pairs = load_pairs(shop / "pairs")
    (shop / "doubt.csv").write_text("doubt\n" + "\n".join(str(i) for i in range(len(pairs["train"]))), encoding="utf-8")
    queue, trail = shop / "queue.csv", shop / "trail.jsonl"
    options = ("--doubts", shop / "doubt.csv", "--n", 5)
    code, _, err = called(capsys, "review", "export", shop / "pairs", "--out", queue, *options)
    assert code == 0, err
    with open(queue, encoding="utf-8-sig") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 5
    for row in rows:
        row["verdict"] = "no match"
    with open(queue, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    back = ("review", "import", shop / "pairs", queue, "--trail", trail, "--who", "ann", "--json")
    code, out, err = called(capsys, *back)
    assert code == 0, err
    assert json.loads(out)["new"] == 5
    assert json.loads(called(capsys, *back)[1])["new"] == 0, "the same file again changes nothing"
    apply = ("review", "apply", shop / "pairs", "--trail", trail, "--out", shop / "mended", "--json")
    code, out, _ = called(capsys, *apply)
    mended = load_pairs(shop / "mended")["train"]["label"]
    assert code == 0 and len(json.loads(out)["changed"]) == sum(pairs["train"]["label"]) - sum(mended)
    assert "not empty" in refused(capsys, shop, *apply[:-2], shop / "pairs")
    (shop / "folder.html").mkdir()
    assert "is a folder" in refused(capsys, shop, "review", "export", shop / "pairs", "--out", shop / "folder.html")
    both = ("--doubts", shop / "doubt.csv", "--probabilities", shop / "doubt.csv")
    assert "not both" in refused(capsys, shop, "review", "export", shop / "pairs", "--out", shop / "q.html", *both)
    assert ".html" in refused(capsys, shop, "review", "export", shop / "pairs", "--out", shop / "q.doc", *options)


def test_faults_and_audit_cost_refuse_what_they_cannot_read(shop, capsys):
    out = ("--out", shop / "kept")
    said = refused(capsys, shop, "faults", shop / "pairs", *out, "--condition", "typos")
    assert "typos" in said and "noise 10%" in said
    (shop / "kept.txt").write_text("mine")
    assert "is a file" in refused(capsys, shop, "faults", shop / "pairs", "--out", shop / "kept.txt")
    (shop / "test.csv").write_text("left_title,right_title,label\nred lamp,lamp,1\n")
    assert "no split train" in refused(capsys, shop, "faults", shop / "test.csv", *out)
    work = ("--labels", "comparisons", "--work", shop / "kept.txt")
    assert "is a file" in refused(capsys, shop, "audit", shop / "pairs", "--model", "none", *work)
    assert "--frozen" in refused(capsys, shop, "audit", shop / "pairs", "--model", "none", "--frozen")
    assert "whole numbers" in refused(capsys, shop, "audit-cost", "--sizes", "10,many", "--out", shop / "cost.json")
    assert ".json" in refused(capsys, shop, "audit-cost", "--sizes", "10", "--out", shop / "cost.csv")
