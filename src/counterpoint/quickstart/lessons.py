"""What the quickstart teaches: numbers to a translator, or tags to a model that sees.

A lesson knows its model, its pairs, what is held out, and how answers are judged and shown; the
five steps are the same for all (``run``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from counterpoint.errors import ConfigError
from counterpoint.language import phrase
from counterpoint.quickstart.read import BASE_THAT_SEES, load_reader, read_tags
from counterpoint.quickstart.table import (
    Outcome,
    examples,
    judge_readings,
    judge_translations,
    outcome_table,
    reading_examples,
    reading_table,
)
from counterpoint.quickstart.tags import (
    Tag,
    TagPair,
    check_drawing,
    drawn,
    held_out_tag_pairs,
    held_out_tags,
    tag_pairs,
)
from counterpoint.quickstart.task import (
    Pair,
    german,
    held_out_numbers,
    held_out_pairs,
    preference_pairs,
)
from counterpoint.quickstart.translate import BASES, load_base, translate

ENCODER_DECODER: dict[str, Any] = {
    "max_length": 32,
    "source_lang": "en_XX",
    "target_lang": "de_DE",
}
"""Options that an encoder-decoder's run has beside a decoder's, or in their place."""
READER: dict[str, Any] = {"beta": 1.0, "cpo_alpha": 1.0, "learning_rate": 1e-3}
"""Options that a reader's run has in the place of a translator's; chosen on seed 0."""
PICTURES = "pictures"
"""Folder of a run's pictures, in the quickstart's own."""

INTRODUCTION = """\
Counterpoint's quickstart: English number words into German, learnt from pairs
of translations of which even the better one is seldom right.
"""
INTRODUCTION_TO_TAGS = """\
Counterpoint's quickstart: reading codes on small pictures, learnt from pairs
of transcriptions of which even the better one is seldom right.
"""


class Lesson(ABC):
    """What is learnt, and by which model.

    Args:
        base: folder of the shipped model.
        introduction: said first, in English.
        freeze: parts of the model that stay as they are, as the option ``freeze`` names them.
    """

    base: Path
    introduction: str
    freeze: tuple[str, ...] = ()

    @abstractmethod
    def load(self) -> tuple[PreTrainedModel, Any]:
        """The shipped model in fp32, and its tokenizer or processor."""

    @abstractmethod
    def options(self, folder: Path) -> dict[str, Any]:
        """Options that its run has beside those of all, or in their place.

        Args:
            folder: the quickstart's.
        """

    @abstractmethod
    def pairs(self, count: int, seed: int) -> list[Any]:
        """So many pairs to train on, ``Pair`` or ``TagPair``."""

    @abstractmethod
    def rows(self, pairs: Sequence[Any], folder: Path) -> list[dict[str, Any]]:
        """The pairs as rows; what these name is written into the quickstart's folder."""

    @abstractmethod
    def held_out(self, count: int, seed: int) -> list[Any]:
        """So many numbers or tags that no pair is of."""

    @abstractmethod
    def held_out_rows(self, asked: Sequence[Any], seed: int, folder: Path) -> list[dict[str, Any]]:
        """Pairs for what is held out as rows, each with the right text as its ``reference``."""

    @abstractmethod
    def answers(self, model: PreTrainedModel, reader: Any, asked: Sequence[Any]) -> list[str]:
        """What a model makes of each, greedily."""

    @abstractmethod
    def judge(self, asked: Sequence[Any], texts: Sequence[str]) -> Outcome:
        """How many of the texts are right."""

    @abstractmethod
    def of_chosen(self, pairs: Sequence[Any]) -> Outcome:
        """How many of the chosen references are right."""

    @abstractmethod
    def shown(
        self, chosen: Outcome, rows: Mapping[str, Outcome], count: int
    ) -> tuple[str, list[str]]:
        """The title of the table, and its lines.

        Args:
            chosen: of the references.
            rows: what was tried -> how well it does.
            count: of what is held out.
        """

    @abstractmethod
    def examples(self, asked: Sequence[Any], answers: Mapping[str, Sequence[str]]) -> list[str]:
        """A few answers of every model, with verdicts."""


class Translating(Lesson):
    """English number words into German.

    Args:
        encoder_decoder: whether the model is one, instead of a decoder.
    """

    introduction = INTRODUCTION

    def __init__(self, encoder_decoder: bool = False) -> None:
        self.encoder_decoder = encoder_decoder
        self.base = BASES[encoder_decoder]

    def load(self) -> tuple[PreTrainedModel, Any]:
        """As ``Lesson``."""
        return load_base(self.encoder_decoder)

    def options(self, folder: Path) -> dict[str, Any]:
        """As ``Lesson``."""
        return dict(ENCODER_DECODER) if self.encoder_decoder else {}

    def pairs(self, count: int, seed: int) -> list[Any]:
        """As ``Lesson``."""
        return preference_pairs(count, seed)

    def rows(self, pairs: Sequence[Pair], folder: Path) -> list[dict[str, Any]]:
        """As ``Lesson``; nothing is written."""
        return [dict(pair.translation if self.encoder_decoder else pair.row) for pair in pairs]

    def held_out(self, count: int, seed: int) -> list[Any]:
        """As ``Lesson``."""
        return held_out_numbers(count, seed)

    def held_out_rows(self, asked: Sequence[int], seed: int, folder: Path) -> list[dict[str, Any]]:
        """As ``Lesson``."""
        pairs = held_out_pairs(asked, seed)
        return [
            {**row, "reference": german(pair.chosen.number)}
            for pair, row in zip(pairs, self.rows(pairs, folder), strict=True)
        ]

    def answers(self, model: PreTrainedModel, reader: Any, asked: Sequence[int]) -> list[str]:
        """As ``Lesson``."""
        return translate(model, reader, list(asked))

    def judge(self, asked: Sequence[int], texts: Sequence[str]) -> Outcome:
        """As ``Lesson``."""
        return judge_translations(asked, texts)

    def of_chosen(self, pairs: Sequence[Pair]) -> Outcome:
        """As ``Lesson``."""
        texts = [pair.chosen for pair in pairs]
        return judge_translations([one.number for one in texts], [one.text for one in texts])

    def shown(
        self, chosen: Outcome, rows: Mapping[str, Outcome], count: int
    ) -> tuple[str, list[str]]:
        """As ``Lesson``."""
        note = phrase("(right number: exact, or wrong only in ways that the references are)")
        return (
            phrase("{count} numbers that no training has seen, translated", count=count),
            [*outcome_table(rows, chosen.exact), note],
        )

    def examples(self, asked: Sequence[int], answers: Mapping[str, Sequence[str]]) -> list[str]:
        """As ``Lesson``."""
        return examples(asked, answers)


class Reading(Lesson):
    """Codes on tags.

    The tower stays as it is: what is to be learnt is what to make of what it sees.

    Args:
        blank: whether nothing is drawn on the tags, as a control.
    """

    introduction = INTRODUCTION_TO_TAGS
    base = BASE_THAT_SEES
    freeze = ("vision",)

    def __init__(self, blank: bool = False) -> None:
        self.blank = blank

    def load(self) -> tuple[PreTrainedModel, Any]:
        """As ``Lesson``."""
        return load_reader()

    def options(self, folder: Path) -> dict[str, Any]:
        """As ``Lesson``."""
        return {**READER, "image_folder": str(folder)}

    def pairs(self, count: int, seed: int) -> list[Any]:
        """As ``Lesson``."""
        return tag_pairs(count, seed, blank=self.blank)

    def rows(self, pairs: Sequence[TagPair], folder: Path) -> list[dict[str, Any]]:
        """As ``Lesson``; the pictures are written."""
        return self._drawn_rows(pairs, folder, "")

    def held_out(self, count: int, seed: int) -> list[Any]:
        """As ``Lesson``."""
        return held_out_tags(count, seed, blank=self.blank)

    def held_out_rows(self, asked: Sequence[Tag], seed: int, folder: Path) -> list[dict[str, Any]]:
        """As ``Lesson``; their pictures are written."""
        pairs = held_out_tag_pairs(asked, seed)
        return [
            {**row, "reference": pair.chosen.tag.code}
            for pair, row in zip(pairs, self._drawn_rows(pairs, folder, "held-out-"), strict=True)
        ]

    def _drawn_rows(
        self, pairs: Sequence[TagPair], folder: Path, prefix: str
    ) -> list[dict[str, Any]]:
        (folder / PICTURES).mkdir(parents=True, exist_ok=True)
        rows = []
        for number, pair in enumerate(pairs):
            name = f"{PICTURES}/{prefix}{number:05d}.png"
            drawn(pair.chosen.tag).save(folder / name)
            rows.append(pair.row(name))
        return rows

    def answers(self, model: PreTrainedModel, reader: Any, asked: Sequence[Tag]) -> list[str]:
        """As ``Lesson``."""
        return read_tags(model, reader, asked)

    def judge(self, asked: Sequence[Tag], texts: Sequence[str]) -> Outcome:
        """As ``Lesson``."""
        return judge_readings([tag.code for tag in asked], texts)

    def of_chosen(self, pairs: Sequence[TagPair]) -> Outcome:
        """As ``Lesson``."""
        texts = [pair.chosen for pair in pairs]
        return judge_readings([one.tag.code for one in texts], [one.text for one in texts])

    def shown(
        self, chosen: Outcome, rows: Mapping[str, Outcome], count: int
    ) -> tuple[str, list[str]]:
        """As ``Lesson``."""
        return (
            phrase("{count} codes that no training has seen, read", count=count),
            reading_table({phrase("the chosen references themselves"): chosen, **rows}),
        )

    def examples(self, asked: Sequence[Tag], answers: Mapping[str, Sequence[str]]) -> list[str]:
        """As ``Lesson``."""
        return reading_examples([tag.code for tag in asked], answers)


def lesson_of(*, encoder_decoder: bool, vision: bool) -> Lesson:
    """The lesson that is asked for.

    Args:
        encoder_decoder: whether the translator is one.
        vision: whether tags are read instead.

    Raises:
        ConfigError: CP104 for both.
        SetupError: CP502 for ``vision`` where nothing can draw.
    """
    if encoder_decoder and vision:
        raise ConfigError(
            "CP104", "encoder_decoder and vision name two models. Give one of them, or neither."
        )
    if not vision:
        return Translating(encoder_decoder)
    check_drawing()
    return Reading()
