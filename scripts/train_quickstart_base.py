"""Make the quickstart's base model and tokenizer: what lies in src/counterpoint/quickstart/base.

Supervised training on imperfect references (``counterpoint.quickstart.task``), in a plain loop:
NLL of the German tokens, AdamW, one cosine. On one thread, with the same versions of torch and
transformers on the same processor, the weights come out bit for bit; elsewhere the losses agree
to rounding.

    python scripts/train_quickstart_base.py --output folder   # some five minutes on a core
    python scripts/train_quickstart_base.py --check           # is this what made what is shipped?

Not here: preferences; this model has never seen one.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, processors
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from counterpoint.quickstart import task
from counterpoint.quickstart.translate import BASE, load_base, translate

STEPS, BATCH, WARMUP = 1200, 128, 100
LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP = 2e-3, 0.01, (0.9, 0.99), 1.0
SEED = 0
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
PAD, UNK, BOS, EOS = range(4)

FIRST_LOSSES = (4.442037, 4.402101, 4.340470)
"""NLL a token, in nats, of the first steps; recorded from the run that made the shipped model."""


def pieces() -> list[str]:
    """Words and morphemes; an English word takes the space or hyphen after it along.

    So no piece can reach over the boundary: a prompt ends with "= ", and no German piece starts
    within that.
    """
    english = [*task.ENGLISH_SMALL, *task.ENGLISH_TENS, "hundred", "thousand", "="]
    hyphened = [f"{word}-" for word in task.ENGLISH_TENS]
    german = [*task.GERMAN_SMALL, *task.GERMAN_TENS, "ein", "hundert", "tausend", "und", "and", " "]
    return [f"{word} " for word in english] + hyphened + german


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The fewest pieces that spell the text, BOS before them."""
    vocabulary = [(token, 0.0) for token in SPECIAL] + [(piece, -1.0) for piece in pieces()]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=UNK, byte_fallback=False))
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def build_model(vocabulary: int, layers: int = 3) -> LlamaForCausalLM:
    """Layers of width 128, random weights from ``SEED``."""
    torch.manual_seed(SEED)
    # of the Llama kind because AutoTokenizer trusts its folder's own tokenizer.json, which it
    # does not for every kind (Qwen2's would be read as Qwen2's own BPE)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, max_new_tokens=32
    )
    return model


def batches(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless ``(input_ids, is_target)`` of ``BATCH`` references each, padded on the right."""
    references = task.references(SEED)
    while True:
        rows = list(islice(references, BATCH))
        prompts = [tokenizer(task.prompt(row.number)).input_ids for row in rows]
        texts = [tokenizer(row.text, add_special_tokens=False).input_ids for row in rows]
        width = max(len(p) + len(t) + 1 for p, t in zip(prompts, texts, strict=True))
        ids = torch.full((BATCH, width), PAD)
        target = torch.zeros(BATCH, width, dtype=torch.bool)
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            end = len(prompt) + len(text) + 1
            ids[row, :end] = torch.tensor([*prompt, *text, EOS])
            target[row, len(prompt) : end] = True
        yield ids, target


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> Iterator[float]:
    """Train step by step; yields the NLL a token, in nats, before each step's update."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=BETAS, weight_decay=WEIGHT_DECAY)
    model.train()
    for step, (ids, target) in enumerate(islice(batches(tokenizer), STEPS)):
        rate = min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / STEPS)) / 2
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        # targets lie right of a prompt and left of the padding: causality needs no mask
        logits = model(input_ids=ids[:, :-1]).logits[target[:, 1:]]
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:][target[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        yield loss.item()


def report(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> tuple[float, float]:
    """Shares of held-out numbers translated rightly, and rightly but for known flaws."""
    numbers = task.held_out_numbers(400, SEED)
    texts = translate(model, tokenizer, numbers)
    found = [task.flaws_in(number, text) for number, text in zip(numbers, texts, strict=True)]
    exact = sum(flaws == task.PERFECT for flaws in found) / len(found)
    known = sum(flaws is not None for flaws in found) / len(found)
    print(f"held-out numbers: {exact:.1%} right, {known:.1%} right but for known flaws")
    return exact, known


def check() -> bool:
    """Whether the shipped files are what this script makes, as far as that is quickly seen."""
    tokenizer = build_tokenizer()
    model, shipped = load_base()
    same_tokenizer = shipped.get_vocab() == tokenizer.get_vocab()
    losses = list(islice(train(build_model(len(tokenizer)), tokenizer), len(FIRST_LOSSES)))
    furthest = max(abs(a - b) for a, b in zip(losses, FIRST_LOSSES, strict=True))
    exact, known = report(model, shipped)
    print(f"same vocabulary: {same_tokenizer}; first losses differ by at most {furthest:.1e} nats")
    return same_tokenizer and furthest < 1e-3 and exact < 0.05 and known > 0.98


def main() -> int:
    """Train and save, or check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=BASE, help="folder to write")
    parser.add_argument("--layers", type=int, default=3, help="of the model; 3 is what is shipped")
    parser.add_argument("--check", action="store_true", help="compare with what is shipped")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.check:
        return 0 if check() else 1
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer), arguments.layers)
    for step, loss in enumerate(train(model, tokenizer)):
        if step < len(FIRST_LOSSES) or step % 100 == 99:
            print(f"step {step + 1:5d}  loss {loss:.6f}", flush=True)
    report(model, tokenizer)
    model.save_pretrained(arguments.output)
    build_tokenizer().save_pretrained(arguments.output)  # one that remembers no padding
    return 0


if __name__ == "__main__":
    sys.exit(main())
