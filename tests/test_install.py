"""The doors people come in by: the README's commands, a fresh Colab runtime, a plain import."""

import ast
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import links  # noqa: E402

BIN = Path(sys.executable).parent
# A reference page opens with a chapter's cells (test_chapters.py), but has no parameters that a reader would run first.
PAGES = [path for path in links.chapters() if path not in links.references()]
CHAPTERS = {path.relative_to(ROOT / "nbs").with_suffix("").as_posix(): path for path in PAGES}


# The README's commands


@pytest.mark.parametrize(
    "target", ["run", "test", "test-full", "lab", "book", "bench", "results", "notebooks", "links"]
)
def test_make_target_refers_to_what_is_there(target):
    result = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for tool in re.findall(r"\btools/\w+\.py", result.stdout):
        assert (ROOT / tool).is_file()
    for command in re.findall(r"bin/prodsim\" (\w+)", result.stdout):
        shown = subprocess.run([BIN / "prodsim", command, "--help"], capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr


def test_make_alone_lists_the_targets():
    result = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("run", "test", "lab", "book", "bench"):
        assert re.search(rf"^  make {target}\s+\S", result.stdout, re.MULTILINE)


def test_readme_names_the_two_commands_and_ci_calls_one():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^make run\b", readme, re.MULTILINE) and re.search(r"^make test\b", readme, re.MULTILINE)
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK) and "make test" in script.read_text(encoding="utf-8")


def test_readme_results_are_those_stored():
    import readme  # the tool: it imports prodsim.evidence, which the other tests here do without

    assert readme.filled() == readme.README.read_text(encoding="utf-8"), "run: .venv/bin/python tools/readme.py"


def test_readme_code_names_what_there_is():
    "Every import, method and option that the README shows exists; the chapters run the same calls."
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    for node in ast.parse(example).body:
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]
    commands = re.findall(r"^prodsim ([\w-]+)(.*?)(?:\s+#.*)?$", readme, re.MULTILINE)
    assert {command for command, _ in commands} >= {"datasets", "train", "evaluate", "score", "embed"}
    for command, rest in commands:
        shown = subprocess.run([BIN / "prodsim", command, "--help"], capture_output=True, text=True, check=True).stdout
        assert not [option for option in re.findall(r"--[\w-]+", rest) if option not in shown], command


def test_old_python_is_refused_with_one_line(tmp_path):
    old = tmp_path / "python3.10"
    old.write_text('#!/bin/sh\ncase "$2" in *exit*) exit 1;; *) echo 3.10.9;; esac\n')
    old.chmod(0o755)
    result = subprocess.run(
        ["make", "install", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"], cwd=ROOT, capture_output=True, text=True
    )
    lines = [line for line in result.stderr.splitlines() if not re.match(r"make(\[\d+\])?:", line)]
    assert result.returncode != 0 and len(lines) == 1
    assert "3.11" in lines[0] and "3.10.9" in lines[0]
    assert not (tmp_path / "venv").exists()


def test_pinned_versions_admit_every_python_promised():
    "Debian 12 has Python 3.11.2: a pin that asks for 3.11.5 breaks `make run` there and nowhere else."
    config = links.settings()
    first, last = (int(config[key].split(".")[1]) for key in ("min_python", "max_python"))
    pythons = [f"3.{minor}.0" for minor in range(first, last + 1)]
    assert f"Python 3.{first} to 3.{last}" in (ROOT / "README.md").read_text(encoding="utf-8")
    pins = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    pinned = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins}
    refused, read = {}, 0
    for package in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()
        if package.version.split("+")[0] != pinned.get(name):
            continue
        read += 1
        asks = SpecifierSet(package.metadata["Requires-Python"] or "")
        if without := [python for python in pythons if python not in asks]:
            refused[name] = without
    assert read > len(pinned) * 0.9, f"only {read} of {len(pinned)} pinned versions are installed: make install"
    assert not refused


def test_links_in_readme_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md"):
        targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / page).read_text(encoding="utf-8"))
        assert not [target for target in targets if not (ROOT / target).exists()], page


# import prodsim


def test_the_installed_package_is_this_tree(tmp_path):
    "Asked from another folder, as a kernel would: an environment that two checkouts share tests the wrong one."
    code = "import prodsim; print(prodsim.__file__)"
    place = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=tmp_path).strip()
    assert Path(place) == ROOT / "prodsim/__init__.py"


def test_import_is_light():
    code = """
        import sys, time
        begun = time.perf_counter()
        import prodsim
        seconds = time.perf_counter() - begun
        heavy = {"torch", "transformers", "sentence_transformers", "datasets", "pandas", "sklearn", "matplotlib"}
        print(seconds, *sorted(heavy & set(sys.modules)))
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    seconds, *loaded = result.stdout.split()
    assert not loaded
    assert float(seconds) < 0.5


# Colab: torch is already there, the package comes without constraints, google.colab is loaded

RUNTIME = """
    import contextlib, importlib, json, os, sys
    import google.colab
    from IPython.core.interactiveshell import InteractiveShell

    def opened(cells):
        shell = InteractiveShell.instance()
        for cell in cells:
            result = shell.run_cell(cell)
            if not result.success:
                print(f"failed in Colab:\\n{cell}\\n{result.error_before_exec or result.error_in_exec!r}")
                return
        import prodsim
        print("\\nCOLAB", prodsim.__file__)

    folder, libraries = sys.argv[1], sys.argv[2:]
    for name in libraries:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for i, cells in enumerate(json.load(open(f"{folder}/chapters.json", encoding="utf-8"))):
        child = os.fork()
        if not child:
            with open(f"{folder}/{i}.txt", "w") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            try:
                opened(cells)
            finally:
                sys.stdout.flush()
                os._exit(0)
        os.waitpid(child, 0)
"""
# What takes seconds to import and comes from elsewhere: imported once, in the process whose children open the chapters.
LIBRARIES = ("torch", "sentence_transformers", "datasets", "sklearn", "lightgbm", "matplotlib.pyplot")


LAZILY = {"PIP_NO_COMPILE": "1"}  # bytecode of what is imported is made then; most of what is installed never is


def torch_wanted() -> str:
    "The torch that Colab's place holds: PRODSIM_TEST_TORCH, or the one pinned in constraints.txt."
    pinned = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    return os.environ.get("PRODSIM_TEST_TORCH") or pinned.group(0)


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    "A fresh environment with IPython and torch, a stub google.colab, and a copy of the tree to install from."
    home = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
    command = [home / "venv/bin/python", "-m", "pip", "install", "-q", "ipython", "matplotlib-inline", torch_wanted()]
    subprocess.run(command, env=os.environ | LAZILY, check=True)
    stub = home / "stub/google/colab"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    (stub.parent / "__init__.py").touch()
    (home / "runtime.py").write_text(textwrap.dedent(RUNTIME), encoding="utf-8")
    # A copy: building in the tree itself would leave build/ behind, and would find what an older build left there.
    tree = home / "tree"
    tree.mkdir()
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "prodsim", tree / "prodsim", ignore=shutil.ignore_patterns("__pycache__"))
    return home


def opening_cells(path: Path) -> list[str]:
    "A chapter's code up to and including its parameters: what every reader runs first."
    cells = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            cells.append("".join(cell["source"]))
        if "parameters" in cell["metadata"].get("tags", []):
            return cells
    raise AssertionError(f"{path.name} has no parameters cell")


def torch_version(home: Path) -> str:
    code = "import importlib.metadata as m; print(m.version('torch'))"
    return subprocess.check_output([home / "venv/bin/python", "-c", code], text=True).strip()


def open_in_colab(chapters: list[list[str]], home: Path, package: Path, libraries: tuple[str, ...] = ()) -> list[str]:
    """Run the opening cells of chapters, each in a process of its own, as a new runtime would.

    An install cell installs `package`, a source tree or a wheel. Returns what each chapter wrote."""
    folder = Path(tempfile.mkdtemp(dir=home))
    (folder / "chapters.json").write_text(json.dumps(chapters))
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MPLBACKEND")}
    environment |= LAZILY | {"PYTHONPATH": str(home / "stub"), "PRODSIM_SOURCE": package.as_uri()}
    command = [home / "venv/bin/python", home / "runtime.py", folder, *libraries]
    result = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return [(folder / f"{i}.txt").read_text() for i in range(len(chapters))]


def imported_from(written: str) -> Path:
    "The file prodsim was imported from, as `open_in_colab` tells it."
    found = re.search(r"^COLAB (\S+)$", written, re.MULTILINE)
    assert found, written[-4000:]
    return Path(found.group(1))


@pytest.fixture(scope="module")
def colab_package(colab) -> Path:
    "The folder of prodsim as the first chapter's install cell put it there, from the source tree."
    before = torch_version(colab)
    (written,) = open_in_colab([opening_cells(next(iter(CHAPTERS.values())))], colab, colab / "tree")
    assert torch_version(colab) == before, "the install cell replaced Colab's torch"
    return imported_from(written).parent


@pytest.fixture(scope="module")
def wheel(colab, colab_package) -> Path:
    "The same package as a wheel: pip knows that it is installed already, where it would build a tree once a chapter."
    command = [colab / "venv/bin/python", "-m", "pip", "wheel", "-q", "--no-deps", "-w", colab / "dist", colab / "tree"]
    subprocess.run(command, check=True)
    (built,) = (colab / "dist").glob("*.whl")
    return built


def without_installing_twice(chapters: list[list[str]]) -> list[list[str]]:
    "An install cell that another chapter has run already has nothing left to do."
    seen, kept = set(), []
    for cells in chapters:
        kept.append([c for c in cells if "%pip" not in c or c not in seen])
        seen.update(cells)
    return kept


@pytest.fixture(scope="module")
def openings(colab, wheel, request) -> tuple[dict[str, str], bool]:
    "What the opening cells of each chapter wrote, and whether Colab's torch is still there."
    wanted = {item.callspec.params["name"]: None for item in request.session.items if "opens_in_colab" in item.name}
    before = torch_version(colab)
    cells = without_installing_twice([opening_cells(CHAPTERS[name]) for name in wanted])
    written = open_in_colab(cells, colab, wheel, LIBRARIES)
    return dict(zip(wanted, written, strict=True)), torch_version(colab) == before


@pytest.mark.long(200)
@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_opens_in_colab(name, colab, openings):
    written, same_torch = openings
    assert same_torch, "an install cell replaced Colab's torch"
    assert imported_from(written[name]).is_relative_to(colab / "venv"), "not the installed package"


@pytest.mark.long(199)
def test_installed_package_carries_its_data(colab_package):
    "Registry and stored results reach whoever installs the package, not only whoever has the tree."
    here = {p.relative_to(ROOT / "prodsim") for p in (ROOT / "prodsim").rglob("*") if p.is_file()}
    wanted = {path for path in here if "__pycache__" not in path.parts and not path.name.startswith(".")}
    assert Path("registry.csv") in wanted
    assert not {str(path) for path in wanted if not (colab_package / path).is_file()}


@pytest.mark.long(198)
def test_command_line_is_installed(colab, colab_package):
    result = subprocess.run([colab / "venv/bin/prodsim", "--help"], capture_output=True, text=True, cwd=colab)
    assert result.returncode == 0, result.stderr
    for command in ("datasets", "fetch", "train", "evaluate", "score", "embed"):
        assert command in result.stdout
