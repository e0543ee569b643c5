"""Models as they are published, scaled down: ten steps, saved, opened by plain transformers.

What is kept of a configuration is all that says how a model computes; what is scaled are widths and
counts. A published one is quantised, cut into shards or trained further; none of that is here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.forward.layouts import SHARED
from tests.forward.test_seeing import alone
from tests.tokenizers_on_the_spot import byte_level
from tests.trainer.test_about_pictures import RAW
from tests.vision_on_the_spot import KINDS, ROWS, TEMPLATE, Made, seen_pairs

STEPS = 10

PADDLEOCR_VL_1_5: dict[str, Any] = {
    "tie_word_embeddings": False,
    "text_config": {
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 18,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "use_bias": False,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 500_000.0,
            "mrope_section": [16, 24, 24],
        },
    },
    "vision_config": {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "layer_norm_eps": 1e-6,
    },
}
KIMI_K2_5: dict[str, Any] = {
    "tie_word_embeddings": False,
    "projection_hidden_size": 1152,
    "text_config": {
        "model_type": "kimi_k2",
        "hidden_act": "silu",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "first_k_dense_replace": 1,
        "num_attention_heads": 64,
        "num_key_value_heads": 64,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 384,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.827,
        "num_nextn_predict_layers": 0,
        "max_position_embeddings": 262_144,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 50_000.0,
            "factor": 64.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
        },
    },
    "vision_config": {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "pos_emb_height": 64,
        "pos_emb_width": 64,
        "pos_emb_time": 4,
        "merge_kernel_size": [2, 2],
    },
}
GLM_4_7_FLASH: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 10240,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 47,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "q_lora_rank": 768,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "n_routed_experts": 64,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.8,
    "max_position_embeddings": 202_752,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}

TEXT = {
    **dict.fromkeys(("hidden_size", "intermediate_size"), 16),
    **dict.fromkeys(("moe_intermediate_size", "q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 4),
    **dict.fromkeys(("num_attention_heads", "mrope_section"), 4),
    "n_routed_experts": 8,
}
TOWER = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads"), 8),
    **dict.fromkeys(("pos_emb_height", "pos_emb_width"), 8),
}
"""By how much what is counted under a name is divided."""


def scaled(published: dict[str, Any], by: dict[str, int] = TEXT, **more: Any) -> dict[str, Any]:
    """The same model with less of everything of which it has much, and two or three layers."""
    found: dict[str, Any] = {}
    by = {**by, "projection_hidden_size": TOWER["hidden_size"]}
    if published.get("num_key_value_heads", 0) == published.get("num_attention_heads"):
        by["num_key_value_heads"] = by["num_attention_heads"]
    for name, value in published.items():
        if name == "num_hidden_layers":
            found[name] = 3 if "n_routed_experts" in published else 2
        elif isinstance(value, dict):
            found[name] = scaled(value, TOWER if name == "vision_config" else by)
        elif isinstance(value, list):
            found[name] = [number // by.get(name, 1) for number in value]
        else:
            found[name] = value // by[name] if name in by else value
    return {**found, **more}


def ids_of(model: PreTrainedModel) -> dict[str, Any]:
    """What a configuration says of the tokenizer of a small model."""
    return {
        name: value
        for name, value in vars(model.config).items()
        if name.endswith(("token_id", "token_index", "_start_token_id"))
    }


def as_published(kind: str) -> Made:
    """A random model and a processor, or a tokenizer, of its kind."""
    torch.manual_seed(0)
    if kind == "glm4_moe_lite":
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], 400),
            eos_token="<|im_end|>",
            pad_token="<|endoftext|>",
            chat_template=TEMPLATE.replace("MARK", ""),
        )
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        more = {**ids, "bos_token_id": None, "vocab_size": len(tokenizer)}
        config = transformers.Glm4MoeLiteConfig(**scaled(GLM_4_7_FLASH, **more))
        model: Any = transformers.Glm4MoeLiteForCausalLM(config)
        made = model, tokenizer
    else:
        small, processor = KINDS[kind]()
        text = small.config.text_config
        own = {name: getattr(text, f"{name}_token_id") for name in ("eos", "pad", "bos")}
        published = {"paddleocr_vl": PADDLEOCR_VL_1_5, "kimi_k25": KIMI_K2_5}[kind]
        described = scaled(published, **ids_of(small))
        described["text_config"] |= {f"{name}_token_id": value for name, value in own.items()}
        described["text_config"]["vocab_size"] = text.vocab_size
        made = type(small)(type(small.config)(**described)), processor
    for name, buffer in made[0].named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(0, 0.05)
    return made


def said(made: Made, kind: str) -> torch.Tensor:
    """Log-probabilities of both completions of each row, one at a time, as plain transformers."""
    model, processor = made
    model.eval()
    found = []
    with torch.no_grad():
        if kind in KINDS:
            for pair in seen_pairs(made):
                found += [alone(made, pair, pair.chosen), alone(made, pair, pair.rejected)]
        else:
            for _, question, *answers in ROWS:
                ids = processor(question)["input_ids"]
                for answer in answers:
                    both = torch.tensor([ids + processor(answer)["input_ids"]])
                    logps = model(both, use_cache=False).logits[0].log_softmax(-1)
                    rows = logps[len(ids) - 1 : -1]
                    found.append(rows.gather(1, both[0, len(ids) :, None]).sum().double())
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["paddleocr_vl", "kimi_k25", "glm4_moe_lite"])
def test_ten_steps_are_saved_and_plain_transformers_say_the_same(kind: str, tmp_path: Path) -> None:
    made = as_published(kind)
    model, processor = made
    before = said(made, kind)
    sees = kind in KINDS
    rows = RAW if sees else [{**row, "images": None} for row in RAW]
    trainer = CPOTrainer(
        model,
        CPOConfig(
            output_dir=str(tmp_path / "run"),
            use_cpu=True,
            max_steps=STEPS,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            save_strategy="no",
            report_to="none",
            max_length=200,
            router_aux_loss_coef=None if kind == "paddleocr_vl" else 0.01,
        ),
        train_dataset=Dataset.from_list(rows).remove_columns([] if sees else ["images"]),
        processing_class=processor,
    )
    trainer.train()
    assert trainer.state.global_step == STEPS
    assert trainer._assembly().layout == SHARED.name
    trainer.save_model(str(tmp_path / "saved"))
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    opened = auto.from_pretrained(tmp_path / "saved")
    assert type(opened) is type(model)
    assert opened.config.model_type == kind
    trained = said((model, processor), kind)
    assert torch.equal(said((opened, processor), kind), trained)
    assert not torch.allclose(trained, before, rtol=1e-3)
