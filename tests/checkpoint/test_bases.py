"""An adapter is resumed, evaluated and replayed on the base that it was trained on, or refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from counterpoint import CPOConfig, CPOTrainer, SetupError
from counterpoint.checkpoint.adapted import BASE, base_identity, model_identity
from counterpoint.checkpoint.manifest import MANIFEST, seal
from counterpoint.models.adapters import load_adapted
from counterpoint.runlog import read_run
from tests.models_on_the_spot import make_model
from tests.reliability.scenarios import tokenizer
from tests.steps import random_pairs

LORA: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}


def named(seed: int, name: str) -> PreTrainedModel:
    model = make_model("qwen2", seed=seed)
    model.config._name_or_path = name
    return model


def trainer_of(folder: Path, model: nn.Module, adapter: Any = None, **more: Any) -> CPOTrainer:
    return CPOTrainer(
        model=model,
        args=CPOConfig(
            output_dir=str(folder),
            **{
                "max_steps": 1,
                "save_steps": 1,
                "lr_scheduler_type": "constant",
                "gradient_checkpointing": False,
                "disable_tqdm": True,
                "use_cpu": True,
                **more,
            },
        ),
        train_dataset=random_pairs(2),
        processing_class=tokenizer(),
        peft_config=adapter,
    )


def lora(**more: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{**LORA, **more})


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step; its base lies beside it."""
    folder = tmp_path_factory.mktemp("bases")
    make_model("qwen2", seed=1).save_pretrained(folder / "base")
    trainer = trainer_of(folder / "run", named(1, str(folder / "base")), lora())
    trainer.train()
    trainer.save_model()
    return folder / "run"


@pytest.fixture
def run(lora_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(lora_run.parent / "base", tmp_path / "base")
    return Path(shutil.copytree(lora_run, tmp_path / "run"))


def resume(folder: Path, model: nn.Module, adapter: Any = None, **more: Any) -> CPOTrainer:
    trainer = trainer_of(folder, model, adapter, **{"max_steps": 2, **more})
    trainer.train(resume_from_checkpoint=True)
    return trainer


@pytest.mark.parametrize("wrapped", [False, True])
def test_another_base_of_the_same_shapes_is_another_experiment(run: Path, wrapped: bool) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    model: Any = named(2, "acme/other")
    given = (peft.get_peft_model(model, lora()), None) if wrapped else (model, lora())
    said = r"CP513 .*base model's weights was .*trained on base, .* of acme/other, are others"
    with pytest.raises(SetupError, match=said):
        resume(run, *given)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_same_base_goes_on_and_keeps_its_name(run: Path) -> None:
    resume(run, named(1, "acme/same-by-another-name"), lora()).save_model()
    assert read_run(run).facts["model"] == "base"
    card = (run / "README.md").read_text()
    assert "An adapter for `base`" in card
    assert "acme" not in card


def test_those_who_mean_another_base_get_its_name(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "counterpoint"):
        resume(run, named(2, "acme/other"), lora(), resume_anyway=True)
    assert "acme/other, are others" in caplog.text
    assert read_run(run).facts["model"] == "acme/other"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lora_alpha": 32}, "adapter lora_alpha was 8 and is 32"),
        ({"use_rslora": True}, "adapter use_rslora was False and is True"),
    ],
)
def test_another_scale_of_the_same_adapter_is_another_experiment(
    run: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(SetupError, match=f"CP513 .*{said}"):
        resume(run, named(1, ""), lora(**changed))


def test_a_checkpoint_of_an_earlier_release_resumes_with_one_warning(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = run / "checkpoint-1"
    of_0_4(checkpoint)
    with caplog.at_level(logging.WARNING, "counterpoint"):
        resume(run, named(1, ""), lora())
    assert [r.getMessage()[:5] for r in caplog.records if "CW128" in r.getMessage()] == ["CW128"]
    assert "what the adapter was trained on, base; the base model given" in caplog.text
    assert BASE in json.loads((run / "checkpoint-2" / MANIFEST).read_text())["fingerprint"]
    assert read_run(run).facts["model"] == "base"


def of_0_4(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    new = (BASE, "config ", "adapter ")
    facts = {n: v for n, v in manifest["fingerprint"].items() if not n.startswith(new)}
    state = json.loads((checkpoint / "run_state.json").read_text())
    del state["own"]["model"]
    (checkpoint / "run_state.json").write_text(json.dumps(state))
    (checkpoint / MANIFEST).unlink()
    seal(checkpoint, step=1, resumable=True, fingerprint=facts)


def test_a_full_run_keeps_the_name_of_the_model_that_it_began_with(tmp_path: Path) -> None:
    trainer_of(tmp_path, named(1, "acme/first")).train()
    trainer = resume(tmp_path, named(2, "acme/second"))
    trainer.save_model()
    assert read_run(tmp_path).facts["model"] == "acme/first"
    card = (tmp_path / "README.md").read_text()
    assert "acme/first" in card
    assert "acme/second" not in card


def test_another_configuration_of_the_same_shapes_is_another_experiment(tmp_path: Path) -> None:
    """The weights of a full model are loaded, what its configuration makes of them is not."""
    trainer_of(tmp_path, make_model("qwen2")).train()
    with pytest.raises(SetupError, match=r"CP513 .*config rms_norm_eps was 1e-06 and is 0\.1"):
        resume(tmp_path, make_model("qwen2", rms_norm_eps=0.1))


# Loaded by name, to evaluate, replay or train on


@pytest.mark.parametrize("part", ["", "checkpoint-1"])
def test_an_adapter_whose_base_has_changed_is_not_loaded(run: Path, part: str) -> None:
    args = CPOConfig(output_dir="o", use_cpu=True)
    base = run.parent / "base"
    config = json.loads((run / part / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (run / part / "adapter_config.json").write_text(json.dumps(config))
    load_adapted(str(run / part), args)
    make_model("qwen2", seed=2).save_pretrained(base)
    with pytest.raises(SetupError, match=r"CP519 the adapter in .* was trained on other weights"):
        load_adapted(str(run / part), args)
    make_model("qwen2", seed=2).to(torch.bfloat16).save_pretrained(base)
    load_adapted(str(run / part), args)  # of another precision nothing can be said


# The identity itself


def adapted(model: nn.Module, **more: Any) -> nn.Module:
    wrapped: nn.Module = peft.get_peft_model(model, lora(**more))  # type: ignore[arg-type]
    return wrapped


def test_training_and_evaluating_leave_the_identity_as_it_was(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, make_model("qwen2"), lora(), learning_rate=0.1)
    before = model_identity(trainer.model, dropout=False)
    trainer.train()
    trainer.evaluate(random_pairs(2))
    assert model_identity(trainer.model, dropout=False) == before


def test_every_tensor_of_the_base_counts() -> None:
    whole = base_identity(adapted(make_model("qwen2")))
    for name, _ in make_model("qwen2").named_parameters():
        model = make_model("qwen2")
        with torch.no_grad():
            model.get_parameter(name).add_(1e-3)
        assert base_identity(adapted(model)) != whole, name


def test_the_adapters_own_weights_do_not_count() -> None:
    one, other = adapted(make_model("qwen2")), adapted(make_model("qwen2"))
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if "lora_" in name:
                weight.add_(1)
    assert base_identity(one) == base_identity(other)
    kept = adapted(make_model("qwen2"), modules_to_save=["lm_head"])
    same = base_identity(kept)
    kept.get_parameter("base_model.model.lm_head.modules_to_save.default.weight").data.zero_()
    assert base_identity(kept) == same


def test_a_merged_adapter_is_another_base() -> None:
    merged = adapted(make_model("qwen2"), init_lora_weights=False)
    other = adapted(merged.merge_and_unload())  # type: ignore[operator]
    assert base_identity(other) != base_identity(adapted(make_model("qwen2")))


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated")
def test_a_base_of_parts_is_read_part_by_part() -> None:
    """torchao's tensors have no memory of their own."""
    torchao = pytest.importorskip("torchao.quantization")

    def quantized(seed: int) -> str | None:
        model = make_model("qwen2", seed=seed)
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
        return base_identity(adapted(model, target_modules=["q_proj"]))

    assert quantized(1) == quantized(1)
    assert quantized(1) != quantized(2)


def test_the_scales_of_a_quantized_base_count_too() -> None:
    """They are buffers beside weights that are the same."""

    def scaled(scale: float) -> str | None:
        model = make_model("qwen2")
        model.lm_head.register_buffer("scale", torch.full((3,), scale))
        return base_identity(adapted(model))

    assert scaled(1.0) == scaled(1.0)
    assert scaled(1.0) != scaled(2.0)
