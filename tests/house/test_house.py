"""The house rules that a machine can check: one truth, written once, and nothing unnamed."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import counterpoint
from counterpoint import CPOConfig
from counterpoint.config import REFUSED
from counterpoint.config.pair_options import PairOptions
from counterpoint.config.run_control import RunControl
from counterpoint.doctor.table import TABLE, TABLE_ZH
from counterpoint.errors import CODES, CounterpointError

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "counterpoint"
MODULES = sorted(SOURCE.rglob("*.py"))
RAISED = re.compile(r'"(CP\d{3})"')


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def documented(tree: ast.Module) -> list[ast.AST]:
    """The module and its public classes, functions and methods."""
    found: list[ast.AST] = [tree]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            found.append(node)
            found += [
                inner
                for inner in getattr(node, "body", [])
                if isinstance(node, ast.ClassDef)
                and isinstance(inner, ast.FunctionDef)
                and not inner.name.startswith("_")
            ]
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_everything_public_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = [
        getattr(node, "name", "the module")
        for node in documented(tree)
        if len(ast.get_docstring(node) or "") < 10
    ]
    assert silent == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_is_named_for_its_one_idea(path: Path) -> None:
    assert path.stem not in ("utils", "util", "helpers", "helper", "common", "misc", "core", "base")


def test_a_name_stands_for_one_thing_in_the_whole_package() -> None:
    """Classes and functions of modules; a function of ``cli`` is called as its command is."""
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            name = getattr(node, "name", "_")
            if not name.startswith("_") and name_of(path) != f"cli/{name}.py":
                places.setdefault(name, []).append(name_of(path))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("name", counterpoint.__all__)
def test_a_public_name_exists_where_the_package_says(name: str) -> None:
    thing = getattr(counterpoint, name)
    if name != "__version__":
        assert (inspect.getdoc(thing) or "")[:1].isupper()
        assert importlib.import_module(thing.__module__).__dict__[name] is thing


def test_the_public_names_are_these_and_are_listed() -> None:
    assert sorted(counterpoint.__all__) == [
        "CPOConfig",
        "CPOTrainer",
        "ConfigError",
        "Constraint",
        "CounterpointError",
        "DataError",
        "ModelError",
        "NonFiniteError",
        "PairRules",
        "SetupError",
        "TrainingDisplay",
        "TrainingError",
        "__version__",
        "pairs_from_scored",
        "show",
    ]
    assert dir(counterpoint) == sorted(counterpoint.__all__)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        _ = counterpoint.Trainer


def test_importing_the_package_imports_no_torch() -> None:
    program = "import sys, counterpoint; print('torch' in sys.modules, counterpoint.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"False {counterpoint.__version__}\n"


def test_every_module_that_declares_shapes_has_them_checked(request: pytest.FixtureRequest) -> None:
    checked = request.config.getini("addopts")
    (hooked,) = [word.partition("=")[2].split(",") for word in checked if "jaxtyping" in word]
    declaring = {
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        for path in MODULES
        if "from jaxtyping import" in path.read_text(encoding="utf-8")
    }
    assert declaring
    inside = {
        name: [one for one in hooked if f"{name}.".startswith(f"{one}.")] for name in declaring
    }
    assert [name for name, found in inside.items() if not found] == []


# Errors


def test_every_code_is_raised_somewhere_and_every_raised_code_is_listed() -> None:
    raised = {
        code
        for path in MODULES
        if path.name != "errors.py"
        for code in RAISED.findall(path.read_text(encoding="utf-8"))
    }
    assert raised == set(CODES)


def test_codes_rise_and_have_one_meaning_each() -> None:
    assert list(CODES) == sorted(CODES)
    assert len(set(CODES.values())) == len(CODES)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_code_belongs_to_the_class_it_is_raised_with(path: Path) -> None:
    classes = {
        "ConfigError": "1",
        "DataError": "2",
        "ModelError": "3",
        "NonFiniteError": "4",
        "TrainingError": "4",
        "SetupError": "5",
    }
    tree = ast.parse(path.read_text(encoding="utf-8"))
    mixed = [
        f"line {node.lineno}: {node.func.id} {node.args[0].value}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in classes
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and str(node.args[0].value)[2] != classes[node.func.id]
    ]
    assert mixed == []


def test_an_unlisted_code_cannot_be_raised() -> None:
    with pytest.raises(KeyError, match="CP999"):
        CounterpointError("CP999", "no")


def test_an_error_survives_the_trip_from_a_worker_process() -> None:
    import pickle

    error = counterpoint.DataError("CP203", "row 7: empty.")
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.code, str(back)) == (type(error), "CP203", "CP203 row 7: empty.")


# Options

OWN_OPTIONS: dict[str, Any] = {
    # of TrainingArguments, with another default
    "learning_rate": 1e-6,
    "logging_steps": 10,
    "gradient_checkpointing": True,
    "bf16": None,
    "logging_nan_inf_filter": False,
    # of the loss, beyond TRL's
    "use_weighting": False,
    # of the run's end
    "early_stopping_patience": None,
    "early_stopping_threshold": 0.0,
    "ld_alpha": None,
    "arpo_scale": 0.9,
    "arpo_eta": 0.4,
    # TRL's
    "max_length": 1024,
    "max_completion_length": None,
    "beta": 0.1,
    "label_smoothing": 0.0,
    "loss_type": "sigmoid",
    "disable_dropout": True,
    "cpo_alpha": 1.0,
    "simpo_gamma": 0.5,
    "alpha": 0.0,
    "generate_during_eval": False,
    "is_encoder_decoder": None,
    "model_init_kwargs": None,
    "trust_remote_code": False,
    "dataset_num_proc": None,
    # Counterpoint's
    "reference": "initial",
    "rpo_alpha": None,
    "dpop_lambda": 50.0,
    "gamma_beta_ratio": None,
    "nll_reduction": "token_mean",
    "truncation": "completion_end",
    "train_turns": "assistant",
    "invalid_rows": "raise",
    "source_lang": None,
    "target_lang": None,
    "image_folder": None,
    "allow_remote_images": False,
    "max_image_pixels": 67_108_864,
    "picture_cache_gb": 0.0,
    "nonfinite": "raise",
    "allow_pickle": False,
    "layout": "auto",
    "max_micro_batch_tokens": None,
    "pairs_per_step": None,
    "fsdp_replicas": None,
    "checkpointing_share": 1.0,
    "activation_offload": False,
    "optimizer_offload": False,
    "stream_shards": 1,
    "stochastic_rounding": False,
    "load_in_4bit": False,
    "load_in_8bit": False,
    "eval_samples": 8,
    "eval_sample_tokens": 128,
    "generation_num_beams": 1,
    "eval_sample_temperature": 0.0,
    "resume_anyway": False,
    "router_aux_loss_coef": None,
    "constraints": None,
    "constraint_calibration": 256,
    "constraint_normalization": False,
    "monitor_steps": 50,
    "on_alarm": "warn",
}
"""Frozen: a script that sets none of them computes the same in every release of a major version."""

COUNTERPOINTS_OWN = {
    "early_stopping_patience",
    "early_stopping_threshold",
    "use_weighting",
    "ld_alpha",
    "arpo_scale",
    "arpo_eta",
    "reference",
    "rpo_alpha",
    "dpop_lambda",
    "gamma_beta_ratio",
    "nll_reduction",
    "truncation",
    "train_turns",
    "invalid_rows",
    "source_lang",
    "target_lang",
    "image_folder",
    "allow_remote_images",
    "max_image_pixels",
    "picture_cache_gb",
    "nonfinite",
    "allow_pickle",
    "layout",
    "max_micro_batch_tokens",
    "pairs_per_step",
    "fsdp_replicas",
    "checkpointing_share",
    "activation_offload",
    "optimizer_offload",
    "stream_shards",
    "stochastic_rounding",
    "load_in_4bit",
    "load_in_8bit",
    "eval_samples",
    "eval_sample_tokens",
    "generation_num_beams",
    "eval_sample_temperature",
    "resume_anyway",
    "router_aux_loss_coef",
    "constraints",
    "constraint_calibration",
    "constraint_normalization",
    "monitor_steps",
    "on_alarm",
}

# TRL hides non-finite losses from the log; here they stop the run.
OTHER_DEFAULTS = {"logging_nan_inf_filter": (True, False)}


def default_of(config: type[Any], name: str) -> Any:
    field = {field.name: field for field in fields(config)}[name]
    return field.default if field.default_factory is MISSING else field.default_factory()


def own_names() -> set[str]:
    parts = (CPOConfig, PairOptions, RunControl)
    own = {name for part in parts for name in inspect.get_annotations(part)}
    return own & {field.name for field in fields(CPOConfig)}


def test_the_options_of_cpo_config_and_their_defaults_are_frozen() -> None:
    assert {name: default_of(CPOConfig, name) for name in own_names()} == OWN_OPTIONS


def test_every_option_has_a_sentence_of_help() -> None:
    own = own_names()
    helps = {f.name: f.metadata.get("help", "") for f in fields(CPOConfig) if f.name in own}
    assert [name for name, text in helps.items() if not re.match(r"[A-Z].*\.$", text)] == []


def test_every_refused_option_is_an_option_that_passes_by_default() -> None:
    for name, (passing, reason) in REFUSED.items():
        assert default_of(CPOConfig, name) in (passing, None), name
        assert reason[0].islower(), name
        assert not reason.endswith("."), name


def test_names_and_defaults_are_those_of_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    theirs = pytest.importorskip("trl.experimental.cpo", reason="TRL is not installed").CPOConfig
    ours = {field.name for field in fields(CPOConfig)}
    assert ours - {field.name for field in fields(theirs)} == COUNTERPOINTS_OWN
    assert {field.name for field in fields(theirs)} - ours == set()
    different = {
        name: (default_of(theirs, name), default_of(CPOConfig, name))
        for name in ours - COUNTERPOINTS_OWN
        if default_of(theirs, name) != default_of(CPOConfig, name)
    }
    assert different == OTHER_DEFAULTS


# Papers


def pinned(package: str) -> str:
    text = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{package}==(\S+)$", text, re.MULTILINE | re.IGNORECASE)
    assert found, f"{package} is not pinned"
    return found[1]


def test_the_generated_docs_are_what_the_code_says() -> None:
    version = metadata.version("transformers")
    if version != pinned("transformers"):
        pytest.skip(f"docs/options.md lists another transformers' options than {version}'s")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "generate_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), "run make docs"


def test_the_docs_list_every_code_and_every_option() -> None:
    listed = re.findall(r"^\| `(CP\d{3})`", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert listed == list(CODES)
    options = re.findall(
        r"^\| `(\w+)` \|", (ROOT / "docs" / "options.md").read_text(), re.MULTILINE
    )
    assert len(options) == len(set(options))
    assert {field.name for field in fields(CPOConfig) if field.init} <= set(options)


@pytest.mark.parametrize("page", ["diagnoses.md", "diagnoses.zh-CN.md"])
def test_the_docs_list_every_diagnosis(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(C[PWN]\d{3})`", text, re.MULTILINE)) == sorted(TABLE)


def test_every_diagnosis_that_is_written_in_code_is_in_both_tables() -> None:
    found = {
        code
        for path in MODULES
        for code in re.findall(r'"(C[WN]\d{3})"', path.read_text(encoding="utf-8"))
    }
    assert found == {code for code in TABLE if code[1] != "P"}
    assert set(TABLE_ZH) == set(TABLE)
    assert all(len({entry.title, entry.why, entry.do}) == 3 for entry in TABLE_ZH.values())


def test_the_version_is_the_newest_of_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[?v?(\d+\.\d+\.\d+\S*?)\]?(\s|$)", text, re.MULTILINE)
    assert newest, "CHANGELOG.md has no line such as '## 0.1.0'"
    assert newest[1] == counterpoint.__version__


def test_torch_is_pinned_at_the_version_of_the_benchmarks() -> None:
    assert pinned("torch") == "2.13.0"


def requirements() -> list[str]:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = list(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    for group in project["dependency-groups"].values():
        wanted += group
    return [re.split(r"[<>=!~ \[;]", line)[0] for line in wanted]


@pytest.mark.parametrize("package", sorted(set(requirements())))
def test_everything_that_is_required_is_pinned(package: str) -> None:
    assert re.fullmatch(r"\d+(\.\d+)*\S*", pinned(re.sub(r"[-_.]+", "[-_.]", package)))


MACHINE = re.compile(r"/(work|tmp|root|home|opt)/\w")


def committed_texts() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    kinds = (".py", ".md", ".toml", ".txt", ".yaml", ".yml", "")
    return [
        p for n in done.stdout.split("\0") if n and (p := ROOT / n).suffix in kinds and p.is_file()
    ]


def test_no_file_names_a_folder_of_the_machine_it_was_written_on() -> None:
    mine = Path(__file__)
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in committed_texts()
        if path != mine and (match := MACHINE.search(path.read_text(encoding="utf-8")))
    ]
    assert found == []
