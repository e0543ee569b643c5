"""Rows about pictures become ids: what stands for a picture, and what keeps it whole."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from counterpoint import CPOConfig, DataError, ModelError
from counterpoint.data import looked_at
from counterpoint.data.options import Limits
from counterpoint.data.vision import VisionEncoder
from counterpoint.errors import SetupError
from counterpoint.forward.sights import SIGHTS
from counterpoint.invocation import EXTRAS, installing
from counterpoint.models.loading import load_tokenizer
from counterpoint.picture import Picture
from counterpoint.preference_row import PreferenceRow
from counterpoint.records import TokenPair
from tests.vision_on_the_spot import (
    KINDS,
    ROWS,
    TEMPLATE,
    preference,
    seen_pairs,
    seer,
    vision_encoder,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation",  # of GLM's processors, where a test calls one itself
)

LIMITS = Limits(max_length=400)


@pytest.fixture(scope="module")
def llava() -> VisionEncoder:
    return vision_encoder(seer("llava"))


def cut(encoder: VisionEncoder, row: PreferenceRow, limits: Limits = LIMITS) -> Any:
    draft = encoder.draft(row)
    return encoder.cut(draft, encoder.tokens([draft])[0], limits)


@pytest.mark.parametrize("kind", KINDS)
def test_each_picture_has_the_tokens_that_the_processor_gives_its_size(kind: str) -> None:
    made = seer(kind)
    encoder = vision_encoder(made)
    asked: list[Any] = []
    process = encoder.reader._process

    def counted(text: str, images: Any, first: Any) -> Any:
        asked.append(len(images))
        return process(text, images, first)

    encoder.reader._process = counted  # type: ignore[method-assign]
    rows = [preference(*ROWS[number], row=number) for number in (0, 2, 4, 0)]
    drafts = [encoder.draft(row) for row in rows]
    # three sizes, and once the whole of the first row with pictures
    assert sorted(asked) == [1, 1, 1, 1]
    for draft, tokens in zip(drafts, encoder.tokens(drafts), strict=True):
        text = encoder.tokenizer.apply_chat_template(
            draft.row.prompt, tokenize=False, add_generation_prompt=True
        )
        shown = [picture.load() for picture in draft.row.pictures]
        whole = made[1](text=[text], images=[shown], return_tensors="pt")
        assert whole["input_ids"][0].tolist() == tokens.prompt
        pair = TokenPair(
            tokens.prompt, tokens.chosen, tokens.rejected, 0, pictures=draft.row.pictures
        )
        seen = encoder.look(pair).seen
        assert sum(one.tokens for one in seen) == tokens.prompt.count(encoder.reader.token_id)
        for one in seen:
            assert one.patches == _patches(kind, one.inputs)


def _patches(kind: str, inputs: Any) -> int:
    if "image_grid_thw" in inputs:
        return int(inputs["image_grid_thw"].prod())
    if inputs["pixel_values"].dim() == 3:  # patches already, filled up to as many for each
        return inputs["pixel_values"].shape[1]
    return int(inputs["pixel_values"][..., 0, ::7, ::7].numel())


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_of_each_picture_are_found_again_in_its_prompt(kind: str) -> None:
    encoder = vision_encoder(seer(kind))
    draft = encoder.draft(preference((0, 1, 2), "Read.", "a", "b", row=3))
    (tokens,) = encoder.tokens([draft])
    pictures = draft.row.pictures
    pair = TokenPair(tokens.prompt, tokens.chosen, tokens.rejected, 3, pictures=pictures)
    spans = encoder.spans(pair)
    assert len(spans) == 3
    texts = [encoder.tokenizer.decode(tokens.prompt[start:end]) for start, end in spans]
    words = [encoder.reader.in_words(one) for one in pictures]
    # what one writes behind itself and the next one before stands there once, and is the next one's
    assert [text.strip() for text in texts] == [word.strip() for word in words]
    assert [*spans] == sorted(spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
def test_a_text_that_spells_a_picture_is_refused(llava: VisionEncoder, field: str) -> None:
    texts = {"question": "What is it?", "chosen": "a", "rejected": "b"}
    texts["question" if field == "prompt" else field] += " <image>"
    with pytest.raises(DataError, match=r"^CP228 row 7: the row has 1 pictures, .* 2 marks"):
        cut(llava, preference((0,), **texts, row=7))
    with pytest.raises(DataError, match=r"^CP228 row 7: the row has 0 pictures, .* 1 marks"):
        cut(llava, preference((), **texts, row=7))


def test_a_token_that_stands_for_a_picture_is_no_word_of_a_text() -> None:
    encoder = vision_encoder(seer("gemma3"))  # its mark is another one
    said = r"^CP228 row 7, field chosen: has 1 times the token <image_soft_token>, .* and 0 are"
    with pytest.raises(DataError, match=said):
        cut(encoder, preference((0,), "What?", "a <image_soft_token>", "b", row=7))


@pytest.mark.parametrize("kind", ["llava", "gemma4", "kimi_k25", "mllama"])
@pytest.mark.parametrize("policy", ["prompt_start", "prompt_end"])
def test_a_prompt_is_cut_beside_its_pictures_and_never_into_them(kind: str, policy: str) -> None:
    encoder = vision_encoder(seer(kind))
    row = preference((0, 1), "word " * 40, "yes", "no")
    whole = cut(encoder, row)
    tokens, token = len(whole.prompt), encoder.reader.token_id
    theirs = list(whole.prompt).count(token)
    assert theirs >= 2
    found = 0
    for most in range(20, tokens + 8, 3):
        pair = cut(encoder, row, Limits(max_length=most, truncation=policy))
        if pair.fits:
            found += 1
            assert list(pair.prompt).count(token) == theirs
            assert len(pair.prompt) + len(pair.chosen) <= most
        else:
            assert pair.prompt == whole.prompt
    # words stand behind the pictures: a beginning that is cut would take them away
    assert found > 3 if policy == "prompt_end" else found >= 1


def test_a_span_has_what_is_written_around_a_picture() -> None:
    encoder = vision_encoder(seer("idefics3"))
    draft = encoder.draft(preference((0, 2), "Read.", "a", "b"))
    (tokens,) = encoder.tokens([draft])
    frame = encoder.frame(draft, tokens.prompt)
    assert frame is not None
    spans = [encoder.tokenizer.decode(tokens.prompt[start:end]) for start, end in frame.whole]
    assert tuple(spans) == draft.places
    assert all(span.startswith("<fake_token_around_image>") for span in spans)


def test_what_changes_ids_changes_the_identity() -> None:
    identities = set()
    for size in (28, 35):
        model, processor = seer("llava")
        processor.image_processor.crop_size = {"height": size, "width": size}
        identities.add(vision_encoder((model, processor)).identity())
    assert len(identities) == 2
    assert vision_encoder(seer("llava")).identity() in identities


def test_a_template_that_goes_over_parts_is_given_parts() -> None:
    model, processor = seer("llava")
    over = TEMPLATE.replace("{% if m['content'] is string %}{{ m['content'] }}{% else %}", "", 1)
    processor.chat_template = over.replace("{% endfor %}{% endif %}<", "{% endfor %}<").replace(
        "MARK", "<image>"
    )
    plain = vision_encoder(seer("llava"))
    for number in (0, 1):
        row = preference(*ROWS[number], row=number)
        assert cut(vision_encoder((model, processor)), row) == cut(plain, row)


def test_a_picture_that_the_processor_refuses_is_the_row_s_fault() -> None:
    encoder = vision_encoder(seer("qwen2_5_vl"))
    out = io.BytesIO()
    Image.new("RGB", (2, 800)).save(out, format="PNG")
    thin = Picture.of(out.getvalue(), 3, "images[0]")
    row = replace(preference((0,), "What?", "a", "b", row=3), pictures=(thin,))
    with pytest.raises(DataError, match=r"^CP230 row 3, field images\[0\]: Qwen2_5_VLProcessor .*"):
        encoder.draft(row)


def test_a_processor_of_another_model_is_found_out() -> None:
    pairs = seen_pairs(seer("llava"), ROWS[:1])
    model, processor = seer("llava")
    processor.image_processor.crop_size = {"height": 35, "width": 35}
    with pytest.raises(ModelError, match=r"^CP331 row 0: the prompt has 16 tokens .* makes 25 of"):
        vision_encoder((model, processor)).look(replace(pairs[0], seen=()))
    with pytest.raises(ModelError, match=r"^CP331 row 0: the prompt has 16 tokens .* 0 pictures"):
        vision_encoder(seer("llava")).look(replace(pairs[0], seen=(), pictures=()))
    processor.image_token = None
    with pytest.raises(ModelError, match=r"^CP306 LlavaProcessor has no image_token"):
        VisionEncoder(processor, model.config, SIGHTS["llava"])


def test_the_same_picture_is_decoded_once_while_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made = seer("llava")
    encoder = vision_encoder(made)
    (pair,) = seen_pairs(made, ROWS[:1])
    fresh = replace(pair, seen=())
    assert encoder.look(fresh).seen[0] is encoder.look(replace(fresh, row=9)).seen[0]
    monkeypatch.setattr("counterpoint.data.looked_at.MOST_KEPT", 0)
    (other,) = seen_pairs(made, ROWS[3:4])
    first = encoder.look(fresh).seen[0]
    encoder.look(replace(other, seen=()))
    assert encoder.look(fresh).seen[0] is not first


def test_a_picture_that_was_looked_at_before_is_decoded_when_its_pixels_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(looked_at, "MOST_KEPT", 0)
    encoder = vision_encoder(seer("qwen2_5_vl"))
    one, other = preference((0, 1), "what", "a", "b").pictures
    loads: list[str] = []
    own = Picture.load
    monkeypatch.setattr(Picture, "load", lambda self: loads.append(self.digest) or own(self))
    first = encoder.reader.look(one)
    encoder.reader.look(other)
    again = encoder.reader.look(one)
    assert loads == [one.digest, other.digest]
    assert (again.tokens, again.patches, again.digest) == (first.tokens, first.patches, one.digest)
    assert [*again.inputs] == [*first.inputs]
    assert len(again.inputs) == len(first.inputs)
    assert torch.equal(again.inputs["image_grid_thw"], first.inputs["image_grid_thw"])
    assert len(loads) == 2
    sent = pickle.loads(pickle.dumps(again))  # to another process: it is decoded here
    assert len(loads) == 3
    assert isinstance(sent.inputs, dict)
    for name, tensor in first.inputs.items():
        assert torch.equal(sent.inputs[name], tensor)
        assert torch.equal(again.inputs[name], tensor)
    assert len(loads) == 3
    there = pickle.loads(pickle.dumps(encoder.reader))  # as a loader's worker gets it
    assert torch.equal(there.look(one).inputs["pixel_values"], first.inputs["pixel_values"])


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "internvl"])
def test_a_processor_that_needs_torchvision_says_what_to_install(kind: str, tmp_path: Path) -> None:
    """As it lies beside a published model; the tests' own go without video, and so without it."""
    model, processor = seer(kind)
    model.config.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    pixels = "Qwen2VLImageProcessor" if kind == "qwen2_5_vl" else "GotOcr2ImageProcessor"
    named = {"image_processor_type": pixels, "processor_class": type(processor).__name__}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(named))
    with pytest.raises(SetupError) as raised:
        load_tokenizer(str(tmp_path), CPOConfig(output_dir="unused", use_cpu=True))
    assert raised.value.code == "CP502"
    assert "orchvision" in raised.value.message
    assert installing(EXTRAS["vision"]) in raised.value.message
