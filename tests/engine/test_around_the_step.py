"""Around the step under FSDP2: what ranks that share a model evaluate, write, hold and watch.

All of it is what one process has that holds all of the model; and no rank waits for another one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.engine.around_ranks import BY_NAME, CASES, TIMED, by_name, run
from tests.invariance.test_ranks import launch
from tests.steps import distance

RANKS = 2

pytest.importorskip("transformers.distributed", reason="transformers that load models in shards")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have trained."""
    folder = tmp_path_factory.mktemp("together")
    for code, output in launch("tests.engine.around_ranks", [str(folder)], ranks=RANKS):
        assert code == 0, output[-3000:]
    return folder


@pytest.fixture(scope="module")
def together(folder: Path) -> list[dict[str, Any]]:
    """What each of two ranks saw."""
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("alone")
    return {name: run(case, folder / str(at), 1) for at, (name, case) in enumerate(CASES.items())}


def same(found: Any, expected: Any, rel: float) -> None:
    """Equal, numbers to rounding; with the place in the message."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            try:
                same(found[key], value, rel)
            except AssertionError as error:
                raise AssertionError(f"{key}: {error}") from None
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other, rel)
    elif isinstance(expected, int | float):
        assert found == pytest.approx(expected, rel=rel, abs=1e-12, nan_ok=True)
    else:
        assert found == expected


@pytest.mark.parametrize("name", CASES)
def test_every_number_of_a_run_is_that_of_one_process(name: str, together, alone):
    """Losses, drift, bounds, multipliers; and of evaluations, one of them of a single pair."""
    one, first = alone[name], together[0][name]
    assert (first["engine"], one["engine"]) == ("fsdp2", "plain")
    for part in ("logs", "evaluated", "predicted", "scores"):
        same(first[part], one[part], rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_texts_are_those_of_one_process(name: str, together, alone):
    assert together[0][name]["written"] == alone[name]["written"]
    kinds = {kind for kind, _ in alone[name]["written"]}
    assert kinds == {"greedy", "sampled"}


@pytest.mark.parametrize("name", CASES)
def test_the_monitor_sees_all_shards(name: str, together, alone):
    looks, expected = together[0][name]["movement"], alone[name]["movement"]
    assert len(expected) >= 2
    same(looks, expected, rel=2e-3)  # four digits are written


@pytest.mark.parametrize("name", CASES)
def test_all_ranks_know_the_same(name: str, together):
    first, other = (seen[name] for seen in together)
    for part in ("evaluated", "predicted", "scores"):
        assert other[part] == first[part]


@pytest.mark.parametrize("name", BY_NAME)
def test_a_model_by_its_name_is_loaded_in_shards_and_trained_as_by_one_process(
    name: str, folder: Path, together, tmp_path: Path
):
    """``torchrun -m counterpoint train --fsdp 2`` on CPUs, all of the command included."""
    one = by_name(BY_NAME[name], tmp_path, 1)
    assert one == {"code": 0, "by shard": []}
    for seen in together:
        assert seen["by name"][name]["code"] == 0
        assert seen["by name"][name]["by shard"]
    file = "adapter_model.safetensors" if "adapter" in name else "model.safetensors"
    at = list(BY_NAME).index(name)
    found, expected = (load_file(one / "run" / file) for one in (folder / f"named-{at}", tmp_path))
    start = load_file(tmp_path / "model" / "model.safetensors")
    assert distance(expected, found) <= 1e-14
    assert "adapter" in name or distance(expected, start) > 1e-4  # it did train


def test_shards_on_the_host_take_the_same_steps_bit_for_bit(together):
    """Clipped, watched, bounded in its drift, saved by shard and resumed, under FSDP2's policy."""
    for seen in together:
        found = seen["on the host"]
        assert found["policies"] == ["CPUOffloadPolicy"]
        assert found["engine"] == "fsdp2"
        assert found["moved"]
        assert found["same weights"]
        assert found["same moments"]
        assert found["same lines"]
        assert found["same movement"]
        assert found["same weights, resumed"]


@pytest.mark.parametrize(("faster", "door"), TIMED)
def test_a_trial_of_layouts_leaves_nothing_in_the_shards_of_any_rank(faster, door, together):
    """Weights are those of a run that was told the layout, to the bit; the slowest rank decides."""
    first, other = (seen["timed"][f"{faster}, {door}"] for seen in together)
    assert first == other
    assert (first["engine"], first["layout"], first["equal"]) == ("fsdp2", faster, True)
    assert min(first["seconds"], key=first["seconds"].get) == faster
