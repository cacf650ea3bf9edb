"""Every chapter is listed, clean, executed and exported; and, run again here, it still shows what it claims."""

import ast
import copy
import importlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import tomllib
from pathlib import Path

import nbformat
import papermill
import pytest
import typer
import yaml
from fastcore.docments import docments
from nbdev.cli import nbdev_filter
from warm import WarmKernels

from prodsim.data import load_pairs
from prodsim.encoders import resolve_model

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import links  # noqa: E402

BIN = Path(sys.executable).parent
CLAIM = "application/vnd.prodsim.claim+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
SMOKE_LIMIT = 120  # seconds; the aim is 30 on two quiet cores
NOISE = re.compile(r"\d+%\||\d+(?:\.\d+)?\s?(?:it|s|ex|batch|examples)/(?:s|it)\b|\r|\w*Warning:|\x1b\[")

EXPECTED = tomllib.loads((ROOT / "tests/notebooks/chapters.toml").read_text(encoding="utf-8"))
PATHS = {path.relative_to(ROOT / "nbs").with_suffix("").as_posix(): path for path in links.chapters()}
REFERENCES = [name for name, path in PATHS.items() if path in links.references()]
CHAPTERS = [name for name in PATHS if name not in REFERENCES]


def read(name: str) -> dict:
    "The committed JSON of a chapter."
    return json.loads(PATHS[name].read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(notebook: dict) -> list[dict]:
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def claim_of(notebook: dict) -> dict:
    "What the chapter recorded: exactly one claim, in its last cell."
    records = [o["data"][CLAIM] for o in outputs(notebook) if CLAIM in o.get("data", {})]
    assert len(records) == 1, f"{len(records)} claims recorded; a chapter makes one"
    assert any(CLAIM in o.get("data", {}) for o in notebook["cells"][-1].get("outputs", [])), "not in the last cell"
    return records[0]


def lookup(metrics: object, path: str) -> object:
    "The value at a dotted path; in a list of rows a step is the row's `system`."
    for step in path.split("."):
        if isinstance(metrics, list):
            metrics = next(row for row in metrics if row["system"] == step)
        else:
            metrics = metrics[step]
    return metrics


def falls_short(metrics: dict, floors: dict[str, float]) -> dict[str, float]:
    "Metrics below their floor. NaN is below every floor."
    values = {path: lookup(metrics, path) for path in floors}
    return {path: value for path, value in values.items() if not value >= floors[path]}


def parameters(names=CHAPTERS, **options):
    "Parametrise over all chapters, or over other `names`; `long` and `data` marks from chapters.toml."
    cases = []
    for name in names:
        entry = EXPECTED.get(name, {})
        marks = [pytest.mark.long(entry.get("seconds", 30))] if options.get("runs") else []
        marks += [pytest.mark.data] if options.get("runs") and entry.get("needs") == "data" else []
        if not options.get("mutations"):
            cases.append(pytest.param(name, id=name, marks=marks))
        for mutation in entry.get("mutations", []) if options.get("mutations") else []:
            cases.append(pytest.param(name, mutation, id=f"{name}-{mutation}", marks=marks))
    return pytest.mark.parametrize("name, mutation" if options.get("mutations") else "name", cases)


# What stands in the repository


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory) -> Path:
    "A copy of the chapters after nbdev_clean."
    folder = tmp_path_factory.mktemp("cleaned")
    shutil.copy(ROOT / "settings.ini", folder)
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".*"))
    subprocess.run([BIN / "nbdev_clean"], cwd=folder, check=True, timeout=120)
    return folder / "nbs"


def test_every_chapter_has_an_entry():
    assert list(EXPECTED) == CHAPTERS, "tests/notebooks/chapters.toml lists the chapters of nbs/, in reading order"


@pytest.mark.parametrize("name", EXPECTED)
def test_entry_is_sound(name):
    entry = EXPECTED[name]
    assert set(entry) <= {"smoke", "mutations", "floors", "needs", "seconds"}
    assert entry["mutations"], "a claim that nothing can break is no claim"
    assert set(entry["floors"]) == {"smoke", "full"}
    for floors in entry["floors"].values():
        assert floors, "no metric is checked"
        assert all(floor > 0 for floor in floors.values())


@pytest.mark.parametrize("dead", [0.0, math.nan])
@pytest.mark.parametrize("run", ["smoke", "full"])
@parameters()
def test_floors_catch_a_dead_metric(name, run, dead):
    "Each recorded metric in turn is replaced by zero, then by NaN: its floor must notice."
    floors = EXPECTED[name]["floors"][run]
    metrics = claim_of(read(name))["metrics"]
    for path in floors:
        assert isinstance(lookup(metrics, path), int | float)
        broken = copy.deepcopy(metrics)
        parent, _, last = path.rpartition(".")
        (lookup(broken, parent) if parent else broken)[last] = dead
        assert path in falls_short(broken, floors)


@parameters()
def test_committed_run_reaches_its_floors(name):
    assert not falls_short(claim_of(read(name))["metrics"], EXPECTED[name]["floors"]["full"])


@parameters()
def test_smoke_parameters_exist(name):
    known = papermill.inspect_notebook(PATHS[name])
    assert "MUTATION" in known
    assert set(EXPECTED[name]["smoke"]) <= set(known), "papermill would inject an unknown parameter without effect"


@parameters()
def test_parameters_tag_survives_cleaning(name, cleaned):
    for notebook in (read(name), json.loads((cleaned / f"{name}.ipynb").read_text(encoding="utf-8"))):
        tags = [cell["metadata"].get("tags", []) for cell in notebook["cells"]]
        assert tags.count(["parameters"]) == 1
        assert all(t in ([], ["parameters"]) for t in tags)


@parameters(PATHS)
def test_notebook_is_clean(name, cleaned):
    assert PATHS[name].read_text(encoding="utf-8") == (cleaned / f"{name}.ipynb").read_text(encoding="utf-8"), (
        "run: make notebooks, or nbdev_clean"
    )
    notebook = read(name)
    nbformat.validate(nbformat.from_dict(notebook))
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    assert notebook["metadata"] == {"kernelspec": kernel}
    for cell in notebook["cells"]:
        lines = cell["source"]
        assert isinstance(lines, list), "Quarto loses the line breaks of a source that is one string"
        assert all(line.endswith("\n") for line in lines[:-1]) and all("\n" not in line[:-1] for line in lines)


@parameters()
def test_notebook_is_committed_with_its_outputs(name):
    notebook = read(name)
    claim = claim_of(notebook)
    assert claim["holds"] and claim["mutation"] == ""
    assert claim["mutations"] == EXPECTED[name]["mutations"]
    kinds = {kind for output in outputs(notebook) for kind in output.get("data", {})}
    assert kinds & {"image/png", "image/svg+xml"}, "no figure"


@parameters(PATHS)
def test_committed_outputs_are_quiet(name):
    notebook, noisy = read(name), []
    for output in outputs(notebook):
        assert output["output_type"] != "error", "an error output is committed"
        assert output.get("name") != "stderr", f"stderr is committed: {''.join(output['text'])[:200]}"
        assert WIDGET not in output.get("data", {}), "a progress widget is committed"
        shown = "".join(output.get("text", [])) + "".join(output.get("data", {}).get("text/plain", []))
        noisy += [shown[:200]] if NOISE.search(shown) or str(ROOT) in shown or str(Path.home()) in shown else []
    assert not noisy, "progress, warnings or this machine's paths in the outputs"


@parameters(PATHS)
def test_opening(name):
    "Title, promise and badge first; the install cell before any other code."
    config = links.settings()
    notebook = read(name)
    opening = source(notebook["cells"][0])
    assert opening.startswith("# ")
    assert re.search(r"^> \S", opening, re.MULTILINE), "no quoted sentence that says what the chapter shows"
    assert links.badge(f"nbs/{name}.ipynb", config) in opening
    code = [text for text in map(source, code_cells(notebook)) if not text.startswith("#| default_exp")]
    assert code[0].strip() == links.install_cell(config, name)


def test_links_agree_with_settings():
    differ = [str(path.relative_to(ROOT)) for path in links.rewritten()]
    assert not differ, "run: make links"


def test_no_function_is_defined_in_two_chapters():
    "Code copied from chapter to chapter drifts; what two need is exported by one."
    defined = {}
    for name in PATHS:
        for cell in code_cells(read(name)):
            text = re.sub(r"^(\s*)[%!].*$", r"\1pass", source(cell), flags=re.MULTILINE)
            for node in ast.parse(text).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    defined.setdefault(node.name, set()).add(name)
    assert not {function: sorted(names) for function, names in defined.items() if len(names) > 1}


def test_package_is_what_the_chapters_export(tmp_path):
    shutil.copy(ROOT / "settings.ini", tmp_path)
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".*"))
    for by_hand in ("__init__.py", "__main__.py", "quality/__init__.py", "similarity/__init__.py"):
        (tmp_path / "prodsim" / by_hand).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "prodsim" / by_hand, tmp_path / "prodsim" / by_hand)
    subprocess.run([BIN / "nbdev_export"], cwd=tmp_path, check=True, timeout=120)
    exported = {p.relative_to(tmp_path).as_posix(): p.read_text() for p in tmp_path.glob("prodsim/**/*.py")}
    committed = {p.relative_to(ROOT).as_posix(): p.read_text() for p in ROOT.glob("prodsim/**/*.py")}
    assert set(exported) == set(committed), "a module without a chapter, or a chapter without its module"
    assert not [path for path in exported if exported[path] != committed[path]], "run: make export"


def test_package_needs_no_nbdev():
    "Colab and importers never meet nbdev and its version caps."
    for path in ROOT.glob("prodsim/**/*.py"):
        names = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
        assert not {name.split(".")[0] for name in names} & {"nbdev", "fastcore", "execnb"}, path


def test_book_lists_every_chapter():
    book = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    assert book["ipynb-filters"] == ["nbdev_filter"]
    assert book["execute"] == {"enabled": False}
    listed = list(book_files(book["book"]["chapters"] + book["book"].get("appendices", [])))
    assert all((ROOT / path).is_file() for path in listed), "_quarto.yml names a file that is not there"
    assert [p for p in listed if p.endswith(".ipynb")] == [f"nbs/{name}.ipynb" for name in PATHS]
    assert listed[0] == "index.qmd" and "{{< include README.md >}}" in (ROOT / "index.qmd").read_text()


def book_files(entries: list):
    "Files named in a list of chapters and parts."
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            yield from [entry["part"]] if str(entry.get("part", "")).endswith((".qmd", ".ipynb")) else []
            yield from book_files(entry["chapters"])


def test_book_filter_is_a_command():
    "As Quarto calls it: the notebook on stdin, the filtered notebook on stdout."
    text = json.dumps(read(next(iter(PATHS))))
    done = subprocess.run(
        [BIN / "nbdev_filter"], input=text, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr[-1500:]
    assert json.loads(done.stdout)["cells"]


@parameters(PATHS)
def test_book_filter_reads_the_chapter(name, monkeypatch, capsys):
    "The same command, called in this process: a start of Python for each chapter took a minute of every run."
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "stdin", io.StringIO(PATHS[name].read_text(encoding="utf-8")))
    nbdev_filter()
    page = json.loads(capsys.readouterr().out)
    for cell in page["cells"]:
        cell.pop("has_sd", None)  # nbdev's own mark, which Quarto ignores
    nbformat.validate(nbformat.from_dict(page))
    shown = "\n".join(source(cell) for cell in page["cells"])
    assert source(read(name)["cells"][0]).splitlines()[0] in shown, "the title is lost"
    assert "google.colab" not in shown, "the install cell belongs to Colab, not to the page"
    assert not re.search(r"^#\| (hide|export|default_exp)", shown, re.MULTILINE), "a directive is left on the page"


# Reference pages: commands are looked up there. In place of a claim, a figure and mutations a page owes what follows.


def module_of(name: str) -> str:
    "What a page in a folder exports: cli/20_pairs is prodsim.cli.pairs."
    folder, stem = name.split("/")
    return f"{folder}.{stem.split('_', 1)[1]}"


def exported_trees(notebook: dict) -> list[tuple[int, ast.Module]]:
    "Cells that go into the module: where they stand, and what they say."
    cells = enumerate(notebook["cells"])
    return [(i, ast.parse(source(cell))) for i, cell in cells if source(cell).startswith("#| export")]


def commands_of(module) -> dict:
    "The commands of the module's room, by the words that call them."

    def walk(group, before: str):
        for name, command in group.commands.items():
            yield f"{before}{name}", command
            if hasattr(command, "commands"):
                yield from walk(command, f"{before}{name} ")

    return dict(walk(typer.main.get_command(module.room), "")) if hasattr(module, "room") else {}


@parameters(REFERENCES)
def test_reference_page_claims_and_computes_nothing(name):
    "What measures or teaches a method is a chapter, whose claim can fail. A page is thin, and quick to import."
    notebook = read(name)
    assert source(code_cells(notebook)[0]) == f"#| default_exp {module_of(name)}", "one notebook, one module"
    assert not [cell for cell in notebook["cells"] if cell["metadata"].get("tags")]
    assert not [output for output in outputs(notebook) if CLAIM in output.get("data", {})]
    light = {*sys.stdlib_module_names, "typer", "prodsim.core"}
    for _, tree in exported_trees(notebook):
        imported = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
        imported += [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
        own = f"prodsim.{name.split('/')[0]}."
        assert not [m for m in imported if not (m in light or m.split(".")[0] in light or m.startswith(own))]


@parameters(REFERENCES)
def test_reference_page_explains_everything(name):
    "Prose before each definition names its commands; every function has its sentence, every argument its meaning."
    notebook, module = read(name), importlib.import_module(f"prodsim.{module_of(name)}")
    functions = []
    for i, tree in exported_trees(notebook):
        defined = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        functions += defined
        before = notebook["cells"][i - 1]
        assert before["cell_type"] == "markdown" or not defined, f"{defined[0].name} stands without a word before it"
        for command in re.findall(r'@\w+\.command\("([\w-]+)"', source(notebook["cells"][i])):
            assert re.search(rf"`(\w+ )?{command}`", source(before)), f"{command} is not named before it is defined"
    assert not [node.name for node in functions if not ast.get_docstring(node)]
    public = [node.name for node in functions if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    for function in public:
        assert not [arg for arg, said in docments(getattr(module, function), returns=False).items() if not said]
    commands = commands_of(module)
    assert public or commands
    assert not [(words, p.name) for words, c in commands.items() for p in c.params if not p.help]
    prose = " ".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    assert len(prose.split()) >= 200 and "**Next:**" in prose


@pytest.mark.long(10)
@parameters(REFERENCES)
def test_reference_page_shows_what_holds_now(name, tmp_path):
    "Run here, it prints what is committed, and that lists every command with its options."
    notebook, _ = run(name, tmp_path)
    printed, committed = ("".join("".join(o.get("text", [])) for o in outputs(n)) for n in (notebook, read(name)))
    assert printed and printed == committed, "run: make notebooks"
    for words in commands_of(importlib.import_module(f"prodsim.{module_of(name)}")):
        assert f"Usage: prodsim {words} " in printed


# What a run shows


@pytest.fixture(scope="session")
def warm() -> str:
    "The name of a kernel that begins with the heavy libraries imported."
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    warm_kernels = WarmKernels(folder)
    yield "warm"
    warm_kernels.server.stdin.close()
    warm_kernels.server.wait(timeout=30)
    shutil.rmtree(folder)


def made(value: object, folder: Path) -> object:
    """A parameter of a smoke run: itself, or a folder made for what stands in chapters.toml as

    - `@titles DATA`: the pairs of DATA with nothing but their titles, which an encoder reads in a third of the time;
    - `@layers N`: the default encoder without the layers above the first N.
    """
    kind, _, of = value.partition(" ") if isinstance(value, str) else ("", "", "")
    if kind == "@titles":
        out = folder / "titles"
        out.mkdir()
        for split, rows in load_pairs(of).items():
            table = rows.to_pandas()[["left_id", "right_id", "left_title", "right_title", "label"]]
            table.to_csv(out / f"{split}.csv", index=False)
        return str(out)
    if kind == "@layers":
        out = folder / "layers"
        shutil.copytree(resolve_model(), out)
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        (out / "config.json").write_text(json.dumps(config | {"num_hidden_layers": int(of)}), encoding="utf-8")
        return str(out)
    assert not kind.startswith("@"), f"{value}: no such value"
    return value


def run(name: str, folder: Path, kernel: str = "python3", **values) -> tuple[dict, float]:
    "Execute a chapter with papermill as it would run in nbs/, but writing beside a copy; returns it and its seconds."
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".*", "*.ipynb"))
    values = {parameter: made(value, folder) for parameter, value in values.items()}
    begun = time.perf_counter()
    backend = os.environ.pop("MPLBACKEND", None)  # kernels draw inline, as in Jupyter
    try:
        papermill.execute_notebook(
            PATHS[name],
            folder / "executed.ipynb",
            parameters=values,
            kernel_name=kernel,
            cwd=folder / "nbs",
            progress_bar=False,
            extra_arguments=["--IPKernelApp.log_level=40"],  # else each kernel warns that it talks over TCP
        )
    finally:
        if backend:
            os.environ["MPLBACKEND"] = backend
    return json.loads((folder / "executed.ipynb").read_text(encoding="utf-8")), time.perf_counter() - begun


def test_warm_kernel_is_a_process_of_its_own(warm, monkeypatch, tmp_path):
    "It runs in the folder it was started in, draws into the page, has still to import prodsim, and keeps its changes."
    code = """
        import os, sys
        import matplotlib.pyplot as plt
        mark = os.environ.pop("PRODSIM_TEST_MARK", None)
        ours = [m for m in sys.modules if m.startswith("prodsim")]
        print(repr([os.getcwd(), mark, "torch" in sys.modules, ours, "inline" in plt.get_backend(), os.getpid()]))
    """
    monkeypatch.setenv("PRODSIM_TEST_MARK", "here")
    monkeypatch.delenv("MPLBACKEND")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(code))])
    said = []
    for _ in range(2):
        done = papermill.execute_notebook(notebook, None, kernel_name=warm, cwd=tmp_path, progress_bar=False)
        said.append(ast.literal_eval(done.cells[0].outputs[0].text))
    first, second = (facts[:-1] for facts in said)
    assert first == second == [str(tmp_path), "here", True, [], True]
    assert len({os.getpid(), *(facts[-1] for facts in said)}) == 3


def test_warm_kernel_ends_with_the_one_that_asked(warm, tmp_path):
    "Killed tests leave no kernel behind."
    address = Path(os.environ["JUPYTER_PATH"].split(os.pathsep)[0]) / "socket"
    starting = [str(ROOT / "tests/notebooks/warm.py"), "start", str(address), str(tmp_path / "c.json")]
    script = f"""
        import subprocess, sys, time
        print(subprocess.Popen([sys.executable, *{starting!r}]).pid, flush=True)
        time.sleep(60)
    """
    asking = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    starter = int(asking.stdout.readline())
    until(lambda: (tmp_path / "c.json").is_file())
    asking.kill()
    asking.wait()
    until(lambda: not Path(f"/proc/{starter}").is_dir())


def until(true, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def check(name: str, notebook: dict, floors: dict[str, float], mutation: str = "") -> None:
    "The claim of a run made without mutation holds, and its metrics reach their floors."
    claim = claim_of(notebook)
    assert claim["mutation"] == mutation
    assert claim["mutations"] == EXPECTED[name]["mutations"]
    assert claim["holds"], claim
    assert not falls_short(claim["metrics"], floors), claim


@parameters(runs=True)
def test_smoke(name, warm, tmp_path, record_property):
    notebook, seconds = run(name, tmp_path, warm, **EXPECTED[name]["smoke"])
    record_property("seconds", round(seconds, 1))
    check(name, notebook, EXPECTED[name]["floors"]["smoke"])
    assert seconds < SMOKE_LIMIT, f"{seconds:.0f} s at smoke parameters; the aim is 30"


@pytest.mark.full
@parameters(runs=True)
def test_readers_defaults(name, tmp_path, record_property):
    notebook, seconds = run(name, tmp_path)
    record_property("seconds", round(seconds, 1))
    check(name, notebook, EXPECTED[name]["floors"]["full"])


@pytest.mark.full
@parameters(runs=True, mutations=True)
def test_claim_fails_under_mutation(name, mutation, warm, tmp_path):
    notebook, _ = run(name, tmp_path, warm, **EXPECTED[name]["smoke"], MUTATION=mutation)
    claim = claim_of(notebook)
    assert claim["mutation"] == mutation, "the chapter does not know of the mutation"
    assert not claim["holds"], f"'{claim['text']}' still holds with {mutation}: {claim['metrics']}"
