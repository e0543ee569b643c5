"""The doctor's arithmetic: rounding, lengths, circles, folding, signs, reports."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data.formats import to_preference_row
from counterpoint.doctor.consistency import consistency
from counterpoint.doctor.findings import Report, find, from_error
from counterpoint.doctor.lengths import length_bias, length_classes
from counterpoint.doctor.presets import PRESETS, presets_of
from counterpoint.doctor.signs import as_text, script, signs
from counterpoint.errors import ConfigError, DataError
from counterpoint.rounding import held, held_share
from counterpoint.wrap import columns, wrap

# Rounding


@pytest.mark.parametrize(
    ("dtype", "step", "smallest"),
    [
        (torch.bfloat16, 1e-6, 2**-11),
        (torch.float16, 1e-6, 2**-8),
        (torch.float32, 1e-6, 2**5),
        (torch.bfloat16, 1e-3, 2**-1),
    ],
)
def test_a_weight_is_held_where_a_step_is_less_than_half_a_unit_in_its_last_place(
    dtype: torch.dtype, step: float, smallest: float
) -> None:
    # half a unit of [2^k, 2^(k+1)) is eps 2^k / 2, and just below 2^k it is half of that
    assert torch.finfo(dtype).eps * smallest / 2 > step > torch.finfo(dtype).eps * smallest / 4
    below = smallest * (1 - torch.finfo(dtype).eps)
    weights = torch.tensor([smallest * 1.5, -smallest * 1.5, below, -below, 0.0], dtype=dtype)
    assert held(weights, step).tolist() == [True, True, False, False, False]


def test_of_usual_bfloat16_weights_98_in_100_cannot_take_a_step_of_a_millionth() -> None:
    weights = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * 0.02
    # |w| below 2^-11, 0.0244 standard deviations, is the rest
    expected = 1 - torch.special.erf(torch.tensor(2**-11 / 0.02 / 2**0.5)).item()
    assert held_share([weights.bfloat16()], 1e-6) == pytest.approx(expected, abs=2e-3)
    assert held_share([weights], 1e-6) == 0.0
    assert held_share([], 1e-6) == 0.0


def test_shares_of_several_tensors_are_weighed_by_their_sizes() -> None:
    large, small = torch.ones(3, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16)
    assert held_share([large, small], 1e-6) == 0.75


# Lengths


def test_the_auc_of_length_is_the_share_of_all_pairs_that_the_longer_wins() -> None:
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(0, 9, 50), rng.integers(0, 12, 50)
    wins = [(c > r) + (c == r) / 2 for c in chosen for r in rejected]
    bias = length_bias(chosen, rejected)
    assert bias.auc == pytest.approx(np.mean(wins))
    assert bias.longer == np.mean(chosen > rejected)
    assert bias.shorter == np.mean(chosen < rejected)
    assert bias.difference == pytest.approx(np.mean(chosen) - np.mean(rejected))


def test_equal_lengths_say_nothing_and_separate_ones_everything() -> None:
    assert length_bias(np.array([4, 5]), np.array([4, 5])).auc == 0.5
    assert length_bias(np.array([8, 9]), np.array([4, 5])).auc == 1.0


@given(st.lists(st.integers(0, 5000), max_size=40))
def test_a_histogram_counts_every_length_below_its_class(lengths: list[int]) -> None:
    text = length_classes(np.array(lengths, dtype=np.int64))
    counted = {
        int(top.replace(",", "")): int(n.replace(",", ""))
        for top, n in re.findall(r"<([\d,]+): ([\d,]+?)(?=, <|$)", text)
    }
    expected: dict[int, int] = {}
    for length in lengths:
        top = 1
        while top <= length:
            top *= 2
        expected[top] = expected.get(top, 0) + 1
    assert counted == expected


# Consistency


def test_rows_are_compared_with_those_before_them() -> None:
    rows = [(0, (1, 2, 3)), (1, (1, 2, 3)), (2, (1, 3, 2)), (3, (9, 2, 3)), (4, (1, 2, 4))]
    found = consistency(rows)
    assert found.duplicates == [1]
    assert found.contradictions == [2]
    assert found.prompts == [1, 2, 4]
    assert found.circles == []


@pytest.mark.parametrize(
    ("edges", "circles"),
    [
        ("ab bc ca", 1),
        ("ab bc ac", 0),
        ("ab bc cd da xa bx", 1),
        ("ab bc ca de ef fd", 2),
        ("ab bc ca cd de", 1),
        ("ab ac ad bc bd cd", 0),
    ],
)
def test_circles_are_found_and_orders_are_not(edges: str, circles: int) -> None:
    rows = [(n, (0, ord(edge[0]), ord(edge[1]))) for n, edge in enumerate(edges.split())]
    assert len(consistency(rows).circles) == circles
    apart = [(n, (n, better, worse)) for n, (_, better, worse) in rows]
    assert consistency(apart).circles == []


# Folding


@given(st.text(alphabet="ab \n国会é-", max_size=200), st.integers(20, 90))
def test_folded_text_fits_and_loses_nothing_but_spaces(text: str, width: int) -> None:
    lines = list(wrap(text, width, "first  ", "    "))
    assert all(columns(line) <= width for line in lines)
    kept = "".join([lines[0].removeprefix("first"), *lines[1:]])
    assert "".join(kept.split()) == "".join(text.split())


def test_a_wide_character_takes_two_columns() -> None:
    assert columns("国a") == 3
    assert list(wrap("国会国会", 6)) == ["国会国", "会"]
    assert list(wrap("one two three", 8)) == ["one two", "three"]


# Signs


def seen(chosen: Any, rejected: Any, **more: Any) -> list[str]:
    """What stands out in a row."""
    row = to_preference_row(
        {"prompt": "What is it, then, my dear?", "chosen": chosen, "rejected": rejected, **more}, 0
    )
    texts = as_text(row.prompt), as_text(row.chosen), as_text(row.rejected)
    return list(signs(row, texts, None, None))


def test_nothing_stands_out_in_a_usual_row() -> None:
    assert seen("It is a lamp of brass.", "It is a very old and broken table.") == []


@pytest.mark.parametrize(
    ("chosen", "rejected", "signs"),
    [
        ("a  b", "a b", ["CW201"]),
        ("\u00e9t\u00e9", "e\u0301te\u0301", ["CW201"]),
        ("a b c", "a b", ["CW206"]),
        ("I'm sorry, but no.", "Here it is.", ["refused chosen"]),
        ("Here it is.", "抱歉,我不能回答。", ["refused rejected"]),
        ("You ask: What is it, then, my dear?", "A lamp.", ["CW207"]),
        ("Use ghp_" + "a" * 36, "Use a key.", ["CW214"]),
    ],
)
def test_what_stands_out(chosen: str, rejected: str, signs: list[str]) -> None:
    assert seen(chosen, rejected) == signs


def test_scripts_are_told_apart_where_there_are_words_enough() -> None:
    assert script("A sentence of plain words, with a naïve accent.") == "Latin"
    assert script("国会由众议院和参议院组成") == "Han"
    assert script("これは日本語の文章です、漢字もある") == "kana"
    assert script("Это предложение на русском языке") == "Cyrillic"
    assert script("42") is None
    assert script("国") is None


# Reports


def test_errors_come_first_and_each_finding_once() -> None:
    findings = [find("CN501", "x"), find("CW101", "b"), find("CP203", "a"), find("CW101", "b")]
    report = Report.of(findings)
    assert [finding.code for finding in report.findings] == ["CP203", "CW101", "CN501"]
    assert report.summary() == "1 error, 1 warning, 1 note"


def test_the_exit_code_is_that_of_the_worst() -> None:
    codes = ["CN501", "CW101", "CP203"]
    reports = [Report.of(find(code, "") for code in codes[: n + 1]) for n in range(-1, 3)]
    assert [report.exit_code for report in reports] == [0, 0, 1, 2]


def test_a_refusal_is_the_first_error_and_names_the_others() -> None:
    report = Report.of([find("CP203", "row 1."), find("CP105", "why."), find("CW101", "so.")])
    error = report.refusal()
    assert isinstance(error, ConfigError)
    assert str(error) == "CP105 why. Also found: CP203."
    assert Report.of([find("CW101", "")]).refusal() is None


def test_an_error_says_the_same_as_a_finding() -> None:
    finding = from_error(DataError("CP203", "row 3: blank."))
    assert (finding.code, finding.severity, finding.seen) == ("CP203", "error", "row 3: blank.")


def test_a_code_that_is_not_in_the_table_is_no_finding() -> None:
    with pytest.raises(KeyError, match="CW000"):
        find("CW000", "")


def test_json_holds_every_finding_with_its_explanation() -> None:
    content = json.loads(Report.of([find("CW202", "train: 1", rows=range(9), fix="a")]).as_json())
    assert content["exit_code"] == 1
    (finding,) = content["findings"]
    assert finding["rows"] == [0, 1, 2, 3, 4]
    assert set(finding) == {"code", "severity", "title", "seen", "rows", "why", "do", "fix"}
    assert all(finding[name] for name in ("title", "why", "do"))


def test_what_data_hold_cannot_steer_the_terminal() -> None:
    report = Report.of([find("CW202", "a\x1b[31mb\ud800c\u202ed")])
    assert "  seen  a?[31mb?c?d\n" in report.as_table(80)
    assert report.as_json().isascii()


def test_every_preset_says_where_it_was_published() -> None:
    assert all(preset.source for preset in PRESETS)
    assert set(presets_of("simpo")) < set(presets_of("alphapo"))
    assert presets_of("ipo") == ()
