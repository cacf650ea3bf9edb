"""The suite's own promises: what is off by default, and that real data which was not read cannot pass unnoticed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUITE = """
import os, pytest

@pytest.mark.data
def test_data():
    assert os.environ["PRODSIM_DATA"]

@pytest.mark.data
def test_skips_itself():
    pytest.skip("no such file")

def test_says_why():
    if not os.environ.get("PRODSIM_DATA"):
        pytest.skip("needs PRODSIM_DATA")

@pytest.mark.slow
@pytest.mark.data
def test_slow(): pass

@pytest.mark.gpu
def test_gpu(): pass

@pytest.mark.full
def test_full(): pass

def test_offline():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
"""


@pytest.fixture
def outcomes(tmp_path):
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "test_suite.py").write_text(SUITE)

    def run(*options: str, **variables: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PRODSIM_", "PYTEST_", "HF_"))}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-v",
            "-p",
            "no:cacheprovider",
            "-c",
            "pyproject.toml",
            ".",
            *options,
        ]
        result = subprocess.run(command, cwd=tmp_path, env=kept | variables, capture_output=True, text=True)
        lines = [line.split() for line in result.stdout.splitlines() if line.startswith("test_suite.py::")]
        return {line[0].removeprefix("test_suite.py::test_"): line[1] for line in lines} | {"exit": result.returncode}

    return run


def test_without_data_its_tests_skip(outcomes):
    assert outcomes() == {
        "data": "SKIPPED",
        "skips_itself": "SKIPPED",
        "says_why": "SKIPPED",
        "slow": "SKIPPED",
        "gpu": "SKIPPED",
        "full": "SKIPPED",
        "offline": "PASSED",
        "exit": 0,
    }


def test_where_data_is_required_a_skip_is_a_failure(outcomes, tmp_path):
    seen = outcomes(PRODSIM_REQUIRE_DATA="1")
    assert [seen[name] for name in ("data", "skips_itself", "says_why")] == ["ERROR", "ERROR", "FAILED"]
    assert seen["slow"] == seen["gpu"] == "SKIPPED"
    assert seen["exit"] == 1
    seen = outcomes(PRODSIM_REQUIRE_DATA="1", PRODSIM_DATA=str(tmp_path))
    assert [seen[name] for name in ("data", "skips_itself", "says_why")] == ["PASSED", "FAILED", "PASSED"]


def test_options_switch_on(outcomes, tmp_path):
    seen = outcomes("--full", "--gpu", PRODSIM_DATA=str(tmp_path))
    assert seen["slow"] == seen["gpu"] == seen["full"] == "PASSED"
    assert outcomes("--slow", PRODSIM_DATA=str(tmp_path))["full"] == "SKIPPED"
