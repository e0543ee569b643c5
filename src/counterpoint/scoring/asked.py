"""Which scorers are asked for, with which weights and requirements: words and YAML.

    --with chrf quality=reward:org/model lang=language:de mine:politeness
    --weight chrf=0.01 quality=1 --require lang quality>=-2

A word is ``[NAME=]KIND[:ARGUMENT]``; without a name it has its kind's, or its function's. In a file
each name has its kind as a key, and beside it the options of the kind, ``weight`` and ``require``.

Not here: the kinds (``kinds``), what weights and requirements make of scores (``total``).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from counterpoint.data.pair_rules import PENALTY
from counterpoint.errors import ConfigError
from counterpoint.options.coerce import coerce
from counterpoint.options.command import made
from counterpoint.options.declared import declared
from counterpoint.options.given import Given, Scalar, Setting
from counterpoint.options.yaml_file import read_config
from counterpoint.scoring.kinds import FUNCTION, KINDS, ScorerKind
from counterpoint.scoring.scorer_options import HOW_ALONE, JUDGE_FLAG, JUDGE_FLAGS

BLANK = "blank"
"""The veto that every candidate of white space alone has; no scorer's name."""

OWN = ("weight", "require")

_NAMED = re.compile(r"([A-Za-z_]\w*)=(.+)", re.DOTALL)
_REQUIRED = re.compile(r"([A-Za-z_]\w*)(?:(>=|<=|>|<|=)(.+))?", re.DOTALL)
_COMPARED = re.compile(r"\s*(>=|<=|>|<|=)?\s*(\S+)\s*")
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = MappingProxyType(
    {
        ">=": operator.ge,
        "<=": operator.le,
        ">": operator.gt,
        "<": operator.lt,
        "=": operator.eq,
    }
)
_LANGUAGES = ("lang", "language")
"""Names that a requirement alone may use, as in ``--require lang=de``."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a score must be, or its candidate is vetoed.

    Args:
        sign: of ``>=``, ``<=``, ``>``, ``<`` and ``=``.
        value: that the score is compared with.
    """

    sign: str
    value: float

    def __str__(self) -> str:
        """As it may be asked for."""
        return f"{self.sign} {self.value:g}"

    def is_met(self, score: float) -> bool:
        """Whether a score is as required."""
        return _OPERATORS[self.sign](score, self.value)


@dataclass(frozen=True, slots=True)
class AskedScorer:
    """A scorer as it is asked for.

    Args:
        name: under which its scores stand.
        kind: of ``KINDS``.
        argument: of its kind.
        options: of its kind, as given.
        where: what a message calls it.
        weight: of its score in the sum; None: not said.
        require: what its score must be; None: anything.
    """

    name: str
    kind: ScorerKind
    argument: str = ""
    options: Mapping[str, Setting] = field(default_factory=dict)
    where: str = "--with"
    weight: float | None = None
    require: Requirement | None = None

    @property
    def is_penalty(self) -> bool:
        """Whether a lower score is better: by its weight, or else by what it is called."""
        if self.weight:
            return self.weight < 0
        called = map(PENALTY.fullmatch, (self.name, self.argument))
        return self.argument in self.kind.penalties or any(called)

    def made_options(self) -> Any:
        """The options of its kind.

        Raises:
            ConfigError: CP101 to CP103 for such as the kind does not have.
        """
        known = declared(self.kind.options)
        values = {}
        for name, setting in self.options.items():
            if name not in known:
                there = ", ".join((*known, *OWN))
                raise ConfigError(
                    "CP101", f"{setting.where}: {self.kind.name} has no such option; {there}."
                )
            values[name] = coerce(setting, known[name].hint, known[name].choices)
        return made(self.kind.options, values)

    def named(self) -> list[str]:
        """What may be a file, a model or a function: argument, its words, and options."""
        options = [getattr(self.made_options(), name) for name in self.options]
        # a command's words are as the shell would have them; others have no need of it
        words = self.argument.split() if self.argument else []
        return [self.argument, *words, *(one for one in options if isinstance(one, str))]

    def settings(self) -> dict[str, Any]:
        """What was asked for, JSON-ready: all that a score may depend on."""
        options = self.made_options()
        names = [name for name in declared(self.kind.options) if name not in HOW_ALONE]
        return {
            "kind": self.kind.name,
            "argument": self.argument,
            **{name: getattr(options, name) for name in names},
            "weight": self.weight,
            "require": None if self.require is None else str(self.require),
        }


def asked_scorers(
    words: Sequence[str],
    *,
    file: str | None = None,
    weights: Sequence[str] = (),
    requirements: Sequence[str] = (),
    judging: Mapping[str, Any] = MappingProxyType({}),
    are_summed: bool = True,
) -> tuple[AskedScorer, ...]:
    """All scorers of a command line, each with its weight.

    Args:
        words: of ``--with``.
        file: YAML with more of them; None: none.
        weights: as NAME=NUMBER.
        requirements: as NAME, NAME=NUMBER, NAME>=NUMBER and so on, or lang=CODE.
        judging: flags of judges and grades, by name, as ``JUDGE_FLAGS`` has them; they count before
            what the file says.
        are_summed: whether their sum is wanted; where not, none needs a weight.

    Raises:
        ConfigError: CP101 to CP107 for what cannot be meant.
    """
    found = [] if file is None else _read_file(file)
    found += [_read_word(word) for word in words]
    by_name: dict[str, AskedScorer] = {}
    for one in found:
        if one.name in by_name:
            raise ConfigError(
                "CP104", f"two scorers are called {one.name}; name one, as in other={one.name}."
            )
        by_name[one.name] = one
    for word in requirements:
        _require(word, by_name)
    for word in weights:
        _weigh(word, by_name)
    _tell_judges(judging, by_name)
    if not by_name:
        raise ConfigError("CP107", "scorers are missing: --with chrf, or --scorers FILE.yaml.")
    asked = list(by_name.values())
    for one in asked:
        if one.kind.check is not None:
            one.kind.check(one.made_options())
    return _weighed(asked) if are_summed else tuple(asked)


# Words


def _read_word(word: str) -> AskedScorer:
    named = _NAMED.fullmatch(word)
    name, rest = (named[1], named[2]) if named else ("", word)
    kind, colon, argument = rest.partition(":")
    if kind not in KINDS and colon:
        kind, argument = FUNCTION, rest
    return _asked(name, kind, argument, "--with")


def _asked(name: str, kind: str, argument: str, where: str) -> AskedScorer:
    if kind not in KINDS:
        raise ConfigError(
            "CP102",
            f"{where}: {kind!r} is not one of {', '.join(KINDS)}, nor a module:function.",
        )
    one = KINDS[kind]
    if one.needs_argument and not argument.strip():
        raise ConfigError("CP103", f"{where}: {kind} needs {one.argument}, as in {kind}:VALUE.")
    if argument and not one.argument:
        raise ConfigError("CP103", f"{where}: {kind} takes nothing behind a colon.")
    own = argument.rpartition(":")[2] if kind == FUNCTION else kind
    found = name or own
    if found == BLANK:
        raise ConfigError("CP104", f"{where}: {BLANK} is the name of a veto; choose another.")
    return AskedScorer(found, one, argument, where=where)


def _weigh(word: str, by_name: dict[str, AskedScorer]) -> None:
    named = _NAMED.fullmatch(word)
    if not named:
        raise ConfigError("CP103", f"--weight {word} should be NAME=NUMBER, as in chrf=1.")
    name = _known(named[1], by_name, "--weight")
    weight = coerce(Setting(name, Scalar(named[2]), f"--weight {name}"), float)
    by_name[name] = replace(by_name[name], weight=weight)


def _require(word: str, by_name: dict[str, AskedScorer]) -> None:
    found = _REQUIRED.fullmatch(word)
    if not found:
        raise ConfigError(
            "CP103", f"--require {word} should be NAME or NAME=NUMBER, or 'NAME>=NUMBER'."
        )
    name, sign, text = found[1], found[2] or "=", found[3]
    if name in _LANGUAGES and name not in by_name:
        code = "" if text is None else text
        by_name[name] = _asked(name, "language", code, f"--require {name}")
        text = None
    name = _known(name, by_name, "--require")
    value = _value(text, f"--require {name}")
    by_name[name] = replace(by_name[name], require=Requirement(sign, value))


def _value(text: str | None, where: str) -> float:
    if text is None or text in ("true", "false"):
        return float(text != "false")
    return float(coerce(Setting("require", Scalar(text), where), float))


def _known(name: str, by_name: Mapping[str, AskedScorer], flag: str) -> str:
    if name not in by_name:
        there = ", ".join(by_name) or "none"
        raise ConfigError("CP102", f"{flag} {name}: there is no scorer of that name; {there}.")
    return name


def _weighed(asked: list[AskedScorer]) -> tuple[AskedScorer, ...]:
    """Each with a weight: what is not weighed counts nothing, beside one that is."""
    if all(one.weight is None for one in asked):
        weighs = [one for one in asked if one.kind.weighs]
        if len(weighs) > 1:  # what is only required is none of the sum
            weighs = [one for one in weighs if one.require is None] or weighs
        if len(weighs) != 1:
            names = ", ".join(one.name for one in asked)
            raise ConfigError(
                "CP107",
                f"weight is missing: of {names} nothing says what makes the score. Write "
                f"--weight {asked[0].name}=1, with a number for each that counts.",
            )
        _refuse_penalty(weighs[0])
        asked = [replace(one, weight=1.0) if one is weighs[0] else one for one in asked]
    asked = [replace(one, weight=one.weight or 0.0) for one in asked]
    if not any(one.weight for one in asked):
        raise ConfigError("CP103", "every weight is 0, so that no candidate would have a score.")
    return tuple(asked)


def _refuse_penalty(one: AskedScorer) -> None:
    """Refuse to take what is better when lower for a score: every pair would be turned round.

    Raises:
        ConfigError: CP107.
    """
    if one.is_penalty:
        raise ConfigError(
            "CP107",
            f"weight is missing: {one.name} is usually better when lower, and the wrong sign would "
            f"turn every pair round. Write --weight {one.name}=-1, or {one.name}=1 if higher is "
            "better.",
        )


# Flags of judges


def judging_flags(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those flags of a command that judges and grades take.

    Args:
        values: of the flags that were given, by name.
    """
    names = declared(JUDGE_FLAGS)
    return {name: value for name, value in values.items() if name in names}


def refuse_idle_flags(judging: Mapping[str, Any]) -> None:
    """Refuse flags of judges where there is none to take them.

    Args:
        judging: by name.

    Raises:
        ConfigError: CP104, naming the first.
    """
    for flag in judging:
        option = flag.removeprefix(JUDGE_FLAG)
        kinds = [one.name for one in KINDS.values() if option in declared(one.options)]
        raise ConfigError(
            "CP104",
            f"{flag} would do nothing: no scorer is a {' or a '.join(kinds)}. Write --with "
            f"{kinds[0]}:RUBRIC.txt, or leave it out.",
        )


def _tell_judges(judging: Mapping[str, Any], by_name: dict[str, AskedScorer]) -> None:
    judges = {name: declared(one.kind.options) for name, one in by_name.items() if one.kind.check}
    for flag, value in judging.items():
        option = flag.removeprefix(JUDGE_FLAG)
        takers = [name for name, known in judges.items() if option in known]
        if not takers:
            refuse_idle_flags({flag: value})
        said = Setting(option, _as_given(value), f"--{flag}")
        for name in takers if value is not None else ():
            one = by_name[name]
            by_name[name] = replace(one, options={**one.options, option: said})


def _as_given(value: Any) -> Given:
    return [Scalar(str(one)) for one in value] if isinstance(value, list) else Scalar(str(value))


# A file


def _read_file(path: str) -> list[AskedScorer]:
    return [_read_setting(setting) for setting in read_config(path)]


def _read_setting(setting: Setting) -> AskedScorer:
    where, given = setting.where, setting.given
    if not re.fullmatch(r"[A-Za-z_]\w*", setting.name):
        raise ConfigError("CP103", f"{where} should be a name of letters, digits and underscores.")
    if not isinstance(given, dict):
        return _asked(setting.name, _text(given, where), "", where)
    kinds = [name for name in given if name in KINDS]
    if len(kinds) != 1:
        raise ConfigError(
            "CP103",
            f"{where} should have one of {', '.join(KINDS)} as a key; it has "
            f"{', '.join(kinds) or 'none'}.",
        )
    (kind,) = kinds
    argument = _text(given[kind], f"{where}.{kind}")
    one = _asked(setting.name, kind, argument, where)
    options = {
        name: Setting(name, value, f"{where}.{name}")
        for name, value in given.items()
        if name not in (kind, *OWN)
    }
    one = replace(one, options=options, **_own(given, where))
    one.made_options()  # what is wrong with them is said before anything is read
    return one


def _own(given: Mapping[str, Given], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "weight" in given:
        found["weight"] = coerce(Setting("weight", given["weight"], f"{where}.weight"), float)
    if "require" in given:
        text = _text(given["require"], f"{where}.require")
        compared = _COMPARED.fullmatch(text)
        if not compared:
            raise ConfigError(
                "CP103", f"{where}.require={text!r} should be true, a number or '>= NUMBER'."
            )
        value = _value(compared[2], f"{where}.require")
        found["require"] = Requirement(compared[1] or "=", value)
    return found


def _text(given: Given, where: str) -> str:
    """A scalar as it is written; "" for null."""
    if not isinstance(given, Scalar):
        raise ConfigError("CP103", f"{where} should be a text.")
    return "" if given.text in ("~", "null") and not given.quoted else given.text
