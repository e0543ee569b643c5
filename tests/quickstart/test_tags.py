"""The task of the model that sees: codes, what transcriptions mix up, pairs, pictures."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageStat

from counterpoint.errors import ConfigError, SetupError
from counterpoint.quickstart import tags
from counterpoint.quickstart.lessons import Reading, Translating, lesson_of
from counterpoint.quickstart.tags import (
    ALIKE,
    CLEAR,
    MixUp,
    MixUps,
    Tag,
    characters_right,
    drawn,
    held_out_tag_pairs,
    held_out_tags,
    is_held_out_code,
    mix_ups_in,
    tag_pairs,
    transcribed,
    transcriptions,
)

LINES = st.text(ALIKE + CLEAR, min_size=2, max_size=3)
CODES = st.tuples(LINES, LINES).map(" ".join)
MIX_UPS = st.frozensets(st.sampled_from(list(MixUp)))


@given(code=CODES, mix_ups=MIX_UPS)
def test_what_is_mixed_up_is_found_again_where_the_code_has_a_place(
    code: str, mix_ups: MixUps
) -> None:
    placed = frozenset(one for one in mix_ups if set(one) & set(code))
    assert mix_ups_in(code, transcribed(code, mix_ups)) == placed
    assert transcribed(transcribed(code, mix_ups), mix_ups) == code


@given(code=CODES)
def test_another_symbol_or_length_is_another_code(code: str) -> None:
    assert mix_ups_in(code, code[:-1]) is None
    assert mix_ups_in(code, f"{code}A") is None
    assert mix_ups_in(code, code.translate({ord(one): "?" for one in ALIKE + CLEAR})) is None


def test_of_some_alike_symbols_one_right_and_one_wrong_is_no_mix_up() -> None:
    assert mix_ups_in("O0 A1", "0O A1") == {MixUp.ROUND}
    assert mix_ups_in("O0 A1", "OO A1") is None
    assert mix_ups_in("O0 A1", "00 A1") is None


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("SB0 7KZ", 1),
        ("5B0 7KZ", 6 / 7),
        ("SB07KZ", 6 / 7),
        ("SB0 7KZ1", 6 / 7),
        ("S0 7KZA", 5 / 7),
        ("", 0),
        ("A" * 30, 0),
    ],
)
def test_characters_are_counted_by_edits(text: str, share: float) -> None:
    assert characters_right("SB0 7KZ", text) == pytest.approx(share)


def test_no_code_of_training_is_held_out_and_each_held_out_one_is_another() -> None:
    trained = {pair.chosen.tag.code for pair in tag_pairs(2000, seed=0)}
    trained |= {one.tag.code for one in islice(transcriptions(seed=0), 2000)}
    held_out = [tag.code for tag in held_out_tags(500, seed=0)]
    assert len(set(held_out)) == 500
    assert all(map(is_held_out_code, held_out))
    assert not any(map(is_held_out_code, trained))


def test_every_code_has_two_lines_and_a_place_for_three_mix_ups() -> None:
    for tag in [*held_out_tags(200, seed=1), *(pair.chosen.tag for pair in tag_pairs(200, seed=1))]:
        assert all(2 <= len(line) <= 3 for line in tag.code.split(" "))
        assert sum(bool(set(one) & set(tag.code)) for one in MixUp) >= 3


def test_chosen_has_fewer_mix_ups_and_is_seldom_right() -> None:
    pairs = tag_pairs(3000, seed=0)
    assert all(len(pair.chosen.flaws) < len(pair.rejected.flaws) for pair in pairs)
    assert all(pair.chosen.tag == pair.rejected.tag for pair in pairs)
    for pair in pairs[:200]:
        for one in (pair.chosen, pair.rejected):
            assert mix_ups_in(one.tag.code, one.text) == one.flaws
    assert 0.04 < sum(not pair.chosen.flaws for pair in pairs) / len(pairs) < 0.09


def test_a_text_alone_does_not_say_which_of_two_is_better() -> None:
    """Each symbol is as frequent in the chosen as in the rejected, to what chance allows."""
    pairs = tag_pairs(6000, seed=2)
    chosen, rejected = (
        Counter("".join(text for text in texts))
        for texts in ([p.chosen.text for p in pairs], [p.rejected.text for p in pairs])
    )
    for symbol in ALIKE:
        both = chosen[symbol] + rejected[symbol]
        # a code may hold a symbol twice, so that counts spread more than those of single ones
        assert abs(chosen[symbol] - rejected[symbol]) < 5 * (2 * both) ** 0.5
    assert all(chosen[symbol] == rejected[symbol] for symbol in CLEAR)


def test_the_same_seed_gives_the_same_pairs_and_another_others() -> None:
    assert tag_pairs(20, seed=3) == tag_pairs(20, seed=3)
    assert tag_pairs(20, seed=3) != tag_pairs(20, seed=4)
    tags_of_seed = held_out_tags(50, seed=3)
    assert held_out_tag_pairs(tags_of_seed, seed=3) == held_out_tag_pairs(tags_of_seed, seed=3)


def test_a_picture_is_gray_and_small_and_the_same_each_time() -> None:
    [tag] = held_out_tags(1, seed=0)
    picture = drawn(tag)
    assert (picture.mode, picture.size) == ("L", (48, 48))
    assert picture.tobytes() == drawn(tag).tobytes()
    assert picture.tobytes() != drawn(Tag(tag.code, tag.drawing + 1)).tobytes()


@pytest.mark.parametrize("one", MixUp)
def test_symbols_that_are_alike_can_be_seen_to_differ(one: MixUp) -> None:
    """By more than their noise, which is the same in both: the drawing decides it."""
    first, second = (drawn(Tag(f"{symbol}A A{symbol}", 7)) for symbol in one)
    assert ImageStat.Stat(ImageChops.difference(first, second)).extrema[0][1] > 40


def test_every_symbol_lies_within_its_picture() -> None:
    """What is drawn at the edge is paper and noise."""
    for tag in held_out_tags(60, seed=0):
        blank = drawn(Tag(tag.code, tag.drawing, blank=True))
        assert blank.size == drawn(tag).size
    wide = [Tag("OOO OOO", number) for number in range(40)]
    for tag in wide:
        left, _, right, _ = _ink(drawn(tag))
        assert left >= 0
        assert right <= 48
        assert right - left >= 36  # three wide symbols, none cut away


def _ink(picture: Image.Image) -> tuple[int, int, int, int]:
    """Where a picture is darker than the noise makes paper, and the ink lighter than it can be."""
    found = picture.point(lambda value: 255 if value < 140 else 0).getbbox()
    assert found is not None
    return found


def test_of_a_blank_tag_nothing_is_to_be_seen() -> None:
    """Its picture depends on its drawing, not on its code."""
    one, other = (drawn(Tag(code, 5, blank=True)) for code in ("SB0 7KZ", "2O AA"))
    assert one.tobytes() == other.tobytes()
    assert one.tobytes() != drawn(Tag("SB0 7KZ", 5)).tobytes()
    plain, blank = Reading(), Reading(blank=True)
    for made, emptied in (
        (plain.held_out(5, 0), blank.held_out(5, 0)),
        ([pair.chosen.tag for pair in lesson.pairs(5, 0)] for lesson in (plain, blank)),
    ):
        assert [tag.code for tag in made] == [tag.code for tag in emptied]
        assert all(tag.blank for tag in emptied)


def test_two_models_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="CP104 encoder_decoder and vision name two models"):
        lesson_of(encoder_decoder=True, vision=True)
    assert isinstance(lesson_of(encoder_decoder=False, vision=False), Translating)


@pytest.mark.parametrize("missing", ["PIL", "PIL._imagingft"])
def test_without_pillow_or_its_letters_it_is_said_how_to_install_them(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags._font.cache_clear()
    if missing == "PIL":
        monkeypatch.setitem(sys.modules, "PIL", None)
        monkeypatch.delitem(sys.modules, "PIL.ImageFont", raising=False)
    else:

        def without_freetype(size: float) -> None:
            raise ImportError("The _imagingft C module is not installed")

        monkeypatch.setattr("PIL.ImageFont.load_default", without_freetype)
    try:
        with pytest.raises(SetupError, match=r"CP502 .*Pillow.*pillow>=11\.3"):
            lesson_of(encoder_decoder=False, vision=True)
    finally:
        tags._font.cache_clear()


def test_a_row_asks_about_its_picture(tmp_path) -> None:
    lesson = Reading()
    pairs = lesson.pairs(3, seed=0)
    rows = lesson.rows(pairs, tmp_path)
    for row, pair in zip(rows, pairs, strict=True):
        assert row["prompt"] == "<image>Read it."
        assert (row["chosen"], row["rejected"]) == (pair.chosen.text, pair.rejected.text)
        [name] = row["images"]
        with Image.open(tmp_path / name) as picture:
            assert picture.tobytes() == drawn(pair.chosen.tag).tobytes()
    held_out = lesson.held_out(20, seed=0)
    codes = {tag.code for tag in held_out}
    more = lesson.held_out_rows(held_out, 0, tmp_path)
    assert {row["reference"] for row in more} <= codes
    assert not {*(row["images"][0] for row in more)} & {*(row["images"][0] for row in rows)}
