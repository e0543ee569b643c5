"""Small models that see, with processors of their own kind, made in milliseconds; fixed seeds."""

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
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import (
    PaddleOCRVLImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from counterpoint.data.vision import VisionEncoder
from counterpoint.forward.seeing import sight_of
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


class _NoVideos:
    """In the place of a video processor, whose class needs torchvision."""

    model_input_names: Sequence[str] = ()
    valid_kwargs = None


def _without_videos(kind: Any, image_processor: Any, tokenizer: Any, **options: Any) -> Any:
    checks = kind.check_argument_for_proper_class

    def of_pictures(self: Any, name: str, argument: Any) -> Any:
        return None if name == "video_processor" else checks(self, name, argument)

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


def _qwen(kind: str, text: dict[str, Any], tower: dict[str, Any], patch: int) -> Made:
    named: Any = transformers
    tokenizer = _tokenizer(
        "<|vision_start|><|image_pad|><|vision_end|>",
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_bos_token="<|vision_start|>",
        vision_eos_token="<|vision_end|>",
    )
    processor = _without_videos(
        getattr(named, f"{kind}Processor"),
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


def _qwen2_5_vl() -> Made:
    tower = {"depth": 2, "fullatt_block_indexes": [1], "window_size": 56}
    return _qwen("Qwen2_5_VL", {"rope_parameters": SECTIONS}, tower, 14)


def _qwen3_vl() -> Made:
    text = {"rope_parameters": {**SECTIONS, "mrope_interleaved": True}, "head_dim": 8}
    tower = {"depth": 3, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    return _qwen("Qwen3VL", text, tower, 16)


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


KINDS: dict[str, Callable[[], Made]] = {
    "llava": _llava,
    "idefics3": _idefics3,
    "smolvlm": lambda: _idefics3("SmolVLM"),
    "internvl": _internvl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "paddleocr_vl": _paddleocr_vl,
    "gemma3": _gemma3,
}


def seer(kind: str, dtype: torch.dtype = torch.float32) -> Made:
    """A fresh model that sees, in evaluation mode, and its processor."""
    torch.manual_seed(3)
    model, processor = KINDS[kind]()
    # models this narrow say next to nothing with the usual small weights
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.15)
            elif "bias" in name:
                weight.normal_(0, 0.05)
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
