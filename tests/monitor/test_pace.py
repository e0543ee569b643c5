"""What a log line says of speed is counted, timed without what is no step, and costs no look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from counterpoint.data.batching import filler
from counterpoint.metrics import MetricSums
from counterpoint.monitor import pace
from counterpoint.monitor.pace import Pace, peak_memory
from counterpoint.records import TokenPair
from tests.steps import random_pairs, train_watched

CPU = torch.device("cpu")
PAIR = TokenPair(prompt=[1, 2, 3], chosen=[4, 5], rejected=[6], row=0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that the test moves by hand."""

    class Clock:
        now = 100.0

        def perf_counter(self) -> float:
            return self.now

    made = Clock()
    monkeypatch.setattr(pace, "time", made)
    return made


def test_evaluating_and_saving_are_no_steps_and_waiting_for_data_is(clock: Any) -> None:
    found = Pace(CPU)
    clock.now += 50  # before the training
    found.on_train_begin()
    for event in (None, found.on_evaluate, found.on_save, None):
        found.count([PAIR, PAIR, filler(PAIR)])
        clock.now += 2  # data and step
        found.on_step_end()
        if event is not None:
            clock.now += 1000
            event()
    told = found.metrics(found.counts())
    assert told["step_seconds"] == pytest.approx(2.0)
    assert told["pairs_per_second"] == pytest.approx(2 / 2.0)
    assert told["tokens_per_second"] == pytest.approx(2 * 6 / 2.0)
    assert found.metrics({"pairs": 0, "tokens": 0}) == {}  # nothing since


def test_numbers_of_the_host_are_added_up_beside_the_metrics() -> None:
    sums = MetricSums()
    sums.add({"loss": (torch.tensor(6.0), torch.tensor(3.0))})
    sums.apply()
    assert sums.read({"pairs": 8}) == {"loss": (6.0, 3.0), "pairs": (8.0, 8.0)}
    assert sums.read({"pairs": 2}) == {"pairs": (2.0, 2.0)}
    assert sums.read() == {}


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_a_training_counts_each_pair_and_each_token_once_in_every_layout(
    layout: str, models: Any, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    pairs = random_pairs(10)
    tokens = sum(
        len(ids) for name in ("prompt_ids", "chosen_ids", "rejected_ids") for ids in pairs[name]
    )
    _, trainer = train_watched(
        models(),
        chatml_tokenizer,
        pairs,
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        layout=layout,
    )
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 3
    counted = {
        unit: sum(line[f"{unit}_per_second"] * line["step_seconds"] for line in lines)
        for unit in ("pairs", "tokens")
    }
    assert counted == pytest.approx({"pairs": 10, "tokens": tokens})


def test_the_peak_of_memory_is_that_of_the_process_in_bytes() -> None:
    held = psutil.Process().memory_info().rss
    assert 0.9 * held <= peak_memory(CPU) <= psutil.virtual_memory().total
