"""Options as transformers pickles them into what it uploads, without the secrets among them.

While it uploads, the trainer needs the token of the hub and pickles it, too. So a secret
stays what it is in this process, and is masked in whatever is pickled.

Not here: what is a secret (``masking``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from counterpoint.config import CPOConfig
from counterpoint.masking import MASK, Mask, is_secret


class Withheld(str):
    """Text that is pickled as another one.

    Args:
        text: what it is in this process.
        public: what any pickle holds instead.
    """

    __slots__ = ("public",)
    public: str

    def __new__(cls, text: str, public: str) -> Withheld:
        """Make one."""
        made = super().__new__(cls, text)
        made.public = public
        return made

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """The public text, as a plain one."""
        return str, (self.public,)


@contextmanager
def without_secrets(args: CPOConfig) -> Iterator[None]:
    """As long as this lasts, pickles of the options hold no secret.

    Args:
        args: a secret among them, at any depth, is ``Withheld`` meanwhile.
    """
    before, mask = dict(vars(args)), Mask()
    args.__dict__.update({name: _withheld(value, mask, name) for name, value in before.items()})
    try:
        yield
    finally:
        args.__dict__.update(before)


def _withheld(value: Any, mask: Mask, name: str) -> Any:
    if isinstance(value, str):
        public = MASK if is_secret(name) else mask.text(value)
        # of a type of its own, as some options are, only where it must
        return Withheld(value, public) if public != value else value
    if type(value) is dict:
        return {key: _withheld(part, mask, str(key)) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_withheld(part, mask, name) for part in value)
    return value
