"""What ``--overwrite_output_dir`` removes of a run, before another one trains into its folder.

A model that stayed would be taken for the new run's: while there is none yet, and beside it where
one of the two is an adapter. transformers puts an adapter on any model that lies in its folder.

Not here: when that is done (``train``).
"""

from __future__ import annotations

import re
from pathlib import Path

from counterpoint.checkpoint.folder import checkpoints, remove
from counterpoint.cli.continued import begins_adapted
from counterpoint.models.adapters import OWN_BASE, base_of
from counterpoint.options.settings import Request
from counterpoint.runlog import RUN_FILE, STREAMS, clear_thumbnails, stream_file

MERGED = "merged"
"""Folder inside the run's for the model that merge_at_end writes."""

_OF_A_MODEL = re.compile(
    r"(adapter_)?config\.json|generation_config\.json|(adapter_model|beside)\.safetensors"
    r"|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)
"""What is saved of a model that loaders go by; a tokenizer is written over."""


def clear_run(folder: Path, request: Request) -> None:
    """Remove what would mix with a new run: an old one's checkpoints, log and model.

    What says that there is a run goes last, so that one killed meanwhile is still known for one.
    Other files stay, and so does a model that no run of ours has saved, or that the new run reads.

    Args:
        folder: of the run that begins.
        request: of the new run, which names what it reads.
    """
    if not folder.is_dir():
        return
    read = _read_by(request)
    for path in checkpoints(folder):
        remove(path)
    clear_thumbnails(folder)
    for name in (MERGED, OWN_BASE):
        if (folder / name).is_dir():
            remove(folder / name)
    if (folder / RUN_FILE).is_file() and folder.resolve() not in read:
        for path in folder.iterdir():
            if _OF_A_MODEL.fullmatch(path.name):
                path.unlink(missing_ok=True)
    for path in (*(stream_file(folder, stream) for stream in STREAMS), folder / RUN_FILE):
        path.unlink(missing_ok=True)


def _read_by(request: Request) -> set[Path]:
    """Folders of the models that a run reads; names of a hub are folders that are not there."""
    run = request.run
    names = [run.model, run.tokenizer, request.config.reference]
    if begins_adapted(run):
        names.append(base_of(str(run.model)))
    return {Path(name).expanduser().resolve() for name in names if isinstance(name, str)}
