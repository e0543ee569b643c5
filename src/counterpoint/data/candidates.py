"""Rows with scored candidates, in any of three shapes, become ``ScoredPrompt``.

1. a list of objects in a row: ``{"prompt", "candidates": [{"text", "score"}, ...]}``;
2. lists side by side: ``{"prompt", "responses": [...], "score": [...]}``;
3. a flat table, each row a candidate, those of one prompt anywhere in it.

Not here: which candidates become pairs (``scored``), files (``sources``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, ParamSpec, TypeVar

from counterpoint.data.cells import fail, fail_type, read_text
from counterpoint.data.human_marks import HumanMarks, candidate_place
from counterpoint.data.pair_rules import PairRules, template_parts
from counterpoint.data.plain import plain
from counterpoint.errors import DataError
from counterpoint.preference_row import Text

LISTS = ("candidates", "completions", "responses")
"""Columns that hold a row's candidates where no name is given."""

TEXTS = ("text", "completion", "response", "output", "translation")
"""Fields that hold a candidate's text where no name is given."""

CARRIED = ("tools", "chat_template_kwargs", "source_lang", "target_lang")
"""Columns without which a prompt would be read otherwise; a candidate has them too."""

REFERENCE = "reference"
"""In place of a model's name, for the candidate that is the prompt's reference."""

YES, NO = ("true", "yes", "1"), ("false", "no", "0", "")

_Given = ParamSpec("_Given")
Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One completion of a prompt.

    Args:
        text: not blank; a string or messages.
        score: as given, finite.
        preferred: whether a human marked it.
        outranks: whether it is the reference, and better than all by being that.
        place: its model, row and number there; None where they are not known.
    """

    text: Text
    score: float
    preferred: bool = False
    outranks: bool = False
    place: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """A prompt with its candidates.

    Args:
        prompt: a string or messages.
        candidates: in the order in which they were read.
        kept: columns to copy to the pairs.
    """

    prompt: Text
    candidates: tuple[Candidate, ...]
    kept: Mapping[str, Any] = field(default_factory=dict)


class LeftOut(Exception):
    """A candidate that its scoring kept from being one of a pair.

    Args:
        why: "vetoed" or "unscored".
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def asked_beside(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a candidate of ``counterpoint sample`` was asked with beside its prompt.

    Candidates of one prompt that were asked for two languages, or with other tools, answer two
    questions.

    Args:
        fields: of the candidate, of plain types. Where they do not say which candidate it is, it
            was made elsewhere, and columns of these names may mean something else.
    """
    if candidate_place(fields) is None:
        return {}
    return {name: fields[name] for name in CARRIED if fields.get(name) is not None}


def read_prompts(
    rows: Iterable[Mapping[str, Any]],
    rules: PairRules,
    drop: Callable[[DataError | LeftOut], None],
    marks: HumanMarks | None = None,
) -> Iterator[ScoredPrompt]:
    """Read rows of any of the three shapes; each row says by its cells which it is.

    Args:
        rows: raw rows, numbered from 0 in every error.
        rules: names of columns and fields.
        drop: told of every row or candidate that cannot be used, or that ``counterpoint score``
            vetoed or gave no score; it may raise.
        marks: what a human chose, beside a column of marks.

    Yields:
        Prompts in the order in which they first appear; those of flat rows after all others,
        for the last row may be one of theirs.
    """
    read_rows = ((row, _try(drop, _plain, raw, row)) for row, raw in enumerate(rows))
    table, column = _Table(rules, marks), rules.candidates
    for row, raw in read_rows:
        if raw is None:
            continue
        if rules.candidates is None and rules.group is None:
            column = _list_column(raw, rules, column)
        if column is None:
            _try(drop, table.add, row, raw)
            continue
        parts = _try(drop, _parts, raw, row, column, rules)
        if parts is None:
            continue
        prompt, kept, listed = parts
        read = (
            _try(drop, _candidate, one, row, f"{column}[{n}]", rules, prompt, marks)
            for n, one in enumerate(listed)
        )
        reference = _try(drop, reference_text, raw, row, rules)
        score = _try(drop, reference_score, raw, row, rules)
        found = [one for one in read if one is not None]
        yield ScoredPrompt(prompt, with_reference(found, reference, score, rules), kept)
    yield from table.prompts()


def _plain(raw: Mapping[str, Any], row: int) -> Mapping[str, Any]:
    try:
        made: Mapping[str, Any] = plain(raw)
    except RecursionError as error:
        text = f"row {row}: values are nested too deeply. Remove the row."
        raise DataError("CP202", text) from error
    return made


def _list_column(raw: Mapping[str, Any], rules: PairRules, before: str | None) -> str | None:
    """The column of a row's candidates; None for a row that is one itself.

    A row that does not say is taken for one like the row before it.
    """
    filled = [name for name in LISTS if isinstance(raw.get(name), list | Mapping)]
    if filled or _text_field(raw, rules) is not None:
        return next(iter(filled), None)
    # null is a list that is missing; text or a number is another column of that name
    return next((name for name in LISTS if name in raw and raw[name] is None), before)


def _text_field(fields: Mapping[str, Any], rules: PairRules) -> str | None:
    """The field of a candidate's text; None where nothing holds one."""
    names = TEXTS if rules.text is None else (rules.text,)
    return next((name for name in names if fields.get(name) is not None), None)


def _try(
    drop: Callable[[DataError | LeftOut], None],
    read: Callable[_Given, Read],
    *args: _Given.args,
    **kwargs: _Given.kwargs,
) -> Read | None:
    """What is read, or None where it cannot be used."""
    try:
        return read(*args, **kwargs)
    except (DataError, LeftOut) as error:
        drop(error)
        return None


# A row with a list


def _parts(
    raw: Mapping[str, Any], row: int, column: str, rules: PairRules
) -> tuple[Text, dict[str, Any], list[Any]]:
    """Prompt, kept columns and candidates as they are listed."""
    prompt, kept = _prompt(raw, row, rules), _kept(raw, row, rules)
    if column not in raw:
        _missing(raw, row, column, "candidates")
    listed = raw[column]
    if not isinstance(listed, list | tuple):
        fail_type(listed, row, column, "a list of candidates")
    beside = bool(listed) and not isinstance(listed[0], Mapping)
    return prompt, kept, _beside(raw, row, column, rules) if beside else list(listed)


def _beside(
    raw: Mapping[str, Any], row: int, column: str, rules: PairRules
) -> list[dict[str, Any]]:
    """Lists side by side as a list of objects."""
    texts = raw[column]
    fields: list[dict[str, Any]] = [{rules.text or TEXTS[0]: text} for text in texts]
    for name in filter(None, (rules.score, rules.preferred)):
        if name not in raw:
            _missing(raw, row, name, "score" if name == rules.score else "preferred")
        values = raw[name]
        if not isinstance(values, list | tuple) or len(values) != len(texts):
            seen = f"{len(values)} entries" if isinstance(values, list | tuple) else repr(values)
            fail("CP202", row, name, f"is {seen}; expected a list of {len(texts)}, as {column}.")
        for one, value in zip(fields, values, strict=True):
            one[name] = value
    return fields


# A flat table


class _Table:
    """Rows that are candidates themselves, by prompt or by group.

    Args:
        rules: names of columns.
        marks: what a human chose.
    """

    def __init__(self, rules: PairRules, marks: HumanMarks | None) -> None:
        self.rules, self.marks = rules, marks
        self._groups: dict[str, tuple[Text, Mapping[str, Any], list[Candidate]]] = {}
        self._asked: dict[str, Any] = {}
        self._references: dict[str, tuple[Text | None, float | None]] = {}

    def add(self, row: int, raw: Mapping[str, Any]) -> None:
        rules = self.rules
        prompt = _prompt(raw, row, rules)
        beside = asked_beside(raw) if rules.prompt_template is None else {}
        kept = {**beside, **_kept(raw, row, rules)}
        asked = [prompt, beside] if beside else prompt
        key = json.dumps(asked if rules.group is None else _cell(raw, row, rules.group, "group"))
        _, _, candidates = self._groups.setdefault(key, (prompt, kept, []))
        if self._asked.setdefault(key, asked) != asked:
            fail(
                "CP206",
                row,
                str(rules.group),
                f"is {key}, as in an earlier row with another prompt; the candidates of a group "
                "should answer one prompt.",
            )
        reference = reference_text(raw, row, rules), reference_score(raw, row, rules)
        self._references.setdefault(key, reference)
        candidates.append(_candidate(raw, row, "", rules, prompt, self.marks))

    def prompts(self) -> Iterator[ScoredPrompt]:
        for key, (prompt, kept, candidates) in self._groups.items():
            text, score = self._references.get(key, (None, None))
            yield ScoredPrompt(prompt, with_reference(candidates, text, score, self.rules), kept)


# A reference


def reference_text(raw: Mapping[str, Any], row: int, rules: PairRules) -> Text | None:
    """The reference that joins the candidates of a row; None where there is none."""
    if rules.reference is None or raw.get(rules.reference) is None:
        return None
    text = _text(raw[rules.reference], row, rules.reference)
    # as candidates are written: one message of the assistant's is what it says
    if isinstance(text, list) and len(text) == 1 and isinstance(text[0].get("content"), str):
        text = text[0]["content"]
    return text if not isinstance(text, str) or text.strip() else None


def reference_score(raw: Mapping[str, Any], row: int, rules: PairRules) -> float | None:
    """The reference's own score; None where it outranks all."""
    name = rules.reference_score
    if name is None or rules.reference is None or raw.get(rules.reference) is None:
        return None
    return _number(_cell(raw, row, name, "reference_score"), row, name)


def with_reference(
    candidates: list[Candidate], text: Text | None, score: float | None, rules: PairRules
) -> tuple[Candidate, ...]:
    """Candidates of a prompt, and its reference as one more.

    Args:
        candidates: of the prompt.
        text: of the reference; None: there is none.
        score: of the reference; None: it has the best of all, and outranks them.
        rules: the score's direction is read.
    """
    if text is None or not candidates:
        return tuple(candidates)
    best = max(candidates, key=lambda one: rules.sign * one.score).score
    first = candidates[0].place
    place = None if first is None else {**first, "model": REFERENCE, "candidate": None}
    own = Candidate(text, best if score is None else score, outranks=score is None, place=place)
    return (*candidates, own)


# Cells


def _candidate(
    fields: Any,
    row: int,
    place: str,
    rules: PairRules,
    prompt: Text,
    marks: HumanMarks | None,
) -> Candidate:
    def path(name: str) -> str:
        return f"{place}.{name}" if place else name

    if not isinstance(fields, Mapping):
        fail_type(fields, row, place, "an object with text and score")
    named = rules.text or next((name for name in TEXTS if name in fields), None)
    name = _text_field(fields, rules) or named
    if name is None or name not in fields:
        _missing(fields, row, path(name or TEXTS[0]), "text")
    marked = marks is not None and marks.has(fields, prompt, fields[name])
    _leave_out(fields, rules, marked)
    text = _text(fields[name], row, path(name))
    if isinstance(text, str) and not text.strip():
        fail("CP203", row, path(name), "is blank. Remove the candidate.")
    if rules.completion_prefix and not isinstance(text, str):
        fail("CP202", row, path(name), "holds messages; completion_prefix goes before text only.")
    if rules.score not in fields:
        _missing(fields, row, path(rules.score), "score")
    score = _number(fields[rules.score], row, path(rules.score))
    mark = fields.get(rules.preferred) if rules.preferred else False
    marked = _mark(mark, row, path(str(rules.preferred))) or marked
    return Candidate(text, score, marked, place=candidate_place(fields))


def _leave_out(fields: Mapping[str, Any], rules: PairRules, marked: bool) -> None:
    """What ``counterpoint score`` wrote of a candidate is no error of the row.

    A veto does not hold for what a human marked.
    """
    if "scores" not in fields:
        return
    if fields.get("vetoed") and not marked:
        raise LeftOut("vetoed")
    if fields.get(rules.score, 0) is None:
        raise LeftOut("unscored")


def _number(value: Any, row: int, place: str) -> float:
    """A finite number, or one that a cell of CSV spells."""
    number = value
    if isinstance(value, str) and "_" not in value:
        try:
            number = float(value)
        except ValueError:
            number = None
    usable = isinstance(number, int | float) and not isinstance(number, bool)
    if not usable or not math.isfinite(number):
        fail("CP215", row, place, f"is {value!r}; expected a finite number.")
    return float(number)


def _mark(value: Any, row: int, place: str) -> bool:
    word = str(value).strip().lower()
    if value is None or word in NO:
        return False
    if word in YES:
        return True
    fail("CP202", row, place, f"is {value!r}; expected true or false.")


def _text(value: Any, row: int, place: str) -> Text:
    text = read_text(value, row, place)
    _check_unicode(text, row, place)
    return text


def _check_unicode(text: Text, row: int, place: str) -> None:
    """JSON can spell half a surrogate pair; no file of pairs could hold it."""
    try:
        json.dumps(text, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        fail("CP202", row, place, f"holds {half}, half of a character. Remove it.")


def _prompt(raw: Mapping[str, Any], row: int, rules: PairRules) -> Text:
    if rules.prompt_template is not None:
        return _rendered(raw, row, rules.prompt_template)
    if rules.prompt not in raw:
        columns = ", ".join(map(str, raw)) or "none"
        raise DataError(
            "CP201",
            f"row {row} has no column {rules.prompt}; it has {columns}. Name one with prompt, or "
            "write one with prompt_template, as in 'Translate: {source}'.",
        )
    return _text(raw[rules.prompt], row, rules.prompt)


def _rendered(raw: Mapping[str, Any], row: int, template: str) -> str:
    words = []
    for literal, name in template_parts(template):
        words.append(literal)
        if name is None:
            continue
        value = _cell(raw, row, name, "prompt_template")
        if not isinstance(value, str | int | float):
            kind = type(value).__name__
            fail("CP202", row, name, f"is of type {kind}; prompt_template takes texts and numbers.")
        words.append(str(value))
    text = "".join(words)
    _check_unicode(text, row, "prompt_template")
    return text


def _kept(raw: Mapping[str, Any], row: int, rules: PairRules) -> dict[str, Any]:
    for name in rules.keep:
        if name not in raw:
            _missing(raw, row, name, "keep")
    return {name: raw[name] for name in rules.keep}


def _cell(raw: Mapping[str, Any], row: int, name: str, option: str) -> Any:
    if name not in raw:
        _missing(raw, row, name, option)
    if raw[name] is None:
        fail("CP202", row, name, "is null; expected a value.")
    return raw[name]


def _missing(fields: Mapping[str, Any], row: int, place: str, option: str) -> NoReturn:
    """Refuse a row without a field: CP201, with the fields that there are."""
    seen = ", ".join(map(str, fields)) or "none"
    fail("CP201", row, place, f"is missing; there are {seen}. Name the right one with {option}.")
