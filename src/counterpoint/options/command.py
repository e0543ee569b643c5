"""A command as it is declared: its name, how it is called, and a dataclass of its own flags.

Flags, help and completion are read off the declaration; nothing slow is imported for them.

Not here: the options of ``train`` (``table``, ``settings``), which some commands take too.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

from counterpoint.errors import ConfigError
from counterpoint.options.arguments import take
from counterpoint.options.coerce import coerce
from counterpoint.options.declared import Option, declared, flags_help
from counterpoint.wrap import help_width, refold

Own = TypeVar("Own")


@dataclass(frozen=True)
class Command(Generic[Own]):
    """One command.

    Args:
        name: after ``counterpoint``.
        usage: the text of its help before the flags.
        own: dataclass of its flags; each field's help is its meaning.
        beside: another dataclass of flags, if there is one.
        takes_words: whether words that are no flags mean something.
        of_train: whether options of ``train`` may be among them.
        closing: the text of its help after the flags.
    """

    name: str
    usage: str
    own: type[Own]
    beside: type[Any] | None = None
    takes_words: bool = True
    of_train: bool = False
    closing: str = ""

    def flags(self) -> dict[str, Option]:
        """Its own flags, by name."""
        return declared(self.own) | (declared(self.beside) if self.beside else {})

    def help(self, width: int | None = None) -> str:
        """The text of its ``--help``.

        Args:
            width: columns to wrap at; None takes the terminal's, at most 110.
        """
        usage, flags = refold(self.usage, help_width(width)), flags_help(self.flags(), width)
        closing = f"\n\n{textwrap.fill(self.closing, help_width(width))}" if self.closing else ""
        return f"{usage}{flags}{closing}\n" if flags else usage

    def take(self, words: list[str]) -> tuple[dict[str, Any], list[str]]:
        """Read its own flags among the words of a command line.

        Args:
            words: what follows the command.

        Returns:
            Values by name, of flags that were given; and all other words as they came.

        Raises:
            ConfigError: CP102 or CP103 for a value that the flag does not take; CP101 for a flag
                or a word that the command does not have, where those of ``train`` mean nothing.
        """
        flags, others = self.flags(), list[str]()
        reads = {name: (one.hint, one.choices) for name, one in flags.items()}
        taken = take(words, reads.get, others.append)
        values = {name: coerce(one, *reads[name]) for name, one in taken.items()}
        if not self.of_train:
            self._refuse(others, flags)
        return values, others

    def read(self, words: list[str]) -> tuple[Own, list[str]]:
        """The same as an object of its own dataclass.

        Raises:
            ConfigError: as ``take``, and what the dataclass refuses.
        """
        values, others = self.take(words)
        return made(self.own, values), others

    def _refuse(self, words: list[str], flags: dict[str, Option]) -> None:
        for word in words:
            written = word.partition("=")[0]
            if word.startswith("-"):
                near = get_close_matches(written.lstrip("-").replace("-", "_"), flags, n=1)
                hint = f"did you mean --{near[0]}?" if near else f"see {self._asked}."
                raise ConfigError("CP101", f"{written} is no option; {hint}")
        if words and not self.takes_words:
            raise ConfigError("CP101", f"{words[0]!r} belongs to no flag; see {self._asked}.")

    @property
    def _asked(self) -> str:
        return f"counterpoint {self.name} --help"


def made(kind: type[Own], values: dict[str, Any]) -> Own:
    """A dataclass of those values that it has fields for.

    Args:
        kind: the dataclass.
        values: by the names of flags.
    """
    own = {field.name: field.name.removesuffix("_") for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{field: values[name] for field, name in own.items() if name in values})
