"""Where checkpoints lie: written under another name, renamed when whole, removed when old.

    .checkpoint-20.part   being written; nobody reads it
    checkpoint-20         whole, as its manifest says
    .checkpoint-10.gone   being removed

Renaming is the one moment at which a checkpoint comes to be or ceases to be, and the file system
does it whole or not at all. So whenever a run is killed, what is called ``checkpoint-N`` is all of
it.

Not here: what says that a checkpoint is whole (``manifest``). Knows no torch.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from counterpoint.checkpoint.manifest import MANIFEST, Manifest, sync_file, verify
from counterpoint.errors import SetupError
from counterpoint.log import logger
from counterpoint.staged import make_folder, sync_folder

_NAME = re.compile(r"checkpoint-(\d+)")
FILLED = ".saving.part"
"""Where the files of a final model wait to take their places."""

PARTS = ".shards.part"
"""Where ranks write what they hold of a final model, which is then made whole."""

TRIAL = ".trial.part"
"""Where everything but the weights is saved once before training; removed at once."""

MADE_BEFORE = ".base.part"
"""A merged model that a run is about to begin with (``staging`` of its folder ``base``)."""

_UNFINISHED = re.compile(r"\.(checkpoint-(\d+))\.(part|gone)")
_HALF = re.compile(r"\.(run\.json|train\.yaml|README\.md)\.\d+\.part")
"""Names of a run's own files that were never given theirs, see ``staged``."""


def is_scrap(name: str) -> bool:
    """Whether a name is of what a killed run had begun to write or to remove."""
    return name in (FILLED, PARTS, TRIAL, MADE_BEFORE) or any(
        one.fullmatch(name) for one in (_UNFINISHED, _HALF)
    )


def step_of(path: Path) -> int | None:
    """The step that a folder's name says; None if it is not that of a checkpoint."""
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found else None


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run by their names, oldest step first; none is opened."""
    found = {step: path for path in run.glob("checkpoint-*") if (step := step_of(path)) is not None}
    return [found[step] for step in sorted(found)]


def finished(run: Path) -> list[Path]:
    """Those of a run that were written to their end, oldest first; damage is not looked for."""
    return [path for path in checkpoints(run) if (path / MANIFEST).is_file()]


def last_good(
    run: Path,
    *,
    every: Sequence[Path] | None = None,
    check: Callable[..., Manifest] = verify,
    warns: bool = True,
) -> tuple[Path, Manifest] | None:
    """The newest checkpoint of a run that is whole.

    Args:
        run: the folder they lie in.
        every: of its ``checkpoints``, where somebody has looked.
        check: ``verify``, or what does the same.
        warns: whether damaged ones that are passed over are told.

    Returns:
        None where there is no checkpoint at all.

    Raises:
        SetupError: CP512 where there are some and none of them is whole; CP521 where the newest
            whole one holds more than was saved: to pass it over would lose its steps.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(run) if every is None else every):
        try:
            manifest = check(path, step=step_of(path))
        except SetupError as error:
            if error.code == "CP521":
                raise
            damaged.append(error.message)
            continue
        for message in damaged if warns else ():
            logger().warning("not used: %s The last good checkpoint is %s.", message, path)
        return path, manifest
    if damaged:
        raise SetupError("CP512", f"{run} has no good checkpoint. {' '.join(damaged)}")
    return None


def staging(target: Path) -> Path:
    """Where a checkpoint is written before it has its name."""
    return target.with_name(f".{target.name}.part")


def begin(target: Path) -> None:
    """Make the folder that a checkpoint is written in, empty.

    Args:
        target: its name when it is whole.

    Raises:
        OSError: where the disk refuses.
    """
    staged = staging(target)
    if staged.exists():
        shutil.rmtree(staged)
    make_folder(staged)


def discard(target: Path) -> None:
    """Remove what there is of a checkpoint that is not to be, as far as that can be done."""
    shutil.rmtree(staging(target), ignore_errors=True)


def publish(target: Path) -> None:
    """Give a sealed checkpoint its name, in place of one of the same step if there is one.

    Args:
        target: whose ``staging`` is sealed.

    Raises:
        OSError: where the disk refuses.
    """
    gone = _unnamed(target) if target.exists() else None
    staging(target).rename(target)
    sync_folder(target.parent)
    if gone is not None:
        shutil.rmtree(gone)


def remove(path: Path) -> None:
    """Remove a checkpoint; it loses its name before its first file."""
    shutil.rmtree(_unnamed(path))


def _unnamed(path: Path) -> Path:
    gone = path.with_name(f".{path.name}.gone")
    if gone.exists():
        shutil.rmtree(gone)
    path.rename(gone)
    sync_folder(path.parent)
    return gone


def too_many(run: Path, limit: int | None) -> bool:
    """Whether a run has more checkpoints than may stay.

    Args:
        run: the folder they lie in.
        limit: how many may stay, at least 1; None or 0 keeps all.
    """
    return bool(limit) and len(checkpoints(run)) > (limit or 0)


def rotate(
    newest: Path, limit: int | None, *, keep: Iterable[Path] = (), verified: bool = False
) -> None:
    """Remove the oldest checkpoints beyond a number, once the newest is known to be whole.

    Args:
        newest: that was just written; stays, whatever steps the others' names say.
        limit: how many may stay, at least 1; None or 0 keeps all.
        keep: those that stay beside it.
        verified: whether the newest is known to be whole.

    Raises:
        SetupError: CP512 where the newest is damaged; then none is removed.
    """
    every = checkpoints(newest.parent)
    if not limit or not too_many(newest.parent, limit):
        return
    if not verified:
        verify(newest, step=step_of(newest))
    stay = {newest.absolute(), *(path.absolute() for path in keep)}
    # of later steps: what a run left that has been resumed from an earlier one, or begun anew
    later = every[every.index(newest) + 1 :] if newest in every else []
    others = [*later, *(path for path in every if path not in later)]
    old = [path for path in others if path.absolute() not in stay]
    kept = len(every) - len(old)
    for path in old[: len(old) - max(0, limit - kept)]:
        remove(path)


@contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """A folder to write files in, which then take their places in another one, each at once.

    Args:
        folder: where they belong; may hold other files, which stay.

    Raises:
        OSError: where the disk refuses; then what was in the folder is as it was, or new.
    """
    make_folder(folder)
    staged = folder / FILLED
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        yield staged
        files = [path for path in sorted(staged.rglob("*")) if path.is_file()]
        for path in files:
            sync_file(path)
        for path in files:
            place = folder / path.relative_to(staged)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
        sync_folder(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def sealed(run: Path) -> list[Path]:
    """Checkpoints that were written to their end and lack nothing but their names."""
    found = []
    for path in sorted(run.glob(".checkpoint-*")):
        name = _UNFINISHED.fullmatch(path.name)
        if name and not (run / name[1]).exists() and (path / MANIFEST).is_file():
            found.append(path)
    return found


def step_of_unfinished(path: Path) -> int:
    """The step of a checkpoint that does not have its name yet, or has it no more."""
    found = _UNFINISHED.fullmatch(path.name)
    if found is None:
        msg = f"{path.name} is no such folder"
        raise ValueError(msg)
    return int(found[2])


def tidy(run: Path, *, whole: Collection[Path] | None = None) -> None:
    """Clear up after a run that was killed while it wrote or removed a checkpoint.

    One that is whole and lacks nothing but its name gets it; the rest is removed.

    Args:
        run: the folder, which no other run writes in now.
        whole: those of ``sealed`` that are whole, where somebody has verified them.
    """
    for name in (FILLED, PARTS, TRIAL):
        shutil.rmtree(run / name, ignore_errors=True)
    for path in run.glob(".*.part"):
        if _HALF.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
    for path in filter(_is_whole, sealed(run)) if whole is None else whole:
        path.rename(run / f"checkpoint-{step_of_unfinished(path)}")
        sync_folder(run)
    for path in run.glob(".checkpoint-*"):
        if _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _is_whole(path: Path) -> bool:
    try:
        verify(path, step=step_of_unfinished(path))
    except SetupError:
        return False
    return True
