"""The main job on real input: three published files, each in its own shape, one command."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from counterpoint.config import CPOConfig
from counterpoint.data.options import PrepareOptions
from counterpoint.data.pair_columns import to_pair
from counterpoint.data.prepare import prepare
from counterpoint.data.sources import load
from counterpoint.models.loading import random_model
from tests.cli.conftest import Command, write_pairs
from tests.models_on_the_spot import make_model
from tests.reference.naive import completion_logps

MAX_LENGTH, SEED = 192, 5

Rows = list[dict[str, Any]]


def transcripts(folder: Path) -> str:
    """Whole dialogues as text, the prompt in both of them."""
    return str(folder / "hh-rlhf-harmless-base-test.jsonl.gz")


def conversations(folder: Path) -> str:
    """ShareGPT turns, in Chinese."""
    return str(folder / "llamafactory-dpo-zh-demo.json.gz")


def translations(folder: Path) -> str:
    """The best and the worst translation of each segment, of those that experts told apart."""
    rows: Rows = []
    with gzip.open(folder / "ted-mqm-zhen-scored.jsonl.gz", "rt", encoding="utf-8") as lines:
        for segment in map(json.loads, lines):
            ranked = sorted(segment["candidates"], key=lambda candidate: candidate["mqm"])
            best, worst = ranked[0], ranked[-1]
            if worst["mqm"] > best["mqm"] and worst["text"].strip() != best["text"].strip():
                prompt = f"Translate into English: {segment['source']}\n"
                rows.append({"prompt": prompt, "chosen": best["text"], "rejected": worst["text"]})
    assert len(rows) > 400
    write_pairs(Path("translations.jsonl"), rows)
    return "translations.jsonl"


@pytest.mark.slow
@pytest.mark.parametrize("source", [transcripts, conversations, translations])
def test_a_random_model_learns_from_real_preferences(
    source: Callable[[Path], str],
    real_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chatml_tokenizer: PreTrainedTokenizerFast,
    command: Command,
) -> None:
    monkeypatch.chdir(tmp_path)
    chatml_tokenizer.save_pretrained("model")
    config = make_model("qwen2", vocab_size=len(chatml_tokenizer)).config
    config.save_pretrained("model")
    options = {
        "model": "model",
        "from_scratch": True,
        "dataset": source(real_data),
        "invalid_rows": "drop",
        "truncation": "prompt_start",
        "max_length": MAX_LENGTH,
        "max_steps": 24,
        "eval_on_start": True,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.005,
        "gradient_checkpointing": False,
        "seed": SEED,
        "use_cpu": True,
        "output_dir": "out",
    }
    Path("run.yaml").write_text(json.dumps(options), encoding="utf-8")
    few = few_rows(options["dataset"])
    said = command("train", "run.yaml", "--eval_dataset", few)
    assert said.code == 0, said.err

    log = [json.loads(line) for line in Path("out/metrics.jsonl").read_text().splitlines()]
    # Losses of different steps are of different pairs, some longer than others; these are not.
    first, last = [line for line in log if "eval_loss" in line]
    assert (first["step"], last["step"]) == (0, 24)
    assert last["eval_loss"] < 0.9 * first["eval_loss"]
    assert last["eval_nll_loss"] < 0.9 * first["eval_nll_loss"]

    start = random_model("model", CPOConfig(output_dir="o", seed=SEED, use_cpu=True), config)
    after = load_file("out/model.safetensors")
    before = {name: value for name, value in start.state_dict().items() if name in after}
    assert before.keys() == after.keys()
    assert [name for name in after if torch.equal(before[name], after[name])] == []

    for side in ("chosen", "rejected"):
        assert last[f"eval_logps/{side}"] == pytest.approx(by_hand(few, side), rel=1e-5)


def few_rows(source: str) -> str:
    """A file of some rows of a data set that are pairs."""
    rows = load(source).select(range(40, 56)).to_list()
    write_pairs(Path("few.jsonl"), rows)
    return "few.jsonl"


def by_hand(source: str, side: str) -> float:
    """Mean log-probability of a side's completions, by plain transformers from what was saved."""
    model = AutoModelForCausalLM.from_pretrained("out").eval()
    tokenizer = AutoTokenizer.from_pretrained("out")
    options = PrepareOptions(
        max_length=MAX_LENGTH,
        max_completion_length=None,
        truncation="prompt_start",
        invalid_rows="drop",
        num_proc=None,
    )
    rows = load(source)
    assert isinstance(rows, Dataset)
    pairs = map(to_pair, prepare(rows, tokenizer, options, name="few").pairs)
    with torch.no_grad():
        sums = [
            completion_logps(model, list(pair.prompt), list(getattr(pair, side))).sum().item()
            for pair in pairs
        ]
    return fmean(sums)
