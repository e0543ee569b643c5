"""What a run writes about itself can be read back, also while it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterpoint.errors import SetupError
from counterpoint.runlog import (
    ALARMS,
    METRICS,
    RUN_FILE,
    STREAMS,
    Alarm,
    RunLog,
    read_run,
    stream_file,
)


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    log = RunLog(tmp_path / "run")
    log.describe({"objective": "loss"})
    return log


def test_what_was_appended_is_read_back_in_its_order(log: RunLog) -> None:
    for step in (1, 2):
        log.append(METRICS, {"step": step, "loss": 1 / step})
    found = read_run(log.folder)
    assert [(line["step"], line["loss"]) for line in found.metrics] == [(1, 1.0), (2, 0.5)]
    assert found.metrics[0]["time"] <= found.metrics[1]["time"]
    assert found.facts["objective"] == "loss"


def test_an_alarm_keeps_every_part(log: RunLog) -> None:
    log.append(ALARMS, Alarm("CW411", step=9, since=4, seen="nothing moves", fix="lr: 1e-4"))
    [alarm] = read_run(log.folder).alarms
    parts = (alarm["code"], alarm["step"], alarm["since"], alarm["seen"], alarm["fix"])
    assert parts == ("CW411", 9, 4, "nothing moves", "lr: 1e-4")


@pytest.mark.parametrize("stream", STREAMS)
def test_a_line_that_is_half_written_is_left_for_the_next_time(log: RunLog, stream: str) -> None:
    log.append(stream, {"step": 1})
    with stream_file(log.folder, stream).open("a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in getattr(read_run(log.folder), stream)] == [1]


def test_no_stream_keeps_what_is_called_a_secret(log: RunLog) -> None:
    for stream in STREAMS:
        log.append(stream, {"step": 1, "hub_token": "hf_canary"})
    assert not any("hf_canary" in path.read_text() for path in log.folder.iterdir())


@pytest.mark.parametrize("content", [None, "{", ""])
def test_a_folder_without_a_run_is_a_coded_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / RUN_FILE).write_text(content)
    with pytest.raises(SetupError, match=r"^CP507 "):
        read_run(tmp_path)
