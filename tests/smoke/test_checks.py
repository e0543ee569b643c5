"""Every check holds for a healthy run and fails for the fault it is there for."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from peft import LoraConfig

from counterpoint import ConfigError, CPOConfig, CPOTrainer
from counterpoint.data.pair_columns import to_pair
from counterpoint.forward.layouts import SHARED
from counterpoint.losses.objective import Objective
from counterpoint.objectives import LOSSES
from counterpoint.records import PairBatch, StepTotals
from counterpoint.smoke import checks, miniature
from counterpoint.smoke.checks import make_check
from counterpoint.smoke.miniature import Miniature
from counterpoint.smoke.report import Check
from counterpoint.step import assembly
from tests.models_on_the_spot import MakeModel
from tests.reliability.trials import TORTURE
from tests.steps import OBJECTIVES, random_pairs, reads_gold, with_gold

Make = Callable[..., Miniature]

LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")


ONE_OF_EACH = {
    LOSSES[options["loss_type"]].math: name for name, options in OBJECTIVES.items()
}.values()
"""An objective for each way of computing a loss; make torture takes all."""


@pytest.fixture
def make(tmp_path: Path, models: MakeModel, chatml_tokenizer) -> Make:
    """A miniature of a kind of model, with the options of a run."""

    def made(kind: str = "qwen2", *, peft: Any = None, **options: Any) -> Miniature:
        defaults = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
        rows = random_pairs(16, weighted=False)
        rows = with_gold(rows) if reads_gold(options) else rows
        return Miniature(
            args=CPOConfig(
                output_dir=str(tmp_path / "own"), use_cpu=True, **{**defaults, **options}
            ),
            model=models(kind),
            tokenizer=copy.deepcopy(chatml_tokenizer),
            peft_config=peft,
            pairs=[to_pair(row) for row in rows],
            folder=tmp_path / "small",
        )

    return made


def all_of(mini: Miniature) -> dict[str, Check]:
    trained = mini.train("trained", judged=True)
    made = [
        make_check(checks.LOSS, checks.loss_falls, mini, trained),
        make_check(checks.MOVE, checks.weights_move, trained),
        make_check(checks.STAY, checks.frozen_stay, trained),
        make_check(checks.LAYOUTS_AGREE, checks.layouts_agree, mini),
        make_check(checks.SPLITS_AGREE, checks.splits_agree, mini),
        make_check(checks.RELOAD, checks.save_reloads, mini, trained),
        make_check(checks.RESUME, checks.resume_goes_on, mini, trained),
    ]
    assert [check.name for check in made] == list(checks.NAMES)
    return {check.name: check for check in made}


def statuses(found: dict[str, Check]) -> dict[str, str]:
    return {name: check.status for name, check in found.items() if check.status != "ok"}


def test_a_run_over_quantised_weights_in_shards_is_tried_by_one_process_on_plain_ones(make: Make):
    with mock.patch.dict(os.environ):  # transformers writes into it that it was asked to shard
        picture = make(peft=LORA, load_in_4bit=True, fsdp="2").gradient()
    assert all("lora" in name for name in picture)
    assert any(bool(one.any()) for one in picture.values())


IN_ORDER: list[tuple[str, dict[str, Any], Any]] = [
    ("qwen2_tied", {}, {checks.STAY: "not applicable"}),
    ("qwen3_moe", {"bf16": True}, {checks.STAY: "not applicable"}),
    ("phi", {"loss_type": "hinge", "layout": "padded"}, "no layouts"),
    ("llama", {"peft": LORA, "bf16": True, "gradient_checkpointing": False}, {}),
    (
        "gpt2",
        {"save_only_model": True},
        dict.fromkeys(("frozen stay", "resume"), "not applicable"),
    ),
    # the rest where there is time for it
    ("gemma2", {"gradient_checkpointing": False}, {checks.STAY: "not applicable"}),
    ("deepseek_v3", {}, {checks.STAY: "not applicable"}),
    ("mamba", {"max_micro_batch_tokens": 64}, "no layouts"),
    ("qwen2", {"peft": LORA}, {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "options", "unlike"), IN_ORDER if TORTURE else IN_ORDER[:5])
def test_a_healthy_run_passes(kind: str, options: Any, unlike: Any, make: Make) -> None:
    if unlike == "no layouts":
        unlike = {checks.STAY: "not applicable", checks.LAYOUTS_AGREE: "not applicable"}
    found = all_of(make(kind, **options))
    assert statuses(found) == unlike, found


@pytest.mark.parametrize("objective", OBJECTIVES if TORTURE else ONE_OF_EACH)
def test_every_objective_falls(objective: str, make: Make) -> None:
    mini = make(**OBJECTIVES[objective])
    check = make_check(checks.LOSS, checks.loss_falls, mini, mini.train("trained", judged=True))
    assert check.status == "ok", check


def test_a_loss_that_does_not_fall_and_weights_that_do_not_move_are_seen(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(miniature._REPLACED, "learning_rate", 0.0)
    mini = make()
    trained = mini.train("trained", judged=True)
    assert checks.loss_falls(mini, trained)[0] == "failed"
    status, seen = checks.weights_move(trained)
    assert status == "failed"
    assert seen == f"{len(trained.before)} of {len(trained.before)} tensors did not move: " + (
        "lm_head.weight, model.embed_tokens.weight, model.layers.0.input_layernorm.weight, ..."
    )


def poisoned(mini: Miniature) -> Miniature:
    mini.model.get_output_embeddings().weight.data[:] = 3e38  # whose logits overflow
    return mini


def test_a_loss_that_is_not_finite_is_seen(make: Make) -> None:
    check = make_check(checks.LOSS, lambda mini: (mini.train("t"), ("ok", ""))[1], poisoned(make()))
    assert check.status == "failed"
    assert check.seen.startswith("CP401")


def test_skipped_steps_are_seen(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    share, calls = Objective.share, []

    def once_infinite(self: Objective, terms: Any, *facts: Any) -> Any:
        calls.extend([1] if terms.nll.requires_grad else [])
        return share(self, terms, *facts) * (torch.inf if len(calls) == 9 else 1)

    monkeypatch.setattr(Objective, "share", once_infinite)
    mini = make(nonfinite="skip")
    status, seen = checks.loss_falls(mini, mini.train("trained", judged=True))
    assert status == "failed"
    assert seen == "1 of 6 steps were not finite and skipped"


def after_each_step(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Let something happen to the model after every backward pass."""
    step = CPOTrainer.training_step

    def changed(self: CPOTrainer, model: Any, *facts: Any) -> Any:
        loss = step(self, model, *facts)
        change(model)
        return loss

    monkeypatch.setattr(CPOTrainer, "training_step", changed)


def test_a_single_tensor_that_does_not_move_is_named(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(model: Any) -> None:
        model.model.norm.weight.grad = None

    after_each_step(monkeypatch, lose)
    status, seen = checks.weights_move(make().train("trained"))
    assert status == "failed"
    assert seen.startswith("1 of ")
    assert seen.endswith("did not move: model.norm.weight")


def test_a_frozen_tensor_that_moves_is_named(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def push(model: Any) -> None:
        with torch.no_grad():
            model.get_input_embeddings().weight.add_(1e-3)

    after_each_step(monkeypatch, push)
    status, seen = checks.frozen_stay(make(peft=LORA).train("trained"))
    assert status == "failed"
    assert "embed_tokens.weight" in seen


def test_layouts_that_disagree_are_seen(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    laid = SHARED.collate

    def misplaced(*facts: Any, **more: Any) -> PairBatch:
        batch = laid(*facts, **more)
        assert "position_ids" in batch.inputs
        plain = {"position_ids": torch.arange(batch.input_ids.numel())[None]}
        return replace(batch, inputs=plain)

    monkeypatch.setattr(SHARED, "collate", misplaced)
    status, seen = checks.layouts_agree(make())
    assert status == "not applicable"  # the run's own proof would find it, and go on padded
    assert "log-probabilities differ" in seen
    monkeypatch.setattr(assembly, "layouts_disagree", lambda *facts: None)
    status, seen = checks.layouts_agree(make())
    assert status == "failed"
    assert "shared and padded rows: gradients differ by" in seen


def test_splits_that_disagree_are_seen(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    share = Objective.share

    def mean_of_means(self: Objective, terms: Any, weight: Any, totals: StepTotals) -> Any:
        tokens = terms.nll.new_tensor(float(len(weight)))
        return share(self, terms, weight, StepTotals(weight.sum(), tokens))

    monkeypatch.setattr(Objective, "share", mean_of_means)
    status, seen = checks.splits_agree(make())
    assert status == "failed"
    assert seen.startswith("8 x 1, ")


def test_one_pair_has_neither_splits_nor_a_second_step_to_fail(make: Make) -> None:
    mini = make(gradient_accumulation_steps=1)
    one = replace(mini, pairs=mini.pairs[:1])
    assert (one.step_pairs, one.steps, one.split()["per_device_train_batch_size"]) == (1, 6, 1)
    assert checks.splits_agree(one)[0] == "not applicable"


def spoil_save(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], None]) -> None:
    save = CPOTrainer._save

    def spoiled(self: CPOTrainer, output_dir: str | None = None, state_dict: Any = None) -> None:
        state = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        change(state)
        save(self, output_dir, state)

    monkeypatch.setattr(CPOTrainer, "_save", spoiled)


def test_a_save_that_loses_a_tensor_is_seen(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_save(monkeypatch, lambda state: state.pop("model.norm.weight"))
    mini = make()
    status, seen = checks.save_reloads(mini, mini.train("trained", judged=True))
    assert (status, seen) == ("failed", "1 missing keys: model.norm.weight")


@pytest.mark.parametrize("peft", [None, LORA])
def test_a_save_that_changes_a_tensor_is_seen(
    peft: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shift(state: dict[str, Any]) -> None:
        name = next(n for n in sorted(state) if "lora_B" in n or (not peft and "q_proj.w" in n))
        state[name] += 0.01

    spoil_save(monkeypatch, shift)
    mini = make(peft=peft)
    status, seen = checks.save_reloads(mini, mini.train("trained", judged=True))
    assert status == "failed"
    assert "log-probabilities of 8 completions differ by" in seen


def test_a_resumed_run_without_its_optimizer_is_seen(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CPOTrainer, "_load_optimizer_and_scheduler", lambda self, folder: None)
    mini = make()
    status, seen = checks.resume_goes_on(mini, mini.train("trained"))
    assert status == "failed"
    assert "of the way apart" in seen


def test_a_resumed_run_that_begins_anew_is_seen(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = CPOTrainer.train
    monkeypatch.setattr(CPOTrainer, "train", lambda self, **more: train(self))
    mini = make()
    status, seen = checks.resume_goes_on(mini, mini.train("trained"))
    assert (status, seen) == ("failed", "6 steps were done after the checkpoint, not 3")


def test_what_a_check_raises_is_a_failed_check_unless_the_run_itself_would_stop() -> None:
    def breaks() -> checks.Judgement:
        raise ValueError("first line\nsecond line")

    def refuses() -> checks.Judgement:
        raise ConfigError("CP104", "no.")

    assert make_check("x", breaks) == Check("x", "failed", "ValueError: first line")
    with pytest.raises(ConfigError, match="CP104"):
        make_check("x", refuses)


def test_a_miniature_leaves_the_twin_as_it_was(make: Make) -> None:
    mini = make(peft=LORA)
    before = copy.deepcopy(mini.model.state_dict())
    mini.train("trained", judged=True)
    mini.gradient()
    after = mini.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("own", "small"), [((8, 1), (8, 1)), ((16, 4), (4, 2)), ((2, 64), (2, 4)), ((1, 128), (1, 8))]
)
def test_a_step_is_split_as_the_run_splits_it(
    own: tuple[int, int], small: tuple[int, int], make: Make
) -> None:
    mini = make(per_device_train_batch_size=own[0], gradient_accumulation_steps=own[1])
    assert tuple(mini.split().values()) == small
