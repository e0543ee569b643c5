"""Pictures of rows: where they stand, what is opened, and what is refused before it is."""

from __future__ import annotations

import base64
import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from counterpoint.data.formats import pictures_in, to_preference_row, to_prompt
from counterpoint.data.marks import cell_at
from counterpoint.data.pictures import PictureRules
from counterpoint.errors import DataError
from counterpoint.picture import Picture
from counterpoint.preference_row import PreferenceRow
from tests.pictures_on_the_spot import drawn, packed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of data with three pictures of different sizes."""
    home = tmp_path / "data"
    home.mkdir()
    for n, size in enumerate([(8, 6), (5, 9), (7, 7)]):
        (home / f"{n}.png").write_bytes(packed(drawn(*size, red=n)))
    (tmp_path / "outside.png").write_bytes(packed(drawn(3, 3)))
    return home


def read(folder: Path, **row: Any) -> PreferenceRow:
    raw = {"prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog.", **row}
    return to_preference_row(raw, 7, PictureRules(str(folder)))


def sizes(row: PreferenceRow) -> list[tuple[int, int]]:
    return [(picture.width, picture.height) for picture in row.pictures]


IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def asked(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*content]}]


def data_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


CELLS = {
    "a path": lambda home: "0.png",
    "an absolute path": lambda home: str(home / "0.png"),
    "an address of a file": lambda home: (home / "0.png").as_uri(),
    "bytes": lambda home: (home / "0.png").read_bytes(),
    "what datasets makes": lambda home: {"bytes": (home / "0.png").read_bytes(), "path": "x.png"},
    "a path of datasets": lambda home: {"bytes": None, "path": "0.png"},
    "a data address": lambda home: data_url((home / "0.png").read_bytes()),
    "Pillow's": lambda home: Pillow.open(home / "0.png"),
}


@pytest.mark.parametrize("make", CELLS.values(), ids=CELLS.keys())
@pytest.mark.parametrize("column", ["image", "images", "listed", "photo", "image_path"])
def test_a_picture_is_the_same_in_whatever_cell_it_comes(folder: Path, make, column: str) -> None:
    cell = make(folder)
    if column == "photo" and isinstance(cell, str | bytes):
        column = "image"  # text or bytes in an unknown column are no picture
    named = {"images": [cell]} if column == "listed" else {column: cell}
    row = read(folder, **named)
    assert sizes(row) == [(8, 6)]
    assert row.prompt == asked(IMAGE, text("What is it?"))
    assert row.chosen == [{"role": "assistant", "content": "A cat."}]
    seen = row.pictures[0].load()
    assert (seen.mode, seen.size, seen.getpixel((0, 0))) == ("RGB", (8, 6), (255, 0, 0))
    assert seen.tobytes() == drawn(8, 6).tobytes()


PLACES = {
    "marks in text": ("a<image>b<image>", asked(text("a"), IMAGE, text("b"), IMAGE)),
    "no mark": ("hello", asked(IMAGE, IMAGE, text("hello"))),
    "parts": (
        asked(text("a"), IMAGE, text("b"), IMAGE),
        asked(text("a"), IMAGE, text("b"), IMAGE),
    ),
    "parts of Arrow, with nulls": (
        asked({**IMAGE, "text": None}, {**text("b<image>"), "image": None}),
        asked(IMAGE, text("b"), IMAGE),
    ),
    "an earlier turn": (
        [
            *asked(IMAGE, text("a")),
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "<image>\nc"},
        ],
        [
            *asked(IMAGE, text("a")),
            {"role": "assistant", "content": "b"},
            *asked(IMAGE, text("\nc")),
        ],
    ),
}


@pytest.mark.parametrize(("prompt", "expected"), PLACES.values(), ids=PLACES.keys())
def test_marks_take_the_column_s_pictures_in_order(folder: Path, prompt, expected) -> None:
    row = read(folder, prompt=prompt, images=["0.png", "1.png"])
    assert (row.prompt, sizes(row)) == (expected, [(8, 6), (5, 9)])
    assert (
        to_prompt(
            {"prompt": prompt, "images": ["0.png", "1.png"]}, 7, PictureRules(str(folder))
        ).prompt
        == expected
    )


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "1.png"},
        {"type": "image", "path": "1.png", "url": None},
        {"type": "image_url", "image_url": {"url": "1.png"}},
        {"type": "input_image", "image_url": "1.png"},
        {"type": "image", "image": {"bytes": None, "path": "1.png"}},
        "base64",
    ],
)
def test_a_part_holds_its_own_picture_and_others_take_the_column_s(folder: Path, part) -> None:
    if part == "base64":
        data = base64.b64encode((folder / "1.png").read_bytes()).decode()
        part = {"type": "image", "source": {"type": "base64", "data": data}}
    row = read(folder, prompt=asked(part, IMAGE, text("x")), images="2.png")
    assert row.prompt == asked(IMAGE, IMAGE, text("x"))
    assert sizes(row) == [(5, 9), (7, 7)]
    assert [picture.field for picture in row.pictures] == ["prompt.image[0]", "images"]


def test_shapes_of_data_sets(folder: Path) -> None:
    answer = {"role": "assistant", "content": "A cat."}
    other = {"role": "assistant", "content": "A dog."}
    rules = PictureRules(str(folder))
    shapes: list[dict[str, Any]] = [
        {
            "image": {"bytes": None, "path": "0.png"},
            "image_path": "gone.jpg",
            "question": "What?",
            "chosen": "A cat.",
            "rejected": "A dog.",
            "idx": 3,
        },
        {
            "conversations": [{"from": "human", "value": "<image>What?"}],
            "images": ["0.png"],
            "chosen": {"from": "gpt", "value": "A cat."},
            "rejected": {"from": "gpt", "value": "A dog."},
        },
        {
            "messages": [{"role": "user", "content": "<image>What?"}],
            "images": ["0.png"],
            "chosen": "A cat.",
            "rejected": "A dog.",
        },
        {
            "instruction": "<image>What?",
            "images": "0.png",
            "chosen": "A cat.",
            "rejected": "A dog.",
        },
        {
            "chosen": [*asked({"type": "image", "image": "0.png"}, text("What?")), answer],
            "rejected": [*asked({"type": "image", "image": "0.png"}, text("What?")), other],
        },
        {
            "prompt": asked({"type": "image", "image": "0.png"}, text("What?")),
            "chosen": [*asked({"type": "image", "image": "0.png"}, text("What?")), answer],
            "rejected": [*asked({"type": "image", "image": "0.png"}, text("What?")), other],
        },
    ]
    for raw in shapes:
        row = to_preference_row(raw, 7, rules)
        assert (row.prompt, row.chosen, row.rejected, sizes(row)) == (
            asked(IMAGE, text("What?")),
            [answer],
            [other],
            [(8, 6)],
        ), raw


def test_rows_without_a_picture_are_written_as_their_set_is(folder: Path) -> None:
    for empty in (None, [], ""):
        row = read(folder, images=empty)
        assert row.prompt == [{"role": "user", "content": "What is it?"}]
        assert row.pictures == ()
    assert read(folder).prompt == "What is it?"


MISPLACED = {
    "a mark too many": ({"prompt": "<image><image>", "images": ["0.png"]}, "prompt.*2 marks.*1"),
    "a mark too few": ({"prompt": "<image>", "images": ["0.png", "1.png"]}, "prompt.*1 mark.*2"),
    "a mark and no column": ({"prompt": "an <image> tag"}, "prompt.*1 mark .*0"),
    "a part and no column": ({"prompt": asked(IMAGE)}, "prompt.*1 mark .*0"),
    "a part beyond its own": (
        {"prompt": asked({"type": "image", "image": "0.png"}), "images": ["1.png"]},
        "prompt.*0 marks.*1",
    ),
    "a mark in a completion": (
        {"images": "0.png", "chosen": "See <image>"},
        "chosen.*completion|chosen.*prompts only",
    ),
    "two columns": ({"images": "0.png", "image": "1.png"}, "image.*beside field images"),
    "no user": (
        {"prompt": [{"role": "system", "content": "x"}], "images": "0.png"},
        "images.*no turn",
    ),
}


@pytest.mark.parametrize(("row", "said"), MISPLACED.values(), ids=MISPLACED.keys())
def test_marks_and_pictures_agree_or_the_row_is_refused(folder: Path, row, said: str) -> None:
    with pytest.raises(DataError, match=rf"^CP228 row 7, field {said}"):
        read(folder, **row)


# What is refused before it is opened


def bomb_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    lines = zlib.compress(b"\0" * 2**20)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def bomb_gif() -> bytes:
    frames = [drawn(4, 4, red) for red in range(200)]
    return packed(frames[0], "GIF", save_all=True, append_images=frames[1:])


def webp(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + (10).to_bytes(4, "little") + bytes(4) + canvas
    return b"RIFF" + len(body).to_bytes(4, "little") + body


REFUSED = {
    "20,000 x 20,000": (bomb_png(20_000, 20_000), "CP231", "400000000 pixels"),
    "a canvas of WebP": (webp(16_384, 16_384), "CP231", "16,384 x 16,384 pixels"),
    "a GIF of many frames": (bomb_gif(), "CP230", "several frames"),
    "an SVG": (
        b'<?xml version="1.0"?><svg xmlns="x"><image href="/etc/passwd"/></svg>',
        "CP230",
        "an SVG",
    ),
    "no picture": (b"%PDF-1.4 hello", "CP230", "no picture of a kind"),
    "nothing": (b"", "CP230", "is empty"),
    "a PostScript program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "CP230",
        "no picture",
    ),
}


@pytest.mark.parametrize(("data", "code", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bomb_is_refused_from_its_header_in_little_memory(folder: Path, data, code, said) -> None:
    (folder / "bad.png").write_bytes(data)
    Pillow.preinit()
    tracemalloc.start()
    before = resident()
    with pytest.raises(DataError, match=rf"^{code} row 7, field images\[1\]: .*{said}"):
        read(folder, images=["0.png", "bad.png"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22
    assert resident() - before < 2**25


def resident() -> int:
    """Bytes of this process in memory, those of native code included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_picture_that_is_cut_short_is_refused_when_it_is_decoded(folder: Path) -> None:
    whole = packed(drawn(64, 64).resize((400, 300)), "JPEG")
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    picture = read(folder, images="cut.jpg").pictures[0]
    with pytest.raises(DataError, match=r"^CP230 row 7, field images: .*damaged or cut short"):
        picture.load()


def test_nothing_outside_the_folder_is_opened(folder: Path, tmp_path: Path) -> None:
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "within.png").symlink_to(folder / "0.png")
    os.mkfifo(folder / "fifo.png")
    (folder / "is.dir").mkdir()
    outside = [
        "../outside.png",
        str(tmp_path / "outside.png"),
        "link.png",
        "file:///etc/hostname",
        "/dev/zero",
        "fifo.png",
        "is.dir",
        "gone.png",
        "a\0b.png",
        "file://there/0.png",
        "https://example.com/a.png",
        "HTTP://169.254.169.254/latest",
    ]
    for name in outside:
        with pytest.raises(DataError, match=r"^CP229 row 7, field images\[1\]: ") as caught:
            read(folder, images=["0.png", name])
        assert len(str(caught.value)) < 500
    assert sizes(read(folder, images="within.png")) == [(8, 6)]


def test_a_path_is_one_picture_and_not_its_letters(folder: Path) -> None:
    assert len(read(folder, images="0.png").pictures) == 1


# Decoding


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_picture_is_turned_as_its_header_says(kind: str) -> None:
    image = Pillow.new("RGB", (20, 10), "white")
    image.paste("red", (0, 0, 10, 10))  # left half
    exif = Pillow.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right: its left is then above
    picture = Picture.of(packed(image, kind, exif=exif), 0, "images")
    assert (picture.width, picture.height) == (10, 20)
    seen = picture.load()
    red, green, _ = seen.getpixel((5, 2))
    assert (red > 200, green < 60) == (True, True)


def test_what_is_transparent_is_white_and_gray_of_16_bits_keeps_its_shades() -> None:
    clear = Pillow.new("RGBA", (2, 2), (0, 0, 0, 0))
    clear.putpixel((1, 1), (0, 0, 0, 255))
    seen = Picture.of(packed(clear), 0, "images").load()
    assert (seen.getpixel((0, 0)), seen.getpixel((1, 1))) == ((255, 255, 255), (0, 0, 0))
    gray = Pillow.new("I;16", (2, 1))
    gray.putpixel((1, 0), 0x8000)
    seen = Picture.of(packed(gray), 0, "images").load()
    assert (seen.getpixel((0, 0)), seen.getpixel((1, 0))) == ((0, 0, 0), (128, 128, 128))


def test_a_picture_that_changed_since_is_refused(folder: Path) -> None:
    picture = read(folder, images="0.png").pictures[0]
    changed = drawn(8, 6)
    changed.putpixel((3, 3), (1, 200, 100))
    (folder / "0.png").write_bytes(packed(changed))
    with pytest.raises(DataError, match=r"^CP232 row 7, field images: "):
        picture.load()


# What a model that sees none refuses


@pytest.mark.parametrize(
    "row",
    [
        {"photo": {"bytes": b"x", "path": None}},
        {"photos": [{"bytes": None, "path": "a.png"}]},
        {"image_path": "a.png"},
        {"image_urls": ["https://example.com/a.png"]},
        {"scan": Pillow.new("RGB", (2, 2))},
        {"prompt": asked({"type": "image_url", "image_url": {"url": "a.png"}}, text("x"))},
        {"prompt": asked(IMAGE)},
        {
            "chosen": [{"role": "assistant", "content": [IMAGE]}],
            "rejected": [{"role": "assistant", "content": "x"}],
            "prompt": asked(text("x")),
        },
    ],
)
def test_a_text_model_refuses_pictures_under_any_name(row) -> None:
    raw = {"prompt": "What?", "chosen": "A cat.", "rejected": "A dog.", **row}
    field = next(iter(row))
    with pytest.raises(DataError, match=rf"^CP219 row 7, field {field}: "):
        to_preference_row(raw, 7)


def test_a_cell_is_found_again_where_it_was_found(folder: Path) -> None:
    own = {"type": "image", "image": "1.png"}
    raw = {
        "prompt": asked(IMAGE, own, text("<image>")),
        "chosen": "a",
        "rejected": "b",
        "images": ["0.png", None, "2.png"],
    }
    cells = pictures_in(raw, 7)
    assert [cell.value for cell in cells] == ["0.png", "1.png", "2.png"]
    assert [cell_at(raw, cell.field, 7) for cell in cells] == ["0.png", "1.png", "2.png"]
