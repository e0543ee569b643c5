"""Trackers get every number of a log line; one that is not installed is refused at once."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from counterpoint import ConfigError, CPOConfig, SetupError
from counterpoint.runlog import Alarm
from counterpoint.trainer.trackers import TRACKERS, check_trackers
from tests.steps import random_pairs, train_watched


def options(**more: Any) -> CPOConfig:
    return CPOConfig(output_dir="unused", use_cpu=True, **more)


def test_by_default_nobody_is_told() -> None:
    assert options().report_to == []
    check_trackers(options())


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("counterpoint.trainer.trackers.find_spec", lambda module: None)
    with pytest.raises(
        SetupError, match=rf"^CP502 report_to={name} .*: python -m pip install {name}$"
    ):
        check_trackers(options(report_to=name))


def test_a_name_that_no_tracker_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^CP102 report_to='wandbb' is not one of .*wandb"):
        check_trackers(options(report_to=["wandbb"]))


def test_every_tracker_of_transformers_is_known_or_needs_no_package() -> None:
    assert set(INTEGRATION_TO_CALLBACK) - set(TRACKERS) <= {"kubeflow"}


@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="no tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_number_and_no_secret(
    models: Any, chatml_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    canary = "canary-of-the-tracker"
    monkeypatch.setenv("MY_API_KEY", canary)
    _, trainer = train_watched(
        models(),
        chatml_tokenizer,
        random_pairs(8),
        tmp_path,
        per_device_train_batch_size=4,
        report_to="tensorboard",
        run_name=f"run of {canary}",
        hub_token="canary-of-the-hub",
    )
    trainer.evaluate(random_pairs(4, seed=1))
    # the evaluation after the training has a file of its own
    files = sorted(tmp_path.rglob("events.out.tfevents.*"))
    assert len(files) == 2
    assert not any(b"canary" in file.read_bytes() for file in files)
    found = EventAccumulator(str(files[0]))
    found.Reload()
    scalars = set(found.Tags()["scalars"])
    [first, _] = [line for line in trainer.state.log_history if "loss" in line]
    assert {f"train/{name}" for name in first if name != "step"} <= scalars
    assert {"train/pairs_per_second", "train/rewards/margins"} <= scalars
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2]
    assert found.Scalars("train/loss")[0].value == pytest.approx(first["loss"])


def test_an_alarm_of_a_run_is_an_alert_of_its_tracker_from_the_first_rank_alone(
    models: Any, chatml_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    module: Any = ModuleType("wandb")
    module.run = SimpleNamespace(alert=lambda **given: heard.append(given["title"]))
    module.AlertLevel = SimpleNamespace(WARN="WARN", INFO="INFO")
    _, trainer = train_watched(
        models(), chatml_tokenizer, random_pairs(4), tmp_path, per_device_train_batch_size=4
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    trainer.args.report_to = ["wandb"]
    trainer.raise_alarm(Alarm("CW425", 1, 1, "a spike"))
    assert [title.partition(":")[0] for title in heard] == ["CW425"]
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    trainer.raise_alarm(Alarm("CW426", 1, 1, "another spike"))
    assert len(heard) == 1
