"""What a run leaves opens with plain transformers and PEFT, and holds no pickle."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from counterpoint import SetupError
from counterpoint.checkpoint.manifest import verify
from counterpoint.checkpoint.weights import load_weights
from tests.models_on_the_spot import make_model
from tests.reliability.scenarios import SCENARIOS, trainer_of


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("kind", ["qwen2", "qwen2_tied", "gpt2", "qwen3_moe", "mixtral", "gpt_oss"])
def test_a_checkpoint_opens_with_plain_transformers(kind: str, tmp_path: Path):
    trainer = trainer_of({"kind": kind}, tmp_path / "run", max_steps=1)
    trainer.train()
    for folder in (tmp_path / "run" / "checkpoint-1",):
        loaded, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype="float32", output_loading_info=True
        )
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys"))
        assert differing(state(trainer.model), state(loaded)) == []
        assert AutoTokenizer.from_pretrained(folder)("What?").input_ids


@pytest.mark.parametrize("kind", ["qwen2", "qwen2_tied", "gpt2", "qwen3_moe", "mixtral", "gpt_oss"])
def test_every_tensor_comes_back_into_a_live_model(kind: str, tmp_path: Path):
    """Fused experts among them, which transformers' own resuming leaves as they were."""
    trained = make_model(kind, seed=1)
    trained.save_pretrained(tmp_path)
    live = make_model(kind, seed=2)
    parameters = {name: id(parameter) for name, parameter in live.named_parameters()}
    load_weights(live, tmp_path, names(tmp_path))
    assert differing(state(trained), state(live)) == []
    assert {name: id(parameter) for name, parameter in live.named_parameters()} == parameters


def test_shards_are_read_one_after_another(tmp_path: Path):
    trained = make_model("qwen2", seed=1)
    trained.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    live = make_model("qwen2", seed=2)
    load_weights(live, tmp_path, names(tmp_path))
    assert differing(state(trained), state(live)) == []


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path):
    make_model("qwen2", intermediate_size=64).save_pretrained(tmp_path)
    with pytest.raises(SetupError, match=r"CP514 .*mlp\.down_proj\.weight \(\(32, 64\)"):
        load_weights(make_model("qwen2"), tmp_path, names(tmp_path))


def test_weights_of_another_precision_are_refused(tmp_path: Path):
    make_model("qwen2").bfloat16().save_pretrained(tmp_path)
    with pytest.raises(SetupError, match=r"CP514 .*bfloat16"):
        load_weights(make_model("qwen2"), tmp_path, names(tmp_path))


def test_an_adapter_opens_with_plain_peft(tmp_path: Path):
    trainer = trainer_of(SCENARIOS["dropout in an adapter"], tmp_path / "run", max_steps=2)
    trainer.train()
    folder = tmp_path / "run" / "checkpoint-2"
    assert (folder / "adapter_model.safetensors").is_file()
    loaded = peft.PeftModel.from_pretrained(make_model("qwen2"), str(folder))
    assert differing(state(trainer.model), state(loaded)) == []


def test_an_adapter_with_other_layers_is_refused(tmp_path: Path):
    scenario = SCENARIOS["dropout in an adapter"]
    trainer_of(scenario, tmp_path / "run", max_steps=1).train()
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    live = peft.get_peft_model(make_model("qwen2"), config)
    folder = tmp_path / "run" / "checkpoint-1"
    listed = verify(folder).files
    with pytest.raises(SetupError, match=r"CP514 .*v_proj"):
        load_weights(live, folder, listed)


def test_no_file_of_a_run_is_a_pickle(tmp_path: Path):
    trainer = trainer_of({}, tmp_path / "run", max_steps=1)
    trainer.train()
    trainer.save_model()
    kinds = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert kinds == {".json", ".jsonl", ".md", ".safetensors"}


def test_the_final_model_takes_its_place_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = trainer_of({}, tmp_path / "run", max_steps=1, save_strategy="no")
    trainer.train()
    trainer.save_model()
    before = (tmp_path / "run" / "model.safetensors").read_bytes()

    def broken(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(trainer.processing_class), "save_pretrained", broken)
    torch.nn.init.zeros_(next(trainer.model.parameters()))
    with pytest.raises(OSError, match="No space"):
        trainer.save_model()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert not list((tmp_path / "run").glob(".*"))


def test_options_are_kept_as_json_without_their_token(tmp_path: Path):
    trainer = trainer_of({}, tmp_path / "run", max_steps=1, hub_token="secret-canary")
    trainer.train()
    text = (tmp_path / "run" / "checkpoint-1" / "training_args.json").read_text()
    assert json.loads(text)["learning_rate"] == 1e-2
    assert "secret-canary" not in text
