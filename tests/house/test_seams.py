"""What transformers and accelerate call private is named in two files, and is what was recorded."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from transformers import Trainer
from transformers.trainer_callback import TrainerControl, TrainerState

from counterpoint import CPOTrainer
from counterpoint.trainer.transformers_seams import Seams
from tests.house.seams import FACES, faces, installed, recorded

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "counterpoint"
SEAMS = {"trainer/transformers_seams.py", "model_seams.py"}

OTHERS = [
    path
    for path in sorted(SOURCE.rglob("*.py"))
    if path.relative_to(SOURCE).as_posix() not in SEAMS
]
OURS = [
    kind for kind in CPOTrainer.__mro__[: CPOTrainer.__mro__.index(Trainer)] if kind is not Seams
]
OF_TRAINERS = {Path(inspect.getfile(kind)).relative_to(SOURCE).as_posix() for kind in OURS}

MODULES = (
    "transformers.configuration_utils",
    "transformers.generation.utils",
    "transformers.modeling_utils",
    "transformers.tokenization_utils_base",
    "transformers.trainer",
    "transformers.trainer_callback",
    "transformers.training_args",
    "transformers.utils.generic",
    "accelerate.accelerator",
    "accelerate.state",
    "peft.peft_model",
    "peft.tuners.tuners_utils",
)
PRIVATE = re.compile(r"_[a-z]\w*")


@cache
def theirs(modules: tuple[str, ...] = MODULES) -> frozenset[str]:
    """Names that begin with an underscore, of attributes and methods in some of their modules."""
    found: set[str] = set()
    for module in modules:
        tree = ast.parse(inspect.getsource(import_module(module)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.FunctionDef):
                found.add(node.name)
    return frozenset(name for name in found if PRIVATE.fullmatch(name))


OF_NAMED_TUPLES = {"_replace", "_asdict"}
OF_TORCH = {"_parameters"}


def used(path: Path) -> Iterator[str]:
    """Private names of theirs that a file reads of something else than itself, or as text."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            name = node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value
        elif isinstance(node, ast.ImportFrom):
            yield from (a.name for a in node.names if f"{node.module}".startswith("transformers"))
            continue
        else:
            continue
        if name in theirs() and name not in own | OF_NAMED_TUPLES | OF_TORCH:
            yield name


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_a_private_name_of_transformers_or_accelerate_is_in_the_seams_alone(path: Path) -> None:
    assert [name for name in used(path) if PRIVATE.fullmatch(name)] == []


def of_itself(path: Path) -> set[str]:
    """Private names of transformers' trainer that a file defines, or reads of ``self``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    names |= {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and ast.unparse(n.value) in ("self", "super()", "cls")
    }
    return names & theirs(("transformers.trainer",))


@pytest.mark.parametrize("name", sorted(OF_TRAINERS))
def test_a_trainer_of_ours_neither_overrides_nor_reads_one(name: str) -> None:
    assert of_itself(SOURCE / name) == set()


def test_private_names_are_found_where_there_are_some() -> None:
    """The two tests above can fail."""
    names = of_itself(SOURCE / "trainer/transformers_seams.py")
    assert {"_get_grad_norm", "_save", "_tr_loss"} <= names
    names = {*used(SOURCE / "model_seams.py")}
    assert {"_attn_implementation", "_name_or_path", "_original_forward"} <= names


def test_private_attributes_are_still_there() -> None:
    held = {"_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_train_batch_size"}
    assert held <= theirs(("transformers.trainer",))
    assert {"_name_or_path"} <= theirs(("transformers.configuration_utils",))
    assert {"_original_forward"} <= theirs(("accelerate.accelerator",))


def versions() -> dict[str, dict[str, str]]:
    """The oldest version allowed and the pinned one, by package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors = dict(one.split(">=") for one in project["dependencies"] if ">=" in one)
    pins = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8")
    return {
        name: {
            "floor": floors[name],
            "pin": re.findall(rf"^{name}==(\S+)$", pins, re.MULTILINE)[0],
        }
        for name in ("transformers", "accelerate")
    }


def of_release(package: str, version: str) -> dict[str, str]:
    """What was recorded of a release; of one that is named by two numbers, of any fix to it."""
    found = [v for k, v in recorded().items() if f"{k}.".startswith(f"{package} {version}.")]
    assert len(found) == 1, f"{package} {version} was not recorded: see tests/house/seams.py"
    return found[0]


@pytest.mark.parametrize("package", ["transformers", "accelerate"])
def test_the_oldest_and_the_pinned_version_are_recorded_and_agree_on_what_is_private(
    package: str,
) -> None:
    oldest, pinned = (of_release(package, versions()[package][way]) for way in ("floor", "pin"))
    assert oldest.keys() == pinned.keys()
    private = {name for name in pinned if "._" in name and "__init__" not in name}
    assert {n: oldest[n] for n in private} == {n: pinned[n] for n in private}


def test_what_is_installed_has_the_signatures_that_were_recorded() -> None:
    known = recorded()
    for release, signatures in installed().items():
        package = release.split()[0]
        # another release than those two may be installed, but must look like one of them
        same = (
            [known[release]]
            if release in known
            else [of for name, of in known.items() if name.split()[0] == package]
        )
        assert signatures in same


def test_the_face_of_the_trainer_names_what_is_there() -> None:
    assert {node.name for _, node in faces()} == set(FACES)
    source = inspect.getsource(Trainer)
    for kind, node in faces():
        names = {
            part.target.id
            for part in node.body
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
        }
        if kind in (TrainerState, TrainerControl):
            assert names <= {field.name for field in fields(kind)}
        elif kind is Trainer:
            assert {name for name in names if f"self.{name}" not in source} == set()
