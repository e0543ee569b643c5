"""What several commands refuse alike: numbers out of their range, and what has to be given.

Not here: options of ``train``, whose ranges are in ``config``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from counterpoint.errors import ConfigError


def refuse_below(options: object, **least: int) -> None:
    """Refuse whole numbers that are too small; None is none.

    Args:
        options: whose fields they are.
        least: the smallest that can be meant, by the field's name.

    Raises:
        ConfigError: CP103, with the first.
    """
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise ConfigError(
                "CP103", f"{name}={value} should be a whole number, at least {smallest}."
            )


def refuse_temperature(temperature: float) -> None:
    """Refuse what is no temperature.

    Args:
        temperature: in [0, inf).

    Raises:
        ConfigError: CP103.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError("CP103", f"temperature={temperature} should be at least 0.")


def refuse_drawing(temperature: float, top_p: float) -> None:
    """Refuse what no token can be drawn by.

    Args:
        temperature: in [0, inf).
        top_p: in (0, 1].

    Raises:
        ConfigError: CP103.
    """
    refuse_temperature(temperature)
    if not 0 < top_p <= 1:
        raise ConfigError("CP103", f"top_p={top_p} should be in (0, 1].")


def refuse_other_than_lines(out: str | None) -> None:
    """Refuse a name under which nobody looks for lines of JSON.

    Args:
        out: of a file, or None.

    Raises:
        ConfigError: CP103.
    """
    if out is not None and not out.endswith(".jsonl"):
        raise ConfigError("CP103", f"out={out} should end with .jsonl: lines of JSON.")


def refuse_unless_given(given: Mapping[str, object], where: str = "") -> None:
    """Refuse a command without all that it needs.

    Args:
        given: what it needs in words, and what was given; what is empty is missing.
        where: in which file, in words.

    Raises:
        ConfigError: CP107, naming all that is missing.
    """
    missing = [what for what, value in given.items() if not value]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ConfigError("CP107", f"{' and '.join(missing)} {verb} missing{where}.")
