"""Explanations: parts that add up, a flip that flips, complete words, and an account that a deletion test believes."""

import json

import numpy as np
import pandas as pd
import pytest
from little_shop import little_pairs
from scipy import special

from prodsim.cli import main
from prodsim.comparisons import train_comparisons
from prodsim.core import ProdsimError
from prodsim.data import save_pairs
from prodsim.similarity.explanation import (
    attribute_flips,
    attribute_table,
    explain_pairs,
    explanation_text,
    faithfulness,
    model_importance,
    one_pair,
    read_attributes,
    smallest_flip,
    stored_words,
    word_attributions,
    word_deletions,
    word_differences,
)
from prodsim.similarity.fusion import HEADS, train_fusion

PAIRS = little_pairs(train=160)
TEST = PAIRS["test"].to_pandas()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train_comparisons(PAIRS, folder / "comparisons", rounds=20, vocabulary="known")
    return folder, {h: train_fusion(PAIRS, folder / h, meaning="none", head=h) for h in HEADS}


@pytest.mark.parametrize("head", HEADS)
def test_parts_add_up_and_are_json(runs, head):
    model = runs[1][head]
    told = explain_pairs(model, TEST, explain=True)
    assert json.loads(json.dumps(told)) == told and len(told) == len(TEST)
    for t, score in zip(told, model.score(TEST), strict=True):
        total = sum(d["contribution"] for d in t["dimensions"]) + t["base"]
        assert np.isclose(special.expit(total), score, atol=1e-5) and t["probability"] == t["score"]
        assert t["match"] == (np.float32(t["score"]) >= np.float32(model.threshold))


@pytest.mark.parametrize("head", HEADS)
def test_the_named_flip_turns_the_verdict_and_a_smaller_one_does_not(runs, head):
    model = runs[1][head]
    measured = model.measure(TEST)
    found = 0
    for i in range(len(TEST)):
        row = measured.iloc[[i]]
        was = model.probabilities(row)[0] >= model.threshold
        if (flip := smallest_flip(model, row)) is None:
            continue
        found += 1
        assert (model.probabilities(row.assign(**flip["changes"]))[0] >= model.threshold) != was
        if len(flip["changes"]) == 1:
            (name, value), start = *flip["changes"].items(), row[next(iter(flip["changes"]))].iloc[0]
            nearer = value + (0.05 if value < start else -0.05)
            if abs(nearer - start) < abs(value - start):
                assert (model.probabilities(row.assign(**{name: nearer}))[0] >= model.threshold) == was
    assert found > len(TEST) / 2


def test_attributes_same_different_and_missing():
    pair = pd.Series(
        {
            "left_a": "DMC-LC40S", "right_a": "dmc lc40s", "left_b": "10.0", "right_b": "10", "left_c": "x",
            "right_c": None, "left_d": None, "right_d": float("nan"), "left_e": "9", "right_e": "10",
        }
    )  # fmt: skip
    verdicts = [r["verdict"] for r in attribute_table(pair, tuple("abcde"))]
    assert verdicts == ["same", "same", "one side", "missing", "different"]


def test_attribute_changes_are_scored_again(runs):
    model = runs[1]["linear"]
    pair = TEST.iloc[[int(np.argmin(model.score(TEST)))]]
    changes = attribute_flips(model, pair)
    equal = next(c for c in changes if c["change"] == "made equal" and c["attribute"] == "title")
    again = model.score(pair.assign(right_title=pair["left_title"]))[0]
    assert np.isclose(equal["score"], again, atol=1e-6) and equal["flips"] == (again >= model.threshold)


def test_a_true_account_passes_and_a_shuffled_one_does_not(runs):
    model = runs[1]["linear"]
    believed = model.measure(TEST)[model.score(TEST) >= model.threshold]
    true = faithfulness(model, believed)
    shuffled = model.shares(believed)
    shuffled[:] = np.random.default_rng(0).permuted(shuffled.to_numpy(), axis=1)
    assert true["low"] > 0 and true["named"] > true["random"]
    assert faithfulness(model, believed, shuffled)["gain"] < true["gain"] / 2
    assert list(model_importance(model, believed).sort_values(ascending=False).index) == list(
        model_importance(model, believed).index
    )


def test_plain_models_are_taken_apart_as_far_as_it_goes(runs):
    from prodsim.encoders import load_model

    model = load_model(runs[0] / "comparisons")
    told = explain_pairs(model, TEST.iloc[:3], explain=True)
    groups = {"words", "codes", "numbers", "grams", "likeness", "attributes"}
    assert {d["name"] for d in told[0]["dimensions"]} <= groups
    assert np.allclose([t["score"] for t in told], model.score(TEST.iloc[:3]), atol=1e-6)
    assert "adds" in explanation_text(told[0]) and set(read_attributes(model)) == {"title", "price"}


def test_bi_encoder_and_words_of_a_cross_encoder(tiny_model):
    pytest.importorskip("captum")
    from prodsim.encoders import pretrained

    bi = pretrained(tiny_model, names=("title",))
    told = explain_pairs(bi, TEST.iloc[:2])[0]
    assert told["probability"] is None and told["match"] is None and told["dimensions"][0]["name"] == "meaning"
    cross = pretrained(tiny_model, "cross", names=("title",))
    account = word_attributions(cross, TEST.iloc[[0]], steps=16)
    assert account["complete"] and np.isclose(
        sum(w["value"] for w in account["words"]), account["difference"], atol=account["gap"] + 1e-5
    )
    for side in ("left", "right"):
        said = [w["word"] for w in account["words"] if w["side"] == side]
        assert said == TEST[f"{side}_title"].iloc[0].split()
    with pytest.raises(ProdsimError, match="this model is of kind bi"):
        word_attributions(bi, TEST.iloc[[0]])


def test_words_are_deleted_and_the_test_is_stored(runs, tiny_model, tmp_path, monkeypatch, capsys):
    pytest.importorskip("captum")
    from prodsim.core import results_folder, stored_table
    from prodsim.encoders import pretrained, save_model

    cross = pretrained(tiny_model, "cross", names=("title",))
    with pytest.raises(ProdsimError, match="no threshold: there is no verdict"):
        word_deletions(cross, TEST.iloc[:1])
    cross.threshold = float(np.median(cross.score(TEST)))
    save_model(cross, tmp_path / "cross")
    save_pairs(PAIRS, tmp_path / "pairs")
    monkeypatch.setenv("PRODSIM_RESULTS", str(tmp_path / "results"))
    call = ["words", str(tmp_path / "cross"), str(tmp_path / "pairs"), "--pairs", "16"]
    assert main(call) == 0 and "no match" in capsys.readouterr().out
    (result,) = stored_words()
    assert word_differences(result) == [] and result["split"] == "valid" and len(result["examples"]) == 4
    table = stored_table(result, results_folder() / "similarity" / result["pairs_file"])
    assert list(table["match"]) == [1] * 8 + [0] * 8 and (table["complete"] == 1).all()
    assert (table["deleted"] == np.maximum(1, np.round(0.2 * table["words"]))).all()
    assert table["named"].mean() > table["random"].mean()
    for example in result["examples"]:
        said = [w["word"] for w in example["words"] if w["side"] == "left"]
        assert said == example["left"].split()
    result["metrics"]["all"]["gain"] += 0.001
    assert len(word_differences(result)) == 1
    assert main([*call[:1], str(runs[0] / "trees"), *call[2:]]) == 2
    assert "holds no cross-encoder: there are no words" in capsys.readouterr().err
    assert main([*call, "--split", "later"]) == 2
    assert "has no split 'later'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "left, right, message",
    [
        ("{", "{}", "--left is not JSON"),
        ('["a"]', '{"title": "x"}', "left: a list; write one object"),
        ('{"titel": "x"}', '{"title": "x"}', "left: none of the attributes that the model reads: title, price"),
        ('{"title": "x"}', '{"title": ["x"]}', "right: title is a list; write text or a number"),
    ],
)
def test_mistakes_on_the_command_line(runs, capsys, left, right, message):
    assert main(["compare", str(runs[0] / "linear"), "--left", left, "--right", right]) == 2
    assert message in capsys.readouterr().err


def test_compare(runs, tmp_path, capsys):
    fusion = str(runs[0] / "trees")
    records = ["--left", '{"title": "acme lamp 310", "price": 31}', "--right", '{"title": "lamp acme 310"}']
    assert main(["compare", fusion, *records, "--explain", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "fusion" and {a["attribute"] for a in told["attributes"]} == {"title", "price"}
    assert main(["compare", fusion, *records, "--explain"]) == 0
    shown = capsys.readouterr().out
    assert "title words is" in shown and "price is not known" in shown
    assert main(["compare", str(runs[0] / "comparisons"), *records]) == 0
    assert "adds" in capsys.readouterr().out
    save_pairs(PAIRS, tmp_path / "pairs")
    assert main(["compare", fusion, "--pairs", str(tmp_path / "pairs" / "test.csv"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["pairs"]) == len(TEST)
    assert main(["compare", fusion, "--pairs", str(tmp_path / "pairs" / "test.csv")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(TEST)
    assert main(["compare", fusion, "--left", "{}"]) == 2
    assert "compare takes --left JSON and --right JSON, or --pairs FILE" in capsys.readouterr().err


def test_one_pair_takes_numbers_and_leaves_out_what_is_missing(runs):
    pair = one_pair(runs[1]["linear"], {"title": "a", "price": 3.5, "id": 7}, {"title": "b", "price": ""})
    assert pair["left_price"][0] == "3.5" and pair["right_price"][0] is None and pair["left_id"][0] == "7"
