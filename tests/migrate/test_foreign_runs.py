"""Twelve runs of other tools, as their documentation spells the keys: translated, examined, tried.

What a file says of its data is translated or listed too: shares held out, first rows, several sets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from counterpoint.cli.own_data import train_rows
from counterpoint.options.settings import read_request
from tests.cli.conftest import PAIRS, Command, write_pairs
from tests.migrate.test_init import WHAT, translated

LF_SIMPO = """\
### model
model_name_or_path: model
trust_remote_code: true
### method
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
pref_beta: 2.5
pref_loss: simpo
simpo_gamma: 1.0
### dataset
dataset: dpo_en_demo
template: llama3
cutoff_len: 256
max_samples: 10
overwrite_cache: true
preprocessing_num_workers: 1
dataloader_num_workers: 0
### output
output_dir: out
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: false
### eval
val_size: 0.2
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""
LF = "model_name_or_path: model\nstage: dpo\ndo_train: true\noutput_dir: out\nreport_to: none\n"
AX = "base_model: model\noutput_dir: out\nmicro_batch_size: 2\ngradient_accumulation_steps: 4\n"
AX_SETS = (
    "datasets:\n  - path: a.jsonl\n    ds_type: json\n    split: train\n    type: chatml.intel\n"
)
TRL = "model_name_or_path: model\noutput_dir: out\nreport_to: none\nlearning_rate: 5.0e-7\n"
SCRIPT = """\
from datasets import load_dataset
from trl.experimental.{kind} import {Kind}Config, {Kind}Trainer

rows = load_dataset("json", data_files="a.jsonl", split="train")
args = {Kind}Config(output_dir="out", beta=0.1, learning_rate=8e-6, max_length=256)
trainer = {Kind}Trainer("model", args, train_dataset=rows)
trainer.train()
"""

RUNS: dict[str, tuple[str, str]] = {
    "LLaMA-Factory, SimPO, LoRA": ("lf-simpo.yaml", LF_SIMPO),
    "LLaMA-Factory, ORPO, full": (
        "lf-orpo.yaml",
        f"{LF}finetuning_type: full\npref_loss: orpo\npref_beta: 0.1\ndataset: a\ntemplate: qwen\n"
        "cutoff_len: 256\nval_size: 3\nlearning_rate: 5.0e-6\nlr_scheduler_type: cosine\n",
    ),
    "LLaMA-Factory, DPO, LoRA": (
        "lf-dpo.yaml",
        f"{LF}finetuning_type: lora\nlora_rank: 4\nlora_target: q_proj,v_proj\npref_loss: sigmoid\n"
        "pref_ftx: 0.0\npref_beta: 0.1\ndataset: a,b\nmix_strategy: interleave_under\n"
        "interleave_probs: 0.7,0.3\ncutoff_len: 256\nlearning_rate: 5.0e-6\n",
    ),
    "LLaMA-Factory, DPO, full": (
        "lf-full.yaml",
        f"{LF}finetuning_type: full\npref_loss: sigmoid\ndataset: a\nmax_samples: 8\n"
        "cutoff_len: 256\nlearning_rate: 5.0e-7\nval_size: 0.25\neval_strategy: epoch\n",
    ),
    "Axolotl, SimPO, LoRA": (
        "ax-simpo.yaml",
        f"{AX}rl: simpo\nrl_beta: 2.0\nsimpo_gamma: 1.0\nadapter: lora\nlora_r: 8\nlora_alpha: 16\n"
        f"lora_dropout: 0.05\nlora_target_linear: true\nsequence_len: 256\nval_set_size: 0.2\n"
        f"{AX_SETS}learning_rate: 2e-6\nlr_scheduler: cosine\nnum_epochs: 1\n",
    ),
    "Axolotl, ORPO, full": (
        "ax-orpo.yaml",
        f"{AX}rl: orpo\norpo_alpha: 0.1\nsequence_len: 256\nval_set_size: 0.0\n"
        f"{AX_SETS}learning_rate: 8e-6\nremove_unused_columns: false\nchat_template: chatml\n",
    ),
    "Axolotl, DPO, LoRA": (
        "ax-dpo.yaml",
        f"{AX}rl: dpo\nadapter: lora\nlora_r: 8\nlora_alpha: 16\nlora_target_linear: true\n"
        f"sequence_len: 256\nval_set_size: 5\n{AX_SETS}learning_rate: 5e-7\n",
    ),
    "Axolotl, DPO, full": (
        "ax-full.yaml",
        f"{AX}rl: dpo\nrl_beta: 0.1\nsequence_len: 256\n{AX_SETS}learning_rate: 5e-7\n"
        "optimizer: adamw_torch\ngradient_checkpointing: true\nflash_attention: false\n",
    ),
    "TRL, CPO, LoRA": (
        "trl-cpo.yaml",
        f"{TRL}loss_type: sigmoid\nbeta: 0.1\nuse_peft: true\nlora_r: 8\nlora_alpha: 16\n"
        "datasets:\n  - path: json\n    data_files: [a.jsonl]\ntest_split_size: 0.25\n",
    ),
    "TRL, SimPO by the handbook": (
        "handbook.yaml",
        f"{TRL}beta: 2.5\ngamma_beta_ratio: 0.55\nmax_length: 256\n"
        "dataset_mixer: {a.jsonl: 1.0, b.jsonl: 1.0}\n",
    ),
    "TRL, ORPO": ("orpo.py", SCRIPT.format(kind="orpo", Kind="ORPO")),
    "TRL, CPO": ("cpo.py", SCRIPT.format(kind="cpo", Kind="CPO")),
}


@pytest.fixture
def two_files(workshop: Path) -> Path:
    write_pairs(Path("a.jsonl"), PAIRS[:8])
    write_pairs(Path("b.jsonl"), PAIRS[8:])
    return workshop


def test_there_are_twelve() -> None:
    assert len(RUNS) == 12


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_another_tool_is_translated_and_has_no_error(
    two_files: Path, command: Command, name: str
) -> None:
    file, text = RUNS[name]
    Path(file).write_text(text, encoding="utf-8")
    assert command("init", "--from", file, *WHAT, "--out", "run.yaml").code == 0
    answer = command("doctor", "run.yaml", "--use_cpu", "--overwrite_output_dir", "--json")
    report = json.loads(answer.out)
    assert [one for one in report["findings"] if one["severity"] == "error"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_another_tool_passes_a_smoke_run(
    two_files: Path, command: Command, name: str
) -> None:
    file, text = RUNS[name]
    Path(file).write_text(text, encoding="utf-8")
    assert command("init", "--from", file, *WHAT, "--out", "run.yaml").code == 0
    answer = command("smoke", "run.yaml", "--use_cpu", "--overwrite_output_dir")
    assert answer.code == 0, answer


DATA: dict[str, tuple[dict[str, Any], str]] = {
    "LLaMA-Factory, SimPO, LoRA": (
        {"max_rows": 10, "eval_share": 0.2, "eval_strategy": "steps"},
        'dataset="dpo_en_demo": it is a name in LLaMA-Factory\'s dataset_info.json',
    ),
    "LLaMA-Factory, ORPO, full": (
        {"eval_share": None},
        'val_size="3": eval_share is a share of the rows',
    ),
    "LLaMA-Factory, DPO, LoRA": (
        {"datasets": None, "eval_share": None},
        'interleave_probs="0.7,0.3": sets are not drawn by chance',
    ),
    "LLaMA-Factory, DPO, full": ({"max_rows": 8, "eval_share": 0.25}, ""),
    "Axolotl, SimPO, LoRA": ({"eval_share": 0.2}, ""),
    "Axolotl, ORPO, full": ({"eval_share": None}, ""),
    "Axolotl, DPO, LoRA": ({"eval_share": None}, 'val_set_size="5": eval_share is a share'),
    "TRL, CPO, LoRA": ({"dataset": ["a.jsonl"], "eval_share": 0.25}, ""),
    "TRL, SimPO by the handbook": ({"dataset": ["a.jsonl", "b.jsonl"]}, ""),
}


@pytest.mark.parametrize("name", DATA)
def test_what_a_file_says_of_its_data_is_an_option_or_listed(
    two_files: Path, command: Command, name: str
) -> None:
    wanted, reason = DATA[name]
    found, said = translated(command, *RUNS[name])
    assert {key: found.get(key) for key in wanted} == wanted
    assert reason in said.partition("Not translated:")[2]


def test_sets_of_the_hub_and_files_become_one_mixture(two_files: Path, command: Command) -> None:
    text = (
        f"{AX}rl: orpo\nlearning_rate: 8e-6\ndatasets:\n  - path: a.jsonl\n    ds_type: json\n"
        "  - path: owner/rows\n    name: de\n    split: half\n  - path: folder\n    split: train\n"
    )
    found, _ = translated(command, "ax.yaml", text)
    assert found["datasets"] == [
        {"path": "a.jsonl"},
        {"path": "owner/rows", "subset": "de", "split": "half"},
        {"path": "folder"},
    ]
    assert "dataset" not in found
    replaced, _ = translated(command, "ax.yaml", text, "--dataset", "b.jsonl")
    assert replaced["dataset"] == ["b.jsonl"]
    assert "datasets" not in replaced


def test_the_files_of_a_handbook_are_read_together(two_files: Path, command: Command) -> None:
    file, text = RUNS["TRL, SimPO by the handbook"]
    Path(file).write_text(text, encoding="utf-8")
    assert command("init", "--from", file, "--out", "run.yaml").code == 0
    assert yaml.safe_load(Path("run.yaml").read_text())["dataset"] == ["a.jsonl", "b.jsonl"]
    request = read_request(["run.yaml", "--use_cpu"])
    assert len(train_rows(request.run, request.config)) == len(PAIRS)
