"""What each kind of scorer can be told beside its argument, in a YAML file of scorers.

Not here: the scorers (``of_texts`` and the others), weights and requirements (``asked``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from typing import Any

from counterpoint.endpoint import KEY_ENV, Endpoint
from counterpoint.errors import ConfigError
from counterpoint.evaluation.references import BLEU_TOKENIZERS
from counterpoint.options.declared import Option, declared, option
from counterpoint.options.limits import refuse_below, refuse_temperature

HOW_ALONE = ("api_key_env", "timeout", "retries", "concurrency")
"""Options that change when an answer comes and not what it says; no scoring is known by them."""


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
class AskedOptions:
    """Of ``judge`` and ``grade``: the model that is asked, and how."""

    endpoint: str | None = option(None, "Required. Base URL, as http://127.0.0.1:8000/v1.")
    model: str | None = option(None, "Required. Its name there.")
    api_key_env: str = option(KEY_ENV, "Environment variable that holds the key.")
    timeout: float = option(300.0, "Seconds of one try, > 0.")
    retries: int = option(5, "Further tries of a question, >= 0.")
    concurrency: int = option(16, "Questions open at once, >= 1.")
    temperature: float = option(0.0, "Temperature of its answers, >= 0.")
    max_tokens: int = option(1024, "Most tokens of an answer, >= 1.")

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        refuse_below(self, max_tokens=1)
        refuse_temperature(self.temperature)
        self._asks(self.endpoint or "http://127.0.0.1", "")

    def served(self) -> Endpoint:
        """What is asked.

        Raises:
            ConfigError: CP107 without its address or its name.
        """
        for name in ("endpoint", "model"):
            if not getattr(self, name):
                raise ConfigError(
                    "CP107",
                    f"{name} of the judge is missing. Write --judge_{name}, or in a file of "
                    f"scorers {name} beside the rubric.",
                )
        return self._asks(str(self.endpoint), str(self.model))

    def _asks(self, address: str, model: str) -> Endpoint:
        limits = (self.timeout, self.retries, self.concurrency)
        return Endpoint(address, model, self.api_key_env, *limits)


@dataclass(frozen=True, slots=True)
class JudgeOptions(AskedOptions):
    """Of ``judge``."""

    against: str = option(
        "candidates",
        "What a candidate is compared with: the others of its prompt, or its reference.",
        ("candidates", "reference"),
    )
    opponents: int | None = option(
        None, "Most others that each is compared with, even, >= 2; null: all."
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        AskedOptions.__post_init__(self)
        if self.opponents is not None and (self.opponents < 2 or self.opponents % 2):
            raise ConfigError(
                "CP103", f"opponents={self.opponents} should be an even number, at least 2."
            )


@dataclass(frozen=True, slots=True)
class GradeOptions(AskedOptions):
    """Of ``grade``."""

    scale: list[float] = option([1.0, 10.0], "Least and most number of a grade.")

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        AskedOptions.__post_init__(self)
        if len(self.scale) != 2 or self.scale[0] >= self.scale[1]:
            given = " ".join(f"{one:g}" for one in self.scale)
            raise ConfigError(
                "CP103", f"scale={given} should be two numbers, the least first, as in 1 10."
            )


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


JUDGE_FLAG = "judge_"
"""Before the name of an option of ``judge`` and ``grade`` where it is a flag of a command."""


def _flags(**kinds: type[Any]) -> type[Any]:
    """Options of kinds of scorers as flags; one that is not given leaves it to the file."""
    found: dict[str, Option] = {}
    of: dict[str, list[str]] = {}
    for kind, options in kinds.items():
        for name, one in declared(options).items():
            found[name] = one
            of.setdefault(name, []).append(kind)
    flags = [
        (f"{JUDGE_FLAG}{name}", one.hint | None, _flag(one, of[name]))
        for name, one in found.items()
    ]
    return make_dataclass("JudgeFlags", flags, frozen=True)


def _flag(one: Option, kinds: Sequence[str]) -> Any:
    told, default = one.help.removeprefix("Required. "), one.default
    if isinstance(default, list):
        default = " ".join(f"{part:g}" for part in default)
    else_ = "" if default is None else f" Not given: {default}, or what a file of scorers says."
    return option(None, f"{' and '.join(kinds)}: {told}{else_}", one.choices)


JUDGE_FLAGS = _flags(judge=JudgeOptions, grade=GradeOptions)
"""Flags of the commands that take scorers: with them a judge needs no file."""
