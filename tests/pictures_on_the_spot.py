"""Pictures made on the spot, and an encoder that takes those of rows as a family's does."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from counterpoint.data.encoder import TextEncoder
from counterpoint.data.pictures import PictureRules
from counterpoint.data.truncate import Span
from counterpoint.records import TokenPair

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}[seen]{% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""Of chats with pictures."""


class SeeingEncoder(TextEncoder):
    """A text encoder that takes pictures along, and writes nothing for them."""

    rules = PictureRules()

    @property
    def pictures(self) -> PictureRules:
        """Those that a test sets."""
        return self.rules

    def spans(self, pair: TokenPair) -> list[Span]:
        """At the start of the prompt, without a token."""
        return [(0, 0)] * len(pair.pictures)


def drawn(width: int, height: int, red: int = 0) -> Any:
    """A picture whose corner says which way is up."""
    image = Image.new("RGB", (width, height), (red, 200, 100))
    image.putpixel((0, 0), (255, 0, 0))
    return image


def packed(image: Any, kind: str = "PNG", **more: Any) -> bytes:
    """A picture as a file of some format."""
    out = io.BytesIO()
    image.save(out, format=kind, **more)
    return out.getvalue()
