"""``counterpoint evaluate --blank_pictures``: which pairs do not go by their pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint.data.blank_pictures import with_blank_pictures
from counterpoint.data.options import PrepareOptions
from counterpoint.data.pair_columns import to_pair
from counterpoint.data.prepare import prepare
from tests.cli.conftest import PAIRS, Command, write_pairs
from tests.vision_on_the_spot import encoded, seer, vision_encoder

SMALL = ("--use_cpu", "--resamples", "50", "--max_length", "200", "--blank_pictures")
ROWS = [
    {
        "prompt": [{"role": "user", "content": "Which is it?"}],
        "chosen": [{"role": "assistant", "content": f"It is {number}."}],
        "rejected": [{"role": "assistant", "content": f"{number}, I think"}],
        "images": [f"{number}.png"],
    }
    for number in range(14)
]


@pytest.fixture
def gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, rows about them, a model that sees and one that cannot."""
    monkeypatch.chdir(tmp_path)
    for number in range(len(ROWS)):
        Path(f"{number}.png").write_bytes(encoded(number))
    write_pairs(Path("rows.jsonl"), ROWS)
    model, processor = seer("llava")
    for name in ("seeing", "blind"):
        model.save_pretrained(name)
        processor.save_pretrained(name)
        with torch.no_grad():
            for weight in model.model.multi_modal_projector.parameters():
                weight.zero_()
    return tmp_path


def effect_of(command: Command, model: str, *words: str) -> tuple[dict[str, Any], list[Any]]:
    said = command("evaluate", model, "--dataset", "rows.jsonl", "--json", *SMALL, *words)
    assert said.code == 0, said.err
    content = json.loads(said.out)
    return content["after"]["sets"]["rows.jsonl"], content["findings"]


def test_a_model_that_goes_by_its_pictures_is_told_from_one_that_cannot(
    gallery: Path, command: Command
) -> None:
    found, told = effect_of(command, "seeing")
    seeing = found["pictures"]
    # one question, but about fourteen pictures: as many prompts
    assert seeing["pairs"] == found["pairs"] == found["prompts"] == len(ROWS)
    assert seeing["measures"]["accuracy"]["value"] == found["measures"]["accuracy"]["value"]
    assert seeing["measures"]["unmoved"]["value"] < 0.5
    assert min(abs(one["margin"] - one["blank"]) for one in seeing["least"]) > 0
    assert told == []
    found, told = effect_of(command, "blind")
    blind = found["pictures"]
    assert blind["measures"]["unmoved"]["value"] == 1.0
    assert blind["measures"]["kept_preference"]["value"] == 1.0
    assert [one["row"] for one in blind["least"]] == [0, 1, 2, 3, 4]
    # the blank pages are other calls of the same tower: zeros times anything are zeros
    assert all(one["margin"] == pytest.approx(one["blank"], rel=1e-5) for one in blind["least"])
    (finding,) = told
    assert finding["code"] == "CW235"
    assert "100% of 14 pairs" in finding["seen"]
    assert finding["rows"] == [0, 1, 2, 3, 4]


def test_it_is_said_in_words_and_in_both_languages(
    gallery: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("evaluate", "blind", "--dataset", "rows.jsonl", *SMALL)
    english = command(*words).out
    assert "rows.jsonl, with its pictures and with blank ones: 14 pairs that show some" in english
    assert "least moved: row, margin, margin with blank pictures" in english
    assert "CW235  pairs that do not depend on their pictures" in english
    assert max(map(len, english.splitlines())) <= 80
    monkeypatch.setenv("COUNTERPOINT_LANGUAGE", "zh")
    assert "CW235  偏好不取决于图片的样本对" in command(*words).out
    plain = command(*words[:-1])
    assert "CW235" not in plain.out
    assert "blank" not in plain.out


def test_rows_without_pictures_are_left_out_and_a_set_of_such_is_refused(
    gallery: Path, command: Command
) -> None:
    write_pairs(Path("rows.jsonl"), [{**ROWS[0], "images": []}, *ROWS[1:4]])
    found, _ = effect_of(command, "seeing")
    assert (found["pairs"], found["pictures"]["pairs"]) == (4, 3)
    write_pairs(Path("rows.jsonl"), PAIRS)
    said = command("evaluate", "seeing", "--dataset", "rows.jsonl", *SMALL)
    assert said.code == 2
    assert "CP104 blank_pictures would do nothing" in said.err


def test_a_blank_picture_has_the_size_and_the_tokens_of_its_own(gallery: Path) -> None:
    encoder = vision_encoder(seer("qwen2_5_vl"))
    from datasets import load_dataset

    raw = load_dataset("json", data_files="rows.jsonl", split="train")
    pairs = prepare(raw, encoder, PrepareOptions(max_length=200), name="rows").pairs
    blank = with_blank_pictures(pairs)
    assert blank is not None
    assert len(blank) == len(pairs)
    for record, other in zip(pairs, blank, strict=True):
        one, page = encoder.look(to_pair(record)), encoder.look(to_pair(other))
        assert list(one.prompt) == list(page.prompt)
        assert one.row == page.row
        assert [(p.width, p.height) for p in one.pictures] == [
            (p.width, p.height) for p in page.pictures
        ]
        assert page.seen[0].tokens == one.seen[0].tokens
        assert page.seen[0].inputs["pixel_values"].unique().numel() <= 3  # a value a channel
