"""What became of the rows: the account of each data set, and the lengths of its pairs.

Not here: making the account (``data.counts``), drawing (``drawing``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.doctor.table import TABLE, meaning
from counterpoint.language import phrase
from counterpoint.markup import Content, Markup, element, table
from counterpoint.preference_row import GOLD, PARTS
from counterpoint.report.charts import Bars, Histogram

_ROLES = {"prompt": "series-6", "chosen": "series-1", "rejected": "series-2", GOLD: "series-3"}

Account = Mapping[str, Any]


def audit(data: Mapping[str, Account]) -> Markup:
    """A table of the sets: rows read, kept, dropped and why, tokens, cuts, digest.

    Args:
        data: of ``run.json``: the account of each set by its name.
    """
    sets = list(data)
    rows: list[list[Content]] = [
        [phrase("rows read"), *(_whole(data[name].get("rows")) for name in sets)],
        [phrase("kept"), *(_whole(data[name].get("kept")) for name in sets)],
        [phrase("dropped"), *(_dropped(data[name]) for name in sets)],
        [phrase("an epoch"), *(_shares(data[name]) for name in sets)],
        [phrase("tokens"), *(_by_part(data[name].get("tokens")) for name in sets)],
        [phrase("cut"), *(_cuts(data[name]) for name in sets)],
        [phrase("limits"), *(_limits(data[name].get("limits")) for name in sets)],
        [phrase("equal after cutting"), *(_whole(data[name].get("same_rows")) for name in sets)],
        [phrase("nothing in column"), *(_absent(data[name]) for name in sets)],
        [phrase("the chat template"), *(_lost(data[name]) for name in sets)],
        [phrase("digest"), *(_digest(data[name].get("digest")) for name in sets)],
    ]
    told = [row for row in rows if any(cell not in (None, "–") for cell in row[1:])]
    return table(["", *sets], told, label=phrase("What became of the rows"))


def kept_in_words(data: Mapping[str, Account]) -> str:
    """How many rows of each set were kept, in a line: "train: 61,082 of 61,135 rows"."""
    known = {
        name: (one["kept"], one["rows"])
        for name, one in data.items()
        if isinstance(one.get("kept"), int) and isinstance(one.get("rows"), int)
    }
    text = "{name}: {kept} of {rows} rows"
    return ", ".join(
        phrase(text, name=name, kept=f"{kept:,}", rows=f"{rows:,}")
        for name, (kept, rows) in known.items()
    )


def histograms(data: Mapping[str, Account]) -> tuple[Histogram, ...]:
    """The lengths of each set's prompts and completions, where they were written down."""
    found = []
    for number, (name, account) in enumerate(data.items()):
        bars = tuple(
            Bars(f"lengths-{number}/{part}", part, _ROLES[part], edges, counts)
            for part in (*PARTS, GOLD)
            if (made := _histogram(account, part)) is not None
            for edges, counts in [made]
        )
        if bars:
            title = phrase("Lengths, {name}", name=name)
            found.append(Histogram(f"lengths-{number}", title, phrase("tokens"), bars))
    return tuple(found)


def _histogram(account: Account, part: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    given = (account.get("lengths") or {}).get(part) or {}
    edges, counts = given.get("edges") or (), given.get("counts") or ()
    if not counts or len(edges) != len(counts) + 1:
        return None
    return tuple(map(float, edges)), tuple(map(float, counts))


def _whole(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None


def _dropped(account: Account) -> Content:
    dropped: Mapping[str, int] = account.get("dropped") or {}
    if not dropped:
        return phrase("none") if "rows" in account else None
    examples: Mapping[str, str] = account.get("examples") or {}
    return [
        element(
            "div",
            f"{how_many:,} × {code}",
            f" ({meaning(code).title})" if code in TABLE else None,
            element("br"),
            element("small", examples[code]) if code in examples else None,
        )
        for code, how_many in dropped.items()
    ]


def _shares(account: Account) -> Content:
    """What each of several sets gives to an epoch."""
    shares = account.get("shares") or ()
    whole = sum(one["epoch"] for one in shares)
    if not whole:
        return None
    text = "{name}: {pairs} of {whole} pairs, weight {weight}"
    return [
        element(
            "div",
            phrase(
                text,
                name=one["name"],
                pairs=f"{one['epoch']:,}",
                whole=f"{whole:,}",
                weight=f"{one['weight']:g}",
            ),
        )
        for one in shares
    ]


def _by_part(counts: Mapping[str, int] | None) -> Content:
    if not counts:
        return None
    return ", ".join(f"{counts[part]:,} {part}" for part in (*PARTS, GOLD) if part in counts)


def _cuts(account: Account) -> Content:
    rows, tokens = account.get("cut_rows") or {}, account.get("cut_tokens") or {}
    if not rows and not tokens:
        return None
    told = [
        phrase(
            "{tokens} {part} tokens in {rows} rows",
            tokens=f"{tokens.get(part, 0):,}",
            part=part,
            rows=f"{rows[part]:,}",
        )
        for part in (*PARTS, GOLD)
        if rows.get(part)
    ]
    return "; ".join(told) or phrase("nothing")


def _absent(account: Account) -> str | None:
    """Rows that lack what others of the set have."""
    absent = (account.get("absent_rows") or {}).items()
    told = [f"{name} {rows:,}" for name, rows in absent if rows < account.get("kept", 0)]
    return ", ".join(told) or None


def _lost(account: Account) -> Content:
    """What the chat template does to rows, each with the first of them."""
    lost: Mapping[str, int] = account.get("lost") or {}
    shown: Mapping[str, str] = account.get("shown") or {}
    if not lost:
        return None
    return [
        element(
            "div",
            _loss(what, f"{rows:,}"),
            element("br"),
            element("small", shown[what]) if what in shown else None,
        )
        for what, rows in lost.items()
    ]


def _loss(what: str, rows: str) -> str:
    """A kind of loss as the account calls it, "drops thoughts of the prompt", and its rows."""
    verb, _, rest = what.partition(" ")
    thing, _, place = rest.rpartition(" of ")
    return phrase(
        "{verb} {thing} of {place} in {rows} rows",
        verb=phrase(verb),
        thing=phrase(thing),
        place=phrase(place),
        rows=rows,
    )


def _limits(limits: Mapping[str, Any] | None) -> str | None:
    """What may be cut, and how: the reason of every cut."""
    told = [f"{name} {value}" for name, value in (limits or {}).items() if value is not None]
    return ", ".join(told) or None


def _digest(value: Any) -> Content:
    return element("code", str(value)[:16], title=str(value)) if value else None
