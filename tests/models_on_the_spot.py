"""Small models of many architectures, made in milliseconds; fp32, no dropout, fixed seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SMALL: dict[str, Any] = {
    "vocab_size": 640,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# attention over compressed states, values narrower than keys, and experts
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "head_dim": 4,
    "v_head_dim": 6,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "qwen2": {"model_type": "qwen2"},
    "qwen2_tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "llama": {"model_type": "llama"},
    "gemma2": {
        "model_type": "gemma2",
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 5.0,
        "sliding_window": 16,
        "query_pre_attn_scalar": 8,
    },
    "cohere": {"model_type": "cohere", "logit_scale": 0.25},
    "granite": {"model_type": "granite", "logits_scaling": 4.0},
    "phi": {"model_type": "phi", "partial_rotary_factor": 0.5},  # a bias in the head
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 512,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "router_aux_loss_coef": 0.1,
    },
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "router_aux_loss_coef": 0.1},
    "qwen3": {"model_type": "qwen3"},
    "mistral": {"model_type": "mistral", "sliding_window": 9},
    "gemma3": {
        "model_type": "gemma3_text",
        "layer_types": ["sliding_attention", "full_attention"],  # each with a rope of its own
        "sliding_window": 8,
        "query_pre_attn_scalar": 8,
    },
    "phi3": {"model_type": "phi3", "sliding_window": 12},
    "olmo2": {"model_type": "olmo2"},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 0]},
    "opt": {  # learned positions
        "model_type": "opt",
        "ffn_dim": 48,
        "word_embed_proj_dim": 32,
        "dropout": 0.0,
    },
    "gpt_oss": {  # sinks, windows and experts
        "model_type": "gpt_oss",
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.1,
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        **LATENT,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "glm4_moe_lite": {
        "model_type": "glm4_moe_lite",
        **LATENT,
        "mlp_layer_types": ["dense", "sparse"],
    },
}
"""Architectures that share prompts."""

APART: dict[str, dict[str, Any]] = {
    "bloom": {"model_type": "bloom", "n_layer": 2, "n_head": 4},
    "mpt": {"model_type": "mpt", "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
    "mamba": {"model_type": "mamba", "state_size": 4},
    "jamba": {
        "model_type": "jamba",
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 4,
        "use_mamba_kernels": False,
    },
    "qwen3_next": {
        "model_type": "qwen3_next",
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
    "bart": {
        "model_type": "bart",
        "d_model": 32,
        "decoder_layers": 2,
        "decoder_ffn_dim": 48,
        "decoder_attention_heads": 4,
        "dropout": 0.0,
    },
    "lfm2": {"model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
    "llama4": {
        "model_type": "llama4_text",
        "attention_chunk_size": 8,
        "intermediate_size_mlp": 48,
        "num_local_experts": 4,
    },
    "deepseek_v32": {
        "model_type": "deepseek_v32",
        **LATENT,
        "n_group": 1,
        "topk_group": 1,
        "index_topk": 4,
        "index_n_heads": 2,
        "index_head_dim": 8,
    },
    "phimoe": {"model_type": "phimoe", "sliding_window": 64, "num_local_experts": 4},
    "stablelm": {"model_type": "stablelm"},
    "doge": {"model_type": "doge", "keep_window_size": 8, "sliding_window": None},
}
"""Architectures that keep their prompts apart, each for a reason of its own."""

_SIDES: dict[str, Any] = {
    "d_model": 32,
    **{
        f"{side}_{what}": size
        for side in ("encoder", "decoder")
        for what, size in (("layers", 2), ("ffn_dim", 48), ("attention_heads", 4))
    },
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "decoder_start_token_id": 2,
}
ENCODED: dict[str, dict[str, Any]] = {
    "nllb": {"model_type": "m2m_100", **_SIDES},
    "mbart": {"model_type": "mbart", **_SIDES},
    "t5": {
        "model_type": "t5",
        **{"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
        "decoder_start_token_id": 0,
    },
}
"""Encoder-decoders; the last id of a prepared prompt is what their decoder begins with."""

NEED_EAGER = {"gemma2", "gpt_oss", "bloom", "mpt", "mamba"}

MakeModel = Callable[..., PreTrainedModel]


def make_model(kind: str = "qwen2", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A fresh model; weights are spread wider than usual so that losses are not all alike."""
    options = {**SMALL, **{**KINDS, **APART, **ENCODED}[kind], **changes}
    model_type = options.pop("model_type")
    config = CONFIG_MAPPING[model_type](**options)
    torch.manual_seed(seed)
    # eager attention takes its softmax in fp32; only what sdpa cannot do needs it
    attention = "eager" if kind in NEED_EAGER else "sdpa"
    auto = AutoModelForSeq2SeqLM if kind in ENCODED else AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation=attention)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped kernel has no fp64
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
        for module in model.modules():
            if hasattr(module, "create_weight"):  # positions that are computed, and in no file
                module.weight.copy_(module.create_weight())
    return model.float()


@pytest.fixture(scope="session")
def models() -> MakeModel:
    """The factory itself, so that each test owns what it trains."""
    return make_model
