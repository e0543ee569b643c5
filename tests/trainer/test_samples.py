"""``generate_during_eval``: what a run writes on the way, and that it changes nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset

from counterpoint import ConfigError, CPOConfig, CPOTrainer
from counterpoint.runlog import read_run

TEXT = [
    {"prompt": f"What is {i} and {i}?", "chosen": f" It is {2 * i}.", "rejected": f" Maybe {i}?"}
    for i in range(12)
]
WRITING = {"generate_during_eval": True, "eval_sample_tokens": 6, "eval_samples": 3}


@pytest.fixture
def run(models, chatml_tokenizer, tmp_path: Path):
    """Train a small model in a folder; options and arguments by keyword."""

    def make(folder: str = "run", model=None, resume=None, options=None, **arguments) -> CPOTrainer:
        defaults: dict[str, Any] = {
            "output_dir": str(tmp_path / folder),
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "max_steps": 4,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        trainer = CPOTrainer(
            model=models("qwen2") if model is None else model,
            args=CPOConfig(**{**defaults, **(options or {})}),
            **{
                "processing_class": chatml_tokenizer,
                "train_dataset": Dataset.from_list(TEXT),
                "eval_dataset": Dataset.from_list(TEXT),
                **arguments,
            },
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return make


def samples(folder: Path) -> list[dict[str, Any]]:
    return [dict(line) for line in read_run(folder).samples]


def test_a_run_that_writes_trains_the_weights_of_one_that_does_not(run, models):
    """Bit for bit, with dropout on and texts sampled: both draw random numbers."""
    options = {"disable_dropout": False, "eval_sample_temperature": 1.0, **WRITING}
    dropout = {"resid_pdrop": 0.2, "attn_pdrop": 0.2}
    writes = run("writes", model=models("gpt2", **dropout), options=options)
    plain = run("plain", model=models("gpt2", **dropout), options={"disable_dropout": False})
    for one, other in zip(writes.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)
    losses = [
        [(x["step"], x.get("loss"), x.get("eval_loss")) for x in t.state.log_history if x["step"]]
        for t in (writes, plain)
    ]
    assert losses[0] == losses[1]


def test_what_is_written_before_the_first_step_is_said(run, caplog):
    run(options=WRITING)
    said = [record.getMessage() for record in caplog.records]
    assert [text for text in said if text.startswith("writing samples before the first step")]


def test_the_same_prompts_are_written_to_before_and_at_each_evaluation(run, tmp_path):
    run(options=WRITING)
    found = samples(tmp_path / "run")
    assert [line["step"] for line in found] == [0] * 3 + [2] * 3 + [4] * 3
    by_step = {step: [x["prompt"] for x in found if x["step"] == step] for step in (0, 2, 4)}
    assert by_step[0] == by_step[2] == by_step[4] == [TEXT[n]["prompt"] for n in (0, 4, 8)]
    assert {line["reference"] for line in found} == {TEXT[n]["chosen"] for n in (0, 4, 8)}
    assert all(
        set(line)
        == {"step", "set", "kind", "prompt", "completion", "reference", "tokens", "ended"}
        | {"repetition", "time"}
        for line in found
    )
    texts = {step: [x["completion"] for x in found if x["step"] == step] for step in (0, 4)}
    assert texts[0] != texts[4]


def test_what_the_texts_are_like_is_among_the_metrics(run, tmp_path):
    run(options=WRITING)
    lines = [x for x in read_run(tmp_path / "run").metrics if "eval_samples/repetition" in x]
    assert [line["step"] for line in lines] == [0, 2, 4]
    found = [x for x in samples(tmp_path / "run") if x["step"] == 4]
    mean = sum(line["repetition"] for line in found) / 3
    assert lines[-1]["eval_samples/repetition"] == pytest.approx(mean)
    assert lines[-1]["eval_samples/length"] == pytest.approx(sum(x["tokens"] for x in found) / 3)
    assert "eval_loss" in lines[-1]


def test_named_sets_are_written_to_apart_and_samples_too(run, tmp_path):
    sets = {"easy": TEXT[:4], "hard": TEXT[4:]}
    run(options={**WRITING, "eval_sample_temperature": 1.0}, eval_dataset=sets)
    found = samples(tmp_path / "run")
    assert {(x["set"], x["kind"]) for x in found} == {
        (name, kind) for name in ("eval_easy", "eval_hard") for kind in ("greedy", "sampled")
    }
    names = {name for line in read_run(tmp_path / "run").metrics for name in line}
    assert {"eval_easy_samples/length", "eval_hard_samples/sampled_length"} <= names


def test_a_run_that_goes_on_does_not_begin_again(run, models, tmp_path):
    options = {**WRITING, "save_strategy": "steps", "save_steps": 2}
    run(options=options)
    checkpoint = tmp_path / "run" / "checkpoint-2"
    run("run", model=models("qwen2", seed=9), options=options, resume=str(checkpoint))
    steps = [x["step"] for x in samples(tmp_path / "run")]
    assert (steps.count(0), steps.count(4)) == (3, 3)


def test_an_evaluation_at_the_start_writes_once(run, tmp_path):
    run(options={**WRITING, "eval_on_start": True})
    assert [x["step"] for x in samples(tmp_path / "run")].count(0) == 3


def test_a_streamed_set_is_written_to_by_its_first_prompts_and_counted_once(run, tmp_path):
    run(options=WRITING, eval_dataset=Dataset.from_list(TEXT).to_iterable_dataset())
    assert [x["prompt"] for x in samples(tmp_path / "run")][:3] == [
        row["prompt"] for row in TEXT[:3]
    ]
    data = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert data["eval"]["rows"] == len(TEXT)


def test_an_adapter_under_checkpointed_activations_writes_and_learns(run, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    trainer = run(options={**WRITING, "gradient_checkpointing": True}, peft_config=config)
    moved = [p for n, p in trainer.model.named_parameters() if "lora_B" in n]
    assert all(p.abs().sum() > 0 for p in moved)
    assert len(samples(tmp_path / "run")) == 9


def test_nothing_is_written_unless_asked(run, tmp_path):
    run()
    assert samples(tmp_path / "run") == []


@pytest.mark.parametrize("name", ["eval_samples", "eval_sample_tokens", "eval_sample_temperature"])
def test_options_of_samples_alone_are_refused(name):
    with pytest.raises(ConfigError, match=f"CP104 {name}=3 would do nothing"):
        CPOConfig(output_dir="o", use_cpu=True, **{name: 3})
