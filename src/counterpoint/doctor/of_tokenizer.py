"""Checks of a tokenizer, alone and on a few rows of the run.

Not here: what its marks do in all of the rows (``survey`` counts, ``of_data`` judges).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from counterpoint.data.chat import render
from counterpoint.doctor.findings import Finding, find
from counterpoint.errors import DataError
from counterpoint.models.family import processor_refusal
from counterpoint.preference_row import PreferenceRow

UNUSED_NAMES = ("<|endoftext|>", "<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<unk>")
"""Tokens that vocabularies have and texts have not, in order of preference as padding."""

PROBE = "Hello"


def of_tokenizer(
    tokenizer: Any,
    rows: Sequence[PreferenceRow],
    *,
    embedding: int | None,
    bos: int | None,
) -> Iterator[Finding]:
    """What of a tokenizer would be learned wrong, or be slow.

    Args:
        tokenizer: the trainer's ``processing_class``.
        rows: a few rows of the training set.
        embedding: token ids that the model knows; None if there is no model to ask.
        bos: the id that training puts before each prompt; None for none.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        yield from _not_one(tokenizer)
        return
    yield from _ends(tokenizer)
    yield from _pads(tokenizer)
    if not tokenizer.is_fast:
        yield find("CW309", f"{type(tokenizer).__name__} is not fast.")
    if embedding is not None and len(tokenizer) > embedding:
        yield find(
            "CW308",
            f"{len(tokenizer):,} tokens, but {embedding:,} rows of the embedding.",
            fix="model.resize_token_embeddings(len(tokenizer))",
        )
    if bos is not None:
        yield from _begins(tokenizer, rows, bos)
    yield from _turn(tokenizer, rows)


def _not_one(tokenizer: Any) -> Iterator[Finding]:
    if refusal := processor_refusal(tokenizer):
        yield find("CP306", refusal, fix="tokenizer = processor.tokenizer")
    else:
        name = type(tokenizer).__name__
        yield find("CP301", f"processing_class is a {name}, not a tokenizer of transformers.")


def _ends(tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    if tokenizer.eos_token_id is None:
        template = tokenizer.chat_template or ""
        ends = next((t for t in ("<|im_end|>", "<|eot_id|>", "</s>") if t in str(template)), None)
        yield find(
            "CP302",
            "the tokenizer has no end-of-sequence token.",
            fix=f'tokenizer.eos_token = "{ends or "</s>"}"',
        )
    elif tokenizer.eos_token not in tokenizer.get_vocab():
        yield find(
            "CW311",
            f"eos_token {tokenizer.eos_token!r} is not in the vocabulary; its id, "
            f"{tokenizer.eos_token_id}, is that of {tokenizer.unk_token!r}.",
            fix='tokenizer.eos_token = "</s>"  # one that the vocabulary has',
        )


def _pads(tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    if tokenizer.eos_token_id is None:
        return
    vocabulary = tokenizer.get_vocab()
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    free = next((name for name in UNUSED_NAMES if name in vocabulary and name not in taken), None)
    if free:
        fix = f'tokenizer.pad_token = "{free}"'
    else:
        fix = 'tokenizer.add_special_tokens({"pad_token": "<pad>"})  # and resize the embedding'
    if tokenizer.pad_token_id is None:
        yield find("CN301", "pad_token is not set; EOS will be used.", fix=fix)
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield find("CN302", f"pad_token and eos_token are both {tokenizer.eos_token!r}.", fix=fix)


def _begins(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[PreferenceRow], bos: int
) -> Iterator[Finding]:
    """BOS where the model is used: from the tokenizer for text, from the template for messages."""
    adds = list(tokenizer(PROBE)["input_ids"])[:1] == [bos]
    texts = [text for text in _rendered(tokenizer, rows[:1]) if text]
    of_messages = bool(rows) and not isinstance(rows[0].prompt, str)
    if of_messages and not texts:  # no template, or one that fails: found with the rows
        return
    writes = any(text.startswith(str(tokenizer.bos_token)) for text in texts)
    if not (writes if of_messages else adds or writes):
        who = "the chat template" if of_messages else "the tokenizer"
        yield find(
            "CW303",
            f"bos_token is {tokenizer.bos_token!r}, which training puts first, but {who} does "
            "not write it.",
            fix='tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template'
            if of_messages
            else "tokenizer.bos_token = None  # or a tokenizer that adds it",
        )
    elif adds and writes:
        yield find(
            "CW304",
            f"the text begins with {tokenizer.bos_token!r}, and the tokenizer adds it again.",
            fix="tokenizer(text, add_special_tokens=False)  # where the model is used",
        )


def _turn(tokenizer: PreTrainedTokenizerBase, rows: Sequence[PreferenceRow]) -> Iterator[Finding]:
    """Whether the template ends the assistant's turn with EOS."""
    spoken = [row for row in rows if not isinstance(row.prompt, str)][:1]
    eos = tokenizer.eos_token
    if not spoken or eos is None:
        return
    for text in _rendered(tokenizer, spoken):
        if text.rstrip().endswith(str(eos)):
            continue
        tail = text.rstrip()[-20:]
        ends = next(
            (t for t in sorted(_special(tokenizer), key=len, reverse=True) if tail.endswith(t)),
            None,
        )
        yield find(
            "CW307",
            f"the assistant's turn ends with {tail!r}, not with {eos!r}.",
            fix=f'tokenizer.eos_token = "{ends}"' if ends else "# end turns with {{ eos_token }}",
        )


def _rendered(tokenizer: PreTrainedTokenizerBase, rows: Sequence[PreferenceRow]) -> list[str]:
    texts = []
    for row in rows:
        try:
            texts.append(render(row, tokenizer).chosen)
        except DataError:  # counted with the rows
            continue
    return texts


def _special(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Every token that is a mark, and not text."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return {mark for mark in {*tokenizer.all_special_tokens, *added} if mark}


def marks_of(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """The texts of a tokenizer's marks, at least two characters each."""
    return frozenset(mark for mark in _special(tokenizer) if len(mark) > 1)
