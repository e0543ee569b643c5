"""Everything that is saved beside the weights, saved and read once before the first step.

What cannot be saved is then known in the first seconds, and not when the training is over.

Not here: the weights (``saving``), and whether the folder can be written at all (``runlog``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from counterpoint.checkpoint.folder import TRIAL
from counterpoint.checkpoint.weights import refuse_computed
from counterpoint.data.processors import saved_as
from counterpoint.errors import CounterpointError, SetupError

GENERATION = "generation_config.json"


def try_saving(run: Path, parts: dict[str, Callable[[Path], object]]) -> None:
    """Save parts of a run in a folder that is removed at once, and read their JSON again.

    Args:
        run: the run's folder.
        parts: what a part is called -> what saves it in a folder.

    Raises:
        SetupError: CP518, with the part and the reason.
    """
    folder = run / TRIAL
    shutil.rmtree(folder, ignore_errors=True)
    try:
        for number, (name, save) in enumerate(parts.items()):
            place = folder / str(number)
            try:
                place.mkdir(parents=True)
                save(place)
                for path in place.rglob("*.json"):
                    json.loads(path.read_text(encoding="utf-8"))
            except CounterpointError:
                raise
            except Exception as error:
                raise SetupError(
                    "CP518",
                    f"the {name} cannot be saved, so nothing was trained: {type(error).__name__}: "
                    f"{error}",
                ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def saved_beside(model: Any, tokenizer: Any, shards: bool) -> dict[str, Callable[[Path], object]]:
    """What is saved beside the weights of a model: what it is called -> what saves it.

    Args:
        model: plain or adapted.
        tokenizer: None for none.
        shards: whether ranks hold parts of it; then what has none is refused as well.
    """
    parts: dict[str, Callable[[Path], object]] = {}
    if shards:
        parts["adapter"] = lambda folder: refuse_computed(model)
    if hasattr(model, "config"):
        parts["model's configuration"] = partial(save_configs, model)
    if tokenizer is not None:
        parts["tokenizer"] = partial(save_and_reopen_tokenizer, tokenizer)
    return parts


@contextmanager
def generation_config_as_it_is(model: Any, folder: Path) -> Iterator[None]:
    """Within it a model can be saved whose generation config transformers would refuse.

    Published ones hold sampling values without ``do_sample``. transformers loads them with a
    warning and saves them only while nothing has changed, and the pad token has.

    Args:
        model: plain or adapted.
        folder: where it is saved; gets the user's own values.
    """
    found = None if hasattr(model, "peft_config") else getattr(model, "generation_config", None)
    if found is None or _is_valid(found):
        yield
        return
    model.generation_config = type(found)()
    try:
        yield
    finally:
        model.generation_config = found
    (folder / GENERATION).write_text(found.to_json_string(use_diff=True), encoding="utf-8")


def save_configs(model: Any, folder: Path) -> None:
    """Save what a model's folder holds beside the weights: its configs, or its adapters'.

    Args:
        model: plain or adapted.
        folder: that exists.
    """
    if hasattr(model, "peft_config"):
        for name, config in model.peft_config.items():
            config.save_pretrained(str(folder / name))
        return
    model.config.save_pretrained(str(folder))
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        with generation_config_as_it_is(model, folder):
            model.generation_config.save_pretrained(str(folder))


def save_and_reopen_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer and open it again.

    Args:
        tokenizer: transformers'; one that is in a processor is saved with it.
        folder: that exists.

    Raises:
        ValueError: where it comes back with another number of tokens.
    """
    saved_as(tokenizer).save_pretrained(str(folder))
    again = type(tokenizer).from_pretrained(str(folder))
    if len(again) != len(tokenizer):
        msg = f"it has {len(tokenizer):,} tokens, and {len(again):,} when it is opened again"
        raise ValueError(msg)


def _is_valid(generation: Any) -> bool:
    try:
        generation.validate(strict=True)
    except ValueError:
        return False
    return True
