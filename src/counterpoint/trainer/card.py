"""What the trainer tells its model's card: the base model's name, and where the data came from.

Not here: what the card says (``report.card``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from counterpoint.errors import SetupError
from counterpoint.report.card import CARD, About, model_card
from counterpoint.report.recipe import hub_id
from counterpoint.runlog import ALARMS, METRICS, Run, read_run
from counterpoint.staged import staged
from counterpoint.visible import visible

_HUB_FILE = re.compile(r"hf://datasets/([^/@]+/[^/@]+)@")


def hub_datasets(dataset: Any) -> tuple[str, ...]:
    """The hub ids of a data set, as far as it knows that it came from there.

    Args:
        dataset: raw rows, a dict of named sets, or None.
    """
    if isinstance(dataset, Mapping):
        return tuple(dict.fromkeys(one for each in dataset.values() for one in hub_datasets(each)))
    files = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    return tuple(dict.fromkeys(found[1] for file in files if (found := _HUB_FILE.match(file))))


def base_of(model: Any) -> str:
    """The hub id of what a model was loaded from, or the bare name of its folder; "" for neither.

    Args:
        model: with a ``config``, or None.
    """
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    # what looks like an id may be a folder, and where that lies is nobody's business
    return name if hub_id(name) and not Path(name).exists() else Path(name).name


def about_model(
    model: Any,
    folder: Path,
    datasets: tuple[str, ...],
    *,
    base: str,
    tags: Sequence[str] = (),
    language: str = "",
    license_: str = "",
) -> About:
    """What the card says of a model beside its run.

    Args:
        model: as trained.
        folder: the one that names it.
        datasets: hub ids of the data.
        base: name of the model that training began with; see ``base_of``.
        tags: further tags.
        language: of the hub, as "en".
        license_: of the hub, as "apache-2.0".
    """
    tags = (*(getattr(model, "model_tags", None) or ()), *tags)
    return About(
        name=folder.resolve().name,
        base=base,
        adapter=hasattr(model, "peft_config"),
        datasets=datasets,
        tags=tuple(dict.fromkeys(tags)),
        language=language,
        license=license_,
    )


def write_card(folder: Path, run_folder: Path, about: About) -> None:
    """Write the card beside the weights.

    Args:
        folder: of the weights.
        run_folder: of the run that made them; need not hold a run.
        about: what its files do not say.
    """
    try:
        run = read_run(run_folder, (METRICS, ALARMS))
    except SetupError:  # a model can be saved without having been trained
        run = Run(run_folder, {}, (), (), (), ())
    with staged(folder / CARD) as file:
        file.write(visible(model_card(run, about)).encode())
