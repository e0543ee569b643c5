"""The text of ``counterpoint train --help``: the option table, wrapped to the terminal.

Not here: what an option means; its help text lives with its field.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from counterpoint.config import REFUSED
from counterpoint.options.declared import Option, described
from counterpoint.options.table import GROUPS, OF_THE_COMMAND, TRANSFORMERS, options
from counterpoint.wrap import help_width, refold

_SENTENCE_END = re.compile(r"\.\s+(?=[A-Z`])")

INTRODUCTION = (
    "Trains a model on preference pairs. Options come from the YAML file, one 'option: value' a "
    "line, and from flags, which override it. A flag may be written --max_length 512, "
    "--max-length 512 or --max_length=512; a switch --bf16, --no_bf16 or --bf16 false; null "
    "stands for no value. --debug alone shows the stack trace of an error."
)

USAGE = "usage: counterpoint train [CONFIG.yaml] [--option value ...]"

EXAMPLES = """\
examples:
  counterpoint train --model Qwen/Qwen2.5-0.5B --dataset pairs.jsonl
  counterpoint train simpo.yaml --learning_rate 5e-7 --output_dir runs/second
  torchrun --nproc_per_node 2 -m counterpoint train simpo.yaml
"""


def train_help(width: int | None = None) -> str:
    """Every option with its meaning and default, by group.

    Args:
        width: columns to wrap at; None takes the terminal's, at most 110.
    """
    columns = help_width(width)
    parts = [refold(f"{USAGE}\n", columns), textwrap.fill(INTRODUCTION, columns), ""]
    parts.append(refold(EXAMPLES, columns))
    for group, meaning in GROUPS.items():
        parts += [textwrap.fill(f"{group}. {meaning}", columns), ""]
        parts += [_described(one, columns) for one in options().values() if one.group == group]
        parts.append("")
    return "\n".join(parts)


def _described(option: Option, columns: int) -> str:
    default = None if option.default is None else show_default(option)
    return described(option, summary(option), default, columns)


def summary(option: Option) -> str:
    """What an option means, or why it is refused; of transformers' own, the first sentence."""
    if option.name in REFUSED:
        passing, reason = REFUSED[option.name]
        return f"Refused unless {as_written(passing)}: {reason}."
    if option.group != TRANSFORMERS or option.name in OF_THE_COMMAND:
        return option.help
    first = _SENTENCE_END.split(option.help, maxsplit=1)[0]
    return f"{first.rstrip('.')}."


def show_default(option: Option) -> str:
    """An option's default as YAML would write it."""
    return as_written(option.default)


def as_written(value: Any) -> str:
    """A value as YAML would write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value in ([], "", {}) else str(value)
