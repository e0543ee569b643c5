"""Words of a command line become a configuration file and flags; flags override the file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from counterpoint import ConfigError
from counterpoint.old_options import OLD_NAMES, nearest
from counterpoint.options.given import as_python
from counterpoint.options.settings import parse, read_request, read_values
from counterpoint.options.table import options

READ: list[tuple[str, dict[str, Any]]] = [
    ("--per_device_train_batch_size 4", {"per_device_train_batch_size": 4}),
    ("--per-device-train-batch-size 4", {"per_device_train_batch_size": 4}),
    ("--per_device_train_batch_size=4", {"per_device_train_batch_size": 4}),
    ("--bf16", {"bf16": True}),
    ("--no_gradient_checkpointing", {"gradient_checkpointing": False}),
    ("--no-gradient-checkpointing", {"gradient_checkpointing": False}),
    ("--gradient_checkpointing false", {"gradient_checkpointing": False}),
    ("--gradient_checkpointing=false", {"gradient_checkpointing": False}),
    ("--bf16 --beta 2", {"bf16": True, "beta": 2.0}),
    ("--bf16 null", {"bf16": None}),
    ("--alpha -1e-3", {"alpha": -0.001}),
    ("--alpha=-1e-3", {"alpha": -0.001}),
    ("--run_name=a=b", {"run_name": "a=b"}),
    ("--run_name ''", {"run_name": None}),
    ("--dataset a.jsonl b.jsonl", {"dataset": ["a.jsonl", "b.jsonl"]}),
    ("--dataset a.jsonl --dataset b.jsonl", {"dataset": ["a.jsonl", "b.jsonl"]}),
    ("--beta 1 --beta 2", {"beta": 2.0}),
    ("--eval_strategy no", {"eval_strategy": "no"}),
    ("--report_to none", {"report_to": "none"}),
    ("--report_to tensorboard wandb", {"report_to": ["tensorboard", "wandb"]}),
    ("--lora_target_modules all-linear", {"lora_target_modules": ["all-linear"]}),
    ("--lora_target_modules [q_proj,v_proj]", {"lora_target_modules": ["q_proj", "v_proj"]}),
    ("--include_num_input_tokens_seen", {"include_num_input_tokens_seen": True}),
    ("--include_num_input_tokens_seen all", {"include_num_input_tokens_seen": "all"}),
    ("--model_init_kwargs '{\"a\": null}'", {"model_init_kwargs": {"a": None}}),
    ("--debug underflow_overflow", {"debug": ["underflow_overflow"]}),
]


@pytest.mark.parametrize(("line", "values"), READ)
def test_a_flag_may_be_written_in_every_usual_way(line: str, values: dict[str, Any]) -> None:
    assert read_values(shlex.split(line)) == values


@pytest.mark.parametrize("line", ["run.yaml --bf16", "--bf16 run.yaml", "--beta 1 run.yaml --bf16"])
def test_the_configuration_file_may_stand_before_or_after_flags(line: str) -> None:
    config, flags = parse(line.split())
    assert config == "run.yaml"
    assert as_python(flags["bf16"].given) is True


WRONG: list[tuple[str, str, str]] = [
    ("--bta 1", "CP101", "--bta is no option; did you mean beta?"),
    ("--loss-typ simpo", "CP101", "did you mean loss_type?"),
    ("--zzzzzzzz 1", "CP101", "counterpoint train --help lists them"),
    ("--per_device_train_batch 4", "CP101", "did you mean per_device_train_batch_size?"),
    ("--no_beta", "CP101", "--no_beta is no option"),
    ("a.yaml b.yaml", "CP101", "'b.yaml' belongs to no flag"),
    ("-b 1", "CP101", "'-b' belongs to no flag"),
    ("--", "CP101", "'--' belongs to no flag"),
    ("--beta 1 2", "CP106", "there is no file 2"),
    ("--beta", "CP103", "--beta needs a value"),
    ("--beta --bf16", "CP103", "--beta needs a value"),
    ("--dataset --bf16", "CP103", "--dataset needs a value"),
    ("--beta=", "CP103", '--beta="" should be a number'),
    ("--beta fast", "CP103", '--beta="fast" should be a number'),
    ("--no_bf16=true", "CP103", "without a value"),
    ("--bf16=maybe", "CP103", '--bf16="maybe" should be true or false or null'),
    ("--loss_type sigmoyd", "CP102", '--loss_type="sigmoyd" is not one of sigmoid, simpo, simper'),
    ("--optim adam", "CP102", "is not one of"),
    ("--model_init_kwargs {a", "CP103", "should be a JSON list or object"),
]


@pytest.mark.parametrize(("line", "code", "said"), WRONG)
def test_a_flag_that_cannot_be_read_says_what_was_meant_or_expected(
    line: str, code: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_values(shlex.split(line))
    assert (caught.value.code, said in caught.value.message) == (code, True), str(caught.value)


@pytest.mark.parametrize("name", sorted(OLD_NAMES))
def test_an_old_name_is_no_option_and_is_answered_with_what_to_write(name: str) -> None:
    assert name not in options()
    with pytest.raises(ConfigError) as caught:
        parse([f"--{name}", "1"])
    assert caught.value.message == f"--{name} is no option: {OLD_NAMES[name]}."


def test_what_an_old_name_says_to_write_exists() -> None:
    written = {
        text.removeprefix("write ").split()[0].rstrip(",;:")
        for text in OLD_NAMES.values()
        if text.startswith("write ")
    }
    assert written <= set(options())


def test_every_unknown_key_of_a_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("bta: 1\nbeta: 1\ntruncation_mode: keep_end\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^CP101 ") as caught:
        read_values([str(path)])
    assert "run.yaml line 1: bta is no option; did you mean beta?" in caught.value.message
    assert "run.yaml line 3: truncation_mode is no option: max_length limits" in (
        caught.value.message
    )


@pytest.mark.parametrize("name", sorted(options()))
def test_an_option_is_its_own_nearest(name: str) -> None:
    assert nearest(name, options()) == name


def test_flags_override_the_file_and_leave_the_rest_of_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    written = {"beta": 0.5, "dataset": ["a", "b"], "bf16": True, "max_length": 64}
    path.write_text(yaml.safe_dump(written), encoding="utf-8")
    flags = ["--beta", "2", "--dataset", "c", "--no_bf16"]
    assert read_values([str(path), *flags]) == {
        "beta": 2.0,
        "dataset": ["c"],
        "bf16": False,
        "max_length": 64,
    }


def test_what_is_not_given_keeps_the_defaults_of_cpo_config() -> None:
    request = read_request(["--model", "m", "--dataset", "d", "--output_dir", "o"])
    assert (request.config.beta, request.config.learning_rate) == (0.1, 1e-6)
    assert (request.config.max_length, request.config.output_dir) == (1024, "o")
    assert request.given == {"model": "m", "dataset": ["d"], "output_dir": "o"}


@pytest.mark.parametrize("terminal", [True, False])
def test_a_progress_bar_is_shown_where_there_is_a_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    words = ["--model", "m", "--dataset", "d", "--output_dir", "o"]
    assert read_request(words).config.disable_tqdm is not terminal
    assert read_request([*words, "--disable_tqdm"]).config.disable_tqdm is True


def test_a_secret_reaches_the_config_and_nothing_that_is_written() -> None:
    words = ["--model", "m", "--dataset", "d", "--output_dir", "o", "--hub_token", "hf_canary"]
    request = read_request(words)
    assert request.config.hub_token == "hf_canary"
    assert "hf_canary" not in str(request.given)


def test_runs_without_a_folder_get_one_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--model", "some/Model-1", "--dataset", "d", "--loss_type", "simpo"]
    first = read_request(words).config.output_dir
    (tmp_path / first).mkdir(parents=True)
    second = read_request(words).config.output_dir
    assert (first, second) == ("runs/Model-1-simpo", "runs/Model-1-simpo-2")
    assert not (tmp_path / second).exists()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--load_best_model_at_end", "requires the save and eval strategy to match"),
        ("--warmup_steps -1", "warmup_steps"),
        ("--eval_strategy steps --eval_steps 2.5", "must be an integer"),
        ("--dataloader_prefetch_factor 2", "dataloader_num_workers"),
    ],
)
def test_what_transformers_refuses_is_a_coded_error(words: str, why: str) -> None:
    with pytest.raises(ConfigError, match=r"^CP104 transformers refuses") as caught:
        read_request(f"--model m --dataset d --output_dir o {words}".split())
    assert why in caught.value.message
