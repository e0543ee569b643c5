"""An evaluation as tables that fit on 80 columns.

Not here: the numbers (``preferences``, ``texts``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from counterpoint.evaluation.bootstrap import BootstrapEstimate
from counterpoint.evaluation.preferences import Comparison, LengthBin, Preferences
from counterpoint.evaluation.scored_texts import ScoredChange, ScoredMean
from counterpoint.evaluation.texts import Completion
from counterpoint.evaluation.without_pictures import PictureEffect

WIDTH = 80
LABELS: Mapping[str, str] = {
    "accuracy": "accuracy of the reward",
    "accuracy_sum_logps": "accuracy of the summed log p",
    "accuracy_mean_logps": "accuracy of log p a token",
    "longer_wins": "a rule: the longer wins",
    "margin": "margin of reward, mean",
    "chosen_reward": "reward of chosen",
    "rejected_reward": "reward of rejected",
    "chosen_logps_per_token": "log p a token, chosen",
    "rejected_logps_per_token": "log p a token, rejected",
    "chosen_nll_per_token": "NLL a token, chosen",
    "chosen_perplexity": "perplexity, chosen",
    "accuracy_blank": "the same, pictures blank",
    "kept_preference": "preference as with blank ones",
    "unmoved": "margin hardly moved",
    "margin_change": "margin over that with blank ones",
    "loss": "loss",
    "length": "tokens written, mean",
    "ended": "ended by itself",
    "empty": "empty",
    "repetition": "repeated 4-grams",
    "distinct_1": "distinct tokens",
    "distinct_2": "distinct pairs of tokens",
    "exact_match": "exact match",
    "bleu": "BLEU",
    "chrf": "chrF",
}
"""What each number is called, by its name in JSON."""

NOT_ZERO = "*: the interval of the change is without 0"

SHOWN = 3
"""Prompts whose texts are shown."""


def preference_table(name: str, found: Preferences, loss: float, level: float) -> list[str]:
    """The statistics of one set.

    Args:
        name: of the set.
        found: its statistics.
        loss: of the objective.
        level: of the intervals, in (0, 1).
    """
    ties = f"{found.ties:,} {'tie' if found.ties == 1 else 'ties'} of reward"
    lines = [
        f"{name}: {found.pairs:,} pairs of {found.prompts:,} prompts; {ties} (half a win)",
        f"  {'':<32}{'value':>10}   {level:.0%} interval",
    ]
    for key, estimate in found.measures.items():
        lines.append(f"  {LABELS[key]:<32}{digits(estimate.value):>10}   {_interval(estimate)}")
        if key == "margin":
            shares = " / ".join(f"{share:.0%}" for share in found.margin_quantiles)
            values = " / ".join(map(digits, found.margin_quantiles.values()))
            lines += [f"    at {shares}", f"       {values}"]
    lines += [f"  {LABELS['loss']:<32}{digits(loss):>10}", ""]
    return lines + _length_table(found.by_length, level)


def _length_table(bins: Sequence[LengthBin], level: float) -> list[str]:
    lines = [
        "  tokens of chosen",
        f"  minus rejected   {'pairs':>8}  {'accuracy':>9}   "
        f"{f'{level:.0%} interval':<20}{'longer wins':>12}",
    ]
    for one in bins:
        lines.append(
            f"  {_range(one):<15}  {one.pairs:>8,}  {digits(one.accuracy.value):>9}   "
            f"{_interval(one.accuracy):<20}{digits(one.longer_wins):>12}"
        )
    return lines


def picture_table(name: str, found: PictureEffect, level: float) -> list[str]:
    """What pictures do to the margins of one set.

    Args:
        name: of the set.
        found: what they do.
        level: of the intervals, in (0, 1).
    """
    lines = [
        f"{name}, with its pictures and with blank ones: {found.pairs:,} pairs that show some",
        f"  {'':<32}{'value':>10}   {level:.0%} interval",
    ]
    for key, estimate in found.measures.items():
        lines.append(f"  {LABELS[key]:<32}{digits(estimate.value):>10}   {_interval(estimate)}")
        if key == "unmoved":
            lines.append(f"    by {digits(found.bound)} at most")
    shares = " / ".join(f"{share:.0%}" for share in found.change_quantiles)
    lines += [f"    at {shares}"]
    lines += [f"       {' / '.join(map(digits, found.change_quantiles.values()))}"]
    lines += ["  least moved: row, margin, margin with blank pictures"]
    for one in found.least:
        lines.append(f"    {one.row:>9}  {digits(one.margin):>10}  {digits(one.blank):>10}")
    return lines


def comparison_table(name: str, found: Comparison, level: float) -> list[str]:
    """Two models on one set, side by side.

    Args:
        name: of the set.
        found: the comparison.
        level: of the intervals, in (0, 1).
    """
    title = f"{name}, before and after: the same {found.pairs:,} pairs"
    return [title, *_sides(found.before, found.after, found.differences, level)]


def text_table(title: str, values: Mapping[str, float]) -> list[str]:
    """What the texts of one model are like.

    Args:
        title: what the table is of.
        values: by the names of ``texts.statistics``, and scores by metric.
    """
    return [title, *(f"  {LABELS[k]:<32}{digits(value):>10}" for k, value in values.items())]


def text_comparison_table(
    title: str,
    before: Mapping[str, float],
    after: Mapping[str, float],
    differences: Mapping[str, BootstrapEstimate],
    level: float,
) -> list[str]:
    """What the texts of two models are like, side by side.

    Args:
        title: what the table is of.
        before: by the names of ``texts.statistics``, and scores by metric.
        after: the same of the other model.
        differences: with intervals, where there are any.
        level: of the intervals, in (0, 1).
    """
    return [title, *_sides(before, after, differences, level)]


def score_table(
    title: str,
    means: Mapping[str, Mapping[str, ScoredMean]],
    changes: Mapping[str, ScoredChange],
    level: float,
) -> list[str]:
    """What scorers say of the texts of one model or two.

    Args:
        title: what the table is of.
        means: who wrote -> scorer -> the mean.
        changes: of two models, by scorer.
        level: of the intervals, in (0, 1).
    """
    lines = [f"{title}, scores", f"  {'':<28}{'value':>9}  {level:.0%} interval"]
    names = list(dict.fromkeys(name for found in means.values() for name in found))
    for name in names:
        for who, found in means.items():
            one = found[name]
            label = f"{name}, {who}" if len(means) > 1 else name
            without = f"; {one.without:,} without" if one.without else ""
            shown = f"{digits(one.mean.value):>9}  {_interval(one.mean)}{without}"
            lines.append(f"  {label:<28}{shown}")
        if name in changes:
            change, wins = changes[name].change, changes[name].wins
            clear = " *" if change.low > 0 or change.high < 0 else ""
            lines.append(
                f"    {'change':<26}{_signed(change.value):>9}  {_interval(change)}{clear}"
            )
            label = "wins over before" + (", lower" if changes[name].lower_is_better else "")
            lines.append(f"    {label:<26}{digits(wins.value):>9}  {_interval(wins)}")
    return lines


def shown_texts(sides: Mapping[str, Sequence[Completion]]) -> list[str]:
    """The first few prompts with what was written to each, a line a text.

    Args:
        sides: who wrote -> completions, all to the same prompts in the same order.
    """
    lines: list[str] = []
    for place, one in enumerate(next(iter(sides.values()))[:SHOWN]):
        lines.append(_line("prompt", one.prompt))
        lines += [_line(name, texts[place].text) for name, texts in sides.items()]
        if one.reference is not None:
            lines.append(_line("reference", one.reference))
        lines.append("")
    return lines


def digits(value: float) -> str:
    """Three to four digits that count, as short as they can be written."""
    size = abs(value)
    if size and not 0.0005 <= size < 1000:  # also where it is no number
        return f"{value:.1e}"
    return f"{value:.{3 if size < 10 else 2 if size < 100 else 1}f}"


def _sides(
    before: Mapping[str, float],
    after: Mapping[str, float],
    differences: Mapping[str, BootstrapEstimate],
    level: float,
) -> list[str]:
    lines = [
        f"  {'':<28}{'before':>9}{'after':>9}{'change':>9}  {level:.0%} interval",
    ]
    for key, value in after.items():
        line = f"  {LABELS[key]:<28}{digits(before[key]):>9}{digits(value):>9}"
        change = differences.get(key)
        if change is not None:
            clear = " *" if change.low > 0 or change.high < 0 else ""
            line += f"{_signed(change.value):>9}  {_interval(change)}{clear}"
        else:
            line += f"{_signed(value - before[key]):>9}"
        lines.append(line)
    return lines


def _signed(value: float) -> str:
    return digits(value) if value <= 0 else f"+{digits(value)}"


def _interval(estimate: BootstrapEstimate) -> str:
    return f"{digits(estimate.low)} to {digits(estimate.high)}"


def _range(one: LengthBin) -> str:
    if one.low is None:
        return f"{one.high} or less"
    if one.high is None:
        return f"{one.low} or more"
    return f"{one.low} to {one.high}" if one.low != one.high else str(one.low)


def _line(name: str, text: str) -> str:
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    room = WIDTH - 15
    shown = plain if len(plain) <= room else f"{plain[: room - 3]}..."
    return f"    {name:<10} {shown or '(nothing)'}"
