"""The doctor tells of pictures of which a processor leaves little, or makes much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from counterpoint.config import CPOConfig
from counterpoint.data.options import PrepareOptions
from counterpoint.doctor.of_data import of_data
from counterpoint.doctor.survey import survey
from tests.pictures_on_the_spot import drawn, packed
from tests.vision_on_the_spot import seer, vision_encoder


def rows_of(*sizes: tuple[int, int] | None) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"What is it, {number}?"}],
                "chosen": [{"role": "assistant", "content": "A small cat."}],
                "rejected": [{"role": "assistant", "content": "It is a dog, I think."}],
                "images": []
                if size is None
                else [{"bytes": packed(drawn(*size, red=number)), "path": None}],
            }
            for number, size in enumerate(sizes)
        ]
    )


def told(kind: str, rows: Dataset, folder: Path) -> Any:
    encoder = vision_encoder(seer(kind))
    found = survey(rows, encoder, PrepareOptions(max_length=400), name="train")
    args = CPOConfig(output_dir=str(folder), use_cpu=True)
    return {finding.code: finding for finding in of_data(found, args)}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_what_becomes_of_a_picture_is_compared_with_what_it_is(tmp_path: Path) -> None:
    # the tower of this model looks at 28 x 28 pixels, whatever a picture has
    rows = rows_of((28, 28), (300, 300), (6, 6), None, (110, 110), (8, 8))
    found = told("llava", rows, tmp_path)["CW234"]
    assert list(found.rows) == [1, 2]
    assert found.seen == (
        "train: 2 of 6 rows (33.3%). They keep a quarter of each side, or less in 1, are blown up "
        "to four times each side, or more in 1."
    )


def test_a_processor_that_follows_a_picture_s_size_is_left_alone(tmp_path: Path) -> None:
    assert "CW234" not in told("paddleocr_vl", rows_of((84, 56), (56, 56), None), tmp_path)


def test_rows_without_pictures_are_none_of_its_business(tmp_path: Path) -> None:
    assert "CW234" not in told("llava", rows_of(None, None), tmp_path)
