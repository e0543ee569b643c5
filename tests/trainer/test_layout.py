"""The run chooses a layout, proves it, and says why it did not share."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from counterpoint import ConfigError
from counterpoint.forward.kernels import ATTENTION_KERNELS, PAIRWISE
from counterpoint.step import assembly
from tests.forward.test_layouts import FOUND, REASONS
from tests.models_on_the_spot import APART
from tests.steps import distance, random_pairs, train_watched


def gradient(models, tokenizer, folder: Path, kind: str = "qwen2", **options):
    steps, trainer = train_watched(
        models(kind),
        tokenizer,
        random_pairs(6),
        folder,
        per_device_train_batch_size=3,
        **options,
    )
    return steps, trainer


def test_on_a_cpu_prompts_are_shared(models, chatml_tokenizer, tmp_path: Path, caplog):
    with caplog.at_level(logging.INFO, logger="counterpoint"):
        shared, trainer = gradient(models, chatml_tokenizer, tmp_path)
    padded, _ = gradient(models, chatml_tokenizer, tmp_path, layout="padded")
    assert "layout: shared" in caplog.text
    assert trainer.model.config._attn_implementation == "sdpa"
    for one, other in zip(shared, padded, strict=True):
        assert distance(one, other) <= 1e-5


def test_a_layout_that_fails_its_proof_is_given_up(
    models, chatml_tokenizer, tmp_path: Path, caplog, monkeypatch
):
    truth, _ = gradient(models, chatml_tokenizer, tmp_path, layout="padded")
    wrong = replace(PAIRWISE, run=lambda q, k, v, s, **o: v.transpose(1, 2).repeat(1, 1, 2, 1))
    monkeypatch.setitem(ATTENTION_KERNELS, "pairwise", wrong)
    with caplog.at_level(logging.INFO, logger="counterpoint"):
        found, _ = gradient(models, chatml_tokenizer, tmp_path)
    assert "layout: padded (log-probabilities differ" in caplog.text
    assert [distance(a, b) for a, b in zip(truth, found, strict=True)] == [0.0, 0.0]
    with pytest.raises(ConfigError, match=r"CP104 layout='shared' is not possible: log-prob"):
        gradient(models, chatml_tokenizer, tmp_path, layout="shared")


def test_layouts_are_compared_without_autocast_though_the_run_has_it(
    models, chatml_tokenizer, tmp_path: Path, monkeypatch
):
    """accelerate puts autocast into the model's own forward, out of reach of any outside of it."""
    proof, seen, proving = assembly.layouts_disagree, [], []

    def watched(model, *facts):
        layer = model.model.layers[0].mlp
        watch = layer.register_forward_pre_hook(
            lambda *call: proving.append(torch.is_autocast_enabled("cpu"))
        )
        with watch:
            return proof(model, *facts)

    monkeypatch.setattr(assembly, "layouts_disagree", watched)
    model = models("qwen2")
    model.model.layers[1].mlp.register_forward_pre_hook(
        lambda *call: seen.append(torch.is_autocast_enabled("cpu"))
    )
    train_watched(
        model,
        chatml_tokenizer,
        random_pairs(6),
        tmp_path,
        per_device_train_batch_size=6,
        bf16=True,
    )
    assert proving == [False, False]
    assert seen[-1]  # the training itself


def test_dropout_keeps_prompts_apart(models, chatml_tokenizer, tmp_path: Path, caplog):
    with caplog.at_level(logging.INFO, logger="counterpoint"):
        train_watched(
            models("gpt2", resid_pdrop=0.1),
            chatml_tokenizer,
            random_pairs(4),
            tmp_path,
            disable_dropout=False,
        )
    assert "layout: padded (dropout is on" in caplog.text


@pytest.mark.parametrize("kind", APART)
def test_what_cannot_share_trains_padded_and_says_why(
    kind, models, chatml_tokenizer, tmp_path: Path, caplog
):
    truth, _ = gradient(models, chatml_tokenizer, tmp_path, kind, layout="padded")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="counterpoint"):
        found, _ = gradient(models, chatml_tokenizer, tmp_path, kind)
    reason = {**REASONS, **FOUND}[kind]
    [line] = [line for line in caplog.messages if line.startswith("layout: ")]
    assert line.startswith("layout: padded (")
    assert reason in line
    assert [distance(a, b) for a, b in zip(truth, found, strict=True)] == [0.0, 0.0]
    with pytest.raises(ConfigError, match=f"CP104 layout='shared' is not possible: .*{reason}"):
        gradient(models, chatml_tokenizer, tmp_path, kind, layout="shared")
