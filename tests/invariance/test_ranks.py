"""Law 1 over processes: two ranks on gloo take the steps that one process takes.

Unequal shares and short last steps included: no pair is repeated to make shares even.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.engine.timed_layouts import FASTER
from tests.invariance.ranks import CASES, flat, multipliers, run_case
from tests.steps import distance

RANKS = 2
LIMITS = {"float32": 1e-6, "float64": 1e-12}


def launch(
    module: str, arguments: list[str], *, ranks: int = RANKS, seconds: int = 400
) -> list[tuple[int, str]]:
    """Start a module once a rank and wait; exit code and output of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=seconds)[0] for process in started]
    return [(p.returncode, text) for p, text in zip(started, outputs, strict=True)]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    for code, output in launch("tests.invariance.ranks", [str(folder)]):
        assert code == 0, output[-3000:]
    return folder, json.loads((folder / "seen.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Any]]]:
    """What one process does of a case, and the folder of its run; each is run once."""

    @cache
    def run(name: str) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path_factory.mktemp("alone")
        return folder, run_case(CASES[name], folder, ranks=1)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_take_the_steps_of_one(name: str, two_ranks, alone):
    (folder, seen), (_, one_rank) = two_ranks, alone(name)
    together = load_file(folder / f"{list(CASES).index(name)}.safetensors")
    limit = LIMITS[CASES[name].get("dtype", "float64")]
    assert distance(flat(one_rank["gradients"]), together) <= limit
    # the reported norm is transformers' own, in fp32
    for one, other in zip(one_rank["logs"], seen[name]["logs"], strict=True):
        assert other == pytest.approx(one, rel=1e-6)
    assert seen[name]["evaluated"] == pytest.approx(one_rank["evaluated"], rel=1e-6)
    assert seen[name]["scores"].keys() == one_rank["scores"].keys()
    for column, values in one_rank["scores"].items():
        assert seen[name]["scores"][column] == pytest.approx(values, rel=1e-6), column
    assert seen[name]["written"] == one_rank["written"]
    case = CASES[name]
    ways = 2 if case.get("eval_sample_temperature") else 1
    assert len(one_rank["written"]) == ways * case.get("eval_samples", 0)


@pytest.mark.slow
@pytest.mark.parametrize("faster", FASTER)
def test_two_ranks_choose_the_layout_that_the_slowest_of_them_does_faster(faster: str, two_ranks):
    for rank in range(RANKS):
        found = json.loads((two_ranks[0] / f"timed-{rank}.json").read_text())[faster]
        assert (found["engine"], found["layout"]) == ("ddp", faster)
        assert found["seconds"] == {
            name: 2 * max(one[name] for one in FASTER[faster]) for name in ("shared", "padded")
        }
        assert found["equal"]  # as a run that was told the layout, to the bit


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "constraints" in case])
def test_two_ranks_have_the_multipliers_of_one(name: str, two_ranks, alone):
    (_, seen), (_, one_rank) = two_ranks, alone(name)
    found = multipliers(one_rank["logs"])
    assert len(set(found)) > len(CASES[name]["constraints"])  # they do move
    assert multipliers(seen[name]["logs"]) == pytest.approx(found, rel=1e-12, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sigmoid", "experts", "short last step"])
def test_the_first_rank_sees_the_weights_move_as_one_process_does(name: str, two_ranks, alone):
    (folder, _), (own, _) = two_ranks, alone(name)
    looks = [
        [json.loads(line) for line in (path / "movement.jsonl").read_text().splitlines()]
        for path in (own, folder / f"run-{list(CASES).index(name)}")
    ]
    for one, other in zip(*looks, strict=True):
        assert one["tensors"].keys() == other["tensors"].keys()
        for tensor, found in one["tensors"].items():
            numbers = {name: value for name, value in found.items() if isinstance(value, float)}
            assert {n: other["tensors"][tensor][n] for n in numbers} == pytest.approx(
                numbers, rel=2e-3
            )


@pytest.mark.slow
def test_a_bad_pair_of_one_rank_stops_every_rank_with_the_same_words(two_ranks):
    folder, _ = two_ranks
    messages = [(folder / f"stopped-{rank}").read_text() for rank in range(RANKS)]
    assert messages[0] == messages[1]
    assert messages[0].startswith("CP401 step 1: the loss of row 7 is not finite.")


@pytest.mark.slow
def test_an_alarm_that_one_rank_hears_ends_the_run_on_every_rank_at_the_same_step(two_ranks):
    folder, _ = two_ranks
    messages = [(folder / f"alarm-{rank}").read_text() for rank in range(RANKS)]
    assert messages[0] == messages[1]
    assert messages[0].startswith("1 CP402 stopped after step 1 by CW421, ")
    assert (folder / "alarm" / "checkpoint-1").is_dir()
    (line,) = (folder / "alarm" / "alarms.jsonl").read_text().splitlines()
    assert json.loads(line)["seen"] == "seen by one."


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "memory" in case])
def test_what_one_rank_found_to_fit_is_written_down(name: str, two_ranks):
    folder, _ = two_ranks
    run = json.loads((folder / f"run-{list(CASES).index(name)}" / "run.json").read_text())
    assert 1 <= run["micro_batch_tokens"]["train"] <= CASES[name]["memory"][0]
