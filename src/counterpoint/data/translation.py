"""Rows for encoder-decoders: a source for the encoder, two completions for the decoder.

1. Sources are encoded as sources and completions as targets (``text_target``): with the code of
   their own language, and in the vocabulary that some tokenizers keep for targets.
2. A decoder is given something to begin with: a start token, a language, or both. That is known,
   not predicted. It stands at the end of a row's prompt ids, as what is given before a completion,
   and carries no loss (``start_tokens``, ``TokenPair.start``).
3. Exactly one EOS ends each completion.
4. Where a tokenizer has languages, each row has a direction: the row's own columns ``source_lang``
   and ``target_lang`` first, then the options, then what the tokenizer was made with. One that
   nobody gave is an error; a tokenizer would take some language without a word.

Sources and completions have limits of their own: they meet in no row.

Not here: what a kind of model begins with (``models.family``), how pairs are laid into rows
(``forward.encoded``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from counterpoint.data.cells import fail_type
from counterpoint.data.chat import render
from counterpoint.data.encoder import Encoder, RowDraft, tokenizer_content
from counterpoint.data.language_codes import nearest_codes
from counterpoint.data.options import UNLIMITED, Limits
from counterpoint.data.shapes import translated_pair
from counterpoint.data.tokenize import Tokens, end_of_sequence, guarded
from counterpoint.data.truncate import Truncation
from counterpoint.errors import ConfigError, DataError, ModelError
from counterpoint.preference_row import PreferenceRow, Text

SOURCE = "source"
"""Another name of the prompt's column, in sets of translations."""

PROMPTS = ("prompt", "conversations", "messages", "instruction")
"""Columns in which a prompt stands by itself."""

DEFAULTS = ("eng_Latn", "en_XX", "en")
"""What tokenizers take for the language of a source where nobody said one."""

_CODE = re.compile(r"[a-z]{2,3}_[A-Za-z]{2,4}")
"""A token that stands for a language, where the tokenizer has no list of them."""

_MARK = re.compile(r"\s*>>[^\s<>]+<<")
"""What a source of a Marian model of many languages begins with; two angles alone are text."""


@dataclass(frozen=True, slots=True)
class DecoderStart:
    """What a kind of decoder begins with.

    Args:
        token: the start token.
        language_instead: whether a language that the tokenizer writes behind EOS stands in the
            start token's place (mBART), and not after it.
    """

    token: int
    language_instead: bool = False


class Direction(NamedTuple):
    """From which language a row translates, and into which; None where there are none."""

    source: str | None
    target: str | None


@dataclass(frozen=True, slots=True)
class TranslationDraft(RowDraft):
    """A row as three texts and a direction.

    Args:
        texts: source, chosen and rejected completion.
        direction: of the row.
    """

    texts: tuple[str, str, str]
    direction: Direction


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a tokenizer writes around a text in one direction.

    Args:
        head: ids before a source.
        tail: ids after it.
        start: ids that the decoder begins with.
    """

    head: int
    tail: int
    start: tuple[int, ...]


class TranslationEncoder(Encoder[TranslationDraft]):
    """A tokenizer of sources and targets.

    Args:
        tokenizer: fast or slow.
        start: what the model's decoder begins with.
        source_lang: of rows that say none; None: what the tokenizer was made with.
        target_lang: likewise.
        positions: tokens of a source that the encoder has positions for, and of a row of the
            decoder; None where there is no such limit.
        beginning_is_source: whether a row without a source column has it in its completions: what
            both begin with, as in TRL.

    Raises:
        ConfigError: CP102 for a language that the tokenizer does not have, CP104 for a tokenizer
            that has none.
        ModelError: CP302 if the tokenizer has no EOS token, or one for sources and another for
            targets.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        start: DecoderStart,
        source_lang: str | None = None,
        target_lang: str | None = None,
        positions: int | None = None,
        *,
        beginning_is_source: bool = False,
    ) -> None:
        super().__init__(tokenizer)
        self._positions, self._begins = positions, beginning_is_source
        self._start, self._eos = start, end_of_sequence(tokenizer)
        _check_one_end(tokenizer, self._eos)
        self.languages = languages_of(tokenizer)
        self._said = Direction(source_lang, target_lang)
        self._check_options()
        self._default = Direction(
            source_lang or _made_with(tokenizer, "src_lang"),
            target_lang or _made_with(tokenizer, "tgt_lang"),
        )
        self._frames: dict[Direction, _Frame] = {}

    def _check_options(self) -> None:
        for name, language in zip(("source_lang", "target_lang"), self._said, strict=True):
            if language is None:
                continue
            if not self.languages:
                raise ConfigError(
                    "CP104",
                    f"{name}={language!r} has no meaning: {type(self.tokenizer).__name__} has no "
                    "languages. Leave it out.",
                )
            if language not in self.languages:
                raise ConfigError(
                    "CP102",
                    f"{name}={language!r} is no language of {type(self.tokenizer).__name__}"
                    f"{self._nearest(language)}.",
                )

    def _nearest(self, language: str) -> str:
        near = nearest_codes(language, self.languages)
        return f"; nearest are {', '.join(near)}" if near else ""

    @property
    def positions(self) -> int | None:
        """Of the encoder, and as many of the decoder."""
        return self._positions

    @property
    def bos(self) -> None:
        """None: what stands before a source is kept by this encoder itself."""
        return

    @property
    def start_tokens(self) -> int:
        """How many ids at the end of each row's prompt ids the decoder begins with."""
        some = self.languages[0] if self.languages and self._has_codes() else None
        return len(self._frame(Direction(some, some)).start)

    def _has_codes(self) -> bool:
        """Whether languages are tokens around a text, and not words of the source (Marian)."""
        return hasattr(self.tokenizer, "src_lang")

    def named(self, raw: Mapping[str, Any], row: int) -> Mapping[str, Any]:
        """A raw row whose prompt may stand in a column ``source``.

        What two translations begin with is no source: one that is in no column is missing, unless
        the run says that it is meant so, and the set has no such column.
        """
        if any(raw.get(name) is not None for name in PROMPTS):
            return raw
        if isinstance(raw.get("translation"), Mapping):
            return translated_pair(raw, row)
        if isinstance(raw.get(SOURCE), str):
            return {**raw, "prompt": raw[SOURCE]}
        # a set with such a column means it in every row
        if self._begins and not {*PROMPTS, SOURCE} & set(raw):
            return raw
        raise _without_source(row)

    def draft(self, row: PreferenceRow) -> TranslationDraft:
        """Its texts and its direction.

        Raises:
            DataError: CP202 for a conversation of several turns, CP206 without a source, CP227 for
                a language that nobody gave, or that the tokenizer does not have.
        """
        parts = {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}
        source, chosen, rejected = (_only_text(t, row.row, name) for name, t in parts.items())
        if not source.strip():
            raise _without_source(row.row)
        as_text = replace(row, prompt=source, chosen=chosen, rejected=rejected)
        render(as_text, self.tokenizer)  # refuses what is no Unicode
        direction = self._direction(row)
        return TranslationDraft(
            row, (), (self._with_mark(source, direction), chosen, rejected), direction
        )

    def _direction(self, row: PreferenceRow) -> Direction:
        if not self.languages:
            return Direction(None, None)
        given = Direction(row.source_lang or None, row.target_lang or None)
        for side, language in zip(Direction._fields, given, strict=True):
            if not isinstance(language, str | None):
                fail_type(language, row.row, f"{side}_lang", "the code of a language")
        found = Direction(*(own or some for own, some in zip(given, self._default, strict=True)))
        for side, language in zip(Direction._fields, found, strict=True):
            if language is None and self._has_codes():
                raise DataError(
                    "CP227",
                    f"row {row.row} says no {side} language, and neither the option {side}_lang "
                    f"nor the tokenizer does. Set {side}_lang, or give the rows such a column.",
                )
            if language is not None and language not in self.languages:
                raise DataError(
                    "CP227",
                    f"row {row.row}, field {side}_lang: {language!r} is no language of "
                    f"{type(self.tokenizer).__name__}{self._nearest(language)}.",
                )
        return found

    def target_language(self, row: PreferenceRow) -> str | None:
        """The row's own, the options', or what the tokenizer was made for (Marian)."""
        made_for: str | None = getattr(self.tokenizer, "target_lang", None)
        return super().target_language(row) or self._default.target or made_for

    def _with_mark(self, source: str, direction: Direction) -> str:
        """A source of a Marian model of many languages, which reads the target's in its text."""
        if self._has_codes() or direction.target is None or _MARK.match(source):
            return source
        return f">>{direction.target}<< {source}"

    def tokens(self, drafts: Sequence[TranslationDraft]) -> list[Tokens]:
        """Ids of a batch, direction by direction."""
        found: dict[int, Tokens] = {}
        for direction in dict.fromkeys(draft.direction for draft in drafts):
            places = [n for n, draft in enumerate(drafts) if draft.direction == direction]
            start = list(self._frame(direction).start)
            texts = zip(*(drafts[place].texts for place in places), strict=True)
            sources, chosen, rejected = self._ids(direction, *texts)
            for place, *ids in zip(places, sources, chosen, rejected, strict=True):
                found[place] = Tokens([*ids[0], *start], ids[1], ids[2], moved=0)
        return [found[place] for place in range(len(drafts))]

    def _ids(
        self, direction: Direction, sources: Sequence[str], *sides: Sequence[str]
    ) -> list[list[list[int]]]:
        """Ids of sources with all that belongs around them, and of completions with their EOS."""
        with self._turned(direction) as tokenizer:
            read = guarded(tokenizer, sources, add_special_tokens=True)
            written = [
                guarded(tokenizer, text_target=side, add_special_tokens=False) for side in sides
            ]
        return [read, *([self._ended(ids) for ids in side] for side in written)]

    def _ended(self, ids: list[int]) -> list[int]:
        while ids and ids[-1] == self._eos:
            ids = ids[:-1]
        return [*ids, self._eos]

    @contextmanager
    def _turned(self, direction: Direction) -> Iterator[PreTrainedTokenizerBase]:
        """The tokenizer, told which way it translates; afterwards it is as it was.

        It writes its languages into what is saved of it and into what names it.
        """
        tokenizer: Any = self.tokenizer
        if not self._has_codes() or direction.source is None:
            yield tokenizer
            return
        before = Direction(tokenizer.src_lang, tokenizer.tgt_lang)
        try:
            # the source's last: to set it writes the tokens around a text anew
            tokenizer.tgt_lang, tokenizer.src_lang = direction.target, direction.source
            yield tokenizer
        finally:
            tokenizer.tgt_lang, tokenizer.src_lang = before.target, before.source

    def _frame(self, direction: Direction) -> _Frame:
        if direction not in self._frames:
            with self._turned(direction) as tokenizer:
                bare, source = guarded(tokenizer, ["", "a"], add_special_tokens=True)
                (target,) = guarded(tokenizer, text_target=[""], add_special_tokens=True)
            head = next(
                (n for n, (one, two) in enumerate(zip(bare, source, strict=False)) if one != two),
                len(bare),
            )
            self._frames[direction] = _Frame(head, len(bare) - head, self._begun(target))
        return self._frames[direction]

    def _begun(self, target: Sequence[int]) -> tuple[int, ...]:
        """What a decoder begins with, by what the tokenizer writes around an empty target."""
        end = target.index(self._eos) if self._eos in target else len(target)
        before, after = target[:end], target[end + 1 :]
        if after and self._start.language_instead:
            return tuple(after)
        return (self._start.token, *before, *after)

    def prompt_ids(self, row: PreferenceRow) -> list[int]:
        """A source, and what the decoder begins with."""
        direction = self._direction(row)
        source = self._with_mark(_only_text(row.prompt, row.row, "prompt"), direction)
        with self._turned(direction) as tokenizer:
            (ids,) = guarded(tokenizer, [source], add_special_tokens=True)
        return [*ids, *self._frame(direction).start]

    def identity(self) -> bytes:
        """The tokenizer's content, what a decoder begins with, and the languages of most rows."""
        own = [self._start.token, self._start.language_instead, *self._default]
        own += [self._positions, self._begins]
        return tokenizer_content(self.tokenizer) + json.dumps(["translation", *own]).encode()

    def cut(self, draft: TranslationDraft, tokens: Tokens, limits: Limits) -> Truncation:
        """A source and its completions, each within its own limit and the model's positions.

        Raises:
            DataError: CP204 where they are not and the policy does not let them be cut.
        """
        frame = self._frame(draft.direction)
        begun = len(frame.start)
        source, start = tokens.prompt[:-begun], tokens.prompt[-begun:]
        most, most_said = self._most(limits, begun)
        longest = max(len(tokens.chosen), len(tokens.rejected))
        policy, over = limits.truncation, len(source) - most
        if policy == "drop" and (over > 0 or longest > most_said):
            raise DataError(
                "CP204",
                f"row {draft.row.row}: source and longer completion take {len(source):,} and "
                f'{longest:,} of {most:,} and {most_said:,} tokens, and truncation="drop" drops '
                "such rows.",
            )
        if over > 0:
            if policy == "completion_end" or most <= frame.head + frame.tail:
                raise self._too_long(draft.row.row, len(source), most)
            words = slice(frame.head, len(source) - frame.tail)
            kept = source[words]
            kept = kept[over:] if policy == "prompt_start" else kept[:-over]
            source = [*source[: frame.head], *kept, *source[words.stop :]]
        return Truncation(
            prompt=[*source, *start],
            chosen=tokens.chosen[:most_said],
            rejected=tokens.rejected[:most_said],
            cut_prompt=max(0, over),
            cut_chosen=max(0, len(tokens.chosen) - most_said),
            cut_rejected=max(0, len(tokens.rejected) - most_said),
        )

    def _most(self, limits: Limits, begun: int) -> tuple[int, int]:
        """Tokens of a source and of a completion."""
        said = limits.max_completion_length or limits.max_length
        if self._positions is None or limits == UNLIMITED:
            return limits.max_length, said
        # the last token of a completion is no input, and takes no position
        return min(limits.max_length, self._positions), min(said, self._positions + 1 - begun)

    def _too_long(self, row: int, tokens: int, most: int) -> DataError:
        raised, of = "Raise max_length, set", f"of {most:,} tokens"
        if most == self._positions:
            raised, of = "Set", f"tokens, and the model's encoder has {most:,} positions"
        return DataError(
            "CP204",
            f"row {row}: the source takes {tokens:,} {of}. {raised} "
            'truncation="prompt_end" to cut sources, or "drop" to drop such rows.',
        )


def _check_one_end(tokenizer: PreTrainedTokenizerBase, end: int) -> None:
    """Refuse two vocabularies (Marian) that do not end texts alike: a model has one EOS token."""
    written: Mapping[str, int] = getattr(tokenizer, "target_encoder", None) or {}
    other = written.get(str(tokenizer.eos_token), end)
    if other != end:
        raise ModelError(
            "CP302",
            f"the end-of-sequence token {tokenizer.eos_token} is {end} among sources and {other} "
            "among targets, and a model has one. Give it one id in both vocabularies.",
        )


def _without_source(row: int) -> DataError:
    return DataError(
        "CP206",
        f"row {row} has no source, which an encoder-decoder reads. Give it a column prompt or "
        f"{SOURCE}; if both completions begin with it, say is_encoder_decoder=True.",
    )


def languages_of(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The codes of the languages that a tokenizer knows; none for most.

    Args:
        tokenizer: of any model.
    """
    own: Any = tokenizer
    if hasattr(own, "src_lang"):
        listed: Iterable[str] = getattr(own, "lang_code_to_id", None) or (
            token for token in own.all_special_tokens if _CODE.fullmatch(token)
        )
        return tuple(listed)
    marks = getattr(own, "supported_language_codes", None) or ()
    return tuple(mark.strip("<>") for mark in marks)


def _made_with(tokenizer: PreTrainedTokenizerBase, name: str) -> str | None:
    """A language that a tokenizer was made with, or given since; None for its class's own."""
    given: str | None = tokenizer.init_kwargs.get(name)
    now: str | None = getattr(tokenizer, name, None)
    return now if given or now not in DEFAULTS or name != "src_lang" else None


def _only_text(part: Text, row: int, name: str) -> str:
    """A text, or the content of the only turn of a conversation."""
    if isinstance(part, str):
        return part
    content = part[0].get("content")
    if len(part) == 1 and isinstance(content, str):
        return content
    raise DataError(
        "CP202",
        f"row {row}, field {name}: is a conversation of {len(part)} turns, and an encoder-decoder "
        "reads and writes one text. Write it as text.",
    )
