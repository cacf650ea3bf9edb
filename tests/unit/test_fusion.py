"""Fusions: contributions that add up, heads that rise, a saved model read back, one line for a mistake."""

import json

import numpy as np
import pandas as pd
import pytest
from datasets import DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from little_shop import little_pairs
from scipy import special

from prodsim.cli import main
from prodsim.comparisons import train_comparisons
from prodsim.core import ProdsimError
from prodsim.data import save_pairs
from prodsim.encoders import load_model, score_file
from prodsim.recipes import recipe_names, train_recipe
from prodsim.similarity import dimensions
from prodsim.similarity.fusion import HEADS, check_taught, fit_fusion_head, fuse, save_fusion, train_fusion

PAIRS = little_pairs()
NONE = {"meaning": "none"}


@pytest.fixture(scope="module")
def fusions():
    return {head: train_fusion(PAIRS, **NONE, head=head) for head in HEADS}


def table(n=200, seed=0, missing=0.2):
    rng = np.random.default_rng(seed)
    x = rng.random((n, 3))
    y = (rng.random(n) < special.expit(8 * (x[:, 0] - 0.5))).astype(int)
    x[rng.random(x.shape) < missing] = np.nan
    return pd.DataFrame(x, columns=["a", "b", "c"]), y


@pytest.mark.parametrize("head", HEADS)
def test_contributions_add_up_to_the_probability(fusions, head):
    model = fusions[head]
    added = model.explain(PAIRS["test"])
    assert list(added) == [*model.names, "base"]
    assert np.allclose(special.expit(added.sum(axis=1)), model.score(PAIRS["test"]), atol=1e-5)
    assert model.score(PAIRS["test"].select([])).shape == (0,)


@pytest.mark.parametrize("head", HEADS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), at=st.integers(0, 2))
def test_more_likeness_never_speaks_against_a_match(head, seed, at):
    x, y = table(seed=seed)
    fitted = fit_fusion_head(head, x.to_numpy(), y, seed)
    rows = np.repeat(x.fillna(0.5).to_numpy()[:1], 21, axis=0)
    rows[:, at] = np.linspace(0, 1, 21)
    assert (np.diff(fitted.shares(rows).sum(axis=1)) >= -1e-9).all()


def test_a_missing_value_may_speak_either_way():
    rng = np.random.default_rng(0)
    x, y = rng.random((400, 2)), rng.integers(0, 2, 400)
    x[:, 0] = np.where(y == 1, np.nan, x[:, 0])  # missing tells
    for head in HEADS:
        shares = fit_fusion_head(head, x, y).shares(np.array([[np.nan, 0.5], [0.5, 0.5]]))
        assert shares[0].sum() > shares[1].sum() + 1


def test_fused_is_better_than_its_parts_and_calibrated():
    x, y = table(1500, 1)
    model = fuse(None, x[:900], y[:900], x[900:], y[900:], head="linear")
    stated = model.probabilities(x[900:])
    assert abs(stated.mean() - y[900:].mean()) < 0.03
    assert model.run["valid"]["log_loss"] < 0.6 and 0 < model.threshold < 1


def test_noise_is_given_no_weight():
    rng = np.random.default_rng(0)
    x, y = pd.DataFrame(rng.random((300, 2)), columns=["a", "b"]), rng.integers(0, 2, 300)
    model = fuse(None, x, y, x, 1 - y)  # validation says the opposite
    assert np.allclose(model.probabilities(x), y.mean(), atol=0.1)


def test_dimensions_that_nobody_knows_are_left_out():
    x, y = table()
    assert fuse(None, x.assign(c=np.nan), y, x, y).names == ("a", "b")
    with pytest.raises(ProdsimError, match="nothing to fuse"):
        fuse(None, x * np.nan, y, x, y)


def test_other_dimensions_are_refused_in_one_line():
    x, y = table()
    model = fuse(None, x, y, x, y, head="linear")
    for other in (x[["b", "a", "c"]], x[["a", "b"]], x.assign(d=0.5)):
        with pytest.raises(ProdsimError, match="the fusion reads a, b, c; it is given"):
            model.probabilities(other)


@pytest.mark.parametrize("head", HEADS)
def test_saved_and_read_back(fusions, head, tmp_path):
    model = fusions[head]
    save_fusion(model, tmp_path / "run")
    again = load_model(tmp_path / "run")
    assert again.kind == "fusion" and again.threshold == model.threshold
    assert np.allclose(again.score(PAIRS["test"]), model.score(PAIRS["test"]), atol=1e-6)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["kind"] == "fusion" and run["missing"]["meaning"] == "no encoder is given"


def test_a_fusion_of_a_dimension_that_is_gone(tmp_path):
    @dimensions.dimension("first letter", "lexical")
    def first_letter(look):
        "1: the titles start alike"
        a, b = look.both([t[:1] for t in look.texts()])
        return (a == b).astype(float)

    try:
        train_fusion(PAIRS, tmp_path / "run", **NONE, dimensions="first letter,title words", head="linear")
        assert load_model(tmp_path / "run").names == ("title words", "first letter")[::-1]
    finally:
        del dimensions.DIMENSIONS["first letter"]
    with pytest.raises(ProdsimError, match="reads the dimension 'first letter': import the module"):
        load_model(tmp_path / "run")
    (tmp_path / "run" / "fusion" / "known.json").unlink()
    with pytest.raises(ProdsimError, match="cannot be read"):
        load_model(tmp_path / "run")


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    save_pairs(PAIRS, folder / "pairs")
    train_comparisons(str(folder / "pairs"), folder / "judge", rounds=20, vocabulary="known")
    return folder / "judge"


@pytest.mark.parametrize(
    "chosen, head", [("", "linear"), ("title words,price,interaction", "trees"), ("interaction", "auto")]
)
def test_a_judge_is_weighed_on_validation_pairs(judge, tmp_path, chosen, head):
    settings_ = {"meaning": "none", "interaction": str(judge), "head": head, "dimensions": chosen}
    model = train_fusion(PAIRS, tmp_path / "run", **settings_)
    assert model.run["taught"] == ["interaction"] and model.run["notes"] == []
    added = model.explain(PAIRS["test"])
    assert np.allclose(special.expit(added.sum(axis=1)), model.score(PAIRS["test"]), atol=1e-5)
    assert added["base"].std() < 1e-9 and added["interaction"].std() > 0
    again = load_model(tmp_path / "run")
    assert np.allclose(again.score(PAIRS["test"]), model.score(PAIRS["test"]), atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_a_model_that_knows_the_training_pairs_by_heart_is_not_believed(head):
    (x, y), (held, truth) = table(400, 1), table(400, 2)
    chance = np.random.default_rng(0).random(400)
    by_heart, guessed = x.assign(b=0.02 + 0.96 * y), held.assign(b=chance)
    plain = fuse(None, x[["a"]], y, held[["a"]], truth, head)
    staged = fuse(None, by_heart[["a", "b"]], y, guessed[["a", "b"]], truth, head, taught=("b",))
    fooled = fuse(None, by_heart[["a", "b"]], y, guessed[["a", "b"]], truth, head)
    loss = {n: m.run["valid"]["log_loss"] for n, m in (("plain", plain), ("staged", staged), ("fooled", fooled))}
    assert loss["staged"] < loss["plain"] + 0.01 and loss["fooled"] > loss["plain"] + 0.03


def test_a_model_that_learned_from_validation_pairs_is_refused(judge, tmp_path):
    swapped = DatasetDict(train=PAIRS["valid"], valid=PAIRS["train"], test=PAIRS["test"])
    with pytest.raises(ProdsimError, match=f"learned from {len(swapped['valid'])} of the validation pairs"):
        train_fusion(swapped, meaning="none", interaction=str(judge))
    train_comparisons(swapped, tmp_path / "elsewhere", rounds=5, vocabulary="known")  # of pairs in memory
    assert "are not at hand" in check_taught(tmp_path / "elsewhere", PAIRS)
    assert check_taught(judge, little_pairs(seed=1)) == ""  # other records


def test_models_that_do_not_fit(judge, fusions, tmp_path):
    with pytest.raises(ProdsimError, match="meaning=.*: a model of kind comparisons; name one of kind bi"):
        train_fusion(PAIRS, meaning=str(judge))
    save_fusion(fusions["linear"], tmp_path / "run")
    with pytest.raises(ProdsimError, match="interaction=.*: a model of kind fusion; name one that reads both records"):
        train_fusion(PAIRS, **NONE, interaction=str(tmp_path / "run"))


def test_recipe_resumes_and_streams(tmp_path):
    assert "fusion" in recipe_names()
    options = {"seed": 1, "changes": {"meaning": "none", "head": "linear"}, "resume": True}
    model = train_recipe(PAIRS, tmp_path / "run", "fusion", **options)
    assert train_recipe(PAIRS, tmp_path / "run", "fusion", **options).run["seconds"] == model.run["seconds"]
    with pytest.raises(ProdsimError, match="made with other arguments .*head"):
        train_recipe(PAIRS, tmp_path / "run", "fusion", **options | {"changes": {"meaning": "none", "head": "trees"}})
    with pytest.raises(ProdsimError, match="--max-minutes"):
        train_recipe(PAIRS, tmp_path / "other", "fusion", max_minutes=1.0)
    save_pairs(PAIRS, tmp_path / "pairs")
    score_file(model, tmp_path / "pairs" / "test.csv", tmp_path / "scores.csv", chunk_rows=16)
    stored = pd.read_csv(tmp_path / "scores.csv")
    assert np.allclose(stored["score"], model.score(PAIRS["test"]), atol=1e-5) and set(stored["match"]) == {0, 1}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"head": "forest"}, "head 'forest' of a fusion: choose linear, trees or auto"),
        ({"dimensions": "smell"}, "no dimension 'smell'"),
        ({"epochs": 3}, "--set epochs: a fusion takes head, dimensions"),
        ({"interaction": "nowhere"}, "model folder nowhere does not exist"),
        ({"events": "nowhere.csv"}, "events nowhere.csv: no such file"),
    ],
)
def test_settings_that_do_not_exist(changes, message, tmp_path):
    with pytest.raises(ProdsimError, match=message):
        train_recipe(PAIRS, tmp_path / "run", "fusion", changes=changes)
    assert not (tmp_path / "run").exists()


def test_events_of_some_records_say_what_they_lack(tmp_path):
    met = [f"{side}{i}" for i in range(10) for side in "lr"]  # on both sides of the first ten pairs
    seen = [(u, item) for u in range(12) for item in (*met[u % 2 :: 2], "x1")] + [(1, "r30")]
    lines = "".join(f"u{user},{item},view,2024-01-01\n" for user, item in seen)
    (tmp_path / "events.csv").write_text("user,item,kind,time\n" + lines)
    model = train_fusion(PAIRS, tmp_path / "run", **NONE, events=str(tmp_path / "events.csv"), head="linear")
    said = "25% of the validation pairs: 1 items have too few shoppers, 12 events name no record of the data"
    assert model.run["notes"] == [f"behaviour is known for {said}"]
    assert np.isnan(model.measure(PAIRS["test"])["met alike"][10:]).all()
    assert load_model(tmp_path / "run").known.behaviour.unknown == 12


def test_events_about_nothing(tmp_path):
    (tmp_path / "events.csv").write_text("user,item,kind,time\nu1,x1,view,2024-01-01\n")
    with pytest.raises(ProdsimError, match="no event is about a known item: 'x1'"):
        train_fusion(PAIRS, **NONE, events=str(tmp_path / "events.csv"))


def test_command_line(tmp_path, capsys):
    save_pairs(PAIRS, tmp_path / "pairs")
    out, data = str(tmp_path / "run"), str(tmp_path / "pairs")
    assert main(["train", data, "--kind", "fusion", "--set", "meaning=none", "--out", out]) == 0
    assert "threshold" in capsys.readouterr().out
    assert main(["evaluate", out, data, "--json", "--resamples", "50"]) == 0
    assert json.loads(capsys.readouterr().out)["average_precision"] > 0.5
    assert main(["train", data, "--kind", "fusion", "--model", "x", "--out", out]) == 2
    assert "--set model: a fusion takes head" in capsys.readouterr().err
    assert main(["dimensions", "--json"]) == 0
    assert "title words" in capsys.readouterr().out
