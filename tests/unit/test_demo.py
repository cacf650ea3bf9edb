"""The page: harmless whatever stands in titles and queries, the same in a real browser, loading nothing."""

import json
import re
import shutil
import socket
import struct
import subprocess
import threading
import urllib.request
from importlib import resources

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from test_search import RECORDS, embed

from prodsim.core import ProdsimError
from prodsim.demo import Demo, line_curve, marked, serve
from prodsim.retrieval import ProductSearch

ODD = RECORDS.assign(title=["<img src=x onerror=alert(1)> Acme headset", *RECORDS["title"][1:]])
PAIRS = Dataset.from_dict(
    {
        "left_title": ["acme headset", "bolt laptop", "bolt bag", "acme lamp"],
        "right_title": ["acme headset black", "bolt laptop", "red chair", "acme lamp"],
        "label": [1, 1, 0, 0],
    }
)


@pytest.fixture(scope="module")
def demo():
    return Demo(ProductSearch.fit(ODD, embed, embed(list(ODD["title"]))), PAIRS)


@pytest.fixture(scope="module")
def address(demo):
    server = serve(demo, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def asked(demo, path):
    return json.loads(demo.answer(path)[2])


@pytest.mark.parametrize(
    "text, words, hits",
    [
        ("Bolt 740 digital 32 GB laptops", ["32gb", "laptop", "digital"], ["digital", "32 GB", "laptops"]),
        ("WF-740720 digital", ["digital"], ["digital"]),
        ("<b>小米</b>手机", ["小", "米", "小米"], ["小米"]),
        ("", ["x"], []),
        ("nothing here", [], []),
    ],
)
def test_whole_words_are_marked_and_no_character_is_lost(text, words, hits):
    pieces = marked(text, words)
    assert "".join(p[0] for p in pieces) == text and [p[0] for p in pieces if p[1]] == hits


def test_the_line_trades_recall_for_precision(demo):
    recall = [p["recall"] for p in demo.curve]
    assert recall[0] == 1 and (np.diff(recall) <= 0).all()
    assert 0 <= demo.threshold <= 1
    with pytest.raises(ProdsimError, match="none of the catalogue's attributes"):
        line_curve(Dataset.from_dict({"left_x": ["a"], "right_x": ["b"], "label": [1]}), demo.search)
    with pytest.raises(ProdsimError, match="pairs that do not"):
        line_curve(PAIRS.select([0, 1]), demo.search)


def test_search_and_similar_answer_the_page(demo):
    found = asked(demo, "/api/search?q=bolt+laptpo&filter=brand%3DBolt&sort=price")
    assert found["results"][0]["price"] == "20" and "read 'laptop' for 'laptpo'" in found["notes"]
    assert {"id", "title", "about", "price", "dimensions", "score"} == set(found["results"][0])
    near = asked(demo, "/api/similar?id=p4")["results"]
    assert "p4" not in [r["id"] for r in near] and {r["id"] for r in near[:3]} == {"p5", "p6", "p7"}
    assert asked(demo, "/api/about?")["note"] and Demo(demo.search).about({})["curve"] == []


def test_a_model_number_is_marked_as_the_record_spells_it():
    titles = ["Acme MX-310 headset", "Acme MX310 headset", "Bolt hub 310"]
    records = pd.DataFrame({"id": ["a", "b", "c"], "title": titles})
    page = asked(Demo(ProductSearch.fit(records, embed, embed(titles))), "/api/search?q=mx310")
    told = {r["id"]: [text for text, hit in r["title"] if hit] for r in page["results"]}
    assert told == {"a": ["MX", "310"], "b": ["MX310"], "c": []} and "is found as 'mx 310'" in page["notes"][0]


@pytest.mark.parametrize(
    "path, told",
    [
        ("/api/search?q=", "query is empty"),
        ("/api/search", "query is empty"),
        ("/api/search?q=laptop&filter=x", "ATTRIBUTE=VALUE"),
        ("/api/search?q=laptop&sort=x", "no attribute"),
        ("/api/similar?id=none", "no product with id 'none'"),
        ("/etc/passwd", "no such page"),
        ("//[", "no such page"),
    ],
)
def test_a_mistake_gets_one_line(demo, path, told):
    assert told in asked(demo, path)["error"]


def test_the_page_loads_nothing_from_elsewhere(address):
    with urllib.request.urlopen(f"{address}/") as reply:
        page, policy = reply.read().decode(), reply.headers["Content-Security-Policy"]
    assert page == resources.files("prodsim").joinpath("demo.html").read_text(encoding="utf-8")
    assert "default-src 'self'" in policy
    assert not re.findall(r"(?:src|href)\s*=|@import|url\(|https?://", page)
    with pytest.raises(ProdsimError, match="another program"):
        serve(None, int(address.rsplit(":", 1)[1]))


def test_a_visitor_who_leaves_is_no_event(address, capfd):
    host, port = address.removeprefix("http://").split(":")
    for _ in range(3):
        with socket.create_connection((host, int(port))) as visitor:
            visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # hangs up at once
            visitor.sendall(b"GET /api/search?q=laptop HTTP/1.0\r\n\r\n")
    with urllib.request.urlopen(f"{address}/api/search?q=laptop") as reply:
        assert json.loads(reply.read())["results"]
    assert capfd.readouterr().err == ""


def test_a_real_browser_shows_reasons_and_runs_nothing_from_a_title(address, tmp_path):
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
    if browser is None:
        pytest.skip("no chromium here: apt-get install chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-sync", f"--user-data-dir={tmp_path}", "--virtual-time-budget=8000", "--dump-dom"]
    done = subprocess.run(
        [browser, *flags, f"{address}/?q=acme+head+set"], capture_output=True, timeout=180, check=True
    )
    page = done.stdout.decode()
    assert 'data-ready="acme head set"' in page and "read 'headset' for 'head set'" in page
    assert re.search(r"<mark>Acme</mark>.*<mark>headset</mark>", page) and "width: 100%" in page
    assert "&lt;img src=x" in page and "<img" not in page  # a title is text
    assert re.search(r"precision</div>", page) and page.count('class="card') > 8
