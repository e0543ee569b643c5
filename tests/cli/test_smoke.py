"""``counterpoint smoke``: a run is tried whole, and nothing is left of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerFast, Qwen2Config

from counterpoint import CPOTrainer
from counterpoint.smoke import checks, run
from counterpoint.smoke.real import MeasuredSteps, time_in_words
from tests.cli.conftest import Command, tree, write_pairs

WORDS = (
    *("--model", "model", "--dataset", "pairs.jsonl", "--output_dir", "out", "--use_cpu"),
    *("--max_length", "64", "--per_device_train_batch_size", "2"),
)

QWEN: dict[str, Any] = {
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
"""The shape of Qwen2.5-0.5B."""


def found(text: str) -> dict[str, str]:
    """Statuses by check, of a report in JSON."""
    return {check["name"]: check["status"] for check in json.loads(text)["checks"]}


@pytest.fixture
def spot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_healthy_run_passes_and_leaves_nothing_behind(
    workshop: Path, command: Command, spot: Path
) -> None:
    before = tree(workshop.parent)
    answer = command("smoke", *WORDS)
    assert (answer.code, answer.err) == (0, ""), answer
    assert tree(workshop.parent) == before
    assert tree(spot) == []
    lines = answer.out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].startswith("A twin of Qwen2ForCausalLM: 2 layers, ")
    for name in checks.NAMES:
        assert any(name in line for line in lines)
    assert lines[-1].startswith("6 ok, 0 failed, 1 not applicable, in ")


def test_options_of_a_file_adapter_and_precision_are_the_runs_own(
    workshop: Path, command: Command
) -> None:
    options = {"loss_type": "simpo", "beta": 2.0, "cpo_alpha": 0.0, "lora_r": 2, "bf16": True}
    Path("run.yaml").write_text(yaml.safe_dump({**options, "lora_target_modules": ["q_proj"]}))
    answer = command("smoke", "run.yaml", *WORDS, "--json")
    assert (answer.code, answer.err) == (0, ""), answer
    report = json.loads(answer.out)
    assert set(found(answer.out)) == set(checks.NAMES)
    assert set(found(answer.out).values()) == {"ok"}
    moved = next(c["seen"] for c in report["checks"] if c["name"] == checks.MOVE)
    assert moved == "all 4 tensors that train"  # A and B of q_proj in both layers
    assert (report["exit_code"], report["real"]) == (0, None)


def test_conversations_are_tried_as_they_are(
    workshop: Path, command: Command, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows: list[dict[str, object]] = [
        {
            "prompt": turn("user", f"What is {n}?"),
            "chosen": turn("assistant", f"A number, {n}."),
            "rejected": turn("assistant", "No."),
        }
        for n in range(5)
    ]
    write_pairs(workshop / "pairs.jsonl", rows)
    chatml_tokenizer.save_pretrained("chat")
    answer = command("smoke", *WORDS, "--tokenizer", "chat", "--streaming", "--max_steps", "3")
    assert answer.code == 0, answer
    assert "5 of the run's rows" in " ".join(answer.out.split())


def test_a_fault_is_a_failed_check_and_an_exit_code(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch, spot: Path
) -> None:
    def broken(self: CPOTrainer, *facts: Any) -> None:
        raise RuntimeError("no room \x1b[2J for a model")

    monkeypatch.setattr(CPOTrainer, "_save", broken)
    answer = command("smoke", *WORDS)
    assert answer.code == 1
    assert "failed          loss falls      RuntimeError: no room ?[2J for a model" in answer.out
    assert "not applicable  save reloads    the training did not come to its end" in answer.out
    assert "ok              splits agree" in answer.out
    assert tree(spot) == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--loss_type", "kto"], "CP102"),
        (["--simpo_gamma", "1.0"], "CP104"),
        (["--model", "nowhere/"], "CP301"),
        (["--dataset", "nothing.jsonl"], "CP211"),
        (["--real", "-1"], "CP103"),
        (["--real", "two"], "CP103"),
        (["--reel", "2"], "CP101"),
        (["--lora_r", "2", "--lora_target_modules", "nothing"], "CP307"),
        (
            ["--layout=shared", "--lora_r=2", "--lora_dropout=0.1", "--no_disable_dropout"],
            "CP104",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_code(
    words: list[str], code: str, workshop: Path, command: Command
) -> None:
    answer = command("smoke", *WORDS, *words)
    assert answer.code == 2
    assert answer.err.startswith(f"counterpoint: {code} ")
    assert not Path("out").exists()


def test_several_processes_are_refused(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launched(*facts: Any, **more: Any) -> Any:
        monkeypatch.setenv("WORLD_SIZE", "2")
        return smoke(*facts, **more)

    smoke = run.run_smoke
    monkeypatch.setattr(run, "run_smoke", launched)
    answer = command("smoke", *WORDS)
    assert answer.code == 2
    assert answer.err.startswith("counterpoint: CP503 a smoke run is one process")


def test_steps_of_the_real_model_are_measured_and_not_kept(
    workshop: Path, command: Command
) -> None:
    before = tree(workshop.parent)
    answer = command("smoke", *WORDS, "--real", "2", "--num_train_epochs", "5", "--json")
    assert answer.code == 0, answer
    real = json.loads(answer.out)["real"]
    assert (real["step_pairs"], len(real["seconds"]), real["run_steps"]) == (2, 2, 30)
    assert real["run_seconds"] == pytest.approx(30 * real["step_seconds"], rel=0.1, abs=0.1)
    assert tree(workshop.parent) == before
    table = command("smoke", *WORDS, "--real=1").out
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "whole run       about " in table


def test_the_first_step_counts_only_if_it_is_alone() -> None:
    later = MeasuredSteps(pairs=8, seconds=(9.0, 2.0, 4.0), peak_bytes=None, steps=100, loss=1.0)
    assert (later.step_seconds, later.run_seconds) == (3.0, 300.0)
    alone = MeasuredSteps(pairs=8, seconds=(9.0,), peak_bytes=None, steps=None, loss=1.0)
    assert (alone.step_seconds, alone.run_seconds) == (9.0, None)
    assert "max_steps is not set" in " ".join(alone.as_lines(80))


def test_times_are_told_in_the_unit_that_suits_them() -> None:
    times = [0.417, 38.21, 306.0, 11_520.0, 207_360.0]
    assert [*map(time_in_words, times)] == ["0.42 s", "38.2 s", "5.1 min", "3.2 h", "2.4 days"]


def test_the_command_tells_how_to_ask_it(command: Command) -> None:
    answer = command("smoke", "--help")
    assert (answer.code, answer.err) == (0, "")
    assert "--real  (whole number)" in answer.out


@pytest.mark.slow
def test_a_model_of_half_a_billion_weights_is_tried_within_a_minute(
    workshop: Path, command: Command
) -> None:
    Qwen2Config(**QWEN).save_pretrained("bare")
    started = time.process_time()  # of one thread, and so not longer on a busy machine
    answer = command("smoke", *WORDS, "--model", "bare", "--from_scratch", "--json")
    assert time.process_time() - started < 60
    assert answer.code == 0, answer
    assert "of the vocabulary" in json.loads(answer.out)["twin"]
