"""Nothing grows while a run goes on, but for its own record of log lines."""

from __future__ import annotations

from pathlib import Path

from tests.reliability.steady import train
from tests.reliability.trials import TORTURE, trials


def test_files_threads_and_objects_stay_as_many_over_a_run(tmp_path: Path) -> None:
    steps = trials(200, 10_000)
    looks = train(tmp_path, steps, times=trials(10, 40))
    late = [seen for step, seen in looks.seen if step > steps / 2]
    assert len({seen["threads"] for seen in late}) == 1
    assert max(s["open files"] for s in late) - min(s["open files"] for s in late) <= 1
    objects = [seen["Python objects"] for seen in late]
    # of a step that leaves even one object behind, there would be half as many as steps
    assert max(objects) - min(objects) <= max(60, steps / 10)
    if TORTURE:  # a few hundred steps are too short to tell memory from noise
        assert looks.slopes()["memory, MB"] <= 1.0
