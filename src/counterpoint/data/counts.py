"""What preparing a data set did to it: the account that makes every loss of data visible.

Not here: deciding anything. ``prepare`` and ``iter_pairs`` fill it, the run's log keeps it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from counterpoint.data.mixed_order import SetShare
from counterpoint.data.options import PrepareOptions
from counterpoint.data.pair_digest import JoinedDigest, PairDigest
from counterpoint.data.survival import from_column
from counterpoint.preference_row import COMPLETIONS, GOLD, PARTS

TAKEN = {
    "weight": "it is 1 there",
    "margin": "it is 0 there",
    "prompt": "it is the text with which both sides begin there",
}
"""What stands for a cell that is null where other rows of the set have a value."""

NUMBERS = (
    "rows",
    "kept",
    "boundary_rows",
    "boundary_tokens",
    "little_rows",
    "same_rows",
    "spelled_rows",
    "given_rows",
    "listed_rows",
    "listed_pairs",
)
COUNTERS = ("dropped", "cut_rows", "cut_tokens", "tokens", "given_tokens", "absent_rows", "lost")
"""Fields of an account that add up, as numbers and by key."""

NO_LIST, FIRST, FURTHER = 0, 1, 2
"""What the column ``listed`` says of a row: that its rejected completion was not in a list, or the
first of one, or a further one."""

CLASSES = 40
"""Most classes of a histogram."""


@dataclass
class PrepareCounts:
    """Rows and tokens of one data set, before and after.

    Args:
        name: the data set's name in messages.
        rows: rows read.
        kept: rows that became pairs.
        dropped: dropped rows by error code.
        examples: the first message of each code.
        cut_rows: kept rows that lost tokens, by part (prompt, chosen, rejected, and gold where
            rows have such a completion).
        cut_tokens: tokens that kept rows lost, by part.
        tokens: tokens of kept rows after cutting, by part.
        given_rows: kept rows in whose completions some tokens carry no loss: of tools, of users, or
            of turns that are not trained.
        given_tokens: how many tokens that were, by part.
        boundary_rows: kept rows in which tokens of the prompt's end went to the completions,
            since they merge with them or the chat template writes them otherwise.
        boundary_tokens: how many tokens that were.
        little_rows: kept rows of whose prompt more than a third was cut.
        same_rows: kept rows whose two completions became equal by cutting; they teach nothing.
        absent_rows: kept rows in which a column of the set holds nothing, by column: weight is
            taken as 1 there, margin as 0, and prompt as the text with which both sides begin.
        spelled_rows: kept rows with a text that spells messages, which is trained as that text.
        listed_rows: rows, as the set is given, that list their rejected completions.
        listed_pairs: how many those are. Each is counted as a row of its own everywhere else.
        lost: kept rows of which the chat template drops, changes or repeats something, by what it
            does in words.
        shown: the first row of each, and how what it lost begins.
        lengths: how many kept rows have a part of a length, in tokens after cutting.
        digest: of the pairs that the kept rows became; None where they were not all seen, since
            a resumed run leaves out what it has read of a stream.
        limits: what may be cut, and by which policy: the reason of every cut.
        shares: what each of several sets gives to an epoch; none where it is all pairs.
    """

    name: str
    rows: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    cut_rows: Counter[str] = field(default_factory=Counter)
    cut_tokens: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    given_rows: int = 0
    given_tokens: Counter[str] = field(default_factory=Counter)
    boundary_rows: int = 0
    boundary_tokens: int = 0
    little_rows: int = 0
    same_rows: int = 0
    absent_rows: Counter[str] = field(default_factory=Counter)
    spelled_rows: int = 0
    listed_rows: int = 0
    listed_pairs: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    shown: dict[str, str] = field(default_factory=dict)
    lengths: dict[str, Counter[int]] = field(
        default_factory=lambda: {part: Counter() for part in (*PARTS, GOLD)}
    )
    digest: PairDigest | JoinedDigest | None = field(default_factory=PairDigest)
    limits: Mapping[str, Any] = field(default_factory=dict)
    shares: tuple[SetShare, ...] = ()

    @classmethod
    def under(cls, options: PrepareOptions, name: str) -> PrepareCounts:
        """The account of a set that is prepared with these options, still empty."""
        return cls(name, limits=asdict(options.limits))

    def drop(self, problem: str, rows: int = 1) -> None:
        """Count dropped rows under the code that ``problem``, an error's text, begins with."""
        code = problem[:5]
        self.rows += rows
        self.dropped[code] += rows
        self.examples.setdefault(code, problem)

    def take(self, listed: int, rows: int = 1) -> None:
        """Count rows, kept or not, by what ``encode.COLUMNS``' column ``listed`` says of them."""
        self.listed_pairs += rows * (listed != NO_LIST)
        self.listed_rows += rows * (listed == FIRST)

    def keep(self, record: Mapping[str, Any]) -> None:
        """Count one kept row, given the columns of ``encode.COLUMNS``."""
        self.rows += 1
        self.kept += 1
        if isinstance(self.digest, PairDigest):
            self.digest.add_row(record)
        for part in (*PARTS, GOLD) if record["gold_ids"] else PARTS:
            self.tokens[part] += len(record[f"{part}_ids"])
            self.lengths[part][len(record[f"{part}_ids"])] += 1
            self.cut_rows[part] += record[f"cut_{part}"] > 0
            self.cut_tokens[part] += record[f"cut_{part}"]
        spans = {part: record[f"{part}_given"] for part in COMPLETIONS}
        self.given_rows += any(spans.values())
        for part, given in spans.items():
            self.given_tokens[part] += sum(given[1::2]) - sum(given[::2])
        self.little_rows += little_is_left(len(record["prompt_ids"]), record["cut_prompt"])
        self.boundary_rows += record["boundary"] > 0
        self.boundary_tokens += record["boundary"]
        self.same_rows += record["same"]
        self.miss(record["absent"])
        self.spelled_rows += record["spelled"]
        if record["lost"]:
            self.lose(record["row"], record["lost"])

    def miss(self, absent: str, rows: int = 1) -> None:
        """Count kept rows that have nothing in these columns, named in ``encode.COLUMNS``' way."""
        for name in absent.split():
            self.absent_rows[name] += rows

    def lose(self, row: int, lost: str) -> None:
        """Count what a kept row lost in its chat template, from the column ``lost``."""
        for loss in from_column(lost):
            self.lost[loss.in_words] += 1
            self.shown.setdefault(loss.in_words, f"row {row}: {loss.shown!r} ({loss.code})")

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of rows that it has numbers for."""
        return (*PARTS, GOLD) if self.tokens[GOLD] else PARTS

    def as_dict(self) -> dict[str, Any]:
        """The account as plain JSON types."""
        return {
            "name": self.name,
            "rows": self.rows,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "examples": dict(sorted(self.examples.items())),
            "cut_rows": {part: self.cut_rows[part] for part in self.parts},
            "cut_tokens": {part: self.cut_tokens[part] for part in self.parts},
            "tokens": {part: self.tokens[part] for part in self.parts},
            "given_rows": self.given_rows,
            "given_tokens": {part: self.given_tokens[part] for part in COMPLETIONS},
            "boundary_rows": self.boundary_rows,
            "boundary_tokens": self.boundary_tokens,
            "little_rows": self.little_rows,
            "same_rows": self.same_rows,
            "absent_rows": dict(sorted(self.absent_rows.items())),
            "spelled_rows": self.spelled_rows,
            "listed_rows": self.listed_rows,
            "listed_pairs": self.listed_pairs,
            "lost": dict(sorted(self.lost.items())),
            "shown": dict(sorted(self.shown.items())),
            "limits": dict(self.limits),
            "digest": None if self.digest is None else self.digest.hexdigest(),
            "lengths": {part: histogram(self.lengths[part]) for part in self.parts},
            **({"shares": [one.as_dict() for one in self.shares]} if self.shares else {}),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know, as plain JSON types."""
        lengths = {p: {str(n): rows for n, rows in self.lengths[p].items()} for p in self.parts}
        kept = {name: value for name, value in self.as_dict().items() if name != "digest"}
        return {**kept, "lengths": lengths}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from it, with rows that come after those that were counted.

        Args:
            state: from ``state``.
        """
        for name in NUMBERS:
            setattr(self, name, state.get(name, 0))
        for name in COUNTERS:
            setattr(self, name, Counter(state.get(name)))
        self.examples = dict(state["examples"])
        self.shown = dict(state.get("shown", {}))
        self.lengths = {
            part: Counter({int(n): rows for n, rows in state["lengths"].get(part, {}).items()})
            for part in (*PARTS, GOLD)
        }
        self.digest = None

    def add(self, after: PrepareCounts) -> None:
        """Count the rows of another account too, which come after these; not their digest."""
        for name in NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(after, name))
        for name in COUNTERS:
            getattr(self, name).update(getattr(after, name))
        for part in self.lengths:
            self.lengths[part].update(after.lengths[part])
        for mine, theirs in ((self.examples, after.examples), (self.shown, after.shown)):
            mine.update({key: text for key, text in theirs.items() if key not in mine})

    def taken(self) -> dict[str, Any]:
        """What was counted so far, as of ``state_dict``; the account is empty afterwards."""
        state = self.state_dict()
        empty = PrepareCounts(self.name, digest=None, limits=self.limits)
        vars(self).update(vars(empty))
        return state

    def by_code(self) -> str:
        """The dropped rows in words, most frequent code first: "5 x CP206, 4 x CP203"."""
        return ", ".join(f"{n:,} × {code}" for code, n in self.dropped.most_common())

    def said_lists(self) -> str:
        """How rows with several rejected completions are counted, in words."""
        return (
            f"{self.listed_rows:,} rows list their rejected completions: {self.listed_pairs:,} "
            "rows of one each, which share the weight of theirs"
        )

    def summary(self) -> str:
        """A few lines for people; what did not happen is not mentioned."""
        tokens = " + ".join(f"{self.tokens[part]:,} {part}" for part in self.parts)
        lines = [f"{self.name}: {self.kept:,} of {self.rows:,} rows, {tokens} tokens"]
        whole = sum(one.epoch for one in self.shares)
        lines += [f"  {one.in_words(whole)}" for one in self.shares]
        lines += [f"  {self.said_lists()}"] * bool(self.listed_rows)
        if self.dropped:
            lines.append(f"  dropped: {self.by_code()}")
            lines += [f"    for example {text}" for text in self.examples.values()]
        cuts = [
            f"{self.cut_tokens[part]:,} {part} tokens in {self.cut_rows[part]:,} rows"
            for part in self.parts
            if self.cut_rows[part]
        ]
        if cuts:
            lines.append(f"  cut: {', '.join(cuts)}")
        if self.given_rows:
            given = " and ".join(f"{self.given_tokens[part]:,} {part}" for part in COMPLETIONS)
            lines.append(
                f"  {self.given_rows:,} rows have completions of several turns: {given} tokens of "
                "them carry no loss (train_turns)"
            )
        if self.little_rows:
            lines.append(
                f"  of {self.little_rows:,} prompts more than a third is cut: raise max_length "
                "(CW219)"
            )
        if self.same_rows:
            lines.append(
                f"  {self.same_rows:,} rows have equal completions after cutting and teach "
                "nothing: raise max_length"
            )
        for name, rows in sorted(self.absent_rows.items()):
            if rows < self.kept:  # a column that is null throughout is a column that is not there
                lines.append(f"  {rows:,} rows have no {name}: {TAKEN[name]}")
        if self.spelled_rows:
            lines.append(
                f"  {self.spelled_rows:,} rows hold text that spells messages, and are trained on "
                "that text: give lists of messages if they are meant (CW220)"
            )
        lines += [
            f"  in {rows:,} rows the chat template {what}, for example {self.shown[what]}"
            for what, rows in sorted(self.lost.items())
        ]
        if self.boundary_rows:
            lines.append(
                f"  in {self.boundary_rows:,} rows {self.boundary_tokens:,} tokens at the "
                "prompt's end belong to the completions"
            )
        return "\n".join(lines)


def little_is_left(kept: Any, cut: Any) -> Any:
    """Whether more than a third of a prompt was cut.

    Args:
        kept: tokens of the prompt that are left; a number, or an array of one a row.
        cut: tokens of it that are not.
    """
    return 2 * cut > kept


def histogram(lengths: Mapping[int, int]) -> dict[str, list[int]]:
    """Lengths in classes of equal width, from 0 to beyond the longest.

    Args:
        lengths: how often each length is there, in tokens.

    Returns:
        "edges", and one fewer "counts": class i holds lengths from edge i to below edge i + 1.
    """
    longest = max(lengths, default=0)
    width = longest // CLASSES + 1
    counts = [0] * (longest // width + 1)
    for length, rows in lengths.items():
        counts[length // width] += rows
    return {"edges": [width * edge for edge in range(len(counts) + 1)], "counts": counts}


def given_tokens(table: pa.Table, part: str) -> int:
    """Tokens of completions that carry no loss, of all rows of an encoded table.

    Args:
        table: with the columns of ``encode.COLUMNS``.
        part: "chosen" or "rejected".
    """
    edges = pc.list_flatten(table.column(f"{part}_given")).to_numpy()
    return int(edges[1::2].sum() - edges[::2].sum())
