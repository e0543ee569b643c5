"""The table of families: what is trained, what is refused and why, and how one is added."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from counterpoint import CPOConfig
from counterpoint.forward.head import Head, find_head
from counterpoint.forward.layouts import PADDED, SHARED
from counterpoint.forward.sights import SIGHTS
from counterpoint.models.family import (
    DECODER,
    ENCODER_DECODER,
    FAMILIES,
    SEEING,
    STARTS,
    Family,
    family_of,
    register_family,
    why_not_trained,
)
from counterpoint.models.loading import random_model
from counterpoint.models.weights import AS_FILED, WeightsPolicy
from tests.steps import distance, random_pairs, train_watched

OF = {
    "qwen3": "decoder",
    "mamba": "decoder",
    **dict.fromkeys(STARTS, "encoder-decoder"),
    "nllb-moe": "experts of limited room",
    "led": "encoder-decoder of another kind",
    "vit": "another task",
    **dict.fromkeys(SIGHTS, SEEING),
    "vipllava": "pictures and text of another kind",
    "bert": "encoder",
}


@pytest.mark.parametrize("kind", OF)
def test_a_configuration_is_of_the_first_family_that_has_it(kind: str) -> None:
    family = family_of(CONFIG_MAPPING[kind]())
    assert family.name == OF[kind]
    assert (family.refusal == "") == (OF[kind] in (DECODER, ENCODER_DECODER, SEEING))


def test_code_that_a_model_brings_is_taken_at_its_word() -> None:
    config = CONFIG_MAPPING["bert"]()
    config.auto_map = {"AutoModelForCausalLM": "modeling.Model"}
    assert family_of(config).refusal == ""


def test_a_kind_that_transformers_knows_sees_whatever_code_it_brings_as_well() -> None:
    config = CONFIG_MAPPING["kimi_k25"]()
    config.auto_map = {"AutoModelForCausalLM": "modeling.Model"}
    assert family_of(config).name == SEEING
    brought = type("Kimi", (type(config),), {"__module__": "transformers_modules.kimi"})
    config.__class__ = brought
    assert family_of(config).name == "decoder with code of its own"


def test_of_models_made_in_a_script_strange_encoder_decoders_are_refused(models: Any) -> None:
    assert why_not_trained(models("qwen2")) is None
    assert why_not_trained(SimpleNamespace()) == (
        "SimpleNamespace is not a transformers causal language model."
    )
    bart = models("bart")  # its decoder alone
    assert why_not_trained(bart) is None
    bart.config.is_encoder_decoder, bart.config.model_type = True, "led"
    assert why_not_trained(bart) == (
        f"{type(bart).__name__} is an encoder-decoder of a kind of which it is not known what its "
        f"decoder begins with; {', '.join(STARTS)} are known."
    )


def test_what_is_said_of_experts_of_limited_room_is_so() -> None:
    """Should a release of transformers mend this, the refusal is to be looked at again."""
    config = CONFIG_MAPPING["nllb-moe"](
        vocab_size=60,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_experts=6,
        encoder_sparse_step=1,
        decoder_sparse_step=1,
        expert_capacity=3,
        dropout=0.0,
        attention_dropout=0.0,
        moe_token_dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
    )
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config).train()
    ids, start = torch.randint(3, 60, (2, 9)), torch.randint(3, 60, (2, 5))

    def logits(rows: slice) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids[rows], decoder_input_ids=start[rows], use_cache=False).logits

    both = logits(slice(2))
    alone = torch.cat([logits(slice(row, row + 1)) for row in range(2)])
    assert float((both - alone).abs().max()) > 1e-3  # room for all of a micro-batch, and no more
    chosen: set[int] = set()
    routers = [m for m in model.modules() if type(m).__name__ == "NllbMoeTop2Router"]
    for router in routers:
        router.register_forward_hook(lambda _, __, out: chosen.update(out[2].argmax(-1).tolist()))
    logits(slice(2))
    assert len(chosen) > 2
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(f"expert_{n}." in name for n in range(2, 6)):
                weight.add_(1.0)
    assert torch.equal(logits(slice(2)), both)  # whatever was chosen, those are not asked
    assert "expert_capacity" in str(why_not_trained(model))


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
