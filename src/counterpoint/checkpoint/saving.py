"""Writing a checkpoint, or a model's folder: all of it, or what was there before.

Not here: where checkpoints lie and how they are named (``folder``), what is in them
(``trainer.saving``).
"""

from __future__ import annotations

import errno
import json
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_model

from counterpoint import ranks
from counterpoint.checkpoint.folder import begin, discard, filled, finished, staging
from counterpoint.checkpoint.lock import locked
from counterpoint.checkpoint.manifest import File
from counterpoint.checkpoint.together import all_digests, own_digests, rotate_together
from counterpoint.checkpoint.tree import plain_io_errors
from counterpoint.checkpoint.trial_save import generation_config_as_it_is
from counterpoint.checkpoint.weights import INDEX, WEIGHTS, adapter_file, is_adapted
from counterpoint.console.bars import without_bars
from counterpoint.console.phases import phase
from counterpoint.data.processors import saved_as
from counterpoint.errors import SetupError
from counterpoint.log import logger
from counterpoint.masking import Mask
from counterpoint.model_seams import class_of, saves_embeddings
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
    publish: Callable[[Path, Mapping[str, File]], None],
    *,
    limit: int | None,
    keep: Collection[Path],
) -> None:
    """Write a checkpoint and remove old ones; every rank calls it.

    Args:
        target: the checkpoint's folder.
        write: writes the files of this rank into the folder where it is staged; meets no other.
        publish: seals and renames what all ranks have written, given the digests of its files;
            the first rank alone calls it.
        limit: how many checkpoints may stay; None for all.
        keep: those that stay in any case.

    Raises:
        SetupError: CP515 where it cannot be written.
    """
    try:
        with phase(f"saving {target.name}"):
            patiently(partial(_write, target, write, publish))
        rotate_together(target, limit, keep=keep)
    except OSError as error:
        raise not_saved(target, error) from error


def _write(
    target: Path,
    write: Callable[[Path], None],
    publish: Callable[[Path, Mapping[str, File]], None],
) -> None:
    def mine() -> dict[str, File]:
        write(staging(target))
        return own_digests(staging(target))

    try:
        ranks.first_does(partial(begin, target))
        files = all_digests(ranks.each_does(mine))
        ranks.first_does(partial(publish, target, files))
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
    with phase("saving the model"), locked(folder), filled_with_model(folder) as staged:
        write(staged)


@contextmanager
def filled_with_model(folder: Path) -> Iterator[Path]:
    """As ``filled``; weights that were there before are not read beside those that are written.

    Args:
        folder: that gets a model.

    Raises:
        OSError: where the disk refuses.
    """
    with filled(folder) as staged:
        yield staged
        other = INDEX if (staged / WEIGHTS).is_file() else WEIGHTS
        written = {path.name for path in staged.iterdir()}
    if written & {WEIGHTS, INDEX}:
        # loaders might prefer it to what was just saved
        (folder / other).unlink(missing_ok=True)


def write_model(
    folder: Path,
    model: Any,
    tokenizer: Any,
    options: Mapping[str, Any],
    state_dict: Any = None,
    *,
    weights: bool = True,
) -> None:
    """Write the model as transformers and PEFT read it, its tokenizer, and the options as JSON.

    transformers would add a pickle of the options, which nothing needs in order to load.

    Args:
        folder: that exists.
        model: plain or adapted, unwrapped.
        tokenizer: None for none.
        options: of the run.
        state_dict: of the model, where somebody has gathered it.
        weights: whether they are written too; else what lies beside them alone.
    """
    with without_bars(), plain_io_errors():
        if not weights:
            _write_beside_weights(folder, model)
        elif hasattr(model, "save_pretrained"):
            with generation_config_as_it_is(model, folder):
                more = (
                    {"save_embedding_layers": saves_embeddings(model)} if is_adapted(model) else {}
                )
                model.save_pretrained(str(folder), state_dict=state_dict, **more)
        else:
            save_model(model, str(folder / WEIGHTS))
        if tokenizer is not None:
            saved_as(tokenizer).save_pretrained(str(folder))
        write_options(options, folder)


def _write_beside_weights(folder: Path, model: Any) -> None:
    """A model's configurations, as its own ``save_pretrained`` writes them."""
    if not hasattr(model, "save_pretrained"):
        return
    if not is_adapted(model):
        with generation_config_as_it_is(model, folder), _not_distributed(model):
            model.save_pretrained(str(folder), state_dict={})
        return
    # PEFT writes no configuration without a file of weights
    numbers = {name: torch.tensor([0]) for name in model.state_dict()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of weights that are not these
        model.save_pretrained(
            str(folder), state_dict=numbers, save_embedding_layers=saves_embeddings(model)
        )
    for adapter in model.peft_config:
        place = folder / adapter_file(adapter)
        place.unlink()
        _name_base(place.with_name("adapter_config.json"), model.get_base_model())


def _name_base(path: Path, base: Any) -> None:
    """Have an adapter's configuration name the class that its base has outside of shards."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("auto_mapping"):
        kind = class_of(base)
        named = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
        config["auto_mapping"] = named
        path.write_text(
            json.dumps(config, indent=2, sort_keys=True, allow_nan=False), encoding="utf-8"
        )


@contextmanager
def _not_distributed(model: Any) -> Iterator[None]:
    """Within it a model's configuration does not say that it was loaded in shards.

    transformers would gather all of it, and whoever opens the folder would get shards again.
    """
    held = vars(model.config)
    kept = held.pop("distributed_config", None)
    try:
        yield
    finally:
        if kept is not None:
            held["distributed_config"] = kept


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
