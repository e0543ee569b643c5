"""A run on two ranks, then one, then three: the weights and the lines of a run on one."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterpoint.runlog import read_run
from tests.invariance.test_ranks import launch
from tests.reliability.elastic import alone, differences, part
from tests.reliability.trials import TORTURE

SCENARIOS = ("constraints", "early stopping") if TORTURE else ("constraints",)
"""Those of ``tests.reliability.elastic`` that meet all there is; ``make torture`` has the rest."""


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    for ranks, stop in ((2, 3), (1, 5), (3, 0)):
        if ranks == 1:
            for name in SCENARIOS:
                part(name, folder / name, stop)
            continue
        arguments = [str(folder), str(stop), *SCENARIOS]
        for code, output in launch("tests.reliability.elastic", arguments, ranks=ranks):
            assert code == 0, output[-3000:]
            if ranks == 3 and "up to rounding" in output:
                (folder / "said").write_text(output)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_other_ranks_take_the_steps_of_one(name: str, chain: Path, tmp_path: Path):
    alone(name, tmp_path / name)
    assert differences(name, tmp_path / name, chain / name) == []
    facts = read_run(chain / name).facts
    # the checkpoint before the kill was of step 4 where every second step is saved
    steps = [one["step"] for one in facts["segments"]]
    assert steps == ([0, 2, 4] if name == "early stopping" else [0, 3, 5])
    assert [one["ranks"] for one in facts["segments"]] == [2, 1, 3]
    accumulations = [one["gradient_accumulation_steps"] for one in facts["segments"]]
    assert accumulations == ([1, 2, 1] if name == "constraints" else [2, 3, 1])
    assert facts["step_pairs"] == (4 if name == "constraints" else 5)
    said = (chain / "said").read_text()
    assert "the run was on 1 rank and resumes on 3 ranks: a step stays 4 pairs" in said
