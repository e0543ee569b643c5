"""The table of families: what is trained, what is refused and why, and how one is added."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForSeq2SeqLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from counterpoint import CPOConfig
from counterpoint.forward.head import Head, find_head
from counterpoint.forward.layouts import PADDED, SHARED
from counterpoint.models.family import FAMILIES, Family, family_of, register_family, why_not_trained
from counterpoint.models.loading import random_model
from counterpoint.models.weights import AS_FILED, WeightsPolicy
from tests.steps import distance, random_pairs, train_watched

OF = {
    "qwen3": "decoder",
    "mamba": "decoder",
    "t5": "encoder-decoder",
    "vit": "another task",
    "gemma3": "images and text",
    "bert": "encoder",
}


@pytest.mark.parametrize("kind", OF)
def test_a_configuration_is_of_the_first_family_that_has_it(kind: str) -> None:
    family = family_of(CONFIG_MAPPING[kind]())
    assert family.name == OF[kind]
    assert (family.refusal == "") == (OF[kind] == "decoder")


def test_code_that_a_model_brings_is_taken_at_its_word() -> None:
    config = CONFIG_MAPPING["bert"]()
    config.auto_map = {"AutoModelForCausalLM": "modeling.Model"}
    assert family_of(config).refusal == ""


def test_of_models_made_in_a_script_an_encoder_decoder_alone_is_refused(models: Any) -> None:
    assert why_not_trained(models("qwen2")) is None
    assert why_not_trained(SimpleNamespace()) == (
        "SimpleNamespace is not a transformers causal language model."
    )
    bart = models("bart")  # its decoder alone
    assert why_not_trained(bart) is None
    bart.config.is_encoder_decoder = True
    assert why_not_trained(bart) == (
        f"{type(bart).__name__} is an encoder-decoder model; only decoder-only language models "
        "are supported yet."
    )


def test_a_family_registered_from_outside_is_asked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("counterpoint.models.family.FAMILIES", dict(FAMILIES))
    config = CONFIG_MAPPING["t5"](
        d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=20
    )
    own = Family(
        "t5",
        lambda config: config.model_type == "t5",
        auto_class=AutoModelForSeq2SeqLM,
        layouts=(PADDED,),
    )
    register_family(own)
    assert family_of(config) is own
    model = random_model("t5", CPOConfig(output_dir=str(tmp_path)), config)
    assert type(model).__name__ == "T5ForConditionalGeneration"
    assert why_not_trained(model) is None
    with pytest.raises(ValueError, match="'t5' already"):
        register_family(own)


@pytest.mark.parametrize(
    ("given", "options", "adapter", "dtype"),
    [
        (None, {}, False, "float32"),
        (None, {}, True, AS_FILED),
        (None, {"stochastic_rounding": True}, False, "bfloat16"),
        (None, {"stochastic_rounding": True}, True, AS_FILED),
        ({"torch_dtype": "float16"}, {}, False, "float16"),
        ({"dtype": AS_FILED}, {}, False, AS_FILED),
    ],
)
def test_weights_are_held_as_the_run_asks(
    given: Any, options: dict[str, Any], adapter: bool, dtype: str, tmp_path: Path
) -> None:
    args = CPOConfig(output_dir=str(tmp_path), model_init_kwargs=given, **options)
    policy = WeightsPolicy.of(args, adapter=adapter)
    assert policy == WeightsPolicy(dtype, adapter)
    filed = policy.made(SimpleNamespace(dtype="float64"))
    assert filed == ("float64" if dtype == AS_FILED else dtype)
    assert policy.made(SimpleNamespace()) == ("float32" if dtype == AS_FILED else dtype)


def test_a_run_lays_and_looks_for_the_head_as_its_family_says(
    models: Any, chatml_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("counterpoint.models.family.FAMILIES", dict(FAMILIES))
    asked: list[str] = []

    def found(model: Any, *whole: Any) -> Head:
        asked.append(type(model).__name__)
        return find_head(model, *whole)

    truth, shared = train_watched(models("qwen2"), chatml_tokenizer, random_pairs(4), tmp_path)
    register_family(
        Family(
            "ours", lambda config: config.model_type == "qwen2", layouts=(PADDED,), find_head=found
        )
    )
    ours, padded = train_watched(models("qwen2"), chatml_tokenizer, random_pairs(4), tmp_path)
    assert (shared._assembly().layout, padded._assembly().layout) == (SHARED.name, PADDED.name)
    assert set(asked) == {"Qwen2ForCausalLM"}
    assert all(distance(one, other) <= 1e-5 for one, other in zip(truth, ours, strict=True))
