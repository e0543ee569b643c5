"""A page in English and in Chinese is one page: the same code, headings, tables and codes."""

from __future__ import annotations

import pytest

from tests.examples.pages import bare, blocks, both, generated, outline, unlike_sections

NAMES = [
    *("guide", "constrained", "translation", "quantized", "gguf", "sampling", "sweep", "chat"),
    "scoring",
    "loop",
    *("reliability", "scaling", "vision"),
]


@pytest.fixture(params=NAMES)
def pages(request: pytest.FixtureRequest) -> tuple[str, str]:
    return both(request.param)


def test_both_languages_show_the_same_code_and_output(pages) -> None:
    english, chinese = pages
    assert list(map(bare, blocks(english))) == list(map(bare, blocks(chinese)))


def test_both_languages_have_the_same_headings_and_rows(pages) -> None:
    english, chinese = pages
    assert outline(english) == outline(chinese)


def test_both_languages_name_the_same_codes_and_code_in_each_section(pages) -> None:
    assert unlike_sections(*pages) == []


def test_both_languages_show_the_same_measured_tables(pages) -> None:
    english, chinese = map(generated, pages)
    assert english == chinese
