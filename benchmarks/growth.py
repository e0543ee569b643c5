"""Claim: a step costs less time and memory than TRL's wherever it is measured; how both grow.

Of pairs a step, prompt, completion, vocabulary and model one grows while the others stay at the
base. Each (side, point) trains in a process of its own, the sides taking turns; clock and memory
are those of ``step.py``. Every round is written when it is done.

    python benchmarks/growth.py                  all of it, into results/growth.json: 25 minutes
    python benchmarks/growth.py --bf16           the same in bf16, into results/growth-bf16.json
    python benchmarks/growth.py --axes prompt    one axis; the others stay in the file
    python benchmarks/growth.py --axes prompt --points 2 --rounds 1
                                                 the two shortest prompts, printed, nothing written
    python benchmarks/growth.py --docs           draw docs/growth.svg and write the table of
                                                 docs/speed.md from results/growth.json

Not here: real lengths (``step.py``). All pairs are equally long, so that TRL's batches have no
padding, which is the best case for it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import step

DOCS = step.ROOT / "docs"
SIDES = {"trl": "TRL 1.16", "counterpoint": "Counterpoint"}
WORDS = 4000
"""Words of the tokenizer; no vocabulary on the axis is smaller."""


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the axes.

    Args:
        pairs: pairs of a step.
        prompt: tokens of every prompt.
        completion: tokens of every completion, its EOS included.
        vocabulary: rows of the embedding, which is the head as well.
        width: width of the model.
        layers: layers of the model.
    """

    pairs: int = 4
    prompt: int = 128
    completion: int = 64
    vocabulary: int = 32000
    width: int = 384
    layers: int = 6


BASE = Point()
MODELS = ((128, 4), (256, 4), (BASE.width, BASE.layers), (640, 10), (1024, 10))
AXES: dict[str, tuple[Point, ...]] = {
    "pairs": tuple(replace(BASE, pairs=n) for n in (2, 4, 8, 16, 32)),
    "prompt": tuple(replace(BASE, prompt=n) for n in (16, 64, 128, 384, 1024)),
    "completion": tuple(replace(BASE, completion=n) for n in (16, 32, 64, 192, 512)),
    "vocabulary": tuple(replace(BASE, vocabulary=n) for n in (4096, 16384, 32000, 65536, 151936)),
    "model": tuple(replace(BASE, width=width, layers=layers) for width, layers in MODELS),
}
LABELS = {
    "pairs": "pairs a step",
    "prompt": "prompt tokens",
    "completion": "completion tokens",
    "vocabulary": "vocabulary",
    "model": "parameters",
}


def qwen3(width: int, layers: int, vocabulary: int) -> dict[str, Any]:
    """A Qwen3 of a width that is a multiple of 128, heads of 64, embedding and head tied."""
    return {
        "model_type": "qwen3",
        "hidden_size": width,
        "intermediate_size": width * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 128,
        "head_dim": 64,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }


def tokenizer() -> Any:
    """One token a word, so that a text has as many tokens as words on either side."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", *(f"w{n}" for n in range(2, WORDS))]
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>")


def rows_at(point: Point, count: int) -> list[dict[str, str]]:
    """Pairs of random words with the point's lengths; both sides end completions with EOS."""
    rng = random.Random(0)

    def text(words: int) -> str:
        return "".join(f" w{rng.randrange(2, WORDS)}" for _ in range(words))

    before_eos = point.completion - 1
    return [
        {"prompt": text(point.prompt), "chosen": text(before_eos), "rejected": text(before_eos)}
        for _ in range(count)
    ]


def measure(side: str, point: Point, folder: Path, *, bf16: bool, steps: int) -> dict[str, Any]:
    """Train at a point, in this process; as ``step.train``."""
    work = {
        "steps": steps,
        "model": qwen3(point.width, point.layers, point.vocabulary),
        "pairs": point.pairs,
        "bf16": bf16,
        "rows": rows_at(point, point.pairs * (step.WARM_UP + steps)),
        "options": {"max_length": point.prompt + point.completion},
    }
    return step.train(step.trainer_of(side, work, folder))


def grow(
    points: Sequence[Point], options: argparse.Namespace
) -> Iterator[dict[Point, dict[str, Any]]]:
    """Every point, round after round, the sides in turns.

    Yields:
        After each round: medians, minimum and maximum of each point so far.
    """
    runs: dict[tuple[Point, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        tokenizer().save_pretrained(Path(name) / "tokenizer")
        for _ in range(options.rounds):
            for point in points:
                for side in SIDES:
                    work = {"bf16": options.bf16, "steps": options.steps, **asdict(point)}
                    run = step.in_own_process(__file__, side, json.dumps(work), name)
                    runs.setdefault((point, side), []).append(run)
                    print(
                        f"{side:12} {run['seconds'][-1]:7.2f} s {run['peak_mb']:7,.0f} MB  {point}",
                        flush=True,
                    )
            yield {
                point: {
                    "parameters": runs[point, "trl"][0]["parameters"],
                    **{side: _spread(runs[point, side]) for side in SIDES},
                }
                for point in points
            }


def _spread(runs: list[dict[str, Any]]) -> dict[str, float]:
    seconds = [second for run in runs for second in run["seconds"]]
    return {
        "seconds": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "peak_mb": statistics.median(run["peak_mb"] for run in runs),
        "peak_mb_min": min(run["peak_mb"] for run in runs),
        "peak_mb_max": max(run["peak_mb"] for run in runs),
    }


def growth(values: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent of a cost from the last point but one to the last: 1 where it doubles with x.

    Args:
        values: along the axis, rising, at least two.
        costs: at each of them.

    Returns:
        The exponent; NaN where a cost was too small to be measured and is 0.
    """
    if min(costs[-2:]) <= 0:
        return math.nan
    return math.log(costs[-1] / costs[-2]) / math.log(values[-1] / values[-2])


def values_of(axis: str, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Where an axis's results lie on it."""
    return [row["parameters" if axis == "model" else axis] for row in rows]


# The page


def page(results: Mapping[str, Any]) -> str:
    """The picture and the table, as docs/speed.md shows them."""
    picture = "![Seconds a step and memory over each axis, TRL and Counterpoint](growth.svg)"
    return f"{picture}\n\n{table(results)}"


def table(results: Mapping[str, Any]) -> str:
    """How cost grows at the end of each axis, and how the sides compare at both ends."""
    lines = [
        "| from, to | time: TRL | ours | memory: TRL | ours | at the start | at the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for axis, rows in results["axes"].items():
        values = values_of(axis, rows)
        powers = [
            f"x^{growth(values, [row[side][unit] for row in rows]):.2f}"
            for unit in ("seconds", "peak_mb")
            for side in SIDES
        ]
        name = f"{LABELS[axis]}: {short(values[0])}, {short(values[-1])}"
        ends = [_compared(row) for row in (rows[0], rows[-1])]
        lines.append("| " + " | ".join([name, *powers, *ends]) + " |")
    return "\n".join(lines)


def _compared(row: Mapping[str, Any]) -> str:
    ours, theirs = row["counterpoint"], row["trl"]
    faster = theirs["seconds"] / ours["seconds"]
    return f"{faster:.1f} ×, {100 * ours['peak_mb'] / theirs['peak_mb']:.0f} %"


def short(value: float) -> str:
    """As 128, 32k or 22M."""
    if value >= 1e6:
        return f"{value / 1e6:.0f}M"
    return f"{value / 1e3:.0f}k" if value >= 4000 else f"{value:.0f}"


INK, GRID, COLOURS = "#1f2328", "#d8dee4", {"trl": "#c4611a", "counterpoint": "#0969a8"}
MARKERS = {"trl": "s", "counterpoint": "o"}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """The growth of both sides on every axis, time above memory, as one picture.

    Args:
        results: as ``main`` writes them.
        path: ends with the kind of picture, svg or png.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    style = {
        # the same results give the same bytes
        "svg.hashsalt": "growth",
        "font.size": 9,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    axes = results["axes"]
    with mpl.rc_context(style):
        figure, panels = pyplot.subplots(
            2, len(axes), figsize=(2.4 * len(axes), 4.6), sharex="col", sharey="row", squeeze=False
        )
        for column, (axis, rows) in enumerate(axes.items()):
            for line, unit in enumerate(("seconds", "peak_mb")):
                _panel(panels[line][column], axis, rows, unit)
            panels[1][column].set_xlabel(LABELS[axis])
        panels[0][0].set_ylabel("seconds a step")
        panels[1][0].set_ylabel("MB above weights,\ngradients, optimizer")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=len(SIDES), frameon=False)
        figure.tight_layout(rect=(0, 0, 1, 0.94))
        # its own background: a page may be dark
        figure.savefig(path, facecolor="white", metadata=_undated(path))
        pyplot.close(figure)


def _undated(path: Path) -> dict[str, None]:
    return {"Date": None} if path.suffix == ".svg" else {}


def _panel(panel: Any, axis: str, rows: Sequence[Mapping[str, Any]], unit: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    values = values_of(axis, rows)
    low, high = ("min", "max") if unit == "seconds" else ("peak_mb_min", "peak_mb_max")
    for side, name in SIDES.items():
        costs = {key: [row[side][key] for row in rows] for key in (unit, low, high)}
        colour = COLOURS[side]
        panel.fill_between(values, costs[low], costs[high], color=colour, alpha=0.18, linewidth=0)
        panel.plot(
            values, costs[unit], color=colour, marker=MARKERS[side], markersize=4, label=name
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(values, [short(value) for value in values])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:,g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_minor_locator(NullLocator())
    panel.grid(color=GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def write_docs() -> None:
    """Draw the picture and put the table between the page's markers."""
    results = json.loads((step.RESULTS / "growth.json").read_text())
    draw(results, DOCS / "growth.svg")
    step.put_between(DOCS / "speed.md", "growth", page(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="steps timed in a process")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--points", type=int, help="that many points of each axis, from the least")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--into", type=Path, default=step.RESULTS, help="folder of the results")
    parser.add_argument("--docs", action="store_true", help="draw docs/growth.svg, write the table")
    parser.add_argument("--worker", nargs=3, metavar=("SIDE", "WORK", "FOLDER"))
    options = parser.parse_args()
    if options.worker:
        side, work, folder = options.worker
        wanted = json.loads(work)
        how = {key: wanted.pop(key) for key in ("bf16", "steps")}
        with step.own_folder(folder) as own:
            print(json.dumps(measure(side, Point(**wanted), own, **how)))
        return
    if options.docs:
        write_docs()
        return
    about = step.machine()
    axes = {axis: AXES[axis][: options.points] for axis in options.axes}
    # the base lies on every axis and is measured once
    points = list(dict.fromkeys(point for of in axes.values() for point in of))
    for rounds, found in enumerate(grow(points, options), 1):
        results = {
            "machine": about,
            "bf16": options.bf16,
            "rounds": rounds,
            "steps": options.steps,
            "base": asdict(BASE),
            "axes": {
                axis: [{**asdict(point), **found[point]} for point in of]
                for axis, of in axes.items()
            },
        }
        if options.points is None:
            path = options.into / ("growth-bf16.json" if options.bf16 else "growth.json")
            before = json.loads(path.read_text()) if path.exists() else {"axes": {}}
            results["axes"] = {
                axis: of
                for axis in AXES
                if (of := results["axes"].get(axis) or before["axes"].get(axis))
            }
            step.write_results(path, results)
    if options.points != 1:
        print(table(results))


if __name__ == "__main__":
    main()
