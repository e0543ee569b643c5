"""Claim: watching the parameters costs at most 2 % of a step, at the default interval.

1. What a look takes: seconds inside the monitor's own hooks, at every second step, against the
   steps between them, which have none; so both are of one run. Taking the start, and the hooks at
   a step without a look, are timed apart.
2. Whole runs of the quickstart's model, 40 steps with the default interval (looks after steps 1,
   2, 5, 10, 20 and 40) and without the monitor, in turns, each in a process of its own. Their
   ratio has the noise of the machine in it, which is larger than what is looked for; it is there
   to show that nothing is hidden outside the hooks.

    python benchmarks/monitor.py [--rounds 3] [--rows quickstart ...]   into results/monitor.json
    python benchmarks/monitor.py --docs                                 write docs/monitor.md

The page's example (a real look and a real ``counterpoint diff``) is of the quickstart, and is made
here too. Ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import step

from counterpoint.monitor.callback import is_look

EVERY = 50
"""The default of ``monitor_steps``."""
QUICKSTART_STEPS = 120
GOAL = 2.0
"""Percent of a step, on average."""
PAGE = step.ROOT / "docs" / "monitor.md"
WORK: dict[str, dict[str, Any]] = {
    "quickstart": {"name": "the quickstart's model, 32 pairs", "steps": 40, "runs": 3},
    "weights": {
        "name": "Qwen3-shaped 34M, all weights, hh-rlhf, 8 pairs, fp32",
        "steps": 6,
        "lora": False,
        "bf16": False,
    },
    "weights-bf16": {
        "name": "the same model and pairs, bf16",
        "steps": 6,
        "lora": False,
        "bf16": True,
    },
    "lora": {
        "name": "the same model and pairs, frozen, with LoRA of rank 8, fp32",
        "steps": 6,
        "lora": True,
        "bf16": False,
    },
}
EXAMPLE = "example"
RUN_STEPS = 40


def trainer_of(row: str, folder: Path, *, steps: int, every: int) -> Any:
    """A trainer of a row's work."""
    if row == "quickstart":
        from counterpoint import CPOConfig, CPOTrainer
        from counterpoint.quickstart.run import STEP_PAIRS, training_options
        from counterpoint.quickstart.task import preference_pairs
        from counterpoint.quickstart.translate import load_base

        model, tokenizer = load_base()
        options = training_options(folder, seed=0, steps=steps)
        rows = [pair.row for pair in preference_pairs(steps * STEP_PAIRS, seed=0)]
        args = CPOConfig(**options, monitor_steps=every)
        return CPOTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    work = WORK[row]
    options = {"monitor_steps": every, "max_steps": steps}
    content = {"data": "hh", "model": step.SMALL, "pairs": 8, "bf16": work["bf16"]}
    rows = step.rows_of("hh", 8 * steps)
    trainer = step.trainer_of("counterpoint", {**content, "rows": rows, "options": options}, folder)
    return adapted(trainer) if work["lora"] else trainer


def adapted(trainer: Any) -> Any:
    """The same trainer with an adapter on a frozen model."""
    import peft

    from counterpoint import CPOTrainer

    return CPOTrainer(
        model=trainer.model,
        args=trainer.args,
        processing_class=trainer.processing_class,
        train_dataset=trainer.train_dataset,
        peft_config=peft.LoraConfig(target_modules="all-linear", r=8),
    )


class Clock:
    """Ends of steps, and the seconds that the monitor's hooks take within each."""

    def __init__(self, trainer: Any) -> None:
        """Time the hooks from here on."""
        from transformers import TrainerCallback

        self.ends: list[float] = []
        self.inside: list[float] = [0.0]
        self.start = 0.0
        clock = self

        class Ends(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                clock.ends.append(time.perf_counter())
                clock.inside.append(0.0)

        trainer.add_callback(Ends())
        if trainer.monitor is not None:
            for name in ("on_train_begin", "on_pre_optimizer_step", "on_optimizer_step"):
                setattr(trainer.monitor, name, self._timed(getattr(trainer.monitor, name)))

    def _timed(self, hook: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any, **kwargs: Any) -> None:
            begun = time.perf_counter()
            hook(*args, **kwargs)
            self.inside[-1] += time.perf_counter() - begun
            if not self.ends and not self.start:
                self.start, self.inside[-1] = self.inside[-1], 0.0

        return timed


def looks(row: str, folder: Path) -> dict[str, Any]:
    """Part 1: a run in which every second step is looked at; the first two only warm up."""
    steps = WORK[row]["steps"] + 3
    trainer = trainer_of(row, folder, steps=steps, every=2)
    clock = Clock(trainer)
    trainer.train()
    # of step n: from the end of step n - 1 to its own, without what the monitor took in it
    whole = [b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False)]
    taken = clock.inside[1 : len(whole) + 1]
    plain = [seconds - inside for seconds, inside in zip(whole, taken, strict=True)]
    numbers = range(2, len(whole) + 2)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    later = [n for n in numbers if 2 < n < steps]
    return {
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "trained": trained,
        "start": clock.start,
        "step": [plain[n - 2] for n in later],
        "look": [taken[n - 2] for n in later if is_look(n, 2)],
        "between": [taken[n - 2] for n in later if not is_look(n, 2)],
    }


def whole_run(row: str, folder: Path, *, every: int) -> dict[str, Any]:
    """Part 2: seconds of a run after its first step."""
    trainer = trainer_of(row, folder, steps=RUN_STEPS, every=every)
    clock = Clock(trainer)
    trainer.train()
    return {"seconds": clock.ends[-1] - clock.ends[0]}


def measure(row: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Both parts of a row, in turns."""
    found = [step.in_own_process(__file__, row, "looks", str(folder)) for _ in range(rounds)]
    ratios = []
    for _ in range(WORK[row].get("runs", 0)):
        on, off = (
            step.in_own_process(__file__, row, part, str(folder))["seconds"]
            for part in ("with", "without")
        )
        ratios.append(on / off)
    several = {
        name: [x for one in found for x in one[name]] for name in ("step", "look", "between")
    }
    result = {name: spread(values) for name, values in several.items()}
    result["start"] = spread([one["start"] for one in found])
    a_step, a_look = result["step"]["median"], result["look"]["median"]
    between = result["between"]["median"]
    early = sum(is_look(n, EVERY) or n == QUICKSTART_STEPS for n in range(1, QUICKSTART_STEPS + 1))
    begun = result["start"]["median"]
    return {
        "name": WORK[row]["name"],
        "parameters": found[0]["parameters"],
        "trained": found[0]["trained"],
        "seconds": result,
        "percent": 100 * (a_look / EVERY + between) / a_step,
        "percent_of_120": 100
        * (begun + early * a_look + (QUICKSTART_STEPS - early) * between)
        / (QUICKSTART_STEPS * a_step),
        "runs": spread(ratios) if ratios else None,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def example() -> dict[str, Any]:
    """The quickstart's last look, group by group, and what ``counterpoint diff`` says of it."""
    from counterpoint.cli.diff import lines
    from counterpoint.monitor.difference import compare_weights
    from counterpoint.monitor.weight_files import WeightFiles
    from counterpoint.quickstart.run import run
    from counterpoint.runlog import read_run

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        result = run(Path(folder) / "q", held_out=1)
        log = read_run(result.model)
        with WeightFiles(result.folder / "base") as a, WeightFiles(result.model) as b:
            shown = "\n".join(lines(compare_weights(a, b), 80))
    look = log.movement[-1]
    return {
        "steps": [one["step"] for one in log.movement],
        "alarms": [alarm["code"] for alarm in log.alarms],
        "look": {key: look[key] for key in ("step", "since", "last", "learning_rate", "groups")},
        "diff": shown,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The costs as docs/monitor.md shows them."""
    lines = [
        "| | a step | a look | average at the default | first 120 steps, start included | "
        "whole runs, with over without |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.get("row") == EXAMPLE:
            continue
        seconds = row["seconds"]
        cells = [
            row["name"],
            _seconds(seconds["step"]),
            _seconds(seconds["look"]),
            f"{row['percent']:.2f} % "
            f"({step.against(row['percent'], GOAL, unit=' %', at_most=True)})",
            f"{row['percent_of_120']:.2f} %",
            "{median:.3f} ({min:.3f} to {max:.3f})".format(**row["runs"]) if row["runs"] else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _seconds(one: dict[str, float]) -> str:
    return "{:.1f} ms ({:.1f} to {:.1f})".format(
        *(1000 * one[key] for key in ("median", "min", "max"))
    )


def look_shown(rows: Sequence[dict[str, Any]]) -> str:
    """The example's look as docs/monitor.md shows it."""
    found = next(row for row in rows if row["row"] == EXAMPLE)
    look = found["look"]
    lines = [
        f"The last of its looks, after steps {', '.join(map(str, found['steps']))}; alarms: "
        f"{', '.join(found['alarms']) or 'none'}. At step {look['step']}:",
        "",
        "| group | tensors | weights | moved | moved since the last look | update | stuck | "
        "gradient norm |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for group, one in look["groups"].items():
        numbers = [
            f"{one['tensors']}",
            f"{one['trainable']:,}",
            f"{one['moved']:.2%}",
            f"{one['moved_last']:.2%}",
            f"{one['update']:.3g}",
            f"{one['stuck']:.2%}",
            f"{one['grad_norm']:.3g}",
        ]
        lines.append(f"| {' | '.join([group, *numbers])} |")
    return "\n".join(lines)


def diff_shown(rows: Sequence[dict[str, Any]]) -> str:
    """The example's difference as docs/monitor.md shows it."""
    found = next(row for row in rows if row["row"] == EXAMPLE)
    words = "$ counterpoint diff counterpoint-quickstart/base counterpoint-quickstart/cpo"
    return f"```\n{words}\n{found['diff']}\n```"


def write_docs() -> None:
    """Put the results into the page."""
    rows = json.loads((step.RESULTS / "monitor.json").read_text())["rows"]
    for name, shown in (("monitor", table), ("look", look_shown), ("diff", diff_shown)):
        step.put_between(PAGE, name, shown(rows))


@contextmanager
def folder_of(row: str, shared: str) -> Iterator[Path]:
    if row == "quickstart":
        with tempfile.TemporaryDirectory() as own:
            yield Path(own)
    else:
        with step.own_folder(shared) as own:
            yield own


def worker(row: str, part: str, shared: str) -> dict[str, Any]:
    """One measurement, in this process."""
    with folder_of(row, shared) as own, redirect_stdout(io.StringIO()):
        if part == "looks":
            return looks(row, own)
        return whole_run(row, own, every=EVERY if part == "with" else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parts = [*WORK, EXAMPLE]
    parser.add_argument("--rows", nargs="+", choices=parts, default=parts, help="or the example")
    parser.add_argument("--into", type=Path, default=step.RESULTS, help="folder of the results")
    parser.add_argument("--docs", action="store_true", help="write the page, measure nothing")
    parser.add_argument("--worker", nargs=3, metavar=("ROW", "PART", "FOLDER"))
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(*options.worker)))
        return
    if options.docs:
        write_docs()
        return
    step.need_data()
    with tempfile.TemporaryDirectory() as folder:
        step.tokenizer_for(32000).save_pretrained(Path(folder) / "tokenizer")
        for row in options.rows:
            if row == EXAMPLE:
                found = example()
            else:
                found = measure(row, options.rounds, Path(folder))
                print(table([found]).splitlines()[-1], flush=True)
            content = {"row": row, "machine": step.machine(), **found}
            step.keep(content, options.into / "monitor.json", parts)


if __name__ == "__main__":
    main()
