import dataclasses
import difflib
import functools
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np
from datasets import Dataset

from prodsim.core import ProdsimError, device_name
from prodsim.data import attributes, record_ids
# %%
#| export
_CJK = "\u3007\u3400-\u9fff\uf900-\ufaff"
_NUMBER = r"\d+(?:\.\d+)?"
_WIDE = "【】（）《》「」，。；：、！？｜|"
_EDGE = " \t\n\r,.;:!?()[]{}<>【】（）《》，。；：、！？\"'“”*"


@dataclass(frozen=True)
class Lexicon:
    "What the operators know about words. Made by `load_lexicon`; `protecting` adds words that must stay."

    offer_attributes: frozenset[str]  # attributes of the offer, such as its price: no part of a product's identity
    identifying_attributes: frozenset[str]  # attributes whose every word names the product
    key_attributes: frozenset[str]  # keys of the table: never read
    colours: dict[str, tuple[int, str]]  # a spelling → (its group, "en" or "zh")
    colour_groups: tuple[dict, ...]  # shade, and spellings by language
    units: dict[str, tuple[int, str]]  # a way to write a unit, without number → (its row, "en" or "zh")
    unit_rows: tuple[dict, ...]  # dimension, worth, forms by language
    synonyms: dict[str, tuple[str, ...]]  # a word or phrase → the others of its group
    kept: frozenset[str]  # editions, specifications: words that are facts by themselves
    protected: frozenset[str] = frozenset()  # further words that are never deleted, moved or replaced
    memo: dict = field(default_factory=dict, repr=False, compare=False)  # token → fact, run → words

    def protecting(
        self,
        words: Iterable[str],  # lower or upper case
    ) -> "Lexicon":
        "The same lexicon with further words that a label-keeping operator leaves where they are."
        return dataclasses.replace(self, protected=self.protected | {w.lower() for w in words}, memo={})


def load_lexicon(
    path: str | Path | None = None,  # a TOML file of your own; None: the one in the package
) -> Lexicon:
    """Read a lexicon: colours, units, synonyms, editions, and which attributes say what.

    Raises ProdsimError for a file that is no TOML, lacks a part, or lists a word in two groups."""
    if path is None:
        return _package_lexicon()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProdsimError(f"lexicon {path}: cannot be read ({error}): name a UTF-8 TOML file") from None
    return _lexicon(text, str(path))


@functools.cache
def _package_lexicon() -> Lexicon:
    text = resources.files("prodsim.quality").joinpath("lexicon.toml").read_text(encoding="utf-8")
    return _lexicon(text, "lexicon.toml")


def _lexicon(text: str, name: str) -> Lexicon:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProdsimError(f"lexicon {name}: not TOML ({error})") from None
    words = {}
    for part in ("offer_attributes", "identifying_attributes", "key_attributes", "editions", "specifications"):
        values = table.get(part)
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise ProdsimError(f"lexicon {name}: {part} must be a list of words")
        words[part] = frozenset(v.lower() for v in values)
    colours: dict[str, tuple[int, str]] = {}
    units: dict[str, tuple[int, str]] = {}
    synonyms: dict[str, tuple[str, ...]] = {}
    try:
        for i, row in enumerate(table["colours"]):
            str(row["shade"])
            for language in ("en", "zh"):
                for spelling in row[language]:
                    _once(colours, spelling.lower(), (i, language), name, "colours")
        for i, row in enumerate(table["units"]):
            if not row["worth"] > 0:
                raise ProdsimError(f"lexicon {name}: a unit of {row['dimension']} is worth {row['worth']}, not above 0")
            for language in ("en", "zh"):
                for form in row[language]:
                    if not form.startswith("{}") or len(form) < 3:
                        raise ProdsimError(f"lexicon {name}: unit form {form!r} must be {{}} and then the unit")
                    unit = form[2:].strip(" -").lower()
                    if units.setdefault(unit, (i, language))[0] != i:
                        raise ProdsimError(f"lexicon {name}: {unit!r} stands in two units")
        for groups in table["synonyms"].values():
            for group in groups:
                for word in group:
                    others = tuple(w for w in group if w != word)
                    _once(synonyms, word.lower(), others, name, "synonyms")
    except (KeyError, TypeError, AttributeError) as error:
        raise ProdsimError(
            f"lexicon {name}: colours, units and synonyms must be written as in the package's ({error!r})"
        ) from None
    return Lexicon(
        offer_attributes=words["offer_attributes"],
        identifying_attributes=words["identifying_attributes"],
        key_attributes=words["key_attributes"],
        colours=colours,
        colour_groups=tuple(table["colours"]),
        units=units,
        unit_rows=tuple(table["units"]),
        synonyms=synonyms,
        kept=words["editions"] | words["specifications"],
    )


def _once(table: dict, word: str, value: tuple, name: str, part: str) -> None:
    if word in table:
        raise ProdsimError(f"lexicon {name}: {word!r} stands twice under {part}")
    table[word] = value

# %%
#| export
def split_words(
    text: str,  # a value of an attribute
    lexicon: Lexicon | None = None,  # None: the package's
) -> list[str]:  # "".join of them is the text; each carries the space before it
    """Cut a text into words that are moved or deleted as one: a measure with its unit, a model number, a Latin word, and in
    Chinese the longest known word or else the whole unknown run between two known ones."""
    return _words(text, lexicon or _package_lexicon())


def _words(text: str, lexicon: Lexicon) -> list[str]:
    memo = lexicon.memo
    if "pattern" not in memo:
        units = sorted(lexicon.units, key=len, reverse=True)
        latin, other = ("|".join(re.escape(u) for u in units if u[-1].isascii() == ascii_) for ascii_ in (True, False))
        memo["pattern"] = re.compile(
            rf"\s*(?:{_NUMBER}[\s-]?(?:(?:{latin})(?![A-Za-z0-9])|(?:{other}))[,;:]?|[{_CJK}]+|[^\s{_CJK}{_WIDE}]+|[{_WIDE}]+)|\s+$",
            re.IGNORECASE,
        )
        known = {w for table in (lexicon.colours, lexicon.synonyms, lexicon.units) for w in table} | lexicon.kept
        memo["chinese"] = frozenset(w for w in known if w and "\u3400" <= w[0] <= "\u9fff")
        memo["longest"] = max(map(len, memo["chinese"]), default=1)
        memo["phrases"] = {w.split()[0]: w.split() for w in lexicon.colours if " " in w}  # "stainless steel" is one word
        memo["runs"], memo["facts"], memo["texts"] = {}, {}, {}
    if text in memo["texts"]:
        return memo["texts"][text].copy()
    words = memo["pattern"].findall(text)
    if not text.isascii():
        words = [w for word in words for w in (_chinese_words(word, memo) if _is_chinese(word) else (word,))]
    lower = text.lower()
    if any(first in lower for first in memo["phrases"]):
        for i, phrase in [(i, p) for i, w in enumerate(words) if (p := memo["phrases"].get(w.strip(_EDGE).lower()))]:
            following = "".join(words[i : i + len(phrase)]).strip(_EDGE).lower().split()
            if following == phrase:
                words[i : i + len(phrase)] = ["".join(words[i : i + len(phrase)]), *[""] * (len(phrase) - 1)]
    words = [w for w in words if w]
    if len(memo["texts"]) > 1 << 13:  # an operator, and the check on it, read one text several times in a row
        memo["texts"].clear()
    memo["texts"][text] = words
    return words.copy()


def _is_chinese(word: str) -> bool:
    return "\u3400" <= word.lstrip()[:1] <= "\u9fff"


def _chinese_words(run: str, memo: dict) -> tuple[str, ...]:
    "Longest known word first; a colour of one character counts only where nothing unknown stands around it."
    if run in memo["runs"]:
        return memo["runs"][run]
    known, longest = memo["chinese"], memo["longest"]
    out, start, i = [], 0, 0

    def word_at(i: int) -> int:
        return next((n for n in range(min(longest, len(run) - i), 1, -1) if run[i : i + n] in known), 0)

    while i < len(run):
        n = word_at(i)
        if not n and i == start and run[i] in known and (i + 1 == len(run) or word_at(i + 1)):
            n = 1
        if n:
            out += [run[start:i], run[i : i + n]]
            start = i = i + n
        else:
            i += 1
    out = tuple(w for w in [*out, run[start:]] if w)
    if len(memo["runs"]) > 1 << 16:
        memo["runs"].clear()
    memo["runs"][run] = out
    return out

# %%
#| export
Fact = tuple  # ("measure", dimension, value in base units), ("model", …), ("number", …), ("colour", group), ("kept", word)


def _fact(word: str, lexicon: Lexicon) -> Fact | None:
    "What a word says about which product this is; None for a word that is free to go."
    known = lexicon.memo["facts"]
    return known[word][0] if word in known else _learn(word, lexicon)[0]


def _learn(word: str, lexicon: Lexicon) -> tuple[Fact | None, str]:
    "The fact and the bare lower-case form of a word, remembered."
    known = lexicon.memo["facts"]
    bare = word.strip(_EDGE).lower()
    if re.search(r"\d", word):
        fact = _number_fact(word.strip().lower(), bare, lexicon)
    elif bare in lexicon.colours:
        fact = ("colour", lexicon.colours[bare][0])
    elif bare in lexicon.kept or (len(bare) == 1 and bare.isascii() and bare.isalpha() and bare != "a"):
        fact = ("kept", bare)
    elif any(_fact(part, lexicon) for part in re.findall(r"[^\W_]+", bare) if part != bare):
        fact = ("kept", bare)  # black/silver
    else:
        fact = None
    if len(known) > 1 << 17:
        known.clear()
    known[word] = (fact, bare)
    return known[word]


def _number_fact(word: str, bare: str, lexicon: Lexicon) -> Fact:
    if bare in lexicon.kept:
        return ("kept", bare)
    if (read := re.match(rf"({_NUMBER})[\s-]?(\D.*)$", word)) and (unit := _unit_of(read[2], lexicon)) is not None:
        row = lexicon.unit_rows[unit]
        return ("measure", row["dimension"], float(read[1]) * row["worth"])
    plain = re.sub(r"[\W_]", "", bare)
    digits = sum(c.isdigit() for c in plain)
    if len(plain) >= 4 and digits >= 2 and (digits < len(plain) or digits >= 5):
        return ("model", plain)
    return ("number", bare)


def _unit_of(text: str, lexicon: Lexicon) -> int | None:
    "The row of a unit, as written behind a number."
    for candidate in (text, text.rstrip(_EDGE), text.rstrip(",;:)")):
        if candidate in lexicon.units:
            return lexicon.units[candidate][0]
    return None


def facts(
    record: dict[str, str | None],  # attribute → value
    lexicon: Lexicon | None = None,  # None: the package's
) -> frozenset[Fact]:
    """What a record says about which product it is: its measures, model numbers, other numbers, colours and editions, and
    every word of an identifying attribute such as the brand. Price, seller and other attributes of the offer do not
    count."""
    lexicon = lexicon or _package_lexicon()
    out = set()
    for name, value in record.items():
        if value and _is_product(name, lexicon):
            out |= _facts_of(value, lexicon)
            if name.lower() in lexicon.identifying_attributes:
                out |= {("name", w) for w in _names(value)}
    return frozenset(out)


def _is_product(name: str, lexicon: Lexicon) -> bool:
    if name not in (roles := lexicon.memo.setdefault("roles", {})):
        roles[name] = name.lower() not in lexicon.offer_attributes | lexicon.key_attributes
    return roles[name]


def _facts_of(text: str, lexicon: Lexicon) -> set[Fact]:
    words, known = _words(text, lexicon), lexicon.memo["facts"]
    return {f for w in words if (f := (known.get(w) or _learn(w, lexicon))[0])}


def _names(value: str) -> list[str]:
    return [w for w in re.split(r"[\s/,()]+", value.lower()) if w]


def same_identity(
    before: dict[str, str | None],  # a record
    after: dict[str, str | None],  # the record an operator made of it
    lexicon: Lexicon | None = None,  # None: the package's
) -> bool:
    """Whether two versions of a record say the same `facts`: none lost, none new.

    A measure is the same in another unit (12 oz of volume and 355 ml differ by less than half a percent); a word of the
    brand may move to another attribute but not vanish."""
    lexicon = lexicon or _package_lexicon()
    old, new = facts(before, lexicon), facts(after, lexicon)
    return old == new or (_covered(old, new, after, lexicon) and _covered(new, old, before, lexicon))


def _covered(told: frozenset, there: frozenset, record: dict, lexicon: Lexicon) -> bool:
    "Whether every fact of `told` is among `there`, or is a name that the record still writes somewhere."
    missing = told - there
    if any(f[0] not in ("measure", "name") for f in missing):
        return False
    text = None
    for fact in missing:
        if fact[0] == "measure":
            same = [f for f in there if f[0] == "measure" and f[1] == fact[1]]
            if not any(abs(f[2] - fact[2]) <= 0.005 * max(f[2], fact[2]) for f in same):
                return False
        else:
            text = text or " ".join(v.lower() for k, v in record.items() if v and _is_product(k, lexicon))
            if not _contains_name(text, fact[1]):
                return False
    return True


def _contains_name(text: str, name: str) -> bool:
    if not name.isascii():
        return name in text
    return re.search(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])", text) is not None

# %%
#| export
@dataclass(frozen=True)
class Operator:
    "One way to rewrite records. `augment` checks what `keeps_label` promises, whoever wrote the operator."

    name: str
    keeps_label: bool  # True: the same product; False: another product, wherever it changes anything
    rewrite: Callable[[list[dict], Callable[[], float], Lexicon], list[dict]]  # records, numbers in [0, 1), lexicon
    about: str = ""


OPERATORS: dict[str, Operator] = {}


def _operator(name: str, keeps_label: bool, about: str):
    "Put a function on one record into the registry."

    def put(function):
        def rewrite(records, draw, lexicon):
            return [function(r, draw, lexicon) for r in records]

        OPERATORS[name] = Operator(name, keeps_label, rewrite, about)
        return function

    return put


def _draws(rng: np.random.Generator, block: int = 4096) -> Callable[[], float]:
    "Numbers in [0, 1), drawn in blocks: one call of numpy's generator costs more than an operator."

    def numbers():
        while True:
            yield from rng.random(block).tolist()

    return numbers().__next__


_OPENING = _WIDE + "([{/+&-"


def _joined(words: list[str]) -> str:
    "Words as a text again: a space where two words that are not Chinese would run together."
    out = ""
    for word in words:
        glued = out and word[0].isalnum() and not _is_chinese(word) and not _is_chinese(out[-1])
        out += " " + word if glued and not out[-1].isspace() and out[-1] not in _OPENING else word
    return out.strip()


def _product_texts(record: dict, lexicon: Lexicon, least: int = 2) -> list[str]:
    "Attributes that describe the product in words: no keys, no price, no brand, at least two words or Chinese."
    skip = lexicon.identifying_attributes
    return [
        name
        for name, value in record.items()
        if value and _is_product(name, lexicon) and name.lower() not in skip and len(value) > least
    ]


def _free(words: list[str], record: dict, lexicon: Lexicon) -> list[bool]:
    "Which words say nothing about identity: no fact, no name of the brand, nothing protected, not the head of a model."
    names = [n for a, v in record.items() if v and a.lower() in lexicon.identifying_attributes for n in _names(v)]
    out, following = [], None
    known, protected = lexicon.memo["facts"], lexicon.protected
    for word in reversed(words):
        fact, bare = known.get(word) or _learn(word, lexicon)
        free = fact is None and bare not in protected and (bare.isalnum() or any(c.isalnum() for c in bare))
        if free and following and len(bare) <= 4 and bare.isascii():
            free = following[0] not in ("model", "number")
        if free and names:
            free = bare not in names if bare.isascii() else not any(n in bare for n in names)
        out.append(free)
        following = fact
    return out[::-1]


def _pick(options: list, draw: Callable[[], float]):
    return options[int(draw() * len(options))]

# %%
#| export
@_operator("delete_span", True, "delete one to four neighbouring words of one attribute")
def _delete_span(record: dict, draw: Callable[[], float], lexicon: Lexicon) -> dict:
    if not (texts := _product_texts(record, lexicon)):
        return record
    name = _pick(texts, draw)
    words = _words(record[name], lexicon)
    free = _free(words, record, lexicon)
    starts = [i for i, f in enumerate(free) if f]
    if len(starts) < 2 and len(words) < 2:
        return record
    if not starts:
        return record
    start, length = _pick(starts, draw), 1 + int(draw() * 4)
    stop = start + 1
    while stop < len(words) and free[stop] and stop - start < length:
        stop += 1
    left = words[:start] + words[stop:]
    if not any(c.isalnum() for w in left for c in w):
        return record
    if start < len(left) and not left[start].strip(_EDGE) and (not start or not left[start - 1].strip(_EDGE)):
        # a comma that has lost its word goes with it, a pair of brackets too
        brackets = start and left[start - 1].strip() + left[start].strip() in _BRACKETS
        del left[start - 1 if brackets else start : start + 1]
    return {**record, name: _joined(left)}


_BRACKETS = ("【】", "（）", "《》", "「」")


@_operator("shuffle_span", True, "put the free words in a window of five to eight words in another order")
def _shuffle_span(record: dict, draw: Callable[[], float], lexicon: Lexicon) -> dict:
    if not (texts := _product_texts(record, lexicon)):
        return record
    name = _pick(texts, draw)
    words = _words(record[name], lexicon)
    width = 5 + int(draw() * 4)
    start = int(draw() * max(1, len(words) - width + 1))
    free = _free(words, record, lexicon)
    slots = [i for i in range(start, min(len(words), start + width)) if free[i]]
    order = slots.copy()
    for i in range(len(order) - 1, 0, -1):  # Fisher-Yates
        j = int(draw() * (i + 1))
        order[i], order[j] = order[j], order[i]
    moved = words.copy()
    for to, source in zip(slots, order, strict=True):
        moved[to] = words[source]
    return {**record, name: _joined(moved)} if order != slots else record


@_operator("swap_spans", True, "exchange two neighbouring spans of words, facts and all")
def _swap_spans(record: dict, draw: Callable[[], float], lexicon: Lexicon) -> dict:
    if not (texts := _product_texts(record, lexicon)):
        return record
    name = _pick(texts, draw)
    words = _words(record[name], lexicon)
    if len(words) < 2:
        return record
    a, b, c = sorted(int(draw() * (len(words) + 1)) for _ in range(3))
    if a == b or b == c:
        return record
    return {**record, name: _joined(words[:a] + words[b:c] + words[a:b] + words[c:])}


@_operator("drop_attribute", True, "empty one attribute that says nothing of its own about identity")
def _drop_attribute(record: dict, draw: Callable[[], float], lexicon: Lexicon) -> dict:
    options = [a for a, v in record.items() if v and a.lower() not in lexicon.key_attributes]
    while len(options) > 1:
        name = options.pop(int(draw() * len(options)))
        if not _is_product(name, lexicon) or _says_nothing_new(record, name, lexicon):
            return {**record, name: None}
    return record


def _says_nothing_new(record: dict, name: str, lexicon: Lexicon) -> bool:
    rest = {**record, name: None}
    if not any(v for a, v in rest.items() if _is_product(a, lexicon)):
        return False
    return same_identity(record, rest, lexicon)


@_operator("swap_attributes", True, "let two describing attributes exchange their values, as in dirty tables")
def _swap_attributes(record: dict, draw: Callable[[], float], lexicon: Lexicon) -> dict:
    skip = lexicon.identifying_attributes
    names = [a for a in record if _is_product(a, lexicon) and a.lower() not in skip]
    if len(names) < 2:
        return record
    a = _pick(names, draw)
    b = _pick([n for n in names if n != a], draw)
    return {**record, a: record[b], b: record[a]}


@_operator("synonym", True, "say one or more things by another word of the lexicon, colours included")
def _synonym(record: dict, draw: Callable[[], float], lexicon: Lexicon) -> dict:
    out = record
    for name in _product_texts(record, lexicon):
        words = _words(record[name], lexicon)
        found = _replaceable(words, record, lexicon)
        if not found:
            continue
        first = int(draw() * len(found))
        for number, (i, n, others) in reversed(list(enumerate(found))):
            if number == first or draw() < 0.5:
                old = "".join(words[i : i + n])
                words[i : i + n] = [_in_the_style_of(old, _pick(others, draw))]
        out = {**out, name: _joined(words)}
    return out


def _replaceable(words: list[str], record: dict, lexicon: Lexicon) -> list[tuple[int, int, tuple[str, ...]]]:
    "Where a word or phrase with synonyms starts, how many words it has, and the synonyms."
    bare = [w.strip().lower() for w in words]
    starts, free, out, i = _phrase_starts(lexicon), None, [], 0
    while i < len(words):
        step = 1
        for n in starts.get(bare[i], ()):
            phrase = " ".join(bare[i : i + n]) if n > 1 else bare[i]
            if i + n > len(words) or (n > 1 and not phrase.isascii()):
                continue
            others = lexicon.synonyms.get(phrase) or _colour_spellings(phrase, lexicon)
            if others:
                free = free or _free(words, record, lexicon)
                if all(free[i : i + n]) or phrase in lexicon.colours:
                    out.append((i, n, others))
                    step = n
                break
        i += step
    return out


def _phrase_starts(lexicon: Lexicon) -> dict[str, list[int]]:
    "First word of a phrase that has synonyms → how many words such phrases have, longest first."
    if "starts" not in lexicon.memo:
        starts: dict[str, set[int]] = {}
        for phrase in (*lexicon.synonyms, *lexicon.colours):
            starts.setdefault(phrase.split()[0], set()).add(len(phrase.split()))
            if phrase in lexicon.colours:
                starts.setdefault(phrase, set()).add(1)  # a colour is one word, space or not
        lexicon.memo["starts"] = {word: sorted(n, reverse=True) for word, n in starts.items()}
    return lexicon.memo["starts"]


def _colour_spellings(word: str, lexicon: Lexicon) -> tuple[str, ...]:
    if word not in lexicon.colours:
        return ()
    group, language = lexicon.colours[word]
    # one Chinese character beside other words is read as part of them
    return tuple(s for s in lexicon.colour_groups[group][language] if s.lower() != word and (language == "en" or s[1:]))


def _in_the_style_of(old: str, new: str) -> str:
    "A replacement in the case of what it replaces, with the space that stood before it."
    bare = old.strip()
    if bare.isascii() and bare.isupper() and len(bare) > 2:
        new = new.upper()
    elif bare.istitle():
        new = new.title()
    return old[: len(old) - len(old.lstrip())] + new


@_operator("rewrite_units", True, "write measures in another form or unit: 15.6 inch for 15.6″, 1000 GB for 1TB")
def _rewrite_units(record: dict, draw: Callable[[], float], lexicon: Lexicon) -> dict:
    out = record
    for name in _product_texts(record, lexicon):
        words = _words(record[name], lexicon)
        spots = [i for i, w in enumerate(words) if (f := _fact(w, lexicon)) and f[0] == "measure"]
        if not spots:
            continue
        first = int(draw() * len(spots))
        for number, i in enumerate(spots):
            if number == first or draw() < 0.5:
                words[i] = _respelled(words[i], draw, lexicon, _chinese(record[name]))
        text = _joined(words)
        if text != record[name]:
            out = {**out, name: text}
    return out


def _chinese(text: str) -> bool:
    return not text.isascii() and any("\u3400" <= c <= "\u9fff" for c in text)


def _respelled(word: str, draw: Callable[[], float], lexicon: Lexicon, chinese: bool) -> str:
    "The same measure in another form; a conversion only where the shortened number is right to half a thousandth."
    forms = lexicon.memo.setdefault("forms", {}).get((word, chinese))
    if forms is None:
        _, dimension, value = _fact(word, lexicon)
        bare = word.strip().rstrip(",;:")
        before, after = word.split(bare, 1)
        forms = []
        for row in lexicon.unit_rows:
            if row["dimension"] == dimension:
                number = f"{value / row['worth']:.4g}"
                if "e" not in number and abs(float(number) * row["worth"] - value) <= 5e-4 * value:
                    forms += [f.format(number) for f in row["zh" if chinese else "en"]]
        forms = [before + f + after for f in forms if f.lower() != bare.lower()]
        lexicon.memo["forms"][word, chinese] = forms
    return _pick(forms, draw) if forms else word

# %%
#| export
def _changed_words(record: dict, lexicon: Lexicon, fact: Fact, change: Callable[[str], str]) -> dict:
    "The record with every word that states `fact` rewritten by `change`, in every attribute of the product."
    out = dict(record)
    for name, value in record.items():
        if value and _is_product(name, lexicon):
            words = _words(value, lexicon)
            new = [change(w) if _fact(w, lexicon) == fact else w for w in words]
            if new != words:
                out[name] = _joined(new)
    return out


def _one_fact(record: dict, kind: str, draw: Callable[[], float], lexicon: Lexicon) -> Fact | None:
    allowed = lexicon.memo.get("allowed")
    options = sorted(f for f in facts(record, lexicon) if f[0] == kind and (allowed is None or f in allowed))
    return _pick(options, draw) if options else None


@_operator("change_number", False, "another number that is no measure: 3 HDMI inputs become 4")
def _change_number(record: dict, draw: Callable[[], float], lexicon: Lexicon) -> dict:
    if not (fact := _one_fact(record, "number", draw, lexicon)):
        return record
    step = 1 + int(draw() * 3)

    def change(word: str) -> str:
        read = re.search(r"\d+", word)
        return word[: read.start()] + str(int(read[0]) + step).zfill(len(read[0])) + word[read.end() :]

    return _changed_words(record, lexicon, fact, change)


@_operator("change_size", False, "another value of one measure, taken from the other records where they have one")
def _change_size(record: dict, draw: Callable[[], float], lexicon: Lexicon) -> dict:
    if not (fact := _one_fact(record, "measure", draw, lexicon)):
        return record
    if fact[2] == 0:
        return record
    stated = [f[2] for f in facts(record, lexicon) if f[0] == "measure" and f[1] == fact[1]]
    pool = lexicon.memo.get("pool", {}).get(fact[1], ())
    far = [v for v in pool if all(abs(v - s) > 0.05 * max(v, s) for s in stated)]
    near = [v for v in far if 1 / 4 <= v / fact[2] <= 4]  # a washing machine does not become a ring
    value = _pick(near or far, draw) if near or far else fact[2] * _pick([0.5, 0.75, 1.25, 1.5, 2], draw)

    def change(word: str) -> str:
        read = re.search(_NUMBER, word)
        worth = float(read[0]) / fact[2] * value
        number = f"{worth:.4g}" if abs(worth) < 10_000 else f"{worth:.0f}"
        return word[: read.start()] + number + word[read.end() :]

    return _changed_words(record, lexicon, fact, change)


@_operator("change_colour", False, "another colour, of another shade")
def _change_colour(record: dict, draw: Callable[[], float], lexicon: Lexicon) -> dict:
    if not (fact := _one_fact(record, "colour", draw, lexicon)):
        return record
    groups = lexicon.colour_groups
    stated = {groups[f[1]]["shade"] for f in facts(record, lexicon) if f[0] == "colour"}
    others = [i for i, g in enumerate(groups) if g["shade"] not in stated and g["en"] and g["zh"]]
    seen = [i for i in others if i in lexicon.memo.get("pool", {}).get("colour", ())]
    if not others:
        return record
    new = _pick(seen or others, draw)

    def change(word: str) -> str:
        bare = word.strip(_EDGE)
        language = lexicon.colours[bare.lower()][1]
        return word.replace(bare, _in_the_style_of(bare, groups[new][language][0]), 1)

    return _changed_words(record, lexicon, fact, change)


@_operator("change_model", False, "another model number: one digit or the last letter differs")
def _change_model(record: dict, draw: Callable[[], float], lexicon: Lexicon) -> dict:
    if not (fact := _one_fact(record, "model", draw, lexicon)):
        return record
    number = fact[1]
    spots = [i for i, c in enumerate(number) if c in "0123456789" or (i == len(number) - 1 and c in _LETTERS)]
    if not spots:
        return record
    spot = _pick(spots, draw)
    alphabet = "0123456789" if number[spot] in "0123456789" else _LETTERS
    new = _pick([c for c in alphabet if c != number[spot]], draw)

    def change(word: str) -> str:
        # the word may hold hyphens that the fact has not
        at = [i for i, c in enumerate(word) if c.isalnum()][spot]
        return word[:at] + (new.upper() if word[at].isupper() else new) + word[at + 1 :]

    return _changed_words(record, lexicon, fact, change)


_LETTERS = "abcdefghijklmnopqrstuvwxyz"

# %%
#| export
CHEAP = ("delete_span", "shuffle_span", "swap_spans", "drop_attribute", "swap_attributes", "synonym", "rewrite_units")
CHANGES = ("change_model", "change_size", "change_colour", "change_number")


def augment(
    records: list[dict[str, str | None]],  # attribute → value; any further attributes are kept
    rng: np.random.Generator,  # all randomness; the same state gives the same output
    operators: Sequence[str | Operator] = CHEAP,  # names in `OPERATORS` or operators of your own, all label-keeping
    lexicon: Lexicon | None = None,  # None: the package's
) -> list[dict[str, str | None]]:  # as many records in the same order; the given ones are not changed
    """Rewrite each record by one of the operators, drawn at random: the same product in other words.

    What an operator promises is checked on its output: a record whose `facts` would change, or that would end empty,
    stays as it was. Deletion, shuffling and dropping follow Ditto (Li et al. 2020), synonyms EDA (Wei & Zou 2019).
    Raises ProdsimError for an unknown operator, for one that does not keep the label (see `hard_negatives`), and for a
    value that is no text."""
    lexicon = _checked(records, lexicon)
    chosen = [_known(o) for o in operators]
    if bad := [o.name for o in chosen if not o.keeps_label]:
        raise ProdsimError(f"operator {bad[0]} makes another product: use hard_negatives, which returns what changed")
    if not chosen:
        raise ProdsimError(f"augment needs an operator: {', '.join(CHEAP)}")
    return _apply(records, rng, chosen, lexicon)[0]


def _apply(records: list[dict], rng: np.random.Generator, chosen: list[Operator], lexicon: Lexicon):
    "The rewritten records and which of them changed."
    choice, draw = rng.integers(len(chosen), size=len(records)), _draws(rng)
    out, changed = list(records), np.zeros(len(records), bool)
    for k, operator in enumerate(chosen):
        rows = np.flatnonzero(choice == k).tolist()
        new = operator.rewrite([records[i] for i in rows], draw, lexicon)
        if len(new) != len(rows):
            raise ProdsimError(f"operator {operator.name} returned {len(new)} records for {len(rows)}")
        for i, record in zip(rows, new, strict=True):
            if record is not records[i] and _sound(records[i], record, operator.keeps_label, lexicon):
                out[i], changed[i] = record, True
    return out, changed


def _sound(before: dict, after: dict, keeps_label: bool, lexicon: Lexicon) -> bool:
    "Whether an operator's output may be used: it differs, is not empty, and is as its flag says."
    names = [n for n in after if after[n] != before.get(n)]
    if not names or not any(v for n, v in after.items() if v and _is_product(n, lexicon)):
        return False
    # facts of attributes that did not change cancel out, unless something was lost or is new
    old, new = {n: before.get(n) for n in names}, {n: after[n] for n in names}
    same = facts(old, lexicon) == facts(new, lexicon) or same_identity(before, after, lexicon)
    return same == keeps_label


def _known(operator: str | Operator) -> Operator:
    if isinstance(operator, Operator):
        return operator
    if operator not in OPERATORS:
        near = difflib.get_close_matches(str(operator), OPERATORS, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(OPERATORS)}"
        raise ProdsimError(f"no operator {operator!r}: {hint}")
    return OPERATORS[operator]


def _checked(records: list[dict], lexicon: Lexicon | None) -> Lexicon:
    lexicon = lexicon or _package_lexicon()
    _words("", lexicon)  # compiles the patterns once
    for i, record in enumerate(records):
        for name, value in record.items():
            if value is not None and not isinstance(value, str):
                raise ProdsimError(
                    f"record {i} (counted from 0), attribute {name}: {type(value).__name__} where text or None belongs"
                )
    return lexicon

# %%
#| export
def hard_negatives(
    records: list[dict[str, str | None]],  # attribute → value
    rng: np.random.Generator,  # all randomness
    operators: Sequence[str | Operator] = CHANGES,  # tried in random order until one applies
    stated: list[dict[str, str | None]] | None = None,  # another offer of each: only what it states too is changed
    lexicon: Lexicon | None = None,  # None: the package's
) -> tuple[list[dict[str, str | None]], np.ndarray]:  # records, and (n,) bool: which are another product now
    """Records of another product that look much the same: one model number, measure, colour or number differs.

    A new size or colour is drawn from those in `records`, so that negatives do not give themselves away by values that
    no product has. A record in which nothing can be changed is returned as it was and marked False.
    Raises ProdsimError for an operator that keeps the label."""
    lexicon = _checked(records, lexicon)
    chosen = [_known(o) for o in operators]
    if bad := [o.name for o in chosen if o.keeps_label]:
        raise ProdsimError(f"operator {bad[0]} keeps the product what it is: use augment")
    if stated is not None and len(stated) != len(records):
        raise ProdsimError(f"{len(stated)} other offers for {len(records)} records: there must be one each")
    pool: dict[str, set] = {"colour": set()}
    for record in records:
        for fact in facts(record, lexicon):
            if fact[0] == "measure":
                pool.setdefault(fact[1], set()).add(fact[2])
            elif fact[0] == "colour":
                pool["colour"].add(fact[1])
    memo = {**lexicon.memo, "pool": {k: sorted(v) for k, v in pool.items()}}
    lexicon = dataclasses.replace(lexicon, memo=memo)
    out, changed, draw = list(records), np.zeros(len(records), bool), _draws(rng)
    for i, record in enumerate(records):
        if stated is not None:
            memo["allowed"] = facts(stated[i], lexicon)
        order = list(chosen)
        while order and not changed[i]:
            operator = order.pop(int(draw() * len(order)))
            new = operator.rewrite([record], draw, lexicon)[0]
            if new is not record and _sound(record, new, False, lexicon):
                out[i], changed[i] = new, True
    return out, changed


def augment_pairs(
    pairs: Dataset,  # labelled pairs
    seed: int = 0,
    operators: Sequence[str | Operator] = CHEAP,  # label-keeping; applied to each side on its own
    copies: int = 1,  # rewritten copies of every pair
    negatives: float = 0.0,  # hard negatives, as a share of the matches
    lexicon: Lexicon | None = None,  # None: the package's
) -> Dataset:  # the given rows first, unchanged; then the new ones
    """Training pairs with rewritten copies, and non-matches made from matches by changing what both sides state.

    A copy has its pair's label. A hard negative takes the left offer of a match and its right offer with one fact
    changed that the left offer states as well, so that a reader of both could tell. New records get ids from their
    content. Raises ProdsimError as `augment` does, and if there is no label."""
    if "label" not in pairs.column_names:
        raise ProdsimError("the pairs have no column label: there is nothing to keep")
    if copies < 0 or negatives < 0:
        raise ProdsimError(f"copies={copies} and negatives={negatives} must not be below 0")
    rng = np.random.default_rng(seed)
    names = attributes(pairs)
    columns = {c: list(pairs[c]) for c in pairs.column_names}
    sides = {s: _records(columns, s, names) for s in ("left", "right")}
    parts = [columns]
    for _ in range(copies):
        new = {s: augment(sides[s], rng, operators, lexicon) for s in sides}
        parts.append(_with_records(columns, new, names))
    matches = [i for i, y in enumerate(columns["label"]) if y == 1]
    if negatives and matches:
        rows = rng.choice(matches, size=round(negatives * len(matches)), replace=negatives > 1).tolist()
        left, right = ([sides[s][i] for i in rows] for s in ("left", "right"))
        right, changed = hard_negatives(right, rng, stated=left, lexicon=lexicon)
        kept = np.flatnonzero(changed).tolist()
        part = {c: [columns[c][rows[k]] for k in kept] for c in columns} | {"label": [0] * len(kept)}
        parts.append(_with_records(part, {"left": [left[k] for k in kept], "right": [right[k] for k in kept]}, names))
    out = {c: [v for part in parts for v in part[c]] for c in columns}
    return Dataset.from_dict(out, features=pairs.features)


def _records(columns: dict[str, list], side: str, names: list[str]) -> list[dict[str, str | None]]:
    values = zip(*(columns[f"{side}_{n}"] for n in names), strict=True)
    return [dict(zip(names, [v or None for v in row], strict=True)) for row in values]


def _with_records(columns: dict[str, list], records: dict[str, list[dict]], names: list[str]) -> dict[str, list]:
    out = dict(columns)
    for side, rows in records.items():
        for name in names:
            out[f"{side}_{name}"] = [r[name] for r in rows]
    made = Dataset.from_dict({c: v for c, v in out.items() if c.startswith(("left_", "right_"))})
    for side in records:
        if f"{side}_id" in columns:
            out[f"{side}_id"] = record_ids(made, side)
    return out


def rare_words(
    records: list[dict[str, str | None]],  # the records that will be rewritten
    at_most: int = 3,  # a word that stands in no more records than this
    lexicon: Lexicon | None = None,  # None: the package's
) -> frozenset[str]:  # for `Lexicon.protecting`
    "Words too rare to be common language: series and model names without a digit, which no lexicon can list."
    lexicon = _checked(records, lexicon)
    counts: Counter = Counter()
    for record in records:
        texts = [v for a, v in record.items() if v and _is_product(a, lexicon)]
        counts.update({w.strip(_EDGE).lower() for text in texts for w in _words(text, lexicon)})
    return frozenset(w for w, n in counts.items() if w and n <= at_most)

# %%
#| export
def back_translator(
    forward: str | Path,  # model into the other language: a hub name or a folder, e.g. Helsinki-NLP/opus-mt-en-de
    backward: str | Path,  # model back again, e.g. Helsinki-NLP/opus-mt-de-en
    languages: tuple[str, str] | None = None,  # codes (own, other) for a multilingual model such as NLLB; else None
    batch_size: int = 32,  # texts in one forward pass
    temperature: float = 0.8,  # of sampling; 0: greedy, the same wording every time
    max_new_tokens: int = 128,
    device: str | None = None,  # None: the default device
) -> Operator:  # for `augment`
    """An operator that translates the texts of a record there and back (Sennrich et al. 2016), by any two
    sequence-to-sequence models that transformers can load.

    A translation that loses or invents a fact is thrown away by `augment`, so the label is kept whatever the models do.
    Weights are read as safetensors only and no code of a model's author is run. Raises ProdsimError if a model cannot be
    loaded that way."""
    if temperature < 0 or batch_size < 1:
        raise ProdsimError(f"temperature {temperature} must not be below 0, batch_size {batch_size} not below 1")
    device = device or device_name()
    own, other = languages or (None, None)
    there = _Translator(forward, own, other, batch_size, temperature, max_new_tokens, device)
    back = _Translator(backward, other, own, batch_size, temperature, max_new_tokens, device)

    def rewrite(records: list[dict], draw: Callable[[], float], lexicon: Lexicon) -> list[dict]:
        spots = [(i, n) for i, r in enumerate(records) for n in _product_texts(r, lexicon)]
        texts = list(dict.fromkeys(records[i][n] for i, n in spots))
        seed = int(draw() * 2**31)
        translated = dict(zip(texts, back(there(texts, seed), seed + 1), strict=True))
        out = [dict(r) for r in records]
        for i, name in spots:
            new = translated[records[i][name]].strip()
            # attribute by attribute, so that one bad sentence does not cost the record its good ones
            if new and same_identity({name: records[i][name]}, {name: new}, lexicon):
                out[i][name] = new
        return out

    return Operator("back_translation", True, rewrite, f"translated by {forward} and back by {backward}")


class _Translator:
    "A loaded model and its tokenizer; texts of one language in, texts of the other out."

    def __init__(self, name, source, target, batch_size, temperature, max_new_tokens, device):
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
            self.model = AutoModelForSeq2SeqLM.from_pretrained(
                str(name), trust_remote_code=False, use_safetensors=True
            )
        except (OSError, ValueError, ImportError, KeyError) as error:
            why = " ".join(str(error).split())[:200]
            raise ProdsimError(f"translation model {name}: cannot be loaded from safetensors ({why})") from None
        self.model = self.model.to(device).eval()
        self.options = {"max_new_tokens": max_new_tokens, "num_beams": 1, "do_sample": temperature > 0}
        if temperature > 0:
            self.options["temperature"] = temperature
        if source is not None:
            first = self.tokenizer.convert_tokens_to_ids(target)
            codes = set(self.tokenizer.get_vocab())
            if source not in codes or target not in codes:
                raise ProdsimError(f"translation model {name}: its tokenizer has no language {source!r} or {target!r}")
            self.tokenizer.src_lang = source
            self.options["forced_bos_token_id"] = first
        self.batch_size = batch_size

    def __call__(self, texts: list[str], seed: int) -> list[str]:
        import torch

        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))  # little padding
        out = [""] * len(texts)
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(seed)
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                batch = self.tokenizer([texts[i] for i in rows], return_tensors="pt", padding=True, truncation=True)
                batch = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask")}
                made = self.model.generate(**{k: v.to(self.model.device) for k, v in batch.items()}, **self.options)
                for i, text in zip(rows, self.tokenizer.batch_decode(made, skip_special_tokens=True), strict=True):
                    out[i] = text
        return out
