"""A twin is the same architecture, tiny, whole, and able to read every token id of the run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from counterpoint import CPOConfig, ModelError
from counterpoint.models import tiny_twin as twin
from counterpoint.models.preparing import embedding_rows
from counterpoint.models.tiny_twin import (
    LIMIT,
    shrink,
    spread,
    tiny_twin,
    weights_outside_vocabulary,
)
from counterpoint.models.weights import WeightsPolicy
from tests.models_on_the_spot import APART, KINDS, SMALL

ARCHITECTURES = (
    *("apertus", "arcee", "bamba", "bloom", "codegen", "cohere", "cohere2"),
    *("deepseek_v3", "ernie4_5", "ernie4_5_moe", "exaone4", "falcon", "falcon_h1"),
    *(
        "falcon_mamba",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gemma3n_text",
        "gemma4_text",
        "glm",
        "glm4",
        "glm4_moe",
    ),
    *("gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe"),
    *("granitemoehybrid", "helium", "jamba", "lfm2", "llama", "llama4_text", "mamba", "mamba2"),
    *("minicpm3", "minimax", "mistral", "mixtral", "mpt", "nemotron_h", "olmo"),
    *("olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi", "phi3", "phimoe", "qwen2"),
    *("qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "recurrent_gemma", "seed_oss", "smollm3"),
    *("stablelm", "starcoder2", "xglm", "zamba2"),
)
"""Types of models, as large as their configurations make them by default."""


@pytest.fixture
def args() -> CPOConfig:
    return CPOConfig(output_dir="never-written", use_cpu=True)


def config_of(model_type: str, **options: Any) -> PretrainedConfig:
    return CONFIG_MAPPING[model_type](**options)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_twin_is_of_the_same_class_tiny_and_knows_every_token(
    model_type: str, args: CPOConfig
) -> None:
    config = config_of(model_type)
    before = config.to_dict()
    made = tiny_twin(model_type, args, config)
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
    assert type(made) is type(whole)
    outside = weights_outside_vocabulary(made)
    assert 0 < outside < LIMIT
    assert outside <= weights_outside_vocabulary(whole)
    rows = whole.get_input_embeddings().weight.shape[0]
    assert made.get_input_embeddings().weight.shape[0] == rows
    assert config.to_dict() == before


def test_a_twin_of_two_vocabularies_knows_every_token_of_both(args: CPOConfig) -> None:
    sizes = {"vocab_size": 60_000, "decoder_vocab_size": 90_000}
    config = config_of("marian", share_encoder_decoder_embeddings=False, **sizes)
    made = tiny_twin("marian", args, config)
    assert embedding_rows(made) == (60_000, 90_000)
    assert weights_outside_vocabulary(made) < 400_000  # neither embedding is among them


@pytest.mark.parametrize("kind", [*KINDS, *APART])
def test_a_model_that_is_tiny_already_has_a_twin_too(kind: str, args: CPOConfig) -> None:
    options = {**SMALL, **{**KINDS, **APART}[kind]}
    config = config_of(options.pop("model_type"), **options)
    made = tiny_twin(kind, args, config)
    assert made.config.get_text_config().hidden_size <= 64


def kinds(config: PretrainedConfig) -> set[str]:
    return set(config.layer_types)


@pytest.mark.parametrize("model_type", ["gemma3_text", "qwen3_next", "gpt_oss", "olmo3", "lfm2"])
def test_a_twin_has_a_layer_of_every_kind(model_type: str) -> None:
    config = config_of(model_type)
    small = shrink(config)
    assert kinds(small) == kinds(config)
    assert len(small.layer_types) == small.num_hidden_layers < config.num_hidden_layers


def test_dense_first_layers_and_those_with_experts_are_both_there() -> None:
    small = shrink(config_of("deepseek_v3"))
    assert small.first_k_dense_replace < small.num_hidden_layers
    assert (small.n_routed_experts, small.num_experts_per_tok) == (4, 2)
    assert small.n_routed_experts % small.n_group == 0


def test_heads_stay_shared_as_they_were() -> None:
    shared = {"num_attention_heads": 14, "num_key_value_heads": 2, "hidden_size": 896}
    small = shrink(config_of("qwen2", **shared))
    assert (small.num_attention_heads, small.num_key_value_heads) == (4, 2)
    own = shrink(config_of("llama", num_attention_heads=32, num_key_value_heads=32))
    assert own.num_attention_heads == own.num_key_value_heads == 4
    assert shrink(config_of("gemma", num_key_value_heads=1)).num_key_value_heads == 1


def test_a_window_becomes_shorter_than_the_rows_and_none_is_invented() -> None:
    assert shrink(config_of("mistral", sliding_window=4096)).sliding_window == twin.WINDOW
    assert shrink(config_of("mistral", sliding_window=None)).sliding_window is None


def test_factors_of_a_long_rope_fit_the_narrower_head(args: CPOConfig) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + step / 100 for step in range(48)],
        "long_factor": [1.0 + step for step in range(48)],
        "original_max_position_embeddings": 4096,
    }
    config = config_of("phi3", rope_parameters=rope, max_position_embeddings=131072)
    small = shrink(config).rope_parameters
    assert len(small["short_factor"]) == len(small["long_factor"]) == 8
    assert small["long_factor"] == sorted(small["long_factor"])
    tiny_twin("phi3", args, config)


def test_sections_of_a_rope_still_add_up_to_half_a_head() -> None:
    assert twin._portions([16, 24, 24], 8) == [2, 3, 3]
    assert sum(twin._portions([11, 11, 10], 2)) == 2


def test_twins_of_one_seed_are_one(args: CPOConfig) -> None:
    first, second = (tiny_twin("llama", args, config_of("llama", vocab_size=100)) for _ in range(2))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("adapted", "keywords", "dtype"),
    [
        (False, None, torch.float32),
        (True, None, torch.bfloat16),
        (False, {"dtype": "bfloat16", "device_map": "auto"}, torch.bfloat16),
        (True, {"dtype": "auto"}, torch.bfloat16),
    ],
)
def test_a_twin_keeps_the_precision_of_the_run(
    adapted: bool, keywords: dict[str, str] | None, dtype: torch.dtype
) -> None:
    args = CPOConfig(output_dir="never-written", use_cpu=True, model_init_kwargs=keywords)
    config = config_of("qwen2", vocab_size=100, dtype="bfloat16")
    assert tiny_twin("qwen2", args, config, WeightsPolicy.of(args, adapter=adapted)).dtype == dtype


def test_matrices_are_spread_and_vectors_are_not() -> None:
    model = AutoModelForCausalLM.from_config(shrink(config_of("qwen2", vocab_size=100)))
    vectors = {n: p.clone() for n, p in model.named_parameters() if p.dim() == 1}
    spread(model)
    after = dict(model.named_parameters())
    assert all(p.std() >= 0.99 * twin.SPREAD for p in after.values() if p.dim() > 1)
    assert all(torch.equal(after[name], vector) for name, vector in vectors.items())


def test_a_configuration_that_stays_large_has_no_twin(
    args: CPOConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin, "OF_WIDTHS", ())
    monkeypatch.setattr(twin, "OF_COUNTS", ())
    with pytest.raises(ModelError, match=r"CP309 .*\(llama\).*not counting those of the voc"):
        tiny_twin("some/llama", args, config_of("llama"))


def test_fields_that_no_longer_fit_together_are_an_error_with_a_code(
    args: CPOConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin, "OF_WIDTHS", ((r"^num_attention_heads$", lambda s, value: 5),))
    with pytest.raises(ModelError, match=r"CP309 no tiny twin of some/llama"):
        tiny_twin("some/llama", args, config_of("llama"))
