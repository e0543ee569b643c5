"""Options of earlier releases are taken or answered, alike in Python and in the command."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import pickle
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser

from counterpoint.config import CPOConfig
from counterpoint.errors import ConfigError
from counterpoint.old_options import OLD_NAMES, TAKEN
from counterpoint.options.settings import read_values

RENAMED: list[tuple[str, Any, str, Any]] = [
    ("evaluation_strategy", "steps", "eval_strategy", "steps"),
    ("warmup_ratio", 0.1, "warmup_steps", 0.1),
    ("warmup_ratio", 0.0, "warmup_steps", 0),
    ("no_cuda", True, "use_cpu", True),
    ("per_gpu_train_batch_size", 3, "per_device_train_batch_size", 3),
    ("per_gpu_eval_batch_size", 3, "per_device_eval_batch_size", 3),
    ("push_to_hub_model_id", "a/b", "hub_model_id", "a/b"),
    ("adafactor", True, "optim", "adafactor"),
    ("max_target_length", 64, "max_completion_length", 64),
]

LEFT_OUT = ["group_by_length", "save_safetensors", "label_pad_token_id", "use_mps_device"]
LEFT_OUT += ["fp16_backend", "padding_value", "max_prompt_length"]
HARMLESS = {"save_safetensors": True, "label_pad_token_id": -100, "fp16_backend": "auto"}
HARMLESS |= {"padding_value": 0, "max_prompt_length": None}

MEANT = {"save_safetensors": False, "group_by_length": True, "max_prompt_length": 256}
MEANT |= {"jit_mode_eval": True, "sharded_ddp": "simple"}
"""Of old options, values that ask for something that is not there any more."""


def made(**options: Any) -> CPOConfig:
    return CPOConfig(output_dir="o", **{"use_cpu": True, "eval_steps": 2, **options})


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("CW127")]


@pytest.mark.parametrize(("old", "value", "new", "expected"), RENAMED)
def test_an_option_of_an_earlier_release_is_taken_by_its_new_name_with_one_warning(
    caplog: pytest.LogCaptureFixture, old: str, value: Any, new: str, expected: Any
) -> None:
    given = {} if old == "no_cuda" else {"use_cpu": True}
    config = CPOConfig(output_dir="o", **given, eval_steps=2, **{old: value})
    assert getattr(config, new) == expected
    assert len(warned(caplog)) == 1
    assert new in warned(caplog)[0]


@pytest.mark.parametrize(("old", "value", "new", "expected"), RENAMED)
def test_the_command_takes_it_too(old: str, value: Any, new: str, expected: Any) -> None:
    assert read_values([f"--{old}={value}"])[new] == expected


@pytest.mark.parametrize("name", LEFT_OUT)
def test_an_old_option_that_asks_for_nothing_is_left_out_with_one_warning(
    caplog: pytest.LogCaptureFixture, name: str
) -> None:
    value = HARMLESS.get(name, False)
    assert made(**{name: value}).to_dict() == made().to_dict()
    assert len(warned(caplog)) == 1
    assert name not in read_values([f"--{name}={'null' if value is None else value}"])


@pytest.mark.parametrize("name", sorted(MEANT))
def test_an_old_option_that_asks_for_what_is_gone_is_refused_in_both(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^CP101 {name}={MEANT[name]!r} is no option: "):
        made(**{name: MEANT[name]})
    with pytest.raises(ConfigError, match=rf"^CP101 --{name}={MEANT[name]!r} is no option: "):
        read_values([f"--{name}={MEANT[name]}"])


def test_what_the_command_alone_has_as_an_option_a_script_may_have_from_transformers_4(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made(overwrite_output_dir=True)
    assert len(warned(caplog)) == 1
    assert read_values(["--overwrite_output_dir"]) == {"overwrite_output_dir": True}


def test_where_tensorboard_writes_is_said_as_it_is_today(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "before")
    made(logging_dir="logs")
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "logs"
    assert len(warned(caplog)) == 1


@pytest.mark.parametrize("name", sorted(OLD_NAMES))
def test_every_other_old_name_is_a_coded_error_that_a_script_can_follow(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^CP101 {name} is no option: ") as caught:
        made(**{name: 1})
    fields = {field.name for field in dataclasses.fields(CPOConfig)}
    advice = caught.value.message.split(": ", 1)[1]
    if advice.startswith("write "):
        assert advice.split()[1].split("=")[0].rstrip(".,;:") in fields


def test_what_an_old_option_is_taken_as_exists_and_the_old_one_does_not() -> None:
    fields = {field.name for field in dataclasses.fields(CPOConfig)}
    assert {one.to for one in TAKEN.values()} - {""} <= fields
    assert set(TAKEN).isdisjoint(OLD_NAMES)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("btea", "did you mean beta?"),
        ("learning_rat", "did you mean learning_rate?"),
        ("lora_r", "pass CPOTrainer(peft_config=LoraConfig(r=...))"),
        ("model_name_or_path", "pass it to CPOTrainer(model=...)"),
        ("wholly_unknown_thing", "docs/options.md lists them"),
    ],
)
def test_an_unknown_option_of_a_script_names_what_was_meant(name: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(**{name: 1})
    assert (caught.value.code, said in caught.value.message) == ("CP101", True), str(caught.value)


def test_a_ratio_of_the_whole_run_is_no_number_of_steps() -> None:
    with pytest.raises(ConfigError, match=r"^CP103 warmup_ratio=1\.0 should be a share"):
        made(warmup_ratio=1.0)


def test_two_names_with_two_values_contradict_each_other_and_with_one_do_not() -> None:
    with pytest.raises(ConfigError, match=r"^CP104 warmup_ratio=0\.1 is warmup_steps by an old"):
        made(warmup_ratio=0.1, warmup_steps=5)
    assert made(warmup_ratio=0.0, warmup_steps=5).warmup_steps == 5
    assert made(evaluation_strategy="steps", eval_strategy="steps").eval_strategy == "steps"


def test_a_flag_overrides_a_file_by_whichever_name(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("evaluation_strategy: steps\neval_steps: 3\n", encoding="utf-8")
    flags = shlex.split("--eval_strategy epoch")
    assert read_values([str(path), *flags]) == {"eval_strategy": "epoch", "eval_steps": 3}
    path.write_text("eval_strategy: steps\n", encoding="utf-8")
    flags = shlex.split("--evaluation_strategy epoch --no_group_by_length")
    assert read_values([str(path), *flags]) == {"eval_strategy": "epoch"}


@dataclass
class Extended(CPOConfig):
    """Options of a user's own beside ours."""

    mine: int = 1


class Handed(CPOConfig):
    """A constructor of a user's own."""

    def __init__(self, *, mine: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.mine = mine


@pytest.mark.parametrize("kind", [Extended, Handed])
def test_a_subclass_takes_old_names_as_well(kind: Any) -> None:
    config = kind(output_dir="o", use_cpu=True, mine=3, warmup_ratio=0.25)
    assert (config.mine, config.warmup_steps) == (3, 0.25)


def test_a_config_is_copied_pickled_replaced_and_parsed_as_before() -> None:
    config = made(warmup_ratio=0.1, beta=0.3)
    for again in (
        copy.copy(config),
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
        dataclasses.replace(config),
        CPOConfig(**{k: v for k, v in vars(config).items() if k in options_of(config)}),
    ):
        assert again.to_dict() == config.to_dict()
    words = ["--output_dir", "o", "--use_cpu", "--beta", "0.3"]
    (parsed,) = HfArgumentParser(CPOConfig).parse_args_into_dataclasses(words)
    (read,) = HfArgumentParser(CPOConfig).parse_dict(
        {"output_dir": "o", "use_cpu": True, "beta": 0.3}
    )
    assert (parsed.beta, read.beta) == (0.3, 0.3)


def options_of(config: CPOConfig) -> set[str]:
    return {field.name for field in dataclasses.fields(config) if field.init}


def test_the_signature_that_editors_show_is_that_of_the_options() -> None:
    names = list(inspect.signature(CPOConfig).parameters)
    assert names == [field.name for field in dataclasses.fields(CPOConfig) if field.init]


def test_a_first_argument_by_position_is_the_folder() -> None:
    assert CPOConfig("here", use_cpu=True).output_dir == "here"
