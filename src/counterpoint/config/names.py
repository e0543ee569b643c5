"""The names by which a class of options takes its values: today's, and those of earlier releases.

Not here: which names those are (``old_options``).
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any, TypeVar

from counterpoint.old_options import modern, warn_of_old

_Made = TypeVar("_Made")


class ByEveryName(type):
    """Makes a class of options take those of earlier releases, before its constructor fails.

    Not in the constructor, which ``dataclass`` writes anew for every subclass. Copies, pickles and
    ``dataclasses.fields`` do not come by here; ``dataclasses.replace`` and ``HfArgumentParser`` do.
    """

    def __call__(cls: type[_Made], *args: Any, **kwargs: Any) -> _Made:
        """Make the options, by their names of today."""
        said: tuple[str, ...] = ()
        taken = inspect.signature(cls.__init__).parameters
        known = {name for name, one in taken.items() if one.kind is not one.VAR_KEYWORD}
        if known != set(taken):  # a constructor of somebody's own hands on what it is given
            known |= {option.name for option in fields(cls) if option.init}  # type: ignore[arg-type]
        if not kwargs.keys() <= known:
            kwargs, said = modern(kwargs, known)
        made: _Made = type.__call__(cls, *args, **kwargs)
        warn_of_old(said)
        return made

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of the constructor, without ``self``, for editors and ``help``."""
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        return signature.replace(parameters=[*signature.parameters.values()][1:])
