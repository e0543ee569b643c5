"""A report shows small pictures of its own making beside the samples, and says where it cannot."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from counterpoint.language import speaking
from counterpoint.markup import join
from counterpoint.picture import Picture
from counterpoint.report import album
from counterpoint.report.album import Album
from counterpoint.report.samples import before_and_after
from counterpoint.runlog import SAMPLES, RunLog, clear_thumbnails, pictures_in_line, read_run
from counterpoint.runlog import thumbnails as kept
from counterpoint.thumbnail import MOST_BYTES, SIDE, as_address, thumbnail_of
from tests.report.runs import facts

ADDRESS = re.compile(r'src="data:image/jpeg;base64,([^"]+)"')


def drawn(width: int = 640, height: int = 480, seed: int = 0) -> bytes:
    """A picture of noise as PNG, with a word in its metadata."""
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "secret words"
    Image.fromarray(noise).save(out, format="PNG", exif=exif)
    return out.getvalue()


def sample(step: int = 0, **more: Any) -> dict[str, Any]:
    return {"step": step, "prompt": "What?", "completion": f"t{step}", "kind": "greedy", **more}


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Write a run whose prompts show pictures; its folder."""

    def write(*prompts: list[Picture]) -> Path:
        log = RunLog(tmp_path / "run")
        log.describe(facts())
        for step in (0, 20):
            for pictures in prompts:
                log.append(SAMPLES, sample(step, **log.shown(pictures)))
        return tmp_path / "run"

    return write


def page_of(folder: Path) -> str:
    return str(join(before_and_after(read_run(folder).samples, Album(folder))))


def of(content: bytes | str, number: int = 0) -> Picture:
    return Picture.of(content, number, f"images[{number}]")


def shown(page: str) -> list[Image.Image]:
    """The pictures of a page, decoded."""
    found = [base64.b64decode(one) for one in ADDRESS.findall(page)]
    assert all(one[:3] == b"\xff\xd8\xff" for one in found)
    return [Image.open(io.BytesIO(one)) for one in found]


@pytest.mark.parametrize(("width", "height"), [(4000, 3000), (3, 2000), (1, 1), (256, 256)])
def test_a_thumbnail_is_small_and_holds_nothing_but_pixels(width: int, height: int) -> None:
    content = thumbnail_of(of(drawn(width, height)).load())
    assert len(content) <= MOST_BYTES
    found = Image.open(io.BytesIO(content))
    assert (found.format, max(found.size)) == ("JPEG", min(SIDE, max(width, height)))
    assert b"secret" not in content
    assert not found.getexif()


def test_a_report_is_whole_when_the_pictures_have_moved(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "cat & dog.png"
    path.write_bytes(drawn())
    folder = run([of(str(path))])
    path.unlink()
    page = page_of(folder)
    (image,) = shown(page)
    assert image.size == (256, 192)
    assert 'alt="cat &amp; dog.png, 640 x 480 pixels"' in page
    assert '<details class="pictures"><summary>1 picture<small>cat &amp; dog.png</small>' in page
    assert str(tmp_path) not in page
    assert base64.b64encode(drawn())[:60].decode() not in page
    (line, _) = read_run(folder).samples
    assert pictures_in_line(line) == (hashlib.sha256(drawn()).hexdigest(),)


def test_each_picture_is_written_once_and_prompts_are_told_apart_by_theirs(run: Any) -> None:
    one, other = of(drawn(seed=1)), of(drawn(seed=2), 1)
    folder = run([one], [other], [one, other])
    assert len([*(folder / kept.FOLDER).iterdir()]) == 2
    page = page_of(folder)
    assert page.count("<article") == 3
    assert page.count(">t0<") == page.count(">t20<") == 3
    assert "picture 1, picture 2" in page
    assert len(shown(page)) == 4


def test_a_small_copy_that_is_gone_changed_or_none_is_said(run: Any, tmp_path: Path) -> None:
    folder = run([of(drawn())])
    (path,) = (folder / kept.FOLDER).iterdir()
    whole = path.read_bytes()
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(whole)
    for spoil, said in (
        (lambda: path.write_bytes(thumbnail_of(Image.new("RGB", (9, 9)))), "has changed since"),
        (lambda: path.write_bytes(whole + b"x" * MOST_BYTES), "has changed since"),
        (lambda: (path.unlink(), path.symlink_to(outside)), "gone from the folder"),
        (lambda: (path.unlink(), path.symlink_to(path)), "gone from the folder"),
        (lambda: (path.unlink(), path.mkdir()), "gone from the folder"),
        (lambda: path.rmdir(), "gone from the folder"),
    ):
        spoil()
        page = page_of(folder)
        assert shown(page) == []
        assert f'<span class="flag">its small copy is {said}' in page or said in page
        assert "picture 1, 640 x 480 pixels" in page


def stranger(folder: Path, content: bytes, **told: Any) -> str:
    """The page of a run that somebody else wrote."""
    log = RunLog(folder)
    log.describe(facts())
    digest = "a" * 64
    (folder / kept.FOLDER).mkdir(parents=True)
    (folder / kept.FOLDER / f"{digest}.jpg").write_bytes(content)
    entry = {"file": "x", "width": 1, "height": 1, "digest": digest}
    log.append(
        SAMPLES,
        sample(pictures=[{**entry, "thumbnail": hashlib.sha256(content).hexdigest(), **told}]),
    )
    return page_of(folder)


def test_what_a_stranger_put_there_is_made_anew_or_not_shown(tmp_path: Path) -> None:
    hidden = thumbnail_of(Image.new("RGB", (9, 7), "red")) + b"<script>hacked()</script>"
    page = stranger(tmp_path / "a", hidden)
    (image,) = shown(page)
    assert image.size == (9, 7)
    assert base64.b64encode(b"hacked()").decode()[2:8] not in "".join(ADDRESS.findall(page))
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>hacked()</script></svg>'
    assert "its small copy is no picture" in stranger(tmp_path / "b", svg)
    large = io.BytesIO()
    Image.new("RGB", (3000, 3000)).save(large, format="PNG")
    assert len(large.getvalue()) < MOST_BYTES
    assert "its small copy is no picture" in stranger(tmp_path / "c", large.getvalue())
    for digest in ("../../../etc/passwd", "A" * 64, ""):
        page = stranger(tmp_path / f"d{len(digest)}", hidden, digest=digest)
        assert "gone from the folder" in page
    name = '"><img src=x onerror=hacked()>' * 9
    page = stranger(tmp_path / "e", hidden, file=name)
    assert "<img src=x" not in page
    assert page.count("<img") == 1


def test_a_report_is_bounded_in_pictures_and_bytes(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run([of(drawn(40, 30, seed), seed) for seed in range(6)], [of(drawn(40, 30, 9))])
    monkeypatch.setattr(album, "MOST_OF_PROMPT", 4)
    page = page_of(folder)
    assert len(shown(page)) == 5
    assert "2 more pictures are not shown." in page
    monkeypatch.setattr(album, "MOST", 3)
    page = page_of(folder)
    assert len(shown(page)) == 3
    assert page.count("left out: this report shows 3 pictures") == 2
    one = len(as_address((next((folder / kept.FOLDER).iterdir())).read_bytes())[0])
    monkeypatch.setattr(album, "MOST_CHARACTERS", int(1.9 * one))
    assert len(shown(page_of(folder))) == 1


def test_a_run_keeps_so_many_and_says_why_others_are_not(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gone.png", "other.png"):
        (tmp_path / name).write_bytes(drawn(40, 30))
    gone, other = of(str(tmp_path / "gone.png")), of(str(tmp_path / "other.png"))
    (tmp_path / "gone.png").unlink()
    (tmp_path / "other.png").write_bytes(drawn(40, 30, 5))
    monkeypatch.setattr(kept, "MOST", 2)
    folder = run([gone])
    assert "not kept: the picture was gone (CP229)" in page_of(folder)
    folder = run([other])
    assert "not kept: the picture had changed (CP232)" in page_of(folder)
    folder = run([of(drawn(40, 30, seed), seed) for seed in range(3)])
    page = page_of(folder)
    assert "not kept: the run kept those that came first" in page
    with speaking("zh"):
        assert "运行只保存最先出现的图片" in page_of(folder)
        assert "<summary>3 张图片" in page_of(folder)


def test_without_pillow_a_report_says_what_it_lacks(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run([of(drawn(40, 30))])
    as_address.cache_clear()
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "pictures are shown where Pillow is installed" in page_of(folder)


def test_a_disk_that_refuses_ends_nothing(
    run: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "staged", full)
    folder = run([of(drawn(40, 30))])
    assert "not kept: the disk refused it" in page_of(folder)
    assert caplog.text.count("cannot be written: No space left on device") == 1


def test_pictures_of_an_earlier_run_are_removed_and_nothing_else(run: Any) -> None:
    folder = run([of(drawn(40, 30))])
    own = folder / kept.FOLDER / "notes.txt"
    own.write_text("mine")
    clear_thumbnails(folder)
    assert [*(folder / kept.FOLDER).iterdir()] == [own]
    own.unlink()
    clear_thumbnails(folder)
    assert not (folder / kept.FOLDER).exists()
    clear_thumbnails(folder)
