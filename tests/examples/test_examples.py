"""Every example runs as it stands, offline, and does what its first lines say."""

from __future__ import annotations

import gzip
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def segment(*candidates: tuple[str, float]) -> dict[str, Any]:
    return {
        "source_lang": "zh",
        "target_lang": "en",
        "source": "你好",
        "candidates": [{"text": text, "mqm": mqm} for text, mqm in candidates],
    }


def test_every_example_has_a_test():
    tested = {"train_cpo", "simpo_lora", "streaming", "constrained", "translation_pairs"}
    elsewhere = {
        "extending",
        "ray_train",
        "sample_ray_vllm",
        "score_comet",
        "score_metricx",
        "translation_nllb",
        "vision_pairs",
    }  # in tests of their own
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested | elsewhere


def test_the_first_script_changes_every_parameter(tmp_path: Path):
    names, changed = load("train_cpo")["main"](output_dir=str(tmp_path))
    assert changed == list(names)


def test_simpo_with_an_adapter_widens_the_margin_on_unseen_pairs(tmp_path: Path):
    pytest.importorskip("peft", reason="PEFT is not installed")
    before, after = load("simpo_lora")["main"](output_dir=str(tmp_path))
    assert after["eval_rewards/margins"] > before["eval_rewards/margins"] + 1
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "model.safetensors").exists()


def test_named_streams_are_evaluated_apart(tmp_path: Path):
    final = load("streaming")["main"](output_dir=str(tmp_path))
    small = final["eval_small_loss"]["eval_small_loss"]
    large = final["eval_large_loss"]["eval_large_loss"]
    # two digits more of NLL a completion cannot cost the same
    assert small != pytest.approx(large, rel=1e-3)
    counts = json.loads((tmp_path / "run.json").read_text())["data"]
    assert {"eval small", "eval large"} <= counts.keys()


def test_a_run_that_would_leave_its_bounds_is_brought_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    lines = load("constrained")["main"](output_dir=str(tmp_path), steps=60)
    for name in ("bc", "long"):
        first, *_, last = violations = [line[f"constraints/{name}/violation"] for line in lines]
        assert first < 0 < max(violations)  # it begins within its bounds, and would leave them
        assert last < 0.05
        assert max(line[f"constraints/{name}/multiplier"] for line in lines) > 0.1
    table = capsys.readouterr().out.split("\nstep ")[1].splitlines()
    assert len(table) == 1 + len(lines)


def translated(folder: Path, *segments: dict[str, Any]) -> list[dict[str, Any]]:
    """What the example writes for these segments."""
    scored, pairs = folder / "scored.jsonl.gz", folder / "pairs.jsonl"
    with gzip.open(scored, "wt", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(each)}\n" for each in segments)
    load("translation_pairs")["main"](str(scored), str(pairs))
    return [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]


def test_the_best_translation_is_chosen_and_the_worst_rejected(tmp_path: Path):
    pairs = translated(tmp_path, segment(("so so", 3.0), ("Hello", 0.0), ("Bye", 9.5)))
    assert pairs == [
        {
            "prompt": "Translate from Chinese to English.\nChinese: 你好\nEnglish:",
            "chosen": " Hello",
            "rejected": " Bye",
            "score_gap": 9.5,
            "chosen_score": 0.0,
            "rejected_score": 9.5,
        }
    ]


@pytest.mark.parametrize(
    "candidates",
    [[("Hi", 1.0), ("Hello", 1.0)], [("Hello there", 0.0), ("Hello  there ", 5.0)]],
    ids=["a tie", "one text"],
)
def test_a_segment_without_a_preference_gives_no_pair(tmp_path: Path, candidates):
    pairs = translated(tmp_path, segment(*candidates), segment(("a", 0.0), ("b", 1.0)))
    assert [(pair["chosen"], pair["rejected"]) for pair in pairs] == [(" a", " b")]


def test_real_scored_translations_give_a_pair_for_most_segments(real_data: Path, tmp_path: Path):
    pairs = tmp_path / "pairs.jsonl"
    scored = real_data / "ted-mqm-zhen-scored.jsonl.gz"
    load("translation_pairs")["main"](str(scored), str(pairs))
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    # of 529, 22 have but one score; in all others some best and some worst differ in text
    assert len(rows) == 507
    assert all(row["chosen"] != row["rejected"] for row in rows)
