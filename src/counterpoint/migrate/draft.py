"""The sheet on which another tool's settings become a run's: what is taken, what is left and why.

Every setting that comes in goes out as a line, or is left with a reason. Only one that says
nothing (null, empty, or that something is off which does not exist here) is passed over.

Not here: what the settings of a tool mean (``of_trl``, ``of_llama_factory``, ``of_axolotl``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from counterpoint.config import RANGES, REFUSED, is_refused
from counterpoint.errors import ConfigError
from counterpoint.masking import is_secret
from counterpoint.migrate.run_file import Line, printable
from counterpoint.old_options import old_meaning, renamed
from counterpoint.options.coerce import FALSES, TRUES, coerce
from counterpoint.options.given import Given, Scalar, Setting, as_python
from counterpoint.options.settings import check_items
from counterpoint.options.table import options

NO_OPTION = "there is no such option here"
_NO_SECRETS = "a secret has no place in a file; set HF_TOKEN where you run"
_WITHHELD = Scalar("(withheld)")
_ON_UNLESS_SAID = (
    *("enable_thinking", "shuffle_merged_datasets", "dataset_shuffle", "train_dataloader_shuffle"),
)
"""What the other tools do without being asked, so that off says something too."""
_NAMED_LIKE_SECRETS = (
    *("pad_token", "eos_token", "bos_token", "special_tokens"),
    *("forced_bos_token", "ignore_pad_token_for_loss"),
)


@dataclass(frozen=True, slots=True)
class Translation:
    """What another tool's file asks for, in options of ``counterpoint train``.

    Args:
        source: the file, as messages name it.
        tool: whose file it is, in words.
        lines: the options that it could be translated to.
        left: what could not be translated, each with the reason.
        notes: what to mind of that which could.
    """

    source: str
    tool: str
    lines: tuple[Line, ...]
    left: tuple[str, ...]
    notes: tuple[str, ...]

    def remarks(self) -> list[str]:
        """What is left and what to mind, as paragraphs; none where there is nothing to say."""
        said = []
        for title, items in (("Mind:", self.notes), ("Not translated:", self.left)):
            said += [title, *(f"- {printable(item)}" for item in items)] if items else []
        return said


class Draft:
    """Settings on their way; each is taken once.

    Args:
        settings: what the other tool's file gives; of a name given twice, the last counts.
    """

    def __init__(self, settings: Iterable[Setting]) -> None:
        self.rest = {setting.name: setting for setting in settings}
        self.lines: dict[str, Line] = {}
        self.left: list[str] = []
        self.notes: list[str] = []

    def peek(self, name: str) -> Any:
        """The value of a setting as YAML would read it, which stays; None where it is not given."""
        setting = self.rest.get(name)
        return None if setting is None else as_python(setting.given)

    def take(self, name: str) -> Setting | None:
        """A setting that says something, which then is dealt with; None where there is none."""
        setting = self.rest.pop(name, None)
        return None if setting is None or _says_nothing(setting) else setting

    def switch(self, name: str) -> bool:
        """Whether a setting that is taken is on; left where it is neither on nor off."""
        setting = self.take(name)
        word = "false" if setting is None else str(getattr(setting.given, "text", "")).lower()
        if setting is not None and word not in TRUES + FALSES:
            self.leave(setting, "it should be true or false")
        return word in TRUES

    def text(self, name: str) -> str | None:
        """The word of a setting that is taken; left, and None, where it is more than a word."""
        setting = self.take(name)
        if setting is None:
            return None
        if isinstance(setting.given, Scalar):
            return setting.given.text
        self.leave(setting, "it should be a word")
        return None

    def leave(self, setting: Setting, reason: str) -> None:
        """Say that a setting is not translated, and why."""
        self.left.append(f"{setting_without_secrets(setting)}: {reason}.")

    def put(self, option: str, value: Any, why: str = "") -> None:
        """Write an option that no single setting stands for."""
        self.lines[option] = Line(option, value, why)

    def add(self, option: str, setting: Setting, why: str = "") -> None:
        """Write a setting as an option, or leave it where it is no value of that option.

        Args:
            option: its name here.
            setting: with the other tool's name for it.
            why: a word on it.
        """
        if option in self.lines:
            self.leave(setting, f"something else has set {option} already")
            return
        if is_secret(option):
            self.leave(setting, _NO_SECRETS)
            return
        entry = options()[option]
        named = Setting(option, setting.given, setting.where)
        try:
            value = coerce(named, entry.hint, entry.choices)
            check_items(named, value)
        except ConfigError as error:
            self.left.append(error.message)
            return
        if isinstance(value, dict) and _masked(value) != value:
            # a text of JSON too, which shows only now what is in it
            self.leave(Setting(setting.name, as_given(_masked(value)), setting.where), _NO_SECRETS)
            return
        reason = _refusal(option, value)
        if reason is not None:
            self.leave(setting, reason)
        elif option.endswith("_steps") and isinstance(value, float) and value.is_integer():
            self.put(option, int(value), why)  # may be a share, but is a number of steps
        else:
            self.put(option, value, why)

    def pass_on(self, reasons: Mapping[str, str], names: Mapping[str, str]) -> None:
        """Deal with all settings that are still there.

        Args:
            reasons: of what the tool has and Counterpoint has not, why it is left.
            names: the option that a setting of the tool is called here, where it is not its own
                name or an old one (``old_options``).
        """
        for name in tuple(self.rest):
            setting = self.take(name)
            if setting is None:
                continue
            option = names.get(name) or renamed(name) or (name if name in options() else None)
            if name not in reasons and option is not None:
                self.add(option, setting)
            elif as_python(setting.given) is not False or name in _ON_UNLESS_SAID:
                known = reasons.get(name) or old_meaning(name)
                self.leave(setting, known or NO_OPTION)


def setting_without_secrets(setting: Setting) -> Setting:
    """The setting as it may be shown, what is secret in it withheld at any depth."""
    given = _masked({setting.name: setting.given})[setting.name]
    return Setting(setting.name, given, setting.where)


def _masked(given: Any) -> Any:
    if isinstance(given, list):
        return [_masked(item) for item in given]
    if not isinstance(given, dict):
        return given
    return {key: _WITHHELD if _is_withheld(key) else _masked(value) for key, value in given.items()}


def _is_withheld(key: str) -> bool:
    return is_secret(key) and key not in _NAMED_LIKE_SECRETS


def _says_nothing(setting: Setting) -> bool:
    return as_python(setting.given) in (None, "", [], {})


def _refusal(option: str, value: Any) -> str | None:
    """Why an option is not written with this value; None where it is."""
    if option in REFUSED and is_refused(option, value):
        return REFUSED[option][1]
    holds, wanted = RANGES.get(option, (lambda number: True, ""))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"it should be {wanted}" if is_number and not holds(value) else None


def as_given(value: Any) -> Given:
    """A plain Python value as a file would have given it.

    Args:
        value: None, a truth value, a number, a text, or lists and mappings of these.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, Scalar):
        return value
    if value is None or isinstance(value, bool):
        return Scalar({None: "null", True: "true", False: "false"}[value])
    if isinstance(value, int | float):
        return Scalar(repr(value))
    if isinstance(value, str):
        return Scalar(value, quoted=True)
    if isinstance(value, list | tuple):
        return [as_given(item) for item in value]
    if isinstance(value, dict):
        return {str(key): as_given(item) for key, item in value.items()}
    raise ValueError
