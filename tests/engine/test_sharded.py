"""FSDP2: ranks that share a model take the steps of one process that has all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.engine.sharded_ranks import CASES, cases, memory_cases, run
from tests.invariance.ranks import flat
from tests.invariance.test_ranks import launch
from tests.reliability.trials import TORTURE
from tests.steps import distance

LIMITS = {"float32": 1e-5, "float64": 1e-14}
"""Of gradients and weights, relative. Under autocast ranks compute the same numbers in bfloat16 of
the same micro-batches, so that float32 sums in another order are all that is left there, too."""
COUNTS = (2, 3, 4) if TORTURE else (3,)

pytest.importorskip("transformers.distributed", reason="transformers that load models in shards")


@pytest.fixture(scope="module", params=COUNTS)
def sharded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    arguments, seconds = [str(folder)], 60 * len(cases())
    for code, output in launch(
        "tests.engine.sharded_ranks", arguments, ranks=request.param, seconds=seconds
    ):
        assert code == 0, output[-3000:]
    return request.param, folder, json.loads((folder / "seen.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("alone")
    return {name: run(case, folder / str(at), 1) for at, (name, case) in enumerate(cases().items())}


@pytest.mark.slow
@pytest.mark.parametrize("name", cases())
def test_ranks_that_share_a_model_take_the_steps_of_one_process(name: str, sharded, alone):
    _, folder, seen = sharded
    one, found = alone[name], seen[name]
    assert (found["engine"], one["engine"]) == ("fsdp2", "plain")
    together = load_file(folder / f"{list(cases()).index(name)}.safetensors")
    precise = CASES[name].get("dtype", "float64")
    assert distance(flat(one["gradients"]), together) <= LIMITS[precise]
    rel = 1e-12 if precise == "float64" else 1e-5
    if "kl_drift/multiplier" in " ".join(one["logs"][-1]) and len(one["logs"]) > 2:
        # a copy in bfloat16 of weights that are gone would show no drift
        assert one["logs"][-1]["constraints/kl_drift/multiplier"] > 0
    for line, other in zip(one["logs"], found["logs"], strict=True):
        assert other == pytest.approx(line, rel=rel)
    assert found["evaluated"] == pytest.approx(one["evaluated"], rel=1e-6)
    assert (found["skipped"], found["culprits"]) == (one["skipped"], one["culprits"])
    assert one["skipped"] == ("bad_row" in CASES[name])
    assert found["written"] == one["written"]
    assert found["written"][:1] == found["written"][1:]  # by the model that was saved, too
    assert found["mean"] == pytest.approx(one["mean"], rel=max(rel, 1e-6))


@pytest.mark.slow
def test_each_rank_holds_its_share_of_the_weights(sharded):
    count, _, seen = sharded
    for name, found in seen.items():
        if "adapter" not in name:  # which every rank has whole where it came after the sharding
            whole = found["copies"] * found["weights"]
            assert sum(found["held"]) == whole, name
            assert max(found["held"]) <= 1.2 * whole / count, name


ROW = r"CP505 row \d+ does not fit in memory \(CUDA out .* its \d+ input tokens were alone\."
PASS = (
    r"CP505 memory ran out in the micro-batch of \d+ tokens in which ranks take part in every "
    r"pass, where the others cannot go back .* Set max_micro_batch_tokens=\d+ or lower\."
)
ENDS = {
    "some pairs": PASS,
    "some pairs, in a forward": PASS,
    "an evaluation": PASS,
    "a proof": r"CP505 memory ran out while head and layout were proved on ",
    "the optimizer": r"CP522 memory ran out, and not in a micro-batch \(CUDA out of memory\.",
    "a batch on its way to the device": r"CP522 memory ran out, and not in a micro-batch ",
}
"""How the rank ends on which memory runs out; all others where a pair does not fit alone."""


@pytest.mark.slow
def test_a_run_through_accelerate_is_resumed_bit_for_bit(sharded):
    """An adapter over nf4: codes lie in shards, and the model's class is one made of two."""
    count, folder, _ = sharded
    said = [(folder / f"resumed-{rank}").read_text() for rank in range(count)]
    assert said == ["fsdp2 the same"] * count


@pytest.mark.slow
@pytest.mark.parametrize("name", memory_cases())
def test_memory_that_runs_out_on_one_rank_ends_all_of_them_with_what_to_do(name: str, sharded):
    count, folder, _ = sharded
    said = [(folder / f"{name}, rank {rank}").read_text() for rank in range(count)]
    assert re.match(ENDS.get(name, ROW), said[1]), said[1]
    assert all(one.startswith("CP404 rank ") for rank, one in enumerate(said) if rank != 1), said
