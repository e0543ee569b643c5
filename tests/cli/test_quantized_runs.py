"""A run over quantised weights: what reads it afterwards loads them as the run held them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from counterpoint.cli.replay import ReplayOptions, _weights
from counterpoint.models.quantized import quantized_layers
from counterpoint.step.replay.file import read_replay
from tests.cli.conftest import Command
from tests.models_on_the_spot import make_model
from tests.reliability.trials import TORTURE

pytest.importorskip("peft")
pytest.importorskip("bitsandbytes", reason="the extra [quantized] is not installed")

OPTIONS = ("load_in_4bit", "load_in_8bit")
READ = ["--dataset", "few.jsonl", "--json", "--use_cpu", "--resamples", "50"]


def trained(command: Command, how: str) -> str:
    """Train an adapter for 3 steps of a pair, of which the last is not finite; its messages."""
    lines = Path("pairs.jsonl").read_text().splitlines()
    Path("few.jsonl").write_text("\n".join(lines[:3]))
    rows = [{**json.loads(line), "weight": 1.0} for line in lines[:3]]
    rows[-1]["weight"] = 1e308  # times its loss, beyond what a float holds
    Path("broken.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = f"""train --model model --dataset broken.jsonl --output_dir out --lora_r 4 {how}
        --use_cpu --doctor off --learning_rate 1e-2 --per_device_train_batch_size 1 --save_steps 2
        --train_sampling_strategy sequential --max_steps 3 --eval_dataset few.jsonl
        --eval_strategy steps --eval_steps 2 --eval_on_start --gradient_checkpointing false"""
    answer = command(*words.split())
    assert "CP401 step 3: the loss of row 2 is not finite" in answer.err
    return answer.err


def margins(command: Command, *words: str) -> dict[str, float]:
    """What an evaluation finds before and after, or after alone."""
    answer = command("evaluate", *words, *READ)
    assert answer.code == 0, answer.err
    sides: dict[str, Any] = json.loads(answer.out)
    return {
        side: sides[side]["sets"]["few.jsonl"]["measures"]["margin"]["value"]
        for side in ("before", "after")
        if sides.get(side)
    }


def margin_in_training(step: int) -> float:
    lines = Path("out/metrics.jsonl").read_text().splitlines()
    found = [one for one in map(json.loads, lines) if "eval_rewards/margins" in one]
    return next(float(one["eval_rewards/margins"]) for one in found if one["step"] == step)


@pytest.mark.parametrize("option", OPTIONS if TORTURE else OPTIONS[:1])
def test_evaluate_and_replay_load_the_base_as_the_run_did(
    workshop: Path, command: Command, caplog: pytest.LogCaptureFixture, option: str
) -> None:
    trained(command, f"--{option}")
    saved = "out/checkpoint-2"
    caplog.clear()
    found = margins(command, saved, "--base", str(workshop / "model"))
    # both sides over the quantised weights, the start of the run among them
    assert found["after"] == pytest.approx(margin_in_training(2), rel=1e-5)
    assert found["before"] == pytest.approx(margin_in_training(0), rel=1e-5)
    assert "CW507" not in caplog.text
    step = read_replay(Path("out/replay-3.safetensors"))
    model = _weights(step, Path("out"), ReplayOptions()).model
    layers = [layer for _, layer in quantized_layers(model)]
    assert len(layers) == 14
    assert {type(layer).__name__ for layer in layers} == {f"OneWay{option[-4:]}"}
    again = json.loads(command("replay", "out/replay-3.safetensors", "--json").out)
    assert again["weights"].startswith("out/checkpoint-2")
    assert again["now"] == again["then"] != []
    assert "CW507" not in caplog.text


def test_a_precision_that_a_run_was_given_is_that_of_its_evaluation(
    workshop: Path, command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    trained(command, "--dtype bfloat16")
    found = margins(command, "out/checkpoint-2", "--base", "model")
    assert found["after"] == pytest.approx(margin_in_training(2), rel=1e-5)
    assert found["before"] == pytest.approx(margin_in_training(0), rel=1e-5)
    assert "CW507" not in caplog.text
    # told otherwise, it is done so, and said
    margins(command, "out/checkpoint-2", "--dtype", "float32")
    assert "CW507 the adapter in out/checkpoint-2 was trained over weights" in caplog.text


def test_what_a_quantised_reference_said_is_not_taken_for_the_whole_ones(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are the same, and its numbers are others."""
    make_model("qwen2", seed=3, vocab_size=534, hidden_size=64).save_pretrained("reference")
    (workshop / "few.jsonl").write_bytes((workshop / "pairs.jsonl").read_bytes())
    asked = ("model", "--loss_type", "dpo", "--reference", "reference")
    ways: list[list[str]] = [[f"--{option}"] for option in OPTIONS] + [[]]
    kept = [margins(command, *asked, *way)["after"] for way in ways]
    monkeypatch.setenv("COUNTERPOINT_CACHE", "off")
    assert kept == [margins(command, *asked, *way)["after"] for way in ways]
    assert len({*kept}) == len(ways)
