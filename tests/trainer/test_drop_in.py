"""The promise of compatibility: TRL's script runs with its import changed and nothing else."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint import CPOTrainer

SCRIPT = Path(__file__).parents[2] / "examples" / "train_cpo.py"
OURS = "from counterpoint import CPOConfig, CPOTrainer"
THEIRS = "from trl.experimental.cpo import CPOConfig, CPOTrainer"


@pytest.fixture(scope="module")
def trl() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's own
        return pytest.importorskip("trl.experimental.cpo", reason="TRL is not installed")


def run(text: str, output_dir: Path) -> Any:
    """Run a script's ``main`` as it stands."""
    names: dict[str, Any] = {"__name__": "script"}
    exec(compile(text, str(SCRIPT), "exec"), names)
    return names["main"](output_dir=str(output_dir))


def test_the_script_names_its_import_on_one_line_and_no_option_of_ours():
    text = SCRIPT.read_text(encoding="utf-8")
    assert text.count("counterpoint") == OURS.count("counterpoint") == 1
    given = text.split("CPOConfig(\n")[1].split(")\n")[0]
    assert [line.split("=")[0].strip() for line in given.split(",\n")[:-1]] == [
        "output_dir",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "logging_steps",
    ]


def test_trls_script_runs_with_only_its_import_changed(tmp_path: Path):
    names, changed = run(SCRIPT.read_text(encoding="utf-8"), tmp_path)
    assert changed == list(names)
    assert (tmp_path / "checkpoint-6" / "model.safetensors").is_file()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="TRL stops only without a GPU")
@pytest.mark.filterwarnings("ignore::FutureWarning")  # from transformers to TRL
def test_trl_itself_stops_there_without_a_gpu(trl, tmp_path: Path):
    script_for_trl = SCRIPT.read_text(encoding="utf-8").replace(OURS, THEIRS)
    with pytest.raises(ValueError, match="Your setup doesn't support bf16/gpu"):
        run(script_for_trl, tmp_path)


def test_the_constructor_takes_trls_arguments_in_trls_order(trl):
    own = ["constraint_datasets"]  # after all of TRL's
    theirs = list(inspect.signature(trl.CPOTrainer.__init__).parameters)[1:]
    assert list(inspect.signature(CPOTrainer).parameters) == theirs + own
