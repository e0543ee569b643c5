"""What makes token ids of a preference row: the face behind which the tokenizer stands.

Whoever prepares, caches or shows rows asks an ``Encoder``, so that a model that reads something
else than one text (images beside it, a source and a target in two languages) needs another class
here and a line in ``encoder_for``, and nothing else of this room changes.

An encoder refuses a row by raising ``DataError``; whoever asks counts it.

Not here: raw rows of all shapes (``formats``), limits on length (``truncate``), batches of rows as
columns (``encode``).
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from transformers import PreTrainedTokenizerBase

from counterpoint.data.chat import Rendered, render, render_prompt
from counterpoint.data.frame import frame_of
from counterpoint.data.options import Limits
from counterpoint.data.pair_columns import to_pair
from counterpoint.data.pictures import PictureRules
from counterpoint.data.survival import LostText, losses
from counterpoint.data.switches import check_completions
from counterpoint.data.tokenize import PairTokenizer, Tokens, prompt_ids
from counterpoint.data.truncate import Frame, Span, Truncation, truncate
from counterpoint.data.turns import Said, turns_of
from counterpoint.preference_row import PreferenceRow
from counterpoint.records import TokenPair

BACKEND_PARTS = ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder")
"""The parts of a fast tokenizer, each of which can be read as JSON."""


@dataclass(frozen=True, slots=True)
class RowDraft:
    """A row on its way to token ids.

    Args:
        row: the row.
        lost: what of it the model will not see as the row says it.
    """

    row: PreferenceRow
    lost: Sequence[LostText]


Drafted = TypeVar("Drafted", bound=RowDraft)


class Encoder(ABC, Generic[Drafted]):
    """Rows in, token ids out.

    Args:
        tokenizer: what spells the ids.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @property
    def bos(self) -> int | None:
        """The id with which every prompt begins, and which no cut takes away; None for none."""
        bos: int | None = self.tokenizer.bos_token_id
        return bos

    @property
    def start_tokens(self) -> int:
        """How many ids at the end of each row's prompt ids are a decoder's to begin with."""
        return 0

    @property
    def pictures(self) -> PictureRules | None:
        """Which pictures of rows may be opened; None where the model sees none."""
        return None

    @property
    def positions(self) -> int | None:
        """Tokens that a part of a row may take whatever the options allow; None for no limit."""
        return None

    def look(self, pair: TokenPair) -> TokenPair:
        """The same pair, ready for the model: its pictures decoded, if it has any.

        Args:
            pair: of a row that this encoder, or one like it, has prepared.

        Raises:
            DataError: CP2xx for a picture that cannot be read.
        """
        return pair

    def spans(self, pair: TokenPair) -> list[Span]:
        """Where in a pair's prompt each of its pictures stands, with what is written around it.

        Args:
            pair: of a row that this encoder, or one like it, has prepared.

        Returns:
            First token and the one behind the last, for each of ``pair.pictures`` in order.
        """
        return []

    def pair(self, record: Mapping[str, Any]) -> TokenPair:
        """A row of a prepared set, ready for the model.

        Args:
            record: of the columns of a prepared set.

        Raises:
            DataError: as ``look``.
        """
        return self.look(to_pair(record, self.start_tokens))

    def named(self, raw: Mapping[str, Any], row: int) -> Mapping[str, Any]:
        """A raw row whose columns have the names that ``formats`` knows.

        Args:
            raw: cells by column.
            row: its number.

        Raises:
            DataError: CP206 for a row that lacks what no other column can stand for.
        """
        return raw

    def target_language(self, row: PreferenceRow) -> str | None:
        """The language that a row's completions should be in, where something says it.

        Args:
            row: as read.
        """
        return row.target_lang if isinstance(row.target_lang, str) else None

    @abstractmethod
    def draft(self, row: PreferenceRow) -> Drafted:
        """What can be found of one row by itself.

        Raises:
            DataError: for a row that cannot be encoded; CP208, CP217 and CP222 where the row is
                not to blame.
        """

    @abstractmethod
    def tokens(self, drafts: Sequence[Drafted]) -> list[Tokens]:
        """Ids of a batch, one entry a draft, in order; equal to encoding each by itself."""

    @abstractmethod
    def prompt_ids(self, row: PreferenceRow) -> list[int]:
        """Ids of a row's prompt, for a model to answer.

        Raises:
            DataError: as ``draft``.
        """

    @abstractmethod
    def identity(self) -> bytes:
        """All that can change what comes out for a row; the same bytes in every process."""

    def cut(self, draft: Drafted, tokens: Tokens, limits: Limits) -> Truncation:
        """The pair within the limits.

        Args:
            draft: of the row.
            tokens: its ids.
            limits: the run's.
        """
        cut = partial(
            truncate,
            tokens.prompt,
            tokens.chosen,
            tokens.rejected,
            max_length=limits.max_length,
            max_completion_length=limits.max_completion_length,
            policy=limits.truncation,
            keep_first=self.bos is not None,
        )
        pair = cut()
        # of a prompt that must be cut, what frames it is looked up
        return cut(frame=self.frame(draft, tokens.prompt)) if pair.cut_prompt else pair

    def frame(self, draft: Drafted, prompt: Sequence[int]) -> Frame | None:
        """What of a prompt that must be cut is to stay, and the spans that must not be cut in two.

        Asked only where a prompt is too long. None: any token may be cut.

        Args:
            draft: of the row.
            prompt: its ids, as ``tokens`` gave them.
        """
        return None


@dataclass(frozen=True, slots=True)
class TextDraft(RowDraft):
    """A row as text.

    Args:
        rendered: its three texts.
        turns: where in those of chosen and rejected the assistant speaks (``turns.Said``).
    """

    rendered: Rendered
    turns: tuple[Said, Said] = ((), ())


class TextEncoder(Encoder[TextDraft]):
    """A chat template and a tokenizer; no part of a text must be kept whole.

    Args:
        tokenizer: fast or slow.

    Raises:
        ModelError: CP302 if the tokenizer has no EOS token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self._pairs = PairTokenizer(tokenizer)

    def draft(self, row: PreferenceRow) -> TextDraft:
        """Its three texts, and what the template lost of the row."""
        rendered = render(row, self.tokenizer)
        lost = losses(row, rendered)
        check_completions(row, lost, self.tokenizer)
        return TextDraft(row, lost, rendered, turns_of(row, rendered, self.tokenizer))

    def tokens(self, drafts: Sequence[TextDraft]) -> list[Tokens]:
        """Ids of a batch; pieces of text that were met before are not tokenized again."""
        found = self._pairs([draft.rendered for draft in drafts])
        return [self._with_turns(*both) for both in zip(drafts, found, strict=True)]

    def _with_turns(self, draft: TextDraft, tokens: Tokens) -> Tokens:
        if draft.turns == ((), ()):
            return tokens
        texts = draft.rendered.chosen, draft.rendered.rejected
        sides = zip(texts, draft.turns, (tokens.chosen, tokens.rejected), strict=True)
        chosen, rejected = (
            self._pairs.said(text, turns, len(tokens.prompt), ids) if turns else turns
            for text, turns, ids in sides
        )
        return replace(tokens, chosen_said=chosen, rejected_said=rejected)

    def prompt_ids(self, row: PreferenceRow) -> list[int]:
        """Ids of a row's prompt, up to where the assistant begins or continues to speak."""
        return prompt_ids(render_prompt(row, self.tokenizer), self.tokenizer)

    def identity(self) -> bytes:
        """The tokenizer's content."""
        return tokenizer_content(self.tokenizer)

    def frame(self, draft: TextDraft, prompt: Sequence[int]) -> Frame | None:
        """What the chat template wrote around the words."""
        return frame_of(draft.row, draft.rendered.prompt, prompt, self.tokenizer)


def encoder_for(given: Encoder[Any] | PreTrainedTokenizerBase) -> Encoder[Any]:
    """The encoder of what a run was given: a tokenizer reads text; an encoder is taken as it is.

    Raises:
        ModelError: CP302 for a tokenizer without EOS.
    """
    return given if isinstance(given, Encoder) else TextEncoder(given)


def tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """All of a tokenizer that can change what it makes of a text, its padding state left out."""
    special = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    content: dict[str, Any] = {
        "class": f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        "template": tokenizer.chat_template,
        "special": special,
        "map": {
            key: str(value)
            for key, value in tokenizer.special_tokens_map.items()
            if key != "pad_token"  # set between the doctor and the trainer, and never used here
        },
        "split": getattr(tokenizer, "split_special_tokens", False),
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        added = backend.get_added_tokens_decoder()
        content["added"] = [[key, token.__getstate__()] for key, token in sorted(added.items())]
        parts = (getattr(backend, part) for part in BACKEND_PARTS)
        # as they come: reading the JSON of a large vocabulary takes longer than all the rest
        states = [b"null" if part is None else bytes(part.__getstate__()) for part in parts]
        return b"\n".join([json.dumps(content, sort_keys=True).encode(), *states])
    content["vocabulary"] = tokenizer.get_vocab()
    content["added"] = {k: str(v) for k, v in tokenizer.added_tokens_decoder.items()}
    content["init"] = {k: repr(v) for k, v in tokenizer.init_kwargs.items()}
    file = getattr(tokenizer, "vocab_file", None)
    if file and Path(file).is_file():
        content["file"] = hashlib.blake2b(Path(file).read_bytes()).hexdigest()
    return json.dumps(content, sort_keys=True).encode()
