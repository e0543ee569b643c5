"""The texts of each language, from files that a translator can edit without any Python.

``en/`` and ``zh/`` hold ``doctor-*.toml``: under each code of the doctor its ``title``, ``why`` and
``do``. ``zh/`` also holds ``errors.toml``, the codes that only errors have, and ``phrases.toml``
and ``report.toml``: English phrase = Chinese phrase. A file is read when it is first needed, once.

Not here: which language is spoken (the package), severities (``doctor.table``).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from counterpoint.errors import CODES

FOLDER = Path(__file__).parent

Texts = Mapping[str, Mapping[str, str]]
"""Name of a table -> name of a text in it -> the text."""


@cache
def meanings(language: str) -> Texts:
    """What the doctor's codes mean: code -> title, why and do.

    An English file gives no title to an error: that stands in ``errors.CODES``.

    Raises:
        ValueError: where a file does not have this shape.
    """
    found: dict[str, Mapping[str, str]] = {}
    for path in sorted((FOLDER / language).glob("doctor-*.toml")):
        for code, entry in read_texts(path).items():
            if code in found:
                raise ValueError(f"{path}: [{code}] is in another file already.")
            titled = {"title": CODES[code]} if language == "en" and code in CODES else {}
            _check_fields(path, code, entry, {"title", "why", "do"} - set(titled))
            found[code] = MappingProxyType({**titled, **entry})
    return MappingProxyType(found)


@cache
def error_meanings() -> Texts:
    """What the codes mean that the doctor never reports, in Chinese: code -> title and do.

    Raises:
        ValueError: where the file does not have this shape.
    """
    path = FOLDER / "zh" / "errors.toml"
    found = read_texts(path)
    for code, entry in found.items():
        _check_fields(path, code, entry, {"title", "do"})
    return found


@cache
def phrases() -> Mapping[str, str]:
    """English phrase -> Chinese phrase.

    Raises:
        ValueError: where a file does not have this shape.
    """
    files = (read_texts(FOLDER / "zh" / name) for name in ("phrases.toml", "report.toml"))
    return MappingProxyType(
        {
            english: text
            for file in files
            for part in file.values()
            for english, text in part.items()
        }
    )


def read_texts(path: Path) -> Texts:
    """A file of tables of texts.

    Raises:
        ValueError: where it is no TOML, or holds anything else.
    """
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of TOML, or of UTF-8
        raise ValueError(f"{path} is no TOML file: {error}.") from error
    for name, table in tables.items():
        texts = table.values() if isinstance(table, dict) else [None]
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"{path}: [{name}] should hold texts in quotes, and no empty one.")
    return tables


def _check_fields(path: Path, code: str, entry: Iterable[str], wanted: set[str]) -> None:
    if set(entry) != wanted:
        has, needs = (" and ".join(sorted(names)) for names in (entry, wanted))
        raise ValueError(f"{path}: [{code}] should have {needs}, and has {has or 'nothing'}.")
