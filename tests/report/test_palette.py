"""Everything can be read in both themes: contrasts are those that WCAG asks for."""

from __future__ import annotations

import pytest

from counterpoint.report.palette import (
    COLOURS,
    SERIES,
    Theme,
    as_css,
    colour,
    shades,
)

THEMES: tuple[Theme, ...] = ("light", "dark")
TEXT = ("ink", "soft", "accent", "good", "warn", "bad")
BACKGROUNDS = ("paper", "card")


def contrast(one: str, other: str) -> float:
    """Contrast of two colours as WCAG 2.2 defines it, from 1 to 21."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(code: str) -> float:
    red, green, blue = (
        part / 12.92 if (part := channel / 255) <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for channel in (int(code[at : at + 2], 16) for at in (1, 3, 5))
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_contrast_is_that_of_the_recommendation() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#ffffff", "#ffffff") == 1
    # the grey that is known as the darkest that fails on white, and the next that passes
    assert contrast("#777777", "#ffffff") < 4.5 < contrast("#767676", "#ffffff")


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", TEXT)
def test_text_stands_out_by_four_and_a_half(name: str, theme: Theme) -> None:
    on = [contrast(colour(name, theme), colour(back, theme)) for back in BACKGROUNDS]
    assert min(on) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", [*SERIES, "alarm"])
def test_lines_stand_out_by_three(name: str, theme: Theme) -> None:
    on = [contrast(colour(name, theme), colour(back, theme)) for back in BACKGROUNDS]
    assert min(on) >= 3


@pytest.mark.parametrize("theme", THEMES)
def test_the_heat_scale_goes_one_way_from_the_background_to_the_ink(theme: Theme) -> None:
    steps = [contrast(shade, colour("card", theme)) for shade in shades(theme)]
    assert steps == sorted(steps)
    assert steps[-1] > 10


@pytest.mark.parametrize("theme", THEMES)
def test_what_did_not_move_looks_like_no_amount_of_movement(theme: Theme) -> None:
    assert colour("idle", theme) not in shades(theme)


def test_every_colour_is_in_the_style_of_both_themes() -> None:
    css = as_css()
    for name, (light, dark) in COLOURS.items():
        assert css.count(f"--{name}:{light};") == 1
        assert css.count(f"--{name}:{dark};") == 2
