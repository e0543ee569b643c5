"""GGUF files of tiny models, written in milliseconds with llama.cpp's own package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from transformers import PreTrainedTokenizerBase

from tests.models_on_the_spot import make_model

WIDE: dict[str, Any] = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 256}
"""Rows as long as a block of Q4_K; the others' are 32."""

KINDS = {
    "F32": Kind.F32,
    "F16": Kind.F16,
    "BF16": Kind.BF16,
    "Q8_0": Kind.Q8_0,
    "Q4_0": Kind.Q4_0,
    "Q4_K": Kind.Q4_K,
}


def in_blocks(weight: np.ndarray[Any, Any], kind: Kind, seed: int) -> np.ndarray[Any, Any]:
    """A matrix in blocks; those of Q4_K, which the package only reads, of random bits."""
    if kind is not Kind.Q4_K:
        return np.asarray(gguf.quantize(weight, kind))
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = weight.shape
    random = np.random.default_rng(seed)
    bits = random.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    scales = np.full((rows, columns // block, 2), [2e-4, 1e-3], dtype=np.float16)
    bits[:, :, :4] = scales.view(np.uint8)
    return bits.reshape(rows, -1)


def write_gguf(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    kind: str = "Q8_0",
    *,
    architecture: str = "qwen2",
    parts: int = 0,
    chat_template: str | None = None,
) -> Path:
    """A tiny Qwen 2 with a byte-level tokenizer, its matrices of one type."""
    changes = WIDE if kind == "Q4_K" else {"intermediate_size": 64}
    model = make_model("qwen2", vocab_size=len(tokenizer), **changes)
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if parts:
        writer.add_uint16("split.count", parts)
    add_tokenizer(writer, tokenizer)
    if chat_template:
        writer.add_chat_template(chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for seed, (name, weight) in enumerate(model.state_dict().items()):
        called = names.get_name(name, try_suffixes=(".weight", ".bias"))
        numbers = weight.numpy()
        if numbers.ndim == 1:
            writer.add_tensor(called, numbers)
        else:
            blocks = in_blocks(numbers, KINDS[kind], seed)
            writer.add_tensor(called, blocks, raw_dtype=KINDS[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    """Its vocabulary, merges and special tokens, as llama.cpp's converter writes them."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = set(tokenizer.all_special_ids)
    kinds = [
        gguf.TokenType.CONTROL if n in special else gguf.TokenType.NORMAL
        for n in range(len(tokenizer))
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_types(kinds)
    writer.add_token_merges(
        [one if isinstance(one, str) else " ".join(one) for one in described["merges"]]
    )
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
