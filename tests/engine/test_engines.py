"""Engines: the gradient is that of the sum over all pairs, and what runs is what was set up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import nn

from counterpoint import ConfigError
from counterpoint.engine.ddp import Ddp
from counterpoint.engine.face import Engine
from counterpoint.engine.plain import Plain
from counterpoint.engine.table import (
    ENGINES,
    engine_for,
    launched_for,
    refusal,
    register_engine,
    settle,
)
from tests.engine.ranks import PAIRS, loss_of, made
from tests.invariance.ranks import CASES, flat, run_case
from tests.invariance.test_ranks import launch
from tests.steps import distance


def set_up(kind: DistributedType) -> Any:
    """As much of an accelerator as the choice of an engine reads."""
    return SimpleNamespace(distributed_type=kind)


def whole_step(engine: Engine) -> nn.Module:
    """The model after the backward of a step of two micro-batches, on one process."""
    model = made()
    for number, rows in enumerate((range(3), range(3, PAIRS))):
        with engine.autocast(), engine.accumulating(model, last=number == 1):
            (loss_of(model, list(rows)) * engine.loss_factor).backward()
    return model


@pytest.fixture
def table() -> Iterator[dict[str, type[Engine]]]:
    """The engines, as they are again afterwards."""
    before = dict(ENGINES)
    yield ENGINES
    ENGINES.clear()
    ENGINES.update(before)


def test_one_process_has_everything_and_waits_for_nobody() -> None:
    engine, model = Plain(), made()
    assert (engine.loss_factor, engine.collective_passes) == (1, frozenset())
    assert engine.whole_weight(model.weight) is model.weight
    assert engine.own_part(model.weight) is model.weight
    assert engine.watches
    assert engine.state_for_saving({"a": 1}) == engine.state_to_load({"a": 1}) == {"a": 1}
    assert float(engine.whole_norm(model.parameters())) == 0.0
    model = whole_step(engine)
    squares = sum(float(p.grad.square().sum()) for p in model.parameters())
    assert float(engine.whole_norm(model.parameters())) == pytest.approx(squares**0.5, rel=1e-14)


def test_one_process_under_ddp_meets_nobody() -> None:
    assert (Ddp().loss_factor, Ddp().collective_passes) == (1, frozenset())


@pytest.mark.slow
def test_the_gradient_of_two_ranks_is_that_of_the_sum_over_all_pairs(tmp_path: Path) -> None:
    for code, output in launch("tests.engine.ranks", [str(tmp_path)]):
        assert code == 0, output[-3000:]
    alone = whole_step(Plain())
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for one in said:
        torch.testing.assert_close(
            torch.tensor(one["gradient"], dtype=torch.float64),
            alone.weight.grad,
            rtol=1e-14,
            atol=0,
        )
        norm = float(Plain().whole_norm(alone.parameters()))
        assert one["norm"] == pytest.approx(norm, rel=1e-14)
        assert (one["factor"], one["passes"]) == (2, ["last backward"])
        assert one["sends buffers"]
    assert said[0]["between"] != said[1]["between"]  # nothing was exchanged before the last
    assert [one["writes"] for one in said] == [{"weight": 1}, None]
    assert [one["watches"] for one in said] == [True, False]


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        (DistributedType.NO, Plain),
        (DistributedType.MULTI_CPU, Ddp),
        (DistributedType.MULTI_GPU, Ddp),
    ],
)
def test_the_engine_is_what_accelerate_has_set_up(
    kind: DistributedType, engine: type[Engine]
) -> None:
    assert type(engine_for(set_up(kind))) is engine
    assert refusal(kind.value) is None


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_what_no_engine_runs_is_refused_by_its_name(kind: DistributedType) -> None:
    with pytest.raises(ConfigError, match=rf"^CP105 accelerate is set up for {kind.value}, but "):
        engine_for(set_up(kind))


def test_a_model_of_which_a_process_has_a_part_is_refused() -> None:
    class Sharded(nn.Parameter):
        def to_local(self) -> torch.Tensor:
            return self.data

    model = made()
    model.bias = Sharded(torch.zeros(2))
    with pytest.raises(ConfigError, match=r"^CP105 bias is sharded, and sharded engines are not"):
        engine_for(set_up(DistributedType.NO), model)


@pytest.mark.parametrize(
    ("kind", "said", "made_of_it"),
    [
        ("MULTI_GPU", {"ACCELERATE_USE_FSDP": "true"}, "FSDP"),
        ("MULTI_GPU", {"ACCELERATE_USE_FSDP": "false"}, "MULTI_GPU"),
        ("MULTI_GPU", {"ACCELERATE_USE_DEEPSPEED": "True"}, "DEEPSPEED"),
        ("MULTI_CPU", {"ACCELERATE_USE_FSDP": "true"}, "MULTI_CPU"),
        ("NO", {}, "NO"),
    ],
)
def test_what_a_launcher_asks_for_is_known_before_it_is_set_up(
    kind: str, said: dict[str, str], made_of_it: str
) -> None:
    assert launched_for(kind, said) == made_of_it


def test_an_engine_from_outside_runs_where_it_says_and_takes_the_place_of_another(table) -> None:
    @register_engine
    class Summing(Ddp):
        """As DDP with a hook that adds gradients up."""

        name = "summing"
        reduction = "sum"

        @classmethod
        def runs(cls, kind: str) -> bool:
            return kind in ("FSDP", "MULTI_CPU")

    assert type(engine_for(set_up(DistributedType.FSDP))) is Summing
    assert type(engine_for(set_up(DistributedType.MULTI_CPU))) is Summing
    assert type(engine_for(set_up(DistributedType.MULTI_GPU))) is Ddp
    assert Summing().loss_factor == 1
    with pytest.raises(ValueError, match="'summing' already"):
        register_engine(Summing)


@pytest.mark.slow
def test_a_run_through_an_engine_from_outside_takes_the_same_steps(tmp_path: Path) -> None:
    for code, output in launch("tests.engine.summing_ranks", [str(tmp_path)]):
        assert code == 0, output[-3000:]
    alone = run_case(CASES["sigmoid"], tmp_path / "alone", ranks=1)
    together = load_file(tmp_path / "gradients.safetensors")
    assert distance(flat(alone["gradients"]), together) <= 1e-12


@pytest.mark.parametrize(("given", "kept"), [(None, False), (False, False), (True, True)])
def test_buffers_are_sent_round_only_where_it_is_asked_for(given: bool | None, kept: bool) -> None:
    args = SimpleNamespace(ddp_broadcast_buffers=given)
    settle(args)
    assert args.ddp_broadcast_buffers is kept
