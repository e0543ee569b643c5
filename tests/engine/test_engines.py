"""Engines: the gradient is that of the sum over all pairs, and what runs is what was set up."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers.training_args import ParallelMode

from counterpoint import ConfigError, SetupError, ranks
from counterpoint.engine.ddp import Ddp
from counterpoint.engine.face import Engine
from counterpoint.engine.fsdp2 import Fsdp2, _managed, sharding_keywords
from counterpoint.engine.plain import Plain
from counterpoint.engine.table import (
    ENGINES,
    engine_for,
    launched_for,
    refusal,
    register_engine,
    settle,
)
from counterpoint.models.loading import random_model
from counterpoint.models.weights import WeightsPolicy
from tests.engine.ranks import PAIRS, loss_of, made
from tests.invariance.ranks import CASES, flat, run_case
from tests.invariance.test_ranks import launch
from tests.models_on_the_spot import make_model
from tests.steps import distance
from tests.vision_on_the_spot import seer


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
    assert not engine.shards
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


@pytest.mark.parametrize("kind", [DistributedType.MEGATRON_LM, DistributedType.DEEPSPEED])
def test_what_no_engine_runs_is_refused_by_its_name(kind: DistributedType) -> None:
    with pytest.raises(ConfigError, match=rf"^CP105 accelerate is set up for {kind.value}, but "):
        engine_for(set_up(kind))


def test_a_model_of_which_a_process_has_a_part_is_refused() -> None:
    class Sharded(nn.Parameter):
        def to_local(self) -> torch.Tensor:
            return self.data

    model = made()
    model.bias = Sharded(torch.zeros(2))
    with pytest.raises(
        ConfigError, match=r"^CP105 bias is sharded; a model is trained whole on every"
    ):
        engine_for(set_up(DistributedType.NO), model)


def test_deepspeed_is_refused_with_the_reason_and_what_to_use() -> None:
    with pytest.raises(ConfigError, match=r"steps DeepSpeed's optimizer within .* use fsdp"):
        engine_for(set_up(DistributedType.DEEPSPEED))


@pytest.mark.parametrize("kind", [DistributedType.NO, DistributedType.MULTI_CPU])
def test_sharding_that_was_asked_for_and_did_not_come_out_is_refused(
    kind: DistributedType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as datasets does after a map with processes: the environment is another object from then on
    monkeypatch.setattr(os, "environ", copy.deepcopy(os.environ))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=rf"^CP105 sharding was asked .* set up for {kind.value}"):
        engine_for(set_up(kind))
    assert refusal(kind.value) is not None
    assert refusal("FSDP") is None


def test_weights_that_are_tied_over_several_wraps_are_refused_with_a_code() -> None:
    def refuses() -> None:
        raise ValueError("Parameter 'shared.weight' is shared with a parameter already managed")

    module = SimpleNamespace(_get_fsdp_state=lambda: SimpleNamespace(_lazy_init=refuses))
    with pytest.raises(
        ConfigError, match=r"^CP105 torch cannot shard .*'shared.weight'.* Leave fs"
    ):
        _managed(module)


def test_version_1_of_fsdp_is_refused_with_what_to_set() -> None:
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1))
    set_up_so = SimpleNamespace(distributed_type=DistributedType.FSDP, state=state, prepare=None)
    with pytest.raises(ConfigError, match=r"^CP105 accelerate .* set version 2: --fsdp_version 2"):
        engine_for(set_up_so, made())
    state.fsdp_plugin.fsdp_version = 2
    assert engine_for(set_up_so, made()).name == "fsdp2"


def test_checkpointing_with_other_dropout_is_refused_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", "true")  # as accelerate launch says it
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    set_up_so = SimpleNamespace(
        distributed_type=DistributedType.FSDP,
        state=SimpleNamespace(fsdp_plugin=plugin),
        prepare=None,
    )
    with pytest.raises(ConfigError, match=r"^CP105 .*other dropout.* gradient_checkpointing=True"):
        engine_for(set_up_so, made())
    plugin.activation_checkpointing = False
    assert engine_for(set_up_so, made()).name == "fsdp2"


def test_parts_that_see_are_looked_for_by_ddp_and_refused_in_shards() -> None:
    def told(kind: DistributedType, model: nn.Module) -> bool:
        handler = SimpleNamespace(find_unused_parameters=False)
        engine_for(SimpleNamespace(distributed_type=kind, ddp_handler=handler, state=None), model)
        return handler.find_unused_parameters

    model, _ = seer("llava")
    assert told(DistributedType.MULTI_CPU, model)
    assert not told(DistributedType.MULTI_CPU, made())
    with pytest.raises(ConfigError, match=r"^CP105 what sees is gathered by all ranks together"):
        told(DistributedType.FSDP, model)


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
    args = SimpleNamespace(ddp_broadcast_buffers=given, fsdp=None)
    settle(args)
    assert args.ddp_broadcast_buffers is kept


@pytest.mark.parametrize(
    ("fsdp", "copies", "count", "said"),
    [
        (None, 2, 4, "CP104 fsdp_replicas=2 makes copies of a model in shards"),
        (True, 3, 4, "CP103 fsdp_replicas=3 should divide the 4 ranks"),
        (True, 4, 4, "leave each copy at least 2"),
    ],
)
def test_copies_that_ranks_cannot_hold_are_refused(
    monkeypatch: pytest.MonkeyPatch, fsdp: bool | None, copies: int, count: int, said: str
) -> None:
    monkeypatch.setattr(ranks, "count", lambda: count)
    args = on_cpus(fsdp=fsdp, fsdp_replicas=copies)
    with pytest.raises(ConfigError, match=said):
        settle(args)


def on_cpus(**options: Any) -> Any:
    """As many options as the engines read, of ranks on CPUs."""
    kind = ParallelMode.DISTRIBUTED if ranks.count() > 1 else ParallelMode.NOT_PARALLEL
    given = {"ddp_broadcast_buffers": False, "fsdp": True, "fsdp_config": None, **options}
    return SimpleNamespace(device=torch.device("cpu"), parallel_mode=kind, **given)


def test_a_model_by_its_name_is_read_in_shards_by_several_ranks_on_cpus(monkeypatch) -> None:
    assert sharding_keywords(on_cpus()) == {}
    with pytest.raises(ConfigError, match=r"^CP105 fsdp spreads a model .*torchrun --nproc-per-"):
        settle(on_cpus())
    monkeypatch.setattr(ranks, "count", lambda: 4)
    settle(on_cpus())
    assert sharding_keywords(on_cpus(fsdp=None)) == {}
    normal = {"min_num_params": 0, "xla": False, "version": 2}
    for copies, size in ((None, 4), (2, 2)):
        said = sharding_keywords(on_cpus(fsdp_config=dict(normal), fsdp_replicas=copies))
        expected = {"fsdp_size": size, "dp_replicate_size": copies or 1}
        assert said == {"distributed_config": expected}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fsdp_config": {"reshard_after_forward": True}}, "CP104 fsdp_config with reshard_after"),
        ({"fsdp_replicas": 3}, "CP103 fsdp_replicas=3 should divide the 4 ranks"),
    ],
)
def test_what_shards_on_cpus_cannot_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 4)
    with pytest.raises(ConfigError, match=said):
        sharding_keywords(on_cpus(**options))


def test_shards_on_cpus_are_refused_where_an_accelerator_would_get_them(monkeypatch) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 4)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(SetupError, match=r"^CP503 fsdp on CPUs beside an accelerator .* Hide it"):
        sharding_keywords(on_cpus())


def test_shards_on_cpus_come_from_files_alone_and_are_asked_for_once(monkeypatch) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 4)
    args = on_cpus(model_init_kwargs={"distributed_config": {}}, stochastic_rounding=False)
    with pytest.raises(ConfigError, match=r"^CP104 fsdp and the distributed_config in model_init"):
        WeightsPolicy("auto").keywords(args)
    with pytest.raises(ConfigError, match=r"^CP104 from_scratch makes the whole model"):
        random_model("here", args, None)


def test_an_adapter_that_was_made_for_a_part_of_a_layer_is_refused():
    """As PEFT makes it on a mesh with copies, which it takes for tensor parallelism."""
    model = get_peft_model(make_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    assert Fsdp2().refuses(model) is None
    layer = model.get_submodule("base_model.model.model.layers.1.self_attn.q_proj")
    layer.out_features //= 2
    assert "layers.1.self_attn.q_proj for one rank's part of it" in str(Fsdp2().refuses(model))


def test_in_mixed_precision_gradients_are_added_up_in_float32_and_codes_are_left_as_they_are():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    plugin.set_mixed_precision("bf16")
    Fsdp2(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), prepare=None))
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    # what transformers asks for where codes of 4 bits are stored in bfloat16
    plugin.set_mixed_precision(torch.bfloat16, override=True)
    assert plugin.mixed_precision_policy is None
