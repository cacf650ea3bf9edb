"""Operators on records: what keeps the product keeps it, what changes it changes it, for any text."""

import json
import re

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from prodsim.core import ProdsimError
from prodsim.quality import augment as module
from prodsim.quality.augment import (
    CHANGES,
    CHEAP,
    OPERATORS,
    Operator,
    augment,
    augment_pairs,
    back_translator,
    facts,
    load_lexicon,
    make_negatives,
    rare_words,
    same_identity,
    split_words,
)
from prodsim.shop import simulate

ENGLISH = {
    "title": "Acme Vista AB-1234B 55 inch smart streaming LED television with stand black",
    "description": "voice remote, 3 HDMI inputs, 1TB storage, energy saving mode",
    "brand": "Acme",
    "price": "499.00",
}
CHINESE = {
    "title": "岚科星澜Pro AB-1234W 55英寸智能网络液晶电视白色【优品旗舰店】",
    "description": "远场语音，防蓝光护眼，无线投屏，节能",
    "brand": "岚科",
    "price": "3999",
}
WORDS = (
    "black blk jet dark gray stainless steel laptop computer notebook pc tv television AB-1234 ab1234c DV 3800BK 55"
    ' inch 55" 15.6-inch 1TB 1000 GB 12 oz 355ml 4K usb 3.0 with w/ and & , ; ( ) / — " \' 3 10W Pro II x A 黑色 黑'
    " 金属机身 液晶电视 55英寸 35页/分 【店】 ， 家用 é ﬁ  \t 0 GB 0.0 cm black/silver ½ ² ٣ 1.5.2"
).split(" ")
words = st.one_of(st.sampled_from(WORDS), st.sampled_from(WORDS), st.text(max_size=4))
texts = st.lists(words, max_size=8).map(" ".join)
record = st.fixed_dictionaries({"title": texts, "description": st.none() | texts, "brand": st.sampled_from(WORDS)})
records = st.lists(record.map(lambda r: {**r, "price": "9.99"}), min_size=1, max_size=2)


def shop_records(language, n=400):
    offers = simulate(120, seed=3, language=language).offers[["title", "description", "brand", "price"]]
    return [{k: v or None for k, v in r.items()} for r in offers.head(n).to_dict("records")]


def test_the_registry_says_which_operators_keep_the_label():
    assert {n for n, o in OPERATORS.items() if o.keeps_label} == set(CHEAP)
    assert {n for n, o in OPERATORS.items() if not o.keeps_label} == set(CHANGES)
    assert all(o.name == n and o.about for n, o in OPERATORS.items())


@settings(max_examples=60, deadline=None)
@given(records, st.integers(0, 2**32 - 1), st.sampled_from(CHEAP))
def test_what_keeps_the_label_keeps_every_fact_of_any_text(rows, seed, name):
    given_rows = json.dumps(rows)
    out = augment(rows, np.random.default_rng(seed), [name])
    assert json.dumps(rows) == given_rows, "the caller's records were written to"
    assert len(out) == len(rows)
    for before, after in zip(rows, out, strict=True):
        assert list(after) == list(before)
        assert same_identity(before, after) and same_identity(after, before)
        if any(v for k, v in before.items() if k != "price"):
            assert any(v for k, v in after.items() if k != "price"), "a record became empty"


@settings(max_examples=60, deadline=None)
@given(records, st.integers(0, 2**32 - 1), st.sampled_from(CHANGES))
def test_what_changes_the_label_changes_a_fact_or_nothing(rows, seed, name):
    out, changed = make_negatives(rows, np.random.default_rng(seed), [name])
    for before, after, new in zip(rows, out, changed, strict=True):
        assert (after == before) is not bool(new)
        assert same_identity(before, after) is not bool(new)


@settings(max_examples=100, deadline=None)
@given(texts)
def test_the_words_of_a_text_are_the_text(text):
    assert "".join(split_words(text)) == text


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", CHEAP)
def test_every_operator_does_something_to_most_offers_of_a_shop(language, name):
    rows = shop_records(language)
    out = augment(rows, np.random.default_rng(0), [name])
    assert np.mean([a != b for a, b in zip(out, rows, strict=True)]) > 0.4


@pytest.mark.parametrize(
    "name, kind", [("change_model", "model"), ("change_size", "measure"), ("change_colour", "colour")]
)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_operator_that_changes_the_label_succeeds_wherever_its_fact_is_told(name, kind, language):
    rows = shop_records(language)
    out, changed = make_negatives(rows, np.random.default_rng(0), [name])
    told = np.array([any(f[0] == kind for f in facts(r)) for r in rows])
    assert told.mean() > 0.6
    assert (changed[told]).mean() > 0.99 and not changed[~told].any()
    for before, after in zip(rows, out, strict=True):
        lost = {f[0] for f in facts(before) - facts(after)}
        assert lost <= {kind}, "another kind of fact was lost on the way"


def test_numbers_that_stand_in_two_attributes_change_together():
    row = {"title": "Acme AB-1234 black", "description": "the AB-1234 in BLACK, 40 mm"}
    for seed in range(20):
        (model,), (changed,) = make_negatives([row], np.random.default_rng(seed), ["change_model"])
        title, description = (re.search(r"AB-\w+", model[n])[0] for n in row)
        assert changed and title == description != "AB-1234"
        (colour,), _ = make_negatives([row], np.random.default_rng(seed), ["change_colour"])
        assert "black" not in " ".join(colour.values()).lower()


def test_units_are_written_otherwise_and_say_the_same():
    seen = set()
    for seed in range(60):
        out = augment([{"title": "disk 1TB 15.6 inch"}], np.random.default_rng(seed), ["rewrite_units"])
        seen.add(out[0]["title"])
    assert any("1000 GB" in t or "1000GB" in t for t in seen) and any('15.6"' in t for t in seen)
    assert same_identity({"t": "cup 12 fl oz"}, {"t": "cup 355 ml"})
    assert not same_identity({"t": "cup 12 fl oz"}, {"t": "cup 350 ml"})
    assert not same_identity({"t": "disk 1TB"}, {"t": "disk 1024 GB"})


def test_facts_are_read_in_both_languages():
    assert facts({"title": 'TV 55" Pro'}) == facts({"title": "TV 55 inch pro"}) == facts({"title": "电视 55英寸Pro"})
    assert facts({"title": "stainless steel sink"}) == facts({"title": "不锈钢色"})
    assert facts({"title": "金属机身"}) == frozenset(), "the first character of metal is no gold"
    assert ("colour", load_lexicon().colours["gold"][0]) in facts({"title": "激光打印机 金"})
    assert facts({"title": "lamp", "price": "9.99", "id": "A1234"}) == frozenset()
    assert facts({"title": "x", "brand": "Acme Home"}) >= {("name", "acme"), ("name", "home")}


def test_same_state_same_output():
    rows = shop_records("en", 50) + shop_records("zh", 50)
    first, second, other = (augment(rows, np.random.default_rng(s)) for s in (5, 5, 6))
    assert first == second != other
    a, b = (make_negatives(rows, np.random.default_rng(5)) for _ in range(2))
    assert a[0] == b[0] and (a[1] == b[1]).all()


def test_words_of_the_brand_stay_in_the_record():
    for row in (ENGLISH, CHINESE):
        for seed in range(100):
            out = augment([row], np.random.default_rng(seed))[0]
            assert row["brand"] in f"{out['title']} {out['description']} {out['brand']}"


def test_protected_words_stay():
    row = {"title": "Acme Nimbus wireless headphones with carrying case"}
    lexicon = load_lexicon().protecting(["Nimbus", "headphones"])
    for seed in range(60):
        out = augment([row], np.random.default_rng(seed), lexicon=lexicon)[0]["title"]
        assert "Nimbus" in out and "headphones" in out
    assert any("Nimbus" not in augment([row], np.random.default_rng(s), ["delete_span"])[0]["title"] for s in range(60))


def test_rare_words_are_those_of_few_records():
    rows = [{"title": f"common lamp {'zephyr' if i < 2 else 'wide'}", "price": "1"} for i in range(9)]
    assert rare_words(rows, at_most=2) == {"zephyr"}


@pytest.mark.parametrize("lies", [True, False])
def test_the_check_catches_an_operator_whose_flag_is_wrong(lies):
    "One that claims to keep the product, and drops its model number; one that claims to change it, and does not."

    def rewrite(rows, draw, lexicon):
        return [{**r, "title": r["title"].replace("AB-1234", "" if lies else "AB-1234 new")} for r in rows]

    operator = Operator("mine", lies, rewrite)
    row = {"title": "Acme AB-1234 lamp"}
    if lies:
        assert augment([row], np.random.default_rng(0), [operator]) == [row]
    else:
        out, changed = make_negatives([row], np.random.default_rng(0), [operator])
        assert out == [row] and not changed.any()


def test_an_operator_of_ones_own_is_used():
    operator = Operator("shout", True, lambda rows, draw, lexicon: [{"title": r["title"] + " sale"} for r in rows])
    assert augment([{"title": "lamp 3"}], np.random.default_rng(0), [operator]) == [{"title": "lamp 3 sale"}]


# Pairs


def little_pairs():
    left = {"left_id": ["a", "b", "c"], "left_title": [ENGLISH["title"], CHINESE["title"], "Acme lamp"]}
    right = {
        "right_id": ["d", "e", "f"],
        "right_title": ["Acme AB-1234B TV 55 inch", "岚科 AB-1234W 液晶电视", "Bolt desk 3"],
    }
    return Dataset.from_dict(left | right | {"label": [1, 1, 0], "note": ["x", "y", "z"]})


def test_augmented_pairs_keep_the_given_rows_and_labels():
    pairs = little_pairs()
    out = augment_pairs(pairs, seed=1, copies=2, negatives=1.0)
    assert out.features == pairs.features
    assert out.select(range(3)).to_dict() == pairs.to_dict()
    assert out["label"][3:9] == [1, 1, 0] * 2
    made = out.select(range(9, len(out)))
    assert len(made) == 2 and set(made["label"]) == {0}
    for row in made:
        left, right = facts({"t": row["left_title"]}), facts({"t": row["right_title"]})
        kinds = {f[0] for f in left & {*left}} & {f[0] for f in right}
        assert any({f for f in left if f[0] == k} != {f for f in right if f[0] == k} for k in kinds)
    assert len(set(out["right_id"])) > 3


def test_a_negative_changes_only_what_the_other_side_states():
    left = [{"title": "Acme AB-1234 television"}] * 50
    right = [{"title": "Acme AB-1234 tv 55 inch black"}] * 50
    out, changed = make_negatives(right, np.random.default_rng(0), stated=left)
    assert changed.all() and all("55 inch black" in r["title"] for r in out)
    out, changed = make_negatives(right, np.random.default_rng(0), stated=[{"title": "television"}] * 50)
    assert not changed.any() and out == right


# Mistakes of the user

LEXICON = module.resources.files("prodsim.quality").joinpath("lexicon.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: augment([ENGLISH], np.random.default_rng(0), ["delete_spam"]), "did you mean delete_span"),
        (lambda: augment([ENGLISH], np.random.default_rng(0), ["change_size"]), "use make_negatives"),
        (lambda: augment([ENGLISH], np.random.default_rng(0), []), "needs an operator"),
        (lambda: augment([{"title": 3}], np.random.default_rng(0)), "record 0 .*title: int where text"),
        (lambda: make_negatives([ENGLISH], np.random.default_rng(0), ["synonym"]), "use augment"),
        (lambda: make_negatives([ENGLISH], np.random.default_rng(0), stated=[]), "0 other offers for 1"),
        (lambda: augment_pairs(little_pairs().remove_columns("label")), "no column label"),
        (lambda: augment_pairs(little_pairs(), copies=-1), "copies=-1"),
        (lambda: load_lexicon("/nowhere/lexicon.toml"), "cannot be read"),
        (lambda: back_translator("/nowhere/model", "/nowhere/model"), "cannot be loaded from safetensors"),
    ],
)
def test_mistakes_get_one_line(call, says):
    with pytest.raises(ProdsimError, match=says) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "old, new, says",
    [
        ("editions = [", "editions = [1, ", "editions must be a list"),
        ('["television", "tv"]', '["television", "tv", "laptop"]', "'laptop' stands twice under synonyms"),
        ('"blk"]', '"blk", "white"]', "'white' stands twice under colours"),
        ("worth = 25.4", "worth = 0", "worth 0, not above 0"),
        ('"{} mm"', '"mm"', "must be {} and then the unit"),
        ('"{} mm"', '"{} cm"', "'cm' stands in two units"),
        ('shade = "black"', 'shad = "black"', "must be written as in the package's"),
        ("[synonyms]", "[synonyms", "not TOML"),
    ],
)
def test_a_broken_lexicon_is_refused_by_name(tmp_path, old, new, says):
    assert old in LEXICON
    path = tmp_path / "mine.toml"
    path.write_text(LEXICON.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ProdsimError, match=re.escape(says)) as error:
        load_lexicon(path)
    assert "mine.toml" in str(error.value) and "\n" not in str(error.value)


def test_an_edited_lexicon_is_used(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(LEXICON.replace('["television", "tv"]', '["television", "goggle box"]'), encoding="utf-8")
    out = augment([{"title": "Acme television"}], np.random.default_rng(0), ["synonym"], load_lexicon(path))
    assert out == [{"title": "Acme goggle box"}]


# Back-translation through two tiny models made here

SENTENCES = {
    "acme lamp black": "lampe noire acme",
    "bolt desk with drawer": "bureau bolt avec tiroir",
    "a wide oak table": "une table large en chene",
}
BACK = {
    "lampe noire acme": "acme black lamp",
    "bureau bolt avec tiroir": "bolt desk with drawer",
    "une table large en chene": "a wide table of oak wood",
}


def tiny_translator(folder, examples, safe=True, languages=()):
    "A one-layer BART that has learnt a few sentences by heart."
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", *languages]
    words = sorted({w for pair in examples.items() for s in pair for w in s.split()})
    vocabulary = {w: i for i, w in enumerate([*special, *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.model_max_length = 32
    config = BartConfig(
        vocab_size=len(vocabulary), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=40, dropout=0.0,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BartForConditionalGeneration(config)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        x = tokenizer(list(examples), return_tensors="pt", padding=True)
        y = tokenizer([f"{t} </s>" for t in examples.values()], return_tensors="pt", padding=True)
        labels = y["input_ids"].masked_fill(y["input_ids"] == 1, -100)
        for _ in range(80):
            loss = model(input_ids=x["input_ids"], attention_mask=x["attention_mask"], labels=labels).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert loss.item() < 0.05, "the tiny model has not learnt its sentences"
    tokenizer.save_pretrained(folder)
    if safe:
        model.save_pretrained(folder)
    else:
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return str(folder)


@pytest.fixture(scope="module")
def translators(tmp_path_factory):
    there = tiny_translator(tmp_path_factory.mktemp("there"), SENTENCES)
    back = tiny_translator(tmp_path_factory.mktemp("back"), BACK)
    return there, back


def test_back_translation_rewrites_through_both_models(translators):
    operator = back_translator(*translators, temperature=0, batch_size=2)
    assert operator.keeps_label
    rows = [{"title": s, "price": "3"} for s in SENTENCES]
    out = augment(rows, np.random.default_rng(0), [operator])
    assert [r["title"] for r in out] == [BACK[t] for t in SENTENCES.values()]
    assert all(r["price"] == "3" for r in out)


def test_back_translation_that_loses_a_fact_is_thrown_away(translators, tmp_path):
    loses = tiny_translator(tmp_path / "loses", {**BACK, "lampe noire acme": "acme lamp"})
    operator = back_translator(translators[0], loses, temperature=0)
    rows = [{"title": s} for s in SENTENCES]
    out = augment(rows, np.random.default_rng(0), [operator])
    assert out[0] == rows[0] and out[2]["title"] == BACK[SENTENCES["a wide oak table"]]


def test_sampled_back_translation_is_seeded_and_leaves_torch_alone(translators):
    import torch

    operator = back_translator(*translators, temperature=3.0)
    rows = [{"title": s} for s in SENTENCES] * 4
    state = torch.get_rng_state()
    first, again, other = (augment(rows, np.random.default_rng(s), [operator]) for s in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_a_language_the_tokenizer_does_not_know_is_refused(translators):
    with pytest.raises(ProdsimError, match="no language 'eng_Latn' or 'deu_Latn'"):
        back_translator(*translators, languages=("eng_Latn", "deu_Latn"))


def test_a_multilingual_model_is_told_the_language(tmp_path):
    "The code of the wanted language is forced as the first word; nothing in the examples says which it is."
    folder = tiny_translator(tmp_path, SENTENCES, languages=("en_X", "fr_X"))
    translator = module._Translator(folder, "en_X", "fr_X", 2, 0, 8, "cpu")
    made = translator.model.generate(
        **{
            k: v
            for k, v in translator.tokenizer(["acme lamp black"], return_tensors="pt").items()
            if k != "token_type_ids"
        },
        **translator.options,
    )
    assert translator.tokenizer.convert_ids_to_tokens(made[0])[1] == "fr_X"
    assert translator.tokenizer.src_lang == "en_X"


def test_pickled_weights_and_remote_code_are_never_loaded(tmp_path, monkeypatch, translators):
    folder = tiny_translator(tmp_path / "pickled", SENTENCES, safe=False)
    with pytest.raises(ProdsimError, match="cannot be loaded from safetensors"):
        back_translator(folder, folder)
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    asked = []
    for loader in (AutoTokenizer, AutoModelForSeq2SeqLM):
        real = loader.from_pretrained

        def spy(*args, real=real, **options):
            asked.append(options)
            return real(*args, **options)

        monkeypatch.setattr(loader, "from_pretrained", spy)
    back_translator(*translators)
    assert len(asked) == 4 and all(o["trust_remote_code"] is False for o in asked)
    assert [o["use_safetensors"] for o in asked if "use_safetensors" in o] == [True, True]
