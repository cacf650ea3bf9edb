"""`make run`: execute the quickstart chapter, render its page, and show its results in the terminal."""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the offline extra carries the weights: nothing to ask a hub for

import nbformat  # noqa: E402
import papermill  # noqa: E402
from nbconvert import HTMLExporter  # noqa: E402
from nbconvert.preprocessors import RegexRemovePreprocessor  # noqa: E402
from papermill.engines import NBClientEngine, papermill_engines  # noqa: E402
from papermill.exceptions import PapermillExecutionError  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markup import escape  # noqa: E402
from rich.progress import (  # noqa: E402
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = ROOT / "nbs" / "00_quickstart.ipynb"
RUN = ROOT / "_run"
CLAIM = "application/vnd.prodsim.claim+json"
console = Console()


class ProgressEngine(NBClientEngine):
    "Papermill's engine, showing the section it is in; the clock ticks while a cell trains."

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
        section = TextColumn("{task.description}")
        columns = SpinnerColumn(), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), section
        cell_start, cell_complete = nb_man.cell_start, nb_man.cell_complete
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("starting", total=len(nb_man.nb.cells))

            def start(cell, cell_index=None, **more):
                if cell.cell_type == "markdown":
                    for heading in [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]:
                        progress.update(task, description=heading)
                        if not console.is_terminal:  # a log shows lines, not a moving bar
                            console.print(f"[{time.perf_counter() - began:5.0f} s] {heading}", markup=False)
                return cell_start(cell, cell_index, **more)

            def complete(cell, cell_index=None, **more):
                progress.update(task, completed=(cell_index or 0) + 1)
                return cell_complete(cell, cell_index, **more)

            began = time.perf_counter()
            nb_man.cell_start, nb_man.cell_complete = start, complete
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


def metrics_of(notebook: nbformat.NotebookNode) -> dict:
    "The metrics that the chapter recorded in its last cell."
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    records = [output.data[CLAIM] for output in outputs if CLAIM in output.get("data", {})]
    if not records:
        raise LookupError("the executed chapter holds no record of its results")
    return records[-1]["metrics"]


def page(notebook: nbformat.NotebookNode) -> str:
    "The chapter as HTML, without the cells that are hidden in the book."
    exporter = HTMLExporter()
    hidden = RegexRemovePreprocessor(patterns=[r"#\|\s*hide", r"#\|\s*default_exp"], enabled=True)
    exporter.register_preprocessor(hidden, enabled=True)
    return exporter.from_notebook_node(notebook, resources={"metadata": {"name": "prodsim quickstart"}})[0]


def table(rows: list[dict]) -> Table:
    "The terminal's table: one row a system, intervals in brackets."
    result = Table(
        title=escape("Embedded shop, test pairs [95 % interval]"), title_justify="left", box=None, pad_edge=False
    )
    result.add_column("system", no_wrap=True)
    for name in ("F1", "average precision", "pairs/s"):
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        f1 = f"{row['f1']:.3f} [{row['f1_low']:.3f}, {row['f1_high']:.3f}]"
        precision = f"{row['average_precision']:.3f} [{row['ap_low']:.3f}, {row['ap_high']:.3f}]"
        cells = row["system"], f1, precision, f"{row['pairs_per_second']:,.0f}"
        result.add_row(*(escape(cell) for cell in cells))
    return result


def fail(what: str, where: Path) -> int:
    "One line on stderr; the exit code."
    line = " ".join(what.split())
    print(f"make run: {line}; see {where}", file=sys.stderr)
    return 1


def main() -> int:
    RUN.mkdir(exist_ok=True)
    executed, html = RUN / CHAPTER.name, RUN / f"{CHAPTER.stem}.html"
    papermill_engines.register("prodsim-progress", ProgressEngine)
    try:
        notebook = papermill.execute_notebook(
            CHAPTER,
            executed,
            engine_name="prodsim-progress",
            kernel_name="python3",
            cwd=CHAPTER.parent,
            progress_bar=False,
            extra_arguments=["--IPKernelApp.log_level=40"],  # else each kernel warns that it talks over TCP
        )
        metrics = metrics_of(notebook)
        html.write_text(page(notebook), encoding="utf-8")
        console.print(table(metrics["rows"]))
    except PapermillExecutionError as error:
        return fail(f"cell {error.cell_index} raised {error.ename}: {error.evalue}", executed)
    except (LookupError, OSError, TypeError) as error:
        return fail(f"{type(error).__name__}: {error}", executed)
    for name, path in (("notebook", executed), ("page", html), ("model", metrics["model"])):
        console.print(f"{name:<9} {path}", soft_wrap=True, markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
