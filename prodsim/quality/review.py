import base64
import contextlib
import csv
import datetime
import hashlib
import html
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict

from prodsim.core import ProdsimError, atomic_file, hash_text
from prodsim.data import attributes, record_ids
# %%
#| export
VERDICTS = {"match": 1, "no match": 0, "cannot tell": None}
_READ_AS = {
    **{v: v for v in VERDICTS},
    **{"1": "match", "1.0": "match", "yes": "match", "y": "match", "m": "match", "匹配": "match", "是": "match"},
    **{"0": "no match", "0.0": "no match", "no": "no match", "n": "no match", "不匹配": "no match", "否": "no match"},
    **{"?": "cannot tell", "unclear": "cannot tell", "不确定": "cannot tell"},
}


def pair_keys(
    pairs: Dataset,  # with columns left_<attribute>, right_<attribute>
) -> list[str]:  # one per row: "pair-" and 16 hex digits
    """A name of each pair that follows from what its two records say, in either order, whatever ids the file gave: a verdict
    holds wherever the same two records stand again."""
    sides = zip(record_ids(pairs, "left"), record_ids(pairs, "right"), strict=True)
    return [f"pair-{hash_text(' '.join(sorted(ids)))}" for ids in sides]


def doubt(
    probabilities: np.ndarray,  # (n,) of a match, in [0, 1]; out of fold, or a model defends the labels it has learnt
    labels: np.ndarray | None = None,  # (n,) 0 or 1; None: how unsure the model is, whatever the label
) -> np.ndarray:  # (n,) in [0, 1], larger = read sooner
    """How doubtful each row is: the probability that its label is wrong, which is one minus the *self-confidence* of
    confident learning (Northcutt et al. 2021); without labels the margin, 1 at probability one half and 0 at 0 or 1."""
    p = _numbers(probabilities, "probabilities")
    if ((p < 0) | (p > 1)).any():
        row = int(((p < 0) | (p > 1)).argmax())
        raise ProdsimError(f"probabilities: {p[row]:g} in row {row} (counted from 0) lies outside 0 to 1")
    if labels is None:
        return 1 - np.abs(2 * p - 1)
    y = _numbers(labels, "labels")
    if len(y) != len(p) or not np.isin(y, (0, 1)).all():
        raise ProdsimError(f"{len(y)} labels for {len(p)} probabilities: one each is needed, 0 or 1")
    return np.where(y == 1, 1 - p, p)


def _numbers(values: object, name: str) -> np.ndarray:
    try:
        out = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ProdsimError(f"{name} must be numbers, one per row") from None
    if out.ndim != 1:
        raise ProdsimError(f"{name} must be one-dimensional, the shape is {out.shape}")
    if (bad := ~np.isfinite(out)).any():
        raise ProdsimError(f"{name}: {out[bad.argmax()]} in row {int(bad.argmax())} (counted from 0) is no number")
    return out


def read_doubts(
    path: str | Path,  # .npy, or .csv, .tsv, .jsonl, .parquet with one column of numbers or one of the names below
    n: int,  # rows of the data
) -> np.ndarray:  # (n,)
    """Scores of doubt that another tool wrote, one per row of the data and in its order. Of several columns the one called
    doubt, score or probability is read. Raises ProdsimError if there is none, or not one number per row."""
    path = Path(path)
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".npy": np.load}
    readers[".tsv"] = lambda p: pd.read_csv(p, sep="\t")
    readers[".jsonl"] = lambda p: pd.read_json(p, lines=True)
    if path.suffix not in readers:
        raise ProdsimError(f"{path}: doubts are read from {', '.join(sorted(readers))}")
    try:
        table = readers[path.suffix](path)
    except (OSError, ValueError, EOFError) as error:
        raise ProdsimError(f"{path}: cannot be read ({' '.join(str(error).split())[:160]})") from None
    if isinstance(table, pd.DataFrame):
        names = [c for c in ("doubt", "score", "probability") if c in table] or list(table.columns)
        if not names or (len(table.columns) > 1 and names[0] not in ("doubt", "score", "probability")):
            raise ProdsimError(f"{path}: no column doubt, score or probability among {', '.join(map(str, table))}")
        table = table[names[0]].to_numpy()
    out = _numbers(table, str(path))
    if len(out) != n:
        raise ProdsimError(f"{path}: {len(out)} numbers for {n} rows of data; one per row, in its order, is needed")
    return out

# %%
#| export
def review_queue(
    pairs: Dataset,  # labelled pairs of one split
    doubts: np.ndarray,  # (n,) one per row, larger = read sooner; see `doubt`
    n: int = 50,  # pairs to read, at most
) -> pd.DataFrame:  # pair_id, row (in `pairs`), label, doubt, then left_… and right_… side by side; most doubtful first
    """The most doubtful rows, each pair of records once however often it stands in the data; ties in the order of the rows.

    Raises ProdsimError if there is not one finite doubt per row, or no label."""
    if "label" not in pairs.column_names:
        raise ProdsimError(f"the pairs have no column label; they have {', '.join(pairs.column_names)}")
    scores = _numbers(doubts, "doubts")
    if len(scores) != len(pairs):
        raise ProdsimError(f"{len(scores)} doubts for {len(pairs)} pairs: there must be one per row")
    if n < 1:
        raise ProdsimError(f"a queue of {n} rows: ask for at least 1")
    keys, rows, seen = pair_keys(pairs), [], set()
    for row in np.argsort(-scores, kind="stable").tolist():
        if len(rows) == n:
            break
        if keys[row] not in seen:
            seen.add(keys[row])
            rows.append(row)
    part = pairs.select(rows)
    out = pd.DataFrame(
        {
            "pair_id": [keys[r] for r in rows],
            "row": rows,
            "label": list(part["label"]),
            "doubt": scores[rows],
        }
    )
    for name in attributes(pairs):
        for side in ("left", "right"):
            out[f"{side}_{name}"] = pd.Series([v or "" for v in part[f"{side}_{name}"]], dtype=object)
    return out


def queue_id(
    queue: pd.DataFrame,  # see `review_queue`
) -> str:  # 16 hex digits: the same pairs in any order have the same
    "A name of the queue, by which the page finds its saved progress again."
    return hash_text(" ".join(sorted(queue["pair_id"])))


def _ordered(queue: pd.DataFrame, blind: bool, seed: int) -> pd.DataFrame:
    "A blind reading has neither label nor doubt, and an order that tells nothing about them."
    if not blind:
        return queue
    order = np.random.default_rng(seed).permutation(len(queue))
    return queue.iloc[order].drop(columns=["label", "doubt", "row"], errors="ignore").reset_index(drop=True)

# %%
#| export
_FORMULA = re.compile(r"^'*[=+\-@\t\r]")
_MARK_COLUMNS = ("verdict", "deciding_words", "who", "when", "reading", "queue")


def _cell_out(text: str) -> str:
    "A cell that a spreadsheet would run as a formula gets a leading apostrophe; see `_cell_in`."
    return f"'{text}" if _FORMULA.match(text) else text


def _cell_in(text: str) -> str:
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


def export_csv(
    queue: pd.DataFrame,  # see `review_queue`
    path: str | Path,  # the file to write
    blind: bool = False,  # leave out label and doubt, and shuffle by `seed`
    seed: int = 0,
    reading: int = 1,  # 1 for the first reading, 2 for the second
    who: str = "",  # the reader, if known already
) -> None:
    """Write a queue as CSV for a spreadsheet: fill in `verdict` (match, no match, cannot tell), `deciding_words` and `who`.

    UTF-8 with a byte order mark, so that spreadsheets show Chinese; cells that would be run as formulas are
    disarmed."""
    table = _ordered(queue, blind, seed)
    named, mark = queue_id(queue), ["", "", who, ""]
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*table.columns, *_MARK_COLUMNS])
        for row in table.itertuples(index=False):
            cells = [_cell_out(v) if isinstance(v, str) else v for v in row]
            writer.writerow([*cells, *mark, reading, named])

# %%
#| export
_SPAN = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff_]+(?:[.\-/][^\W\u3400-\u9fff_]+)*|\s+|.", re.DOTALL)


def marked_difference(
    left: str,  # one text
    right: str,  # the other
) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:  # per side: pieces, and whether the other side lacks them
    """Cut two texts into pieces and mark those whose words the other does not have, in any order and any case; a Chinese
    character counts as a word. "".join of the pieces is the text."""
    pieces = [_SPAN.findall(text) for text in (left, right)]
    words = [{_plain(p) for p in side} for side in pieces]
    out = []
    for side, other in zip(pieces, reversed(words), strict=True):
        merged: list[tuple[str, bool]] = []
        for piece in side:
            differs = any(c.isalnum() for c in piece) and _plain(piece) not in other
            if merged and (merged[-1][1] == differs or (piece.isspace() and not merged[-1][1])):
                merged[-1] = (merged[-1][0] + piece, merged[-1][1])
            else:
                merged.append((piece, differs))
        out.append(merged)
    return out[0], out[1]


def _plain(word: str) -> str:
    "A word without case and inner marks: AB-1234 and ab1234 do not differ."
    return re.sub(r"[\W_]", "", word.lower())


def _marked_html(pieces: list[tuple[str, bool]]) -> str:
    return "".join(f"<mark>{html.escape(t)}</mark>" if differs else html.escape(t) for t, differs in pieces)


def pair_table(
    row: dict,  # a row of a queue: left_<attribute> and right_<attribute>
) -> str:  # an HTML table, every text escaped
    "Two records side by side, the words that only one of them has marked."
    names = [c.removeprefix("left_") for c in row if c.startswith("left_")]
    lines = []
    for name in names:
        texts = [str(row[f"{side}_{name}"] or "") for side in ("left", "right")]
        left, right = (_marked_html(pieces) for pieces in marked_difference(*texts))
        lines.append(f"<tr><th>{html.escape(name)}</th><td>{left}</td><td>{right}</td></tr>")
    return f"<table>{''.join(lines)}</table>"

# %%
#| export
_STYLE = """
:root{color-scheme:light dark;--line:#8884;--on:#0072B2}
body{font:16px/1.5 system-ui,"PingFang SC","Microsoft YaHei","Noto Sans CJK SC",sans-serif;margin:0 auto;max-width:1100px;
padding:0 1rem 6rem}
header{position:sticky;top:0;background:Canvas;padding:.6rem 0;border-bottom:1px solid var(--line);z-index:1}
header label{margin-right:1rem}kbd{border:1px solid var(--line);border-radius:3px;padding:0 .35em}
.pair{border:2px solid var(--line);border-radius:8px;margin:1rem 0;padding:.8rem 1rem;scroll-margin-top:9rem}
.pair.now{border-color:var(--on)}.pair.done{opacity:.75}.pair.now.done{opacity:1}
table{width:100%;border-collapse:collapse;table-layout:fixed}th{width:7.5rem;text-align:left;font-weight:600}
th,td{vertical-align:top;padding:.25rem .6rem .25rem 0;overflow-wrap:anywhere}
mark{background:#E69F0066;color:inherit;border-radius:2px}
button{font:inherit;padding:.25rem .8rem;margin:.4rem .5rem 0 0;cursor:pointer}
button[aria-pressed=true]{background:var(--on);color:#fff}
input{font:inherit;padding:.2rem .5rem}.words{width:min(100%,36rem);margin-top:.5rem}
.note{color:GrayText;font-size:.9em}
"""

_SCRIPT = """
"use strict";
const setup = JSON.parse(document.getElementById("setup").textContent);
const key = "prodsim-review:" + setup.queue + ":" + setup.reading;
const pairs = [...document.querySelectorAll(".pair")];
const who = document.getElementById("who");
let state = {who: setup.who, marks: {}};
try { state = Object.assign(state, JSON.parse(localStorage.getItem(key) || "{}")); } catch (error) { }
let now = Math.max(0, pairs.findIndex(p => !(state.marks[p.id] || {}).verdict));
function save() {
  try { localStorage.setItem(key, JSON.stringify(state)); }
  catch (error) { document.getElementById("count").textContent = "Progress cannot be kept here: download before closing."; }
}
function show() {
  let done = 0;
  pairs.forEach((pair, i) => {
    const mark = state.marks[pair.id] || {};
    if (mark.verdict) done += 1;
    pair.classList.toggle("done", Boolean(mark.verdict));
    pair.classList.toggle("now", i === now);
    pair.querySelectorAll("button").forEach(b => b.setAttribute("aria-pressed", String(b.value === mark.verdict)));
    const words = pair.querySelector(".words");
    if (document.activeElement !== words) words.value = mark.words || "";
  });
  document.getElementById("count").textContent = done + " of " + pairs.length + " read";
}
function go(i) {
  now = Math.min(Math.max(i, 0), pairs.length - 1);
  show();
  pairs[now].scrollIntoView({block: "start"});
}
function stamp() { return new Date().toISOString().replace(/\\.\\d+Z$/, "+00:00"); }
function judge(i, verdict) {
  state.marks[pairs[i].id] = Object.assign({words: ""}, state.marks[pairs[i].id], {verdict: verdict, when: stamp()});
  save();
}
pairs.forEach((pair, i) => {
  pair.addEventListener("click", () => { now = i; show(); });
  pair.querySelectorAll("button").forEach(b => b.addEventListener("click", () => { judge(i, b.value); show(); }));
  pair.querySelector(".words").addEventListener("input", event => {
    const old = state.marks[pair.id] || {verdict: ""};
    state.marks[pair.id] = Object.assign(old, {words: event.target.value, when: stamp()});
    save();
  });
});
who.value = state.who || "";
who.addEventListener("input", () => { state.who = who.value.trim(); save(); });
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.tagName === "INPUT") {
    if (event.key === "Escape" || event.key === "Enter") { event.target.blur(); event.preventDefault(); }
    return;
  }
  const verdict = {m: "match", n: "no match", c: "cannot tell"}[event.key.toLowerCase()];
  if (verdict) { judge(now, verdict); go(now + 1); }
  else if (event.key === "j" || event.key === "ArrowDown") go(now + 1);
  else if (event.key === "k" || event.key === "ArrowUp") go(now - 1);
  else if (event.key === "w") pairs[now].querySelector(".words").focus();
  else return;
  event.preventDefault();
});
function marks() {
  return pairs.filter(p => (state.marks[p.id] || {}).verdict).map(p => {
    const mark = state.marks[p.id];
    return {pair_id: p.id, verdict: mark.verdict, deciding_words: mark.words || "", when: mark.when};
  });
}
function asJson() {
  const head = {format: "prodsim-review-marks", version: 1, queue: setup.queue, reading: setup.reading, who: state.who};
  return JSON.stringify(Object.assign(head, {marks: marks()}), null, 1) + "\\n";
}
function asCsv() {
  const cell = v => '"' + String(/^'*[=+\\-@\\t\\r]/.test(v) ? "'" + v : v).replaceAll('"', '""') + '"';
  const head = ["pair_id", "verdict", "deciding_words", "who", "when", "reading", "queue"];
  const rows = marks().map(m => [m.pair_id, m.verdict, m.deciding_words, state.who, m.when, setup.reading, setup.queue]);
  return "\\ufeff" + [head, ...rows].map(r => r.map(cell).join(",")).join("\\r\\n") + "\\r\\n";
}
function download(name, kind, text) {
  if (!state.who) { who.focus(); document.getElementById("count").textContent = "Who are you? Write your name first."; return; }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: kind}));
  link.download = name + "-" + setup.queue + "-" + setup.reading + (kind === "text/csv" ? ".csv" : ".json");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
document.getElementById("json").addEventListener("click", () => download("marks", "application/json", asJson()));
document.getElementById("csv").addEventListener("click", () => download("marks", "text/csv", asCsv()));
show();
"""


def export_html(
    queue: pd.DataFrame,  # see `review_queue`
    path: str | Path,  # the file to write
    blind: bool = False,  # leave out label and doubt, and shuffle by `seed`
    seed: int = 0,
    reading: int = 1,  # 1 for the first reading, 2 for the second
    who: str = "",  # the reader, if known already
    title: str = "Label review",
) -> None:
    """Write a queue as one HTML page that needs no network: keys m, n, c judge a pair, w goes to the deciding words, j and k
    to the next and last one; progress stays in the browser, and the marks are downloaded as JSON or CSV.

    Every text is escaped, and the page's own policy lets nothing run but its own script, by hash."""
    with atomic_file(path) as temporary:
        temporary.write_text(_page(queue, blind, seed, reading, who, title), encoding="utf-8")


def _page(queue: pd.DataFrame, blind: bool, seed: int, reading: int, who: str, title: str) -> str:
    table, buttons = _ordered(queue, blind, seed), ""
    for key, verdict in zip("mnc", VERDICTS, strict=True):
        buttons += f'<button type="button" value="{verdict}">{verdict} <kbd>{key}</kbd></button>'
    parts = []
    for number, row in enumerate(table.to_dict("records"), 1):
        note = f"{number} of {len(table)}"
        if not blind:
            note += f" · labelled {'match' if row['label'] == 1 else 'no match'} · doubt {row['doubt']:.3f}"
        parts.append(
            f'<section class="pair" id="{html.escape(row["pair_id"])}"><p class="note">{note}</p>{pair_table(row)}'
            f'<div>{buttons}</div><input class="words" placeholder="the words that decide it (w)" '
            f'aria-label="deciding words"></section>'
        )
    # inside a script element only "<" can do harm
    facts = json.dumps({"queue": queue_id(queue), "reading": reading, "who": who}).replace("<", "\\u003c")
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>
<header><strong>{html.escape(title)}</strong> · reading {reading}{" (blind)" if blind else ""} · <span id="count"></span>
<div><label>Reader <input id="who" autocomplete="name"></label>
<button type="button" id="json">Download JSON</button><button type="button" id="csv">Download CSV</button></div>
<div class="note">Same product? <kbd>m</kbd> match, <kbd>n</kbd> no match, <kbd>c</kbd> cannot tell; <kbd>w</kbd> write the
words that decide, Enter leaves; <kbd>j</kbd> <kbd>k</kbd> next and last. Marked: words that only one side has.</div></header>
{"".join(parts)}
<script type="application/json" id="setup">{facts}</script>
<script>{_SCRIPT}</script>
</body></html>
"""

# %%
#| export
def read_marks(
    path: str | Path,  # a CSV that was filled in, or the CSV or JSON that the page gave
    who: str = "",  # the reader, where the file does not say
) -> list[dict]:  # line, pair_id, verdict, words, who, when, reading, queue, texts (attributes as the file has them)
    """Read a reader's marks; rows without a verdict are left out.

    Raises ProdsimError, with the line, for a file that is no file of marks, a verdict that is none, or no reader."""
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ProdsimError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ProdsimError(f"{path}: not UTF-8 at byte {error.start}; save it as CSV UTF-8") from None
    rows = _json_marks(path, text) if text.lstrip().startswith("{") else _csv_marks(path, text)
    out, seen = [], {}
    for line, row in rows:
        verdict = str(row.get("verdict") or "").strip()
        if not verdict:
            continue
        where = f"{path}, line {line}" if path.suffix != ".json" else f"{path}, mark {line}"
        if verdict.lower() not in _READ_AS:
            raise ProdsimError(f"{where}: verdict {verdict!r} is none of {', '.join(VERDICTS)}")
        key = str(row.get("pair_id") or "").strip()
        if not re.fullmatch(r"pair-[0-9a-f]{16}", key):
            raise ProdsimError(f"{where}: {key!r} is no pair_id; it was edited, or the file is no exported queue")
        reader = str(row.get("who") or who).strip()
        if not reader:
            raise ProdsimError(f"{where}: nobody is named as the reader; fill in the column who, or name one")
        reading = str(row.get("reading") or "1").strip().removesuffix(".0")
        if not reading.isascii() or not reading.isdigit() or not 1 <= int(reading) <= 99:
            raise ProdsimError(f"{where}: reading {reading!r} is no number from 1")
        mark = {
            "line": where,
            "pair_id": key,
            "verdict": _READ_AS[verdict.lower()],
            "words": str(row.get("deciding_words") or "").strip(),
            "who": reader,
            "when": _time(where, row.get("when")),
            "reading": int(reading),
            "queue": str(row.get("queue") or "").strip(),
            "texts": {k: v for k, v in row.items() if str(k).startswith(("left_", "right_"))},
        }
        mark["label"] = None if row.get("label") in (None, "") else str(row["label"]).strip().removesuffix(".0")
        if (first := seen.setdefault((key, reader, reading), mark)) is not mark:
            if first["verdict"] != mark["verdict"]:
                raise ProdsimError(f"{where}: {key} has another verdict in {first['line']}; keep one of the two")
            continue
        out.append(mark)
    return out


def _csv_marks(path: Path, text: str) -> Iterator[tuple[int, dict]]:
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [n.strip() for n in next(reader, [])]
        if missing := [n for n in ("pair_id", "verdict") if n not in names]:
            raise ProdsimError(f"{path}: no column {missing[0]}: this is no file that prodsim exported for review")
        for row in reader:
            if not any(row):
                continue
            if len(row) != len(names):
                raise ProdsimError(f"{path}, line {reader.line_num}: {len(row)} cells for {len(names)} columns")
            yield reader.line_num, dict(zip(names, map(_cell_in, row), strict=True))
    except csv.Error as error:
        raise ProdsimError(f"{path}, line {reader.line_num}: not CSV ({error})") from None


def _json_marks(path: Path, text: str) -> Iterator[tuple[int, dict]]:
    try:
        whole = json.loads(text)
    except ValueError as error:
        raise ProdsimError(f"{path}: broken JSON ({error}); download it again") from None
    marks = whole.get("marks")
    if whole.get("format") != "prodsim-review-marks" or not isinstance(marks, list):
        raise ProdsimError(f"{path}: no marks of a review page; use the page's Download JSON")
    if whole.get("version") != 1:
        raise ProdsimError(f"{path}: version {whole.get('version')!r} of the marks; this prodsim reads version 1")
    shared = {k: whole.get(k) for k in ("who", "reading", "queue")}
    for number, mark in enumerate(marks, 1):
        if not isinstance(mark, dict):
            raise ProdsimError(f"{path}, mark {number}: not an object")
        yield number, {**shared, **mark}


def _time(where: str, value: object) -> str:
    "A time as ISO 8601 in UTC; empty where none is given."
    text = str(value or "").strip()
    if not text:
        return ""
    try:
        read = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ProdsimError(f"{where}: {text!r} is no time; write it as 2026-01-31T14:05:00") from None
    read = read if read.tzinfo else read.replace(tzinfo=datetime.UTC)
    return read.astimezone(datetime.UTC).isoformat(timespec="seconds")

# %%
#| export
_TRAIL_KEYS = ("pair_id", "old", "new", "verdict", "words", "who", "when", "reading", "queue", "source")


def read_trail(
    path: str | Path,  # a JSONL file, one verdict a line; need not exist
) -> list[dict]:  # pair_id, old, new, verdict, words, who, when, reading, queue, source; in the order of import
    "Read an audit trail. Raises ProdsimError with the line that is none."
    path, out = Path(path), []
    if not path.exists():
        return out
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ProdsimError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            raise ProdsimError(f"{path}, line {number}: broken JSON; restore the trail from a copy") from None
        if not isinstance(entry, dict) or set(_TRAIL_KEYS) - set(entry) or entry["verdict"] not in VERDICTS:
            raise ProdsimError(f"{path}, line {number}: no entry of an audit trail")
        if entry["new"] != VERDICTS[entry["verdict"]]:
            raise ProdsimError(f"{path}, line {number}: label {entry['new']} for verdict {entry['verdict']!r}: edited")
        out.append(entry)
    return out


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    "One import at a time: two that read the same trail and wrote it back would lose one's entries."
    try:
        import fcntl
    except ImportError:  # not on Windows, where os.replace refuses an open file anyway
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _labels_by_key(pairs: Dataset | DatasetDict) -> dict[str, set[int]]:
    out: dict[str, set[int]] = {}
    for part in _parts(pairs).values():
        if "label" not in part.column_names:
            raise ProdsimError(f"the pairs have no column label; they have {', '.join(part.column_names)}")
        for key, label in zip(pair_keys(part), part["label"], strict=True):
            out.setdefault(key, set()).add(label)
    return out


def _parts(pairs: Dataset | DatasetDict) -> dict[str, Dataset]:
    return dict(pairs) if isinstance(pairs, DatasetDict) else {"": pairs}


def import_reviews(
    path: str | Path | Iterable[str | Path],  # one or several files of marks, see `read_marks`
    trail: str | Path,  # the audit trail to append to, JSONL; made if need be
    pairs: Dataset | DatasetDict,  # the data that was read, with the labels it had
    who: str = "",  # the reader, where a file does not say
) -> dict:  # marks, new (entries appended), known (already there), changed (labels), cannot_tell, conflicts
    """Append what readers decided to the audit trail, with who, when, old and new label; all of the files or nothing.

    A second import of the same file appends nothing. Raises ProdsimError, and leaves the trail as it is, for a pair that
    is not in `pairs`, for a row whose records or old label were edited, and for whatever `read_marks` refuses."""
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    trail, labels = Path(trail), _labels_by_key(pairs)
    names = attributes(pairs)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with _locked(trail):
        entries = read_trail(trail)
        past: dict[str, set] = {}
        known: dict[tuple, set[str]] = {}
        for entry in entries:
            past.setdefault(entry["pair_id"], set()).update({entry["old"], entry["new"]} - {None})
            known.setdefault(_what(entry), set()).add(entry["when"])
        new, marks = [], 0
        for one in paths:
            for mark in read_marks(one, who):
                marks += 1
                _check_mark(mark, labels, past, names)
                times = known.setdefault(_what(mark), set())
                if times and (not mark["when"] or mark["when"] in times):
                    continue
                own = labels[mark["pair_id"]]
                told = int(mark["label"]) if mark["label"] in ("0", "1") else None
                entry = {
                    "pair_id": mark["pair_id"],
                    "old": told if told in own else min(own) if len(own) == 1 else None,
                    "new": VERDICTS[mark["verdict"]],
                    "verdict": mark["verdict"],
                    "words": mark["words"],
                    "who": mark["who"],
                    "when": mark["when"] or now,
                    "reading": mark["reading"],
                    "queue": mark["queue"],
                    "source": Path(one).name,
                }
                times.add(entry["when"])
                new.append(entry)
        if new:
            before = trail.read_bytes() if trail.exists() else b""
            if before and not before.endswith(b"\n"):
                before += b"\n"
            with atomic_file(trail) as temporary:
                lines = "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in new)
                temporary.write_bytes(before + lines.encode("utf-8"))
    return {
        "marks": marks,
        "new": len(new),
        "known": marks - len(new),
        "changed": sum(e["new"] is not None and e["new"] != e["old"] for e in new),
        "cannot_tell": sum(e["new"] is None for e in new),
        "conflicts": len(conflicts(entries + new)),
    }


def _what(entry: dict) -> tuple:
    return tuple(entry[k] for k in ("pair_id", "who", "reading", "verdict", "words"))


def _check_mark(mark: dict, labels: dict[str, set[int]], past: dict[str, set], names: list[str]) -> None:
    "A mark must be about a pair of the data, as it stands there."
    key = mark["pair_id"]
    if key not in labels:
        raise ProdsimError(f"{mark['line']}: {key} is not in this data; the queue was exported from another")
    if mark["texts"]:
        columns = [f"{side}_{n}" for side in ("left", "right") for n in names]
        if lacking := [c for c in columns if c not in mark["texts"]]:
            raise ProdsimError(f"{mark['line']}: the column {lacking[0]} was removed; restore it, or remove all of them")
        one = Dataset.from_dict({c: [str(mark["texts"][c] or "") or None] for c in columns})
        if pair_keys(one) != [key]:
            raise ProdsimError(
                f"{mark['line']}: the records of {key} were edited after the export; put their text back, "
                "or remove the left_ and right_ columns to import by pair_id alone"
            )
    allowed = {str(label) for label in labels[key] | past.get(key, set())}
    if mark["label"] is not None and mark["label"] not in allowed:
        raise ProdsimError(
            f"{mark['line']}: label {mark['label']!r}, but the data say {' and '.join(sorted(allowed))}; "
            "the verdict belongs into the column verdict"
        )

# %%
#| export
def _latest(trail: Iterable[dict]) -> dict[str, dict[tuple[str, int], dict]]:
    "pair_id → (who, reading) → that reader's last word, by the time it was given."
    out: dict[str, dict[tuple[str, int], dict]] = {}
    for entry in trail:
        readers = out.setdefault(entry["pair_id"], {})
        reader = (entry["who"], entry["reading"])
        if reader not in readers or entry["when"] >= readers[reader]["when"]:
            readers[reader] = entry
    return out


def _entries(trail: str | Path | Iterable[dict]) -> list[dict]:
    if not isinstance(trail, str | os.PathLike):
        return list(trail)
    if not Path(trail).exists():
        raise ProdsimError(f"{trail}: there is no such audit trail; prodsim review import writes one")
    return read_trail(trail)


def conflicts(
    trail: str | Path | Iterable[dict],  # a trail or its file
) -> pd.DataFrame:  # pair_id, match, no_match (who says so), words
    "Pairs that one reader calls a match and another, or the same one in another reading, does not."
    rows = []
    for key, readers in _latest(_entries(trail)).items():
        said = {v: [e for e in readers.values() if e["verdict"] == v] for v in ("match", "no match")}
        if all(said.values()):
            names = [", ".join(f"{e['who']} ({e['reading']})" for e in entries) for entries in said.values()]
            words = " | ".join(e["words"] for entries in said.values() for e in entries)
            rows.append((key, *names, words))
    return pd.DataFrame(rows, columns=["pair_id", "match", "no_match", "words"])


def join_readings(
    trail: str | Path | Iterable[dict],  # a trail or its file
    first: tuple[str | None, int] = (None, 1),  # who and which reading; None: whoever did it, the last of them
    second: tuple[str | None, int] = (None, 2),
) -> pd.DataFrame:  # pair_id, old, verdict_1, words_1, who_1, verdict_2, words_2, who_2, agree
    "Two readings of the same pairs side by side; pairs that only one of them read are left out."
    rows = []
    for key, readers in _latest(_entries(trail)).items():
        found = []
        for who, reading in (first, second):
            own = [e for (w, r), e in readers.items() if r == reading and who in (None, w)]
            found.append(max(own, key=lambda e: e["when"]) if own else None)
        if all(found):
            a, b = found
            row = [key, a["old"], *(e[k] for e in found for k in ("verdict", "words", "who"))]
            rows.append([*row, a["verdict"] == b["verdict"]])
    names = "pair_id old verdict_1 words_1 who_1 verdict_2 words_2 who_2 agree"
    return pd.DataFrame(rows, columns=names.split()).astype({"agree": bool})


def agreement(
    readings: pd.DataFrame,  # see `join_readings`
    resamples: int = 1000,  # bootstrap draws for the interval
    seed: int = 0,
) -> dict:  # pairs, agree (share), kappa, kappa_low, kappa_high, table (first × second reading)
    """How far two readings agree beyond chance: Cohen's kappa (1960), with a 95 % bootstrap interval over pairs.

    None where it is undefined: no pairs, or both readings say the same one thing throughout."""
    from sklearn.metrics import cohen_kappa_score, confusion_matrix

    kinds, n = list(VERDICTS), len(readings)
    if not n:
        return {"pairs": 0, "agree": None, "kappa": None, "kappa_low": None, "kappa_high": None, "table": {}}
    a, b = readings["verdict_1"].tolist(), readings["verdict_2"].tolist()
    table = confusion_matrix(a, b, labels=kinds)
    kappa = low = high = None
    if len(set(a) | set(b)) > 1:
        kappa = float(cohen_kappa_score(a, b, labels=kinds))
        drawn = np.random.default_rng(seed).multinomial(n, table.ravel() / n, size=resamples).reshape(-1, 3, 3) / n
        seen = np.trace(drawn, axis1=1, axis2=2)
        chance = (drawn.sum(1) * drawn.sum(2)).sum(1)
        values = (seen - chance)[chance < 1] / (1 - chance[chance < 1])
        low, high = (float(v) for v in np.quantile(values, [0.025, 0.975]))
    counts = {first: {second: int(v) for second, v in zip(kinds, row, strict=True)} for first, row in zip(kinds, table, strict=True)}
    return {
        "pairs": n,
        "agree": float(np.mean([x == y for x, y in zip(a, b, strict=True)])),
        "kappa": kappa,
        "kappa_low": low,
        "kappa_high": high,
        "table": counts,
    }

# %%
#| export
ON_CONFLICT = ("keep", "majority", "latest", "error")


def decided_labels(
    trail: str | Path | Iterable[dict],  # a trail or its file
    on_conflict: str = "keep",  # keep the old label, majority of readers (a tie keeps), latest verdict, or error
) -> dict[str, int]:  # pair_id → label, for the pairs that are decided
    "What the readers decided; a pair of which nobody can tell, or on which they disagree under `keep`, is not among them."
    if on_conflict not in ON_CONFLICT:
        raise ProdsimError(f"on_conflict {on_conflict!r}: choose one of {', '.join(ON_CONFLICT)}")
    out = {}
    for key, readers in _latest(_entries(trail)).items():
        told = sorted((e for e in readers.values() if e["new"] is not None), key=lambda e: e["when"])
        counts = Counter(e["new"] for e in told).most_common()
        if len(counts) == 1:
            out[key] = counts[0][0]
        elif counts and on_conflict == "error":
            raise ProdsimError(f"{key}: readers disagree ({', '.join(e['who'] for e in told)}); let one more decide")
        elif counts and on_conflict == "latest":
            out[key] = told[-1]["new"]
        elif counts and on_conflict == "majority" and counts[0][1] > counts[1][1]:
            out[key] = counts[0][0]
    return out


def apply_reviews(
    pairs: Dataset | DatasetDict,  # labelled pairs
    trail: str | Path | Iterable[dict],  # a trail or its file
    on_conflict: str = "keep",  # see `decided_labels`
) -> Dataset | DatasetDict:  # the same rows, columns and order; only labels differ
    """Put the readers' verdicts in place of the labels, in every row that holds the two records of a pair, in either order.

    Nothing is removed: the old labels stay in the trail, and `label_changes` lists what differs. Raises ProdsimError if
    the trail speaks of none of the pairs."""
    entries = _entries(trail)
    decided = decided_labels(entries, on_conflict)
    keys = {name: pair_keys(part) for name, part in _parts(pairs).items()}
    if entries and not {e["pair_id"] for e in entries} & {k for part in keys.values() for k in part}:
        raise ProdsimError("the audit trail speaks of none of these pairs: it belongs to other data")
    out = {}
    for name, part in _parts(pairs).items():
        labels = [decided.get(k, y) for k, y in zip(keys[name], part["label"], strict=True)]
        columns = {c: list(part[c]) for c in part.column_names} | {"label": labels}
        out[name] = Dataset.from_dict(columns, features=part.features)
    return DatasetDict(out) if isinstance(pairs, DatasetDict) else out[""]


def label_changes(
    before: Dataset | DatasetDict,  # pairs
    after: Dataset | DatasetDict,  # what `apply_reviews` made of them
) -> pd.DataFrame:  # split, row, pair_id, old, new
    "The rows whose label differs."
    rows, there = [], _parts(after)
    for name, part in _parts(before).items():
        both = zip(pair_keys(part), part["label"], there[name]["label"], strict=True)
        rows += [(name, i, key, old, new) for i, (key, old, new) in enumerate(both) if old != new]
    return pd.DataFrame(rows, columns=["split", "row", "pair_id", "old", "new"])
