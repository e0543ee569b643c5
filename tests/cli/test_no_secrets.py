"""Canaries are put wherever a secret can be, and must turn up nowhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from counterpoint import CPOConfig, masking
from counterpoint.cli.evaluate import _json_ready
from counterpoint.cli.train import CPOTrainer as Used
from counterpoint.log import logger
from counterpoint.masking import Mask
from counterpoint.trainer.trackers import hide_secrets
from tests.cli.conftest import Command
from tests.cli.test_train import write_run

CANARIES = {
    "in a variable": "canary-sings-in-a-variable",
    "as the hub's token": "canary-sings-as-hub-token",
    "in a nested option": "canary-sings-in-model-options",
    "in an address": "canary-sings-in-an-address",
    "by its form": "hf_CANARYcanaryCANARYcanaryCANARY",
    "of a database": "c@nary/sings@a-database",
    "as a webhook": "https://hooks.slack.com/services/T0/B0/canary",
    **{
        f"in {name}": f"canary-sings-in-{name}"
        for name in (
            *("PGPASSWORD", "DB_PASS", "MYSQL_PWD", "GITHUB_PAT", "SERVICE_CREDENTIALS", "AUTH"),
            *("CLIENT_SECRETS", "ACCESSKEY", "authToken"),
        )
    },
}


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_kept", set())
    monkeypatch.setenv("HF_TOKEN", "")  # set anew by the command, taken back after the test
    monkeypatch.setenv("WANDB_API_KEY", CANARIES["in a variable"])
    monkeypatch.setenv("STORE", f"pg://ann:{CANARIES['of a database']}@host/x")
    for place, canary in CANARIES.items():
        if canary == f"canary-sings-{place.replace(' ', '-')}":
            monkeypatch.setenv(place.removeprefix("in "), canary)


def plant(folder: Path) -> list[str]:
    """A run with a canary in each place; the words that ask for it."""
    address = f"https:/ann:{CANARIES['in an address']}@host"
    (folder / address).mkdir(parents=True)
    (folder / "pairs.jsonl").rename(folder / address / "pairs.jsonl")
    path = write_run(
        dataset=f"{address}/pairs.jsonl".replace("https:/", "https://"),
        hub_token=CANARIES["as the hub's token"],
        model_init_kwargs={"token": CANARIES["in a nested option"]},
        run_name=" and ".join(ECHOED),
        save_steps=1,
    )
    return ["train", path, f"--project={CANARIES['by its form']}", "--debug"]


ECHOED = [
    canary
    for place, canary in CANARIES.items()
    if place not in ("as the hub's token", "in a nested option", "in an address")
]


def assert_silent(text: bytes, where: object) -> None:
    for place, canary in CANARIES.items():
        assert canary.encode() not in text, f"{place}: {where}"
    assert b"canary" not in text.lower(), where


def test_no_canary_is_in_any_file_of_a_run_nor_on_the_screen(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = plant(workshop)
    monkeypatch.setattr(sys, "argv", ["counterpoint", *words, "--hub_token", "canary9"])
    whole = Used.train

    def talkative(self: Used, **keywords: object) -> object:
        logger().warning("the key is %s", CANARIES["in a variable"])
        self.run_log.append(
            "samples", {"step": 0, "completion": f"my token is {CANARIES['by its form']}"}
        )
        return whole(self, **keywords)

    monkeypatch.setattr(Used, "train", talkative)
    said = command(*words)
    assert said.code == 0, said.err
    assert_silent(said.out.encode(), "stdout")
    assert_silent(said.err.encode(), "stderr")
    files = [path for path in Path("out").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"training_args.json", "run.json", "train.yaml", "samples.jsonl"} <= names
    for path in files:
        assert_silent(path.read_bytes(), path)
    run = json.loads(Path("out/run.json").read_text())
    assert run["options"]["run_name"] == " and ".join(["***"] * len(ECHOED))
    assert run["command"][-2:] == ["--hub_token", "***"]
    assert (
        "https://***@host/pairs.jsonl"
        in yaml.safe_load(Path("out/train.yaml").read_text())["dataset"]
    )


def test_no_canary_is_in_an_error_nor_in_its_trace(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = plant(workshop)

    def failing(self: Used, **keywords: object) -> None:
        raise ValueError(
            " ".join(CANARIES.values()).replace("canary-sings-in-an", "https://u:canary@h in")
        )

    monkeypatch.setattr(Used, "train", failing)
    said = command(*words)
    assert said.code == 1
    assert "Traceback" in said.err
    assert said.err.rstrip().splitlines()[-1].startswith("counterpoint: ValueError: *** ***")
    assert_silent(said.err.replace("test_no_secrets", "").encode(), "stderr")


def test_an_address_that_cannot_be_read_is_named_without_its_password(
    workshop: Path, command: Command
) -> None:
    said = command("train", write_run(dataset="./https:/ann:canary@host/none.jsonl"))
    assert said.code == 2
    for address in (
        "https://ann:canary@host/none.jsonl",
        "https://ann:c@nary/canary@host/none.jsonl",
        "https://host/none.jsonl?auth=canary&code=canary",
        "https://host/none.jsonl?to=https%3A%2F%2Fann%3Acanary%40host",
    ):
        said = command("train", write_run(dataset=address))
        assert said.code == 2
        assert_silent(said.err.replace("c@nary", "canary").encode(), "stderr")


def test_an_error_about_an_option_cuts_no_secret_in_half(command: Command) -> None:
    token = "hf_" + "cAnary7" * 6
    said = command("train", "--beta", f"a long and wrong value of beta, and then {token}")
    assert said.code == 2
    assert "***" in said.err
    assert_silent(said.err.encode(), "stderr")


@pytest.mark.parametrize("name", ["run_name", "project"])
def test_a_tracker_is_told_no_secret(name: str, tmp_path: Path) -> None:
    args = CPOConfig(output_dir=str(tmp_path), **{name: f"of {CANARIES['in DB_PASS']}"})
    hide_secrets(args)
    assert getattr(args, name) == "of ***"


def test_a_file_that_init_writes_holds_no_secret(workshop: Path, command: Command) -> None:
    said = command(
        "init", "--preset", "simpo-mistral-base", "--model", "m",
        "--dataset", f"https://ann:{CANARIES['in an address']}@host/pairs.jsonl",
    )  # fmt: skip
    assert "https://***@host/pairs.jsonl" in said.out
    assert_silent(said.out.encode(), "stdout")


def test_the_files_of_evaluate_hold_no_secret() -> None:
    told = _json_ready(
        {"set": CANARIES["in AUTH"], "token": ["kept", CANARIES["in a variable"]]}, Mask()
    )
    assert told == {"set": "***", "token": ["kept", "***"]}
