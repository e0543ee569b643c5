"""Whatever a run holds becomes text of the page, never a tag, an attribute or a script."""

from __future__ import annotations

import html
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.markup import element, fold, join, plain_json, raw, script_json, table

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">'


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc",))))
def test_text_comes_back_as_it_was_written(text: str) -> None:
    assert html.unescape(join(text)) == text
    assert not set("<>\"'") & set(join(text))


def test_text_in_any_place_of_an_element_makes_no_tag() -> None:
    made = element("p", HOSTILE, [HOSTILE, None, element("b", HOSTILE)], title=HOSTILE)
    assert re.findall(r"<(\w+)", made) == ["p", "b"]
    assert 'title="&lt;script&gt;' in made


def test_only_markup_made_here_is_taken_as_it_is() -> None:
    assert element("p", raw("<b>x</b>")) == "<p><b>x</b></p>"
    # adding text to markup gives text, which is escaped again
    assert join(raw("<b>") + HOSTILE).startswith("&lt;b&gt;")


def test_attributes_are_left_out_stand_alone_or_hold_a_value() -> None:
    made = element("input", type="radio", checked=True, disabled=False, class_="", data_x=0)
    assert made == '<input type="radio" checked data-x="0">'


@pytest.mark.parametrize("sign", ["\x00", "\x1b", "\ud800"])
def test_what_no_page_may_hold_is_replaced(sign: str) -> None:
    assert join(f"a{sign}b") == f"a\\u{ord(sign):04x}b"


@given(st.recursive(st.text() | st.integers(), st.lists))
def test_json_in_a_script_is_the_same_json_and_cannot_end_the_script(value: object) -> None:
    text = script_json(value)
    assert json.loads(text) == value
    assert not {"<", ">", "&"} & set(text)


def test_json_in_a_script_refuses_what_json_does_not_know() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json(float("nan"))


def test_a_table_names_its_rows_and_columns_and_can_be_scrolled_by_keyboard() -> None:
    made = table(["", "value"], [["loss", "0.5"]], label="Results")
    assert '<th scope="row">loss</th><td>0.5</td>' in made
    assert '<th scope="col">value</th>' in made
    assert 'tabindex="0" role="region" aria-label="Results"' in made


def test_something_folded_has_a_summary() -> None:
    assert fold("More", "text") == "<details><summary>More</summary>text</details>"


def test_options_are_shown_as_people_write_them() -> None:
    shown = [plain_json(value) for value in ("simpo", 0.1, None, True, {"a": [1]}, "ä")]
    assert shown == ["simpo", "0.1", "null", "true", '{"a": [1]}', "ä"]
