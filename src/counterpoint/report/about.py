"""What a run's files do not say of its model: its base's name, and where the data came from.

Not here: what the card says (``card``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.model_seams import loaded_from, merged_from
from counterpoint.report.recipe import hub_id

_HUB_FILE = re.compile(r"hf://datasets/([^/@]+/[^/@]+)@")


@dataclass(frozen=True, slots=True)
class About:
    """What a run's files do not say of its model.

    Args:
        name: what the model is to be called.
        base: hub id or name of the model it was made from; "" where that is not known.
        adapter: whether the weights are an adapter's.
        datasets: hub ids of the data.
        tags: further tags.
        language: of the hub, as "en".
        license: of the hub, as "apache-2.0".
        task: of the hub: what the model is called with, and what it writes.
    """

    name: str
    base: str = ""
    adapter: bool = False
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    language: str = ""
    license: str = ""
    task: str = "text-generation"


def hub_datasets(dataset: Any) -> tuple[str, ...]:
    """The hub ids of a data set, as far as it knows that it came from there.

    Args:
        dataset: raw rows, several sets of them, a dict of named sets, or None.
    """
    several = [part.data for part in getattr(dataset, "parts", ())]  # of a mixture
    if isinstance(dataset, Mapping):
        several = [*dataset.values()]
    if several:
        return tuple(dict.fromkeys(one for each in several for one in hub_datasets(each)))
    files = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    return tuple(dict.fromkeys(found[1] for file in files if (found := _HUB_FILE.match(file))))


def base_name(model: Any) -> str:
    """The hub id of what a model was loaded from, or the bare name of its folder; "" for neither.

    Args:
        model: with a ``config``, or None.
    """
    name = loaded_from(model)
    if merged_from(model):  # in the run's own folder, perhaps not there yet
        return Path(name).name
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
        base: name of the model that training began with; see ``base_name``.
        tags: further tags.
        language: of the hub, as "en".
        license_: of the hub, as "apache-2.0".
    """
    encodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    tags = (*(getattr(model, "model_tags", None) or ()), *tags)
    return About(
        name=folder.resolve().name,
        base=base,
        adapter=hasattr(model, "peft_config"),
        task="text2text-generation" if encodes else "text-generation",
        datasets=datasets,
        tags=tuple(dict.fromkeys(tags)),
        language=language,
        license=license_,
    )
