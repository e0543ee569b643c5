"""The face between rows and token ids: another encoder is prepared, cached and cut like text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import IterableDataset
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from counterpoint.data import cache
from counterpoint.data.encoder import TextDraft, TextEncoder, encoder_for
from counterpoint.data.formats import to_preference_row, to_prompt
from counterpoint.data.options import Limits, PrepareOptions
from counterpoint.data.prepare import Prepared, iter_pairs, prepare
from counterpoint.data.row_tokens import tokens_of_row
from counterpoint.data.sources import dataset_from_rows
from counterpoint.data.truncate import Frame, Span
from counterpoint.errors import DataError

PICTURE = "[1 2 3 4 5 6]"
ROW = {
    "prompt": f"What is the capital of {PICTURE} France? Please {PICTURE} help me with that.",
    "chosen": " Paris.",
    "rejected": " I am sorry, but I cannot help with that.",
}


class PictureEncoder(TextEncoder):
    """Keeps what stands between brackets whole, as the tokens of an image would be."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str = "pictures") -> None:
        super().__init__(tokenizer)
        self.name = name

    def identity(self) -> bytes:
        return self.name.encode() + super().identity()

    def frame(self, draft: TextDraft, prompt: Sequence[int]) -> Frame:
        found = super().frame(draft, prompt) or Frame(head=int(self.bos is not None))
        return replace(found, whole=self.brackets(prompt))

    def brackets(self, prompt: Sequence[int]) -> list[Span]:
        texts = [self.tokenizer.decode([number]) for number in prompt]
        begins = [place for place, text in enumerate(texts) if "[" in text]
        ends = [place for place, text in enumerate(texts) if "]" in text]
        return [(begin, end + 1) for begin, end in zip(begins, ends, strict=True)]


def ids(prepared: Prepared) -> list[tuple[list[int], list[int], list[int]]]:
    pairs = iter_pairs(prepared)
    return [(list(pair.prompt), list(pair.chosen), list(pair.rejected)) for pair in pairs]


def test_a_tokenizer_is_an_encoder_of_text_and_an_encoder_is_taken_as_it_is(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder = encoder_for(chatml_tokenizer)
    assert isinstance(encoder, TextEncoder)
    assert encoder_for(encoder) is encoder
    assert ids(prepare([ROW], encoder)) == ids(prepare([ROW], chatml_tokenizer))


def test_a_prompt_alone_has_the_ids_that_it_has_in_training(
    llama_tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder = TextEncoder(llama_tokenizer)
    draft = encoder.draft(to_preference_row(ROW, 0))
    [tokens] = encoder.tokens([draft])
    assert encoder.prompt_ids(to_prompt({"prompt": ROW["prompt"]}, 0)) == tokens.prompt


@pytest.mark.parametrize("policy", ["prompt_start", "prompt_end"])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_part_that_must_not_be_cut_is_trained_whole_or_not_at_all(
    gpt2_tokenizer: PreTrainedTokenizerFast, policy: str, streamed: bool
) -> None:
    encoder = PictureEncoder(gpt2_tokenizer)
    whole = ids(prepare([ROW], encoder, PrepareOptions(max_length=999)))[0]
    pictures = encoder.brackets(whole[0])
    assert len(pictures) == 2
    completion, seen = max(len(whole[1]), len(whole[2])), set()
    for size in range(2, len(whole[0])):
        options = PrepareOptions(max_length=size + completion, truncation=policy)
        source = IterableDataset.from_generator(lambda: iter([ROW])) if streamed else [ROW]
        [(prompt, *_)] = ids(prepare(source, encoder, options))
        assert len(prompt) <= max(size, (size + completion) // 4)
        text = gpt2_tokenizer.decode(prompt)
        assert text.count("[") == text.count("]") == text.count(PICTURE)
        seen.add(text.count(PICTURE))
    assert seen == {0, 1, 2}


def test_a_prompt_of_nothing_but_a_part_that_does_not_fit_is_refused(
    gpt2_tokenizer: PreTrainedTokenizerFast,
) -> None:
    options = PrepareOptions(max_length=6, truncation="prompt_start")
    refused = r"CP204 .*row 0: the prompt's \d+ tokens hold a part that is not to be cut, and 6 tok"
    with pytest.raises(DataError, match=refused):
        prepare([{**ROW, "prompt": PICTURE}], PictureEncoder(gpt2_tokenizer), options)
    assert prepare([{**ROW, "prompt": PICTURE}], gpt2_tokenizer, options).counts.kept == 1


def test_what_is_cached_is_found_again_by_the_same_encoder_alone(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    table = dataset_from_rows([ROW])
    encoders = [PictureEncoder(chatml_tokenizer, name) for name in ("one", "two", "one")]
    encoders += [TextEncoder(chatml_tokenizer)]
    first, other, again, text = (
        cache.digest(table, table.column_names, encoder, Limits()) for encoder in encoders
    )
    assert first == again
    assert len({first, other, text}) == 3


def test_the_key_of_text_is_that_of_the_releases_before_there_were_encoders(
    chatml_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[bytes] = []

    class Watched:
        digest_size = 20

        def update(self, content: bytes) -> None:
            fed.append(bytes(content))

        def hexdigest(self) -> str:
            return "0" * 40

    monkeypatch.setattr(hashlib, "blake2b", lambda **_: Watched())
    table = dataset_from_rows([ROW])
    limits = Limits(max_length=77, truncation="drop")
    cache.digest(table, table.column_names, TextEncoder(chatml_tokenizer), limits)
    backend = chatml_tokenizer.backend_tokenizer
    head = {
        "class": f"{type(chatml_tokenizer).__module__}.{type(chatml_tokenizer).__qualname__}",
        "template": chatml_tokenizer.chat_template,
        "special": {
            "bos": chatml_tokenizer.bos_token_id,
            "eos": chatml_tokenizer.eos_token_id,
        },
        "map": {
            key: str(value)
            for key, value in chatml_tokenizer.special_tokens_map.items()
            if key != "pad_token"
        },
        "split": chatml_tokenizer.split_special_tokens,
        "added": [
            [key, token.__getstate__()]
            for key, token in sorted(backend.get_added_tokens_decoder().items())
        ],
    }
    names = ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder")
    parts = [getattr(backend, name) for name in names]
    states = [b"null" if part is None else bytes(part.__getstate__()) for part in parts]
    assert json.loads(fed[0]) == [
        13,
        cache._versions(),
        77,
        None,
        "drop",
        "assistant",
        False,
    ]
    assert fed[1] == b"\n".join([json.dumps(head, sort_keys=True).encode(), *states])
    assert json.loads(fed[2]) == [str(table.select_columns(sorted(ROW)).features), 1]
    assert len(fed) == 4


def test_tokens_of_a_row_are_shown_as_another_encoder_cuts_them(
    gpt2_tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder = PictureEncoder(gpt2_tokenizer)
    whole = ids(prepare([ROW], encoder, PrepareOptions(max_length=999)))[0]
    begin, end = encoder.brackets(whole[0])[1]
    room = len(whole[0]) - begin - 1 + max(len(whole[1]), len(whole[2]))
    limits = Limits(max_length=room, truncation="prompt_start")
    shown = tokens_of_row(ROW, 0, encoder, limits)
    assert [piece.id for piece in shown.prompt] == whole[0]
    left = [place for place, piece in enumerate(shown.prompt) if not piece.cut]
    assert left == [0, *range(end, len(whole[0]))]  # BOS stays


def test_an_encoder_is_cached_under_its_own_name(
    chatml_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNTERPOINT_CACHE", str(tmp_path))
    for encoder in (chatml_tokenizer, TextEncoder(chatml_tokenizer)):
        prepare([ROW], encoder)
        assert len([*tmp_path.glob("*.arrow")]) == 1
    prepare([ROW], PictureEncoder(chatml_tokenizer))
    assert len([*tmp_path.glob("*.arrow")]) == 2
