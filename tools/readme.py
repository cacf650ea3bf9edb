"""Fill the README's results from the stored runs; with --check only say whether they differ."""

import argparse
import re
import sys

from links import ROOT

from prodsim.evidence import markdown_table, plot_summary, summary

README = ROOT / "README.md"
PICTURE = ROOT / "images" / "results.png"
CAPTION = """\
F1 × 100 of the match class on the whole test split, at a threshold chosen on validation pairs: mean over seeds,
± standard deviation, and the 95 % bootstrap interval. The default encoder has 22.7 M parameters. In italics: what
others published on the same test splits, quoted ([sources](prodsim/results/published.toml))."""


def filled() -> str:
    "The README with the table that the stored runs give."
    picture = "![F1 and its 95 % interval of each system on each benchmark](images/results.png)"
    block = f"<!-- results -->\n{CAPTION}\n\n{markdown_table()}\n\n{picture}\n<!-- /results -->"
    text = README.read_text(encoding="utf-8")
    text, count = re.subn(r"<!-- results -->.*?<!-- /results -->", lambda _: block, text, flags=re.DOTALL)
    if count != 1:
        sys.exit("README.md: one block between <!-- results --> and <!-- /results --> was expected")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the table differs")
    check, text = parser.parse_args().check, filled()
    differs = text != README.read_text(encoding="utf-8")
    if differs and not check:
        README.write_text(text, encoding="utf-8")
    if not check:
        PICTURE.parent.mkdir(exist_ok=True)
        plot_summary(summary()).savefig(PICTURE)
    print(f"README.md: {'results differ from the stored runs' if differs and check else 'results are those stored'}")
    return int(differs and check)


if __name__ == "__main__":
    sys.exit(main())
