"""Reading without the library: the same vectors, and the encoder itself wherever its files are not the same."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from prodsim.encoders import encode_ragged, pretrained
from prodsim.index import CatalogueIndex, fingerprint
from prodsim.reader import FEW, READER_FILE, QueryEncoder, encoder_files, kept_reader, plain_bert

RECORDS = pd.DataFrame({"id": list("abc"), "title": ["acme lamp MX-310", "bolt oak desk", "cobra cable 2 m"]})
ODD = ["", "usb c cable", "小米 🎧 naïve", "lamp " * 300]


@pytest.fixture
def made(tmp_path, tiny_model):
    "An index whose encoder is a copy that may be changed."
    shutil.copytree(tiny_model, tmp_path / "model")
    return CatalogueIndex.create(RECORDS, tmp_path / "index", str(tmp_path / "model"))


def opened(encoder):
    return not isinstance(encoder, QueryEncoder) or "model" in encoder.__dict__


def test_an_index_is_asked_without_opening_its_encoder(made):
    again = CatalogueIndex.open(made.folder)
    ours, theirs = (index.search("acme lamp")["results"] for index in (again, made))
    assert [r["id"] for r in ours] == [r["id"] for r in theirs] and not opened(again.encoder)
    for own, other in zip(ours, theirs, strict=True):
        assert own["dimensions"] == pytest.approx(other["dimensions"], abs=1e-6)
    texts = [f"lamp {i}" for i in range(FEW + 1)]
    np.testing.assert_allclose(again.encoder.embed_texts(texts), made.encoder.embed_texts(texts), atol=1e-5)
    assert opened(again.encoder) and fingerprint(again.encoder) == made.manifest["model"]["fingerprint"]


def test_plain_arrays_read_what_the_encoder_reads(made):
    plain = plain_bert(made.encoder)
    np.testing.assert_allclose(plain.embed(ODD), encode_ragged(made.encoder.encoder, ODD), atol=1e-5)
    assert plain.embed([]).shape == (0, 32)
    asked = {"add_special_tokens": False, "return_offsets_mapping": True}
    ours, theirs = plain.tokenizer(ODD, **asked), made.encoder.tokenizer(ODD, truncation=False, verbose=False, **asked)
    assert ours["input_ids"] == theirs["input_ids"]
    assert [list(map(tuple, o)) for o in ours["offset_mapping"]] == [
        list(map(tuple, o)) for o in theirs["offset_mapping"]
    ]


@pytest.mark.parametrize("changed", ["tokenizer_config.json", "model.safetensors"])
def test_a_changed_file_opens_the_encoder(made, changed):
    path = next(Path(made.manifest["model"]["name"]).rglob(changed))
    before = encoder_files(made.manifest["model"]["name"])[1]
    if changed.endswith("json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "note": "another file, the same encoder"}))
        assert opened(CatalogueIndex.open(made.folder).encoder)  # looked at, the same, and kept anew
        assert not opened(CatalogueIndex.open(made.folder).encoder)
    else:
        path.write_bytes(path.read_bytes() + b" ")
    assert encoder_files(made.manifest["model"]["name"])[1] != before


@pytest.mark.parametrize("damage", ["{", "{}", "[]", None])
def test_a_damaged_file_is_written_anew(made, damage):
    path = made.folder / READER_FILE
    path.unlink() if damage is None else path.write_text(damage)
    again = CatalogueIndex.open(made.folder).encoder
    assert opened(again) and not opened(CatalogueIndex.open(made.folder).encoder)
    assert kept_reader(made.folder, made.manifest["model"]["name"], "of another index", None) is None


def test_another_make_of_encoder_is_left_to_its_library(tiny_model):
    model = pretrained(tiny_model, names=("title",))
    model.encoder[0].auto_model.config.hidden_act = "relu"
    assert plain_bert(model) is None
