"""Law 4 on several sets: a run that goes on is the one that was never broken, on 1 and 2 ranks.

One process on made rows is a scenario of test_resuming.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from counterpoint import SetupError
from tests.invariance.test_ranks import launch
from tests.reliability.mixed_ranks import MADE, MADE_RUN, REAL, heavier, shares_of_real
from tests.reliability.scenarios import differences, lines, trainer_of
from tests.reliability.trials import TORTURE


def check(folder: Path) -> None:
    """The run that went on after its second step, against the whole one."""
    whole, again = folder / "whole", folder / "again"
    for number in range(3, 7):
        name = f"checkpoint-{number}"
        assert differences(whole / name, again / name) == []
    assert lines(again) == lines(whole)


@pytest.mark.slow
def test_made_rows_go_on_bit_for_bit_on_two_ranks(tmp_path: Path) -> None:
    for code, output in launch("tests.reliability.mixed_ranks", [MADE, str(tmp_path)]):
        assert code == 0, output[-3000:]
    check(tmp_path)


@pytest.fixture(scope="module", params=[1, 2] if TORTURE else [2])
def real_run(
    request: pytest.FixtureRequest, real_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    arguments = [REAL, str(folder), str(real_data)]
    for code, output in launch("tests.reliability.mixed_ranks", arguments, ranks=request.param):
        assert code == 0, output[-3000:]
    return folder


@pytest.mark.slow
def test_three_real_files_go_on_bit_for_bit(real_run: Path) -> None:
    check(real_run)


@pytest.mark.slow
def test_shares_of_an_epoch_of_three_real_files_are_their_weights(real_run: Path) -> None:
    facts = json.loads((real_run / "whole" / "run.json").read_text())
    shares_of_real(facts["data"]["train"]["shares"])


def test_other_weights_are_another_experiment(tmp_path: Path) -> None:
    trainer_of(MADE_RUN, tmp_path, max_steps=2).train()
    with pytest.raises(SetupError, match=r"CP513 .*data train was .* as 4 x 1 \+ 3 x 2 \+ 4 x 1/2"):
        trainer_of({**MADE_RUN, "rows": heavier}, tmp_path, max_steps=2).train(
            resume_from_checkpoint=True
        )


def test_a_killed_process_leaves_what_goes_on(tmp_path: Path) -> None:
    """By SIGKILL, from within a step."""
    arguments = [sys.executable, "-m", "tests.reliability.mixed_ranks", "killed", str(tmp_path)]
    done = subprocess.run(arguments, env={**os.environ}, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -9
    trainer_of(MADE_RUN, tmp_path / "again", drawn=9).train(resume_from_checkpoint=True)
    trainer_of(MADE_RUN, tmp_path / "whole").train()
    check(tmp_path)
