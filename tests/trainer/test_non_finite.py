"""Law 3: a step that is not finite never reaches the weights, and names its rows."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from counterpoint import CPOConfig, CPOTrainer, NonFiniteError
from tests.steps import random_pairs, train_watched


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_non_finite_loss_stops_the_run_and_leaves_the_weights(
    models, chatml_tokenizer, tmp_path: Path
):
    model, pairs = models("qwen2"), random_pairs(12)
    with torch.no_grad():
        model.lm_head.weight[pairs[6]["chosen_ids"][0]] = 3e38  # whose logits overflow
    before = weights_of(model)
    with pytest.raises(NonFiniteError) as caught:
        train_watched(
            model,
            chatml_tokenizer,
            pairs,
            tmp_path,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=6,
        )
    assert caught.value.code == "CP401"
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0, equal_nan=True)


def test_the_message_names_the_rows_of_the_bad_pairs(models, chatml_tokenizer, tmp_path: Path):
    pairs = random_pairs(8).map(lambda row: {"margin": float("nan") if row["row"] > 5 else 0.0})
    with pytest.raises(NonFiniteError, match=r"step 2: the loss of rows 6, 7 is not finite"):
        train_watched(
            models("qwen2"), chatml_tokenizer, pairs, tmp_path, per_device_train_batch_size=4
        )


def test_a_non_finite_gradient_of_finite_losses_is_caught_too(
    models, chatml_tokenizer, tmp_path: Path
):
    model = models("qwen2")
    next(model.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NonFiniteError, match="the gradient is not finite, though every loss is"):
        train_watched(
            model, chatml_tokenizer, random_pairs(4), tmp_path, per_device_train_batch_size=4
        )


def test_a_skipped_step_changes_neither_weights_nor_momentum_nor_metrics(
    models, chatml_tokenizer, tmp_path: Path, caplog
):
    """Steps of four pairs; the second has a bad pair and must be as if it had not been."""
    model = models("qwen2")
    pairs = random_pairs(12).map(lambda row: {"margin": float("nan") if row["row"] == 6 else 0.0})
    frames = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs) -> None:
            frames.append((weights_of(model), copy.deepcopy(optimizer.state_dict()["state"])))

    args = CPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        learning_rate=1e-3,
        weight_decay=0.1,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        nonfinite="skip",
        use_cpu=True,
    )
    trainer = CPOTrainer(
        model=model,
        args=args,
        train_dataset=pairs,
        processing_class=chatml_tokenizer,
        callbacks=[Watch()],
    )
    with caplog.at_level(logging.WARNING, logger="counterpoint"):
        result = trainer.train()
    first, second, third = frames
    for name, weight in first[0].items():
        assert torch.equal(weight, second[0][name])
        assert not torch.equal(weight, third[0][name]) or "embed" in name
    for key, state in first[1].items():
        assert torch.equal(state["exp_avg"], second[1][key]["exp_avg"])
        assert torch.equal(state["step"], second[1][key]["step"])
    assert "the loss of row 6 is not finite" in caplog.text
    lines = [line for line in trainer.state.log_history if "learning_rate" in line]
    assert ["loss" in line for line in lines] == [True, False, True]
    assert lines[-1]["skipped_steps"] == 1
    assert torch.isfinite(torch.tensor(result.training_loss))


def test_alphapo_on_long_sums_is_refused_with_its_reason(models, chatml_tokenizer, tmp_path: Path):
    """TRL logs a loss of 0.0 and a gradient of NaN here, and goes on."""
    pairs = random_pairs(4).map(lambda row: {"chosen_ids": row["chosen_ids"] * 60})
    with pytest.raises(NonFiniteError, match=r"CP401 .*AlphaPO's reward grows"):
        train_watched(
            models("qwen2"),
            chatml_tokenizer,
            pairs,
            tmp_path,
            per_device_train_batch_size=4,
            alpha=0.25,
        )
