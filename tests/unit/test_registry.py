"""Registry and cache: what is downloaded, checked, reported and left alone; plug-ins and the names users type."""

import hashlib
import http.server
import threading
from functools import partial

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from one_line import message

from prodsim import registry
from prodsim.data import load_pairs, load_records
from prodsim.registry import catalog, fetch, is_registered

HEAD = "left_title,right_title,label\n"


FILES = {"train.csv": HEAD + "a,b,1\n", "test.csv": HEAD + "灯,c,0\n"}


@pytest.fixture
def served(tmp_path, monkeypatch):
    "A registry of one data set `toy`, its server's folder, and an empty cache."
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.mkdir()
    for name, content in FILES.items():
        (source / name).write_text(content, encoding="utf-8")
    hits = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            hits.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(source)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    facts = [
        {"dataset": "toy", "variant": "", "kind": "pairs", "file": name, "bytes": len(content.encode()),
         "sha256": hashlib.sha256(content.encode()).hexdigest(), "url": f"{base}/{name}", "licence": "CC0, for a test"}
        for name, content in FILES.items()
    ]  # fmt: skip
    monkeypatch.setattr(registry, "registered_files", lambda: pd.DataFrame(facts, dtype=object))
    monkeypatch.setenv("PRODSIM_DATA", str(cache))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield source, cache, hits, server
    server.shutdown()
    server.server_close()


def test_fetch_downloads_once_and_names_the_licence_once(served, capsys):
    source, cache, hits, _ = served
    assert not catalog().set_index("name").loc["toy", "cached"]
    assert fetch("toy", progress=False) == cache / "toy"
    assert sorted(path.name for path in (cache / "toy").iterdir()) == sorted(FILES)
    out, err = capsys.readouterr()
    assert out == "" and err.count("CC0, for a test") == 1
    count = len(hits)
    pairs = load_pairs("toy")
    assert pairs["test"]["left_title"][0] == "灯"
    assert len(hits) == count == 2 and "CC0" not in capsys.readouterr().err
    assert catalog().set_index("name").loc["toy", "cached"]


def test_fetch_shows_progress_on_stderr(served, capsys):
    fetch("toy", progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "100%" in err


def test_wrong_download_is_removed_and_reported(served):
    source, cache, _, _ = served
    (source / "test.csv").write_text("tampered")
    text = message(fetch, "toy", progress=False)
    found = hashlib.sha256(b"tampered").hexdigest()
    assert "test.csv" in text and found in text and "removed" in text
    assert [path.name for path in (cache / "toy").iterdir()] == ["train.csv"], "nothing half there, no temporary file"


def test_wrong_file_in_a_given_cache_is_reported_and_left(served):
    _, cache, hits, _ = served
    (cache / "toy").mkdir(parents=True)
    mine = cache / "toy" / "train.csv"
    mine.write_text("my own notes")
    text = message(load_pairs, "toy")
    expected = hashlib.sha256(FILES["train.csv"].encode()).hexdigest()
    assert str(mine) in text and expected in text and hashlib.sha256(b"my own notes").hexdigest() in text
    assert mine.read_text() == "my own notes" and not hits


def test_file_changed_after_it_was_verified_is_noticed(served):
    _, cache, _, _ = served
    fetch("toy", progress=False)
    (cache / "toy" / "train.csv").write_text(HEAD + "a,b,0\n")
    assert "train.csv" in message(fetch, "toy")


def test_no_network_names_url_and_folder(served):
    source, cache, _, server = served
    server.shutdown()
    server.server_close()
    text = message(fetch, "toy", progress=False)
    assert f"http://127.0.0.1:{server.server_port}/train.csv" in text and str(cache / "toy") in text
    (cache / "toy").mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (cache / "toy" / name).write_bytes((source / name).read_bytes())
    assert len(load_pairs("toy")["train"]) == 1, "a file put there by hand is used"


def test_server_without_the_file(served):
    source, _, _, _ = served
    (source / "train.csv").unlink()
    assert "404" in message(fetch, "toy", progress=False)


def test_misspelt_name_gets_the_nearest():
    assert "did you mean abt-buy?" in message(fetch, "abt-bay")


def test_cache_folder_must_be_absolute(monkeypatch):
    monkeypatch.setenv("PRODSIM_DATA", "some/folder")
    assert "absolute" in message(fetch, "abt-buy")


def test_registry_is_whole():
    table = registry.registered_files()
    assert table["sha256"].str.fullmatch("[0-9a-f]{64}").all() and table["url"].str.startswith("https://").all()
    assert (table["bytes"] > 0).all() and not table.duplicated(["dataset", "file"]).any()
    assert (table["licence"].str.len() > 0).all()
    assert {"abt-buy", "wdc-computers:small", "ecomgpt-zh:item-align"} <= set(catalog()["name"])


def test_plugged_in_data_sets(monkeypatch):
    pairs = DatasetDict(test=Dataset.from_dict({"left_title": ["a"], "right_title": ["b"], "label": [1]}))
    calls = []

    class Entry:
        name = "mine"

        def load(self):
            return lambda variant: calls.append(variant) or pairs

    monkeypatch.setattr(
        registry.metadata, "entry_points", lambda group: [Entry()] if group == "prodsim.datasets" else []
    )
    assert load_pairs("mine:hard") is pairs and load_pairs("mine") is pairs and calls == ["hard", None]
    assert "mine" in set(catalog()["name"]) and "did you mean mine?" in message(load_pairs, "mime")
    for ask in (fetch, load_records):  # it has no files: "did you mean mine?" would be no help
        assert "mine:hard: is made by a program" in message(ask, "mine:hard")


WATCHED = {"abt-buy": True, "abt-buy:disjoint": True, "wdc-cameras:small": True, "shop": False, "my/abt-buy": False}


@pytest.mark.parametrize(("name", "known"), WATCHED.items())
def test_names_that_the_ledger_watches(name, known):
    assert is_registered(name) is known
