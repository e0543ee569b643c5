"""Law 4 over processes: two ranks go on together, and stop together where one cannot write."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterpoint.checkpoint.folder import checkpoints
from counterpoint.checkpoint.manifest import verify
from tests.invariance.test_ranks import launch
from tests.reliability.scenarios import differences, lines


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    for code, output in launch("tests.reliability.ranks", [str(folder)]):
        assert code == 0, output[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3])
def test_two_ranks_go_on_as_if_nothing_had_happened(two_ranks: Path, step: int):
    whole, again = two_ranks / "whole", two_ranks / f"after-{step}"
    for number in range(step + 1, 7):
        name = f"checkpoint-{number}"
        assert differences(whole / name, again / name) == []
    assert lines(again) == lines(whole)
    assert {"rank-0.json", "rank-1.json"} <= verify(whole / "checkpoint-6").files.keys()


@pytest.mark.slow
def test_a_rank_that_cannot_write_stops_every_rank(two_ranks: Path):
    said = [(two_ranks / f"failed-{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0].startswith("CP515 ")
    assert "No space left on device" in said[0]
    folder = two_ranks / "failed"
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-1"]
    assert not list(folder.glob(".*"))
