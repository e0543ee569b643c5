"""A run's file as YAML: each option with why it is so, and what is said at the end.

Written by hand rather than by a YAML library, which keeps no comments. Whatever a value or a
remark holds, it cannot become another line of the file.

Not here: which options a file has (``preset_file``, ``translation``), and reading one
(``options.yaml_file``).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from counterpoint.objectives import OBJECTIVE_OPTIONS

WIDEST = 96
"""Columns of a line, but for values that are wider themselves."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "What to train on what": (
        "model",
        "revision",
        "tokenizer",
        "resize_vocab",
        "chat_template",
        "dtype",
        "attn_implementation",
        "dataset",
        "dataset_split",
        "datasets",
        "max_rows",
        "streaming",
        "eval_dataset",
        "eval_dataset_split",
        "eval_share",
    ),
    "Adapter": (
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "lora_target_modules",
        "lora_target_parameters",
        "lora_modules_to_save",
        "freeze",
        "use_rslora",
        "use_dora",
        "create_new_adapter",
    ),
    "Objective": (*OBJECTIVE_OPTIONS, "constraints"),
    "Pairs and steps": (
        "max_length",
        "max_completion_length",
        "truncation",
        "train_turns",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "max_steps",
    ),
    "Optimizer": (
        "learning_rate",
        "lr_scheduler_type",
        "warmup_steps",
        "optim",
        "weight_decay",
        "max_grad_norm",
    ),
}
"""Options in the order of a file; those in no group come last, in the order they were given."""

_REST = "The rest"
_PLAIN = re.compile(r"(\.{0,2}/)?[A-Za-z_][\w./+-]*", re.ASCII)
_WORDS = ("null", "none", "true", "false", "yes", "no", "on", "off", "y", "n")


@dataclass(frozen=True, slots=True)
class Line:
    """One option of a run's file.

    Args:
        name: of the option.
        value: None, a truth value, a number, a text, or lists and mappings of these.
        why: why it has this value; "" where that needs no word.
    """

    name: str
    value: Any
    why: str = ""


def written(head: Iterable[str], lines: Iterable[Line], tail: Iterable[str] = ()) -> str:
    """A run's file.

    Args:
        head: paragraphs that open it, as comments.
        lines: its options, each once.
        tail: paragraphs that close it, as comments.
    """
    parts = [*_comments(head)]
    given = {line.name: line for line in lines}
    for title, names in {**GROUPS, _REST: tuple(given)}.items():
        here = [given.pop(name) for name in names if name in given]
        if here:
            parts += ["", f"# {title}", *(text for line in here for text in _drawn(line))]
    closing = [*_comments(tail)]
    return "\n".join([*parts, *([""] if closing else []), *closing, ""])


def _comments(paragraphs: Iterable[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        indent = "  " if paragraph.startswith("- ") else ""
        yield from textwrap.wrap(
            printable(paragraph),
            WIDEST,
            initial_indent="# ",
            subsequent_indent=f"# {indent}",
            break_long_words=False,
            break_on_hyphens=False,
        )


def _drawn(line: Line) -> list[str]:
    text = f"{line.name}: {as_yaml(line.value)}"
    why = printable(line.why)
    if not why:
        return [text]
    if len(text) + len(why) + 4 <= WIDEST:
        return [f"{text}  # {why}"]
    return [*_comments([why]), text]


def printable(text: str) -> str:
    """A text on one line, whatever it holds."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def as_yaml(value: Any) -> str:
    """A value on one line, as both YAML 1.1 and 1.2 read it back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{as_yaml(str(k))}: {as_yaml(v)}' for k, v in value.items())}}}"
    return _text(str(value))


def _number(value: float) -> str:
    mantissa, e, exponent = repr(value).partition("e")
    if not e:
        return mantissa
    # without a point YAML 1.1 takes 1e-06 for text
    point = "" if "." in mantissa else ".0"
    return f"{mantissa}{point}e{int(exponent):+d}"


def _text(value: str) -> str:
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return f'"{"".join(map(_escaped, value))}"'


def _escaped(character: str) -> str:
    if character in ('"', "\\"):
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08X}"
