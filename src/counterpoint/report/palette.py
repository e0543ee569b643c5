"""The colours of a report, by what they mean, in light and in dark.

Lines are told apart by people who see colours differently, too: blue, vermilion, green and purple
of Okabe and Ito's palette, darkened or lightened until each stands out from its background by a
contrast of 3 (text: 4.5; WCAG 2.2). Dashes repeat what colours say.

Not here: where each is used (``page.css``, ``drawing``).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Theme = Literal["light", "dark"]

COLOURS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "paper": ("#fbfaf6", "#15171a"),
        "card": ("#ffffff", "#1c1f23"),
        "sunken": ("#f3f1ea", "#101214"),
        "rule": ("#e3dfd4", "#2f3338"),
        "grid": ("#ebe8df", "#2a2e33"),
        "ink": ("#1f2023", "#ecebe6"),
        "soft": ("#5d5c58", "#a9a8a2"),
        "accent": ("#0b5cad", "#7ab8f5"),
        "good": ("#12704f", "#5ecfa6"),
        "warn": ("#8a5a00", "#e8b350"),
        "bad": ("#b3261e", "#ff8f85"),
        "series-1": ("#0b62a8", "#6db3f2"),
        "series-2": ("#c04a0a", "#f59b5d"),
        "series-3": ("#00795c", "#4fc7a4"),
        "series-4": ("#96427f", "#e09fce"),
        "series-5": ("#806400", "#d8bd4d"),
        "series-6": ("#4d5057", "#b6bac2"),
        "alarm": ("#b3261e", "#ff8f85"),
        "idle": ("#d8d4c8", "#3b4046"),
    }
)
"""Meaning -> (colour on light, colour on dark)."""

SERIES = tuple(name for name in COLOURS if name.startswith("series-"))

HEAT: Mapping[Theme, tuple[str, ...]] = MappingProxyType(
    {
        "light": ("#eaf1f7", "#a9cbe3", "#4f94c4", "#14598f", "#08294d"),
        "dark": ("#1f2c38", "#27567c", "#3f8cc0", "#8fc4ea", "#eaf5ff"),
    }
)
"""Stations of the heat map's scale, from little to much."""

SHADES = 64


def colour(name: str, theme: Theme = "light") -> str:
    """The colour of a meaning.

    Args:
        name: a key of ``COLOURS``.
        theme: the background it is for.
    """
    return COLOURS[name][theme == "dark"]


def shades(theme: Theme = "light", count: int = SHADES) -> tuple[str, ...]:
    """The heat map's colours, evenly spaced between its stations.

    Args:
        theme: the background they are for.
        count: how many, at least 2.
    """
    stations = [_channels(station) for station in HEAT[theme]]
    found = []
    for number in range(count):
        place = number / (count - 1) * (len(stations) - 1)
        left = min(int(place), len(stations) - 2)
        share = place - left
        mixed = [
            round(a + (b - a) * share)
            for a, b in zip(stations[left], stations[left + 1], strict=True)
        ]
        found.append("#" + "".join(f"{channel:02x}" for channel in mixed))
    return tuple(found)


def as_css() -> str:
    """The colours as custom properties: by the reader's system, and by the page's switch."""
    light, dark = _properties("light"), _properties("dark")
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light])"
        f"{{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n"
    )


def _properties(theme: Theme) -> str:
    colours = "".join(f"--{name}:{colour(name, theme)};" for name in COLOURS)
    return f"{colours}--heat:{' '.join(shades(theme))};"


def _channels(code: str) -> tuple[int, int, int]:
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)
