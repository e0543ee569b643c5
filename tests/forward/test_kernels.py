"""The tables of kernels: who runs, who is compared first, and what a resumed run knows of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import counterpoint.forward.kernel_proof as kernel_proof
from counterpoint.forward import kernels
from counterpoint.forward.head import Head, find_head, prove_head
from counterpoint.forward.kernel_proof import prove_kernel
from counterpoint.forward.kernels import (
    ATTENTION_KERNELS,
    HEAD_KERNELS,
    PAIRWISE,
    PROOFS,
    HeadKernel,
    load_state_dict,
    may_run,
    proofs_of,
    register_attention_kernel,
    register_head_kernel,
    state_dict,
    trusted_head_kernel,
)
from counterpoint.forward.pairwise_attention import attend_to_pairs
from counterpoint.forward.shared_attention import SharedRow, shared_attention
from counterpoint.forward.token_logps import dense_token_logps
from counterpoint.forward.varlen_attention import AttentionCall
from tests.forward.test_shared_attention import segments_of
from tests.models_on_the_spot import make_model

CPU, FLOAT = torch.device("cpu"), torch.float32
CALL = AttentionCall(heads=4, kv_heads=2, width=16, value_width=16, window=None, plain=True)
SEGMENTS = segments_of([(4, 3, 5), (2, 6, 1)])
IDS = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """The tables and what is proved, as they are again afterwards."""
    before = [(table, dict(table)) for table in (HEAD_KERNELS, ATTENTION_KERNELS, PROOFS)]
    PROOFS.clear()
    yield
    for table, rows in before:
        table.clear()
        table.update(rows)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (Head(nn.Linear(4, 7)), "tiles"),
        (Head(nn.Sequential(nn.Linear(4, 7))), "chunks"),
        (Head(nn.Linear(4, 7), dense=True), "logits"),
    ],
)
def test_a_head_is_taken_by_one_kernel_that_needs_no_proof(head: Head, name: str) -> None:
    projection = head.projection(torch.zeros(2, 7 if head.dense else 4))
    takers = [k.name for k in HEAD_KERNELS.values() if k.trusted and k.takes(projection, "cpu")]
    assert takers == [name] == [trusted_head_kernel(projection)]


def test_a_head_reads_its_weight_through_the_engine() -> None:
    half, whole = nn.Linear(4, 3, bias=False), torch.randn(7, 4)
    head = Head(half, whole=lambda weight: whole)
    hidden, ids = torch.randn(5, 4), torch.tensor([0, 6, 3, 2, 5])
    found, _ = head.token_logps(hidden, ids)
    torch.testing.assert_close(found, dense_token_logps(hidden @ whole.T, ids)[0])


def own_head_kernel(scale: float, gradient: float) -> HeadKernel:
    """A kernel of somebody else's that may be wrong in value or in gradient."""

    def run(head: Any, hidden: torch.Tensor, ids: torch.Tensor):
        hidden = hidden * gradient + (hidden * (1 - gradient)).detach()
        return dense_token_logps(head.module(hidden) * scale, ids)

    return HeadKernel("another", takes=lambda head, device: device == "cpu", run=run)


@pytest.mark.parametrize(
    ("scale", "gradient", "kernel"), [(1.0, 1.0, "another"), (1.1, 1.0, None), (1.0, 0.5, None)]
)
def test_a_head_kernel_from_outside_runs_where_its_values_and_gradients_are_right(
    models, scale: float, gradient: float, kernel: str | None
) -> None:
    register_head_kernel(own_head_kernel(scale, gradient))
    model = models("qwen2")
    head = prove_head(model, find_head(model), IDS)
    assert (head.kernel, head.dense) == (kernel, False)
    assert find_head(model).kernel is None
    with pytest.raises(ValueError, match="'another' already"):
        register_head_kernel(own_head_kernel(scale, gradient))


def own_attention(calls: list[int], times: float = 1.0) -> None:
    """Register a kernel of somebody else's that may be wrong."""

    def run(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(0)
        return attend_to_pairs(*args, **options) * times

    register_attention_kernel(
        replace(PAIRWISE, name="mine", run=run, trusted=False, takes=lambda call, dtype: True)
    )


def attended(dtype: torch.dtype = FLOAT) -> torch.Tensor:
    from counterpoint.forward.shared_attention import _attend

    generator = torch.Generator().manual_seed(0)
    tokens = sum(s.tokens for s in SEGMENTS)
    states = [torch.randn(1, heads, tokens, 16, generator=generator) for heads in (4, 2, 2)]
    options = {"scaling": None, "window": None, "softcap": None, "sinks": None}
    return _attend(*(s.to(dtype) for s in states), SharedRow.of(SEGMENTS, CPU), **options)


def test_an_attention_kernel_from_outside_runs_once_it_is_proved_and_in_that_dtype_alone() -> None:
    calls: list[int] = []
    own_attention(calls)
    expected = attended()
    assert not calls
    prove_kernel(CALL, SEGMENTS, FLOAT, CPU)
    calls.clear()
    torch.testing.assert_close(attended(), expected)
    assert len(calls) == 1
    attended(torch.bfloat16)
    assert len(calls) == 1


def test_a_wrong_one_never_runs_and_the_reason_is_said(caplog) -> None:
    calls: list[int] = []
    own_attention(calls, times=1.01)
    prove_kernel(CALL, SEGMENTS, FLOAT, CPU)
    assert "attention goes pair by pair: the kernel's values differ by 1.0e-02" in caplog.text
    calls.clear()
    attended()
    assert not calls
    assert not may_run("mine", CALL, FLOAT)


def test_a_call_with_a_soft_cap_is_not_proved_by_one_without() -> None:
    own_attention([])
    prove_kernel(replace(CALL, plain=False), SEGMENTS, FLOAT, CPU)
    assert PROOFS == {}


@pytest.mark.parametrize("times", [1.0, 1.01])
def test_a_resumed_run_decides_nothing_anew(times: float, monkeypatch) -> None:
    own_attention([], times)
    prove_kernel(CALL, SEGMENTS, FLOAT, CPU)
    kept, found = json.loads(json.dumps(state_dict(PROOFS))), dict(PROOFS)
    [key] = found
    PROOFS.clear()
    PROOFS[key] = "of another run in this process" if times == 1.0 else None
    load_state_dict(kept, PROOFS)
    assert found == PROOFS
    monkeypatch.setattr(kernel_proof, "kernel_disagrees", lambda *args: pytest.fail("again"))
    prove_kernel(CALL, SEGMENTS, FLOAT, CPU)
    assert kernels.may_run("mine", CALL, FLOAT) == (times == 1.0)


def test_two_models_in_a_process_do_not_meet_each_others_proofs() -> None:
    """As two trainers, or a teacher and its student; one of them resumed from a checkpoint."""
    calls: list[int] = []
    own_attention(calls)
    one, other = make_model("qwen2"), make_model("qwen2")
    with shared_attention(one):
        prove_kernel(CALL, SEGMENTS, FLOAT, CPU)
        calls.clear()
        row = SharedRow.of(SEGMENTS, CPU)
        attended()
    assert len(calls) == 1
    with shared_attention(other):
        attended()
        assert len(calls) == 1
        # what another run's checkpoint says is of its own model
        kept = json.loads(json.dumps(state_dict(proofs_of(one))))
        kept["attention"][0]["differs"] = "on another machine"
        load_state_dict(kept, proofs_of(other))
        prove_kernel(CALL, SEGMENTS, FLOAT, CPU)
        assert not may_run("mine", CALL, FLOAT)
    assert may_run("mine", CALL, FLOAT, row.proofs)
    assert PROOFS == {}
