"""Fine-tuning: the same numbers again, the bare loop's weights, and what a kill, a full disk or a bad option leaves."""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from little_shop import die, exit_code, listing, little_pairs, on_touch, quiet_call

from prodsim import training
from prodsim.cli import main
from prodsim.contrastive import ContrastiveLoss
from prodsim.core import ProdsimError, revision, seed_everything
from prodsim.data import attributes, data_hash, save_pairs
from prodsim.encoders import DEFAULT_MODEL, load_model, mark_shared, pretrained, read_run, unknown_share
from prodsim.evaluation import best_threshold, pair_metrics
from prodsim.training import (
    COMPLETE,
    LengthGroupedBatches,
    PairLoss,
    Recipe,
    drawn_negatives,
    make_recipe,
    plot_history,
    train,
)

PAIRS = little_pairs()
BI = {"recipe": "bi-pairs", "epochs": 4, "batch_size": 16, "learning_rate": 3e-3, "max_length": 32}
CROSS = {"recipe": "cross-pairs", "epochs": 4, "batch_size": 8, "learning_rate": 5e-3, "max_length": 64, "dropout": 0.0}
GROUPS = BI | {"recipe": "bi", "batch_size": 24}
SOUP = GROUPS | {"runs": 2, "epochs": 2}
WARM = CROSS | {"recipe": "cross", "start_epochs": 2, "epochs": 2, "dropout": 0.1}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "As the child processes: a sum over two threads may differ in its last digit from a sum over one."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fit(tiny_model, tmp_path):
    "Train the tiny model on the little pairs, quietly, into a folder of the test's own."

    def run(out="run", data=PAIRS, base=BI, **options):
        options = {"model": tiny_model, "progress": False, "log_to": (), "precision": "fp32", **base, **options}
        return train(data, tmp_path / out, **options)

    return run


def outcome(folder):
    "What must not depend on when, how often or where a run was interrupted."
    model = load_model(folder)
    kept = ("valid", "best_metric", "threshold", "history", "steps", "stopped")
    return {k: model.run[k] for k in kept}, model.score(PAIRS["test"]).tolist()


def message(call, *args, **kwargs):
    with pytest.raises(ProdsimError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the same command twice


@pytest.mark.parametrize("base", [BI, CROSS, GROUPS, WARM], ids=["bi", "cross", "groups", "warm"])
def test_same_seed_same_digits_other_seed_other_digits(fit, tmp_path, base):
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit(out, base=base, seed=seed, epochs=2)
    a, b, c = (outcome(tmp_path / out) for out in "abc")
    assert a == b
    assert len(set(a[1])) > 20, "constant scores would be equal without proving anything"
    assert a[1] != c[1] and a[0]["history"] != c[0]["history"]


def test_lone_records_of_both_sides_are_another_training(fit, tmp_path):
    scores = [fit(f"{one}", base=GROUPS, epochs=1, one_side=one).score(PAIRS["test"]) for one in (True, False)]
    assert not np.array_equal(*scores)


def test_saved_model_is_the_returned_one(fit, tmp_path):
    model = fit(epochs=2)
    loaded = load_model(tmp_path / "run", precision="fp32")
    assert loaded.threshold == model.threshold and loaded.text_format == model.text_format
    assert loaded.text_format.attributes == ("title", "price")
    np.testing.assert_array_equal(loaded.score(PAIRS["test"]), model.score(PAIRS["test"]))
    assert model.score(PAIRS["test"].select(range(0))).shape == (0,)


# --- the Trainer does what twenty lines do


@pytest.mark.parametrize("kind", ["bi", "cross"])
def test_trainer_reaches_the_weights_of_a_bare_loop(fit, tiny_model, kind):
    base = {"bi": BI, "cross": CROSS}[kind] | {"dropout": 0.0, "weight_decay": 0.0, "epochs": 3}
    trained = fit(base=base, seed=5)
    recipe = make_recipe(f"{kind}-pairs", model=tiny_model, **{k: v for k, v in base.items() if k != "recipe"})

    seed_everything(5)
    model = pretrained(tiny_model, kind, ["title", "price"], recipe.max_length, "cpu", recipe.dropout, "fp32")
    left, right = model.pair_texts(PAIRS["train"])
    lengths = [
        len(model.tokenizer(a)["input_ids"]) + len(model.tokenizer(b)["input_ids"])
        for a, b in zip(left, right, strict=True)
    ]
    batches = LengthGroupedBatches(left, recipe.batch_size, lengths, seed=5)
    loss = PairLoss(model.encoder, recipe)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
    steps = recipe.epochs * len(batches)
    warm = int(np.ceil(recipe.warmup * steps))
    share = lambda step: step / warm if step < warm else (steps - step) / (steps - warm)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    weights = {}
    for epoch in range(recipe.epochs):
        batches.set_epoch(epoch)
        model.encoder.train()
        for batch in batches:
            texts = [left[i] for i in batch], [right[i] for i in batch]
            inputs = texts if kind == "cross" else [model.encoder.preprocess(side) for side in texts]
            loss(inputs, torch.tensor([PAIRS["train"]["label"][i] for i in batch])).backward()
            torch.nn.utils.clip_grad_norm_(model.encoder.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        weights[(epoch + 1) * len(batches)] = {k: v.clone() for k, v in model.encoder.state_dict().items()}

    kept = weights[trained.run["best_metric"]["step"]]
    start = pretrained(tiny_model, kind, ["title"], 32, "cpu", 0.0).encoder.state_dict()
    for name, value in trained.encoder.state_dict().items():
        torch.testing.assert_close(
            value, kept[name], rtol=1e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    moved = max(
        (kept[n] - start[n]).abs().max().item() for n in start if kept[n].is_floating_point() and "classifier" not in n
    )
    assert moved > 1e-2, "weights that hardly moved would agree with anything"


# --- batches


lengths_and_size = st.tuples(st.lists(st.integers(1, 300), min_size=1, max_size=300), st.integers(1, 17))


@settings(max_examples=60, deadline=None)
@given(lengths_and_size, st.integers(0, 99), st.integers(0, 9), st.integers(1, 5))
def test_batches_hold_every_pair_once(case, seed, epoch, blocks):
    lengths, size = case
    sampler = LengthGroupedBatches(lengths, size, lengths, seed=seed, blocks=blocks)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert len(batches) == len(sampler) == -(-len(lengths) // size)
    assert sorted(map(len, batches))[1:] == [size] * (len(batches) - 1), "at most one batch is not full"
    whole = LengthGroupedBatches(lengths, size, lengths, drop_last=True, seed=seed, blocks=blocks)
    assert len(list(whole)) == len(whole) and all(len(b) == size for b in whole)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=200), st.floats(0, 5), st.integers(1, 17), st.integers(0, 9))
def test_drawn_non_matches_change_every_epoch_and_matches_never_miss(labels, negatives, size, seed):
    labels = np.array(labels)
    lengths = np.random.default_rng(seed).integers(5, 200, len(labels))
    sampler = LengthGroupedBatches(lengths, size, lengths, seed=seed, labels=labels, negatives=negatives)
    matches, others = set(np.flatnonzero(labels == 1)), set(np.flatnonzero(labels == 0))
    wanted = len(others) if negatives == 0 else min(len(others), max(1, int(np.ceil(negatives * len(matches)))))
    met = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) and batches == list(sampler)
        read = [i for b in batches for i in b]
        assert len(read) == len(set(read)) and matches <= set(read), "each pair once at most, each match once"
        met.append(frozenset(set(read) - matches))
        assert len(met[-1]) == wanted and met[-1] <= others
    if 20 < wanted < len(others) - 20:
        assert met[0] != met[1]


def test_a_loss_on_drawn_pairs_is_lowest_at_the_odds_of_all_pairs():
    """Of a thousand like pairs 100 match; an epoch reads all of them and 300 of the 900 others: the best logit is that
    of 100 in 1000, not of 100 in 400."""
    labels, recipe = np.r_[np.ones(100), np.zeros(900)], make_recipe("cross-pairs", negatives=3.0)
    drawn = drawn_negatives(labels, recipe.negatives)
    assert drawn == 300 and drawn_negatives(labels, 0) == drawn_negatives(labels, 20) == 900

    class Constant(torch.nn.Module):
        device, logit = "cpu", torch.nn.Parameter(torch.zeros(()))

        def preprocess(self, pairs):
            return {"n": len(pairs)}

        def forward(self, tokens):
            return {"scores": self.logit.expand(tokens["n"])}

    model = Constant()
    loss = PairLoss(model, recipe, drawn / 900)
    optimizer = torch.optim.LBFGS([model.logit], max_iter=50, line_search_fn="strong_wolfe")
    read = torch.tensor([1.0] * 100 + [0.0] * drawn)

    def closure():
        optimizer.zero_grad()
        value = loss([[""] * 400, [""] * 400], read)
        value.backward()
        return value

    optimizer.step(closure)
    assert model.logit.item() == pytest.approx(np.log(100 / 900), abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 50))
def test_batches_follow_seed_and_epoch_and_pad_less(seed, epoch):
    lengths = np.random.default_rng(seed).integers(5, 200, 256)

    def order(seed, epoch):
        sampler = LengthGroupedBatches(lengths, 8, lengths, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    here = order(seed, epoch)
    assert here == order(seed, epoch)
    assert here != order(seed, epoch + 1) and here != order(seed + 1, epoch)
    padded = lambda batches: sum(len(b) * lengths[b].max() for b in batches)  # noqa: E731
    shuffled = np.random.default_rng(seed).permutation(256).reshape(-1, 8)
    assert padded(here) < 0.8 * padded(shuffled)


def test_the_trainer_uses_another_order_in_every_epoch(fit, monkeypatch):
    seen = []
    original = PairLoss.forward

    def record(self, inputs, labels, **rest):
        seen.append(tuple(labels.tolist()))
        return original(self, inputs, labels, **rest)

    monkeypatch.setattr(PairLoss, "forward", record)
    fit(epochs=2, batch_size=32)
    assert len(seen) == 6 and sum(len(s) for s in seen) == 192
    assert sorted(seen[:3]) != sorted(seen[3:])


# --- kill and resume


def train_and_die(out, options, touch=None, step=None, log=None):
    """In a child: train, and die before touching the run's files for the n-th time, at the n-th touch of a kind
    (event, part of the path, n), or in the n-th forward pass; else note the touches."""
    torch.set_num_threads(1)
    touched, alike = [], []

    def act(n, event, paths):
        touched.append([event, *paths])
        if isinstance(touch, tuple) and event == touch[0] and touch[1] in " ".join(paths) + " ":
            alike.append(n)
        if n == touch or isinstance(touch, tuple) and len(alike) == touch[2]:
            die()

    on_touch(out, act)
    if step is not None:
        calls = iter(range(step))

        def dying(forward):
            def until_then(*args, **kwargs):
                if next(calls, None) is None:
                    die()
                return forward(*args, **kwargs)

            return until_then

        for loss in (PairLoss, ContrastiveLoss):
            loss.forward = dying(loss.forward)
    train(PAIRS, out, **options)
    if log:
        Path(log).write_text(json.dumps(touched))


def killed(*args):
    assert exit_code(train_and_die, *args) == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole_run(tiny_model, tmp_path_factory):
    "An uninterrupted run of each kind: options, outcome, and the files it touched, in order."
    known, patient = {}, CROSS | {"dropout": 0.1, "epochs": 12, "patience": 2}

    def run(kind):
        if kind not in known:
            base = {"bi": BI, "cross": patient, "warm": WARM, "soup": SOUP}[kind]
            options = {"model": tiny_model, "progress": False, "log_to": (), "precision": "fp32", **base}
            folder = tmp_path_factory.mktemp("whole")
            assert exit_code(train_and_die, folder / "run", options, None, None, folder / "touched.json") == 0
            touched = json.loads((folder / "touched.json").read_text())
            known[kind] = options, outcome(folder / "run"), touched
        return known[kind]

    return run


MOMENTS = {
    "before the arguments are noted": ("os.rename", "arguments.json", 1),
    "in the first checkpoint": ("open", "trainer_state.json", 1),
    "before the first mark": ("os.rename", f"/{COMPLETE} ", 1),
    "while an old checkpoint is removed": ("os.rmdir", "checkpoint-", 1),
    "in the last checkpoint": ("open", "trainer_state.json", 4),
    "after the last checkpoint": ("os.mkdir", "/finished ", 1),
    "in the finished model": ("os.rename", "/finished/run.json", 1),
    "before the model stands at its place": ("os.rename", "/finished ", 1),
    "while the work is removed": ("os.rmdir", "run.partial ", 1),
}


def resume_and_compare(out, options, expected):
    if out.exists():
        assert outcome(out) == expected, "what stands at OUT is whole"
    train(PAIRS, out, resume=True, **options)
    assert outcome(out) == expected
    assert [p.name for p in out.parent.iterdir()] == [out.name], "nothing is left beside the model"


# the other moments stand for these, and random ones follow
RARE = ("in the first checkpoint", "in the finished model", "before the model stands at its place")


@pytest.mark.parametrize("moment", [pytest.param(m, marks=[pytest.mark.slow] * (m in RARE)) for m in MOMENTS])
def test_killed_while_writing_and_resumed_is_as_never_interrupted(tmp_path, whole_run, moment):
    options, expected, _ = whole_run("bi")
    killed(tmp_path / "run", options, MOMENTS[moment])
    resume_and_compare(tmp_path / "run", options, expected)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(s, marks=pytest.mark.slow) for s in range(2, 22))])
@pytest.mark.parametrize("kind", ["bi", "cross", "warm", "soup"])
def test_killed_at_a_random_moment_and_resumed(tmp_path, whole_run, kind, seed):
    options, expected, touched = whole_run(kind)
    dice = random.Random(f"{kind}{seed}")
    if seed % 2:
        killed(tmp_path / "run", options, None, dice.randrange(expected[0]["steps"]))
    else:
        killed(tmp_path / "run", options, dice.randint(1, len(touched)))
    resume_and_compare(tmp_path / "run", options, expected)


def test_a_start_is_made_once_and_may_be_given(fit, tmp_path):
    whole = fit("whole", base=WARM, seed=3)
    options = {k: v for k, v in GROUPS.items() if k != "recipe"}
    started = training.start_recipe(
        make_recipe("cross", start_epochs=2, model=whole.run["arguments"]["recipe"]["model"])
    )
    fit("start", base={"recipe": started}, seed=3)
    given = fit("given", base=WARM, seed=3, start=tmp_path / "start")
    assert outcome(tmp_path / "given") == outcome(tmp_path / "whole")
    assert given.run["start"] == whole.run["start"] and given.run["start"]["steps"] > 0
    assert "seed: 3 there, 4 now" in message(fit, "other", base=WARM, seed=4, start=tmp_path / "start")
    assert "is not a finished run of kind bi" in message(fit, "other", base=WARM, start=tmp_path / "whole")
    assert "has no start" in message(fit, "other", base=CROSS, start=tmp_path / "start")
    assert "epochs" in message(fit, "other", base={"recipe": "cross"}, seed=3, start=tmp_path / "start", **options)
    assert not (tmp_path / "other").exists() and not (tmp_path / "other.partial").exists()


def test_runs_are_averaged(fit, tmp_path):
    soup = fit("soup", base=SOUP, seed=3)
    alone = [fit(f"alone-{seed}", base=SOUP, runs=1, seed=seed) for seed in (3, 1003)]
    states = [m.encoder.state_dict() for m in (*alone, soup)]
    for a, b, mean in zip(*(s.values() for s in states), strict=True):
        torch.testing.assert_close(mean, (a.double() + b.double()).div(2).to(mean.dtype))
    assert any((a != b).any() for a, b in zip(*(s.values() for s in states[:2]), strict=True)), "seeds differ"
    run, labels = soup.run, np.array(PAIRS["valid"]["label"])
    assert run["valid"] == pair_metrics(labels, soup.score(PAIRS["valid"]), soup.threshold)
    assert [r["seed"] for r in run["runs"]] == [3, 1003] and [r["valid"] for r in run["runs"]] == [
        m.run["valid"] for m in alone
    ]
    assert run["steps"] == sum(m.run["steps"] for m in alone) == run["history"][-1]["step"]
    given = fit("given", base=SOUP, seed=3, start=tmp_path / "alone-3")
    assert outcome(tmp_path / "given") == outcome(tmp_path / "soup")
    assert given.run["runs"][0]["seconds"] == alone[0].run["seconds"], "taken over, not trained again"
    assert fit("soup", base=SOUP, seed=3, resume=True).run["runs"] == run["runs"]
    assert "seed: 1003 there, 3 now" in message(fit, "other", base=SOUP, seed=3, start=tmp_path / "alone-1003")
    assert "has a head of its own" in message(fit, "other", base=CROSS, runs=2)
    assert "runs is 0" in message(fit, "other", base=SOUP, runs=0)
    assert "[UNK]" in message(fit, "other", base=SOUP, unknown_limit=-1.0)
    assert not (tmp_path / "other").exists() and not (tmp_path / "other.partial").exists()
    short = fit("short", base=SOUP, max_minutes=0.0)
    assert short.run["stopped"].startswith("after 0 min") and len(short.run["runs"]) == 2


def test_a_cross_encoder_reads_pairs_in_both_orders(tiny_model):
    model = pretrained(tiny_model, "cross", ["title"], 64, "cpu", 0.0, "fp32")
    read = []
    loss = PairLoss(model.encoder.train(), make_recipe("cross-pairs", swap=0.5))
    original = model.encoder.preprocess
    model.encoder.preprocess = lambda pairs: (read.extend(map(tuple, pairs)), original(pairs))[1]
    torch.manual_seed(0)
    for _ in range(10):
        loss([["a"] * 8, ["b"] * 8], torch.zeros(8))
    assert 20 < read.count(("b", "a")) < 60 and read.count(("a", "b")) + read.count(("b", "a")) == 80
    read.clear()
    model.encoder.eval()
    loss([["a"] * 8, ["b"] * 8], torch.zeros(8))
    assert read == [("a", "b")] * 8


@pytest.mark.parametrize("last", [True, False], ids=["when it has decided", "while it waits"])
def test_early_stopping_counts_on_after_a_resume(tmp_path, whole_run, last):
    options, expected, _ = whole_run("cross")
    epochs = expected[0]["steps"] // 12
    assert epochs < 12 and "no better" in expected[0]["stopped"], "it must stop early for this to mean anything"
    killed(
        tmp_path / "run",
        options,
        MOMENTS["after the last checkpoint"] if last else ("open", "trainer_state.json", epochs),
    )
    resume_and_compare(tmp_path / "run", options, expected)


def test_an_older_model_stands_until_the_new_one_is_whole(tmp_path, whole_run):
    options, expected, _ = whole_run("bi")
    out = tmp_path / "run"
    train(PAIRS, out, **options | {"seed": 7, "epochs": 1})
    old = outcome(out)
    assert old != expected
    killed(out, options, MOMENTS["in the last checkpoint"])
    assert outcome(out) == old
    killed(out, options | {"resume": True}, MOMENTS["before the model stands at its place"])
    assert not out.exists(), "between the two renames: the old model stands aside"
    assert outcome(out) == old, "and comes back when it is asked for"
    train(PAIRS, out, resume=True, **options)
    assert outcome(out) == expected
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_half_written_checkpoint_is_ignored(tmp_path, whole_run):
    options, expected, _ = whole_run("bi")
    out, work = tmp_path / "run", tmp_path / "run.partial"
    killed(out, options, MOMENTS["in the last checkpoint"])
    names = {p.name for p in work.glob("checkpoint-*")}
    whole = {n for n in names if (work / n / COMPLETE).exists()}
    assert whole and names - whole == {"checkpoint-24"}
    (work / "checkpoint-9999").mkdir()
    (work / "checkpoint-9999" / "model.safetensors").write_bytes(b"half")
    assert training.last_checkpoint(work).name == "checkpoint-18"
    assert {p.name for p in work.glob("checkpoint-*")} == whole
    resume_and_compare(out, options, expected)


def test_resume_needs_the_same_arguments(tmp_path, whole_run):
    options = whole_run("bi")[0]
    out = tmp_path / "run"
    killed(out, options, MOMENTS["in the first checkpoint"])
    before = listing(tmp_path)
    said = message(train, PAIRS, out, resume=True, **options | {"seed": 3, "epochs": 9})
    assert "epochs: 4 there, 9 now" in said and "seed: 0 there, 3 now" in said and "learning_rate" not in said
    assert "data_hash" in message(train, little_pairs(1), out, resume=True, **options)
    assert "--resume" in message(train, PAIRS, out, **options)
    assert listing(tmp_path) == before


def test_resume_of_a_finished_run_returns_it(fit, tmp_path, monkeypatch):
    model = fit(epochs=1)
    before = listing(tmp_path)
    monkeypatch.setattr(training, "_run", lambda *a: pytest.fail("it trained again"))
    again = fit(epochs=1, resume=True)
    assert again.run == read_run(tmp_path / "run") and again.threshold == model.threshold
    assert "epochs: 1 there, 2 now" in message(fit, epochs=2, resume=True)
    assert listing(tmp_path) == before


def test_resume_with_nothing_to_resume_trains(fit):
    assert fit(epochs=1, resume=True).run["resumed"] is False


def test_a_run_begun_here_goes_on_from_elsewhere(tmp_path, whole_run, monkeypatch):
    options, expected, _ = whole_run("bi")
    monkeypatch.chdir(tmp_path)
    killed(Path("run"), options, MOMENTS["in the last checkpoint"])
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    train(PAIRS, Path("../run"), resume=True, **options)
    assert outcome(tmp_path / "run") == expected


# --- stopping


def test_minute_limit_leaves_a_whole_model(fit, tmp_path):
    for minutes in (0, 1e-9):
        model = fit(f"run{minutes}", max_minutes=minutes, epochs=50)
        assert model.run["steps"] == 1 and model.run["stopped"] == f"after {minutes:g} minutes"
        assert load_model(tmp_path / f"run{minutes}").threshold == model.threshold
    assert fit("long", max_minutes=60, epochs=1).run["stopped"] == "all epochs done"


def test_minute_limit_is_kept_by_a_resume(tmp_path, whole_run):
    options = whole_run("bi")[0] | {"max_minutes": 0}
    train(PAIRS, tmp_path / "a" / "run", **options)
    out = tmp_path / "b" / "run"
    killed(out, options, MOMENTS["in the finished model"])
    resume_and_compare(out, options, outcome(tmp_path / "a" / "run"))
    assert read_run(out)["stopped"] == "after 0 minutes" and read_run(out)["steps"] == 1


def test_early_stopping_keeps_the_best_checkpoint(fit, tmp_path):
    model = fit(base=CROSS, epochs=12, patience=2)
    measured = {r["step"]: r["average_precision"] for r in model.run["history"] if "average_precision" in r}
    best = max(measured.values())
    first_best = min(step for step, value in measured.items() if value == best)
    assert "no better average_precision" in model.run["stopped"]
    assert max(measured) == first_best + 2 * 12, "two epochs without a better value, twelve steps each"
    assert model.run["best_metric"] == {"name": "average_precision", "value": best, "step": first_best}
    labels = np.asarray(PAIRS["valid"]["label"])
    scores = load_model(tmp_path / "run", precision="fp32").score(PAIRS["valid"])
    threshold = best_threshold(labels, scores)
    assert model.threshold == threshold
    assert pair_metrics(labels, scores, threshold) == model.run["valid"]
    assert model.run["valid"]["average_precision"] == best != measured[max(measured)]


def test_the_metric_that_chooses_can_be_f1(fit):
    run = fit(base=CROSS, metric="f1").run
    assert run["best_metric"]["value"] == max(r["f1"] for r in run["history"] if "f1" in r) == run["valid"]["f1"]


# --- a full disk


def run_on_a_full_disk(arguments, limit, final, log):
    "In a child: no file may grow beyond `limit` bytes, from the start or only when the finished model is written."
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    original = training.write_model

    def write_model(*args):
        fill()
        return original(*args)

    if final:
        training.write_model = write_model
    else:
        fill()
    sys.exit(quiet_call(log, main, arguments))


@pytest.mark.parametrize(
    "limit, final", [(2**20, False), (6 * 2**20, False), (2**20, True)], ids=["weights", "optimizer", "end"]
)
def test_full_disk_is_one_line_and_the_old_model_stays(fit, tiny_model, tmp_path, limit, final):
    save_pairs(PAIRS, tmp_path / "data")
    out = tmp_path / "run"
    fit(epochs=1, seed=9)
    old = outcome(out)
    options = ["--kind", "bi", "--model", tiny_model, "--epochs", "1", "--precision", "fp32"]
    arguments = ["train", str(tmp_path / "data"), "--out", str(out), *options]
    assert exit_code(run_on_a_full_disk, arguments, limit, final, tmp_path / "log") == 2
    said = (tmp_path / "log.err").read_text()
    assert said.count("\n") == 1 and "no space left" in said and "--resume" in said
    assert (tmp_path / "log.out").read_text() == ""
    assert outcome(out) == old
    assert main([*arguments, "--resume"]) == 0, "space was made: the advice works"
    assert outcome(out) != old and not (tmp_path / "run.partial").exists()


# --- what is refused, before anything is written


def one_class(split):
    return split.filter(lambda row: row["label"] == 0)


CHINESE = {"left_title": "红色真丝连衣裙夏季新款", "right_title": "红色真丝连衣裙女士中长款"}


def chinese():
    pairs = little_pairs(train=16, valid=16, test=4)
    return pairs.map(lambda row: CHINESE).remove_columns(["left_price", "right_price"])


def test_objective_records_looks_at_no_label(fit, tiny_model):
    "The labels of the training pairs turned round: the same weights, and not those it started from."
    turned = PAIRS["train"].map(lambda row: {"label": 1 - row["label"]})
    options = {"base": GROUPS, "objective": "records", "epochs": 1}
    models = [fit(out="a", **options), fit(out="b", data=DatasetDict({**PAIRS, "train": turned}), **options)]
    untouched = pretrained(tiny_model, names=attributes(PAIRS))
    vectors = [m.embed_texts(["acme lamp 40", "zeta desk"]) for m in (*models, untouched)]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


REFUSED = {
    "no valid split": (lambda p: {"data": type(p)({"train": p["train"]})}, "split valid is missing"),
    "no train split": (lambda p: {"data": type(p)({"valid": p["valid"]})}, "split train is missing"),
    "one class in train": (lambda p: {"data": type(p)(p | {"train": one_class(p["train"])})}, "split train has"),
    "one class in valid": (lambda p: {"data": type(p)(p | {"valid": one_class(p["valid"])})}, "split valid has"),
    "an empty split": (lambda p: {"data": type(p)(p | {"valid": p["valid"].select([])})}, "split valid has 0 pairs"),
    "an encoder that cannot read it": (lambda p: {"data": chinese()}, "bert-base-chinese"),
    "an attribute that is not there": (lambda p: {"names": ("title", "colour")}, "'colour'"),
    "no such recipe": (lambda p: {"recipe": "tri"}, "recipe 'tri' is unknown"),
    "no such field": (lambda p: {"epoch": 3}, "no field 'epoch'"),
    "no epochs": (lambda p: {"epochs": 0}, "epochs is 0"),
    "half an epoch": (lambda p: {"epochs": 2.5}, "epochs is 2.5: it must be a whole number"),
    "a text for a number": (lambda p: {"warmup": "much"}, "warmup is 'much': it must be a number"),
    "a rate that is no number": (lambda p: {"learning_rate": float("nan")}, "learning_rate is nan"),
    "dropout of everything": (lambda p: {"dropout": 1.0}, "dropout is 1.0"),
    "fewer than no non-matches": (lambda p: {"negatives": -1.0}, "negatives is -1.0"),
    "non-matches for groups": (lambda p: {"recipe": "bi", "negatives": 3.0}, "objective groups reads no non-matches"),
    "records read twice the same": (lambda p: {"recipe": "bi-records", "dropout": 0.0}, "without dropout"),
    "records for a cross-encoder": (
        lambda p: {"recipe": "cross", "negatives": 0.0, "mark": "", "objective": "records"},
        "objective records: a cross-encoder has no vectors",
    ),
    "marks for a record alone": (lambda p: {"recipe": "bi", "mark": "="}, "a bi-encoder reads a record alone"),
    "a metric that does not choose": (lambda p: {"metric": "recall"}, "choose f1 or average_precision"),
    "an unknown precision": (lambda p: {"precision": "fp8"}, "choose auto, bf16 or fp32"),
    "a seed that torch knows and numpy does not": (lambda p: {"seed": -1}, "seed -1"),
    "room for no text": (lambda p: {"max_length": 4}, "no room"),
    "no such model": (lambda p: {"model": "nobody/nothing"}, "nobody/nothing"),
    "wandb without wandb": (lambda p: {"log_to": ("wandb",)}, "pip install"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_one_line_and_nothing_written(fit, tmp_path, monkeypatch, case):
    options, part = REFUSED[case]
    if "wandb" in case:
        monkeypatch.setattr(training, "find_spec", lambda name: None)
    assert part in message(fit, **options(PAIRS))
    assert list(tmp_path.iterdir()) == []


def test_marks_do_not_hide_what_cannot_be_read(fit, tmp_path):
    "Each shared word brings a mark, which every encoder knows: counted, it would make a sixth a tenth."
    text = "法国复古花 dress women summer 2024 long sleeve 大 连 衣"
    half = little_pairs(train=16, valid=16, test=4).map(lambda row: {"left_title": text, "right_title": text})
    half = half.remove_columns(["left_price", "right_price"])
    share = unknown_share([text], pretrained(DEFAULT_MODEL, "bi", ["title"]).tokenizer)
    marked = mark_shared([text], [text])[0]
    diluted = unknown_share(marked, pretrained(DEFAULT_MODEL, "bi", ["title"]).tokenizer)
    assert diluted < share
    assert "cannot read this text" in message(
        fit, base=CROSS | {"recipe": "cross"}, data=half, unknown_limit=(diluted + share) / 2, model=DEFAULT_MODEL
    )
    assert list(tmp_path.iterdir()) == []


def test_unreadable_text_can_be_allowed(fit):
    assert fit(data=chinese(), unknown_limit=1.0, epochs=1).run["valid"]["n"] == 16


def test_bf16_is_not_emulated(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "has_bf16", lambda device=None: False)
    assert "would only emulate" in message(fit, precision="bf16")
    assert list(tmp_path.iterdir()) == []
    assert fit(precision="auto", epochs=1).run["arguments"]["precision"] == "fp32"


@pytest.mark.parametrize("there", ["a file", "a folder with something", "work of something else"])
def test_out_that_is_not_a_run_is_left_alone(fit, tmp_path, there):
    if there == "a file":
        (tmp_path / "run").write_text("mine")
    else:
        folder = tmp_path / ("run" if there == "a folder with something" else "run.partial")
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    before = listing(tmp_path)
    for resume in (False, True):
        assert "is not a" in message(fit, resume=resume)
    assert listing(tmp_path) == before


def test_an_empty_folder_may_become_a_run(fit, tmp_path):
    (tmp_path / "run").mkdir()
    fit(epochs=1)
    assert (tmp_path / "run" / "run.json").is_file()


# --- what is written


def test_run_json_says_how_the_model_came_about(fit, tiny_model, tmp_path):
    save_pairs(PAIRS, tmp_path / "data")
    model = fit(data=tmp_path / "data", seed=4, names=("price", "title"), epochs=2, log_to=("tensorboard",))
    folder = tmp_path / "run"
    run = read_run(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["bi", "history.png", "logs", "run.json"]
    arguments = run["arguments"]
    assert arguments["data"] == str(tmp_path / "data") and arguments["seed"] == run["seed"] == 4
    assert arguments["recipe"] == vars(
        replace(Recipe(kind="bi"), model=tiny_model, **{k: v for k, v in BI.items() if k != "recipe"} | {"epochs": 2})
    )
    hashes = data_hash(PAIRS)
    assert arguments["data_hash"] == {k: hashes[k] for k in ("train", "valid")}, "the test split is not even looked at"
    assert run["revision"] == revision()
    assert (
        run["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
        or run["machine"]["versions"]["torch"] == torch.__version__
    )
    assert run["kind"] == "bi" and run["threshold"] == model.threshold
    assert run["text"]["attributes"] == ["price", "title"] and run["text"]["separator"]
    assert run["best_metric"]["name"] == "average_precision" and 0 < run["best_metric"]["value"] <= 1
    assert {k for row in run["history"] for k in row} == {
        "step",
        "epoch",
        "loss",
        "learning_rate",
        "f1",
        "average_precision",
    }
    assert [r["step"] for r in run["history"] if "f1" in r] == [6, 12]
    losses = [r for r in run["history"] if "loss" in r]
    assert losses[-1]["step"] == 12 and losses[-1]["learning_rate"] < max(r["learning_rate"] for r in losses) <= 3e-3
    assert (folder / "history.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert any("tfevents" in p.name for p in (folder / "logs").rglob("*"))
    from sentence_transformers import SentenceTransformer

    assert SentenceTransformer(str(folder / "bi"), device="cpu").encode(["acme lamp"]).shape == (1, 32)
    assert run["model_run"] is None, "the encoder came from elsewhere"
    second = fit(out="second", model=str(folder / "bi"), epochs=1)
    assert second.run["model_run"]["arguments"] == arguments, "it says what the encoder had learned before"


def test_history_figure_names_the_kept_checkpoint():
    rows = [
        {"step": 1, "loss": 0.7},
        {"step": 2, "f1": 0.4, "average_precision": 0.6},
        {"step": 4, "f1": 0.5, "average_precision": 0.3},
    ]
    for metric, step in (("average_precision", 2), ("f1", 4)):
        figure = plot_history(rows, metric)
        drawn = {line.get_label(): list(line.get_xdata()) for axis in figure.axes for line in axis.lines}
        assert drawn["kept"] == [step, step] and drawn["f1"] == drawn["average precision"] == [2, 4], drawn
    assert plot_history([]).axes


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("base", [BI, CROSS, GROUPS], ids=["bi", "cross", "groups"])
def test_a_gpu_trains_in_bf16_what_a_cpu_reads(fit, tmp_path, base):
    model = fit(base=base, precision="auto", device="cuda")
    expected = "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp32"
    assert model.encoder.device.type == "cuda" and model.run["arguments"]["precision"] == expected
    labels = np.asarray(PAIRS["valid"]["label"])
    assert model.run["valid"]["average_precision"] > labels.mean() + 0.1, "it learned nothing"
    there = load_model(tmp_path / "run", device="cpu", precision="fp32").score(PAIRS["test"])
    np.testing.assert_allclose(there, model.score(PAIRS["test"]), atol=0.03)


# --- two processes


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bi", "cross"])
def test_torchrun_with_two_processes_leaves_one_whole_model(tiny_model, tmp_path, kind):
    save_pairs(PAIRS, tmp_path / "data")
    binaries = Path(sys.executable).parent
    launch = [
        binaries / "torchrun",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--no-python",
        binaries / "prodsim",
        "train",
    ]
    options = ["--kind", kind, "--model", tiny_model, "--epochs", "2", "--batch-size", "8", "--max-minutes", "5"]
    command = [*map(str, launch), str(tmp_path / "data"), "--out", str(tmp_path / "run"), *options, "--json"]
    for extra in ([], ["--resume"]):
        started = subprocess.Popen(
            [*command, *extra], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            out, err = started.communicate(timeout=240)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)  # processes that wait for each other would wait for ever
        assert started.returncode == 0, err[-3000:]
        assert json.loads(out)["steps"] == 12, "one process speaks"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "run"]
    numbers, scores = outcome(tmp_path / "run")
    assert numbers["steps"] == 12, "96 pairs, two processes, batches of 8, two epochs"
    assert len(set(scores)) > 20
