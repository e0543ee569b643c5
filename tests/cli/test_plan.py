"""``counterpoint plan``: no weights are needed, and what it says can be pasted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml

from tests.cli.conftest import Command, tree

WORDS = ("--model", "bare", "--dataset", "pairs.jsonl", "--output_dir", "out", "--use_cpu")


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """transformers writes into the environment that it was asked to shard."""
    with mock.patch.dict(os.environ):
        yield


def planned(command: Command, *words: str) -> dict:
    return json.loads(command("plan", *WORDS, *words, "--json").out)


def test_a_run_that_fits_is_told_in_eighty_columns_and_nothing_is_written(
    workshop: Path, command: Command
) -> None:
    before = tree(workshop.parent)
    said = command("plan", *WORDS, "--memory", "24GiB", "--ranks", "4")
    assert (said.code, said.err) == (0, "")
    assert max(map(len, said.out.splitlines())) <= 80
    for part in ("weights", "optimizer", "gradients", "activations", "head", "peak", "24 GiB"):
        assert part in said.out
    assert tree(workshop.parent) == before


def test_the_plan_in_json_is_that_of_the_options(workshop: Path, command: Command) -> None:
    plan = planned(command, "--memory", "1GiB", "--ranks", "2", "--pairs", "24")
    assert plan["memory"] == 2**30
    assert plan["fits"] is True
    assert plan["remedies"] == []
    assert plan["pairs"] == 24
    made = {s["per_device"] * s["accumulation"] * s["ranks"] for s in plan["splits"]}
    assert made == {24}
    asked = plan["asked"]
    parts = ("weights", "optimizer", "buckets", "gradients", "activations", "head", "passing")
    assert sum(asked[part] for part in parts) == asked["peak"]
    assert asked["buckets"] > 0
    alone = planned(command, "--memory", "1GiB")
    assert alone["asked"]["buckets"] == 0


def test_the_initial_policy_of_a_bound_on_the_drift_is_in_the_plan(
    workshop: Path, command: Command
) -> None:
    plain = planned(command, "--memory", "1GiB")
    held = '[{"kind": "kl_drift", "bound": 0.1}]'
    bounded = planned(command, "--memory", "1GiB", "--constraints", held)["asked"]
    assert plain["asked"]["initial"] == 0
    assert bounded["initial"] == 4 * plain["trained"]
    assert bounded["peak"] == plain["asked"]["peak"] + bounded["initial"]


def test_a_file_and_flags_are_read_as_train_reads_them(workshop: Path, command: Command) -> None:
    options = {"model": "bare", "dataset": ["pairs.jsonl"], "use_cpu": True}
    Path("run.yaml").write_text(yaml.safe_dump({**options, "gradient_checkpointing": False}))
    plain = json.loads(command("plan", "run.yaml", "--memory", "1GiB", "--json").out)
    again = json.loads(
        command("plan", "run.yaml", "--gradient_checkpointing", "--memory", "1GiB", "--json").out
    )
    assert (plain["checkpointing"], again["checkpointing"]) == (False, True)
    lora = json.loads(
        command("plan", "run.yaml", "--lora_r", "4", "--memory", "1GiB", "--json").out
    )
    assert lora["trained"] < plain["trained"] == plain["parameters"] < lora["parameters"]
    assert lora["asked"]["optimizer"] < plain["asked"]["optimizer"]


def test_what_does_not_fit_ends_with_one_and_says_what_helps(
    workshop: Path, command: Command
) -> None:
    options = (*WORDS, "--gradient_checkpointing", "false")
    peak = json.loads(command("plan", *options, "--memory", "1GiB", "--json").out)["longest"][
        "peak"
    ]
    memory = f"{int(peak / 0.85) - 100_000}B"
    said = command("plan", *options, "--memory", memory)
    assert said.code == 1
    assert "not even one pair fits" in said.out
    assert "gradient_checkpointing: true" in said.out


def test_a_plan_for_cuda_is_padded_and_in_bfloat16(workshop: Path, command: Command) -> None:
    words = ("--model", "bare", "--dataset", "pairs.jsonl", "--output_dir", "out")
    said = command("plan", *words, "--device", "cuda", "--memory", "80GB", "--json")
    plan = json.loads(said.out)
    assert plan["layout"] == "padded"
    assert "bfloat16 products" in plan["precision"]


def test_a_run_in_shards_is_planned_with_its_machines(workshop: Path, command: Command) -> None:
    words = ("--memory", "1GiB", "--fsdp", "2", "--ranks", "8")
    one, two = planned(command, *words), planned(command, *words, "--nodes", "2")
    whole = planned(command, "--memory", "1GiB")
    assert one["asked"] == two["asked"]  # how far ranks are apart is no matter of memory
    assert one["asked"]["optimizer"] == pytest.approx(whole["asked"]["optimizer"] / 8, rel=0.1)
    assert one["asked"]["gathered"] > 0
    assert whole["scaling"] is None
    speeds = [plan["scaling"]["break_even"] for plan in (one, two)]
    assert speeds[1] > 5 * speeds[0]
    text = command("plan", *WORDS, *words, "--nodes", "2").out
    assert max(map(len, text.splitlines())) <= 80
    assert "break-even" in text


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--memory", "24"), "CP103"),
        (("--ranks", "0"), "CP103"),
        (("--pairs", "5", "--ranks", "2"), "CP103"),
        (("--memroy", "24GiB"), "CP101"),
        (("--device", "abacus"), "CP102"),
        (("--fsdp", "2", "--ranks", "8", "--nodes", "3"), "CP103"),
        (("--fsdp", "2", "--ranks", "8", "--nodes", "0"), "CP103"),
        (("--fsdp", "2"), "CP103 ranks=1 should be at least 2: fsdp shares"),
        (
            ("--fsdp", "2", "--ranks", "4", "--fsdp_replicas", "4"),
            "CP103 ranks=4 should be at least 2 for each of",
        ),
        (
            ("--fsdp", "2", "--ranks", "8", "--fsdp_replicas", "3"),
            "CP103 ranks=8 should be a multiple of",
        ),
        (("--fsdp", "2", "--inter_bandwidth", "0"), "CP103"),
        (("--fsdp", "2", "--intra_bandwidth", "nan"), "CP103"),
        (("--fsdp", "2", "--kernel_efficiency", "1.5"), "CP103"),
        (("--fsdp", "2", "--peak", "-1"), "CP103"),
        (("--fsdp", "2", "--inter_bandwith", "40"), "CP101"),
        (("--ranks", "8", "--nodes", "2"), "CP104"),
        (("--ranks", "8", "--peak", "500"), "CP104"),
    ],
)
def test_a_wrong_option_is_refused_with_its_code(
    workshop: Path, command: Command, words: tuple[str, ...], code: str
) -> None:
    said = command("plan", *WORDS, *words)
    assert said.code == 2
    assert said.err.startswith(f"counterpoint: {code} ")


def test_help_lists_every_option(command: Command) -> None:
    said = command("plan", "--help")
    assert said.code == 0
    for name in ("--memory", "--ranks", "--pairs", "--device", "--json"):
        assert name in said.out
