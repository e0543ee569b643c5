"""The run directory tells all of a run, as docs/run-directory.md says, and how it ended."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from counterpoint import CPOConfig, CPOTrainer, NonFiniteError
from counterpoint.runlog import METRICS, STREAMS, Alarm, Run, read_run, stream_file
from tests.steps import random_pairs

DOCS = Path(__file__).parents[2] / "docs" / "run-directory.md"
ROWS = [
    {"prompt": f"What is {i} and {i}?", "chosen": f" It is {2 * i}.", "rejected": f" Maybe {i}?"}
    for i in range(8)
]
BAD = {"prompt": "Same?", "chosen": " yes", "rejected": " yes"}


def documented(heading: str) -> set[str]:
    """The keys of the tables below a heading, up to the next heading of its kind."""
    text = DOCS.read_text(encoding="utf-8")
    level = len(heading.split()[0])
    [part] = re.findall(
        rf"^{re.escape(heading)}$(.*?)(?=^#{{1,{level}}} |\Z)", text, re.MULTILINE | re.DOTALL
    )
    own = part.split("\n### ")[0]
    firsts = re.findall(r"^\| (`.*?) \|", own, re.MULTILINE)
    return {key for first in firsts for key in re.findall(r"`([^`]+)`", first)}


@pytest.fixture
def train(models: Any, chatml_tokenizer: Any, tmp_path: Path) -> Callable[..., Run]:
    """Train in one folder, and read the run directory; what ends it is passed on afterwards."""

    def go(
        *callbacks: TrainerCallback,
        resume: str | None = None,
        rows: Any = None,
        evaluated: Any = None,
        **options: Any,
    ) -> Run:
        args = CPOConfig(
            **{
                "output_dir": str(tmp_path / "run"),
                "per_device_train_batch_size": 2,
                "max_steps": 4,
                "logging_steps": 1,
                "save_strategy": "steps",
                "save_steps": 2,
                "invalid_rows": "drop",
                "disable_tqdm": True,
                "gradient_checkpointing": False,
                "use_cpu": True,
                **options,
            }
        )
        trainer = CPOTrainer(
            model=models(),
            args=args,
            train_dataset=[*ROWS, BAD] if rows is None else rows,
            eval_dataset=evaluated,
            processing_class=chatml_tokenizer,
            callbacks=list(callbacks),
        )
        try:
            trainer.train(resume_from_checkpoint=resume)
        finally:
            found = read_run(tmp_path / "run")
        return found

    return go


def test_every_key_that_is_written_is_documented_and_the_other_way_round(
    train: Callable[..., Run], tmp_path: Path
) -> None:
    options = {
        "evaluated": {"hard": ROWS[:3]},
        "eval_strategy": "steps",
        "eval_steps": 2,
        "constraints": [{"kind": "bc"}],
    }
    train(**options)
    run = train(resume=str(tmp_path / "run" / "checkpoint-2"), **options)
    assert set(run.facts) == documented("## `run.json`")
    assert set(run.facts["environment"]) == documented("### `environment`")
    assert set(run.facts["ended"]) == documented("### `ended`") - {"error"}
    assert set(run.facts["data"]) == {"train", "eval hard"}
    for each in run.facts["data"].values():
        assert set(each) == documented("### `data`")
    plain = {key.replace("eval_hard_", "eval_") for line in run.metrics for key in line}
    # tests/examples/test_constrained_page.py has these
    plain = {key for key in plain if "constraints/" not in key}
    names = documented("## `metrics.jsonl`") | {"step", "epoch", "time"}
    behind = {key for key in plain if key.startswith("eval_")}
    assert {key for key in behind if key not in names} <= {f"eval_{name}" for name in names}
    # tests/trainer/test_about_pictures.py and tests/monitor/test_utilization.py have the last two
    rare = {"aux_loss", "policy_weights", "skipped_steps", "pictures_kept", "mfu"}
    assert plain - behind == names - rare - behind
    assert behind >= {key for key in names if key.startswith("eval_")}
    assert {field.name for field in fields(Alarm)} | {"time"} == documented("## `alarms.jsonl`")


def test_every_file_is_documented(train: Callable[..., Run], tmp_path: Path) -> None:
    train(save_strategy="no")
    told = documented_files()
    assert {path.name for path in (tmp_path / "run").iterdir()} <= told
    assert {stream_file(".", stream).name for stream in STREAMS} <= told


def documented_files() -> set[str]:
    text = DOCS.read_text(encoding="utf-8")
    return set(re.findall(r"`([\w.]+\.\w+)`", text.split("## `run.json`")[0]))


def test_rows_dropped_and_tokens_cut_have_their_reasons(train: Callable[..., Run]) -> None:
    train_set = train(max_length=14).facts["data"]["train"]
    assert (train_set["rows"], train_set["kept"], train_set["dropped"]) == (9, 8, {"CP205": 1})
    assert train_set["cut_tokens"]["chosen"] > 0
    assert train_set["limits"]["max_length"] == 14
    assert sum(train_set["lengths"]["rejected"]["counts"]) == 8
    assert re.fullmatch(r"[0-9a-f]{40}", train_set["digest"])


class At(TrainerCallback):
    """Does something at a step."""

    def __init__(self, step: int, what: Callable[[Any], Any]) -> None:
        self.step, self.what = step, what

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.what(control)


def raising(error: BaseException) -> Callable[[Any], Any]:
    def fail(control: Any) -> None:
        raise error

    return fail


def stop(control: Any) -> None:
    control.should_training_stop = True


def test_a_run_that_went_to_its_end_is_finished_and_one_that_was_stopped_is_stopped(
    train: Callable[..., Run],
) -> None:
    assert train().facts["ended"] | {"time": 0} == {"state": "finished", "step": 4, "time": 0}
    assert train(At(3, stop)).facts["ended"] | {"time": 0} == {
        "state": "stopped",
        "step": 3,
        "time": 0,
    }


@pytest.mark.parametrize(
    ("error", "state", "code", "seen"),
    [
        (KeyboardInterrupt(), "interrupted", None, "KeyboardInterrupt"),
        (SystemExit(143), "interrupted", None, "SystemExit: 143"),
        (NonFiniteError("CP401", "step 3: not finite."), "failed", "CP401", "step 3: not finite."),
        (ValueError("a\nb"), "failed", None, "ValueError: a"),
    ],
    ids=["Ctrl-C", "exit", "coded", "other"],
)
def test_what_ended_a_run_is_told(
    train: Callable[..., Run],
    tmp_path: Path,
    error: BaseException,
    state: str,
    code: Any,
    seen: str,
) -> None:
    with pytest.raises(type(error)):
        train(At(2, raising(error)))
    end = read_run(tmp_path / "run").facts["ended"]
    assert (end["state"], end["step"]) == (state, 2)
    assert end["error"] == {"code": code, "seen": seen}


def test_what_belongs_to_a_run_may_fail_after_its_training(
    models: Any, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    args = CPOConfig(
        output_dir=str(tmp_path), max_steps=1, save_strategy="no", disable_tqdm=True, use_cpu=True
    )
    trainer = CPOTrainer(
        models(), args, train_dataset=random_pairs(8), processing_class=chatml_tokenizer
    )

    def train_and_save() -> None:
        with trainer.recorded():
            trainer.train()
            assert read_run(tmp_path).facts["ended"] is None
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        train_and_save()
    assert read_run(tmp_path).facts["ended"]["state"] == "failed"


def test_a_run_that_goes_on_tells_each_step_once(train: Callable[..., Run], tmp_path: Path) -> None:
    first = train(seed=1)
    resumed = train(resume=str(tmp_path / "run" / "checkpoint-2"), seed=1)
    steps = [line["step"] for line in resumed.metrics if "loss" in line]
    assert steps == [1, 2, 3, 4]
    assert resumed.metrics[0] == first.metrics[0]
    assert resumed.metrics[2]["time"] > first.metrics[-1]["time"]
    assert resumed.facts["started"] == first.facts["started"]
    assert [each["step"] for each in resumed.facts["resumed"]] == [2]
    raw = stream_file(tmp_path / "run", METRICS).read_text().splitlines()
    assert sum("loss" in json.loads(line) for line in raw) == 6


def test_training_twice_in_a_folder_tells_the_second_training(train: Callable[..., Run]) -> None:
    train()
    run = train(max_steps=2)
    assert [line["step"] for line in run.metrics if "loss" in line] == [1, 2]
    assert run.facts["resumed"] == []
