"""Every option that is the command's own changes what it is for, or is refused.

Each is tried with and without, and the two must differ in what is loaded or said. Not here: the
options of ``CPOConfig`` (``tests/house/test_options.py``) and of ``counterpoint pairs``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from counterpoint.cli.parts import RunParts, call, load_parts, merge_model_options
from counterpoint.cli.plan import PlanOptions
from counterpoint.cli.tokens import TokensOptions
from counterpoint.errors import ConfigError
from counterpoint.options.declared import declared
from counterpoint.options.run_options import RunOptions
from counterpoint.options.settings import read_request
from tests.cli.conftest import PAIRS, Command, write_pairs
from tests.models_on_the_spot import make_model

Look = Callable[[list[str]], Any]

GIVEN = {"model": "model", "dataset": "pairs.jsonl", "output_dir": "out", "use_cpu": "true"}
LORA = ["--lora_r", "4"]


def parts(words: list[str]) -> RunParts:
    """What a command line loads; a flag given twice counts as last given."""
    flags = {f"--{name}": value for name, value in GIVEN.items() if f"--{name}" not in words}
    if "--datasets" in words:  # in its place
        del flags["--dataset"]
    return load_parts(read_request([*(w for flag in flags.items() for w in flag), *words]), call)


def weights(words: list[str]) -> float:
    return float(sum(p.detach().double().sum() for p in parts(words).model.parameters()))


def precision(words: list[str]) -> Any:
    return parts(words).model.dtype


def attention(words: list[str]) -> str:
    return str(parts(words).model.config._attn_implementation)


def revision(words: list[str]) -> Any:
    """As the libraries are told: no hub can be reached from here."""
    request = read_request(["--model", "owner/name", "--dataset", "pairs.jsonl", *words])
    merge_model_options(request.run, request.config)
    return request.config.model_init_kwargs


def vocabulary(words: list[str]) -> int:
    return len(parts(words).tokenizer)


def rows_of_model(words: list[str]) -> int:
    return int(parts(words).model.get_input_embeddings().weight.shape[0])


def template(words: list[str]) -> Any:
    return parts(words).tokenizer.chat_template


def train_rows(words: list[str]) -> Any:
    return list(parts(words).train_rows)


def kind_of_rows(words: list[str]) -> Any:
    return type(parts(words).train_rows)


def eval_rows(words: list[str]) -> Any:
    return list(parts(words).eval_rows or ())


def adapter(words: list[str]) -> Any:
    found = parts(words).adapter
    return None if found is None else found.to_dict()


def refusal(words: list[str]) -> Any:
    try:
        parts(words)
    except ConfigError as error:  # a model that sees nothing has nothing to freeze
        return str(error)
    return None


@dataclass(frozen=True)
class Row:
    """An option as words, and what both sides have beside it."""

    look: Look
    words: list[str]
    beside: tuple[str, ...] = ()


TRIED: dict[str, Row] = {
    "model": Row(weights, ["--model", "other"]),
    "revision": Row(revision, ["--revision", "v2"]),
    "tokenizer": Row(vocabulary, ["--tokenizer", "small"]),
    "resize_vocab": Row(rows_of_model, ["--resize_vocab"], ("--tokenizer", "small")),
    "chat_template": Row(template, ["--chat_template", "template.jinja"]),
    "from_scratch": Row(weights, ["--from_scratch"]),
    "dtype": Row(precision, ["--dtype", "bfloat16"]),
    "attn_implementation": Row(attention, ["--attn_implementation", "eager"]),
    "dataset": Row(train_rows, ["--dataset", "fewer.jsonl"]),
    "dataset_split": Row(train_rows, ["--dataset_split", "test"], ("--dataset", "splits")),
    "datasets": Row(train_rows, ["--datasets", "pairs.jsonl#2:1", "fewer.jsonl:2"]),
    "max_rows": Row(train_rows, ["--max_rows", "3"]),
    "eval_share": Row(eval_rows, ["--eval_share", "0.5"]),
    "streaming": Row(kind_of_rows, ["--streaming"], ("--max_steps", "1")),
    "eval_dataset": Row(eval_rows, ["--eval_dataset", "fewer.jsonl"]),
    "eval_dataset_split": Row(
        eval_rows, ["--eval_dataset_split", "train"], ("--eval_dataset", "splits")
    ),
    "lora_r": Row(adapter, LORA),
    "lora_alpha": Row(adapter, ["--lora_alpha", "3"], (*LORA,)),
    "lora_dropout": Row(adapter, ["--lora_dropout", "0.1"], (*LORA,)),
    "lora_target_modules": Row(adapter, ["--lora_target_modules", "q_proj"], (*LORA,)),
    "lora_target_parameters": Row(
        adapter, ["--lora_target_parameters", "mlp.experts.down_proj"], (*LORA,)
    ),
    "lora_modules_to_save": Row(adapter, ["--lora_modules_to_save", "lm_head"], (*LORA,)),
    "freeze": Row(refusal, ["--freeze", "vision"]),
    "use_rslora": Row(adapter, ["--use_rslora"], (*LORA,)),
    "use_dora": Row(adapter, ["--use_dora"], (*LORA,)),
    "create_new_adapter": Row(refusal, ["--create_new_adapter"], (*LORA,)),
}
"""Options that say what is loaded."""

SAID: dict[str, list[str]] = {
    "doctor": ["--no_doctor"],
    "resume": ["--resume", "auto"],
    "overwrite_output_dir": ["--overwrite_output_dir"],
    "merge_at_end": ["--merge_at_end", "--lora_r", "2"],
}
"""Options that say what is done with what is loaded."""


@pytest.fixture
def stocked(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workshop with a second one of everything."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("model")
    make_model("qwen2", vocab_size=len(tokenizer), seed=1).save_pretrained("other")
    tokenizer.save_pretrained("other")
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained("small")
    Path("template.jinja").write_text("{{ messages[0]['content'] }}")
    write_pairs(Path("fewer.jsonl"), PAIRS[:3])
    Path("splits").mkdir()
    write_pairs(Path("splits/train.jsonl"), PAIRS[:4])
    write_pairs(Path("splits/test.jsonl"), PAIRS[4:])
    return workshop


def test_no_option_of_the_run_is_without_a_row() -> None:
    assert {*TRIED, *SAID} == {field.name for field in fields(RunOptions)}


@pytest.mark.parametrize("name", TRIED)
def test_an_option_of_the_run_changes_what_is_loaded(stocked: Path, name: str) -> None:
    row = TRIED[name]
    assert row.look([*row.beside, *row.words]) != row.look([*row.beside])


def test_a_revision_means_nothing_to_a_folder_and_is_refused(stocked: Path) -> None:
    with pytest.raises(ConfigError, match=r"^CP104 revision=v2 "):
        parts(["--revision", "v2"])


@pytest.mark.parametrize("name", SAID)
def test_an_option_of_the_run_changes_what_is_done(
    workshop: Path, command: Command, name: str
) -> None:
    Path("out").mkdir()
    Path("out/run.json").write_text("{}")
    # the doctor warns of the learning rate; the folder is taken
    words = [w for flag in GIVEN.items() for w in (f"--{flag[0]}", flag[1])]
    words += ["--max_steps", "1", "--learning_rate", "1", "--save_strategy", "no"]
    beside = SAID["overwrite_output_dir"] if name in ("doctor", "merge_at_end") else []
    with_it = command("train", *words, *beside, *SAID[name])
    without = command("train", *words, *beside)
    if name == "doctor":
        assert ("CW" in without.err, "CW" in with_it.err) == (True, False)
    elif name == "merge_at_end":
        assert ("one model" in without.out, "one model" in with_it.out) == (False, True)
    else:
        assert (without.code, with_it.code) == (2, 0)


OF_PLAN = {
    "memory": ["--memory", "1GiB"],
    "ranks": ["--ranks", "2"],
    "pairs": ["--pairs", "3"],
    "device": ["--device", "cuda"],
    "json": ["--json"],
}
IN_SHARDS = ["--fsdp", "2", "--ranks", "4"]
OF_PLAN |= {
    "nodes": [*IN_SHARDS, "--nodes", "2"],
    "intra_bandwidth": [*IN_SHARDS, "--intra_bandwidth", "7"],
    "inter_bandwidth": [*IN_SHARDS, "--nodes", "2", "--inter_bandwidth", "7"],
    "peak": [*IN_SHARDS, "--peak", "7"],
    "kernel_efficiency": [*IN_SHARDS, "--kernel_efficiency", "0.7"],
}
OF_TOKENS = {"row": ["--row", "1"], "json": ["--json"], "color": ["--color", "always"]}


@pytest.mark.parametrize(
    ("name", "kind", "tried"),
    [("plan", PlanOptions, OF_PLAN), ("tokens", TokensOptions, OF_TOKENS)],
)
def test_every_flag_of_a_small_command_changes_what_it_says(
    workshop: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: type[Any],
    tried: dict[str, list[str]],
) -> None:
    assert set(tried) == set(declared(kind))
    # transformers says to accelerate through the environment that there are shards
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    words = ["--model", "model", "--dataset", "pairs.jsonl", "--use_cpu"]
    if name == "plan":
        words += ["--memory", "2GiB"]  # the machine has another amount left each time
    plain = command(name, *words)
    assert plain.code == 0
    sharded = command(name, *words, *IN_SHARDS) if name == "plan" else plain
    for flag, given in tried.items():
        before = sharded if given[:2] == IN_SHARDS[:2] else plain
        assert command(name, *words, *given) != before, flag
