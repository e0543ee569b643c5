"""Texts that the model wrote before and after, side by side.

Not here: writing them (the trainer's evaluation).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from counterpoint.language import phrase
from counterpoint.markup import Content, Markup, element, fold
from counterpoint.report.album import Album
from counterpoint.runlog import pictures_in_line

SHOWN = 6
"""Prompts that are shown at once; the others are folded."""
MOST = 40
"""Prompts in a report."""
LONGEST = 3000
"""Characters of a text in a report."""
REPEATS = 0.3
"""Share of repetition from which a text is marked."""

Sample = Mapping[str, Any]


def before_and_after(samples: Sequence[Sample], album: Album) -> list[Content]:
    """Each prompt with its first and its last text, and its reference if there is one.

    Args:
        samples: lines of ``samples.jsonl``.
        album: takes the pictures that prompts show.
    """
    if not samples:
        return [element("p", phrase("The run wrote no samples."), class_="none")]
    by_prompt: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        key = tuple(str(sample.get(part, "")) for part in ("set", "prompt", "kind"))
        by_prompt.setdefault((*key, *pictures_in_line(sample)), []).append(sample)
    groups = [sorted(group, key=lambda one: one.get("step", 0)) for group in by_prompt.values()]
    shown = [_group(group, album) for group in groups[:MOST]]
    left_out = len(groups) - len(shown)
    rest = phrase("{count} prompts", count=len(shown) - SHOWN)
    beyond = phrase("{count} more prompts are in samples.jsonl.", count=f"{left_out:,}")
    return [
        shown[:SHOWN],
        fold([phrase("More"), element("small", rest)], shown[SHOWN:])
        if len(shown) > SHOWN
        else None,
        element("p", beyond, class_="hint") if left_out else None,
    ]


def _group(group: Sequence[Sample], album: Album) -> Markup:
    first, last = group[0], group[-1]
    sides = [first] if first is last else [first, last]
    reference = last.get("reference")
    return element(
        "article",
        element("p", _cut(first.get("prompt")), class_="text prompt"),
        element("p", _set_of(first), class_="hint") if _set_of(first) else None,
        album.fold(last.get("pictures") or ()),
        element(
            "div",
            [_side(sample) for sample in sides],
            _text(phrase("reference"), reference) if reference else None,
            class_="sides",
        ),
        class_="sample",
    )


def _set_of(sample: Sample) -> str:
    """The name of the evaluation set that a prompt is from; "" for the only one."""
    return str(sample.get("set") or "").removeprefix("eval").removeprefix("_")


def _side(sample: Sample) -> Markup:
    step = sample.get("step", 0)
    after = phrase("after step {step}", step=f"{step:,}")
    when = after if step else phrase("before training")
    told: list[Content] = [when]
    if sample.get("kind"):
        told.append(f", {phrase(str(sample['kind']))}")
    if sample.get("tokens") is not None:
        told += [", ", phrase("{count} tokens", count=f"{sample['tokens']:,}")]
    repetition = sample.get("repetition") or 0
    if repetition >= REPEATS:
        share = phrase("{share} repetition", share=f"{repetition:.0%}")
        told.append(element("span", f", {share}", class_="flag"))
    if sample.get("ended") is False:
        told.append(element("span", f", {phrase('did not end')}", class_="flag"))
    return _text(told, sample.get("completion"))


def _text(title: Content, text: Any) -> Markup:
    return element(
        "div",
        element("h4", title),
        element(
            "p", _cut(text) or element("span", phrase("(empty)"), class_="flag"), class_="text"
        ),
        class_="side",
    )


def _cut(text: Any) -> str:
    words = str(text or "")
    if len(words) <= LONGEST:
        return words
    count = f"{len(words) - LONGEST:,}"
    return phrase("{text} … ({count} more characters)", text=words[:LONGEST], count=count)
