"""Memory that runs out cuts the step anew: the same step, told once, and remembered."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from counterpoint import CPOConfig, CPOTrainer, SetupError
from counterpoint.data.batching import length
from counterpoint.engine.memory import is_out_of_memory
from counterpoint.forward.layouts import SHARED
from counterpoint.records import PairBatch, TokenPair
from counterpoint.step.share import Share, TokenBudget
from tests.small_memory import SmallMemory
from tests.steps import distance, random_pairs, train_watched, untimed

LIMITS = {torch.float32: 1e-6, torch.float64: 1e-12}
FITS = 60
"""Tokens: more than any pair of ``random_pairs`` has in either layout, less than two have."""


def warnings_of(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def micro_batch_tokens(folder: Path) -> dict[str, int | None]:
    return json.loads((folder / "run.json").read_text())["micro_batch_tokens"]


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize(
    "start",
    [
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 8, "max_micro_batch_tokens": 150},
    ],
    ids=["one micro-batch", "two", "by tokens"],
)
def test_a_step_done_again_has_the_same_gradient_and_the_same_metrics(
    start, layout, where, dtype, models, chatml_tokenizer, tmp_path: Path, caplog
):
    def train(model) -> tuple[Any, Any]:
        steps, trainer = train_watched(
            model,
            chatml_tokenizer,
            random_pairs(8),
            tmp_path,
            layout=layout,
            num_train_epochs=3,
            learning_rate=1e-30,
            monitor_steps=0,  # nothing is to move here
            **start,
        )
        return steps, [untimed(line) for line in trainer.state.log_history if "loss" in line]

    calm, calm_lines = train(models("qwen2_tied").to(dtype))
    assert warnings_of(caplog) == []
    model = models("qwen2_tied").to(dtype)
    memory = SmallMemory(model, FITS, where)
    found, lines = train(model)
    assert memory.failed
    assert len(found) == len(calm) == 3
    for one, other in zip(calm, found, strict=True):
        assert distance(one, other) <= LIMITS[dtype]
    for one, other in zip(calm_lines, lines, strict=True):
        assert other == pytest.approx(one, rel=1e-5 if dtype is torch.float32 else 1e-6)
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("where", ["forward", "head", "backward"])
def test_what_fits_is_found_by_halves_told_once_and_remembered(
    where, models, chatml_tokenizer, tmp_path: Path, caplog
):
    model, pairs = models("qwen2"), random_pairs(8)
    memory = SmallMemory(model, FITS, where)
    train_watched(
        model,
        chatml_tokenizer,
        pairs,
        tmp_path,
        per_device_train_batch_size=8,
        num_train_epochs=2,
    )
    every = sum(len(row[f"{p}_ids"]) for row in pairs for p in ("prompt", "chosen", "rejected"))
    assert memory.failed[0] == every
    for failed, next_failed in zip(memory.failed, memory.failed[1:], strict=False):
        assert next_failed <= failed // 2  # a second step that failed would begin above it
    budget = memory.failed[-1] // 2
    assert warnings_of(caplog) == [
        f"a micro-batch of 8 pairs and {every} tokens did not fit in memory; its step was cut and "
        f"done again, and micro-batches now hold at most {budget} tokens, which changes no "
        f"gradient. max_micro_batch_tokens={budget} starts the next run there."
    ]
    assert micro_batch_tokens(tmp_path) == {"train": budget, "eval": None}


def test_what_a_failed_attempt_holds_is_free_before_the_next_one(
    models, chatml_tokenizer, tmp_path: Path
):
    model = models("qwen2")
    memory = SmallMemory(model, FITS, "head")
    train_watched(model, chatml_tokenizer, random_pairs(8), tmp_path, per_device_train_batch_size=8)
    assert memory.kept == [False] * len(memory.failed) != []


def test_the_next_run_starts_where_the_warning_said(models, chatml_tokenizer, tmp_path: Path):
    def failures(folder: Path, budget: int | None) -> list[int]:
        model = models("qwen2")
        memory = SmallMemory(model, FITS, "backward")
        train_watched(
            model,
            chatml_tokenizer,
            random_pairs(8),
            folder,
            per_device_train_batch_size=8,
            max_micro_batch_tokens=budget,
        )
        return memory.failed

    assert failures(tmp_path / "first", None)
    assert failures(tmp_path / "second", micro_batch_tokens(tmp_path / "first")["train"]) == []


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("micro_batch", [8, 4])
def test_experts_are_balanced_over_a_step_that_was_done_again(
    micro_batch, where, models, chatml_tokenizer, tmp_path: Path, caplog
):
    """A whole step in one micro-batch needs no pass for the router before it is cut; it then does.

    In "forward" it is that pass which fails first.
    """

    def train(model) -> tuple[Any, dict[str, float]]:
        steps, trainer = train_watched(
            model,
            chatml_tokenizer,
            random_pairs(8),
            tmp_path,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=8 // micro_batch,
            router_aux_loss_coef=1.0,
        )
        return steps, untimed(trainer.state.log_history[0])

    (calm,), calm_line = train(models("qwen3_moe").double())
    model = models("qwen3_moe").double()
    memory = SmallMemory(model, FITS, where)
    (found,), line = train(model)
    assert memory.failed
    assert distance(calm, found) <= 1e-12
    assert line == pytest.approx(calm_line, rel=1e-6)
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_pair_that_does_not_fit_alone_is_named_and_the_weights_stay(
    where, models, chatml_tokenizer, tmp_path: Path
):
    pairs = random_pairs(8).map(
        lambda row: {"chosen_ids": row["chosen_ids"] * (9 if row["row"] == 5 else 1)}
    )
    tokens = sum(len(pairs[5][f"{part}_ids"]) for part in ("prompt", "chosen", "rejected"))
    assert tokens > FITS
    model = models("qwen2")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    SmallMemory(model, FITS, where)
    with pytest.raises(SetupError) as caught:
        train_watched(model, chatml_tokenizer, pairs, tmp_path, per_device_train_batch_size=8)
    assert caught.value.code == "CP505"
    assert "row 5 does not fit in memory (CUDA out of memory." in str(caught.value)
    assert f"its {tokens} input tokens were alone" in str(caught.value)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_memory_that_runs_out_outside_of_micro_batches_has_a_code_of_its_own(
    models, chatml_tokenizer, tmp_path: Path
):
    def spoil(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    hook = register_optimizer_step_pre_hook(spoil)
    try:
        with pytest.raises(SetupError, match=r"CP522 .* not in a micro-batch \(CUDA out of memory"):
            train_watched(models("qwen2"), chatml_tokenizer, random_pairs(4), tmp_path)
    finally:
        hook.remove()


def test_another_error_is_not_taken_for_it(models, chatml_tokenizer, tmp_path: Path, caplog):
    model = models("qwen2")
    calls = []

    def spoil(gradient: torch.Tensor) -> None:
        calls.append(gradient)
        raise RuntimeError("the size of tensor a (3) must match the size of tensor b (4)")

    model.lm_head.weight.register_hook(spoil)
    with pytest.raises(RuntimeError, match="the size of tensor a"):
        train_watched(
            model,
            chatml_tokenizer,
            random_pairs(8),
            tmp_path,
            layout="padded",  # the shared one would be proved first, by a gradient of its own
            per_device_train_batch_size=8,
        )
    assert len(calls) == 1
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (torch.OutOfMemoryError("in words of its own"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
    ],
    ids=str,
)
def test_memory_runs_out_in_these_words(error, expected):
    assert is_out_of_memory(error) is expected


def test_an_allocation_that_the_host_refuses_is_such_an_error():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.int8)
    assert is_out_of_memory(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_that_is_really_full_takes_the_same_step(
    models, chatml_tokenizer, tmp_path: Path, caplog
):
    """The device is allowed three fifths of what the step takes when it is not cut."""
    pairs = random_pairs(32).map(
        lambda row: {f"{p}_ids": row[f"{p}_ids"] * 12 for p in ("prompt", "chosen", "rejected")}
    )

    def train() -> Any:
        steps, _ = train_watched(
            models("qwen2", hidden_size=256, intermediate_size=1024).cuda(),
            chatml_tokenizer,
            pairs,
            tmp_path,
            per_device_train_batch_size=32,
            use_cpu=False,
            bf16=False,
        )
        return steps[0]

    torch.cuda.reset_peak_memory_stats()
    calm = train()
    gc.collect()
    torch.cuda.empty_cache()
    allowed = 0.6 * torch.cuda.max_memory_allocated()
    torch.cuda.set_per_process_memory_fraction(
        allowed / torch.cuda.get_device_properties(0).total_memory
    )
    try:
        found = train()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(warnings_of(caplog)) == 1
    assert distance(calm, found) <= 1e-5


# Evaluation


def test_an_evaluation_done_again_counts_nothing_twice(
    models, chatml_tokenizer, tmp_path: Path, caplog
):
    rewards = []

    def evaluate(model) -> dict[str, float]:
        _, trainer = train_watched(
            model,
            chatml_tokenizer,
            random_pairs(4),
            tmp_path,
            per_device_train_batch_size=1,
            per_device_eval_batch_size=8,
            learning_rate=1e-30,
            monitor_steps=0,  # nothing is to move here
        )
        trainer.compute_metrics = lambda seen: rewards.append(seen.predictions) or {}
        return untimed(trainer.evaluate(random_pairs(20, seed=1)))

    calm = evaluate(models("qwen3_moe").double())
    model = models("qwen3_moe").double()
    memory = SmallMemory(model, FITS, "forward")
    found = evaluate(model)
    assert found == pytest.approx(calm, rel=1e-10)
    assert rewards[1] == pytest.approx(rewards[0], rel=1e-10)
    assert memory.failed
    assert len(warnings_of(caplog)) == 1


def test_what_an_evaluation_can_hold_is_known_apart_from_training(
    models, chatml_tokenizer, tmp_path: Path
):
    model = models("qwen2")
    memory = SmallMemory(model, FITS, "forward")
    args = CPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=8,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    CPOTrainer(
        model=model,
        args=args,
        train_dataset=random_pairs(2),
        eval_dataset=random_pairs(8, seed=1),
        processing_class=chatml_tokenizer,
    ).train()
    assert micro_batch_tokens(tmp_path) == {"train": None, "eval": memory.failed[-1] // 2}


# Ranks; what two of them do is in tests/invariance/test_ranks.py


def token_pairs(count: int) -> list[TokenPair]:
    return [
        TokenPair([1, *range(3, 5 + n)], [5] * (n + 1), [6] * (n + 2), row=n) for n in range(count)
    ]


def cut_in(parts: int) -> Callable[..., list[PairBatch]]:
    def cut(pairs: Any, most_tokens: int | None) -> list[PairBatch]:
        size = -(-len(pairs) // parts)
        longest_first = sorted(pairs, key=length, reverse=True)
        return [
            SHARED.collate(longest_first[start : start + size], vocab_size=640)
            for start in range(0, len(pairs), size)
        ]

    return cut


def test_ranks_meet_in_a_micro_batch_that_is_known_to_fit():
    budget = TokenBudget(None, lambda: None)
    several = Share(token_pairs(6), cut_in(3), budget, ranks=2)
    assert [len(batch) for batch in several] == [2, 2, 2]
    one = Share(token_pairs(6), cut_in(1), budget, ranks=2)
    filled = [batch.counted.tolist() for batch in one]
    assert filled == [[True] * 6, [False]]
    assert one.batches[1].input_ids.numel() == length(token_pairs(1)[0])
    one.prove()
    again = Share(token_pairs(6), cut_in(1), budget, ranks=2)
    assert len(again) == 1
    larger = Share(token_pairs(7), cut_in(1), budget, ranks=2)
    assert len(larger) == 2
    alone = Share(token_pairs(7), cut_in(1), budget)
    assert len(alone) == 1


def test_memory_that_runs_out_where_ranks_meet_stops_the_run():
    share = Share(token_pairs(4), cut_in(1), TokenBudget(None, lambda: None), ranks=2)
    undone = []

    def work() -> None:
        for batch in share:
            if batch is share.batches[-1]:
                share.commit()
                raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(SetupError, match=r"CP505 .* in which ranks add up their gradients"):
        share.fitted(work, undo=lambda: undone.append(True))
    assert undone == [True]
