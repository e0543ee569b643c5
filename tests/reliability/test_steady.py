"""Nothing grows while a run goes on, but for its own record of log lines."""

from __future__ import annotations

from pathlib import Path

from tests.reliability.steady import train
from tests.reliability.trials import TORTURE, trials


def test_files_threads_and_objects_stay_as_many_over_a_run(tmp_path: Path) -> None:
    steps = trials(200, 10_000)
    looks = train(tmp_path, steps)
    slopes = looks.slopes()
    late = [seen for step, seen in looks.seen if step > steps / 10]
    assert len({seen["threads"] for seen in late}) == 1
    assert max(s["open files"] for s in late) - min(s["open files"] for s in late) <= 1
    # transformers keeps every log line: one dict in ten steps, and its numbers are no objects
    assert slopes["Python objects"] <= 1000 / 10 * 1.5
    if TORTURE:  # a few hundred steps are too short to tell memory from noise
        assert slopes["memory, MB"] <= 1.0
