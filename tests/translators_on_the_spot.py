"""Small encoder-decoders with tokenizers of their own kind, made in milliseconds; fixed seeds."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from counterpoint.quickstart.task import english, german

NUMBERS = range(7, 40_000, 211)
ROWS = [
    {"prompt": english(n), "chosen": german(n), "rejected": german(n + 1000) + " und"}
    for n in (742, 31, 90_210, 5, 1066, 40_000)
]
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")

Made = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def texts() -> list[str]:
    return [text for n in NUMBERS for text in (english(n), german(n))]


@cache
def pieces(first: tuple[str, ...], size: int = 200) -> list[tuple[str, float]]:
    """A unigram vocabulary with some tokens before it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        texts(),
        trainers.UnigramTrainer(
            vocab_size=size, special_tokens=list(first), unk_token="<unk>", show_progress=False
        ),
    )
    return [tuple(one) for one in json.loads(tokenizer.to_str())["model"]["vocab"]]


@cache
def merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        texts(),
        trainers.BpeTrainer(vocab_size=200, special_tokens=[*SPECIAL], show_progress=False),
    )
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(one) for one in model["merges"]]


@cache
def sentences() -> Path:
    """Two SentencePiece models, of sources and of targets, and the vocabulary of both."""
    spm: Any = pytest.importorskip("sentencepiece")
    folder = Path(tempfile.mkdtemp(prefix="sentencepiece-"))
    for side, spell in (("source", english), ("target", german)):
        (folder / f"{side}.txt").write_text("\n".join(spell(n) for n in NUMBERS))
        spm.SentencePieceTrainer.train(
            input=f"{folder}/{side}.txt",
            model_prefix=f"{folder}/{side}",
            vocab_size=90,
            minloglevel=2,
            hard_vocab_limit=False,
        )
    names: set[str] = set()
    for side in ("source", "target"):
        model = spm.SentencePieceProcessor(model_file=f"{folder}/{side}.model")
        names |= {model.id_to_piece(n) for n in range(model.get_piece_size())}
    words = ["</s>", "<unk>", *sorted(names - {"<s>", "</s>", "<unk>"}), "<pad>"]
    for side in ("source", "target"):
        model = spm.SentencePieceProcessor(model_file=f"{folder}/{side}.model")
        own = {model.id_to_piece(n) for n in range(model.get_piece_size())}
        listed = ["</s>", "<unk>", *sorted(own - {"<s>", "</s>", "<unk>"}), "<pad>"]
        (folder / f"{side}.json").write_text(json.dumps({word: n for n, word in enumerate(listed)}))
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    m2m = [*SPECIAL, *sorted(names - set(SPECIAL))]
    (folder / "m2m.json").write_text(json.dumps({word: n for n, word in enumerate(m2m)}))
    return folder


WIDE: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 128,
}
T5: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
}


def _made(kind: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Made:
    named: Any = transformers
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos")}
    torch.manual_seed(3)
    listed: Any = getattr(tokenizer, "lang_code_to_id", None) or {}
    rows = max(len(tokenizer), *listed.values(), 0) + 1  # M2M-100 does not count its languages
    config = named.AutoConfig.for_model(
        kind, vocab_size=rows, bos_token_id=tokenizer.bos_token_id, **ids, **options
    )
    model = transformers.AutoModelForSeq2SeqLM.from_config(config)
    # models this narrow say next to nothing with the usual small weights
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.15)
            elif "bias" in name:
                weight.normal_(0, 0.05)
    return model, tokenizer


def _t5(kind: str, **options: Any) -> Made:
    tokenizer = transformers.T5TokenizerFast(vocab=pieces(("<pad>", "</s>", "<unk>")), extra_ids=0)
    return _made(kind, tokenizer, **T5, decoder_start_token_id=tokenizer.pad_token_id, **options)


def _of_languages(kind: str, tokenizer: Any, **options: Any) -> Made:
    return _made(kind, tokenizer, **WIDE, **options)


def _nllb(kind: str = "m2m_100", **options: Any) -> Made:
    vocab, joined = merges()
    tokenizer = transformers.NllbTokenizerFast(vocab=dict(vocab), merges=joined)
    return _of_languages(kind, tokenizer, decoder_start_token_id=2, **options)


def _m2m() -> Made:
    folder = sentences()
    tokenizer = transformers.M2M100Tokenizer(
        vocab_file=f"{folder}/m2m.json", spm_file=f"{folder}/source.model"
    )
    return _of_languages("m2m_100", tokenizer, decoder_start_token_id=2)


def _mbart() -> Made:
    tokenizer = transformers.MBartTokenizerFast(vocab=pieces(SPECIAL))
    return _of_languages("mbart", tokenizer)


def _mbart50() -> Made:
    tokenizer = transformers.MBart50TokenizerFast(vocab=pieces(SPECIAL))
    return _of_languages("mbart", tokenizer, decoder_start_token_id=2)


def _marian() -> Made:
    folder = sentences()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends a package that changes punctuation
        tokenizer = transformers.MarianTokenizer(
            source_spm=f"{folder}/source.model",
            target_spm=f"{folder}/target.model",
            vocab=f"{folder}/vocab.json",
            source_lang="en",
            target_lang="de",
        )
    return _made("marian", tokenizer, **WIDE, decoder_start_token_id=tokenizer.pad_token_id)


def _marian_apart() -> Made:
    """Of two vocabularies, the larger one of targets, and two embeddings."""
    folder = sentences()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = transformers.MarianTokenizer(
            source_spm=f"{folder}/source.model",
            target_spm=f"{folder}/target.model",
            vocab=f"{folder}/source.json",
            target_vocab_file=f"{folder}/target.json",
            separate_vocabs=True,
        )
    written = len(tokenizer.target_encoder)
    return _made(
        "marian",
        tokenizer,
        **WIDE,
        decoder_vocab_size=written,
        decoder_start_token_id=written - 1,
        share_encoder_decoder_embeddings=False,
        tie_word_embeddings=False,
    )


def _bart() -> Made:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: n for n, token in enumerate((*SPECIAL, "<mask>", *alphabet))}
    tokenizer = transformers.BartTokenizerFast(vocab=vocab, merges=[])
    return _made("bart", tokenizer, **WIDE, decoder_start_token_id=2)


def _pegasus() -> Made:
    tokenizer = transformers.PegasusTokenizerFast(
        vocab=pieces(("<pad>", "</s>", "<unk>")), offset=0, mask_token=None, mask_token_sent=None
    )
    return _made("pegasus", tokenizer, **WIDE, decoder_start_token_id=tokenizer.pad_token_id)


KINDS: dict[str, Callable[[], Made]] = {
    "t5": lambda: _t5("t5"),
    "flan-t5": lambda: _t5("t5", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "mt5": lambda: _t5("mt5", tie_word_embeddings=False),
    "umt5": lambda: _t5("umt5", tie_word_embeddings=False),
    "nllb": _nllb,
    "m2m100": _m2m,
    "mbart": _mbart,
    "mbart50": _mbart50,
    "marian": _marian,
    "marian-apart": _marian_apart,
    "bart": _bart,
    "pegasus": _pegasus,
}
LANGUAGES = {
    "nllb": ("eng_Latn", "deu_Latn"),
    "mbart": ("en_XX", "de_DE"),
    "mbart50": ("en_XX", "de_DE"),
    "m2m100": ("en", "de"),
}
"""Of the rows, for the tokenizers that are told."""


def translator(kind: str, dtype: torch.dtype = torch.float32) -> Made:
    """A model in evaluation mode, its biases after the head not zero, and its tokenizer."""
    model, tokenizer = KINDS[kind]()
    bias = getattr(model, "final_logits_bias", None)
    if bias is not None:
        bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(5)))
    return model.to(dtype).eval(), tokenizer
