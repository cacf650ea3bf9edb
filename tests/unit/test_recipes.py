"Stacks: what the head may and may not do, a model saved whole and read back, runs taken over, one line for a mistake."

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from datasets import DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from little_shop import listing, little_pairs
from sklearn.linear_model import LogisticRegression

from prodsim import recipes
from prodsim.cli import main
from prodsim.comparisons import train_comparisons
from prodsim.core import ProdsimError
from prodsim.data import load_pairs, save_pairs
from prodsim.encoders import Scorer, load_model, score_file, training_pairs
from prodsim.evaluation import expected_threshold, pair_metrics
from prodsim.recipes import (
    Head,
    cross_fitted_logits,
    fit_head,
    load_stack,
    member_changes,
    recipe_names,
    repeated_recipes,
    train_recipe,
    train_stack,
)
from prodsim.training import train

PAIRS = little_pairs()
QUIET = {"progress": False, "log_to": (), "precision": "fp32"}
BI = {"epochs": 3, "batch_size": 24, "learning_rate": 3e-3, "max_length": 32}
TREES = {"rounds": 20, "vocabulary": "known"}


@pytest.fixture(scope="module")
def own(tiny_model):
    "A stack of two quick members."
    return {"comparisons": TREES, "bi": BI | {"model": tiny_model}}


@pytest.fixture(scope="module")
def stack(own, tmp_path_factory):
    "The trained stack and its folder."
    out = tmp_path_factory.mktemp("stack") / "run"
    return train_stack(PAIRS, out, own, **QUIET), out


def said(seed=0, n=200):
    "Two members: one that knows something, one that only makes noise; and the labels."
    random = np.random.default_rng(seed)
    labels = (random.random(n) < 0.3).astype(int)
    return np.column_stack([labels + random.normal(0, 1, n), random.normal(0, 1, n)]), labels


# --- the head


def test_head_is_a_logistic_regression_where_weights_are_positive():
    opinions, labels = said()
    opinions[:, 1] += 0.5 * labels
    head = fit_head(opinions, labels)
    z = (opinions - opinions.mean(axis=0)) / opinions.std(axis=0)
    other = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(z, labels)
    np.testing.assert_allclose(head.weights, other.coef_[0], atol=1e-3)
    np.testing.assert_allclose(head.logits(opinions), other.decision_function(z), atol=5e-3)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_a_member_that_contradicts_gets_no_vote(seed):
    opinions, labels = said(seed)
    head = fit_head(np.column_stack([opinions[:, 0], -opinions[:, 0]]), labels)
    assert head.weights[0] >= 0 and head.weights[1] == 0


def test_shares_add_up_and_scale_of_a_member_does_not_matter():
    opinions, labels = said()
    head = fit_head(opinions, labels)
    np.testing.assert_allclose(head.shares(opinions).sum(axis=1), head.logits(opinions))
    scaled = opinions * [7.0, 1.0] + [3.0, 0.0]
    np.testing.assert_allclose(fit_head(scaled, labels).logits(scaled), head.logits(opinions), atol=1e-3)
    silent = np.column_stack([opinions[:, 0], np.ones(len(labels))])
    assert np.isfinite(fit_head(silent, labels).logits(silent)).all(), "a member that always says the same"


def test_cross_fitted_scores_come_from_heads_that_did_not_see_them():
    opinions, labels = said(n=60)
    scores = cross_fitted_logits(opinions, labels, seed=3)
    np.testing.assert_array_equal(scores, cross_fitted_logits(opinions, labels, seed=3))
    turned = labels.copy()
    turned[7] = 1 - turned[7]  # a pair's own label does not reach its own score, save through the folds' balance
    head = fit_head(opinions, labels)
    assert abs(scores - head.logits(opinions)).max() > 1e-6
    assert np.corrcoef(scores, head.logits(opinions))[0, 1] > 0.95
    with pytest.raises(ProdsimError, match="0 pairs of one class"):
        cross_fitted_logits(opinions, np.zeros(60, dtype=int))
    with pytest.raises(ProdsimError, match="1 pairs of one class"):
        cross_fitted_logits(opinions, np.eye(60, dtype=int)[0])


# --- a trained stack


def test_threshold_and_metrics_are_those_of_held_out_validation_scores(stack):
    model, _ = stack
    labels = np.asarray(PAIRS["valid"]["label"])
    logits = cross_fitted_logits(recipes.opinions(model.members, PAIRS["valid"]), labels, 0)
    held_out = 1 / (1 + np.exp(-logits))
    assert model.threshold == pytest.approx(1 / (1 + np.exp(-expected_threshold(labels, logits))), abs=1e-6)
    measured = pair_metrics(labels, held_out, model.threshold)
    assert model.run["valid"]["average_precision"] == pytest.approx(measured["average_precision"])
    assert set(model.run["subsets"]) == {"comparisons", "bi", "comparisons + bi"}
    assert model.run["subsets"]["comparisons + bi"] == model.run["valid"]


def test_round_trip_is_exact_and_members_open_alone(stack):
    model, out = stack
    scores = model.score(PAIRS["test"])
    assert scores.dtype == np.float32 and 0 <= scores.min() <= scores.max() <= 1
    for opened in (load_model(out, precision="fp32"), load_stack(out, precision="fp32")):
        np.testing.assert_array_equal(opened.score(PAIRS["test"]), scores)
        assert (opened.kind, opened.threshold, opened.head) == ("stack", model.threshold, model.head)
    assert {load_model(out / "members" / m).kind for m in model.members} == {"comparisons", "bi"}
    assert not out.with_name("run.partial").exists()
    assert len(model.score(PAIRS["test"].select([]))) == 0


def test_same_seed_same_stack(stack, own, tmp_path):
    model, _ = stack
    again = train_stack(PAIRS, tmp_path / "run", own, **QUIET)
    assert again.head == model.head and again.threshold == model.threshold
    np.testing.assert_array_equal(again.score(PAIRS["test"]), model.score(PAIRS["test"]))
    other = train_stack(PAIRS, tmp_path / "other", own, seed=1, **QUIET)
    assert other.head != model.head


def test_a_file_in_chunks_gets_the_scores_of_the_whole(stack, tmp_path):
    model, _ = stack
    PAIRS["test"].to_pandas().to_csv(tmp_path / "pairs.csv", index=False)
    score_file(model, tmp_path / "pairs.csv", tmp_path / "scores.csv", chunk_rows=7)
    table = pd.read_csv(tmp_path / "scores.csv")
    whole = model.score(PAIRS["test"])
    np.testing.assert_allclose(table["score"], whole, atol=1e-5)
    far = abs(whole - model.threshold) > 1e-4
    assert (table["match"] == (whole >= model.threshold))[far].all()


def test_explanation_adds_up_to_the_log_odds(stack):
    model, _ = stack
    shares = model.explain(PAIRS["test"])
    assert list(shares) == ["comparisons", "bi", "base"]
    np.testing.assert_allclose(1 / (1 + np.exp(-shares.sum(axis=1))), model.score(PAIRS["test"]), atol=1e-5)


def test_runs_are_taken_over_and_interrupted_work_goes_on(own, tiny_model, tmp_path, monkeypatch):
    train(PAIRS, tmp_path / "bi", "bi", **own["bi"], **QUIET)
    train_comparisons(PAIRS, tmp_path / "trees", **TREES)
    before = listing(tmp_path)
    started = [tmp_path / "bi", tmp_path / "trees"]
    monkeypatch.setattr(recipes, "_weigh", lambda *args: 1 / 0)  # dies when all members are there
    with pytest.raises(ZeroDivisionError):
        train_stack(PAIRS, tmp_path / "run", own, start=started[:1], **QUIET)
    monkeypatch.undo()
    with pytest.raises(ProdsimError, match="holds an interrupted run"):
        train_stack(PAIRS, tmp_path / "run", own, start=started[:1], **QUIET)
    trees = (tmp_path / "run.partial" / "comparisons" / "run.json").stat().st_mtime_ns
    model = train_stack(PAIRS, tmp_path / "run", own, start=started[:1], resume=True, **QUIET)
    assert (tmp_path / "run/members/comparisons/run.json").stat().st_mtime_ns == trees, "not trained again"
    assert model.run["taken_over"] == ["bi"]
    both = train_stack(PAIRS, tmp_path / "both", own, start=started, **QUIET)
    assert both.run["taken_over"] == ["bi", "comparisons"] and both.head == model.head
    after = listing(tmp_path)
    assert {k: after[k] for k in before} == before, "what was taken over stays as it was"
    assert train_stack(PAIRS, tmp_path / "both", own, resume=True, **QUIET).head == model.head
    with pytest.raises(ProdsimError, match="other arguments .seed: 0 there, 1 now."):
        train_stack(PAIRS, tmp_path / "both", own, seed=1, resume=True, **QUIET)
    with pytest.raises(ProdsimError, match="none of the members .*seed: 0 there, 1 now"):
        train_stack(PAIRS, tmp_path / "third", own, seed=1, start=started, **QUIET)
    assert not (tmp_path / "third").exists() and not (tmp_path / "third.partial").exists()


def test_a_stack_begins_where_another_one_ended(own, tmp_path):
    more = own | {"bi": own["bi"] | {"runs": 2}}
    whole = train_stack(PAIRS, tmp_path / "whole", more, **QUIET)
    short = train_stack(PAIRS, tmp_path / "short", own, **QUIET)
    model = train_stack(PAIRS, tmp_path / "run", more, start=[tmp_path / "short"], **QUIET)
    assert model.run["taken_over"] == ["comparisons"] and model.head == whole.head
    runs = model.members["bi"].run["runs"]
    assert len(runs) == 2 and runs[0]["seconds"] == short.members["bi"].run["seconds"], (
        "the first was not trained again"
    )
    other = train_stack(PAIRS, tmp_path / "other", {"bi": own["bi"] | {"epochs": 1}}, **QUIET)
    assert list(other.members) == ["bi"]
    with pytest.raises(ProdsimError, match="start .*other is none of the members .bi: epochs: 1 there"):
        train_stack(PAIRS, tmp_path / "third", more, start=[tmp_path / "other"], **QUIET)
    assert not (tmp_path / "third").exists() and not (tmp_path / "third.partial").exists()


def test_cross_encoder_starts_from_the_bi_encoder_beside_it(tiny_model, tmp_path):
    start = {"model": tiny_model, "dropout": 0.0}
    members = {
        "bi": start | {"epochs": 2},
        "cross": start | {"start_epochs": 2, "epochs": 1, "batch_size": 16, "learning_rate": 5e-3, "max_length": 64},
    }
    model = train_stack(PAIRS, tmp_path / "run", members, **QUIET)
    assert model.members["cross"].run["start"]["history"] == model.members["bi"].run["history"]
    spent = {m: r["seconds"] for m, r in model.run["members"].items()}
    assert spent["cross"] <= model.run["seconds"] + 0.2 and spent["cross"] > spent["bi"]


# --- the table of recipes


def test_steps_become_epochs():
    assert member_changes({"epochs": "80 steps"}, 1280, 128) == {"epochs": 8}
    assert member_changes({"epochs": "80 steps"}, 10**6, 128) == {"epochs": 1}
    assert member_changes({"epochs": "80 steps"}, 20, 128) == {"epochs": 80}
    assert member_changes({"epochs": 3}, 20, 128) == {"epochs": 3}


def test_every_kind_of_model_is_a_scorer(stack):
    model, _ = stack
    assert isinstance(model, Scorer) and all(isinstance(member, Scorer) for member in model.members.values())
    assert not isinstance(model.head, Scorer)


def test_a_trainer_of_another_package_is_asked_for_its_own_fields_only(tmp_path, monkeypatch):
    asked = []

    def majority(data, out, *, seed=0, names=None, resume=False, smoothing=1.0):
        asked.append((seed, smoothing))

    monkeypatch.setattr(recipes, "trainers", lambda: {"majority": type("Entry", (), {"load": lambda self: majority})()})
    train_recipe(PAIRS, tmp_path / "run", "majority", changes={"smoothing": 2.0}, seed=3, precision="fp32")
    assert asked == [(3, 2.0)]
    with pytest.raises(ProdsimError, match="--epochs is of encoders: recipe majority takes --seed, .*smoothing"):
        train_recipe(PAIRS, tmp_path / "run", "majority", changes={"epochs": 2})


def test_what_a_recipe_repeats():
    assert repeated_recipes("best") == ("products", "fast") and repeated_recipes("cross") == ()
    assert repeated_recipes("long") == ("products", "bi")
    assert repeated_recipes("three") == ("comparisons", "bi", "cross-start")
    assert repeated_recipes("fast") == ("products",), "its bi-encoder is a shorter one"
    assert repeated_recipes("cross-start") == ("bi",), "its start is that very run"
    assert repeated_recipes("cross", {"start_epochs": 3}) == () == repeated_recipes("bi")
    assert repeated_recipes("best", {"model": "bert"}) == ()
    assert set(recipe_names()) >= {"best", "fast", "comparisons", "bi", "cross", "bi-pairs", "cross-pairs"}


@pytest.mark.parametrize(
    "recipe, options, message",
    [
        ("worst", {}, "recipe 'worst' is unknown: choose one of best, fast, long, three, comparisons"),
        ("comparisons", {"changes": {"epochs": 3}}, "--epochs is of encoders"),
        ("comparisons", {"changes": {"drop": "colours"}}, "drop 'colours': choose from words"),
        ("comparisons", {"changes": {"vocabulary": "latin"}}, "vocabulary 'latin'"),
        ("comparisons", {"max_minutes": 0}, "--max-minutes is of encoders"),
        ("best", {"changes": {"epochs": 3}}, "--epochs is of encoders"),
        ("best", {"max_minutes": 1.0}, "--max-minutes is of encoders"),
        ("bi", {"start": ["a", "b"]}, "starts from one run, not from 2"),
    ],
)
def test_a_mistake_gets_one_line_before_anything_is_written(recipe, options, message, tmp_path):
    with pytest.raises(ProdsimError, match=message):
        train_recipe(PAIRS, tmp_path / "run", recipe, **options)
    assert not any(tmp_path.iterdir())


def test_a_stack_refuses_bad_pairs_and_members(own, tmp_path, monkeypatch):
    one_class = PAIRS["valid"].filter(lambda row: row["label"] == 0)
    with pytest.raises(ProdsimError, match="split valid has .* of one class"):
        train_stack(DatasetDict(train=PAIRS["train"], valid=one_class), tmp_path / "run", own)
    first = PAIRS["valid"]["label"].index(1)
    single = PAIRS["valid"].select([i for i, y in enumerate(PAIRS["valid"]["label"]) if y == 0 or i == first])
    with pytest.raises(ProdsimError, match="1 pairs of one class"):
        train_stack(DatasetDict(train=PAIRS["train"], valid=single), tmp_path / "run", own)
    for members in ({"best": {}}, {"tarot": {}}):
        with pytest.raises(ProdsimError, match="no recipe that a stack can hold"):
            train_stack(PAIRS, tmp_path / "run", members)
    with pytest.raises(ProdsimError, match="recipe 'bi' is no stack"):
        train_stack(PAIRS, tmp_path / "run", "bi")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProdsimError, match="has no weights"):
        train_stack(PAIRS, tmp_path / "run", own | {"bi": {"model": str(tmp_path / "empty")}}, **QUIET)
    (tmp_path / "empty").rmdir()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ProdsimError, match="without torchrun"):
        train_stack(PAIRS, tmp_path / "run", own)
    assert not any(tmp_path.iterdir())


def test_a_damaged_folder_gets_one_line(stack, tmp_path):
    _, out = stack
    broken = tmp_path / "run"
    shutil.copytree(out, broken)
    shutil.rmtree(broken / "members" / "bi")
    with pytest.raises(ProdsimError, match="members/bi does not exist"):
        load_model(broken)
    run = json.loads((broken / "run.json").read_text())
    (broken / "run.json").write_text(json.dumps({k: v for k, v in run.items() if k != "head"}))
    with pytest.raises(ProdsimError, match="no head that this version"):
        load_model(broken)
    assert Head(**run["head"]).bias == run["head"]["bias"]


def test_command_line(own, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(recipes.STACKS, "fast", own)
    save_pairs(PAIRS, tmp_path / "pairs")
    data, out = str(tmp_path / "pairs"), str(tmp_path / "run")
    assert main(["train", data, "--recipe", "fast", "--out", out, "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["kind"] == "stack" and trained["steps"] > 0
    assert main(["evaluate", out, data, "--json", "--resamples", "20"]) == 0
    assert json.loads(capsys.readouterr().out)["threshold"] == pytest.approx(trained["threshold"])
    assert main(["score", out, f"{data}/test.csv", "--out", str(tmp_path / "scores.csv")]) == 0
    assert main(["embed", out, f"{data}/test.csv", "--out", str(tmp_path / "e.npy")]) == 2
    assert "kind stack scores pairs" in capsys.readouterr().err
    trees = ["train", data, "--recipe", "comparisons", "--out", str(tmp_path / "trees"), "--set", "rounds=5"]
    assert main([*trees, "--set", "drop=codes,numbers"]) == 0 and "5 steps" in capsys.readouterr().out
    assert main([*trees, "--set", "drop"]) == 2 and "a field and its value" in capsys.readouterr().err


# --- weights of training pairs


def weighed(weights):
    return DatasetDict({**PAIRS, "train": PAIRS["train"].add_column("weight", list(map(float, weights)))})


@pytest.mark.parametrize("name", ["comparisons", "cross-pairs", "bi"])
def test_a_pair_of_weight_zero_is_as_if_it_were_not_there(name, tiny_model, tmp_path):
    wrong = np.arange(len(PAIRS["train"])) % 3 == 0  # every third label is turned round, and weighs nothing
    turned = [1 - y if w else y for y, w in zip(PAIRS["train"]["label"], wrong, strict=True)]
    flipped = PAIRS["train"].remove_columns("label").add_column("label", turned)
    options = {"changes": TREES} if name == "comparisons" else {"max_minutes": None, **QUIET}
    if name != "comparisons":
        options["changes"] = {"model": tiny_model, "epochs": 1, "batch_size": 8, "max_length": 48, "dropout": 0.0}

    def scores(train_split, weights=None):
        pairs = DatasetDict({**PAIRS, "train": train_split})
        if weights is not None:
            pairs["train"] = train_split.add_column("weight", weights)
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        return train_recipe(pairs, out, name, **options).score(PAIRS["test"])

    zero, right = (1.0 - wrong).tolist(), PAIRS["train"]
    np.testing.assert_allclose(scores(flipped, zero), scores(right, zero), atol=1e-6)
    assert abs(scores(flipped) - scores(right)).max() > 1e-6, "unweighted, the wrong labels matter"
    np.testing.assert_allclose(scores(right, [2.0] * len(wrong)), scores(right), atol=1e-5)


def test_weights_are_read_from_files_and_noted(tmp_path):
    pairs = weighed(np.arange(96) % 4)
    save_pairs(pairs, tmp_path)
    read = load_pairs(tmp_path)
    assert read["train"]["weight"] == pairs["train"]["weight"] and "weight" not in read["test"].column_names
    noted, plain = (training_pairs(p)[1] for p in (read, PAIRS))
    assert set(noted) - set(plain) == {"weights"} and noted["data_hash"] == plain["data_hash"]
    path = tmp_path / "train.csv"
    path.write_text(path.read_text().replace(",1.0\n", ",heavy\n", 1))
    with pytest.raises(ProdsimError, match="the weight is 'heavy'; it must be a number"):
        load_pairs(tmp_path)


NO_WEIGHTS = {
    "row 0: -1.0": [-1.0] * 96,
    "a class has none above 0": [0.0] * 96,
    "a class has none": [1.0 - y for y in PAIRS["train"]["label"]],  # no match that counts
}


@pytest.mark.parametrize("message, weights", NO_WEIGHTS.items())
def test_weights_that_are_none(weights, message):
    with pytest.raises(ProdsimError, match=message):
        training_pairs(weighed(weights))
