"""Models that see, of a size at which memory can be measured, and pairs about pictures for them.

Random weights, processors of the families' own classes, pictures of noise in several shapes beside
rows of hh-rlhf. Not a benchmark itself: ``planner.py`` measures with it.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import step

SIZES = ((448, 336), (336, 448), (420, 420), (560, 280))
"""Width and height of pictures in pixels, in turn."""

TEXT = {name: size for name, size in step.SMALL.items() if name != "model_type"}
TOWER = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "patch_size": 14,
    "image_size": 224,
}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}MARK{% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer_with(folder: Path, mark: str, **named: str) -> Any:
    """The benchmarks' tokenizer with special tokens, and a template that writes a mark.

    Args:
        folder: of the tokenizer.
        mark: what the template writes for a picture.
        named: special tokens by the names under which a processor looks for them.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    plain = AutoTokenizer.from_pretrained(folder)
    return PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        pad_token=plain.pad_token,
        eos_token=plain.eos_token,
        chat_template=TEMPLATE.replace("MARK", mark),
        extra_special_tokens=named,
    )


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("eos", "pad")}
    return {**TEXT, **ids, "bos_token_id": None, "vocab_size": len(tokenizer), **more}


def paddleocr_vl(folder: Path) -> tuple[Any, Any]:
    """A configuration of PaddleOCR-VL's kind and its processor: patches by a picture's size."""
    import transformers
    from transformers.models.paddleocr_vl.image_processing_pil_paddleocr_vl import (
        PaddleOCRVLImageProcessorPil,
    )

    tokenizer = tokenizer_with(
        folder,
        "<start><image><end>",
        image_token="<image>",
        start_token="<start>",
        end_token="<end>",
    )
    processor = transformers.PaddleOCRVLProcessor(
        PaddleOCRVLImageProcessorPil(min_pixels=56 * 56, max_pixels=448 * 448),
        tokenizer,
        chat_template=tokenizer.chat_template,
    )
    sections = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]}
    config = transformers.PaddleOCRVLConfig(
        text_config=_text(tokenizer, rope_parameters=sections),
        vision_config=TOWER,
        image_token_id=tokenizer.image_token_id,
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<start>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<end>"),
    )
    return config, processor


def gemma3(folder: Path) -> tuple[Any, Any]:
    """The same of Gemma 3's kind: as many patches of any picture."""
    import transformers
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokenizer = tokenizer_with(
        folder, "<start>", image_token="<image>", boi_token="<start>", eoi_token="<end>"
    )
    processor = transformers.Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 224, "width": 224}),
        tokenizer,
        chat_template=tokenizer.chat_template,
        image_seq_length=64,
    )
    kinds = ["sliding_attention", "full_attention"] * (TEXT["num_hidden_layers"] // 2)
    config = transformers.Gemma3Config(
        text_config=_text(tokenizer, sliding_window=128, layer_types=kinds),
        vision_config={**TOWER, "model_type": "siglip_vision_model", "vision_use_head": False},
        mm_tokens_per_image=64,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end>"),
    )
    return config, processor


def idefics3(folder: Path) -> tuple[Any, Any]:
    """The same of Idefics 3's kind: a picture in tiles."""
    import transformers
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    places = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = tokenizer_with(
        folder,
        "<image>",
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
        **{f"place_{number}_token": place for number, place in enumerate(places)},
    )
    processor = transformers.Idefics3Processor(
        Idefics3ImageProcessorPil(size={"longest_edge": 448}, max_image_size={"longest_edge": 224}),
        tokenizer,
        image_seq_len=64,
        chat_template=tokenizer.chat_template,
    )
    config = transformers.Idefics3Config(
        text_config=_text(tokenizer, model_type="llama"),
        vision_config=TOWER,
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
    )
    return config, processor


KINDS = {"paddleocr_vl": paddleocr_vl, "gemma3": gemma3, "idefics3": idefics3}


def rows_about_pictures(count: int) -> list[dict[str, Any]]:
    """The first usable rows of hh-rlhf, each about a picture of its own."""
    import numpy as np
    from PIL import Image

    rows = []
    for number, row in enumerate(step.rows_of("hh", count)):
        width, height = SIZES[number % len(SIZES)]
        noise = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(noise).save(out, format="PNG")
        rows.append(
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "chosen": [{"role": "assistant", "content": row["chosen"]}],
                "rejected": [{"role": "assistant", "content": row["rejected"]}],
                "images": [{"bytes": out.getvalue(), "path": None}],
            }
        )
    return rows


def trainer_about_pictures(work: dict[str, Any], folder: Path) -> Any:
    """A trainer of our own for a work, as ``step.trainer_of`` makes one of text.

    Args:
        work: ``kind`` of ``KINDS``, ``pairs`` and ``bf16``; ``freeze``: parts that do not train;
            ``lora``: the rank of an adapter, over the whole model with ``tower``; ``options``.
        folder: has the tokenizer in ``tokenizer``.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText

    from counterpoint import CPOConfig, CPOTrainer
    from counterpoint.models.trainable import freeze_parts, left_by_adapters

    torch.manual_seed(0)
    config, processor = KINDS[work["kind"]](folder / "tokenizer")
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    freeze_parts(model, work.get("freeze", ()))
    adapter = None
    if "lora" in work:
        from peft import LoraConfig

        left = None if work.get("tower") else left_by_adapters(config)
        adapter = LoraConfig(
            task_type="CAUSAL_LM", r=work["lora"], target_modules="all-linear", exclude_modules=left
        )
    options = {"max_length": 2048, "monitor_steps": 0, **work.get("options", {})}
    count = work["pairs"] * options.get("gradient_accumulation_steps", 1)
    return CPOTrainer(
        model=model,
        args=CPOConfig(**step.options_of({**work, "options": options}, folder)),
        processing_class=processor,
        train_dataset=Dataset.from_list(rows_about_pictures(count)),
        peft_config=adapter,
    )


def main() -> None:
    """Say how many weights each kind has, and how many of them see."""
    import torch
    from transformers import AutoModelForImageTextToText

    from counterpoint.forward.seeing import PARTS_THAT_SEE, weights_that_see

    with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
        step.tokenizer_for(32000).save_pretrained(folder)
        for kind, make in KINDS.items():
            model = AutoModelForImageTextToText.from_config(make(Path(folder))[0])
            sees = [weight for part in PARTS_THAT_SEE for weight in weights_that_see(model, part)]
            counts = [sum(w.numel() for w in some) for some in (model.parameters(), sees)]
            print(f"{kind:14}{counts[0]:>12,} weights, {counts[1]:>12,} of them see")


if __name__ == "__main__":
    main()
