"""The table of what trains how is proved cell by cell, over the table itself.

A kind, a layout or an engine that is new is in the table at once, and fails here until there is a
model to prove it on, or a proof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from counterpoint import ConfigError, CPOConfig
from counterpoint.cli.parts import adapter_config
from counterpoint.engine.ddp import Ddp
from counterpoint.engine.plain import Plain
from counterpoint.engine.table import ENGINES, engine_for
from counterpoint.forward.head import find_head
from counterpoint.forward.layouts import LAYOUTS, PICTURES_TWICE
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.forward.sights import SIGHTS
from counterpoint.models.support import ADAPTER, support, support_columns
from counterpoint.options.run_options import RunOptions
from counterpoint.records import TokenPair
from tests.float64 import Float64Throughout
from tests.forward.test_seeing import distance, of_layout, one_at_a_time
from tests.vision_on_the_spot import Made, seen_pairs, seer

TABLE, COLUMNS = support(), support_columns()
WHY_NOT = {(row.kind, column): row.why_not[column] for row in TABLE for column in COLUMNS}


pytestmark = [
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad"),
    # GLM's processor, and PEFT of experts that are one weight
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys"),
]

LIMIT = 1e-12
"""Of differences in float64 throughout, relative."""


@cache
def made(kind: str) -> Made:
    """One model of a kind for all of its cells; a kind without one has no proof."""
    return seer(kind, torch.float64)


def some(kind: str) -> list[TokenPair]:
    """A pair about one picture, one about none, one about two."""
    return seen_pairs(made(kind))[:3]


@cache
def truth(kind: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    return one_at_a_time(made(kind), some(kind))


def lies_as_told(kind: str, layout: str) -> None:
    """Values and gradients are those of one completion at a time."""
    chosen, rejected, expected = truth(kind)
    logps, found = of_layout(made(kind), LAYOUTS[layout], some(kind))
    for one, other in ((chosen, logps.chosen), (rejected, logps.rejected)):
        assert float(((one - other) / one).abs().max()) <= LIMIT
    assert distance(found, expected) <= LIMIT


def stepped(kind: str, engine: Any, wrapped: nn.Module) -> dict[str, Tensor]:
    """The gradient of a step of two micro-batches through an engine, the first one of text."""
    model: Any = made(kind)[0]
    model.zero_grad(set_to_none=True)
    pictures, text, more = some(kind)
    for number, pairs in enumerate(([text], [pictures, more])):
        with PICTURES_TWICE.running(model), engine.accumulating(wrapped, last=number == 1):
            batch = PICTURES_TWICE.collate(pairs)
            logps = pair_forward(wrapped, find_head(model), batch).logps
            weights = torch.tensor([pair.row for pair in pairs]) + 1
            loss = (weights * (logps.chosen - 0.5 * logps.rejected)).sum()
            (loss * engine.loss_factor).backward()
    return {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


def steps_on_one_process(kind: str) -> None:
    """Two micro-batches make the gradient of all pairs, one at a time."""
    model = made(kind)[0]
    assert distance(stepped(kind, Plain(), model), truth(kind)[2]) <= LIMIT


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process, so that DDP wraps, looks for weights and reduces."""
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("ranks") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def steps_in_ddp(kind: str) -> None:
    """The same through DDP as the engine has accelerate set it up."""
    model, handler = made(kind)[0], DistributedDataParallelKwargs()
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.MULTI_CPU, ddp_handler=handler, state=None
    )
    engine = engine_for(accelerator, model)
    assert isinstance(engine, Ddp)
    wrapped = DistributedDataParallel(model, find_unused_parameters=handler.find_unused_parameters)
    assert distance(stepped(kind, engine, wrapped), truth(kind)[2]) <= LIMIT


def adapts(kind: str) -> None:
    """An adapter of the language model alone has one gradient in every layout that is told of."""
    model, processor = seer(kind, torch.float64)
    run = RunOptions(model="m", dataset=["d"], lora_r=2)
    config = adapter_config(run, CPOConfig(output_dir="out", use_cpu=True), model.config)
    assert config is not None
    adapted: Any = peft.get_peft_model(model, config).double().eval()
    sight = SIGHTS[kind]
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert trained
    parts = (*sight.tower, *sight.projector)
    assert [name for name in trained for part in parts if f".{part}." in name] == []
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in trained.values():
            weight.normal_(0, 0.15)
    pairs = seen_pairs((model, processor))[:3]
    gradients = [
        of_layout((adapted, processor), LAYOUTS[name], pairs)[1]
        for name in LAYOUTS
        if WHY_NOT.get((kind, name), "") is None
    ]
    reached = [name for name, one in gradients[0].items() if float(one.norm()) > 0]
    assert len(reached) == len(trained)
    assert all(distance(one, gradients[0]) <= LIMIT for one in gradients[1:])


PROOFS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(LAYOUTS, lies_as_told),
    "plain": lambda kind, _: steps_on_one_process(kind),
    "ddp": lambda kind, _: steps_in_ddp(kind),
    ADAPTER: lambda kind, _: adapts(kind),
}
"""Column -> what proves a yes in it."""


def test_the_table_has_every_kind_that_is_known_to_see() -> None:
    assert [row.kind for row in TABLE] == list(SIGHTS)
    assert all(set(row.why_not) == set(COLUMNS) for row in TABLE)
    assert set(ENGINES) <= set(COLUMNS)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize(
    ("kind", "column"), [cell for cell, reason in WHY_NOT.items() if reason is None]
)
def test_every_yes_is_proved(kind: str, column: str) -> None:
    with Float64Throughout():
        PROOFS[column](kind, column)


@pytest.mark.parametrize(
    ("kind", "column"), [cell for cell, reason in WHY_NOT.items() if reason is not None]
)
def test_every_no_is_refused_with_the_reason_of_the_table(kind: str, column: str) -> None:
    model, told = made(kind)[0], WHY_NOT[kind, column]
    if column in LAYOUTS:
        assert LAYOUTS[column].why_not(model) == told
        return
    assert column in ENGINES
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, state=None)
    with pytest.raises(ConfigError, match=r"^CP105 ") as caught:
        engine_for(accelerator, model)
    assert str(told) in caught.value.message


def test_the_pages_show_the_table() -> None:
    for page in ("vision.md", "vision.zh-CN.md"):
        text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
        block = text.split("<!-- support: begin -->")[1].split("<!-- support: end -->")[0]
        head, _, *rows = [line.strip("| ").split(" | ") for line in block.strip().splitlines()]
        assert len(head) == 1 + len(COLUMNS)
        told = {row[0].strip("`"): row[1:] for row in rows}
        assert told == {
            row.kind: ["no" if row.why_not[column] else "yes" for column in COLUMNS]
            for row in TABLE
        }
