"""What of a run's options concerns its data, and which of them say how a row is read.

Whatever reads a row as a run does (the trainer, the doctor, ``tokens``, ``plan``, ``smoke``) makes
its ``PrepareOptions`` of the run's options here, and whatever takes over a run's reading
(``evaluate``) takes over ``OF_A_ROW``. A field stands in one of the tables, or a test fails.

1. A replay file holds tokens, so that replaying reads no row.

Not here: preparing (``prepare``). No import that takes time: the command reads this first.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING

from counterpoint.errors import ConfigError
from counterpoint.objectives import LOSSES
from counterpoint.picture import MOST_PIXELS
from counterpoint.preference_row import ASSISTANT_TURNS, INVALID_ROWS, TRAIN_TURNS

if TYPE_CHECKING:
    from counterpoint.config import CPOConfig

DEFAULT_LENGTH = 512
"""What TRL takes for a ``max_length`` of None, in tokens."""

OF_A_ROW: Mapping[str, str] = MappingProxyType(
    {
        name: name
        for name in (
            "max_length",
            "max_completion_length",
            "truncation",
            "train_turns",
            "invalid_rows",
            "source_lang",
            "target_lang",
            "image_folder",
            "allow_remote_images",
            "max_image_pixels",
            "is_encoder_decoder",
        )
    }
)
"""Field -> option of ``CPOConfig``: what becomes of a row, wherever it is read."""

OF_THE_LOSS: Mapping[str, str] = MappingProxyType({"gold": "gold"})
"""Field -> what the row of the run's loss says of it (``objectives.Loss``)."""

OF_THE_MACHINE: Mapping[str, str] = MappingProxyType({"num_proc": "dataset_num_proc"})
"""The same of what changes no row."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a pair may be, and what is cut.

    Args:
        max_length: most tokens of prompt + completion, at least 2.
        max_completion_length: most tokens of a completion, at least 1; None: no own limit.
        truncation: a policy of ``config.TRUNCATIONS``.
        train_turns: which turns of a completion carry loss, of ``preference_row.TRAIN_TURNS``.
        gold: whether rows have a third completion, which the loss reads.
    """

    max_length: int = 1024
    max_completion_length: int | None = None
    truncation: str = "completion_end"
    train_turns: str = ASSISTANT_TURNS
    gold: bool = False


UNLIMITED = Limits(max_length=sys.maxsize)
"""What shows a row before any cut: not even the model's positions count."""


@dataclass(frozen=True, slots=True)
class PrepareOptions(Limits):
    """What of the run's options concerns its data: the limits, and what is done beside cutting.

    Args:
        invalid_rows: "raise" stops at rows that are not preference pairs, "drop" counts them.
        num_proc: processes that share the work; None: this one.
        source_lang: code of the language of prompts whose row says none; None: the tokenizer's.
        target_lang: the same of completions.
        image_folder: in which pictures are looked up by their paths; None: that of the data.
        allow_remote_images: whether pictures are fetched from addresses.
        max_image_pixels: most pixels of one, at least 1.
        is_encoder_decoder: whether the run says so, as scripts for TRL do. Then what two
            completions begin with is the source of a row that has none.

    Raises:
        ConfigError: CP102 for a policy or a treatment that does not exist.
    """

    invalid_rows: str = "raise"
    num_proc: int | None = None
    source_lang: str | None = None
    target_lang: str | None = None
    image_folder: str | None = None
    allow_remote_images: bool = False
    max_image_pixels: int = MOST_PIXELS
    is_encoder_decoder: bool | None = None

    def __post_init__(self) -> None:
        """Refuse names that mean nothing, before any of the data is touched."""
        from counterpoint.config import TRUNCATIONS

        choices = {
            "truncation": TRUNCATIONS,
            "invalid_rows": INVALID_ROWS,
            "train_turns": TRAIN_TURNS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                text = f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}."
                raise ConfigError("CP102", text)

    @classmethod
    def of(cls, args: CPOConfig) -> PrepareOptions:
        """Those of a run."""
        named = {**OF_A_ROW, **OF_THE_MACHINE}
        values = {field: getattr(args, option) for field, option in named.items()}
        loss = LOSSES[args.loss_type]
        values |= {field: getattr(loss, name) for field, name in OF_THE_LOSS.items()}
        if values["max_length"] is None:
            values["max_length"] = DEFAULT_LENGTH
        return cls(**values)

    @property
    def limits(self) -> Limits:
        """The part that decides what becomes of a row, and so the cache's key."""
        return Limits(**{field.name: getattr(self, field.name) for field in fields(Limits)})
