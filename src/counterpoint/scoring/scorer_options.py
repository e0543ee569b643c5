"""What each kind of scorer can be told beside its argument, in a YAML file of scorers.

Not here: the scorers (``of_texts`` and the others), weights and requirements (``asked``).
"""

from __future__ import annotations

from dataclasses import dataclass

from counterpoint.errors import ConfigError
from counterpoint.evaluation.references import BLEU_TOKENIZERS
from counterpoint.options.declared import option
from counterpoint.options.limits import refuse_below, refuse_temperature


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
        refuse_below(self, batch=1)


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """Of ``judge``."""

    endpoint: str | None = option(None, "Required. Base URL, as http://127.0.0.1:8000/v1.")
    model: str | None = option(None, "Required. Its name there.")
    against: str = option(
        "candidates",
        "What a candidate is compared with: the others of its prompt, or its reference.",
        ("candidates", "reference"),
    )
    opponents: int | None = option(
        None, "Most others that each is compared with, even, >= 2; null: all."
    )
    api_key_env: str = option("OPENAI_API_KEY", "Environment variable that holds the key.")
    timeout: float = option(300.0, "Seconds of one try, > 0.")
    retries: int = option(5, "Further tries of a question, >= 0.")
    concurrency: int = option(16, "Questions open at once, >= 1.")
    temperature: float = option(0.0, "Of the judge, >= 0.")
    max_tokens: int = option(1024, "Most tokens of a verdict, >= 1.")

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        refuse_below(self, max_tokens=1)
        if self.opponents is not None and (self.opponents < 2 or self.opponents % 2):
            raise ConfigError(
                "CP103", f"opponents={self.opponents} should be an even number, at least 2."
            )
        refuse_temperature(self.temperature)


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
