"""Claim: no step has a reference's weights in memory, and a second start asks it nothing.

The same run in processes of their own, in turns: a loss without a reference, DPO with a named one
that is asked, and DPO once more, when the cache has what it said. Same model, pairs and optimizer.

1. ``training``: the peak of the process in the steps after the first, in MiB.
2. ``before``: the peak until the first step begins. The reference is loaded and asked there, and
   head and layout are proved.

    COUNTERPOINT_DATA=DATA python benchmarks/beside_reference.py [--rounds 3]
    python benchmarks/beside_reference.py --docs       the table of docs/references.md, no more

Four minutes on two cores, and Linux for the memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import step

RESULTS = step.RESULTS / "beside_reference.json"
PAGE = step.ROOT / "docs" / "references.md"
NONE, ASKED, CACHED = "none", "asked", "cached"
SIDES = {
    NONE: "`sigmoid`, which compares with nothing",
    ASKED: "`dpo` with `--reference MODEL`, first start",
    CACHED: "the same, second start",
}
MODEL, PAIRS, STEPS = step.SMALL, 4, 4


def make_models(folder: Path) -> int:
    """Save the tokenizer and the reference; bytes of the reference's weights."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    step.tokenizer_for(MODEL["vocab_size"]).save_pretrained(folder / "tokenizer")
    torch.manual_seed(1)
    options = dict(MODEL)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[options.pop("model_type")](**options))
    model.save_pretrained(folder / "reference")
    return sum(weight.nbytes for weight in model.parameters())


def worker(side: str, folder: Path, own: Path) -> dict[str, Any]:
    """One run in a folder of its own, watched."""
    from transformers import TrainerCallback

    from counterpoint.step import references

    compared = {"loss_type": "dpo", "reference": str(folder / "reference")}
    work = {
        **{"model": MODEL, "data": "hh", "pairs": PAIRS, "bf16": False, "steps": STEPS},
        "options": {"cpo_alpha": 0.0} if side == NONE else compared,
    }
    trainer = step.trainer_of("counterpoint", work, own)
    asked: list[int] = []
    once = references._table

    def counted(reader: Any, size: int, keyed: Any) -> Any:
        asked.append(len(keyed))
        return once(reader, size, keyed)

    references._table = counted
    seen: dict[str, float] = {}

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                seen["before"] = step.most_held() / 2**20
            if state.global_step == step.WARM_UP:
                step.peak_from_here()

    trainer.add_callback(Watch())
    step.held()  # what preparing has freed must not count
    step.peak_from_here()
    trainer.train()
    return {
        **seen,
        "training": step.most_held() / 2**20,
        "asked": sum(asked),
        "loss": trainer.state.log_history[-1]["train_loss"],
    }


def measure(rounds: int) -> dict[str, Any]:
    """All sides in turns; each round has a cache of its own."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="counterpoint-reference-") as place:
        folder = Path(place)
        weights = make_models(folder)
        for number in range(rounds):
            cache = {"COUNTERPOINT_CACHE": str(folder / f"cache-{number}")}
            for side, results in found.items():
                results.append(step.in_own_process(__file__, side, str(folder), env=cache))
            first, second = found[ASKED][-1], found[CACHED][-1]
            assert first["asked"] > second["asked"] == found[NONE][-1]["asked"] == 0
            assert first["loss"] == second["loss"]
    return {"reference_mb": weights / 2**20, "rounds": rounds, "sides": found}


def table(found: dict[str, Any]) -> str:
    """What the page shows."""
    lines = [
        "| run | pairs asked | steps, peak MiB | against no reference | before the first step, "
        "peak MiB |",
        "|---|---:|---:|---:|---:|",
    ]
    sides = found["sides"]
    base = statistics.median(one["training"] for one in sides[NONE])
    for side, results in sides.items():
        cells = [_spread([one[name] for one in results]) for name in ("training", "before")]
        more = statistics.median(one["training"] for one in results) - base
        lines.append(
            f"| {SIDES[side]} | {results[0]['asked']} | {cells[0]} | {more:+.0f} | {cells[1]} |"
        )
    machine = found["machine"]
    return "\n".join(
        [
            *lines,
            "",
            f"Of the whole process; the reference has {found['reference_mb']:.0f} MiB of weights. "
            f"Medians (least to most) of {found['rounds']} rounds in turns, on "
            f"{machine['cores']} cores, {machine['cpu']}. `python benchmarks/beside_reference.py`",
        ]
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--docs", action="store_true", help="write the page's table, no more")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        side, folder = asked.worker
        with step.own_folder(folder) as own:
            print(json.dumps(worker(side, Path(folder), own)))
        return
    if asked.docs:
        step.put_between(PAGE, "beside_reference", table(json.loads(RESULTS.read_text())))
        return
    step.need_data()
    found = {**measure(asked.rounds), "machine": step.machine()}
    step.write_results(RESULTS, found)
    print(table(found))


if __name__ == "__main__":
    main()
