"""Alarms reach the trackers' own alerts, masked, and a tracker that fails ends nothing."""

from __future__ import annotations

import logging
import sys
from datetime import timedelta
from enum import Enum, StrEnum
from types import ModuleType
from typing import Any

import pytest

from counterpoint.alarms.telling import say_alarm
from counterpoint.masking import keep_secrets
from counterpoint.runlog import Alarm

ALARM = Alarm("CW425", 7, 6, "the loss rose from 0.5 to 3", "learning_rate: 1e-6")
NOTE = Alarm("CN443", 9, 2, "length did nothing")

Heard = list[dict[str, Any]]


class TrackioLevel(StrEnum):
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class WandbLevel(Enum):
    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> Heard:
    heard: Heard = []

    def alert(
        title: str,
        text: str | None = None,
        level: TrackioLevel = TrackioLevel.WARN,
        webhook_url: str | None = None,
    ) -> None:
        heard.append({"title": title, "text": text, "level": level})

    module: Any = ModuleType("trackio")
    module.alert, module.AlertLevel = alert, TrackioLevel
    monkeypatch.setitem(sys.modules, "trackio", module)
    return heard


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Heard:
    heard: Heard = []

    class Run:
        def alert(
            self,
            title: str,
            text: str,
            level: str | WandbLevel | None = None,
            wait_duration: float | timedelta | None = None,
        ) -> None:
            heard.append({"title": title, "text": text, "level": level, "wait": wait_duration})

    module: Any = ModuleType("wandb")
    module.run, module.AlertLevel = Run(), WandbLevel
    monkeypatch.setitem(sys.modules, "wandb", module)
    return heard


def test_both_hear_an_alarm_with_its_code_step_and_remedy(trackio: Heard, wandb: Heard) -> None:
    say_alarm(ALARM, ["trackio", "wandb"])
    assert [one["level"] for one in trackio + wandb] == [TrackioLevel.WARN, WandbLevel.WARN]
    for one in trackio + wandb:
        assert one["title"].startswith("CW425: ")
        assert "step 7: CW425 the loss rose" in one["text"]
        assert "learning_rate: 1e-6" in one["text"]
    assert wandb[0]["wait"] == 0


def test_a_note_is_no_warning(trackio: Heard, wandb: Heard) -> None:
    say_alarm(NOTE, ["trackio", "wandb"])
    assert [one["level"] for one in trackio + wandb] == [TrackioLevel.INFO, WandbLevel.INFO]


def test_only_trackers_that_were_asked_for_hear_it(trackio: Heard, wandb: Heard) -> None:
    say_alarm(ALARM, ["wandb", "tensorboard"])
    assert (len(trackio), len(wandb)) == (0, 1)
    say_alarm(ALARM, [])
    assert (len(trackio), len(wandb)) == (0, 1)


def test_no_secret_reaches_a_tracker(trackio: Heard, wandb: Heard) -> None:
    keep_secrets({"hub_token": "canary-of-an-alert"})
    say_alarm(Alarm("CW425", 1, 1, "seen by canary-of-an-alert"), ["trackio", "wandb"])
    assert len(trackio + wandb) == 2
    assert "canary" not in str(trackio + wandb)


def test_a_tracker_that_fails_is_said_and_the_others_hear(
    trackio: Heard, wandb: Heard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**given: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(sys.modules["trackio"], "alert", broken)
    logging.getLogger("counterpoint").addHandler(caplog.handler)
    try:
        say_alarm(ALARM, ["trackio", "wandb"])
    finally:
        logging.getLogger("counterpoint").removeHandler(caplog.handler)
    assert len(wandb) == 1
    assert "trackio did not take the alert of CW425: ConnectionError: no network" in caplog.text


def test_old_or_unloaded_trackers_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, wandb: Heard
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", ModuleType("trackio"))  # one without alerts
    monkeypatch.setattr(sys.modules["wandb"], "run", None)
    say_alarm(ALARM, ["trackio", "wandb", "mlflow"])
    assert wandb == []
