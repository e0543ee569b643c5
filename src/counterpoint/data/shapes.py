"""Rows of well-known sets that name their completions in their own way, as rows of ``formats``.

Each is recognised by the columns that it holds, not by the name of its set:

1. UltraFeedback: ``instruction`` with ``completions``, objects of ``response`` and
   ``overall_score``. The best answer is chosen, the worst rejected.
2. HelpSteer: ``prompt`` with ``response_1``, ``response_2`` and ``preference_strength``, or
   ``context`` with ``response1``, ``response2`` and ``overall_preference``. Below 0 the first is
   preferred, above 0 the second.
3. ALMA-R: ``translation``, an object of texts by language, of other systems' translations and of
   their scores. A human's ``Delta`` decides where there is one (above 0: GPT-4's is better), else
   the best and the worst by KIWI and XCOMET together. X-ALMA: the same with ``chosen``, ``reject``.
4. ms-swift: ``messages`` with what is rejected in place of its last turn (``rejected_response``) or
   of all of it (``rejected_messages``).

A row gives one pair. ``counterpoint pairs`` makes several of scored candidates.

Not here: rows that have ``chosen`` and ``rejected``, whatever else they hold (``formats``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from counterpoint.data.cells import fail, fail_type, read_messages
from counterpoint.preference_row import Message

PREFERENCES = {
    "preference_strength": ("response_1", "response_2"),
    "overall_preference": ("response1", "response2"),
}
"""Columns that say which of two answers is preferred, and the columns of these."""

REJECTED_TURN, REJECTED_WHOLE, REJECTED_PICTURES = (
    f"rejected_{what}" for what in ("response", "messages", "images")
)

OF_SHAPES = (
    "completions",
    "translation",
    REJECTED_TURN,
    REJECTED_WHOLE,
    REJECTED_PICTURES,
    *PREFERENCES,
    *(side for sides in PREFERENCES.values() for side in sides),
)
"""Columns that this module reads beside those of ``formats``."""

SCORES = ("kiwi_xcomet", "xcomet", "kiwi")
"""Scores of translations, the first that a row has; higher is better."""

_TURN = re.compile(r"\n<extra_id_1>(User|Assistant)\n")
_SYSTEMS = ("gpt4", "alma")


def has_shape(columns: set[str]) -> bool:
    """Whether columns are of one of these sets."""
    rated = any({name, *sides} <= columns for name, sides in PREFERENCES.items())
    of_swift = "messages" in columns and bool({REJECTED_TURN, REJECTED_WHOLE} & columns)
    return (
        rated or of_swift or {"instruction", "completions"} <= columns or "translation" in columns
    )


def in_known_shape(raw: Mapping[str, Any], row: int) -> Mapping[str, Any]:
    """A row of one of these sets as prompt, chosen and rejected; any other as it is.

    Args:
        raw: the row's cells, those that hold nothing left out.
        row: its number.

    Raises:
        DataError: CP239 for a row that prefers none of its completions; CP202 for one that is of
            no use otherwise.
    """
    if "chosen" in raw and "rejected" in raw:
        return raw
    for name, sides in PREFERENCES.items():
        if {name, *sides} <= {*raw}:
            return _compared(raw, name, sides, row)
    if isinstance(raw.get("completions"), list) and isinstance(raw.get("instruction"), str):
        return _rated(raw, row)
    if isinstance(raw.get("translation"), Mapping):
        return _instructed(translated_pair(raw, row))
    if "messages" in raw and {REJECTED_TURN, REJECTED_WHOLE} & {*raw}:
        return _answered_otherwise(raw, row)
    return raw


def _answered_otherwise(raw: Mapping[str, Any], row: int) -> Mapping[str, Any]:
    """A conversation as it went, and as it should not have ended."""
    shown = raw.get(REJECTED_PICTURES)
    if shown and shown != raw.get("images"):
        fail(
            "CP202",
            row,
            REJECTED_PICTURES,
            "are other pictures than images holds, and both answers of a pair are about the same "
            "ones. Remove the row.",
        )
    used = ("messages", REJECTED_TURN, REJECTED_WHOLE, REJECTED_PICTURES)
    rest = {name: cell for name, cell in raw.items() if name not in used}
    turns = read_messages(raw["messages"], row, "messages")
    if REJECTED_WHOLE in raw:
        return {**rest, "chosen": turns, "rejected": raw[REJECTED_WHOLE]}
    answer = raw[REJECTED_TURN]
    if not isinstance(answer, str):
        fail_type(answer, row, REJECTED_TURN, "the text of the assistant's last turn")
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        fail(
            "CP202",
            row,
            "messages",
            "should end with a turn of the assistant, behind others: that is what "
            f"{REJECTED_TURN} is compared with.",
        )
    rejected = {"role": "assistant", "content": answer}
    return {**rest, "prompt": turns[:-1], "chosen": turns[-1:], "rejected": [rejected]}


def _compared(
    raw: Mapping[str, Any], name: str, sides: tuple[str, str], row: int
) -> Mapping[str, Any]:
    """Two answers and how much better the second is."""
    strength = _number(raw[name])
    if strength is None:
        fail("CP202", row, name, f"is {raw[name]!r}; expected a number.")
    if strength == 0:
        fail("CP239", row, name, "is 0: neither answer is preferred. Remove the row.")
    best, worst = sides if strength < 0 else sides[::-1]
    rest = {key: cell for key, cell in raw.items() if key not in (name, *sides, "context")}
    prompt = raw.get("prompt", raw.get("context"))
    if isinstance(prompt, str):
        prompt = _turns(prompt)
    return {**rest, "prompt": prompt, "chosen": raw[best], "rejected": raw[worst]}


def _turns(text: str) -> list[Message]:
    """A conversation that HelpSteer2 writes in one text: turns, each behind its speaker's mark."""
    first, *others = _TURN.split(text)
    turns = [{"role": "user", "content": first}]
    for speaker, said in zip(others[::2], others[1::2], strict=True):
        turns.append({"role": speaker.lower(), "content": said})
    return turns


def _rated(raw: Mapping[str, Any], row: int) -> Mapping[str, Any]:
    """The best and the worst of several rated answers; of equals the first."""
    rated: list[tuple[float, str]] = []
    for number, one in enumerate(raw["completions"]):
        answer = one.get("response") if isinstance(one, Mapping) else None
        score = _number(one.get("overall_score")) if isinstance(one, Mapping) else None
        if not isinstance(answer, str) or score is None:
            place = f"completions[{number}]"
            fail("CP202", row, place, "should be an object with response and overall_score.")
        rated.append((score, answer))
    return _best_and_worst(raw, rated, row, "completions", raw["instruction"])


def translated_pair(raw: Mapping[str, Any], row: int) -> Mapping[str, Any]:
    """A row of ALMA-R or X-ALMA with source, languages and translations as they are.

    Args:
        raw: with a column ``translation`` that is an object; any other row is returned.
        row: its number.

    Returns:
        ``prompt`` is the source alone. The direction is the required one, if the row has one.

    Raises:
        DataError: CP202 for a row without source or translations; CP239 for equal scores.
    """
    held = raw.get("translation")
    if not isinstance(held, Mapping):
        return raw
    direction = held.get("required_directions") or held.get("language_pair")
    source, _, target = str(direction or "").partition("-")
    if not target or not isinstance(held.get(source), str):
        fail("CP202", row, "translation", "names no direction such as de-en, or lacks its source.")
    own = {"source_lang": source, "target_lang": target}
    if {"chosen", "reject"} <= {*held}:
        sides = {"chosen": held["chosen"], "rejected": held["reject"]}
        return {**_beside(raw), **own, "prompt": held[source], **sides}
    texts = {name: held.get(f"{name}_{target}") for name in _SYSTEMS} | {"ref": held.get(target)}
    delta = _number(held.get("Delta"))
    if delta and all(isinstance(texts[name], str) for name in _SYSTEMS):
        best, worst = _SYSTEMS if delta > 0 else _SYSTEMS[::-1]
        sides = {"chosen": texts[best], "rejected": texts[worst]}
        return {**_beside(raw), **own, "prompt": held[source], **sides}
    for kind in SCORES:
        scores = {name: _number(held.get(f"{name}_{target}_{kind}")) for name in texts}
        rated = [
            (score, text)
            for (name, text), score in zip(texts.items(), scores.values(), strict=True)
            if isinstance(text, str) and score is not None
        ]
        if len(rated) > 1:
            found = _best_and_worst(raw, rated, row, "translation", held[source])
            return {**found, **own}
    fail("CP202", row, "translation", f"has no two translations into {target} with scores.")


def _best_and_worst(
    raw: Mapping[str, Any], rated: list[tuple[float, str]], row: int, field: str, prompt: str
) -> Mapping[str, Any]:
    scores = [score for score, _ in rated]
    if not rated or max(scores) == min(scores):
        fail("CP239", row, field, "has no two of different scores. Remove the row.")
    best, worst = (rated[scores.index(one)][1] for one in (max(scores), min(scores)))
    whole = prompt if field == "translation" else [{"role": "user", "content": prompt}]
    return {**_beside(raw), "prompt": whole, "chosen": best, "rejected": worst}


def _beside(raw: Mapping[str, Any]) -> dict[str, Any]:
    """What a row holds beside what was made into a pair."""
    used = ("translation", "completions", "instruction", "input", "output", "history")
    return {name: cell for name, cell in raw.items() if name not in used}


def _instructed(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A pair of translations as a decoder is asked for them: ALMA's instruction."""
    source, target = (NAMES.get(raw[f"{side}_lang"], raw[f"{side}_lang"]) for side in _SIDES)
    asked = f"Translate this from {source} to {target}:\n{source}: {raw['prompt']}\n{target}:"
    sides = {side: f" {raw[side]}" for side in ("chosen", "rejected") if isinstance(raw[side], str)}
    return {**raw, "prompt": asked, **sides}


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usable and value == value else None


_SIDES = ("source", "target")

NAMES = {
    **{"en": "English", "de": "German", "fr": "French", "cs": "Czech", "is": "Icelandic"},
    **{"zh": "Chinese", "ja": "Japanese", "ru": "Russian", "uk": "Ukrainian", "ha": "Hausa"},
    **{"da": "Danish", "nl": "Dutch", "no": "Norwegian", "sv": "Swedish", "af": "Afrikaans"},
    **{"ca": "Catalan", "gl": "Galician", "it": "Italian", "pt": "Portuguese", "ro": "Romanian"},
    **{"es": "Spanish", "bg": "Bulgarian", "mk": "Macedonian", "sr": "Serbian", "id": "Indonesian"},
    **{"ms": "Malay", "mg": "Malagasy", "th": "Thai", "vi": "Vietnamese", "hu": "Hungarian"},
    **{"el": "Greek", "pl": "Polish", "lt": "Lithuanian", "lv": "Latvian", "ka": "Georgian"},
    **{"ko": "Korean", "et": "Estonian", "fi": "Finnish", "gu": "Gujarati", "hi": "Hindi"},
    **{"mr": "Marathi", "ne": "Nepali", "ur": "Urdu", "az": "Azerbaijani", "kk": "Kazakh"},
    **{"ky": "Kyrgyz", "tr": "Turkish", "uz": "Uzbek", "ar": "Arabic", "he": "Hebrew"},
    **{"fa": "Persian"},
}
"""English names of languages by their codes; others are named by the code."""
