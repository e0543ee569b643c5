"""Make the quickstart's model that sees: a small LLaVA, with its processor.

It lies in ``base_vision`` of src/counterpoint/quickstart. Supervised training on imperfect
transcriptions (``counterpoint.quickstart.tags``), in the loop that made the other base models. On
one thread, with the same versions of torch, transformers and Pillow on the same processor, the
weights come out bit for bit; elsewhere the losses agree to rounding.

    python scripts/train_vision_base.py --output folder   # some ten minutes on a core
    python scripts/train_vision_base.py --check           # is this what made what is shipped?

Not here: preferences; this model has never seen one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, processors
from torch import Tensor
from train_quickstart_base import IGNORED, train
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from counterpoint.quickstart import tags
from counterpoint.quickstart.read import BASE_THAT_SEES, asked, load_reader, read_tags

STEPS, BATCH, SEED = 2000, 64, 0
PATCH = 8
WIDTH, LAYERS = 96, 3
TOWER_WIDTH, TOWER_LAYERS = 64, 2
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")
PAD, UNK, BOS, EOS, IMAGE = range(5)
TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '</s>' if m['role'] == 'assistant' else '\\n' }}{% endfor %}"
)
"""A question, a line's end, and the answer."""

FIRST_LOSSES = (3.139749, 3.124595, 3.088029)
"""NLL a token, in nats, of the first steps; recorded from the run that made the shipped model."""


def build_processor() -> LlavaProcessor:
    """Symbols and the few words of the question; pictures as they are drawn."""
    pieces = [*tags.CLEAR, *tags.ALIKE, " ", "\n", "Read", " it", "."]
    vocabulary = [(token, 0.0) for token in SPECIAL] + [(piece, -1.0) for piece in pieces]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=UNK, byte_fallback=False))
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
    )
    pictures = CLIPImageProcessorPil(
        size={"height": tags.SIDE, "width": tags.SIDE},
        crop_size={"height": tags.SIDE, "width": tags.SIDE},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def build_reader(vocabulary: int) -> LlavaForConditionalGeneration:
    """A tower and a language model, random weights from ``SEED``."""
    torch.manual_seed(SEED)
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    config = LlavaConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 64,
            **ids,
        },
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": TOWER_WIDTH,
            "intermediate_size": 128,
            "num_hidden_layers": TOWER_LAYERS,
            "num_attention_heads": 4,
            "image_size": tags.SIDE,
            "patch_size": PATCH,
        },
        image_token_index=IMAGE,
        image_seq_length=(tags.SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**ids, max_new_tokens=16)
    return model


def batches(processor: LlavaProcessor) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Endless inputs and next tokens, ``BATCH`` transcriptions each.

    Only the tokens of the text are to be said: ``IGNORED`` stands for the others.
    """
    stream, question = tags.transcriptions(SEED), asked(processor)
    while True:
        rows = list(islice(stream, BATCH))
        seen: Any = processor(
            text=[question] * BATCH,
            images=[[tags.drawn(row.tag)] for row in rows],
            return_tensors="pt",
        )
        texts = processor.tokenizer([row.text for row in rows], add_special_tokens=False).input_ids
        said = torch.full((BATCH, max(map(len, texts)) + 1), IGNORED)
        for row, text in enumerate(texts):
            said[row, : len(text) + 1] = torch.tensor([*text, EOS])
        # targets lie right of a prompt and left of the padding: causality needs no mask
        ids = torch.cat([seen["input_ids"], said[:, :-1].masked_fill(said[:, :-1] < 0, PAD)], 1)
        before = torch.full((BATCH, seen["input_ids"].shape[1] - 1), IGNORED)
        yield (
            {"input_ids": ids, "pixel_values": seen["pixel_values"]},
            torch.cat([before, said], 1),
        )


def made() -> tuple[LlavaForConditionalGeneration, LlavaProcessor, Any]:
    """The model with random weights, its processor, and its endless data."""
    processor = build_processor()
    return build_reader(len(processor.tokenizer)), processor, batches(processor)


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Save model and processor, the tower's weights under the names of LLaVA's own files.

    Every release of transformers reads those; the newer ones write shorter names.
    """
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)  # one that remembers no padding
    file = folder / "model.safetensors"
    weights = load_file(file)
    tower, inner = "vision_tower.", "vision_tower.vision_model."
    for name in [name for name in weights if name.startswith(tower)]:
        weights[inner + name.removeprefix(inner).removeprefix(tower)] = weights.pop(name)
    save_file(weights, file, metadata={"format": "pt"})


def report(model: Any, processor: Any) -> tuple[float, float]:
    """Shares of held-out tags read rightly, and rightly but for mix-ups."""
    held_out = tags.held_out_tags(400, SEED)
    texts = read_tags(model, processor, held_out)
    found = [tags.mix_ups_in(tag.code, text) for tag, text in zip(held_out, texts, strict=True)]
    exact, known = mean(one == tags.RIGHT for one in found), mean(one is not None for one in found)
    print(f"held-out tags: {exact:.1%} right, {known:.1%} right but for mix-ups", flush=True)
    return exact, known


def check() -> bool:
    """Whether the shipped files are what this script makes, as far as that is quickly seen."""
    model, processor, data = made()
    shipped_model, shipped = load_reader()
    same_words = shipped.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    losses = islice(train(model, data, STEPS), len(FIRST_LOSSES))
    furthest = max(abs(a - b) for a, b in zip(losses, FIRST_LOSSES, strict=True))
    exact, known = report(shipped_model, shipped)
    print(f"same vocabulary: {same_words}; first losses differ by at most {furthest:.1e} nats")
    return same_words and furthest < 1e-3 and exact < 0.02 and known > 0.85


def main() -> int:
    """Train and save, or check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="folder to write, instead of the package's")
    parser.add_argument("--check", action="store_true", help="compare with what is shipped")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.check:
        return 0 if check() else 1
    model, processor, data = made()
    print(f"{model.num_parameters():,} weights", flush=True)
    for step, loss in enumerate(train(model, data, STEPS)):
        if step < len(FIRST_LOSSES) or step % 100 == 99:
            print(f"step {step + 1:5d}  loss {loss:.6f}", flush=True)
    report(model, processor)
    folder = arguments.output or BASE_THAT_SEES
    save(model, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
