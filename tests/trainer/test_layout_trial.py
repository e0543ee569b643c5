"""On an accelerator ``layout="auto"`` asks the clock, once, and leaves no other trace.

The CPU stands for the accelerator: the layout says that it is timed here, and the clock moves by
what each layout is said to cost, so that its decision is known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint.data.pair_columns import to_pair
from counterpoint.engine.plain import Plain
from counterpoint.forward.layouts import PADDED, SHARED, Padded, Shared
from counterpoint.models.family import family_of
from counterpoint.step import layout_trial
from counterpoint.step.assembly import Assembly
from tests.reliability.scenarios import trainer_of
from tests.small_memory import SmallMemory
from tests.steps import distance, random_pairs, train_watched

OPTIONS: dict[str, Any] = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
STEADY = {"lr_scheduler_type": "constant"}


class Clock:
    """Stands still but for what a micro-batch costs in its layout, in seconds."""

    def __init__(self) -> None:
        self.time, self.costs = 0.0, {"shared": 1.0, "padded": 1.0}
        self.laid: list[str] = []

    def runs(self, layout: str) -> None:
        self.time += self.costs[layout]
        self.laid.append(layout)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A device on which layouts are timed."""
    own = Clock()
    monkeypatch.setattr(layout_trial, "now", lambda: own.time)
    monkeypatch.setattr(Shared, "is_timed", lambda layout, device: True)

    def watched(kind: type) -> Callable[..., Any]:
        running = kind.running

        @contextmanager
        def counted(layout: Any, model: Any) -> Iterator[None]:
            own.runs(layout.name)
            with running(layout, model):
                yield

        return counted

    for kind in (Padded, Shared):
        monkeypatch.setattr(kind, "running", watched(kind))
    return own


def of_layout(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if line.startswith("layout: ")]


@pytest.mark.parametrize(("shared", "chosen"), [(0.5, "shared"), (1.0, "shared"), (2.0, "padded")])
def test_the_faster_layout_is_used_and_its_steps_are_as_if_it_had_been_asked_for(
    shared, chosen, clock, models, chatml_tokenizer, tmp_path: Path, caplog
):
    clock.costs["shared"] = shared
    pairs = random_pairs(12)
    with caplog.at_level(logging.INFO, logger="counterpoint"):
        steps, trainer = train_watched(
            models("qwen2"), chatml_tokenizer, pairs, tmp_path / "auto", **OPTIONS
        )
    said = f"shared {2 * shared:.3g} s, padded 2 s for 6 pairs forward and backward"
    assert of_layout(caplog) == ["layout: shared", f"layout: {chosen} ({said})"]
    asked, _ = train_watched(
        models("qwen2"), chatml_tokenizer, pairs, tmp_path / "asked", layout=chosen, **OPTIONS
    )
    assert [distance(one, other) for one, other in zip(steps, asked, strict=True)] == [0.0, 0.0]
    assert trainer._assembly().layout == chosen


def test_a_cpu_shares_without_asking_the_clock(models, chatml_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(layout_trial, "now", None)
    _, trainer = train_watched(models("qwen2"), chatml_tokenizer, random_pairs(6), tmp_path)
    assert trainer._assembly().layout == "shared"
    assert SHARED.is_timed("cuda")
    assert not PADDED.is_timed("cuda")


def assembly_of(model: Any) -> Assembly:
    return Assembly(
        model,
        wanted="auto",
        vocab_size=640,
        pad_id=0,
        engine=Plain(),
        family=family_of(model.config),
    )


def pairs_of(count: int) -> list[Any]:
    return [to_pair(row) for row in random_pairs(count)]


@pytest.mark.parametrize("kind", ["qwen2", "qwen3_moe"])
def test_the_trial_leaves_nothing_behind(kind, clock, models):
    model = models(kind)
    model.register_buffer("seen", torch.zeros(()))

    def draw(*call: Any) -> None:
        model.seen.add_(torch.rand(()))

    model.register_forward_pre_hook(draw)
    model.train()
    model.model.layers[1].eval()
    first = next(model.parameters())
    first.grad = gradient = torch.ones_like(first)
    modes = [module.training for module in model.modules()]
    assembly = assembly_of(model)
    assembly.micro_batches(pairs_of(8), None, most_pairs=2)  # the proofs
    random, seen = torch.get_rng_state(), float(model.seen)
    clock.laid.clear()
    assembly.choose(pairs_of(8), None, most_pairs=2)
    assert clock.laid.count("padded") == 2 * (1 + layout_trial.REPEATS)
    assert torch.equal(torch.get_rng_state(), random)
    assert float(model.seen) == seen
    assert [module.training for module in model.modules()] == modes
    assert first.grad is gradient
    assert float(gradient.sum()) == gradient.numel()
    assert all(weight.grad is None for weight in list(model.parameters())[1:])


def test_a_round_takes_the_same_pairs_in_both_layouts_forward_and_backward(clock, models):
    model, seen = models("qwen2"), []
    assembly = assembly_of(model)
    assembly.micro_batches(pairs_of(8), None, most_pairs=2)
    clock.laid.clear()

    def count(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        output.logits.register_hook(lambda gradient: seen.append("backward"))
        seen.append("forward")

    model.register_forward_hook(count, with_kwargs=True)
    model.get_output_embeddings().weight.register_hook(lambda gradient: seen.append("backward"))
    assembly.choose(pairs_of(8), None, most_pairs=2)
    rounds = 1 + layout_trial.REPEATS
    assert clock.laid.count("shared") == clock.laid.count("padded") == 2 * rounds
    assert seen == ["forward", "backward"] * (4 * rounds)
    times = assembly.state_dict()["times"]
    assert times == {"seconds": {"shared": 2.0, "padded": 2.0}, "pairs": 4, "rounds": 3}


def test_what_takes_long_is_repeated_less(clock, models):
    clock.costs |= {"shared": 20.0, "padded": 30.0}
    assembly = assembly_of(models("qwen2"))
    assembly.choose(pairs_of(8), None, most_pairs=2)
    assert assembly.state_dict()["times"]["rounds"] == 1


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_layout_that_runs_out_of_memory_is_not_the_one(
    where, clock, models, chatml_tokenizer, tmp_path: Path, caplog
):
    """Padded rows of these pairs have more tokens than fit; shared ones have not."""
    clock.costs["shared"] = 5.0
    pairs, model = pairs_of(6), models("qwen2")
    fits = SHARED.tokens(pairs)
    assert fits < PADDED.tokens(pairs)
    SmallMemory(model, fits, where)
    options = {**OPTIONS, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 1}
    with caplog.at_level(logging.INFO, logger="counterpoint"):
        _, trainer = train_watched(model, chatml_tokenizer, random_pairs(6), tmp_path, **options)
    said = "shared 5 s, padded out of memory for 6 pairs forward and backward"
    assert of_layout(caplog)[1:] == [f"layout: shared ({said})"]
    assert trainer._assembly().state_dict()["times"]["seconds"] == {"shared": 5.0, "padded": None}
    assert trainer.runner.budget.tokens is None  # nothing was learnt that a step would obey


def test_where_neither_fits_the_pairs_are_cut_smaller(clock, models):
    clock.costs["shared"] = 0.1
    pairs, model = pairs_of(8), models("qwen2")
    memory = SmallMemory(model, 60, "backward")
    assembly = assembly_of(model)
    assembly.choose(pairs, None, most_pairs=8)
    assert len(memory.failed) >= 2
    seconds = assembly.state_dict()["times"]["seconds"]
    assert assembly.layout == "shared"
    assert None not in seconds.values()
    assert seconds["padded"] > 1.0  # several micro-batches


def test_a_pair_that_fits_in_no_layout_is_left_to_the_step(clock, models):
    model = models("qwen2")
    assembly = assembly_of(model)
    pairs = pairs_of(2)
    assembly.micro_batches(pairs, None, most_pairs=2)
    SmallMemory(model, 3, "forward")
    assembly.choose(pairs, None, most_pairs=2)
    assert assembly.layout == "shared"
    assert assembly.state_dict()["times"]["seconds"] == {"shared": None, "padded": None}


def test_an_error_that_is_not_memory_is_raised(clock, models):
    model = models("qwen2")
    assembly = assembly_of(model)
    assembly.micro_batches(pairs_of(4), None, most_pairs=2)

    def fail(*call: Any) -> None:
        raise RuntimeError("not of memory")

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="not of memory"):
        assembly.choose(pairs_of(4), None, most_pairs=2)


@pytest.mark.parametrize("shared", [0.5, 2.0])
def test_a_resumed_run_does_not_ask_again(
    shared, clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock.costs["shared"] = shared
    trainer = trainer_of(STEADY, tmp_path, max_steps=1)
    trainer.train()
    before = trainer._assembly().state_dict()
    assert before["times"] is not None
    monkeypatch.setattr(layout_trial, "now", None)
    resumed = trainer_of(STEADY, tmp_path, max_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._assembly().state_dict() == before


def test_a_layout_that_failed_its_proof_is_not_timed(clock, models, monkeypatch):
    from counterpoint.step import assembly as module

    monkeypatch.setattr(module, "layouts_disagree", lambda *facts: "these pairs disagree")
    monkeypatch.setattr(layout_trial, "now", None)
    assembly = assembly_of(models("qwen2"))
    assembly.choose(pairs_of(4), None, most_pairs=2)
    assert assembly.layout == "padded"
    assert assembly.state_dict()["reason"] == "these pairs disagree"


def test_an_evaluation_before_the_first_step_settles_nothing(clock, models):
    clock.costs["shared"] = 2.0
    assembly = assembly_of(models("qwen2"))
    assembly.micro_batches(pairs_of(4), None, most_pairs=2)
    assert assembly.layout == "shared"
    assembly.choose([], None, most_pairs=2)
    assert assembly.layout == "shared"
    assembly.choose(pairs_of(4), None, most_pairs=2)
    assert assembly.layout == "padded"
