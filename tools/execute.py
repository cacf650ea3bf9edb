"""Execute chapters in place with the reader's defaults, drop noise from their outputs, and clean them with nbdev."""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from links import ROOT, chapters
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

QUIET_KERNEL = ["--IPKernelApp.log_level=40"]  # else each kernel warns that it talks over TCP
KERNEL = {"display_name": "python3", "language": "python", "name": "python3"}


def select(names: list[str]) -> list[Path]:
    "The chapters that `names` mean: a number, a name or a path; all of them if it is empty."
    every = chapters()
    if not names:
        return every
    chosen = []
    for name in names:
        stem = Path(name).stem
        hits = [p for p in every if p.stem == stem or p.stem.startswith(f"{stem}_") or p.stem.endswith(f"_{stem}")]
        if not hits:
            sys.exit(f"no chapter '{name}'; there are: {', '.join(p.stem for p in every)}")
        chosen += hits
    return chosen


def strip_noise(notebook: nbformat.NotebookNode) -> list[str]:
    "Remove what a library wrote to stderr from all outputs, and return it."
    dropped = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            noise = [o for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]
            cell.outputs = [o for o in cell.outputs if o not in noise]
            dropped += [o.text for o in noise]
    return dropped


def execute(path: Path) -> float:
    "Execute one chapter and write it back if every cell ran; returns seconds."
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL})
    start = time.perf_counter()
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        resources=where,
        extra_arguments=QUIET_KERNEL,
    ).execute()
    seconds = time.perf_counter() - start
    for text in strip_noise(notebook):
        print(f"  dropped from stderr: {text.strip()[:400]}")
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL})
    temporary = path.with_name(f".{path.name}.tmp")
    nbformat.write(notebook, temporary)
    os.replace(temporary, path)
    subprocess.run([Path(sys.executable).with_name("nbdev_clean"), "--fname", path], cwd=ROOT, check=True)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chapters", nargs="*", help="e.g. 10, losses, 10_losses or nbs/10_losses.ipynb; all if none")
    failed = 0
    for path in select(parser.parse_args().chapters):
        try:
            print(f"{path.relative_to(ROOT)}: {execute(path):.0f} s", flush=True)
        except CellExecutionError as error:
            failed += 1
            print(f"{path.relative_to(ROOT)}: left as it was. {error}", file=sys.stderr, flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
