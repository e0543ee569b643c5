"""Utilisation is what a token needs, by hand, over a peak that is known; else there is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from counterpoint.monitor import pace, utilization
from counterpoint.monitor.pace import Pace
from counterpoint.monitor.utilization import PEAKS, TERA, peak_of, token_cost
from counterpoint.records import TokenPair
from tests.models_on_the_spot import make_model

PAIR = TokenPair(prompt=[1, 2, 3], chosen=[4, 5], rejected=[6], row=0)
ARGS = SimpleNamespace(bf16=True, fp16=False)
GPU = torch.device("cuda", 0)


def body_weights(model: Any) -> int:
    """Weights of the layers' own matrices: attention and feed-forward, by name."""
    found = [p for n, p in model.named_parameters() if "layers" in n and p.ndim == 2]
    return sum(p.numel() for p in found)


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_costs_six_operations_a_weight_and_the_head_where_it_is_predicted(
    tied: bool,
) -> None:
    model = make_model("qwen2", vocab_size=50, tie_word_embeddings=tied)
    cost = token_cost(model)
    assert cost is not None
    head = 50 * model.config.hidden_size
    assert cost.body == 6 * body_weights(model)
    assert cost.head == 6 * head
    assert cost.flops(10, 4) == 6 * body_weights(model) * 10 + 6 * head * 4


def test_a_weight_that_does_not_train_costs_four() -> None:
    model = make_model("qwen2", vocab_size=50)
    model.requires_grad_(False)
    cost = token_cost(model)
    assert cost is not None
    assert cost.body == 4 * body_weights(model)


def test_where_it_would_be_a_guess_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("qwen2", vocab_size=50)
    assert peak_of(torch.device("cpu"), ARGS, model) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some other device")
    assert peak_of(GPU, ARGS, model) is None
    model.experts = torch.nn.Linear(2, 2)
    assert token_cost(model) is None
    seeing = make_model("qwen2", vocab_size=50)
    seeing.config.vision_config = {}
    assert token_cost(seeing) is None


def test_the_peak_is_that_of_the_runs_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    model = make_model("qwen2", vocab_size=50)
    plain = SimpleNamespace(bf16=False, fp16=False)
    assert peak_of(GPU, ARGS, model) == PEAKS["NVIDIA H200"]["16 bits"] * TERA
    assert peak_of(GPU, plain, model) == PEAKS["NVIDIA H200"]["float32"] * TERA
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_of(GPU, plain, model) == PEAKS["NVIDIA H200"]["tf32"] * TERA
    assert peak_of(GPU, plain, model.bfloat16()) == PEAKS["NVIDIA H200"]["16 bits"] * TERA
    assert peak_of(GPU, plain, model.double()) is None


def test_a_log_line_says_the_share_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1.0)
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(pace, "peak_of", lambda *facts: 1e9)
    monkeypatch.setattr(utilization, "PEAKS", {})
    model = make_model("qwen2", vocab_size=50)
    cost = token_cost(model)
    assert cost is not None
    found = Pace(torch.device("cpu"))
    found.on_train_begin(ARGS, model=model)
    found.count([PAIR, PAIR])
    clock.now += 2
    found.on_step_end()
    # 2 pairs of 6 tokens, of which 3 are predicted, in 2 seconds
    assert found.metrics(found.counts())["mfu"] == pytest.approx(cost.flops(12, 6) / 2e9)
    found = Pace(torch.device("cpu"))
    found.on_train_begin()
    found.count([PAIR])
    clock.now += 2
    found.on_step_end()
    assert "mfu" not in found.metrics(found.counts())
