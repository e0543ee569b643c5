"""The signatures that Counterpoint builds on in transformers and accelerate, written down.

``seams.json`` holds them for the oldest versions that are allowed and for those that are pinned, so
that a release which changes one is seen by its name. Recorded by ``make floors`` for the oldest,
and for the installed ones by

    python -m tests.house.seams
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel, Trainer
from transformers.trainer_callback import (
    CallbackHandler,
    ExportableState,
    TrainerControl,
    TrainerState,
)

from counterpoint import CPOTrainer
from counterpoint.trainer.transformers_seams import Seams

FILE = Path(__file__).with_name("seams.json")
FACE = Path(inspect.getfile(Seams)).with_name("face.py")

FACES: dict[str, type[Any]] = {
    "TrainerFace": Trainer,
    "Accelerator": Accelerator,
    "Handler": CallbackHandler,
    "State": TrainerState,
    "Control": TrainerControl,
}
"""Class of ``trainer/face.py`` -> whose face it is."""

Signatures = dict[str, str]


def faces() -> Iterator[tuple[type[Any], ast.ClassDef]]:
    """Each class that mypy is told of, as it is and as ``face.py`` has it."""
    for node in ast.parse(FACE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield FACES[node.name], node


def overridden() -> set[str]:
    """Methods of transformers' trainer that a class of ours has, too."""
    kinds = CPOTrainer.__mro__[: CPOTrainer.__mro__.index(Trainer)]
    ours = {name for kind in kinds for name in vars(kind)}
    return {name for name in ours if callable(getattr(Trainer, name, None))} - {"__doc__"}


def built_on() -> Iterator[tuple[type[Any], str]]:
    """Every method of theirs that is overridden, called or named."""
    yield from ((Trainer, name) for name in overridden())
    yield Trainer, "_get_output_dir"
    for kind, node in faces():
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and "property" not in map(
                ast.unparse, part.decorator_list
            ):
                yield kind, part.name
    yield PreTrainedModel, "_can_set_attn_implementation"
    yield ExportableState, "state"


def signature(method: Any) -> str:
    """Names, kinds and defaults of the parameters; annotations change with every release."""
    found = inspect.signature(method)
    plain = [one.replace(annotation=one.empty) for one in found.parameters.values()]
    return str(found.replace(parameters=plain, return_annotation=found.empty))


def installed() -> dict[str, Signatures]:
    """The signatures of what is installed, by package and version."""
    found: dict[str, Signatures] = {}
    for kind, name in built_on():
        package = kind.__module__.split(".")[0]
        of_package = found.setdefault(f"{package} {metadata.version(package)}", {})
        of_package[f"{kind.__name__}.{name}"] = signature(getattr(kind, name))
    return found


def recorded() -> dict[str, Signatures]:
    """What the file holds."""
    content: dict[str, Signatures] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def record() -> None:
    """Write those of the installed versions into the file, beside what it holds of others."""
    every = {**(recorded() if FILE.is_file() else {}), **installed()}
    FILE.write_text(json.dumps(every, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
