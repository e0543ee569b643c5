"""Make the quickstart's base models and tokenizers: a decoder, and an encoder-decoder like mBART.

They lie in ``base`` and ``base_encoder_decoder`` of src/counterpoint/quickstart. Supervised
training on imperfect references (``counterpoint.quickstart.task``), in a plain loop: NLL of the
German tokens, AdamW, one cosine. On one thread, with the same versions of torch and transformers
on the same processor, the weights come out bit for bit; elsewhere the losses agree to rounding.

    python scripts/train_quickstart_base.py --output folder   # some five minutes on a core
    python scripts/train_quickstart_base.py --check           # is this what made what is shipped?
    python scripts/train_quickstart_base.py --encoder_decoder ...   # the same of the other model

Not here: preferences; this model has never seen one.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, processors
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizerFast,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from counterpoint.quickstart import task
from counterpoint.quickstart.translate import BASES, load_base, translate

STEPS, BATCH, WARMUP = 1200, 128, 100
LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP = 2e-3, 0.01, (0.9, 0.99), 1.0
SEED = 0
LAYERS = 3
IGNORED = -100
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
PAD, UNK, BOS, EOS = range(4)
BEGINS = "\N{LOWER ONE EIGHTH BLOCK}"
"""With this a piece says that a word begins with it."""

FIRST_LOSSES = {False: (4.442037, 4.402101, 4.340470), True: (4.996800, 4.992666, 4.994159)}
"""NLL a token, in nats, of the first steps, of the decoder and of the encoder-decoder; recorded
from the runs that made the shipped models."""


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


def build_translation_tokenizer() -> MBartTokenizerFast:
    """The tokenizer of mBART with a vocabulary of words: the language stands last.

    German words stand alone and within a word; an English one within a word follows a hyphen.
    """
    english = [*task.ENGLISH_SMALL, *task.ENGLISH_TENS, "hundred", "thousand"]
    german = [*task.GERMAN_SMALL, *task.GERMAN_TENS, "ein", "hundert", "tausend", "und", "and"]
    alone = [f"{BEGINS}{word}" for word in (*english, *german)]
    found = dict.fromkeys([*alone, "-", *task.ENGLISH_SMALL[1:10], *german, BEGINS])
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    return MBartTokenizerFast(
        vocab=special + [(piece, -1.0) for piece in found],
        src_lang="en_XX",
        tgt_lang="de_DE",
        model_max_length=32,
    )


def build_encoder_decoder(tokenizer: MBartTokenizerFast) -> MBartForConditionalGeneration:
    """Two layers each of width 96, random weights from ``SEED``."""
    torch.manual_seed(SEED)
    begins = tokenizer.convert_tokens_to_ids(tokenizer.tgt_lang)
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": begins,
    }
    config = MBartConfig(
        vocab_size=len(tokenizer),
        d_model=96,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        max_position_embeddings=32,
        dropout=0.0,
        scale_embedding=True,
        forced_eos_token_id=None,
        **ids,
    )
    model = MBartForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**ids, max_new_tokens=31)
    return model


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


def batches(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Endless inputs and next tokens of a decoder, ``BATCH`` references each.

    Only German tokens are to be said: ``IGNORED`` stands for the others, and for padding.
    """
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
        # targets lie right of a prompt and left of the padding: causality needs no mask
        yield {"input_ids": ids[:, :-1]}, ids[:, 1:].masked_fill(~target[:, 1:], IGNORED)


def translations(tokenizer: MBartTokenizerFast) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Endless inputs and next tokens of an encoder-decoder, as ``batches``.

    The decoder begins with the language, which it is given and does not have to say.
    """
    references = task.references(SEED)
    while True:
        rows = list(islice(references, BATCH))
        inputs = tokenizer([task.english(row.number) for row in rows], padding=True)
        texts = tokenizer(text_target=[row.text for row in rows]).input_ids
        said = torch.full((BATCH, max(map(len, texts)) - 1), IGNORED)
        given = torch.full_like(said, tokenizer.pad_token_id)
        for row, (*text, language) in enumerate(texts):  # of the tokens, </s> and the language
            said[row, : len(text)] = torch.tensor(text)
            given[row, : len(text)] = torch.tensor([language, *text[:-1]])
        tensors = {name: torch.tensor(inputs[name]) for name in ("input_ids", "attention_mask")}
        yield {**tensors, "decoder_input_ids": given}, said


def train(
    model: PreTrainedModel, data: Iterator[tuple[dict[str, Tensor], Tensor]], steps: int = STEPS
) -> Iterator[float]:
    """Train step by step; yields the NLL a token, in nats, before each step's update."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=BETAS, weight_decay=WEIGHT_DECAY)
    model.train()
    for step, (inputs, said) in enumerate(islice(data, steps)):
        rate = min(1.0, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        is_said = said != IGNORED
        logits = model(**inputs, use_cache=False).logits[is_said]
        loss = torch.nn.functional.cross_entropy(logits, said[is_said])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        yield loss.item()


def made(
    encoder_decoder: bool, layers: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Any]:
    """A model with random weights, its tokenizer, and its endless data."""
    if encoder_decoder:
        translator = build_translation_tokenizer()
        return build_encoder_decoder(translator), translator, translations(translator)
    tokenizer = build_tokenizer()
    return build_model(len(tokenizer), layers), tokenizer, batches(tokenizer)


def report(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[float, float]:
    """Shares of held-out numbers translated rightly, and rightly but for known flaws."""
    numbers = task.held_out_numbers(400, SEED)
    texts = translate(model, tokenizer, numbers)
    found = [task.flaws_in(number, text) for number, text in zip(numbers, texts, strict=True)]
    exact = sum(flaws == task.PERFECT for flaws in found) / len(found)
    known = sum(flaws is not None for flaws in found) / len(found)
    print(f"held-out numbers: {exact:.1%} right, {known:.1%} right but for known flaws")
    return exact, known


def check(encoder_decoder: bool) -> bool:
    """Whether the shipped files are what this script makes, as far as that is quickly seen."""
    model, tokenizer, data = made(encoder_decoder, LAYERS)
    recorded = FIRST_LOSSES[encoder_decoder]
    shipped_model, shipped = load_base(encoder_decoder)
    same_tokenizer = shipped.get_vocab() == tokenizer.get_vocab()
    losses = list(islice(train(model, data), len(recorded)))
    furthest = max(abs(a - b) for a, b in zip(losses, recorded, strict=True))
    exact, known = report(shipped_model, shipped)
    print(f"same vocabulary: {same_tokenizer}; first losses differ by at most {furthest:.1e} nats")
    return same_tokenizer and furthest < 1e-3 and exact < 0.05 and known > 0.98


def main() -> int:
    """Train and save, or check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, help="folder to write, instead of the package's")
    parser.add_argument("--encoder_decoder", action="store_true", help="the model like mBART")
    parser.add_argument(
        "--layers", type=int, default=LAYERS, help=f"of the decoder; {LAYERS} is what is shipped"
    )
    parser.add_argument("--check", action="store_true", help="compare with what is shipped")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.check:
        return 0 if check(arguments.encoder_decoder) else 1
    model, tokenizer, data = made(arguments.encoder_decoder, arguments.layers)
    for step, loss in enumerate(train(model, data)):
        if step < len(FIRST_LOSSES[False]) or step % 100 == 99:
            print(f"step {step + 1:5d}  loss {loss:.6f}", flush=True)
    report(model, tokenizer)
    folder = arguments.output or BASES[arguments.encoder_decoder]
    model.save_pretrained(folder)
    # one that remembers no padding
    _, tokenizer, _ = made(arguments.encoder_decoder, arguments.layers)
    tokenizer.save_pretrained(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
