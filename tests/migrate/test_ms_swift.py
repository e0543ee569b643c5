"""Commands and files of ms-swift as options of a run here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.migrate.test_init import WHAT, translated

COMMAND = """\
CUDA_VISIBLE_DEVICES=0 \\
swift rlhf \\
    --rlhf_type simpo \\
    --model model \\
    --tuner_type lora \\
    --dataset owner/pairs:default#500 local.jsonl \\
    --columns '{"question": "query", "good": "response", "bad": "rejected_response"}' \\
    --split_dataset_ratio 0.05 \\
    --interleave_prob 0.7 0.3 \\
    --torch_dtype float32 \\
    --num_train_epochs 1 \\
    --per_device_train_batch_size 2 \\
    --system 'Say "# no" if unsure' \\
    --learning_rate 1e-6 \\
    --lora_rank 4 \\
    --target_modules all-linear \\
    --attn_impl sdpa \\
    --max_length 512 \\
    --output_dir out  # where it's kept
"""


def test_a_command_keeps_its_meaning(workshop: Path, command: Command) -> None:
    found, said = translated(command, "run.sh", COMMAND)
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert found == {
        "model": "model",
        "datasets": [
            {"path": "owner/pairs", "subset": "default", "columns": columns, "rows": 500},
            {"path": "local.jsonl", "columns": columns},
        ],
        "eval_share": 0.05,
        "attn_implementation": "sdpa",
        "lora_r": 4,
        "lora_alpha": 32,  # its defaults, from here on
        "lora_dropout": 0.05,
        "loss_type": "simpo",
        "beta": 2.0,
        "simpo_gamma": 1.0,
        "cpo_alpha": 1.0,
        "max_length": 512,
        "truncation": "drop",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "num_train_epochs": 1,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "weight_decay": 0.1,
        "adam_beta2": 0.95,
        "eval_strategy": "steps",
        "eval_steps": 500,
        "output_dir": "out",
    }
    mind, _, left = said.partition("Not translated:")
    assert "draws the rows behind #" in mind
    assert "looks for names on ModelScope" in mind
    assert "--interleave_prob" in left
    assert "sets are not drawn by chance" in left


FILES = {
    "CPO, all weights": (
        "rlhf_type: cpo\nmodel: model\ntrain_type: full\ndataset: [a.jsonl]\nuse_hf: true\n",
        {"loss_type": "sigmoid", "beta": 0.1, "learning_rate": 1e-5, "dataset": ["a.jsonl"]},
    ),
    "ORPO": (
        "rlhf_type: orpo\nmodel: model\ndataset: a.jsonl#9\nsplit_dataset_ratio: 0\n",
        {"loss_type": "orpo", "lora_r": 8, "datasets": [{"path": "a.jsonl", "rows": 9}]},
    ),
    "DPO": (
        "rlhf_type: dpo\nmodel: model\ndataset: a.jsonl\nval_dataset: b.jsonl\nrpo_alpha: 1\n",
        {
            **{"dataset": ["a.jsonl"], "eval_dataset": ["b.jsonl"]},
            **{"loss_type": "dpo", "rpo_alpha": 1.0, "beta": 0.1},
        },
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_known_by_its_kind(workshop: Path, command: Command, name: str) -> None:
    text, wanted = FILES[name]
    found, _ = translated(command, "swift.yaml", text)
    assert {key: found.get(key) for key in wanted} == wanted


@pytest.mark.parametrize("name", FILES)
def test_the_doctor_finds_no_error_in_it(workshop: Path, command: Command, name: str) -> None:
    Path("swift.yaml").write_text(FILES[name][0])
    assert command("init", "--from", "swift.yaml", *WHAT, "--out", "run.yaml").code == 0
    answer = command("doctor", "run.yaml", "--use_cpu", "--eval_dataset", "pairs.jsonl", "--json")
    report = json.loads(answer.out)
    assert [one for one in report["findings"] if one["severity"] == "error"] == []


def test_what_trains_on_no_pairs_is_refused(workshop: Path, command: Command) -> None:
    Path("swift.yaml").write_text("rlhf_type: grpo\nmodel: model\n")
    said = command("init", "--from", "swift.yaml")
    assert (said.code, said.err[:20]) == (2, "counterpoint: CP102 ")
    assert "rlhf_type: cpo or simpo or orpo" in said.err
