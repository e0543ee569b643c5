"""Pages on the disk: whole or not at all, and never over a file that is not one of ours.

Not here: what is in them.
"""

from __future__ import annotations

from pathlib import Path

from counterpoint.errors import SetupError
from counterpoint.report.page import MARK_OF_OURS
from counterpoint.staged import refuse_unusable, staged

_HEAD = 4096
"""Bytes at a page's beginning in which it says that it is ours."""


def refuse_other_file(path: Path) -> None:
    """Refuse a path where something else than a page of ours is already.

    Args:
        path: of the file to be; its folder need not exist.

    Raises:
        SetupError: CP501 where it is a folder or no usable name, CP506 where it is another file.
    """
    refuse_unusable(path)
    if path.is_dir():
        raise SetupError("CP501", f"{path} cannot be written: it is a folder.")
    if not path.exists():
        return
    if not path.is_file():  # a pipe, which would be waited for
        raise SetupError("CP501", f"{path} cannot be written: it is no plain file.")
    with path.open("rb") as file:
        if MARK_OF_OURS.encode() not in file.read(_HEAD):
            raise SetupError(
                "CP506",
                f"{path} is there already, and is no report of Counterpoint's. Choose another "
                "name with --out.",
            )


def write_page(path: Path, html: str) -> int:
    """Write a page, in place of an older one of ours.

    Args:
        path: of the file to be; folders that are missing are made.
        html: what it holds.

    Returns:
        Its size in bytes.

    Raises:
        SetupError: CP501 where it cannot be written, CP506 where it has become another file.
    """
    content = html.encode("utf-8")
    try:
        with staged(path) as file:
            file.write(content)
            refuse_other_file(path)  # who asked before has made the page meanwhile
    except OSError as error:
        raise SetupError(
            "CP501", f"{path} cannot be written: {error.strerror or error}. Choose another name."
        ) from error
    return len(content)
