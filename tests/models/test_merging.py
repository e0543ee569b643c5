"""An adapter and its base as one model: says the same, opens without PEFT, leaves both alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from counterpoint import CPOConfig
from counterpoint.errors import ModelError
from counterpoint.models import merging
from counterpoint.models.merging import merge_adapter
from tests.translators_on_the_spot import translator

LAYERS = ["q_proj", "v_proj", "down_proj"]
CONFIGS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True, "r": 4},
    "DoRA": {"use_dora": True},
    "whole modules beside it": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "LoRA of the embedding": {"target_modules": [*LAYERS, "embed_tokens"]},
    "a token trained alone": {"trainable_token_indices": {"embed_tokens": [5, 9]}},
}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def moved(model: Any) -> None:
    """Give every weight that trains another value, as training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn(weight.shape, generator=generator)


def adapted(base: Path, to: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": LAYERS, "r": 2} | options)
    made = get_peft_model(model, config)
    moved(made)
    made.save_pretrained(to)
    return to


@pytest.fixture(params=["qwen2", "qwen2_tied"])
def base(
    models: Callable[..., Any],
    chatml_tokenizer: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Path:
    models(request.param).save_pretrained(tmp_path / "base")
    chatml_tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def args(**more: Any) -> CPOConfig:
    return CPOConfig(output_dir="unused", use_cpu=True, model_init_kwargs=more or None)


def says(model: Any, *more: Any) -> torch.Tensor:
    ids = torch.tensor([[7, 5, 9, 11, 5, 30, 2]])
    with torch.no_grad():
        return model.eval()(ids, *more).logits.log_softmax(-1)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_merged_model_says_what_the_adapter_said_on_its_base(
    kind: str, base: Path, tmp_path: Path
) -> None:
    adapter = adapted(base, tmp_path / "adapter", **CONFIGS[kind])
    before = digests(adapter), digests(base)
    merged = merge_adapter(str(adapter), args(), tmp_path / "merged")
    assert merged.dtype == "float32"
    assert merged.moved <= 1e-5
    assert (digests(adapter), digests(base)) == before
    there = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (says(whole) - says(there)).abs().max() <= 1e-5
    assert (says(whole) - says(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 1e-3
    assert not list((tmp_path / "merged").glob("adapter*"))
    own, given = (AutoTokenizer.from_pretrained(f) for f in (tmp_path / "merged", base))
    assert own.get_vocab() == given.get_vocab()
    assert own.chat_template == given.chat_template


def test_an_encoder_decoder_is_merged_as_what_it_is(tmp_path: Path) -> None:
    model, tokenizer = translator("nllb")
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    own = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q_proj", "fc1"], r=2)
    made = get_peft_model(own, config)
    moved(made)
    made.save_pretrained(tmp_path / "adapter")
    assert merge_adapter(str(tmp_path / "adapter"), args(), tmp_path / "merged").moved <= 1e-5
    whole = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    start = torch.tensor([[2, 9, 6]])
    with torch.no_grad():
        one, two = (
            m.eval()(torch.tensor([[7, 5, 9]]), decoder_input_ids=start).logits.log_softmax(-1)
            for m in (whole, made)
        )
    assert (one - two).abs().max() <= 1e-5


def test_of_16_bits_it_is_measured_how_far_the_sum_is_rounded(base: Path, tmp_path: Path) -> None:
    adapter = adapted(base, tmp_path / "adapter")
    merged = merge_adapter(str(adapter), args(dtype="bfloat16"), tmp_path / "merged")
    assert merged.dtype == "bfloat16"
    assert 0 < merged.moved <= merging.AGREES_NARROW
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert whole.dtype == torch.bfloat16


@pytest.mark.parametrize(("dtype", "by"), [("float32", 0.01), ("bfloat16", 1.0)])
def test_what_would_say_something_else_is_not_written(
    dtype: str, by: float, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapted(base, tmp_path / "adapter")
    unmerged = merging._merged

    def other(model: Any, source: str) -> Any:
        merged = unmerged(model, source)
        with torch.no_grad():
            for weight in merged.model.layers.parameters():
                weight.add_(by)
        return merged

    monkeypatch.setattr(merging, "_merged", other)
    with pytest.raises(ModelError, match=r"CP307 merged, the model says something else"):
        merge_adapter(str(adapter), args(dtype=dtype), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_has_no_weights_to_merge_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"CP301 .* is no folder of an adapter"):
        merge_adapter(str(base), args(), tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(base)
    prompt = get_peft_model(model, PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2))
    prompt.save_pretrained(tmp_path / "prompt")
    with pytest.raises(ModelError, match=r"CP307 .*PROMPT_TUNING"):
        merge_adapter(str(tmp_path / "prompt"), args(), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
