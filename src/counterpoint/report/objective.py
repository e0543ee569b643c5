"""What was optimised, as a formula, and the options: those that were chosen, then all.

Not here: making the formula (``losses.objective``), meanings of options (docs/options.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.language import phrase
from counterpoint.markup import Content, Markup, element, fold, plain_json, table
from counterpoint.objectives import OBJECTIVE_OPTIONS

MATTER = (
    *OBJECTIVE_OPTIONS,
    "constraints",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "pairs_per_step",
    "num_train_epochs",
    "max_steps",
    "max_length",
    "truncation",
    "bf16",
    "stochastic_rounding",
    "load_in_4bit",
    "load_in_8bit",
    "seed",
)
"""Options shown first where a run did not say which ones were chosen."""

_TYPESET = (
    ("sigmoid(", "σ("),
    (" * ", " · "),
    (" - ", " − "),
    ("-log", "−log"),
    ("^2", "²"),
    ("exp(-", "exp(−"),
)


def typeset(formula: str) -> tuple[tuple[str, str], ...]:
    """A formula of the log, line by line: the name, and what it equals, with signs as printed.

    Args:
        formula: lines of "name = expression" or "name <= bound".
    """
    lines = []
    for line in formula.splitlines():
        name, _, expression = line.partition("=")
        if name.endswith("<"):
            name, expression = name[:-1], f"≤ {expression.strip()}"
        for written, printed in _TYPESET:
            expression = expression.replace(written, printed)
        lines.append((name.strip(), expression.strip()))
    return tuple(lines)


def formula_of(facts: Mapping[str, Any]) -> Markup:
    """The objective of a run as a list of definitions."""
    formula = str(facts.get("objective") or "")
    if not formula:
        return element("p", phrase("The run did not write down its objective."), class_="none")
    terms = [
        (
            element("dt", name, class_="bound" if value.startswith("≤") else None),
            element("dd", value),
        )
        for name, value in typeset(formula)
    ]
    return element("dl", terms, class_="formula")


def chosen_options(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a run set to something else than their defaults.

    Where it did not say which those are, the options of ``MATTER``.
    """
    options: Mapping[str, Any] = facts.get("options") or {}
    names = facts.get("changed", MATTER)
    return {name: options[name] for name in names if name in options}


def adapter_options(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run's adapters; of several, each behind its adapter's name."""
    adapters = facts.get("adapter")
    if not isinstance(adapters, Mapping):
        return {}
    return {
        key if len(adapters) == 1 else f"{name}, {key}": value
        for name, settings in adapters.items()
        if isinstance(settings, Mapping)
        for key, value in settings.items()
    }


def option_tables(facts: Mapping[str, Any]) -> list[Content]:
    """The chosen options, and all of them to unfold."""
    options: Mapping[str, Any] = facts.get("options") or {}
    if not options:
        return [element("p", phrase("The run did not write down its options."), class_="none")]
    chosen = chosen_options(facts)
    unlike, matter = phrase("Options unlike their defaults"), phrase("Options that matter")
    title, everything = unlike if "changed" in facts else matter, phrase("All options")
    adapter, its = adapter_options(facts), phrase("The adapter")
    return [
        element("h3", title, class_="above"),
        _table(chosen, title)
        if chosen
        else element("p", phrase("None: every option has its default."), class_="none"),
        [element("h3", its, class_="above"), _table(adapter, its)] if adapter else [],
        fold(
            [everything, element("small", f"{len(options)}")],
            _table(options, everything),
        ),
    ]


def _table(options: Mapping[str, Any], label: str) -> Markup:
    rows = [
        (element("code", name), element("code", plain_json(value)))
        for name, value in options.items()
    ]
    return table([phrase("option"), phrase("value")], rows, label=label)
