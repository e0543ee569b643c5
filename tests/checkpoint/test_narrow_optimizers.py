"""Optimizers whose state is kept in 8 or 4 bits: resumed bit for bit, and counted as they are."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from counterpoint.checkpoint.optimizer import load_named_state, named_state
from counterpoint.checkpoint.tensor_kinds import KIND, from_parts
from counterpoint.checkpoint.tree import read_tree, write_tree
from counterpoint.errors import SetupError
from counterpoint.planner.holdings import holdings_of
from counterpoint.tensor_parts import parts_of

OF_BITSANDBYTES = (
    *("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit"),
    *("paged_lion_32bit", "ademamix", "ademamix_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit"),
)
OF_TORCHAO = ("adamw_torch_8bit", "adamw_torch_4bit")


@pytest.fixture(autouse=True)
def _uncompiled():
    """torchao compiles its arithmetic, which takes longer than the test."""
    stance = torch.compiler.set_stance("force_eager")
    with stance:
        yield


def net(dtype: torch.dtype) -> nn.Module:
    """A weight that is kept in few bits, one of a size that torchao keeps whole, small biases."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(80, 64), nn.Linear(64, 81)).to(dtype)


def made(name: str, model: nn.Module) -> torch.optim.Optimizer:
    pytest.importorskip("torchao" if name in OF_TORCHAO else "bitsandbytes")
    args = TrainingArguments(output_dir="none", optim=name, use_cpu=True, report_to="none")
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    return kind(model.parameters(), **options)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    rows = torch.randn(8, 80, generator=generator).to(next(model.parameters()).dtype)
    optimizer.zero_grad()
    model(rows).float().square().sum().backward()
    optimizer.step()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*OF_BITSANDBYTES, *OF_TORCHAO])
def test_a_state_goes_through_a_checkpoint_bit_for_bit(name, dtype, tmp_path: Path):
    model = net(dtype)
    optimizer = made(name, model)
    for number in range(3):
        step(model, optimizer, number)
    write_tree(tmp_path, "optimizer", named_state(optimizer, model))
    other = copy.deepcopy(model)
    resumed = made(name, other)
    load_named_state(resumed, other, read_tree(tmp_path, "optimizer"))
    for number in range(3, 6):
        step(model, optimizer, number)
        step(other, resumed, number)
    for one, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, same)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw_torch", *OF_BITSANDBYTES, *OF_TORCHAO])
def test_the_planner_counts_what_is_kept(name, dtype):
    model = net(dtype)
    optimizer = made(name, model)
    step(model, optimizer, 0)
    kept = {
        part.untyped_storage().data_ptr(): part.numel() * part.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, Tensor) and key != "step"
        for part in parts_of(value)
    }
    tables = 4096 if "8bit" in name or "4bit" in name else 0  # of what a code means, not a weight
    assert holdings_of(model, optim=name).optimizer == pytest.approx(sum(kept.values()), abs=tables)


def test_a_file_names_no_class_of_its_own():
    with pytest.raises(SetupError, match=r"CP512 .*'Popen'"):
        from_parts({KIND: "Popen", "parts": {}, "facts": []})
