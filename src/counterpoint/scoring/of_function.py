"""A Python function of the user's own as a scorer.

Not here: a process of its own (``of_process``), which may have packages of its own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from counterpoint.errors import ConfigError, ModelError, kind_and_line
from counterpoint.scoring.entries import CandidateEntry
from counterpoint.scoring.scorer import Scorer


class OwnFunction(Scorer):
    """Calls a function with rows, and takes a number a row from it.

    Args:
        name: as ``module:function``; the module may lie in the current folder.

    Raises:
        ConfigError: CP103 for a name that is none, CP102 where there is no such function.
        ModelError: CP347 for a module that fails while it is imported.
    """

    def __init__(self, name: str) -> None:
        self._name, self._call = name, _imported(name)

    def facts(self) -> Mapping[str, Any]:
        """Its file is not looked at: what a function depends on only its author knows."""
        return {}

    def score(self, entries: Sequence[CandidateEntry]) -> Any:
        """What it returns for some rows.

        Raises:
            ModelError: CP347 where it raises, with the first row for which it does so alone.
        """
        try:
            return self._call([dict(entry.row) for entry in entries])
        except Exception as error:
            raise self._failed(entries, error) from error

    def _failed(self, entries: Sequence[CandidateEntry], error: Exception) -> ModelError:
        where = f"between {entries[0].place} and {entries[-1].place}"
        for entry in entries:
            try:
                self._call([dict(entry.row)])
            except Exception as alone:
                where, error = f"at {entry.place}", alone
                break
        return ModelError("CP347", f"{self._name} failed {where}: {kind_and_line(error)}")


def _imported(name: str) -> Callable[..., Any]:
    module, colon, function = name.partition(":")
    if not (colon and function.isidentifier() and all(map(str.isidentifier, module.split(".")))):
        raise ConfigError("CP103", f"{name!r} should be module:function, as in scorers:politeness.")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise ModelError("CP347", f"{name}: {kind_and_line(error)}") from error
        raise ConfigError(
            "CP102", f"{name}: there is no module {error.name}, neither here nor installed."
        ) from error
    except Exception as error:
        raise ModelError(
            "CP347", f"{name} fails while it is imported: {kind_and_line(error)}"
        ) from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    if not callable(found):
        raise ConfigError("CP102", f"{name}: the module has no function of that name.")
    return found  # type: ignore[no-any-return]
