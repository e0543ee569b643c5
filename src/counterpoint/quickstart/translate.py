"""The shipped base models, and greedy translation with one or with what was made of it.

Not here: the task (``task``), training (``run``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from counterpoint.console.phases import phase
from counterpoint.language import phrase
from counterpoint.quickstart.task import english, prompt

BASE = Path(__file__).with_name("base")
"""Folder of the shipped model and tokenizer; made by scripts/train_quickstart_base.py."""
BASES = {False: BASE, True: BASE.with_name("base_encoder_decoder")}
"""Whether a model has an encoder -> its folder; the decoder's is ``BASE``."""
MOST_TOKENS = 32
"""Longest translation that is read to its end; the longest reference takes 19 tokens."""
BATCH = 200
"""Numbers translated at once."""


def load_base(
    encoder_decoder: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A shipped model in fp32, and its tokenizer; reads local files only.

    Args:
        encoder_decoder: whether the one like mBART, instead of the decoder.
    """
    auto_class: Any = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    folder = BASES[encoder_decoder]
    model = auto_class.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def translate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, numbers: list[int]
) -> list[str]:
    """Greedy translations, one for each number.

    Args:
        model: left in evaluation mode.
        tokenizer: of the model; a decoder's pads on the left.
        numbers: each in [0, 1,000,000).

    Returns:
        The German texts; one that found no end is cut after ``MOST_TOKENS`` tokens.
    """
    model.eval()
    encodes = bool(model.config.is_encoder_decoder)
    spell = english if encodes else prompt
    texts: list[str] = []
    with phase(phrase("translating numbers"), len(numbers)) as now:
        for start in range(0, len(numbers), BATCH):
            inputs = tokenizer(
                [spell(number) for number in numbers[start : start + BATCH]],
                padding=True,
                return_tensors="pt",
                return_token_type_ids=False,
            ).to(model.device)
            with torch.inference_mode():
                outputs = model.generate(
                    **inputs, max_new_tokens=MOST_TOKENS, do_sample=False, use_cache=True
                )
            # what an encoder-decoder begins with is special, and falls away below
            written = outputs if encodes else outputs[:, inputs.input_ids.shape[1] :]
            texts += tokenizer.batch_decode(written, skip_special_tokens=True)
            now.advance(len(written))
    return texts
