"""One pass over the rows of a data set: what is counted, nothing judged.

1. Every row is read as the trainer reads it; what is no pair is counted by its code.
2. Texts are looked at one row at a time (``signs``), and kept as hashes to compare rows.
3. Tokens come from the trainer's own preparation and its cache, so that a run that follows does
   not tokenize again.

Of a stream only the first rows are read. Nothing that a row holds stops the pass.

Not here: what a count is worth (``of_data``).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from counterpoint.console.phases import phase
from counterpoint.data import formats
from counterpoint.data.counts import given_tokens, little_is_left
from counterpoint.data.encoder import Encoder, encoder_for
from counterpoint.data.options import PrepareOptions
from counterpoint.data.pair_columns import to_pair, with_raw_row
from counterpoint.data.picture_files import folder_of, in_same_folder, rules_for
from counterpoint.data.prepare import encode_every_row
from counterpoint.data.survival import LostText, from_column
from counterpoint.data.switches import switch_for
from counterpoint.data.undecoded import undecoded
from counterpoint.data.vision import VisionEncoder
from counterpoint.doctor.consistency import Consistency, Keys, consistency
from counterpoint.doctor.findings import MOST_ROWS
from counterpoint.doctor.lengths import Lengths
from counterpoint.doctor.near_duplicates import Signature, signature
from counterpoint.doctor.of_tokenizer import marks_of
from counterpoint.doctor.off_target import Languages, looking_at
from counterpoint.doctor.raw_rows import AT_ONCE, raw_rows, raw_table, read_alone
from counterpoint.doctor.scaled import Scaled, scaled_far
from counterpoint.doctor.sightings import Sightings
from counterpoint.doctor.signs import as_text, pattern_of, signs
from counterpoint.errors import CounterpointError, DataError
from counterpoint.planner.pictures import Shown
from counterpoint.preference_row import COMPLETIONS, GOLD, PARTS, PreferenceRow
from counterpoint.records import TokenPair

STREAMED = 2000
"""Rows of a stream that are examined."""


SAMPLES = 8
"""Usable rows that are kept whole, for checks that need a row."""

"""Ids of a prompt and its two completions."""

Progress = Callable[[str, int, "int | None"], None]
"""Called with the set's name, rows done and rows in all (None if that is not known)."""


@dataclass(slots=True)
class Lost:
    """What the chat template drops, changes or repeats of some rows.

    Args:
        seen: the rows, and what the first of them lost.
        kinds: how many rows lose what, in words.
        switch: an argument of the template with which the first row loses none of it.
    """

    seen: Sightings = field(default_factory=Sightings)
    kinds: Counter[str] = field(default_factory=Counter)
    switch: dict[str, Any] | None = None


@dataclass(slots=True)
class TokenFacts:
    """What tokenizing showed of the usable rows, in the order of the rows.

    Args:
        prompt: tokens of each prompt before any cut.
        chosen: tokens of each chosen completion before any cut.
        rejected: the same of each rejected one.
        cut: rows that lost tokens.
        little: rows of whose prompt more than a third is cut.
        same: rows whose completions are equal after cutting.
        moved: rows in which tokens of the prompt's end went to the completions.
        given: tokens of completions that carry no loss.
        lost: what rows lose in the chat template, by the code of the warning.
        highest: of each part the highest token id, and the first row that has it; -1 without
            rows.
        pairs: a few pairs, shorter than most.
        most: of each row, the tokens that the run's limit on length is of.
        positions: tokens that no such limit can exceed; None for no such number.
        numbers: of these rows.
        gold: tokens of each gold completion; None where the loss reads none.
        shown: what the pairs show, for a plan; None: nothing.
        scaled: whose pictures the processor scales far; None where nothing is shown.
    """

    prompt: Lengths
    chosen: Lengths
    rejected: Lengths
    cut: Sightings
    little: Sightings
    same: Sightings
    moved: Sightings
    given: int
    lost: dict[str, Lost]
    highest: dict[str, tuple[int, int]]
    pairs: list[TokenPair]
    most: Lengths
    numbers: Lengths
    gold: Lengths | None = None
    positions: int | None = None
    shown: Shown | None = None
    scaled: Scaled | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return int(sum(lengths.sum() for lengths in self.parts))

    @property
    def parts(self) -> list[Lengths]:
        """Lengths of prompts and of all completions that there are."""
        gold = [] if self.gold is None else [self.gold]
        return [self.prompt, self.chosen, self.rejected, *gold]


@dataclass(slots=True)
class Survey:
    """What is known of a data set.

    Args:
        name: as messages call it.
        rows: rows read.
        whole: False where a stream was read at its beginning only.
        problems: what is no pair, by code.
        seen: what stands out in single rows, by the names that ``signs`` gives.
        margins: rows with a margin of their own.
        listed_rows: rows, as the set is given, that list their rejected completions.
        listed_pairs: how many those are; each is a row of its own in all other numbers.
        samples: some usable rows.
        characters: of each usable row's chosen and rejected completion.
        consistency: how the rows agree with each other.
        signatures: of each usable row, its number and MinHash; empty if not asked for.
        languages: what completions are in, where rows ask for one.
        digest: of the content of all rows read, in order.
        tokens: what tokenizing showed; None where there is no tokenizer that could.
        failures: what kept the set, or the tokenizing of it, from being looked at.
        bugs: exceptions that no row should cause.
    """

    name: str
    rows: int = 0
    whole: bool = True
    problems: dict[str, Sightings] = field(default_factory=lambda: defaultdict(Sightings))
    seen: dict[str, Sightings] = field(default_factory=lambda: defaultdict(Sightings))
    margins: Sightings = field(default_factory=Sightings)
    listed_rows: int = 0
    listed_pairs: int = 0
    samples: list[PreferenceRow] = field(default_factory=list)
    characters: list[tuple[int, int]] = field(default_factory=list)
    consistency: Consistency = field(default_factory=Consistency)
    signatures: list[tuple[int, Signature]] = field(default_factory=list)
    languages: Languages = field(default_factory=Languages)
    digest: str = ""
    tokens: TokenFacts | None = None
    failures: list[CounterpointError] = field(default_factory=list)
    bugs: Sightings = field(default_factory=Sightings)

    @property
    def texts(self) -> int:
        """Rows whose texts could be looked at; some may not fit as tokens."""
        return len(self.characters)

    @property
    def usable(self) -> int:
        """Rows that are pairs, tokens included where there are any."""
        return self.rows - sum(sightings.count for sightings in self.problems.values())


def survey(
    dataset: Any,
    encoder: Encoder[Any] | PreTrainedTokenizerBase | None,
    options: PrepareOptions,
    *,
    name: str,
    sign: bool = False,
    progress: Progress | None = None,
) -> Survey:
    """Look at a data set.

    Args:
        dataset: raw rows, as the trainer takes them.
        encoder: or a tokenizer with EOS, to count tokens; None to look at texts only.
        options: the limits of the run.
        name: the set's name in messages.
        sign: keep a MinHash of each row, to compare sets.
        progress: told how far it is.

    Returns:
        The facts; what stopped the pass is among its ``failures``.
    """
    found = Survey(name)
    dataset, folder = undecoded(dataset), folder_of(dataset)
    encoder = None if encoder is None else encoder_for(encoder)
    if isinstance(dataset, IterableDataset):
        head = list(islice(dataset.with_format(None), STREAMED + 1))
        found.whole = len(head) <= STREAMED
        dataset = [read_alone(row) for row in head[:STREAMED]]
    elif not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
        dataset = list(dataset)
    try:
        table = raw_table(dataset, name)
    except CounterpointError as error:
        found.failures.append(error)
        if error.code == "CP202":  # a row that no table can hold: the others can be looked at
            found.languages = looking_at(len(dataset))
            with _told(progress, name, len(dataset)) as tell:
                _read(dataset, found, encoder, sign, tell, folder)
        return found
    found.languages = looking_at(len(table))
    with _told(progress, name, len(table)) as tell:
        _read(raw_rows(table), found, encoder, sign, tell, folder)
    if encoder is not None and found.usable:
        try:
            found.tokens = _count_tokens(in_same_folder(table, folder), encoder, options, found)
        except CounterpointError as error:
            found.failures.append(error)
    return found


@contextmanager
def _told(progress: Progress | None, name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Tells how far a pass is: to people, and to who asked."""
    with phase(f"examining the rows of {name}", total, "rows") as now:

        def tell(done: int) -> None:
            now.advance(done - now.done)
            if progress is not None:
                progress(name, done, total)

        yield tell


def _read(
    rows: Iterable[Any],
    found: Survey,
    encoder: Encoder[Any] | None,
    sign: bool,
    tell: Callable[[int], None],
    folder: str | None,
) -> None:
    tokenizer = None if encoder is None else encoder.tokenizer
    marks = pattern_of(marks_of(tokenizer)) if tokenizer is not None else None
    eos = str(tokenizer.eos_token) if tokenizer is not None and tokenizer.eos_token else None
    digest = hashlib.sha256()
    keys: list[tuple[int, Keys]] = []
    further: set[int] = set()
    for number, raw in enumerate(rows):
        found.rows += 1
        if number % AT_ONCE == 0:
            tell(number)
        row = _pair(raw, number, found, encoder, folder)
        if row is None:
            digest.update(repr(raw).encode("utf-8", "backslashreplace"))
            continue
        if row.listed is not None:
            found.listed_pairs += 1
            found.listed_rows += row.listed.place == 0
            if row.listed.place:
                further.add(number)
        if row.margin:
            found.margins.add(number, f"row {number}, field margin: is {row.margin:g}")
        texts = as_text(row.prompt), as_text(row.chosen), as_text(row.rejected)
        digest.update(_content(row))
        # the same question about another picture is another prompt
        asked_of = "\n".join([texts[0], *(picture.digest for picture in row.pictures)])
        keys.append((number, (hash(asked_of), hash(texts[1]), hash(texts[2]))))
        found.characters.append((len(texts[1]), len(texts[2])))
        asked = row.target_lang if encoder is None else encoder.target_language(row)
        found.languages.look(number, asked, texts[1:])
        for name in signs(row, texts, marks, eos):
            found.seen[name].add(number)
        if sign:
            found.signatures.append((number, signature(f"{asked_of}\n{texts[1]}")))
        if len(found.samples) < SAMPLES:
            found.samples.append(row)
    tell(found.rows)
    found.digest = digest.hexdigest()[:16]
    found.consistency = consistency(keys)
    # that rows of one list share their prompt is what a list says
    again = found.consistency.prompts
    found.consistency.prompts = [number for number in again if number not in further]


def _pair(
    raw: Any, number: int, found: Survey, encoder: Encoder[Any] | None, folder: str | None
) -> PreferenceRow | None:
    if not isinstance(raw, Mapping):
        text = f"row {number} is of type {type(raw).__name__}; expected a dict."
        found.problems["CP202"].add(number, text)
        return None
    try:
        if encoder is None:
            row = formats.to_preference_row(raw, number)
        else:
            rules = rules_for(encoder.pictures, folder)
            row = formats.to_preference_row(encoder.named(raw, number), number, rules)
        f"{as_text(row.prompt)}{as_text(row.chosen)}{as_text(row.rejected)}".encode()
    except DataError as error:
        found.problems[error.code].add(number, error.message)
    except UnicodeEncodeError:
        found.problems["CP202"].add(number, f"row {number} holds half of a character.")
    except Exception as error:  # a bug of ours; the other rows are looked at all the same
        found.problems["CP202"].add(number, f"row {number} cannot be read.")
        found.bugs.add(number, f"{type(error).__name__}: {error}")
    else:
        return row
    return None


def _content(row: PreferenceRow) -> bytes:
    parts = [row.prompt, row.chosen, row.rejected, row.weight, row.margin]
    parts += [picture.digest for picture in row.pictures]
    return json.dumps(parts, default=str).encode()


# Tokens


def _count_tokens(
    table: Dataset, encoder: Encoder[Any], options: PrepareOptions, found: Survey
) -> TokenFacts:
    columns = encode_every_row(table, encoder, options, name=found.name).data.table
    # the trainer's own verdict on each row, tokens included, takes the place of that on texts
    found.problems.clear()
    refused = columns.filter(pc.not_equal(columns.column("problem"), ""))
    for number, problem in zip(
        refused["row"].to_pylist(), refused["problem"].to_pylist(), strict=True
    ):
        found.problems[problem[:5]].add(number, problem[6:])
    usable = columns.filter(pc.equal(columns.column("problem"), ""))
    numbers = usable.column("row").to_numpy()
    parts = (*PARTS, GOLD) if options.gold else PARTS
    cuts = {part: usable.column(f"cut_{part}").to_numpy() for part in parts}
    lengths = {part: _lengths(usable, f"{part}_ids") + cuts[part] for part in parts}
    return TokenFacts(
        prompt=lengths["prompt"],
        chosen=lengths["chosen"],
        rejected=lengths["rejected"],
        gold=lengths.get(GOLD),
        cut=_where(sum(cuts.values()) > 0, numbers),
        little=_where(little_is_left(lengths["prompt"] - cuts["prompt"], cuts["prompt"]), numbers),
        same=_where(usable.column("same").to_numpy(), numbers),
        moved=_where(usable.column("boundary").to_numpy() > 0, numbers),
        given=sum(given_tokens(usable, part) for part in COMPLETIONS),
        lost=_lost(usable, table, encoder),
        highest=_highest(usable, numbers),
        pairs=_shortest(usable, sum(lengths.values()), encoder, table),
        most=_limited(lengths, apart=bool(encoder.start_tokens)),
        numbers=numbers,
        positions=encoder.positions,
        **_seen(usable, encoder),
    )


def _seen(usable: pa.Table, encoder: Encoder[Any]) -> dict[str, Any]:
    """What rows show, and what becomes of it."""
    if not isinstance(encoder, VisionEncoder) or not len(usable):
        return {}
    try:
        shown = Shown.of(Dataset(usable), encoder)
    except DataError:  # a picture that the processor refuses is found by its row
        return {}
    patch = encoder.reader.pixels_of_patch
    scaled = None if shown is None or patch is None else scaled_far(usable, shown, patch)
    return {"shown": shown, "scaled": scaled}


def _limited(lengths: dict[str, Lengths], *, apart: bool) -> Lengths:
    """Of prompt and longer completion together, or of the longest where each has its own limit."""
    longest: Lengths = np.max([of for part, of in lengths.items() if part != "prompt"], 0)
    return np.maximum(lengths["prompt"], longest) if apart else lengths["prompt"] + longest


def _lost(usable: pa.Table, raw: Dataset, encoder: Encoder[Any]) -> dict[str, Lost]:
    lossy = usable.filter(pc.not_equal(usable.column("lost"), ""))
    found: dict[str, Lost] = {}
    for number, text in zip(lossy["row"].to_pylist(), lossy["lost"].to_pylist(), strict=True):
        of_row: dict[str, list[LostText]] = {}
        for loss in from_column(text):
            of_row.setdefault(loss.code, []).append(loss)
        for code, losses in of_row.items():
            if code not in found:
                named = encoder.named(raw.with_format(None)[number], number)
                rules = rules_for(encoder.pictures, folder_of(raw))
                row = formats.to_preference_row(named, number, rules)
                found[code] = Lost(switch=switch_for(row, losses, encoder.tokenizer))
            found[code].seen.add(number, f"row {number}: {losses[0].shown!r}")
            found[code].kinds.update(loss.in_words for loss in losses)
    return found


def _lengths(table: pa.Table, column: str) -> Lengths:
    return np.asarray(pc.list_value_length(table.column(column)).to_numpy(), dtype=np.int64)


def _where(holds: npt.NDArray[np.bool_], numbers: Lengths) -> Sightings:
    rows = numbers[holds]
    return Sightings(len(rows), [int(row) for row in rows[:MOST_ROWS]])


def _highest(table: pa.Table, numbers: Lengths) -> dict[str, tuple[int, int]]:
    found = dict.fromkeys((*PARTS, GOLD), (-1, -1))
    for part in found:
        column = table.column(f"{part}_ids").combine_chunks()
        ids = column.flatten().to_numpy()
        if len(ids):
            place = int(pc.list_parent_indices(column)[int(ids.argmax())].as_py())
            found[part] = int(ids.max()), int(numbers[place])
    return found


def _shortest(
    table: pa.Table, lengths: Lengths, encoder: Encoder[Any], raw: Dataset
) -> list[TokenPair]:
    """Of the first rows a few short ones: cheap to run, and not chosen for being odd."""
    first = np.argsort(lengths[:AT_ONCE], kind="stable")
    middle = sorted(int(place) for place in first[len(first) // 4 :][:SAMPLES])
    rows = table.take(pa.array(middle, pa.int64())).to_pylist()  # of none, the type is not seen
    raw = undecoded(raw).with_format(None)
    both = (with_raw_row(row, raw[row["row"]]) if row["pictures"] else row for row in rows)
    return [to_pair(row, encoder.start_tokens) for row in both]
