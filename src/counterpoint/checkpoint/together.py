"""What ranks do together with a checkpoint: each reads through what it wrote, or its share.

No byte is read twice, and none by a rank that has nothing to do with it. What is found is the same
on every rank, and so is the error.

Not here: what makes a checkpoint whole (``manifest``), where it lies (``folder``).
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

from counterpoint import ranks
from counterpoint.checkpoint.folder import (
    checkpoints,
    last_good,
    rotate,
    sealed,
    step_of,
    step_of_unfinished,
    tidy,
    too_many,
)
from counterpoint.checkpoint.manifest import (
    File,
    Manifest,
    damage,
    digests,
    files_in,
    read_manifest,
    refuse_damaged,
    refuse_unlisted,
    verify,
)
from counterpoint.errors import SetupError

_OF_A_RANK = re.compile(r"(?:.*/)?(?:rank-(\d+)\.|shard-(\d+)-).*")
"""Names of files that a rank wrote alone: the tree of rank 1, and the second rank's shards."""


def writer_of(name: str) -> int:
    """Which rank writes a file of a checkpoint.

    Args:
        name: below the checkpoint's folder, with forward slashes.
    """
    found = _OF_A_RANK.fullmatch(name)
    if found is None:
        return 0
    return int(found[1]) if found[1] is not None else int(found[2]) - 1


def own_digests(folder: Path) -> dict[str, File]:
    """Bring what this rank has written to the disk, and read it through; it meets no other.

    Args:
        folder: where ranks write a checkpoint.

    Raises:
        OSError: where the disk refuses.
    """
    return digests(folder, [name for name in files_in(folder) if writer_of(name) == ranks.rank()])


def all_digests(mine: Mapping[str, File]) -> dict[str, File]:
    """What all ranks have read through; every rank calls it.

    Args:
        mine: of ``own_digests``.
    """
    return dict(ChainMap(*ranks.gathered(dict(mine))))


def shares(files: Mapping[str, File], count: int) -> list[dict[str, File]]:
    """Files dealt out so that each share has about as many bytes, the largest files first.

    Args:
        files: by name.
        count: of shares, at least 1.
    """
    dealt: list[dict[str, File]] = [{} for _ in range(count)]
    sizes = [0] * count
    for name in sorted(files, key=lambda name: (-files[name].size, name)):
        least = sizes.index(min(sizes))
        dealt[least][name] = files[name]
        sizes[least] += files[name].size
    return dealt


def verify_together(folder: Path, *, step: int | None = None) -> Manifest:
    """Do what ``verify`` does, each rank with its share of the files; every rank calls it.

    Args:
        folder: of the checkpoint.
        step: that its name says, if it says one.

    Raises:
        SetupError: as ``verify``, the same on every rank.
    """
    if ranks.alone():
        return verify(folder, step=step)
    manifest = ranks.first_does(partial(_listed, folder))
    mine = shares(manifest.files, ranks.count())[ranks.rank()]
    found = ranks.gathered(ranks.each_does(partial(damage, folder, mine)))
    refuse_damaged(folder, manifest, dict(ChainMap(*found)), step=step)
    return manifest


def _listed(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    refuse_unlisted(folder, manifest)
    return manifest


def last_good_together(run: Path) -> tuple[Path, Manifest] | None:
    """Find the newest whole checkpoint, as ``last_good``; every rank calls it.

    Args:
        run: the folder they lie in.

    Raises:
        SetupError: as ``last_good``, the same on every rank.
    """
    every = ranks.first_does(partial(checkpoints, run))
    return last_good(run, every=every, check=verify_together, warns=ranks.rank() == 0)


def rotate_together(newest: Path, limit: int | None, *, keep: Collection[Path]) -> None:
    """Remove old checkpoints, as ``rotate``; every rank calls it.

    Args:
        newest: that was just written.
        limit: how many may stay; None or 0 keeps all.
        keep: those that stay beside it.

    Raises:
        SetupError: CP512 where the newest is damaged; then none is removed.
    """
    if ranks.first_does(partial(too_many, newest.parent, limit)):
        verify_together(newest, step=step_of(newest))
        ranks.first_does(partial(rotate, newest, limit, keep=keep, verified=True))


def tidy_together(run: Path) -> None:
    """Clear up, as ``tidy``; every rank calls it.

    Args:
        run: the folder, which no other run writes in now.
    """
    whole = []
    for path in ranks.first_does(partial(sealed, run)):
        try:
            verify_together(path, step=step_of_unfinished(path))
        except SetupError:
            continue
        whole.append(path)
    ranks.first_does(partial(tidy, run, whole=whole))
