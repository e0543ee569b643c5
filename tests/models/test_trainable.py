"""Adapters that would not train are refused, each with its own remedy, and the remedy works."""

from __future__ import annotations

import peft
import pytest
from transformers import AutoModelForSeq2SeqLM

from counterpoint.errors import ModelError
from counterpoint.models.trainable import check_checkpointing, check_trainable
from tests.steps import random_pairs, train_watched

COMPUTED = ("marian", "pegasus")
"""Kinds of models whose table of positions is no weight that learns."""

LORA = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}


def adapted(models, **changes):
    return peft.get_peft_model(models("qwen2"), peft.LoraConfig(**LORA, **changes))


def refusal(model) -> str:
    with pytest.raises(ModelError) as caught:
        check_trainable(model)
    assert caught.value.code == "CP305"
    return caught.value.message


def test_an_adapter_loaded_to_be_used_is_loaded_again_to_be_trained(models, tmp_path):
    adapted(models).save_pretrained(tmp_path)
    frozen = peft.PeftModel.from_pretrained(models("qwen2"), tmp_path)
    message = refusal(frozen)
    assert "PeftModel.from_pretrained(model, folder, is_trainable=True)" in message
    assert "a peft_config is for models without an adapter" in message
    check_trainable(peft.PeftModel.from_pretrained(models("qwen2"), tmp_path, is_trainable=True))
    frozen.set_adapter("default")  # the other remedy that is named
    check_trainable(frozen)


def test_a_merged_adapter_is_not_trained_on(models):
    """Its weights require a gradient and get none: the forward pass goes by them."""
    model = adapted(models)
    model.merge_adapter()
    assert "model.unmerge_adapter()" in refusal(model)
    model.unmerge_adapter()
    check_trainable(model)


def test_disabled_adapters_are_not_trained_on(models):
    model = adapted(models)
    model.base_model.disable_adapter_layers()
    assert "model.base_model.enable_adapter_layers()" in refusal(model)
    model.base_model.enable_adapter_layers()
    check_trainable(model)


def test_of_several_adapters_the_active_one_is_named(models):
    model = adapted(models)
    model.add_adapter("other", peft.LoraConfig(**LORA))
    model.set_adapter("other", inference_mode=True)
    message = refusal(model)
    assert "no parameter of its adapter other" in message
    assert "Other adapters: default." in message


def test_a_frozen_model_without_an_adapter_is_told_of_both_ways(models):
    message = refusal(models("qwen2").requires_grad_(False))
    assert "model.requires_grad_(True)" in message
    assert "peft_config" in message


def test_prefixes_are_refused_with_checkpointing_and_prompts_are_not(models):
    """A prefix lies in the cache of keys and values, which a checkpointed layer does without."""
    prefix = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(models("qwen2"), prefix)
    with pytest.raises(ModelError, match=r"CP314 .*gradient_checkpointing=False"):
        check_checkpointing(model, checkpointing=True)
    check_checkpointing(model, checkpointing=False)
    check_checkpointing(peft.get_peft_model(models("qwen2"), prompt), checkpointing=True)


@pytest.mark.parametrize("kind", COMPUTED)
def test_every_weight_of_a_translator_that_trains_gets_a_gradient(
    models, chatml_tokenizer, tmp_path, kind
):
    """transformers loads computed positions as weights that train, and gives them no gradient."""
    models("mbart", model_type=kind).save_pretrained(tmp_path / kind)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / kind)
    assert model.model.encoder.embed_positions.weight.requires_grad  # what this guards against
    (gradients,), trainer = train_watched(
        model, chatml_tokenizer, random_pairs(4), tmp_path / "run", per_device_train_batch_size=4
    )
    trains = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert gradients.keys() == trains
    assert not any("embed_positions" in name for name in trains)
