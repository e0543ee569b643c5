"""Rows as well-known sets write them, recognised by what they hold; texts of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from counterpoint.data.formats import check_columns, read_unopened, to_preference_row
from counterpoint.data.mixture import in_own_columns
from counterpoint.data.pair_rules import PairRules
from counterpoint.data.scored import pairs_from_scored
from counterpoint.data.shapes import translated_pair
from counterpoint.data.sources import dataset_from_rows, load
from counterpoint.errors import DataError

ASKED = [{"role": "user", "content": "Name a tree."}]


def dialogue(answer: str) -> list[dict[str, str]]:
    return [*ASKED, {"role": "assistant", "content": answer}]


def said(answer: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": answer}]


BINARIZED = {
    "prompt": "Name a tree.",
    "prompt_id": "0",
    "chosen": dialogue("An oak."),
    "rejected": dialogue("A stone."),
    "messages": dialogue("An oak."),
    "score_chosen": 8.0,
    "score_rejected": 2.0,
}
CLEANED = {
    "source": "made up",
    "prompt": "Name a tree.",
    "chosen": dialogue("An oak."),
    "chosen-rating": 5.0,
    "chosen-model": "one",
    "rejected": dialogue("A stone."),
    "rejected-rating": 1.0,
    "rejected-model": "other",
}
DPO_MIX = {
    "dataset": "made up",
    "chosen": dialogue("An oak."),
    "chosen_rating": 5.0,
    "rejected": dialogue("A stone."),
    "rejected_rating": 1.0,
}
SKYWORK = {"chosen": dialogue("An oak."), "rejected": dialogue("A stone."), "source": "made up"}
RAW = {
    "source": "made up",
    "instruction": "Name a tree.",
    "models": ["a", "b", "c"],
    "completions": [
        {"model": "a", "response": "A shrub.", "overall_score": 5.0, "fine-grained_score": 2.5},
        {"model": "b", "response": "An oak.", "overall_score": 8.5, "fine-grained_score": 4.0},
        {"model": "c", "response": "A stone.", "overall_score": 1.0, "fine-grained_score": 1.0},
    ],
    "correct_answers": ["None"],
}
HELPSTEER_2 = {
    "split": "train",
    "prompt": "Name a tree.",
    "response_1": "A stone.",
    "response_2": "An oak.",
    "preference_strength": 2,
    "preference_statement": "The second names a tree.",
}
HELPSTEER_3 = {
    "domain": "general",
    "language": "english",
    "context": ASKED,
    "response1": "An oak.",
    "response2": "A stone.",
    "overall_preference": -3,
    "individual_preference": [{"score": -3, "reasoning": "A stone is no tree."}],
}

DIALOGUES = {
    "UltraFeedback, binarized": BINARIZED,
    "Argilla's cleaned one": CLEANED,
    "Argilla's dpo-mix": DPO_MIX,
    "Skywork": SKYWORK,
    "UltraFeedback": RAW,
    "HelpSteer 2": HELPSTEER_2,
    "HelpSteer 3": HELPSTEER_3,
}


SWIFT = {"messages": dialogue("An oak."), "rejected_response": "A stone."}


@pytest.mark.parametrize(
    "row",
    [
        SWIFT,
        {"messages": dialogue("An oak."), "rejected_messages": dialogue("A stone.")},
        {
            "messages": [
                {"from": "human", "value": "Name a tree."},
                {"from": "gpt", "value": "An oak."},
            ],
            "rejected_response": "A stone.",
        },
        {**SWIFT, "rejected_messages": None, "rejected_images": []},
    ],
)
def test_a_row_of_ms_swift_is_the_conversation_and_how_it_should_not_have_ended(row):
    check_columns(row, name="swift")
    read = to_preference_row(row, 0)
    assert (read.prompt, read.chosen, read.rejected) == (ASKED, said("An oak."), said("A stone."))
    beside = to_preference_row({**row, "system": "Be brief."}, 0)
    assert beside.prompt == [{"role": "system", "content": "Be brief."}, *ASKED]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"messages": ASKED}, "messages"),
        ({"messages": said("An oak.")}, "messages"),
        ({"rejected_response": ["A stone."]}, "rejected_response"),
        ({"images": ["a.png"], "rejected_images": ["b.png"]}, "rejected_images"),
    ],
)
def test_a_row_of_ms_swift_that_is_no_pair_is_named(change, field):
    with pytest.raises(DataError, match=rf"CP2\d\d row 0, field {field}"):
        read_unopened({**SWIFT, **change}, 0, seeing=True)


def test_a_row_of_ms_swift_shows_both_answers_the_same_pictures():
    seen = [{"role": "user", "content": "<image>What is it?"}, *said("An oak.")]
    other = [seen[0], *said("A stone.")]
    shown = {"messages": seen, "images": ["a.png"], "rejected_images": ["a.png"]}
    for rejected in ({"rejected_response": "A stone."}, {"rejected_messages": other}):
        read, pictures = read_unopened({**shown, **rejected}, 0, seeing=True)
        assert (read.chosen, read.rejected) == (said("An oak."), said("A stone."))
        assert len(pictures) == 1


@pytest.mark.parametrize("name", DIALOGUES)
def test_a_row_is_read_as_what_it_prefers(name: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(DIALOGUES[name]) + "\n")
    for rows in ([DIALOGUES[name]], load(path), Dataset.from_list([DIALOGUES[name]])):
        check_columns([*rows[0]], name=name)
        row = to_preference_row(rows[0], 0)
        assert (row.prompt, row.chosen, row.rejected) == (ASKED, said("An oak."), said("A stone."))
        assert (row.weight, row.margin) == (1.0, 0.0)


def test_turns_within_a_text_of_helpsteer_are_turns() -> None:
    asked = "Hi.\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nName a tree."
    row = to_preference_row({**HELPSTEER_2, "prompt": asked, "preference_strength": -1}, 0)
    assert row.prompt == [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        *ASKED,
    ]
    assert row.chosen == said("A stone.")


ALMA: dict[str, Any] = {
    "language_pair": "de-en",
    "required_directions": "",
    "Delta": 0.0,
    "de": "Das Haus ist alt.",
    "en": "The house is old.",
    "gpt4_en": "This house is old.",
    "alma_en": "The mouse is old.",
    "ref_en_kiwi_xcomet": 0.95,
    "gpt4_en_kiwi_xcomet": 0.9,
    "alma_en_kiwi_xcomet": 0.3,
    "gpt4_de": "Das Haus sei alt.",
    "alma_de": "Die Maus ist alt.",
    "ref_de_kiwi_xcomet": 0.8,
    "gpt4_de_kiwi_xcomet": 0.9,
    "alma_de_kiwi_xcomet": 0.2,
}
TO_ENGLISH = "Translate this from German to English:\nGerman: Das Haus ist alt.\nEnglish:"

TRANSLATIONS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "The house is old.", "The mouse is old."),
    ({"Delta": 1.0}, "This house is old.", "The mouse is old."),
    ({"Delta": -1.0}, "The mouse is old.", "This house is old."),
    ({"ref_en_kiwi_xcomet": 0.1}, "This house is old.", "The house is old."),
    ({"ref_en_kiwi_xcomet": None}, "This house is old.", "The mouse is old."),
]


@pytest.mark.parametrize(("changes", "chosen", "rejected"), TRANSLATIONS)
def test_translations_go_by_a_humans_word_and_else_by_their_scores(
    changes: dict[str, Any], chosen: str, rejected: str
) -> None:
    raw = {"translation": {**ALMA, **changes}}
    row = to_preference_row(raw, 0)
    assert (row.prompt, row.chosen, row.rejected) == (TO_ENGLISH, f" {chosen}", f" {rejected}")
    assert (row.source_lang, row.target_lang) == ("de", "en")
    plain = translated_pair(raw, 0)  # as an encoder-decoder is given it
    assert (plain["prompt"], plain["chosen"]) == ("Das Haus ist alt.", chosen)


def test_a_required_direction_turns_the_row_round() -> None:
    row = to_preference_row({"translation": {**ALMA, "required_directions": "en-de"}}, 0)
    assert row.prompt == (
        "Translate this from English to German:\nEnglish: The house is old.\nGerman:"
    )
    assert (row.chosen, row.rejected) == (" Das Haus sei alt.", " Die Maus ist alt.")


def test_x_alma_says_its_pair_itself() -> None:
    raw = {
        "language_pair": "en-ko",
        "required_directions": "en-ko",
        "en": "Good.",
        "chosen": "좋아요.",
        "reject": "나빠요.",
    }
    row = to_preference_row({"translation": raw}, 0)
    assert row.prompt == "Translate this from English to Korean:\nEnglish: Good.\nKorean:"
    assert (row.chosen, row.rejected, row.target_lang) == (" 좋아요.", " 나빠요.", "ko")


NO_USE: list[tuple[dict[str, Any], str, str]] = [
    ({**HELPSTEER_2, "preference_strength": 0}, "CP239", "preference_strength: is 0"),
    ({**HELPSTEER_3, "overall_preference": "much"}, "CP202", "overall_preference"),
    ({**RAW, "completions": RAW["completions"][:1]}, "CP239", "no two of different scores"),
    ({**RAW, "completions": []}, "CP239", "no two of different scores"),
    ({**RAW, "completions": ["An oak."]}, "CP202", r"completions\[0\]"),
    ({**HELPSTEER_2, "response_1": "An oak."}, "CP205", "chosen"),
    ({"translation": {"de": "Haus", "en": "house"}}, "CP202", "names no direction"),
    ({"translation": {**ALMA, "de": None}}, "CP202", "lacks its source"),
    ({"translation": {"language_pair": "de-en", "de": "Haus"}}, "CP202", "no two translations"),
    (
        {"translation": {**{k: v for k, v in ALMA.items() if "kiwi" not in k}}},
        "CP202",
        "no two translations into en with scores",
    ),
    (
        {"translation": {k: 0.5 if "kiwi" in k else v for k, v in ALMA.items()}},
        "CP239",
        "no two of different scores",
    ),
]


@pytest.mark.parametrize(("raw", "code", "text"), NO_USE)
def test_a_row_that_prefers_nothing_is_refused(raw: dict[str, Any], code: str, text: str) -> None:
    with pytest.raises(DataError, match=rf"^{code} row 3, .*{text}"):
        to_preference_row(raw, 3)


def test_other_columns_of_these_names_do_no_harm() -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "translation": {"x": 1}, "completions": 2}
    assert to_preference_row(row, 0).chosen == "b"


MAPPED: list[tuple[dict[str, Any], dict[str, str]]] = [
    (
        {"system": "", "input": "Name a tree.", "chosen": "An oak.", "rejected": "A stone."},
        {"prompt": "input"},
    ),
    (
        {
            "instruction": "Name a tree.",
            "chosen_response": "An oak.",
            "rejected_response": "A stone.",
        },
        {"prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
    ),
    (
        {"data": {"ask": "Name a tree.", "yes": "An oak.", "no": "A stone."}},
        {"prompt": "data.ask", "chosen": "data.yes", "rejected": "data.no"},
    ),
]


@pytest.mark.parametrize(("raw", "columns"), MAPPED)
def test_other_names_are_mapped_in_one_line(raw: dict[str, Any], columns: dict[str, str]) -> None:
    rows = in_own_columns(dataset_from_rows([raw]), columns, "rows")
    row = to_preference_row(rows[0], 0)
    asked, chosen, rejected = (
        part if isinstance(part, str) else part[-1]["content"]
        for part in (row.prompt, row.chosen, row.rejected)
    )
    assert (asked, chosen, rejected) == ("Name a tree.", "An oak.", "A stone.")


def test_several_pairs_of_rated_answers_are_made_by_the_command_for_scores() -> None:
    rules = PairRules(prompt="instruction", score="overall_score", select="all")
    made = pairs_from_scored([RAW], rules).pairs
    assert [(one["chosen"], one["rejected"]) for one in made] == [
        *[("An oak.", "A stone."), ("A shrub.", "A stone."), ("An oak.", "A shrub.")]
    ]
    rated = [
        {"prompt": "Name a tree.", "response": answer, "helpfulness": score}
        for answer, score in (("An oak.", 4), ("A stone.", 0))
    ]
    made = pairs_from_scored(rated, PairRules(score="helpfulness")).pairs
    assert [(one["chosen"], one["rejected"]) for one in made] == [("An oak.", "A stone.")]
