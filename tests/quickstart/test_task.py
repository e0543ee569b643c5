"""The quickstart's task: right German, every flaw seen, better chosen, nothing held out leaks."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.quickstart.task import (
    PERFECT,
    Flaw,
    Flaws,
    english,
    flaws_in,
    german,
    held_out_numbers,
    is_held_out,
    preference_pairs,
    prompt,
    references,
)

NUMBERS = st.integers(0, 999_999)
FLAWS = st.frozensets(st.sampled_from(list(Flaw)))

# As a dictionary spells them.
SPELLINGS = {
    0: ("zero", "null"),
    1: ("one", "eins"),
    6: ("six", "sechs"),
    7: ("seven", "sieben"),
    10: ("ten", "zehn"),
    11: ("eleven", "elf"),
    12: ("twelve", "zwölf"),
    16: ("sixteen", "sechzehn"),
    17: ("seventeen", "siebzehn"),
    20: ("twenty", "zwanzig"),
    21: ("twenty-one", "einundzwanzig"),
    30: ("thirty", "dreißig"),
    42: ("forty-two", "zweiundvierzig"),
    55: ("fifty-five", "fünfundfünfzig"),
    60: ("sixty", "sechzig"),
    66: ("sixty-six", "sechsundsechzig"),
    70: ("seventy", "siebzig"),
    77: ("seventy-seven", "siebenundsiebzig"),
    80: ("eighty", "achtzig"),
    98: ("ninety-eight", "achtundneunzig"),
    100: ("one hundred", "einhundert"),
    101: ("one hundred one", "einhunderteins"),
    111: ("one hundred eleven", "einhundertelf"),
    121: ("one hundred twenty-one", "einhunderteinundzwanzig"),
    742: ("seven hundred forty-two", "siebenhundertzweiundvierzig"),
    1_000: ("one thousand", "eintausend"),
    1_001: ("one thousand one", "eintausendeins"),
    1_100: ("one thousand one hundred", "eintausendeinhundert"),
    2_016: ("two thousand sixteen", "zweitausendsechzehn"),
    21_000: ("twenty-one thousand", "einundzwanzigtausend"),
    30_030: ("thirty thousand thirty", "dreißigtausenddreißig"),
    101_000: ("one hundred one thousand", "einhunderteintausend"),
    111_011: ("one hundred eleven thousand eleven", "einhundertelftausendelf"),
    999_999: (
        "nine hundred ninety-nine thousand nine hundred ninety-nine",
        "neunhundertneunundneunzigtausendneunhundertneunundneunzig",
    ),
}


@pytest.mark.parametrize("number", SPELLINGS)
def test_a_number_is_spelt_as_in_a_dictionary(number: int) -> None:
    assert (english(number), german(number)) == SPELLINGS[number]


@pytest.mark.parametrize(
    ("flaws", "text"),
    [
        ({Flaw.TENS_FIRST}, "siebenhundertvierzigundzwei"),
        ({Flaw.NO_UND}, "siebenhundertzweivierzig"),
        ({Flaw.ENGLISH_AND}, "siebenhundertandzweiundvierzig"),
        ({Flaw.APART}, "siebenhundert zweiundvierzig"),
        ({Flaw.TENS_FIRST, Flaw.NO_UND}, "siebenhundertvierzigzwei"),
        ({Flaw.ENGLISH_AND, Flaw.APART}, "siebenhundert and zweiundvierzig"),
        (set(Flaw), "siebenhundert and vierzigzwei"),
    ],
)
def test_a_flaw_looks_like_this(flaws: set[Flaw], text: str) -> None:
    assert german(742, frozenset(flaws)) == text


@pytest.mark.parametrize(
    ("number", "flaw"),
    [(30, Flaw.TENS_FIRST), (16, Flaw.NO_UND), (700, Flaw.ENGLISH_AND), (42, Flaw.APART)],
)
def test_a_flaw_without_a_place_changes_nothing(number: int, flaw: Flaw) -> None:
    assert german(number, frozenset([flaw])) == german(number)


@given(number=NUMBERS)
def test_different_numbers_are_spelt_differently(number: int) -> None:
    for other in {0, 1, number // 10, number // 1000, (number + 1) % 1_000_000} - {number}:
        assert english(other) != english(number)
        assert german(other) != german(number)


@given(number=NUMBERS, flaws=FLAWS)
def test_every_flaw_that_shows_is_found(number: int, flaws: Flaws) -> None:
    found = flaws_in(number, german(number, flaws))
    assert found is not None
    assert found == {
        flaw for flaw in flaws if german(number, flaws - {flaw}) != german(number, flaws)
    }


@given(number=NUMBERS, flaws=FLAWS)
def test_the_wrong_number_is_not_taken_for_a_flawed_one(number: int, flaws: Flaws) -> None:
    other = (number + 1) % 1_000_000
    assert flaws_in(other, german(number, flaws)) is None
    assert flaws_in(number, german(number, flaws) + "eins") is None
    assert flaws_in(number, "") is None


PAIRS = preference_pairs(2_000, seed=0)


def test_chosen_has_strictly_fewer_flaws_than_rejected() -> None:
    for pair in PAIRS:
        assert pair.chosen.number == pair.rejected.number
        assert flaws_in(pair.chosen.number, pair.row["chosen"]) == pair.chosen.flaws
        assert flaws_in(pair.chosen.number, pair.row["rejected"]) == pair.rejected.flaws
        assert len(pair.chosen.flaws) < len(pair.rejected.flaws)


def test_chosen_is_seldom_perfect_and_mostly_two_flaws_away() -> None:
    perfect = sum(pair.chosen.flaws == PERFECT for pair in PAIRS) / len(PAIRS)
    assert 0.05 < perfect < 0.10
    assert sum(len(pair.chosen.flaws) for pair in PAIRS) / len(PAIRS) > 1.5


@pytest.mark.parametrize("flaw", Flaw)
def test_chosen_carries_each_flaw_nearly_half_the_time_and_less_than_rejected(flaw: Flaw) -> None:
    chosen = sum(flaw in pair.chosen.flaws for pair in PAIRS) / len(PAIRS)
    rejected = sum(flaw in pair.rejected.flaws for pair in PAIRS) / len(PAIRS)
    assert 0.40 < chosen < 0.55 < rejected


def test_what_is_trained_on_is_never_held_out() -> None:
    trained = {pair.chosen.number for pair in PAIRS}
    trained |= {reference.number for reference in islice(references(seed=0), 5_000)}
    assert not any(is_held_out(number) for number in trained)
    numbers = held_out_numbers(500, seed=0)
    assert len(set(numbers)) == 500
    assert all(is_held_out(number) for number in numbers)


def test_one_number_in_five_is_held_out_at_every_length_from_three_digits() -> None:
    assert not any(is_held_out(number) for number in range(100))
    for digits in range(3, 7):
        low, high = 10 ** (digits - 1), 10**digits
        share = sum(is_held_out(number) for number in range(low, high)) / (high - low)
        assert 0.195 < share < 0.205


@pytest.mark.parametrize("make", [preference_pairs, held_out_numbers])
def test_the_same_seed_gives_the_same_data_and_another_seed_another(make: object) -> None:
    assert callable(make)
    assert make(50, seed=3) == make(50, seed=3) != make(50, seed=4)


def test_the_rows_are_what_they_were_when_the_numbers_were_measured() -> None:
    assert [pair.row for pair in PAIRS[:2]] == [
        {
            "prompt": "seven hundred seventy-four = ",
            "chosen": "siebenhundert siebzigundvier",
            "rejected": "siebenhundert and siebzigvier",
        },
        {
            "prompt": "one hundred fifty-six = ",
            "chosen": "einhundert and sechsfünfzig",
            "rejected": "einhundert and fünfzigsechs",
        },
    ]


def test_a_prompt_is_the_english_and_a_sign() -> None:
    assert prompt(742) == "seven hundred forty-two = "
