"""Law 3: weights that are not finite are never saved, and the last good checkpoint stays."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, TrainerCallback

from counterpoint import (
    ConfigError,
    CounterpointError,
    CPOConfig,
    CPOTrainer,
    ModelError,
    NonFiniteError,
    SetupError,
)
from counterpoint.checkpoint.folder import finished
from counterpoint.checkpoint.manifest import read_manifest, seal, verify
from counterpoint.step.finite import all_finite, refuse_vanishing
from tests.steps import random_pairs


def trainer_of(model, tokenizer, folder: Path, callbacks=(), **options) -> CPOTrainer:
    given = {"max_steps": 3, "per_device_train_batch_size": 2, "save_steps": 1, "report_to": "none"}
    args = CPOConfig(
        output_dir=str(folder),
        **(given | {"save_total_limit": 1, "learning_rate": 1e-3, "use_cpu": True} | options),
    )
    return CPOTrainer(
        model,
        args,
        train_dataset=random_pairs(12),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


def test_one_value_is_enough_and_large_ones_are_finite() -> None:
    good = [torch.full((4,), 3e38), torch.zeros(0), torch.tensor([1], dtype=torch.long)]
    assert all_finite(good)
    for value in (math.nan, math.inf, -math.inf):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            bad = torch.ones(3, 5, dtype=dtype)
            bad[2, 4] = value
            assert not all_finite([*good, bad])
    assert all_finite([torch.zeros(0)])


class Spoils(TrainerCallback):
    """Does something bad after the first step, as a fault would."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_step_end(self, args, state, control, **facts) -> None:
        optimizer = facts["optimizer"]
        if state.global_step != 1:
            return
        weight = optimizer.param_groups[0]["params"][0]
        if self.what == "state":
            optimizer.state[weight]["exp_avg"].view(-1)[0] = math.nan
        elif self.what == "second moment":
            optimizer.state[weight]["exp_avg_sq"].view(-1)[0] = math.inf
        elif self.what == "rate":
            facts["lr_scheduler"].base_lrs[:] = [math.nan] * len(optimizer.param_groups)
            for group in optimizer.param_groups:
                group["lr"] = math.nan
        else:
            with torch.no_grad():
                weight.view(-1)[0] = math.inf


class SpoilsLater(Spoils):
    """The same once the checkpoint of the first step is there."""

    on_save = Spoils.on_step_end
    on_step_end = TrainerCallback.on_step_end


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("what", ["state", "second moment", "rate", "weight"])
def test_the_last_good_checkpoint_stays_whatever_spoils_an_update(
    what: str, nonfinite: str, models, chatml_tokenizer, tmp_path: Path
):
    trainer = trainer_of(
        models("qwen2"), chatml_tokenizer, tmp_path, [SpoilsLater(what)], nonfinite=nonfinite
    )
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    assert caught.value.code in ("CP401", "CP405")
    [good] = finished(tmp_path)
    assert good.name == "checkpoint-1"
    verify(good, step=1)
    told = json.loads((tmp_path / "run.json").read_text())
    assert caught.value.code in json.dumps(told)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_rate_that_overflows_is_stopped_at_its_first_update(
    models, chatml_tokenizer, tmp_path: Path
):
    trainer = trainer_of(
        models("qwen2"), chatml_tokenizer, tmp_path, learning_rate=1e38, weight_decay=10.0
    )
    with pytest.raises(NonFiniteError):
        trainer.train()
    assert finished(tmp_path) == []
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_a_value_that_was_never_finite_is_refused_before_the_first_step(
    nonfinite: str, models, chatml_tokenizer, tmp_path: Path
):
    model = models("qwen2")
    with torch.no_grad():
        model.get_input_embeddings().weight[-1] = math.nan  # of a token that no row has
    trainer = trainer_of(model, chatml_tokenizer, tmp_path, nonfinite=nonfinite)
    with pytest.raises(
        ModelError, match=r"CP308 .*32 values of model\.embed_tokens\.weight are not finite"
    ):
        trainer.train()
    assert trainer.state.global_step == 0
    assert finished(tmp_path) == []


def test_a_frozen_value_under_an_adapter_is_refused_too(models, chatml_tokenizer, tmp_path: Path):
    peft = pytest.importorskip("peft")
    model = models("qwen2")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = math.inf
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    trainer = trainer_of(adapted, chatml_tokenizer, tmp_path)
    with pytest.raises(ModelError, match=r"CP308 .*1 values of \S+down_proj\S+ are not finite"):
        trainer.train()


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated")  # it is not merged here
def test_a_quantized_base_is_read_by_its_parts(models, chatml_tokenizer, tmp_path: Path):
    """torchao's tensors know no norm; what can be not finite of them is their scales."""
    peft, torchao = pytest.importorskip("peft"), pytest.importorskip("torchao.quantization")
    for name, spoilt in (("whole", False), ("spoilt", True)):
        model = models("qwen2")
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
        adapter = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
        adapted = peft.get_peft_model(model, adapter)
        if spoilt:
            model.model.layers[0].mlp.up_proj.weight.scale.view(-1)[0] = math.nan
        trainer = trainer_of(adapted, chatml_tokenizer, tmp_path / name, max_steps=2)
        if spoilt:
            with pytest.raises(
                ModelError, match=r"CP308 .*1 values of \S+up_proj\S+ are not finite"
            ):
                trainer.train()
        else:
            trainer.train()
            assert [path.name for path in finished(tmp_path / name)] == ["checkpoint-2"]
            assert not trainer._assembly().head.dense  # nor are its logits all made at once


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_of_eight_bits_are_looked_at(dtype: torch.dtype):
    good = torch.linspace(-4, 4, 9).to(dtype)
    assert all_finite([good])
    bad = torch.tensor([1.0, math.nan]).to(dtype)
    assert not all_finite([good, bad])
    assert all_finite([torch.ones(3, device="meta")])


@pytest.mark.parametrize(
    ("part", "code"), [("model.safetensors", "CP308"), ("optimizer.safetensors", "CP405")]
)
def test_a_sealed_checkpoint_that_holds_a_nan_is_not_resumed(
    part: str, code: str, models, chatml_tokenizer, tmp_path: Path
):
    steady = {"lr_scheduler_type": "constant"}  # of which a longer run is the same experiment
    trainer_of(models("qwen2"), chatml_tokenizer, tmp_path, max_steps=1, **steady).train()
    [saved] = finished(tmp_path)
    tensors = load_file(saved / part)
    next(t for t in tensors.values() if t.is_floating_point() and t.numel() > 9).view(-1)[3] = (
        math.nan
    )
    save_file(tensors, saved / part, metadata={"format": "pt"})
    manifest = read_manifest(saved)
    seal(saved, step=1, resumable=True, fingerprint=manifest.fingerprint)  # as it once was
    again = trainer_of(models("qwen2"), chatml_tokenizer, tmp_path, **steady)
    with pytest.raises(CounterpointError, match=code):
        again.train(resume_from_checkpoint=True)
    assert finished(tmp_path) == [saved]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("adam_epsilon", 1e-50, "adam_epsilon=1e-50 is 0 in float32"),
        ("learning_rate", 1e-46, "learning_rate=1e-46 is 0 in float32"),
        ("learning_rate", 1e39, r"learning_rate=1e\+39 is inf in float32"),
        ("weight_decay", 1e-60, "weight_decay=1e-60 is 0 in float32"),
        ("weight_decay", 1e40, r"weight_decay=1e\+40 is inf in float32"),
        ("max_grad_norm", 1e-50, "max_grad_norm=1e-50 is 0 in float32"),
    ],
)
def test_a_number_that_vanishes_or_overflows_is_refused_before_the_first_step(
    option: str, value: float, said: str, models, chatml_tokenizer, tmp_path: Path
):
    trainer = trainer_of(models("qwen2"), chatml_tokenizer, tmp_path, **{option: value})
    with pytest.raises(ConfigError, match=f"CP103 {said}"):
        trainer.train()


@pytest.mark.parametrize(("eps", "dtype"), [(1e-10, torch.float16), (1e-320, torch.float32)])
def test_an_epsilon_is_judged_in_the_weights_own_precision(eps: float, dtype: torch.dtype):
    optimizer = torch.optim.AdamW([torch.ones(2, dtype=dtype)], eps=eps)
    with pytest.raises(ConfigError, match="CP103 adam_epsilon"):
        refuse_vanishing(optimizer)
    refuse_vanishing(torch.optim.AdamW([torch.ones(2, dtype=torch.float64)], lr=1e-200, eps=1e-300))


PUBLISHED = {"eos_token_id": 2, "temperature": 0.9, "top_p": 0.6}


def test_a_published_generation_config_is_saved_as_it_was(models, chatml_tokenizer, tmp_path: Path):
    model = models("qwen2")
    model.generation_config = GenerationConfig(**PUBLISHED)
    trainer = trainer_of(model, chatml_tokenizer, tmp_path)
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-3"):
        told = json.loads((folder / "generation_config.json").read_text())
        assert {name: told[name] for name in PUBLISHED} == PUBLISHED
        assert told["pad_token_id"] == chatml_tokenizer.pad_token_id
    assert model.generation_config.temperature == 0.9
    assert not list(tmp_path.glob(".*"))


class Unsaved(TrainerCallback):
    def state_dict(self):
        return {"what": object()}

    def load_state_dict(self, state):
        pass


def test_what_cannot_be_saved_is_known_before_the_first_step(
    models, chatml_tokenizer, tmp_path: Path, monkeypatch
):
    steps: list[int] = []
    model = models("qwen2")
    trainer = trainer_of(model, chatml_tokenizer, tmp_path / "a")
    monkeypatch.setattr(trainer, "training_step", lambda *a, **k: steps.append(1))
    monkeypatch.setattr(
        type(chatml_tokenizer),
        "save_pretrained",
        lambda *a, **k: (_ for _ in ()).throw(ValueError("no vocabulary")),
    )
    with pytest.raises(SetupError, match=r"CP518 the tokenizer cannot be saved.*no vocabulary"):
        trainer.train()
    monkeypatch.undo()
    model.config.oddity = {1, 2}
    with pytest.raises(SetupError, match="CP518 the model's configuration cannot be saved"):
        trainer_of(model, chatml_tokenizer, tmp_path / "b").train()
    del model.config.oddity
    with pytest.raises(SetupError) as caught:
        trainer_of(model, chatml_tokenizer, tmp_path / "c", [Unsaved()]).train()
    assert caught.value.code in ("CP517", "CP518")
    assert steps == []
