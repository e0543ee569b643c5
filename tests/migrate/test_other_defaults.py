"""What another tool does without being asked, and what its file says only by leaving it out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command
from tests.migrate.test_init import WHAT, bench, translated

__all__ = ["bench"]  # the fixture

SWIFT = "model: model\ndataset: a.jsonl\nmax_length: 512\n"
HANDBOOK = "model_name_or_path: m\nbeta: 0.05\neval_strategy: steps\n"
MIXTURE = """\
dataset_mixture:
  datasets:
    - {id: owner/rows, config: Preference, split: half, columns: [chosen, rejected], weight: 1.0}
    - {id: owner/other, columns: [chosen, rejected], weight: 0.5}
  test_split_size: 0.1
  seed: 0
"""
OF_MIXTURE = [
    {"path": "owner/rows", "subset": "Preference", "split": "half"},
    {"path": "owner/other", "weight": 0.5},
]

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "swift's margin of SimPO, its optimizer, rows that are too long": (
        f"rlhf_type: simpo\n{SWIFT}",
        {"simpo_gamma": 1.0, "weight_decay": 0.1, "adam_beta2": 0.95, "truncation": "drop"},
    ),
    "the same by the name of the loss": (
        f"rlhf_type: cpo\nloss_type: simpo\n{SWIFT}truncation_strategy: left",
        {"loss_type": "simpo", "simpo_gamma": 1.0, "truncation": "prompt_start"},
    ),
    "a margin that is given, of no other loss": (
        f"rlhf_type: cpo\n{SWIFT}weight_decay: 0",
        {"simpo_gamma": None, "weight_decay": 0.0},
    ),
    "swift evaluates as it saves": (
        f"rlhf_type: orpo\n{SWIFT}split_dataset_ratio: 0.1\nsave_steps: 50",
        {"eval_strategy": "steps", "eval_steps": 50},
    ),
    "unless it says when": (
        f"rlhf_type: orpo\n{SWIFT}split_dataset_ratio: 0.1\neval_strategy: epoch",
        {"eval_strategy": "epoch", "eval_steps": None},
    ),
    "or holds nothing out": (f"rlhf_type: orpo\n{SWIFT}", {"eval_strategy": None}),
    "Axolotl's share of a run": (
        "base_model: m\nrl: simpo\nnum_epochs: 2\nsaves_per_epoch: 2\nevals_per_epoch: 4\n"
        "val_set_size: 0.1",
        {"save_steps": 0.25, "eval_steps": 0.125, "eval_strategy": "steps"},
    ),
    "once an epoch of one": (
        "base_model: m\nrl: simpo\nsaves_per_epoch: 1\nevals_per_epoch: 1\nval_set_size: 0.1",
        {"save_strategy": "epoch", "eval_strategy": "epoch", "eval_steps": None},
    ),
    "Axolotl evaluates where it has steps": (
        "base_model: m\nrl: simpo\neval_steps: 7\nval_set_size: 0.1",
        {"eval_strategy": "steps", "eval_steps": 7},
    ),
    "Axolotl leaves out what is too long": ("base_model: m\nrl: dpo", {"truncation": "drop"}),
    "unless it cuts": (
        "base_model: m\nrl: dpo\nexcess_length_strategy: truncate",
        {"truncation": "completion_end"},
    ),
    "a handbook of DPO": (
        f"{HANDBOOK}dataset_mixer: {{owner/rows: 1.0}}\ndataset_splits: [train_x, test_x]",
        {
            **{"loss_type": "dpo", "dataset": ["owner/rows"], "dataset_split": "train_x"},
            **{"eval_dataset": ["owner/rows"], "eval_dataset_split": "test_x"},
        },
    ),
    "a handbook of ORPO is not known by its name": (
        f"{HANDBOOK}loss_type: apo_zero\n{MIXTURE}",
        {"loss_type": "apo_zero", "datasets": OF_MIXTURE, "eval_share": 0.1, "dataset": None},
    ),
    "a loss that CPO does not have": (f"{HANDBOOK}loss_type: [sigmoid, sft]", {"loss_type": "dpo"}),
    "a loss that both have": (f"{HANDBOOK}loss_type: hinge", {"loss_type": "hinge"}),
    "columns of Axolotl": (
        "base_model: m\nrl: dpo\ndatasets:\n  - path: owner/rows\n    type: chat_template.default\n"
        "    field_messages: talk\n    field_chosen: chosen\n    field_rejected: worse\n",
        {"datasets": [{"path": "owner/rows", "columns": {"prompt": "talk", "rejected": "worse"}}]},
    ),
    "columns of a type of its own": (
        "base_model: m\nrl: dpo\ndatasets:\n  - path: a.jsonl\n    ds_type: json\n"
        "    type: {field_prompt: question, field_chosen: good, field_rejected: bad}\n",
        {
            "datasets": [
                {
                    "path": "a.jsonl",
                    "columns": {"prompt": "question", "chosen": "good", "rejected": "bad"},
                }
            ]
        },
    ),
}


@pytest.mark.parametrize("case", RUNS)
def test_what_a_tool_does_by_itself_is_written_out(
    case: str, bench: Path, command: Command
) -> None:
    text, wanted = RUNS[case]
    found, _ = translated(command, "a.yaml", text)
    assert {name: found.get(name) for name in wanted} == wanted


@pytest.mark.parametrize("program", ["llamafactory-cli train", "python src/train_bash.py"])
def test_a_command_of_llama_factory_is_its_file(
    program: str, bench: Path, command: Command
) -> None:
    given = {
        **{"stage": "dpo", "model_name_or_path": "m", "finetuning_type": "lora", "lora_rank": "4"},
        **{"lora_target": "q_proj,v_proj", "pref_loss": "simpo", "simpo_gamma": "1.0"},
        **{"pref_beta": "2.5", "cutoff_len": "256", "learning_rate": "5e-6", "bf16": "False"},
    }
    flags = " \\\n    ".join(f"--{name} {value}" for name, value in given.items())
    by_flags, _ = translated(
        command, "run.sh", f"CUDA_VISIBLE_DEVICES=0 {program} \\\n    --do_train \\\n    {flags}\n"
    )
    lines = "\n".join(f"{name}: {value}" for name, value in given.items())
    by_file, _ = translated(command, "run.yaml", lines)
    assert by_flags == by_file
    assert by_flags["lora_target_modules"] == ["q_proj", "v_proj"]


@pytest.mark.parametrize("tool", ["base_model: m\nrl: dpo", "base_model: m\nrl: ipo"])
def test_a_loss_with_a_reference_has_no_nll_that_nobody_asked_for(
    tool: str, bench: Path, command: Command
) -> None:
    found, said = translated(command, "a.yaml", tool, *WHAT)
    assert found["loss_type"] in ("dpo", "dpo_ipo")
    assert "cpo_alpha" not in said
    assert "NLL" not in said


@pytest.mark.parametrize(
    ("text", "said_of_it"),
    [
        ("stage: dpo\nenable_thinking: false", 'enable_thinking="false": thoughts are trained'),
        ("rlhf_type: dpo\nmodel: m\ndataset_shuffle: false", 'dataset_shuffle="false": rows are'),
        ("base_model: m\nrl: dpo\nshuffle_merged_datasets: false", "rows are shuffled anew"),
        (
            "base_model: m\nrl: dpo\ndatasets: [{path: owner/rows, revision: abc}]",
            "revision=abc: a set of the hub is read whole, as it is today",
        ),
        (
            "loss_type: simpo\ndatasets: [{path: owner/rows, data_dir: part}]",
            "data_dir=part: a set of the hub is read whole, as it is today",
        ),
        (
            f"{HANDBOOK}dataset_mixer: {{o/r: 1.0}}\ndataset_splits: [train, a, b]",
            "dataset_splits=b: a run evaluates on one split of a set",
        ),
        (
            "model_name_or_path: m\ndataset_mixer: {o/r: 1.0}\ndataset_splits: [train, test]",
            "dataset_splits=test: without eval_strategy nothing reads it",
        ),
        (
            f"{HANDBOOK}dataset_mixture: {{datasets: [{{path: o/r}}]}}",
            "list its sets in datasets, each with path, subset, split and weight",
        ),
    ],
)
def test_what_would_be_another_run_is_said(
    text: str, said_of_it: str, bench: Path, command: Command
) -> None:
    found, said = translated(command, "a.yaml", text)
    assert said_of_it in said.partition("Not translated:")[2]
    assert ("owner/rows" in text) <= ("dataset" not in found)


def test_a_mapping_is_written_as_it_was(bench: Path, command: Command) -> None:
    """transformers completes such mappings in place when the result is tried."""
    text = "loss_type: simpo\nfsdp: full_shard\nfsdp_config: {transformer_layer_cls_to_wrap: [A]}"
    found, _ = translated(command, "a.yaml", text, *WHAT)
    assert found["fsdp_config"] == {"transformer_layer_cls_to_wrap": ["A"]}
