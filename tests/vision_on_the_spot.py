"""Small models that see, with processors of their own kind, made in milliseconds; fixed seeds.

What the oldest transformers that is allowed does not have is imported where it is made.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import AddedToken
from torch import nn
from transformers import (
    BatchFeature,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import (
    PaddleOCRVLImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils import PushToHubMixin

from counterpoint.data.vision import VisionEncoder
from counterpoint.forward.sights import sight_of
from counterpoint.picture import Picture
from counterpoint.preference_row import PreferenceRow
from counterpoint.records import TokenPair
from tests.tokenizers_on_the_spot import byte_level

Made = tuple[PreTrainedModel, ProcessorMixin]

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}MARK"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = ((60, 40), (30, 80), (28, 28), (84, 56))
"""Width and height of pictures, in turn."""

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 2048,
}
TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
SECTIONS: dict[str, Any] = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "mrope_section": [1, 1, 2],
}


def picture(number: int) -> Image.Image:
    """A picture of noise, another one for each number."""
    width, height = SIZES[number % len(SIZES)]
    noise = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@cache
def _backend(special: tuple[str, ...]) -> Any:
    return byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *special], 400)


def _tokenizer(mark: str, **named: str) -> PreTrainedTokenizerFast:
    special = tuple(named.values())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_backend(special),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE.replace("MARK", mark),
        extra_special_tokens=named,
    )
    return tokenizer


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("eos", "pad")}
    return {**TEXT, **ids, "bos_token_id": None, "vocab_size": len(tokenizer), **more}


def _llava() -> Made:
    tokenizer = _tokenizer("<image>", image_token="<image>")
    processor = transformers.LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    config = transformers.LlavaConfig(
        text_config=_text(tokenizer, model_type="qwen2"),
        vision_config={**TOWER, "model_type": "clip_vision_model"},
        image_token_index=tokenizer.image_token_id,
        image_seq_length=16,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def _llava_next() -> Made:
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    tokenizer = _tokenizer("<image>", image_token="<image>")
    wide_and_high = [[28, 56], [56, 28], [56, 56]]
    processor = transformers.LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 28},
            crop_size={"height": 28, "width": 28},
            image_grid_pinpoints=wide_and_high,
        ),
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    config = transformers.LlavaNextConfig(
        text_config=_text(tokenizer, model_type="mistral", sliding_window=None),
        vision_config={**TOWER, "model_type": "clip_vision_model"},
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=wide_and_high,
    )
    return transformers.LlavaNextForConditionalGeneration(config), processor


def _idefics3(kind: str = "Idefics3") -> Made:
    named: Any = transformers
    places = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = _tokenizer(
        "<image>",
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
        **{f"place_{number}_token": place for number, place in enumerate(places)},
    )
    processor = transformers.Idefics3Processor(
        Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}),
        tokenizer,
        image_seq_len=4,
        chat_template=tokenizer.chat_template,
    )
    config = getattr(named, f"{kind}Config")(
        text_config=_text(tokenizer, model_type="llama"),
        vision_config={**TOWER, "patch_size": 7},
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
    )
    return getattr(named, f"{kind}ForConditionalGeneration")(config), processor


def _internvl() -> Made:
    tokenizer = _tokenizer(
        "<IMG_CONTEXT>",
        context_image_token="<IMG_CONTEXT>",
        start_image_token="<img>",
        end_image_token="</img>",
        video_token="<video>",
    )
    tokenizer.image_token = "<IMG_CONTEXT>"
    processor = _without_videos(
        transformers.InternVLProcessor,
        GotOcr2ImageProcessorPil(
            size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=3
        ),
        tokenizer,
        image_seq_length=4,
    )
    config = transformers.InternVLConfig(
        text_config=_text(tokenizer, model_type="qwen2"),
        vision_config={**TOWER, "image_size": [28, 28], "patch_size": [7, 7]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return transformers.InternVLForConditionalGeneration(config), processor


class _NoVideos(PushToHubMixin):
    """In the place of a video processor, whose class needs torchvision, or one of sounds."""

    model_input_names: Sequence[str] = ()
    valid_kwargs = None
    _auto_class = None

    def to_dict(self) -> dict[str, Any]:
        """Nothing is saved of it."""
        return {}


def _without_videos(kind: Any, image_processor: Any, tokenizer: Any, **options: Any) -> Any:
    checks = kind.check_argument_for_proper_class

    def of_pictures(self: Any, name: str, argument: Any) -> Any:
        other = name in ("video_processor", "feature_extractor")
        return None if other else checks(self, name, argument)

    kind.check_argument_for_proper_class = of_pictures
    try:
        return kind(
            image_processor=image_processor,
            tokenizer=tokenizer,
            video_processor=_NoVideos(),
            chat_template=tokenizer.chat_template,
            **options,
        )
    finally:
        kind.check_argument_for_proper_class = checks


def _qwen(
    kind: str, text: dict[str, Any], tower: dict[str, Any], patch: int, processor_of: str = ""
) -> Made:
    named: Any = transformers
    tokenizer = _tokenizer(
        "<|vision_start|><|image_pad|><|vision_end|>",
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_bos_token="<|vision_start|>",
        vision_eos_token="<|vision_end|>",
    )
    processor = _without_videos(
        getattr(named, f"{processor_of or kind}Processor"),
        Qwen2VLImageProcessorPil(
            size={"shortest_edge": 4 * patch**2, "longest_edge": 24 * patch**2},
            patch_size=patch,
            temporal_patch_size=2,
            merge_size=2,
        ),
        tokenizer,
    )
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in (
            ("image", "<|image_pad|>"),
            ("video", "<|video_pad|>"),
            ("vision_start", "<|vision_start|>"),
            ("vision_end", "<|vision_end|>"),
        )
    }
    config = getattr(named, f"{kind}Config")(
        text_config=_text(tokenizer, **text),
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "patch_size": patch,
            "out_hidden_size": TEXT["hidden_size"],
            **tower,
        },
        **ids,
    )
    return getattr(named, f"{kind}ForConditionalGeneration")(config), processor


def _qwen2_vl() -> Made:
    tower = {"depth": 2, "embed_dim": 16, "hidden_size": TEXT["hidden_size"], "mlp_ratio": 2}
    return _qwen("Qwen2VL", {"rope_parameters": SECTIONS}, tower, 14)


def _qwen2_5_vl() -> Made:
    tower = {"depth": 2, "fullatt_block_indexes": [1], "window_size": 56}
    return _qwen("Qwen2_5_VL", {"rope_parameters": SECTIONS}, tower, 14)


EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def _qwen3_vl(experts: bool = False) -> Made:
    text = {"rope_parameters": {**SECTIONS, "mrope_interleaved": True}, "head_dim": 8}
    tower = {"depth": 3, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    if experts:
        return _qwen("Qwen3VLMoe", {**text, **EXPERTS}, tower, 16, "Qwen3VL")
    return _qwen("Qwen3VL", text, tower, 16)


def _qwen3_5(experts: bool = False) -> Made:
    sections = {**SECTIONS, "mrope_interleaved": True, "partial_rotary_factor": 0.25}
    text = {
        "rope_parameters": sections,
        "head_dim": 32,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    tower = {"depth": 2, "num_position_embeddings": 16}
    if experts:
        more = {**EXPERTS, "shared_expert_intermediate_size": 16}
        return _qwen("Qwen3_5Moe", {**text, **more}, tower, 16, "Qwen3VL")
    return _qwen("Qwen3_5", text, tower, 16, "Qwen3VL")


def _glm(kind: str, processor_of: str = "Glm46V", **text: Any) -> Made:
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

    named: Any = transformers
    tokenizer = _tokenizer(
        "<|begin_of_image|><|image|><|end_of_image|>",
        image_token="<|image|>",
        video_token="<|video|>",
        **{
            f"{end}_of_{what}_token": f"<|{end}_of_{what}|>"
            for end in ("begin", "end")
            for what in ("image", "video")
        },
    )
    processor = _without_videos(
        getattr(named, f"{processor_of}Processor"),
        Glm4vImageProcessorPil(size={"shortest_edge": 2 * 28 * 28, "longest_edge": 2 * 56 * 84}),
        tokenizer,
    )
    # half of a head is rotated, as in the published ones
    half = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    config = getattr(named, f"{kind}Config")(
        text_config=_text(
            tokenizer,
            rope_parameters={**SECTIONS, "partial_rotary_factor": 0.5},
            **half,
            **text,
        ),
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "patch_size": 14,
            "image_size": 56,
            "out_hidden_size": TEXT["hidden_size"],
        },
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        image_start_token_id=tokenizer.begin_of_image_token_id,
        image_end_token_id=tokenizer.end_of_image_token_id,
        video_start_token_id=tokenizer.begin_of_video_token_id,
        video_end_token_id=tokenizer.end_of_video_token_id,
    )
    return getattr(named, f"{kind}ForConditionalGeneration")(config), processor


SIGMOID: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
"""Experts that are chosen by sigmoid scores and a correction, within groups."""


def _paddleocr_vl() -> Made:
    tokenizer = _tokenizer(
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        image_token="<|IMAGE_PLACEHOLDER|>",
        start_token="<|IMAGE_START|>",
        end_token="<|IMAGE_END|>",
    )
    processor = transformers.PaddleOCRVLProcessor(
        PaddleOCRVLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 84),
        tokenizer,
        chat_template=tokenizer.chat_template,
    )
    config = transformers.PaddleOCRVLConfig(
        text_config=_text(tokenizer, head_dim=8, rope_parameters=SECTIONS),
        vision_config={**TOWER, "image_size": 56, "patch_size": 14},
        image_token_id=tokenizer.image_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|IMAGE_START|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|IMAGE_END|>"),
    )
    return transformers.PaddleOCRVLForConditionalGeneration(config), processor


def _gemma3() -> Made:
    tokenizer = _tokenizer(
        "<start_of_image>",
        image_token="<image_soft_token>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
    )
    processor = transformers.Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer,
        chat_template=tokenizer.chat_template,
        image_seq_length=4,
    )
    config = transformers.Gemma3Config(
        text_config=_text(
            tokenizer,
            head_dim=8,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=8,
        ),
        vision_config={**TOWER, "model_type": "siglip_vision_model", "vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
    )
    return transformers.Gemma3ForConditionalGeneration(config), processor


def _gemma4(**text: Any) -> Made:
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    tokenizer = _tokenizer(
        "<|image|>",
        image_token="<|image|>",
        boi_token="<|image>",
        eoi_token="<image|>",
        audio_token="<|audio|>",
        boa_token="<|audio>",
        eoa_token="<audio|>",
    )
    processor = _without_videos(
        transformers.Gemma4Processor,
        # the fewest tokens that it allows for a picture
        Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70),
        tokenizer,
        feature_extractor=_NoVideos(),
    )
    config = transformers.Gemma4Config(
        text_config=_text(
            tokenizer,
            head_dim=8,
            global_head_dim=16,
            sliding_window=16,  # narrower than a picture
            vocab_size_per_layer_input=len(tokenizer),
            final_logit_softcapping=5.0,
            **text,
        ),
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "position_embedding_size": 300,
        },
        image_token_id=tokenizer.image_token_id,
        video_token_id=processor.video_token_id,
        audio_token_id=tokenizer.audio_token_id,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        boa_token_id=tokenizer.boa_token_id,
        eoa_token_index=tokenizer.eoa_token_id,
    )
    return transformers.Gemma4ForConditionalGeneration(config), processor


def _gemma4_large() -> Made:
    """Pictures see both ways, within a window; experts; keys that are values."""
    return _gemma4(
        num_hidden_layers=3,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        use_bidirectional_attention="vision",
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        hidden_size_per_layer_input=0,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=16,
    )


def _gemma4_small() -> Made:
    """All look back alone; embeddings for each layer; late layers borrow keys and values."""
    return _gemma4(
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        use_double_wide_mlp=True,
    )


class KimiPatches(BaseImageProcessor):
    """What Kimi's image processor gives; its own needs torchvision. Never larger, then padded."""

    model_input_names = ("pixel_values", "image_grid_thw")
    merge_size, patch_size, max_patches = 2, 14, 24

    def preprocess(self, images: Any, **_: Any) -> BatchFeature:
        """Patches of all pictures, and how many each has below and beside each other."""
        flat = [one for row in images for one in (row if isinstance(row, list) else [row])]
        parts, grids = [], []
        for image in flat:
            side, (width, height) = self.patch_size, image.size
            shrink = min(1.0, (self.max_patches * side**2 / (width * height)) ** 0.5)
            size = [max(1, int(length * shrink)) for length in (height, width)]
            high, wide = (-(-length // (2 * side)) * 2 for length in size)
            page = np.zeros((high * side, wide * side, 3), dtype=np.float32)
            page[: size[0], : size[1]] = np.asarray(image.resize((size[1], size[0]))) / 255
            cut = page.reshape(high, side, wide, side, 3).transpose(0, 2, 4, 1, 3)
            parts.append(torch.from_numpy(cut.reshape(-1, 3, side, side).copy()) * 2 - 1)
            grids.append([1, high, wide])
        return BatchFeature({"pixel_values": torch.cat(parts), "image_grid_thw": np.array(grids)})


LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
"""Attention whose keys and values are made of one narrow vector a token."""


def _kimi_k25(**more: Any) -> Made:
    tokenizer = _tokenizer(
        "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>",
        image_token="<|media_pad|>",
        video_token="<|kimi_k25_video_placeholder|>",
        media_begin_token="<|media_begin|>",
        media_content_token="<|media_content|>",
        media_end_token="<|media_end|>",
    )
    processor = _without_videos(transformers.Kimi_K25Processor, KimiPatches(), tokenizer)
    config = transformers.Kimi_K25Config(
        text_config=_text(tokenizer, model_type="deepseek_v3", **{**SIGMOID, **LATENT, **more}),
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "pos_emb_height": 4,
            "pos_emb_width": 4,
        },
        projection_hidden_size=16,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.media_begin_token_id,
        vision_end_token_id=tokenizer.media_end_token_id,
        tie_word_embeddings=False,
    )
    return transformers.Kimi_K25ForConditionalGeneration(config), processor


def _mllama() -> Made:
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    tokenizer = _tokenizer("<|image|>", begin_token="<|begin|>", python_token="<|python_tag|>")
    tokenizer.bos_token = "<|begin|>"
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    heads = len(tokenizer)
    # as published: behind all tokens that the head knows
    tokenizer.add_tokens(AddedToken("<|image|>", special=True), special_tokens=True)
    processor = transformers.MllamaProcessor(
        MllamaImageProcessorPil(size={"height": 28, "width": 28}, max_image_tiles=4),
        tokenizer,
        chat_template=tokenizer.chat_template,
    )
    text = _text(tokenizer, num_hidden_layers=3, cross_attention_layers=[0, 2])
    config = transformers.MllamaConfig(
        text_config={**text, "bos_token_id": tokenizer.bos_token_id, "vocab_size": heads},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
            "vision_output_dim": 32,
            "intermediate_layers_indices": [1],
        },
        image_token_index=heads,
    )
    return transformers.MllamaForConditionalGeneration(config), processor


KINDS: dict[str, Callable[[], Made]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "idefics3": _idefics3,
    "smolvlm": lambda: _idefics3("SmolVLM"),
    "internvl": _internvl,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": lambda: _qwen3_vl(experts=True),
    "qwen3_5": _qwen3_5,
    "qwen3_5_moe": lambda: _qwen3_5(experts=True),
    "glm4v": lambda: _glm("Glm4v", "Glm4v"),
    "glm4v_moe": lambda: _glm("Glm4vMoe", "Glm4v", **SIGMOID),
    "glm46v": lambda: _glm("Glm46V"),
    "glm_ocr": lambda: _glm("GlmOcr"),
    "paddleocr_vl": _paddleocr_vl,
    "kimi_k25": _kimi_k25,
    "gemma3": _gemma3,
    "gemma4": _gemma4_large,
    "gemma4_small": _gemma4_small,
    "mllama": _mllama,
}
"""Kinds of configurations, or another model of one with an ending."""

EXPERT_KINDS = ("qwen3_vl_moe", "qwen3_5_moe", "glm4v_moe", "kimi_k25", "gemma4")
"""Those with experts."""


def seer(kind: str, dtype: torch.dtype = torch.float32) -> Made:
    """A fresh model that sees, in evaluation mode, and its processor."""
    torch.manual_seed(3)
    model, processor = KINDS[kind]()
    model.set_experts_implementation("eager")  # the grouped kernel has no fp64
    # models this narrow say next to nothing with the usual small weights
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.15)
            elif "bias" in name:
                weight.normal_(0, 0.05)
            elif "gate" in name:  # shut in a fresh model: nothing that it sees would matter
                weight.fill_(0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.05)
    return model.to(dtype).eval(), processor


def tower_of(model: Any) -> nn.Module:
    """The part of a model that sees."""
    names = ("visual", "vision_tower", "vision_model")
    found: nn.Module = next(
        getattr(model.model, name) for name in names if hasattr(model.model, name)
    )
    return found


@contextmanager
def looks_counted(model: Any) -> Iterator[list[tuple[int, ...]]]:
    """While open, the shape of the pixels is put into the list at each call of the tower."""
    seen: list[tuple[int, ...]] = []

    def count(module: nn.Module, args: Any, named: dict[str, Any]) -> None:
        seen.append(tuple(args[0].shape if args else named["pixel_values"].shape))

    handle = tower_of(model).register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


ROWS: tuple[tuple[tuple[int, ...], str, str, str], ...] = (
    ((0,), "What is this?", "A small cat.", "It is a dog, I think."),
    ((), "And now?", "Blue.", "A very long red line"),
    ((1, 3), "Read it.", "nothing here", "zzz"),
    ((2,), "Well?", "a", "bb"),
    ((0,), "Again", "yes, it is", "no"),
    ((), "b", "c", "d e f"),
)
"""Numbers of pictures, question, better and worse answer."""


@cache
def encoded(number: int) -> bytes:
    """A picture as bytes of PNG."""
    out = io.BytesIO()
    picture(number).save(out, format="PNG")
    return out.getvalue()


def preference(
    pictures: Sequence[int], question: str, chosen: str, rejected: str, row: int = 0
) -> PreferenceRow:
    """A row as ``formats`` reads it."""
    shown = [Picture.of(encoded(n), row, f"images[{place}]") for place, n in enumerate(pictures)]
    parts = [*({"type": "image"} for _ in shown), {"type": "text", "text": question}]
    return PreferenceRow(
        prompt=[{"role": "user", "content": parts if shown else question}],
        chosen=[{"role": "assistant", "content": chosen}],
        rejected=[{"role": "assistant", "content": rejected}],
        row=row,
        pictures=tuple(shown),
    )


def seen_pairs(made: Made, rows: Sequence[Any] = ROWS) -> list[TokenPair]:
    """Rows as pairs, their pictures decoded."""
    encoder = vision_encoder(made)
    drafts = [encoder.draft(preference(*row, row=number)) for number, row in enumerate(rows)]
    return [
        encoder.look(
            TokenPair(
                tokens.prompt,
                tokens.chosen,
                tokens.rejected,
                row=draft.row.row,
                pictures=draft.row.pictures,
            )
        )
        for draft, tokens in zip(drafts, encoder.tokens(drafts), strict=True)
    ]


def vision_encoder(made: Made) -> VisionEncoder:
    """What reads the rows of a model that sees."""
    model, processor = made
    sight = sight_of(model.config)
    assert sight is not None
    return VisionEncoder(processor, model.config, sight)
