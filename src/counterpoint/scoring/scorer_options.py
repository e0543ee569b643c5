"""What each kind of scorer can be told beside its argument, in a YAML file of scorers.

Not here: the scorers (``of_texts`` and the others), weights and requirements (``asked``).
"""

from __future__ import annotations

from dataclasses import dataclass

from counterpoint.errors import ConfigError
from counterpoint.evaluation.references import BLEU_TOKENIZERS
from counterpoint.options.declared import option


@dataclass(frozen=True, slots=True)
class NoOptions:
    """A kind that takes none."""


@dataclass(frozen=True, slots=True)
class BleuOptions:
    """Of ``bleu``."""

    tokenizer: str = option(
        "13a", "How words are found: 13a for most languages, zh for Chinese.", BLEU_TOKENIZERS
    )


@dataclass(frozen=True, slots=True)
class RewardOptions:
    """Of ``reward``."""

    batch: int = option(16, "Candidates at once, >= 1.")
    label: str | None = option(
        None, "Of a model with several labels, the one whose probability is the score."
    )
    template: bool | None = option(
        None,
        "Render prompt and text by the chat template, a prompt that is text as a user's turn; "
        "null: where the tokenizer has a template.",
    )
    revision: str | None = option(None, "Of the model on the hub.")
    dtype: str = option(
        "auto",
        "Precision of its weights; auto: that of their files.",
        ("auto", "float32", "bfloat16", "float16"),
    )
    device: str | None = option(None, "Such as cpu or cuda:1; null: the accelerator, if any.")
    trust_remote_code: bool = option(False, "Run code that comes with the model.")

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        at_least_one("batch", self.batch)


@dataclass(frozen=True, slots=True)
class CommandOptions:
    """Of ``command``."""

    timeout: float | None = option(
        None, "Seconds, > 0, after which a process that answers nothing is stopped; null: none."
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.timeout is not None and self.timeout <= 0:
            raise ConfigError("CP103", f"timeout={self.timeout} should be above 0 seconds.")


def at_least_one(name: str, value: int) -> None:
    """Refuse a number below 1.

    Raises:
        ConfigError: CP103.
    """
    if value < 1:
        raise ConfigError("CP103", f"{name}={value} should be a whole number, at least 1.")
