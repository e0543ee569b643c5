"""What a run has proved is in its checkpoints: resumed, it decides nothing anew."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint.forward import kernels
from counterpoint.forward.layouts import PADDED, SHARED
from counterpoint.forward.varlen_attention import AttentionCall
from counterpoint.step import assembly
from counterpoint.step.assembly import Assembly
from tests.reliability.scenarios import trainer_of

PROOFS = ("prove_head", "prove_routers", "layouts_disagree")
STEADY = {"lr_scheduler_type": "constant"}
CALL = AttentionCall(heads=4, kv_heads=2, width=8, value_width=8, window=None, plain=True)
DIFFERS = "kernel values differ by 1.0e-01 where 3e-02 is rounding"


@pytest.fixture
def proved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the proofs that were made, in their order."""
    made: list[str] = []

    def counted(name: str, proof: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *facts: made.append(name) or proof(*facts)  # type: ignore[func-returns-value]

    for name in PROOFS:
        monkeypatch.setattr(assembly, name, counted(name, getattr(assembly, name)))
    return made


@pytest.mark.parametrize("kind", ["qwen2", "qwen3_moe"])
def test_a_resumed_run_proves_nothing_again_though_its_first_pairs_are_others(
    kind: str, tmp_path: Path, proved: list[str]
) -> None:
    trainer_of({"kind": kind, **STEADY}, tmp_path, max_steps=1).train()
    assert proved == [name for name in PROOFS if name != "prove_routers" or kind == "qwen3_moe"]
    proved.clear()
    resumed = trainer_of({"kind": kind, **STEADY}, tmp_path, max_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert proved == []
    assert resumed._assembly().layout == SHARED.name


def test_a_layout_that_failed_its_proof_is_not_tried_again(
    tmp_path: Path,
    proved: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(assembly, "layouts_disagree", lambda *facts: "these pairs disagree")
        trainer_of(STEADY, tmp_path, max_steps=1).train()
    proved.clear()
    resumed = trainer_of(STEADY, tmp_path, max_steps=2)
    with caplog.at_level(logging.INFO, logger="counterpoint"):
        resumed.train(resume_from_checkpoint=True)
    assert proved == []
    assert resumed._assembly().layout == PADDED.name
    assert "layout: padded (these pairs disagree)" in caplog.messages


def test_a_head_that_failed_its_proof_stays_the_models_own(
    tmp_path: Path, proved: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(assembly, "prove_head", lambda model, head, *_: replace(head, dense=True))
        trainer_of(STEADY, tmp_path, max_steps=1).train()
    resumed = trainer_of(STEADY, tmp_path, max_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._assembly().head.dense
    assert "prove_head" not in proved


def test_what_was_found_of_a_kernel_travels(tmp_path: Path) -> None:
    found = {("varlen", CALL, torch.bfloat16): None, ("varlen", CALL, torch.float16): DIFFERS}
    trainer = trainer_of(STEADY, tmp_path, max_steps=1)
    kernels.proofs_of(trainer.model).update(found)
    trainer.train()
    resumed = trainer_of(STEADY, tmp_path, max_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert found == kernels.proofs_of(resumed.model)


def test_other_conditions_are_proved_anew(tmp_path: Path, proved: list[str]) -> None:
    trainer_of(STEADY, tmp_path, max_steps=1).train()
    proved.clear()
    resumed = trainer_of(STEADY, tmp_path, max_steps=2, layout=PADDED.name)
    resumed.train(resume_from_checkpoint=True)
    assert proved == ["prove_head"]  # the option asks for the layout, which needs no proof
    assert resumed._assembly().layout == PADDED.name


def test_a_checkpoint_that_knows_the_layout_alone_has_the_rest_proved(
    tmp_path: Path, proved: list[str]
) -> None:
    """As 0.4 wrote them."""
    trainer = trainer_of(STEADY, tmp_path, max_steps=1)
    state = {**trainer.state_dict(), "layout": PADDED.name}
    del state["proofs"]
    trainer._known_proofs = {"layout": state["layout"]}
    made: Assembly = trainer._assembly()
    trainer.train()
    assert proved == ["prove_head"]
    assert made.layout == PADDED.name
    assert made.state_dict()["reason"] == "as before the checkpoint"
