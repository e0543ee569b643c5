"""The model's card: what a hub and a reader want to know of weights, from the run that made them.

The front matter is that of Hugging Face's hub. Nothing of the machine gets in, and no text of the
data.

Not here: how to make the run again (``recipe``), what a run's files do not say (``about``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from counterpoint.constraints import KINDS
from counterpoint.errors import SetupError
from counterpoint.language import speaking
from counterpoint.objectives import DEFAULT_LOSS, LOSSES
from counterpoint.report import story
from counterpoint.report.about import About
from counterpoint.report.charts import number
from counterpoint.report.constraints import constraint_in_words
from counterpoint.report.curves import SeriesTable, panels_of, read_series, sets_of
from counterpoint.report.recipe import hub_id, recipe
from counterpoint.runlog import ALARMS, CONSTRAINTS, METRICS, Run, read_run
from counterpoint.staged import staged
from counterpoint.visible import visible

CARD = "README.md"
"""The card's name beside the weights."""

OURS = "<!-- Written by Counterpoint, and written anew with every save. Remove this line to keep "
"""How the mark begins by which a card of ours is known."""

_MARK = f"{OURS}your own text. -->"


def may_write(path: Path) -> bool:
    """Whether a card may be written: where there is none, or one that was written here.

    Args:
        path: of the card.
    """
    try:
        return OURS in path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False


def write_card(folder: Path, run_folder: Path, about: About) -> None:
    """Write the card beside the weights.

    Args:
        folder: of the weights.
        run_folder: of the run that made them; need not hold a run.
        about: what its files do not say.
    """
    try:
        run = read_run(run_folder, (METRICS, ALARMS))
    except SetupError:  # a model can be saved without having been trained
        run = Run(run_folder, {}, (), (), (), ())
    with staged(folder / CARD) as file:
        file.write(visible(model_card(run, about)).encode())


@speaking("en")
def model_card(run: Run, about: About) -> str:
    """The card as Markdown, in English whatever is spoken: others than the trainer's user read it.

    Args:
        run: its facts, metrics and alarms; the other streams are not looked at.
        about: what these do not say.
    """
    series = read_series(run.metrics)
    parts = [
        f"---\n{_front_matter(run, about)}---\n",
        f"{_MARK}\n",
        f"# {_plain(about.name)}\n",
        _summary(run, about),
        *_objective(run),
        *_constraints(run, series),
        *_results(series),
        *_alarms(run),
        *_data(run),
        *recipe(run, base=about.base, datasets=about.datasets),
        *_versions(run),
        *_citation(run),
    ]
    return "\n".join(parts)


def _front_matter(run: Run, about: About) -> str:
    content: dict[str, Any] = {}
    if hub_id(about.base):
        content["base_model"] = about.base
        content["base_model_relation"] = "adapter" if about.adapter else "finetune"
    content["library_name"] = "peft" if about.adapter else "transformers"
    content["pipeline_tag"] = about.task
    if about.language:
        content["language"] = about.language
    if about.license:
        content["license"] = about.license
    loss_type = str((run.facts.get("options") or {}).get("loss_type", ""))
    tags = ["counterpoint", "preference-optimization", "cpo", loss_type, *about.tags]
    if about.adapter:
        tags.append("lora")
    content["tags"] = [tag for tag in dict.fromkeys(tags) if tag and tag != DEFAULT_LOSS]
    if about.datasets:
        content["datasets"] = list(about.datasets)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _summary(run: Run, about: About) -> str:
    what = "An adapter for" if about.adapter else "Made from"
    base = hub_id(about.base) or Path(about.base).name
    linked = f"[{base}](https://huggingface.co/{base})" if hub_id(about.base) else f"`{base}`"
    merged = _merged_in(run)
    if merged is not None:
        linked = merged
    origin = f"{what} {linked}, trained" if base else "Trained"
    steps = story.counted(story.last_step(run), *story.STEPS)
    pairs = run.facts.get("step_pairs")
    size = f" of {pairs:,} pairs" if isinstance(pairs, int) else ""
    return (
        f"{origin} on preference pairs with {story.method(run)} by Counterpoint: {steps}{size}.\n"
    )


def _merged_in(run: Run) -> str | None:
    """What a run began with, where it was adapters merged into their base; without folders."""
    merged = run.facts.get("merged")
    if not isinstance(merged, Mapping):
        return None
    base, adapters = str(merged["base"]), [f"`{_plain(Path(n).name)}`" for n in merged["adapters"]]
    named = base if hub_id(base) and not Path(base).exists() else Path(base).name
    some = "adapter" if len(adapters) == 1 else "adapters"
    return f"`{_plain(named)}` with the {some} {' and '.join(adapters)} merged into it"


def _objective(run: Run) -> Iterator[str]:
    formula = str(run.facts.get("objective") or "")
    if formula:
        yield f"## What was minimised\n\n```text\n{formula}\n```\n"


def _constraints(run: Run, series: SeriesTable) -> Iterator[str]:
    asked = run.facts.get("constraints")
    if isinstance(asked, list) and asked:
        lines = [f"- {_plain(constraint_in_words(one, series) + _meant(one))}" for one in asked]
        yield "\n".join(["## Constraints\n", *lines, ""])


def _meant(one: Mapping[str, Any]) -> str:
    kind = KINDS.get(str(one.get("kind")))
    return f" What is bounded: {kind.measures}." if kind else ""


def _results(series: SeriesTable) -> Iterator[str]:
    sets = sets_of(series)
    rows = []
    for panel in panels_of(series):
        for metric, label in panel.metrics.items():
            own = metric.startswith(CONSTRAINTS) or metric == "learning_rate"
            if panel.part == "speed" or own:
                continue
            last = [
                one.values[-1] if (one := series.get((name, metric))) else None for name in sets
            ]
            rows.append([f"{panel.title}{f', {label}' if label else ''}", *map(number, last)])
    if rows:
        steps = ", ".join(
            f"{name} at step {max(s.steps[-1] for (of, _), s in series.items() if of == name):,}"
            for name in sets
        )
        yield f"## Results\n\n{_table(['last value', *sets], rows)}\n\n{_plain(steps)}.\n"


def _alarms(run: Run) -> Iterator[str]:
    if not run.metrics:
        return
    kinds = story.alarm_kinds(run.alarms)
    if not kinds:
        yield "## Alarms\n\nNone was raised while it trained.\n"
        return
    lines = [
        f"- `{kind.code}` {_plain(kind.meaning.title)}: from step {kind.since[0]:,}, "
        f"raised {story.counted(len(kind.steps), *story.TIMES)}"
        for kind in kinds
    ]
    yield "\n".join(["## Alarms\n", *lines, ""])


def _data(run: Run) -> Iterator[str]:
    data: Mapping[str, Mapping[str, Any]] = run.facts.get("data") or {}
    rows = []
    for name, account in data.items():
        dropped = sum((account.get("dropped") or {}).values())
        cut = sum((account.get("cut_tokens") or {}).values())
        tokens = sum((account.get("tokens") or {}).values())
        counts = [account.get("rows"), account.get("kept"), dropped, tokens, cut]
        words = [f"{count:,}" if isinstance(count, int) else "–" for count in counts]
        rows.append([name, *words, str(account.get("digest") or "–")[:16]])
    if rows:
        head = ["set", "rows", "kept", "dropped", "tokens", "cut tokens", "digest"]
        yield f"## Data\n\n{_table(head, rows)}\n"


def _versions(run: Run) -> Iterator[str]:
    versions = run.facts.get("versions") or {}
    if versions:
        told = ", ".join(f"{name} {version}" for name, version in versions.items())
        yield f"## Versions\n\n{_plain(told)}\n"


def _citation(run: Run) -> Iterator[str]:
    loss_type = str((run.facts.get("options") or {}).get("loss_type", ""))
    loss = LOSSES.get(loss_type)
    paper = None if loss is None else loss.paper
    if paper is None:
        return
    yield (
        f"## Citation\n\n```bibtex\n@misc{{{loss_type}{paper.year},\n  title = {{{paper.title}}},\n"
        f"  author = {{{paper.authors}}},\n  year = {{{paper.year}}},\n"
        f"  eprint = {{{paper.arxiv}}},\n"
        "  archivePrefix = {arXiv}\n}\n```\n"
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: no tag, no link, no column."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
