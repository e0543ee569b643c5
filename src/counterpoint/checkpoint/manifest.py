"""The manifest of a checkpoint: what says that it is whole.

``manifest.json`` names every file with its size and SHA-256, and carries a SHA-256 of itself. It
is written last, when all that it names is on the disk; so a folder without one was never finished,
and one whose files differ from it was damaged afterwards. A file that it does not name is refused:
libraries load what they find by its name, whoever put it there.

Not here: what the files hold, and where the folder lies (``folder``). Knows no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from counterpoint.errors import SetupError
from counterpoint.run_schema import anything, check_sizes, mapping_of, record, truth, whole
from counterpoint.run_schema import text as words
from counterpoint.runlog import versions
from counterpoint.staged import lies_within, sync_folder
from counterpoint.strict import spelt, strict_json

FORMAT = 1
"""Version of the layout; raised when an older release could not read a checkpoint any more."""

SHARDED = 2
"""Version of the layout in which ranks have each written their parts of the tensors."""

MANIFEST = "manifest.json"

SHARDS = "shards.json"
"""What those parts make up; only in checkpoints of that layout."""

SHOWN = 4
"""Most files that a message names."""

THREADS = 4
"""Files that are read, or brought to the disk, at a time."""


_DROPPED = re.compile(
    r"\.DS_Store|\._.*|\.AppleDouble|\.Spotlight-V100|\.Trashes|\.fseventsd|\.localized"
    r"|[Tt]humbs\.db|desktop\.ini|\.directory|@eaDir|\.nfs[0-9a-f]+|\.fuse_hidden[0-9a-f]+"
    r"|\.ipynb_checkpoints|\.cache|\.git|\.gitattributes|\.gitignore|\.gitkeep|\.dvc|\.dvcignore"
    r"|.*~|\.#.*|\..*\.sw[a-p]|README\.md",
)
"""Names that systems, editors, notebooks and hubs leave in any folder. No loader opens one of them
by itself, and nothing is read of them or of what lies in such a folder."""


CONTENT = record(
    step=whole,
    resumable=truth,
    fingerprint=mapping_of(anything),
    versions=mapping_of(words),
    files=mapping_of(record(size=whole, sha256=words)),
)
"""What a manifest holds, beside its format and its own digest."""


@dataclass(frozen=True, slots=True)
class File:
    """One file of a checkpoint.

    Args:
        size: in bytes.
        sha256: of its content, in hexadecimal.
    """

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint consists of.

    Args:
        step: optimizer steps that were done.
        resumable: whether a run can resume from it; False for one of the model alone.
        fingerprint: of the experiment, see ``fingerprint``.
        versions: of Python and the libraries that wrote it.
        files: by name below the folder, with forward slashes.
    """

    step: int
    resumable: bool
    fingerprint: Mapping[str, Any]
    versions: Mapping[str, str]
    files: Mapping[str, File]


def seal(
    folder: Path,
    *,
    step: int,
    resumable: bool,
    fingerprint: Mapping[str, Any],
    files: Mapping[str, File] | None = None,
) -> Manifest:
    """Bring every file of a folder to the disk, then write its manifest there.

    Args:
        folder: with all files of the checkpoint, and nothing else.
        step: optimizer steps that were done.
        resumable: whether a run can resume from it.
        fingerprint: of the experiment; JSON-ready.
        files: those that are on the disk and read through already, by whoever wrote them; they
            are not read again.

    Raises:
        OSError: where the disk refuses.
        SetupError: CP525 for files that were written, and are not seen here so.
    """
    given = files or {}
    _refuse_unseen(folder, given)
    names = set(files_in(folder))
    manifest = Manifest(
        step,
        resumable,
        fingerprint,
        versions(),
        dict(sorted({**given, **digests(folder, names - given.keys())}.items())),
    )
    layout = SHARDED if SHARDS in names else FORMAT
    content = spelt({"format": layout, **asdict(manifest)})
    # no line end: that the last byte is missing could not be seen of it
    text = strict_json({**content, "sha256": _own_digest(content)}, indent=1)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        sync_folder(inner)
    sync_folder(folder)
    return manifest


def digests(folder: Path, names: Iterable[str]) -> dict[str, File]:
    """Bring files to the disk and read them through.

    Args:
        folder: that they lie in.
        names: below it, with forward slashes.

    Returns:
        Size and SHA-256 by name.

    Raises:
        OSError: where the disk refuses.
    """
    ordered = sorted(names)
    paths = [folder / name for name in ordered]
    with ThreadPoolExecutor(THREADS) as pool:  # some wait for the disk, some use the processor
        synced = pool.map(sync_file, paths)
        files = dict(zip(ordered, pool.map(_read_through, paths), strict=True))
        list(synced)  # raises what one of them raised
    return files


def _refuse_unseen(folder: Path, files: Mapping[str, File]) -> None:
    """Refuse a folder that other processes wrote in, and that is another one here."""
    for name, file in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != file.size:
            raise SetupError(
                "CP525",
                f"{name} was written into {folder} by another rank, and this one does not see it "
                "so. Set output_dir to a folder on a file system that all ranks share.",
            )


def verify(folder: Path, *, step: int | None = None) -> Manifest:
    """Read a whole checkpoint and compare it with its manifest.

    Args:
        folder: of the checkpoint.
        step: that its name says, if it says one.

    Returns:
        Its manifest; every file that it names is as it was written.

    Raises:
        SetupError: CP511 where there is no manifest, CP512 for files that are missing, cut short
            or changed, each named; CP514 for a format of another release; CP521 for what the
            manifest does not list.
    """
    manifest = read_manifest(folder)
    refuse_unlisted(folder, manifest)
    refuse_damaged(folder, manifest, damage(folder, manifest.files), step=step)
    return manifest


def damage(folder: Path, files: Mapping[str, File]) -> dict[str, str]:
    """Read files through and compare them with what was written.

    Args:
        folder: of the checkpoint.
        files: of its manifest, or some of them.

    Returns:
        What is wrong with a file, by its name, in words that follow the name.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        paths = [folder / name for name in files]
        problems = pool.map(partial(_problem, folder.resolve()), paths, files.values())
        found = zip(files, problems, strict=True)
        return {name: problem for name, problem in found if problem}


def refuse_damaged(
    folder: Path, manifest: Manifest, found: Mapping[str, str], *, step: int | None
) -> None:
    """Refuse a checkpoint that is not as it was written.

    Args:
        folder: of the checkpoint.
        manifest: of it.
        found: by ``damage``, of all of its files.
        step: that its name says, if it says one.

    Raises:
        SetupError: CP512, naming what is wrong.
    """
    strange = step is not None and manifest.step != step
    wrong = [f"{MANIFEST} is that of step {manifest.step}"] if strange else []
    wrong += [f"{name} {found[name]}" for name in manifest.files if name in found]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise SetupError("CP512", f"{folder} is damaged: {'; '.join(wrong[:SHOWN])}{more}.")


def refuse_unlisted(folder: Path, manifest: Manifest) -> None:
    """Refuse a folder that holds more than its manifest says.

    What systems and editors drop into any folder is let lie; it is never read.

    Args:
        folder: of the checkpoint.
        manifest: of it.

    Raises:
        SetupError: CP521, naming what is too much.
    """
    listed = {MANIFEST, *manifest.files}
    inner = {str(parent) for name in listed for parent in PurePosixPath(name).parents}
    found = sorted(_unlisted(folder, listed, inner))
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise SetupError(
            "CP521",
            f"{folder} holds what its {MANIFEST} does not list: {', '.join(found[:SHOWN])}{more}. "
            "A checkpoint is loaded as it was written, or not at all: move that out of the folder.",
        )


def _unlisted(folder: Path, listed: set[str], inner: set[str], below: str = "") -> Iterator[str]:
    with os.scandir(folder / below) as entries:
        for entry in entries:
            name = f"{below}{entry.name}"
            if name in listed or _DROPPED.fullmatch(entry.name):
                continue
            # a link to a folder is none of the folders that were written
            if name in inner and entry.is_dir(follow_symlinks=False):
                yield from _unlisted(folder, listed, inner, f"{name}/")
            else:
                yield f"{name}/" if entry.is_dir(follow_symlinks=False) else name


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint, right in itself; its files are not looked at.

    Args:
        folder: of the checkpoint.

    Raises:
        SetupError: CP511, CP512 or CP514, as ``verify``.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SetupError(
            "CP511",
            f"{folder} has no {MANIFEST}: it is no checkpoint of Counterpoint, or was not "
            "written to its end.",
        ) from None
    except (OSError, ValueError) as error:
        raise SetupError("CP512", f"{path} cannot be read: {error}.") from error
    try:
        content = json.loads(text)
        check_sizes(content)
        own = content.pop("sha256")
        version = content.pop("format")
        if own != _own_digest({"format": version, **content}):
            raise ValueError("its content is not what was written")
        if version in (FORMAT, SHARDED):
            return _as_manifest(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SetupError("CP512", f"{path} is damaged: {error}.") from error
    wrote = content.get("versions")
    wrote = wrote.get("counterpoint") if isinstance(wrote, dict) else None
    raise SetupError(
        "CP514",
        f"{folder} has format {version}, but this release reads formats {FORMAT} and {SHARDED}. "
        f"Resume with the release that wrote it: counterpoint {wrote}.",
    )


def sync_file(path: Path) -> None:
    """Bring the content of a file to the disk."""
    with path.open("r+b") as file:  # Windows syncs only what it may write
        os.fsync(file.fileno())


def _as_manifest(content: Mapping[str, Any]) -> Manifest:
    CONTENT(content, MANIFEST)
    files = {}
    for name, file in content["files"].items():
        parts = PurePosixPath(name).parts
        # on Windows a backslash parts folders, and a colon names a drive
        if not parts or name.startswith("/") or ".." in parts or re.search(r"[\\:\0]", name):
            raise ValueError(f"{name!r} lies outside the checkpoint")
        files[name] = File(**file)
    return Manifest(**{**content, "files": files})


def files_in(folder: Path) -> Iterator[str]:
    """The files of a checkpoint's folder by their names below it, but for its manifest.

    Args:
        folder: in which others may be writing.
    """
    for path in folder.rglob("*"):
        if path.is_file() and path.name != MANIFEST:
            yield path.relative_to(folder).as_posix()


def _problem(home: Path, path: Path, file: File) -> str | None:
    """What is wrong with a file, in words that follow its name."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return "is no file any more"
        if not lies_within(home, path.resolve()):
            return "leads out of the checkpoint"
        if found.st_size != file.size:
            return f"has {found.st_size:,} bytes instead of {file.size:,}"
        if _read_through(path).sha256 != file.sha256:
            return "has changed"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return None


def _read_through(path: Path) -> File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return File(file.tell(), digest.hexdigest())


def _own_digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
