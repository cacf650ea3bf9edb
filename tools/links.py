"""Write the GitHub owner of settings.ini into every badge, link and install cell."""

import argparse
import configparser
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALL_CELL = """\
#| hide
import os, sys

if "google.colab" in sys.modules:  # elsewhere prodsim is already installed
    source = os.environ.get("PRODSIM_SOURCE", "git+{git_url}")
    %pip install -q "prodsim[{extras}] @ {{source}}\""""
EXTRAS = {  # of chapters that need more than the weights
    **dict.fromkeys(("70_candidates", "71_index", "72_retrieval", "73_search"), "offline,search"),
    **dict.fromkeys(("74_clicks", "75_demo", "91_cli"), "offline,search"),
    "76_engine": "offline,search,engine,ray",
    "similarity/40_explanation": "offline,explain",
}
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{user}/{repo}/blob/{branch}/{path})"
)


def settings(root: Path = ROOT) -> dict[str, str]:
    "What settings.ini says, with its references resolved."
    config = configparser.ConfigParser()
    config.read(root / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def chapters(root: Path = ROOT) -> list[Path]:
    "All notebooks of the book, in the reading order of _quarto.yml; what it does not list yet comes last."
    found = (root / "nbs").rglob("*.ipynb")
    own = sorted(p for p in found if not any(part[0] in "._" for part in p.relative_to(root).parts))
    book = root / "_quarto.yml"
    listed = re.findall(r"nbs/\S+\.ipynb", book.read_text(encoding="utf-8")) if book.exists() else []
    place = {name: i for i, name in enumerate(listed)}
    return sorted(own, key=lambda p: place.get(p.relative_to(root).as_posix(), len(place)))


def references(root: Path = ROOT) -> list[Path]:
    "The pages in the part Reference of _quarto.yml: one looks things up there; they claim and measure nothing."
    import yaml

    book = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))["book"]
    parts = [entry for entry in book["chapters"] if isinstance(entry, dict) and entry["part"] == "Reference"]
    return [root / name for part in parts for name in part["chapters"]]


def badge(path: str, config: dict[str, str]) -> str:
    "The Colab badge of the chapter at `path` (relative to the repository)."
    return BADGE.format(path=path, **{key: config[key] for key in ("user", "repo", "branch")})


def install_cell(config: dict[str, str], name: str = "") -> str:
    "The cell that installs prodsim in Colab, with what the chapter needs."
    return INSTALL_CELL.format(git_url=config["git_url"], extras=EXTRAS.get(name, "offline"))


def relink(text: str, config: dict[str, str]) -> str:
    "Any owner of this repository in `text`, on GitHub, GitHub Pages or Colab, becomes the owner in settings.ini."
    user, repo = config["user"], config["repo"]
    hosts = r"(github\.com/|raw\.githubusercontent\.com/|colab\.research\.google\.com/github/)"
    text = re.sub(rf"{hosts}[\w.-]+/{repo}(?![\w-])", rf"\g<1>{user}/{repo}", text)
    return re.sub(rf"https://[\w-]+\.github\.io/{repo}(?![\w-])", f"https://{user}.github.io/{repo}", text)


def relink_chapter(text: str, path: str, config: dict[str, str]) -> str:
    "The same for the JSON of a notebook, whose badge must also name its own path."
    text = relink(text, config)
    own = rf"(colab\.research\.google\.com/github/{config['user']}/{config['repo']}/blob/)[^\s)\"\\]+\.ipynb"
    cells = json.loads(text)["cells"]
    first = "".join(cells[0]["source"]) if cells else ""
    for url in {match.group(0) for match in re.finditer(own, first)}:
        text = text.replace(url, re.sub(own, rf"\g<1>{config['branch']}/{path}", url))
    return text


def rewritten(root: Path = ROOT) -> dict[Path, str]:
    "Files whose links differ from settings.ini, with the text they should have."
    config = settings(root)
    texts = [root / name for name in ("_quarto.yml", "CITATION.cff", "index.qmd")]
    texts += [*root.glob("*.md"), *(root / ".github").rglob("*.yml")]
    wanted = {path: relink(path.read_text(encoding="utf-8"), config) for path in texts if path.exists()}
    for path in chapters(root):
        name = path.relative_to(root).as_posix()
        wanted[path] = relink_chapter(path.read_text(encoding="utf-8"), name, config)
    return {path: text for path, text in wanted.items() if text != path.read_text(encoding="utf-8")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file differs")
    check = parser.parse_args().check
    changes = rewritten()
    for path, text in changes.items():
        if not check:
            path.write_text(text, encoding="utf-8")
        print(f"{'differs' if check else 'rewritten'}: {path.relative_to(ROOT)}")
    if not changes:
        print(f"links agree with settings.ini (owner {settings()['user']})")
    return int(check and bool(changes))


if __name__ == "__main__":
    sys.exit(main())
