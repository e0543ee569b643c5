"""Every tensor belongs to a group, by its name."""

from __future__ import annotations

import pytest

from counterpoint.monitor.groups import GROUPS, adapted_module, expert_family, group_of
from tests.models_on_the_spot import APART, ENCODED, KINDS
from tests.translators_on_the_spot import KINDS as TRANSLATORS
from tests.translators_on_the_spot import translator

LAYER = "model.layers.3"


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.embed_tokens.weight", "embeddings"),
        ("transformer.wte.weight", "embeddings"),
        ("transformer.wpe.weight", "embeddings"),
        ("transformer.word_embeddings.weight", "embeddings"),
        ("transformer.word_embeddings_layernorm.weight", "norms"),
        (f"{LAYER}.self_attn.q_proj.bias", "attention"),
        (f"{LAYER}.self_attn.q_norm.weight", "norms"),
        (f"{LAYER}.input_layernorm.weight", "norms"),
        ("transformer.h.0.ln_1.weight", "norms"),
        ("transformer.ln_f.bias", "norms"),
        ("transformer.h.0.attn.c_attn.weight", "attention"),
        ("transformer.h.0.attention.query_key_value.weight", "attention"),
        (f"{LAYER}.mlp.down_proj.weight", "mlp"),
        (f"{LAYER}.mlp.experts.gate_up_proj", "mlp"),
        (f"{LAYER}.block_sparse_moe.experts.7.w1.weight", "mlp"),
        (f"{LAYER}.feed_forward.w1.weight", "mlp"),
        ("model.decoder.layers.0.fc1.weight", "mlp"),
        ("model.norm.weight", "norms"),
        ("lm_head.weight", "head"),
        ("embed_out.weight", "head"),
        (f"base_model.model.{LAYER}.self_attn.q_proj.lora_A.default.weight", "adapters"),
        (f"base_model.model.{LAYER}.mlp.up_proj.lora_B.weight", "adapters"),
        ("prompt_encoder.default.embedding.weight", "adapters"),
        (f"base_model.model.{LAYER}.self_attn.q_proj.base_layer.weight", "attention"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "head"),
        ("model.layers.0.mixer.A_log", "other"),
        ("shared.weight", "embeddings"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "encoder attention"),
        ("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", "encoder mlp"),
        ("encoder.final_layer_norm.weight", "encoder norms"),
        ("decoder.block.0.layer.0.SelfAttention.q.weight", "attention"),
        ("decoder.block.0.layer.1.EncDecAttention.q.weight", "cross-attention"),
        ("decoder.block.0.layer.1.layer_norm.weight", "norms"),
        ("model.encoder.embed_positions.weight", "encoder embeddings"),
        ("model.encoder.layers.3.ffn.experts.expert_0.fc1.weight", "encoder mlp"),
        ("model.decoder.layers.0.encoder_attn.k_proj.bias", "cross-attention"),
        ("model.decoder.layers.0.encoder_attn_layer_norm.weight", "norms"),
        ("base_model.model.model.encoder.layers.0.fc1.weight", "encoder mlp"),
        ("base_model.model.encoder.block.0.layer.0.SelfAttention.o.weight", "encoder attention"),
        ("base_model.model.model.encoder.layers.0.fc1.lora_A.default.weight", "adapters"),
        # decoders alone, whose layers are called so
        ("bert.encoder.layer.0.attention.self.query.weight", "attention"),
        ("transformer.encoder.layers.0.self_attention.dense.weight", "attention"),
        ("the_biased_one", "other"),
    ],
)
def test_a_name_tells_the_group(name: str, group: str):
    assert group_of(name) == group


@pytest.mark.parametrize("kind", sorted({*KINDS, *ENCODED, "bloom", "mpt", "llama4", "phimoe"}))
def test_every_tensor_of_a_transformer_has_a_group_of_its_own(kind: str, models):
    names = [name for name, _ in models(kind).named_parameters()]
    found = {name: group_of(name) for name in names}
    assert {name for name, group in found.items() if group == "other"} <= {
        # between the two halves of a layer, and said by nothing but their place
        name
        for name in names
        if kind in APART and "dense_" in name
    }
    assert set(found.values()) <= set(GROUPS)
    assert {"embeddings", "attention", "mlp", "norms"} <= set(found.values())


@pytest.mark.parametrize("kind", TRANSLATORS)
def test_an_encoder_its_decoder_and_what_joins_them_are_apart(kind: str):
    found: dict[str, set[str]] = {}
    for name, _ in translator(kind)[0].named_parameters():
        found.setdefault(group_of(name), set()).add(name)
    assert not {"other", "encoder other"} & found.keys()
    parts = {"attention", "mlp", "norms"}
    assert {*parts, *(f"encoder {part}" for part in parts), "cross-attention"} <= found.keys()
    for group, names in found.items():
        sides = {("encoder." in name, "decoder." in name) for name in names}
        assert len(sides) == 1 or group == "embeddings"  # what both share beside the decoder's own
        assert group.startswith("encoder ") == (sides == {(True, False)})


def test_an_adapter_names_its_module_and_an_expert_its_family():
    name = "base_model.model.layers.0.mlp.experts.3.up_proj.lora_A.default.weight"
    assert adapted_module(name) == "base_model.model.layers.0.mlp.experts.3.up_proj"
    assert adapted_module("model.layers.0.mlp.up_proj.weight") is None
    assert expert_family(adapted_module(name) or "") == (
        "base_model.model.layers.0.mlp.experts.*.up_proj"
    )
    assert expert_family("layers.1.experts.0.w1.weight") == "layers.1.experts.*.w1.weight"
    assert expert_family("layers.1.experts.gate_up_proj") is None
