"""Writing a checkpoint, or a model's folder: all of it, or what was there before.

Not here: where checkpoints lie and how they are named (``folder``), what is in them
(``trainer.saving``).
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_model

from counterpoint import ranks
from counterpoint.checkpoint.folder import begin, discard, filled, finished, rotate, staging
from counterpoint.checkpoint.lock import locked
from counterpoint.checkpoint.tree import plain_io_errors
from counterpoint.checkpoint.trial_save import generation_config_as_it_is
from counterpoint.checkpoint.weights import INDEX, WEIGHTS
from counterpoint.console.bars import without_bars
from counterpoint.console.phases import phase
from counterpoint.errors import SetupError
from counterpoint.log import logger
from counterpoint.masking import Mask
from counterpoint.strict import strict_json

Result = TypeVar("Result")

OPTIONS = "training_args.json"

PASSING = (errno.EINTR, errno.EAGAIN, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY)
"""Errors of a disk that may be over a moment later, as on one across a network."""

WAITS = (0.5, 2.0)
"""Seconds before each further attempt to save."""


def save_checkpoint(
    target: Path,
    write: Callable[[Path], None],
    publish: Callable[[Path], None],
    *,
    limit: int | None,
    keep: Collection[Path],
) -> None:
    """Write a checkpoint and remove old ones; every rank calls it.

    Args:
        target: the checkpoint's folder.
        write: writes the files of this rank into the folder where it is staged; meets no other.
        publish: seals and renames what all ranks have written; the first rank alone calls it.
        limit: how many checkpoints may stay; None for all.
        keep: those that stay in any case.

    Raises:
        SetupError: CP515 where it cannot be written.
    """
    try:
        with phase(f"saving {target.name}"):
            patiently(partial(_write, target, write, publish))
        ranks.first_does(partial(rotate, target, limit, keep=keep))
    except OSError as error:
        raise not_saved(target, error) from error


def _write(target: Path, write: Callable[[Path], None], publish: Callable[[Path], None]) -> None:
    try:
        ranks.first_does(partial(begin, target))
        ranks.each_does(partial(write, staging(target)))
        ranks.first_does(partial(publish, target))
    except BaseException:
        if ranks.rank() == 0:
            discard(target)
        raise


def save_model_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Save a model; each of its files is there whole, or as it was before.

    Args:
        folder: that gets it; perhaps another run's by now.
        write: writes the files into a folder.

    Raises:
        SetupError: CP516 where another run writes there.
    """
    with phase("saving the model"), locked(folder), filled(folder) as staged:
        write(staged)
        other = INDEX if (staged / WEIGHTS).is_file() else WEIGHTS
        written = {path.name for path in staged.iterdir()}
    if written & {WEIGHTS, INDEX}:
        # what an earlier run left there, which loaders might prefer to what was just saved
        (folder / other).unlink(missing_ok=True)


def write_model(
    folder: Path, model: Any, tokenizer: Any, options: Mapping[str, Any], state_dict: Any = None
) -> None:
    """Write the model as transformers and PEFT read it, its tokenizer, and the options as JSON.

    transformers would add a pickle of the options, which nothing needs in order to load.

    Args:
        folder: that exists.
        model: plain or adapted, unwrapped.
        tokenizer: None for none.
        options: of the run.
        state_dict: of the model, where somebody has gathered it.
    """
    with without_bars(), plain_io_errors():
        if hasattr(model, "save_pretrained"):
            with generation_config_as_it_is(model, folder):
                model.save_pretrained(str(folder), state_dict=state_dict)
        else:
            save_model(model, str(folder / WEIGHTS))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
        write_options(options, folder)


def write_options(options: Mapping[str, Any], folder: Path) -> None:
    """Write the options of a run, without its secrets.

    Args:
        options: by their names.
        folder: that exists.
    """
    text = strict_json(Mask().of(options), indent=2, default=str)
    (folder / OPTIONS).write_text(f"{text}\n", encoding="utf-8")


def patiently(work: Callable[[], Result]) -> Result:
    """Do something with a disk, again after a moment where its error is one that may pass."""
    for wait in WAITS:
        try:
            return work()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            logger().warning("%s; trying again in %g seconds", error, wait)
            time.sleep(wait)
    return work()


def not_saved(target: Path, error: OSError) -> SetupError:
    """The error of a checkpoint that could not be written."""
    reason = error.strerror or str(error)
    left = [path for path in finished(target.parent) if path != target]
    last = f"The last one is {left[-1]}." if left else "There is none before it."
    return SetupError("CP515", f"{target} could not be saved: {reason}. {last}")
