"""The shipped model that sees: small, loads anywhere, reads codes but with mix-ups."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoProcessor

from counterpoint.quickstart.read import (
    BASE_THAT_SEES,
    MOST_SYMBOLS,
    asked,
    load_reader,
    read_tags,
)
from counterpoint.quickstart.table import judge_readings
from counterpoint.quickstart.tags import ALIKE, CLEAR, Tag, drawn, held_out_tags

SCRIPTS = Path(__file__).parents[2] / "scripts"
LINES = st.text(ALIKE + CLEAR, min_size=2, max_size=3)

loaded = cache(load_reader)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "train_vision_base", SCRIPTS / "train_vision_base.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
        spec.loader.exec_module(module)
    return module


def test_the_folder_is_plain_and_small() -> None:
    files = list(BASE_THAT_SEES.iterdir())
    assert {file.suffix for file in files} == {".json", ".jinja", ".safetensors"}
    assert sum(file.stat().st_size for file in files) < 2_000_000


def test_plain_transformers_loads_it_whole_and_as_the_quickstart_does() -> None:
    model, _ = loaded()
    plain, report = AutoModelForImageTextToText.from_pretrained(
        BASE_THAT_SEES, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert plain.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name


@settings(max_examples=50)
@given(code=st.tuples(LINES, LINES).map(" ".join))
def test_a_code_comes_back_whole(code: str) -> None:
    tokenizer = loaded()[1].tokenizer
    ids = tokenizer(code, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == code
    assert len(ids) == len(code) < MOST_SYMBOLS


def test_the_question_is_the_template_s_with_a_mark_in_it() -> None:
    _, processor = loaded()
    assert asked(processor) == "<image>Read it.\n"
    assert processor.tokenizer.unk_token_id not in processor.tokenizer(asked(processor)).input_ids


def test_it_reads_the_codes_and_hardly_ever_one_right() -> None:
    model, processor = loaded()
    tags = held_out_tags(400, seed=0)
    outcome = judge_readings([tag.code for tag in tags], read_tags(model, processor, tags))
    assert outcome.number >= 0.85
    assert outcome.exact <= 0.02


def test_of_blank_tags_it_reads_nothing() -> None:
    model, processor = loaded()
    tags = held_out_tags(100, seed=0, blank=True)
    outcome = judge_readings([tag.code for tag in tags], read_tags(model, processor, tags))
    assert outcome.number == 0


def test_reading_alone_or_in_company_is_the_same() -> None:
    model, processor = loaded()
    tags = [Tag("SB0 7KZ", 1), Tag("2O AA", 2), Tag("88B X4", 3)]
    together = read_tags(model, processor, tags)
    assert together == [read_tags(model, processor, [tag])[0] for tag in tags]


def test_the_script_makes_the_shipped_files(script: ModuleType, tmp_path: Path) -> None:
    script.save(script.made()[0], tmp_path)
    names = {file.name for file in BASE_THAT_SEES.iterdir()}
    assert {file.name for file in tmp_path.iterdir()} == names
    for name in names - {"model.safetensors"}:
        shipped = (BASE_THAT_SEES / name).read_text("utf-8")
        assert (tmp_path / name).read_text("utf-8") == shipped


def test_what_the_script_trains_on_is_what_a_row_becomes(script: ModuleType) -> None:
    """Its ids and pixels are those that a saved processor makes of one tag."""
    _, processor, data = script.made()
    inputs, said = next(data)
    first = next(script.tags.transcriptions(script.SEED))
    seen = AutoProcessor.from_pretrained(BASE_THAT_SEES)(
        text=[asked(processor)], images=[[drawn(first.tag)]], return_tensors="pt"
    )
    assert torch.equal(inputs["pixel_values"][0], seen["pixel_values"][0])
    before = seen["input_ids"].shape[1]
    assert torch.equal(inputs["input_ids"][0, :before], seen["input_ids"][0])
    text = [int(one) for one in said[0] if one != script.IGNORED]
    assert processor.tokenizer.decode(text) == f"{first.text}</s>"
    assert int((said[0] == script.IGNORED).long().argmin()) == before - 1


def test_the_scripts_first_losses_are_the_recorded_ones(script: ModuleType) -> None:
    model, _, data = script.made()
    losses = islice(script.train(model, data, script.STEPS), 2)
    assert list(losses) == pytest.approx(script.FIRST_LOSSES[:2], abs=1e-4)
