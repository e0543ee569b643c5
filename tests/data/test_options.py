"""Every option that says how a row is read is one in all places that read rows."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from counterpoint.config import CPOConfig
from counterpoint.data.encoder import TextEncoder
from counterpoint.data.options import OF_A_ROW, OF_THE_LOSS, OF_THE_MACHINE, Limits, PrepareOptions
from counterpoint.objectives import LOSSES
from counterpoint.options.evaluate_options import OF_TRAIN, read_evaluation
from counterpoint.options.settings import OF_THE_DATA
from counterpoint.trainer.feed import Feed

OTHER: dict[str, Any] = {
    "max_length": 77,
    "max_completion_length": 9,
    "truncation": "prompt_end",
    "train_turns": "last",
    "invalid_rows": "drop",
    "num_proc": 2,
    "source_lang": "zho_Hans",
    "target_lang": "eng_Latn",
    "image_folder": "pictures",
    "allow_remote_images": True,
    "max_image_pixels": 100,
    "is_encoder_decoder": True,
}
"""A value of each field that is not its default. A new field needs one."""

EVERY = {**OF_A_ROW, **OF_THE_MACHINE}


def config(**options: Any) -> CPOConfig:
    return CPOConfig(output_dir="unused", report_to=[], use_cpu=True, **options)


def as_in_a_run(folder: Path, **options: Any) -> Path:
    """A folder of a run with these options."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"options": options}))
    return folder


def test_every_field_is_placed_once() -> None:
    names = {field.name for field in fields(PrepareOptions)}
    assert set(EVERY) == set(OTHER) == names - set(OF_THE_LOSS)
    assert set(OF_THE_LOSS) <= names
    assert not set(OF_A_ROW) & set(OF_THE_MACHINE)
    # what becomes of a row is what its limits say, and what is done with one that is no pair
    # and which languages it is in, where it does not say so itself
    # and which pictures may be opened
    more = {"invalid_rows", "source_lang", "target_lang"}
    more |= {"image_folder", "allow_remote_images", "max_image_pixels"}
    more |= {"is_encoder_decoder"}
    assert {field.name for field in fields(Limits)} | more == {*OF_A_ROW, *OF_THE_LOSS}


def test_what_follows_from_the_loss_is_no_option_and_reaches_whatever_reads_rows(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    for loss_type, row in LOSSES.items():
        args = config(loss_type=loss_type)
        for field, name in OF_THE_LOSS.items():
            expected = getattr(row, name)
            assert getattr(PrepareOptions.of(args), field) == expected
            assert getattr(Feed(args, TextEncoder(chatml_tokenizer)).options, field) == expected


@pytest.mark.parametrize("field", OTHER)
def test_a_run_s_option_reaches_whatever_reads_its_rows(
    field: str, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    args, option = config(**{EVERY[field]: OTHER[field]}), EVERY[field]
    assert getattr(PrepareOptions.of(args), field) == OTHER[field]
    assert getattr(Feed(args, TextEncoder(chatml_tokenizer)).options, field) == OTHER[field]
    assert getattr(PrepareOptions.of(config()), field) != OTHER[field]
    assert option in OF_THE_DATA  # of a run whose other options contradict each other
    assert option in OF_TRAIN  # and may be given to counterpoint evaluate


@pytest.mark.parametrize("field", OF_A_ROW)
def test_evaluate_inherits_it_from_the_run_unless_it_is_given(field: str, tmp_path: Path) -> None:
    option = OF_A_ROW[field]
    run = str(as_in_a_run(tmp_path / "run", **{option: OTHER[field]}))

    def read(*words: str) -> Any:
        request = read_evaluation(run, ["--use_cpu=true", *words], str(tmp_path / "none"))
        return getattr(PrepareOptions.of(request.config), field)

    assert read() == OTHER[field]
    # of another objective it is still the run's
    assert read("--loss_type=hinge") == OTHER[field]
    default = getattr(config(), option)
    assert read(f"--{option}={'null' if default is None else default}") == default


def test_a_null_of_the_run_is_inherited_as_null(tmp_path: Path) -> None:
    run = as_in_a_run(tmp_path / "run", max_length=None, max_completion_length=None)
    request = read_evaluation(str(run), ["--use_cpu=true"], str(tmp_path / "none"))
    # 512, which TRL takes for None; the default of an evaluation alone would be 1024
    assert PrepareOptions.of(request.config).max_length == 512


def test_what_says_it_is_read_without_a_library() -> None:
    code = (
        "import sys, counterpoint.data.options, counterpoint.options.evaluate_options\n"
        "print({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"
