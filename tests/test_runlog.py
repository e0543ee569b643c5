"""What a run writes about itself can be read back, also while it is written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

import counterpoint.runlog.writing
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


def test_what_is_said_of_a_run_holds_no_secret_whoever_writes_it_down(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_API_KEY", "canary-of-mine")
    counterpoint.log.logger().warning("the key is %s", "canary-of-mine")
    assert caplog.messages == ["the key is ***"]


@pytest.mark.parametrize("content", [None, "{", ""])
def test_a_folder_without_a_run_is_a_coded_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / RUN_FILE).write_text(content)
    with pytest.raises(SetupError, match=r"^CP507 "):
        read_run(tmp_path)


def steps_read(log: RunLog, stream: str = METRICS) -> list[tuple[int, str]]:
    """Step and origin of the lines that count."""
    return [(line["step"], line["of"]) for line in getattr(read_run(log.folder), stream)]


def test_a_step_that_was_done_twice_is_read_once_as_it_was_done_last(log: RunLog) -> None:
    log.begun()
    for step in range(1, 6):
        log.append(METRICS, {"step": step, "of": "first"})
    log.append(ALARMS, {"step": 4, "of": "first"})
    again = RunLog(log.folder)
    again.describe({})
    again.resumed(3)
    for step in (4, 5, 6):
        again.append(METRICS, {"step": step, "of": "second"})
    again.append(ALARMS, {"step": 5, "of": "second"})
    third = RunLog(log.folder)
    third.resumed(4)
    third.append(METRICS, {"step": 5, "of": "third"})
    assert steps_read(log) == [
        *((step, "first") for step in (1, 2, 3)),
        (4, "second"),
        (5, "third"),
    ]
    assert steps_read(log, ALARMS) == []
    assert "mark" not in {key for line in read_run(log.folder).metrics for key in line}


def test_a_checkpoint_that_knows_the_streams_lengths_counts_to_the_byte(log: RunLog) -> None:
    log.begun()
    log.append(METRICS, {"step": 1, "of": "first"})
    log.append(METRICS, {"step": 2, "of": "before the checkpoint"})
    lengths = log.lengths()
    log.append(METRICS, {"step": 2, "of": "after the checkpoint"})
    again = RunLog(log.folder)
    again.resumed(2, lengths)
    again.resumed(2)  # what the trainer says of it, too
    again.append(METRICS, {"step": 3, "of": "second"})
    assert steps_read(log) == [(1, "first"), (2, "before the checkpoint"), (3, "second")]


def test_nothing_is_taken_out_of_a_file(log: RunLog) -> None:
    log.append(METRICS, {"step": 2, "of": "first"})
    before = stream_file(log.folder, METRICS).read_bytes()
    RunLog(log.folder).resumed(1)
    assert stream_file(log.folder, METRICS).read_bytes().startswith(before)


def test_a_second_training_in_a_folder_begins_the_record_anew(log: RunLog) -> None:
    log.begun()
    log.append(METRICS, {"step": 1, "of": "first"})
    log.ended("finished", 1)
    second = RunLog(log.folder)
    second.describe({})
    second.append(METRICS, {"step": 0, "of": "evaluated before"})
    second.begun()
    second.append(METRICS, {"step": 1, "of": "second"})
    assert steps_read(log) == [(0, "evaluated before"), (1, "second")]
    assert read_run(log.folder).facts["ended"] is None
    second.ended("finished", 1)
    second.append(METRICS, {"step": 0, "of": "evaluated between"})
    second.begun()
    second.append(METRICS, {"step": 1, "of": "third"})
    assert steps_read(log) == [(0, "evaluated between"), (1, "third")]


def test_a_first_training_needs_no_marks(log: RunLog) -> None:
    log.append(METRICS, {"step": 0, "of": "evaluated before"})
    log.begun()
    log.append(METRICS, {"step": 1, "of": "first"})
    assert len(stream_file(log.folder, METRICS).read_text().splitlines()) == 2
    assert not stream_file(log.folder, ALARMS).exists()


def test_a_run_keeps_its_start_and_tells_where_it_was_taken_up_again(log: RunLog) -> None:
    log.begun()
    started = read_run(log.folder).facts["started"]
    for step in (2, 2, 4):
        again = RunLog(log.folder)
        again.describe({})
        again.resumed(step)
        again.resumed(step)  # saying it twice is saying it once
    facts = read_run(log.folder).facts
    assert facts["started"] == started
    assert [resume["step"] for resume in facts["resumed"]] == [2, 2, 4]


def test_how_a_run_ended_has_a_code_and_one_line(log: RunLog) -> None:
    log.begun()
    log.ended("failed", 7, SetupError("CP505", "row 3 does\nnot fit"))
    end = read_run(log.folder).facts["ended"]
    assert (end["state"], end["step"]) == ("failed", 7)
    assert end["error"] == {"code": "CP505", "seen": "row 3 does not fit"}
    log.ended("failed", 7, ValueError("first line\nsecond line"))
    error = read_run(log.folder).facts["ended"]["error"]
    assert error == {"code": None, "seen": "ValueError: first line"}
    log.ended("interrupted", 7, KeyboardInterrupt())
    assert read_run(log.folder).facts["ended"]["error"]["seen"] == "KeyboardInterrupt"


def test_what_a_killed_writer_left_of_a_line_spoils_no_other(log: RunLog) -> None:
    log.append(METRICS, {"step": 1})
    with stream_file(log.folder, METRICS).open("a") as file:
        file.write('{"step": 2, "lo')
    again = RunLog(log.folder)
    again.append(METRICS, {"step": 2})
    assert [line["step"] for line in read_run(log.folder).metrics] == [1, 2]


def test_a_damaged_line_is_a_coded_error_that_names_it(log: RunLog) -> None:
    log.append(METRICS, {"step": 1})
    with stream_file(log.folder, METRICS).open("a") as file:
        file.write("%%\n")
    with pytest.raises(SetupError, match=r"^CP507 .*metrics\.jsonl line 2 "):
        read_run(log.folder)


def test_a_full_disk_ends_no_training_and_loses_no_line_once_there_is_room(
    log: RunLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = True

    def append(path: Path, line: bytes) -> None:
        if full:
            raise OSError(28, "No space left on device")
        written(path, line)

    written = counterpoint.runlog.writing._append
    monkeypatch.setattr(counterpoint.runlog.writing, "_append", append)
    log.begun()
    for step in (1, 2):
        log.append(METRICS, {"step": step})
    log.append(ALARMS, {"step": 2})
    assert read_run(log.folder).metrics == ()
    full = False
    log.append(METRICS, {"step": 3})
    log.ended("finished", 3)
    run = read_run(log.folder)
    assert [line["step"] for line in run.metrics] == [1, 2, 3]
    assert [line["step"] for line in run.alarms] == [2]
    [warning] = [record.getMessage() for record in caplog.records]
    assert "cannot be written: No space left on device. Training goes on" in warning


def test_lines_that_could_not_be_written_to_the_end_are_counted_aloud(
    log: RunLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, line: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(counterpoint.runlog.writing, "_append", full)
    log.begun()
    for step in (1, 2):
        log.append(METRICS, {"step": step})
    log.ended("finished", 2)
    assert "2 lines of the run's log could not be written and are lost" in caplog.text


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no device that is always full")
    with pytest.raises(OSError, match="No space left"):
        counterpoint.runlog.writing._append(full, b"line\n")


def test_only_the_first_description_must_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        RunLog(tmp_path / "file" / "run").describe({})
    log = RunLog(tmp_path / "run")
    log.describe({"objective": "loss"})
    (log.folder / f".{RUN_FILE}.{os.getpid()}.part").mkdir()
    log.ended("finished", 1)
    assert "cannot be written" in caplog.text
    assert read_run(log.folder).facts["objective"] == "loss"


def test_ranks_but_the_first_write_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", writes=False)
    log.describe({})
    log.begun()
    log.append(METRICS, {"step": 1})
    log.ended("finished", 1)
    assert not log.folder.exists()


def test_numbers_of_libraries_are_written_as_numbers(log: RunLog) -> None:
    log.append(METRICS, {"step": np.int64(3), "loss": np.float32(0.5), "where": Path("here")})
    [line] = read_run(log.folder).metrics
    assert (line["step"], line["loss"], line["where"]) == (3, 0.5, "here")


def test_a_line_is_strict_json_and_its_numbers_come_back(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.describe({"deep": {"rate": math.inf, "many": [1.0, math.nan]}})
    log.append(METRICS, {"step": 1, "loss": math.nan, "up": math.inf, "down": -math.inf})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    for path in tmp_path.glob("*.json*"):
        for line in [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines():
            json.loads(line, parse_constant=refuse)
    [line] = read_run(tmp_path).metrics
    assert (line["step"], line["up"], line["down"]) == (1, math.inf, -math.inf)
    assert math.isnan(line["loss"])
    assert "not_finite" not in line
    assert json.loads((tmp_path / "run.json").read_text())["deep"] == {
        "rate": "inf",
        "many": [1.0, "nan"],
    }
