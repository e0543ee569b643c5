"""The shipped model that sees, and greedy reading with it or with what was made of it.

Not here: tags and their pictures (``tags``), training (``run``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from counterpoint.console.phases import phase
from counterpoint.language import phrase
from counterpoint.quickstart.tags import QUESTION, Tag, drawn
from counterpoint.quickstart.translate import BASE

BASE_THAT_SEES = BASE.with_name("base_vision")
"""Folder of the shipped model and processor; made by scripts/train_vision_base.py."""
MOST_SYMBOLS = 12
"""Longest text that is read to its end; a code takes at most 7 tokens."""
AT_ONCE = 100
"""Tags read at once."""


def load_reader() -> tuple[PreTrainedModel, Any]:
    """The shipped model that sees in fp32, and its processor; reads local files only."""
    model = AutoModelForImageTextToText.from_pretrained(
        BASE_THAT_SEES, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    return model, AutoProcessor.from_pretrained(BASE_THAT_SEES, local_files_only=True)


def asked(processor: Any) -> str:
    """The prompt as text: the question about one picture, as the chat template writes it.

    Args:
        processor: of a model that sees.
    """
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return text


def read_tags(model: PreTrainedModel, processor: Any, tags: Sequence[Tag]) -> list[str]:
    """Greedy transcriptions, one for each tag.

    Args:
        model: left in evaluation mode.
        processor: of the model.
        tags: are drawn for it.

    Returns:
        The texts; one that found no end is cut after ``MOST_SYMBOLS`` tokens.
    """
    model.eval()
    question = asked(processor)
    texts: list[str] = []
    with phase(phrase("reading tags"), len(tags)) as now:
        for start in range(0, len(tags), AT_ONCE):
            some = tags[start : start + AT_ONCE]
            inputs = processor(
                text=[question] * len(some),
                images=[[drawn(tag)] for tag in some],
                return_tensors="pt",
            ).to(model.device)
            with torch.inference_mode():
                outputs: Any = model.generate(
                    **inputs, max_new_tokens=MOST_SYMBOLS, do_sample=False, use_cache=True
                )
            said = outputs[:, inputs["input_ids"].shape[1] :]
            texts += processor.tokenizer.batch_decode(said, skip_special_tokens=True)
            now.advance(len(some))
    return texts
