"""Checks of a data set: what a ``Survey`` counted, judged.

What the trainer refuses is an error under the trainer's own code, or a warning where
``invalid_rows="drop"`` asks to train without such rows. Everything else is a warning from a rate
on, since real data hold a little of everything.

Not here: counting (``survey``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np

from counterpoint.config import CPOConfig
from counterpoint.doctor.findings import MOST_ROWS, Finding, find, from_error
from counterpoint.doctor.lengths import length_bias, length_classes
from counterpoint.doctor.near_duplicates import nearly_equal
from counterpoint.doctor.of_languages import of_languages
from counterpoint.doctor.sightings import Sightings
from counterpoint.doctor.survey import Survey
from counterpoint.objectives import LOSSES, no_gap
from counterpoint.preference_row import ALL_TURNS, GOLD, PARTS

RATES: Mapping[str, float] = MappingProxyType(
    {
        "CW138": 0.0,
        "CW201": 0.0,
        "CW202": 0.0,
        "CW203": 0.05,
        "CW204": 0.0,
        "CW205": 0.0,
        "CW206": 0.01,
        "CW207": 0.01,
        "CW208": 0.05,
        "CW209": 0.0,
        "CW210": 0.01,
        "CW213": 0.01,
        "CW214": 0.0,
        "CW215": 0.0,
        "CW216": 0.0,
        "CW217": 0.01,
        "CW218": 0.01,
        "CW219": 0.01,
        "CW220": 0.05,
        "CW230": 0.0,
        "CW231": 0.0,
        "CW234": 0.05,
        "CW305": 0.0,
        "CW306": 0.0,
        "CW310": 0.0,
    }
)
"""Code -> share of rows from which it is worth a warning; at 0 a single row is."""

OF_TOKENS = ("CW208", "CW209", "CW210", "CW216", "CW217", "CW218", "CW219", "CW234")
"""Codes whose rates are of the rows that fit as tokens, not of all whose texts were read."""

BIAS, SIGMAS = 0.1, 3.0
"""Share above a half that is a bias, if it is also that many standard errors from chance."""

LEAST_AUC = 0.05
"""How far from 0.5 the AUC must be too: a share alone may come from a character more or less."""

MOST_LISTED = 100
"""Rows that a line to paste may list."""

_WITHOUT_LEAKED = (
    "eval_dataset = eval_dataset.select([n for n in range(len(eval_dataset)) if n not in leaked])"
)

_DROP = "invalid_rows: drop"

_KEEPING = (
    'lambda row: {"chat_template_kwargs": {**(row.get("chat_template_kwargs") or {}), **keep}}'
)

_POLICY = re.compile(r'set\s+truncation="(prompt_\w+)"', re.IGNORECASE)

_FIXES: Mapping[str, str] = MappingProxyType(
    {
        "CP203": _DROP,
        "CP219": _DROP,
        "CP239": _DROP,
        **dict.fromkeys(("CP228", "CP229", "CP230", "CP231"), _DROP),
        "CP204": "truncation: prompt_start",
        "CP205": _DROP,
        "CP206": _DROP,
        "CP207": _DROP,
        "CP202": _DROP,
        "CP212": _DROP,
        "CP213": _DROP,
        "CP214": _DROP,
        "CP233": _DROP,
        "CP234": _DROP,
        "CP236": _DROP,
        "CW215": 'train_dataset = train_dataset.filter(lambda row: row["weight"] > 0)',
        "CW210": (
            'spaces = row["prompt"][len(row["prompt"].rstrip()) :]\n'
            'row = {"prompt": row["prompt"].rstrip(), **{side: spaces + row[side] for side in '
            '("chosen", "rejected")}}'
        ),
    }
)


def of_data(found: Survey, args: CPOConfig) -> Iterator[Finding]:
    """Judge a data set.

    Args:
        found: what its rows showed.
        args: the run's options.
    """
    yield from (from_error(error) for error in found.failures)
    if found.bugs.count:
        text = f"{found.name}: {found.bugs.count:,} rows made a check fail: {found.bugs.example}"
        yield find("CW901", text, rows=found.bugs.rows)
    if not found.rows:
        return
    yield from _refused(found, args)
    if not found.usable:
        return
    often, rare = _counted(found)
    if args.train_turns != ALL_TURNS:
        often.pop("CW138", None)
    yield _manifest(found, rare)
    if not found.whole:
        yield find("CN204", f"{found.name}: the first {found.rows:,} rows.")
    for code, (seen, total) in often.items():
        yield find(
            code,
            f"{found.name}: {_rate(seen.count, total)}{_kinds(code, found)}.",
            rows=seen.rows,
            fix=_fix(code, found, args),
        )
    if found.texts:
        yield from _lengths(found)
    yield from _refusals(found)
    yield from of_languages(found.name, found.languages)


def of_both(train: Survey, evaluation: Survey) -> Iterator[Finding]:
    """Evaluation rows that are nearly rows of the training set, by prompt and chosen completion.

    Args:
        train: with signatures.
        evaluation: with signatures.
    """
    twins = nearly_equal(
        [mine for _, mine in evaluation.signatures], [theirs for _, theirs in train.signatures]
    )
    if not twins:
        return
    rows = [evaluation.signatures[mine][0] for mine, _ in twins]
    first = train.signatures[twins[0][1]][0]
    yield find(
        "CW212",
        f"{_rate(len(twins), evaluation.texts)} of {evaluation.name} are nearly rows of "
        f"{train.name}; row {rows[0]} is like row {first} there.",
        rows=rows,
        # numbers of rows that were taken from lists are none of the set as it is given
        fix=(
            f"leaked = {rows}\n{_WITHOUT_LEAKED}"
            if len(rows) <= MOST_LISTED and not evaluation.listed_rows
            else ""
        ),
    )


def _refused(found: Survey, args: CPOConfig) -> Iterator[Finding]:
    dropped = args.invalid_rows == "drop"
    for code, sightings in sorted(found.problems.items()):
        policy = code == "CP204" and args.truncation == "drop"
        yield find(
            code,
            f"{found.name}: {_rate(sightings.count, found.rows)}. The first: {sightings.example}",
            rows=sightings.rows,
            fix="" if dropped or policy else _fix_of(code, sightings.example),
            severity="warning" if (dropped or policy) and found.usable else "error",
        )
    margins = found.margins
    if margins.count and not LOSSES[args.loss_type].has_gap:
        text = f"{margins.count:,} rows have one. The first: {margins.example}; "
        yield find("CP212", f"{found.name}: {text}{no_gap(args.loss_type)}", rows=margins.rows)
    if not found.usable:
        yield find("CP209", f"none of the {found.rows:,} rows of {found.name} can be used.")


def _fix_of(code: str, example: str) -> str:
    """What mends rows of a code; of too long ones the policy that their message names."""
    named = _POLICY.search(example) if code == "CP204" else None
    return f"truncation: {named[1]}" if named else _FIXES.get(code, "")


def _manifest(found: Survey, rare: Mapping[str, int]) -> Finding:
    text = f"{found.name}: {found.usable:,} of {found.rows:,} rows are pairs"
    if found.tokens is not None:
        text += f", {found.tokens.tokens:,} tokens"
        if found.tokens.given:
            text += f", of the completions {found.tokens.given:,} without loss"
    text += f"; digest {found.digest}"
    if found.listed_rows:
        text += (
            f"; {found.listed_pairs:,} of them from {found.listed_rows:,} rows that list their "
            "rejected completions"
        )
    if rare:
        counts = ", ".join(f"{count:,} x {code}" for code, count in rare.items())
        text += f"; too few for a warning: {counts}"
    return find("CN201", f"{text}.")


def _counted(found: Survey) -> tuple[dict[str, tuple[Sightings, int]], dict[str, int]]:
    """What is worth a warning, with the rows it is a rate of; and the counts of what is not."""
    between = found.consistency
    numbers = {
        "CW202": between.duplicates,
        "CW203": between.prompts,
        "CW204": between.contradictions,
        "CW205": between.circles,
    }
    sightings = {code: Sightings(len(rows), rows[:MOST_ROWS]) for code, rows in numbers.items()}
    sightings.update({code: seen for code, seen in found.seen.items() if code in RATES})
    if found.tokens is not None:
        sightings["CW208"], sightings["CW209"] = found.tokens.cut, found.tokens.same
        sightings["CW210"], sightings["CW219"] = found.tokens.moved, found.tokens.little
        if found.tokens.scaled is not None:
            sightings["CW234"] = found.tokens.scaled.seen
        sightings.update({code: lost.seen for code, lost in found.tokens.lost.items()})
    often: dict[str, tuple[Sightings, int]] = {}
    rare: dict[str, int] = {}
    for code, seen in sorted(sightings.items()):
        total = found.usable if code in OF_TOKENS else found.texts
        if seen.count and seen.count >= RATES[code] * total:
            often[code] = (seen, total)
        elif seen.count:
            rare[code] = seen.count
    return often, rare


def _kinds(code: str, found: Survey) -> str:
    """What a template does to what, in how many rows, and in the first; or a processor."""
    if code == "CW234" and found.tokens is not None and found.tokens.scaled is not None:
        return f". They {found.tokens.scaled.in_words}"
    lost = None if found.tokens is None else found.tokens.lost.get(code)
    if lost is None:
        return ""
    kinds = ", ".join(f"{what} in {rows:,}" for what, rows in lost.kinds.most_common())
    return f". The template {kinds}; {lost.seen.example}"


def _fix(code: str, found: Survey, args: CPOConfig) -> str:
    if code in ("CW208", "CW209", "CW219") and found.tokens is not None:
        share = 0.99 if code == "CW208" else 1
        enough = int(np.quantile(found.tokens.most, share, method="higher"))
        if found.tokens.positions is not None and enough > found.tokens.positions:
            return ""  # no option gives a model more
        lines = [f"max_length: {enough}"]
        if args.max_completion_length is not None:
            lines.append("max_completion_length: null")
        return "\n".join(lines)
    lost = None if found.tokens is None else found.tokens.lost.get(code)
    if lost is not None and lost.switch:
        rows = "eval_dataset" if found.name == "eval" else "train_dataset"
        return f"keep = {lost.switch}\n{rows} = {rows}.map({_KEEPING})"
    return _FIXES.get(code, "")


def _lengths(found: Survey) -> Iterator[Finding]:
    chosen, rejected = np.array(found.characters, dtype=np.int64).T
    bias = length_bias(chosen, rejected)
    says = (
        f"chosen is longer in {bias.longer:.1%} and shorter in {bias.shorter:.1%} of rows, by "
        f"{bias.difference:+.1f} characters on average; AUC of 'longer wins' {bias.auc:.3f}"
    )
    tokens = found.tokens
    if tokens is None:
        shown = (
            f"characters of chosen {length_classes(chosen)}; of rejected {length_classes(rejected)}"
        )
    else:
        parts = zip((*PARTS, GOLD), tokens.parts, strict=False)
        shown = "; ".join(f"{name} {length_classes(lengths)}" for name, lengths in parts)
    yield find("CN202", f"{found.name}: {shown}; {says}.")
    decided = bias.longer + bias.shorter
    if not decided:
        return
    share = bias.longer / decided
    chance = 0.5 / np.sqrt(decided * len(chosen))
    if abs(share - 0.5) > max(BIAS, SIGMAS * chance) and abs(bias.auc - 0.5) > LEAST_AUC:
        yield find("CW211", f"{found.name}: {says}.")


def _refusals(found: Survey) -> Iterator[Finding]:
    counts = [found.seen[f"refused {side}"].count for side in ("chosen", "rejected")]
    if sum(counts):
        yield find(
            "CN203",
            f"{found.name}: {_rate(counts[0], found.texts)} of chosen and "
            f"{_rate(counts[1], found.texts)} of rejected completions.",
        )


def _rate(count: int, total: int) -> str:
    return f"{count:,} of {total:,} rows ({count / total:.1%})"
