"""Rows about pictures: ids in which each picture has its place, and what the tower takes of it.

1. The chat template writes a mark where a turn shows a picture. The model's processor makes of the
   mark what stands for a picture of some size: its own code is asked, once for each size, with a
   blank picture. So rows are prepared from sizes, and nothing is decoded.
2. Once, the same is compared with what the processor makes of all of a row.
3. What stands for a picture is kept whole: a row whose limit would cut into it is refused.
4. A picture is decoded when its pair is used, by the workers of a loader, and never kept on disk.

Not here: which pictures a row has and which may be opened (``data.pictures``), how a model is given
them (``forward.seeing``).
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase

from counterpoint.data.chat import Rendered, render_prompt
from counterpoint.data.encoder import TextDraft, TextEncoder
from counterpoint.data.looked_at import LookedAt
from counterpoint.data.options import Limits
from counterpoint.data.pictures import PictureRules
from counterpoint.data.tokenize import Tokens, encode, prompt_ids
from counterpoint.data.truncate import Frame, Span, Truncation
from counterpoint.errors import DataError, ModelError, kind_and_line
from counterpoint.forward.sights import Sight
from counterpoint.picture import Picture, SeenPicture
from counterpoint.preference_row import PARTS, PreferenceRow
from counterpoint.records import TokenPair

OF_TEXT = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "position_ids",
    "cross_attention_mask",
)
"""What a processor gives of a text and not of a picture."""

PROBE = "WORDS_OF_A_TURN"


class _Listening:
    """A tokenizer that remembers the texts it was given.

    Args:
        tokenizer: that does the work.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self.heard = tokenizer, [""]

    def __call__(self, text: Any, *args: Any, **options: Any) -> Any:
        """As the tokenizer's own."""
        self.heard = [text] if isinstance(text, str) else list(text)
        return self._tokenizer(text, *args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


class PictureReader:
    """What a processor makes of pictures: text in a prompt, and what the tower takes.

    Args:
        processor: of a model that sees.
        config: the model's.
        sight: how models of its kind take pictures.

    Raises:
        ModelError: CP306 for a processor that does not say which token stands for a picture.
    """

    def __init__(self, processor: Any, config: Any, sight: Sight) -> None:
        self.processor = processor
        mark = getattr(processor, sight.mark, None)
        if not isinstance(mark, str) or not mark:
            raise ModelError(
                "CP306",
                f"{type(processor).__name__} has no {sight.mark}, so that it is not known what "
                "stands for a picture in a prompt. Use the processor that came with the model.",
            )
        self.mark: str = mark
        # Llama's processor writes it where a text has none
        self._beginning: str = (processor.tokenizer.bos_token or "") if sight.crosses else ""
        self.token_id: int = config.image_token_id
        self._patch: Any = getattr(config.vision_config, "patch_size", None)
        self._in_words: dict[tuple[int, int], str] = {}
        self._looked_at = LookedAt(self._looked)

    def in_words(self, picture: Picture) -> str:
        """The text that stands for a picture of some size.

        Args:
            picture: of that size.

        Raises:
            DataError: CP230 for a size that the processor refuses.
        """
        size = picture.width, picture.height
        if size not in self._in_words:
            found = self.whole_text(self._beginning + self.mark, [picture])
            self._in_words[size] = found.removeprefix(self._beginning)
        return self._in_words[size]

    def whole_text(self, text: str, pictures: Sequence[Picture]) -> str:
        """What the processor itself makes of a text with marks.

        Args:
            text: with a mark for each picture.
            pictures: whose sizes count; at least one.

        Raises:
            DataError: CP230, as ``in_words``.
        """
        from PIL import Image

        blank = [Image.new("RGB", (one.width, one.height)) for one in pictures]
        return self._process(text, blank, pictures[0])[0]

    def look(self, picture: Picture) -> SeenPicture:
        """What a tower takes of a picture; one that was looked at before is decoded when it does.

        Args:
            picture: of a row.

        Raises:
            DataError: CP2xx as ``Picture.load``; CP230 where the processor refuses it.
        """
        return self._looked_at(picture)

    def blank(self, picture: Picture) -> SeenPicture:
        """What a picture of some size is for the tower, but for what it shows.

        Args:
            picture: of that size; nothing of it is read.

        Raises:
            DataError: CP230 where the processor refuses it.
        """
        from PIL import Image

        return self._seen(picture, Image.new("RGB", (picture.width, picture.height)))

    @property
    def pixels_of_patch(self) -> int | None:
        """How many pixels a patch has; None where the configuration does not say."""
        if self._patch is None:
            return None
        sides = self._patch if isinstance(self._patch, list | tuple) else [self._patch] * 2
        return int(sides[0]) * int(sides[1])

    def _looked(self, picture: Picture) -> SeenPicture:
        return self._seen(picture, picture.load())

    def _seen(self, picture: Picture, image: Any) -> SeenPicture:
        _, found = self._process(self.mark, [image], picture)
        tokens = int((found["input_ids"] == self.token_id).sum())
        inputs = {name: found[name] for name in found if name not in OF_TEXT}
        return SeenPicture(picture.digest, tokens, self._patches(inputs, tokens), inputs)

    def _patches(self, inputs: dict[str, Tensor], tokens: int) -> int:
        pixels = inputs["pixel_values"]
        if pixels.dim() == 2:  # patches already, one a row
            return pixels.shape[0]
        patch = self.pixels_of_patch
        return tokens if patch is None else max(1, pixels.numel() // (3 * patch))

    def _process(self, text: str, images: list[Any], first: Picture) -> tuple[str, BatchFeature]:
        processor = copy.copy(self.processor)
        processor.tokenizer = listening = _Listening(self.processor.tokenizer)
        try:
            with warnings.catch_warnings():
                # some make arrays of tensors in a way that numpy has deprecated (GLM's)
                warnings.simplefilter("ignore", DeprecationWarning)
                found = processor(text=[text], images=[images], return_tensors="pt")
        except (ValueError, TypeError, RuntimeError, KeyError, IndexError) as error:
            raise DataError(
                "CP230",
                f"row {first.row}, field {first.field}: {type(self.processor).__name__} refuses a "
                f"picture of {first.width} x {first.height} pixels: {kind_and_line(error)}. "
                "Replace it, or remove the row.",
            ) from error
        return str(listening.heard[0]), found


@dataclass(frozen=True, slots=True)
class SeeingDraft(TextDraft):
    """A row as text in which pictures have their places.

    Args:
        places: what stands for each picture, in order.
    """

    places: tuple[str, ...] = ()


class VisionEncoder(TextEncoder):
    """A chat template, a processor and a tokenizer.

    Args:
        processor: of a model that sees.
        config: the model's.
        sight: how models of its kind take pictures.
        rules: which pictures may be opened.

    Raises:
        ModelError: CP302 if the tokenizer has no EOS token, CP306 as ``PictureReader``.
    """

    def __init__(
        self, processor: Any, config: Any, sight: Sight, rules: PictureRules | None = None
    ) -> None:
        tokenizer, template = processor.tokenizer, getattr(processor, "chat_template", None)
        if template and template != tokenizer.chat_template:
            tokenizer = copy.copy(tokenizer)
            tokenizer.chat_template = template
        super().__init__(tokenizer)
        self.reader = PictureReader(processor, config, sight)
        self._rules = rules or PictureRules()
        self._in_parts = _wants_parts(tokenizer)
        self._compared = False

    @property
    def pictures(self) -> PictureRules:
        """Which pictures of rows may be opened."""
        return self._rules

    def draft(self, row: PreferenceRow) -> SeeingDraft:
        """Its three texts, each mark replaced by what stands for its picture."""
        plain = super().draft(self._in_template_s_way(row))
        pictures = row.pictures
        self._check_marks(row, plain.rendered, len(pictures))
        places = tuple(map(self.reader.in_words, pictures))
        if places:
            self._compare(plain.rendered.prompt, row)
        texts = plain.rendered
        filled = Rendered(*(_filled(text, self.reader.mark, places) for text in _texts(texts)))
        # every picture stands in the prompt, and so before every turn of a completion
        longer = [len(b) - len(a) for a, b in zip(_texts(texts), _texts(filled), strict=True)]
        chosen, rejected = (
            spans and tuple((start + more, end + more) for start, end in spans)
            for spans, more in zip(plain.turns, longer[1:], strict=True)
        )
        return SeeingDraft(plain.row, plain.lost, filled, (chosen, rejected), places)

    def prompt_ids(self, row: PreferenceRow) -> list[int]:
        """Ids of a row's prompt, its pictures in their places."""
        if not row.pictures:
            return super().prompt_ids(self._in_template_s_way(row))
        text = render_prompt(self._in_template_s_way(row), self.tokenizer)
        places = [*map(self.reader.in_words, row.pictures)]
        return prompt_ids(_filled(text, self.reader.mark, places), self.tokenizer)

    def identity(self) -> bytes:
        """The tokenizer's content, and all that the processor goes by."""
        processor = self.reader.processor
        facts = {
            "class": f"{type(processor).__module__}.{type(processor).__qualname__}",
            "own": {
                name: value
                for name, value in vars(processor).items()
                if isinstance(value, str | int | float | bool | None)
            },
            "image_processor": processor.image_processor.to_dict(),
            "image_token_id": self.reader.token_id,
        }
        said = json.dumps(facts, sort_keys=True, default=str).encode()
        return b"\n".join([super().identity(), said])

    def cut(self, draft: TextDraft, tokens: Tokens, limits: Limits) -> Truncation:
        """The pair within the limits, all of its pictures in it; else it does not fit.

        Raises:
            DataError: CP228 for a text that spells what stands for a picture.
        """
        self._check_ids(draft, tokens)
        pair = super().cut(draft, tokens, limits)
        lost = self._stand_ins(tokens.prompt) - self._stand_ins(pair.prompt)
        return replace(Truncation(*_ids(tokens)), fits=False) if lost else pair

    def frame(self, draft: TextDraft, prompt: Sequence[int]) -> Frame | None:
        """What the chat template wrote around the words, and the spans of pictures."""
        found = super().frame(draft, prompt)
        places = draft.places if isinstance(draft, SeeingDraft) else ()
        if not places:
            return found
        # without a frame, ``truncate`` keeps BOS itself
        own = found or Frame(head=int(self.bos is not None))
        return replace(own, whole=self._spans(places, prompt))

    def look(self, pair: TokenPair) -> TokenPair:
        """The same pair with its pictures decoded.

        Args:
            pair: prepared by an encoder like this one.

        Raises:
            DataError: CP2xx for a picture that cannot be read any more, or is another.
            ModelError: CP331 for a processor that makes more or fewer tokens of a picture than of
                its size.
        """
        if pair.seen:
            return pair
        seen = tuple(self.reader.look(picture) for picture in pair.pictures)
        # none too, where a set was prepared by something that forgot its pictures
        wanted, given = self._stand_ins(pair.prompt), sum(one.tokens for one in seen)
        if wanted != given:
            raise ModelError(
                "CP331",
                f"row {pair.row}: the prompt has {wanted} tokens for its {len(seen)} pictures, and "
                f"{type(self.reader.processor).__name__} makes {given} of them. Was the data set "
                "prepared with another processor?",
            )
        return replace(pair, seen=seen)

    def spans(self, pair: TokenPair) -> list[Span]:
        """Where in a pair's prompt its pictures stand; nothing is decoded."""
        return self._spans([*map(self.reader.in_words, pair.pictures)], pair.prompt)

    def _stand_ins(self, ids: Sequence[int]) -> int:
        return list(ids).count(self.reader.token_id)

    def _in_template_s_way(self, row: PreferenceRow) -> PreferenceRow:
        if not self._in_parts:
            return row
        return replace(
            row,
            **{part: _in_parts(getattr(row, part)) for part in PARTS},
        )

    def _check_marks(self, row: PreferenceRow, texts: Rendered, pictures: int) -> None:
        for field, text in zip(PARTS, _texts(texts), strict=True):
            marks = text.count(self.reader.mark)
            if marks == pictures:
                continue
            what = "the prompt" if field == "prompt" else f"the prompt with {field}"
            raise DataError(
                "CP228",
                f"row {row.row}: the row has {pictures} pictures, and the chat template writes "
                f"{marks} marks ({self.reader.mark}) in {what}. A text must not hold the mark "
                "itself; a template must write it once for each picture.",
            )

    def _check_ids(self, draft: TextDraft, tokens: Tokens) -> None:
        places = draft.places if isinstance(draft, SeeingDraft) else ()
        wanted = sum(self._stand_ins(one) for one in encode(places, self.tokenizer))
        for field in PARTS:
            given, theirs = self._stand_ins(getattr(tokens, field)), wanted * (field == "prompt")
            if given != theirs:
                token = self.tokenizer.convert_ids_to_tokens(self.reader.token_id)
                raise DataError(
                    "CP228",
                    f"row {draft.row.row}, field {field}: has {given} times the token {token}, "
                    f"which stands for pictures, and {theirs} are theirs. Remove it from the text.",
                )

    def _compare(self, prompt: str, row: PreferenceRow) -> None:
        """Once: what the processor makes of a whole row, of pictures as large as the row's."""
        if self._compared:
            return
        self._compared = True
        shown = row.pictures
        ours = _filled(prompt, self.reader.mark, [*map(self.reader.in_words, shown)])
        if self.reader.whole_text(prompt, shown) != ours:
            raise ModelError(
                "CP306",
                f"{type(self.reader.processor).__name__} makes something else of {len(shown)} "
                f"pictures in one prompt than of each alone (row {row.row}); it is not known what "
                "stands for which.",
            )

    def _spans(self, places: Sequence[str], prompt: Sequence[int]) -> list[Span]:
        """Where in a prompt each picture stands, with what is written around it."""
        at = [place for place, one in enumerate(prompt) if one == self.reader.token_id]
        spans, done = [], 0
        for ids in encode(places, self.tokenizer):
            own = [place for place, one in enumerate(ids) if one == self.reader.token_id]
            start, end = at[done], at[done + len(own) - 1] + 1
            done += len(own)
            for before in reversed(ids[: own[0]]):
                if start == 0 or prompt[start - 1] != before:
                    break
                start -= 1
            for after in ids[own[-1] + 1 :]:
                if end == len(prompt) or prompt[end] != after:
                    break
                end += 1
            spans.append((start, end))
        return spans


def _ids(tokens: Tokens) -> tuple[list[int], list[int], list[int]]:
    return tokens.prompt, tokens.chosen, tokens.rejected


def _texts(rendered: Rendered) -> tuple[str, str, str]:
    return rendered.prompt, rendered.chosen, rendered.rejected


def _filled(text: str, mark: str, places: Sequence[str]) -> str:
    """A text with what stands for a picture in the place of each mark."""
    first, *rest = text.split(mark)
    return first + "".join(f"{place}{after}" for place, after in zip(places, rest, strict=True))


def _wants_parts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a template goes over the parts of a turn and makes nothing of a plain text."""

    def shows(content: Any) -> bool:
        try:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False
            )
        except Exception:  # a template is a stranger's program: it may refuse what is no row
            return False
        return str(text).count(PROBE) == 1 and "'type'" not in str(text)

    if not tokenizer.chat_template or shows(PROBE):
        return False
    return shows([{"type": "text", "text": PROBE}])


def _in_parts(messages: Any) -> Any:
    if isinstance(messages, str):
        return messages
    return [
        {**turn, "content": [{"type": "text", "text": turn["content"]}]}
        if isinstance(turn.get("content"), str)
        else turn
        for turn in messages
    ]
