"""A few dozen labelled pairs that a tiny encoder can learn, and processes that die when told to."""

import contextlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

SIZES = {"train": 96, "valid": 40, "test": 40}
BRANDS = ("acme", "bolt", "cobra", "delta", "echo")
KINDS = ("lamp", "desk", "chair", "phone", "mouse", "cable")


def little_pairs(seed=0, **sizes):
    "Offers of numbered products: a match has the same number, the words are shuffled, prices are missing at times."
    random = np.random.default_rng(seed)

    def pair(i):
        brand, kind, number = random.choice(BRANDS), random.choice(KINDS), int(random.integers(100, 999))
        label = int(random.random() < 0.4)
        other = number if label else int(random.integers(100, 999))
        return {
            "left_id": f"l{i}",
            "right_id": f"r{i}",
            "left_title": f"{brand} {kind} {number}" + " with a long cord" * int(random.integers(0, 3)),
            "left_price": f"{number / 10}",
            "right_title": f"{kind} {brand} {other}",
            "right_price": None if random.random() < 0.5 else f"{other / 10}",
            "label": label,
        }

    return DatasetDict({split: Dataset.from_list([pair(i) for i in range(n)]) for split, n in (SIZES | sizes).items()})


def listing(folder):
    "Every path below a folder with its bytes: equal before and after where nothing was written."
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(Path(folder).rglob("*"))
    }


def child(target, *args):
    """A started process that runs `target(*args)`. A server imports torch once and forks from there, before any thread
    of a tokenizer or a data loader exists: forking the test process itself would hang at times."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["prodsim.cli", "prodsim.training", "prodsim.evidence", "matplotlib.figure"])
    process = context.Process(target=target, args=args)
    process.start()
    return process


def exit_code(target, *args):
    "What the process ends with; minus the signal's number if one killed it."
    process = child(target, *args)
    process.join(180)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"{target.__name__}{args} still runs after three minutes")
    return process.exitcode


TOUCHES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def on_touch(folder, act):
    "Call `act(number, event, paths)` before a path that contains `folder` is opened, made, moved or removed."
    number = 0

    def hook(event, args):
        nonlocal number
        if event in TOUCHES:
            paths = [str(a) for a in args[:2] if isinstance(a, (str, Path))]
            if any(str(folder) in p for p in paths):
                number += 1
                act(number, event, paths)

    sys.addaudithook(hook)


def die():
    "As `kill -9` from outside: no handler, no clean-up, no flush."
    os.kill(os.getpid(), signal.SIGKILL)


def quiet_call(log, call, *args, **kwargs):
    "The call's result, its stdout and stderr in `log`.out and `log`.err."
    with open(f"{log}.out", "w") as out, open(f"{log}.err", "w") as err:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return call(*args, **kwargs)
