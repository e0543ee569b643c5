"""``--create_new_adapter``: the adapter of ``--model`` is merged into its base, a new one trains.

Each run has the merged model in its own folder, under ``base``. It is made before the run's parts
are loaded, under another name; it gets its own when training begins, so that a run that is refused
leaves its folder as it was. A resumed run loads the files that it began with.

Not here: training the given adapter on (``continued``), what the folder holds
(``models.merged_base``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from counterpoint import ranks
from counterpoint.checkpoint.folder import begin, discard, publish, staging
from counterpoint.cli.continued import check_new_adapter
from counterpoint.cli.merge import merge_into
from counterpoint.cli.parts import RunParts, merge_model_options
from counterpoint.config import CPOConfig
from counterpoint.console.manners import is_first_process
from counterpoint.log import logger
from counterpoint.models.adapters import OWN_BASE, is_adapter
from counterpoint.models.merged_base import (
    called_after,
    read_record,
    refuse_another,
    write_record,
)
from counterpoint.models.weights import init_keywords
from counterpoint.options.settings import Request


@contextmanager
def on_merged_base(request: Request, *, resumes: bool) -> Iterator[Request]:
    """Within it a run's model is its old adapter and base, merged, as a folder.

    Args:
        request: of a run; any other than one with ``create_new_adapter`` stays as it is.
        resumes: whether a checkpoint of the run is there to resume from.

    Yields:
        The request with that folder for its model.

    Raises:
        CounterpointError: CP340 for an adapter that has changed since; as merging.
    """
    run, target = request.run, Path(request.config.output_dir) / OWN_BASE
    if not run.create_new_adapter:
        yield request
        return
    if resumes and read_record(target):
        if is_adapter(str(run.model)):  # else the base alone is enough
            refuse_another(target, str(run.model))
        yield _trained_on(request, target)
        return
    check_new_adapter(run)
    # what the options say of the model is said of the adapter that they name
    config = copy.copy(request.config)
    merge_model_options(run, config)
    ranks.first_does(lambda: _make(target, str(run.model), config))
    try:
        yield _trained_on(request, staging(target))
    finally:
        if is_first_process():
            discard(target)


def call_after_base(parts: RunParts, request: Request, asked: Request) -> None:
    """Have a new adapter name the run's own folder as what it lies on.

    Args:
        parts: of the run, loaded.
        request: as it was given.
        asked: what ``on_merged_base`` made of it.
    """
    if asked is request:
        return
    target, made = Path(request.config.output_dir) / OWN_BASE, Path(str(asked.run.model))
    found = read_record(made)
    called_after(parts.model, target, found)
    logger().info(
        "training a new adapter; %s is merged into %s and frozen beneath it, in %s",
        found["adapters"][-1],
        found["base"] if len(found["adapters"]) == 1 else "what it lay on",
        target,
    )


def keep_base(folder: Path) -> None:
    """Give a merged base that was made for a run its place; nothing where there is none.

    Args:
        folder: of the run.
    """
    target = folder / OWN_BASE
    if read_record(staging(target)):
        publish(target)


def _trained_on(request: Request, folder: Path) -> Request:
    run = replace(request.run, model=str(folder), revision=None, create_new_adapter=False)
    return replace(request, run=run)


def _make(target: Path, source: str, config: CPOConfig) -> None:
    begin(target)
    merged = merge_into(
        staging(target),
        source,
        dtype=init_keywords(config).get("dtype"),
        code=config.trust_remote_code,
        pickle=config.allow_pickle,
    )
    write_record(staging(target), source, merged)
