"""``counterpoint.show``: the report inside a notebook, in a frame that keeps its policy."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("bokeh", reason="the extra [report] is not installed")
pytest.importorskip("IPython", reason="IPython is not installed")

import counterpoint
from counterpoint import ConfigError, SetupError
from counterpoint.report.run_report import report_html
from counterpoint.runlog import read_run
from tests.report.runs import write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("shown") / "run", steps=40, looks=2)


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    """What a notebook would get; the shell is one that shows HTML."""
    got: list[dict[str, str]] = []
    shell = SimpleNamespace(
        display_formatter=SimpleNamespace(active_types=["text/plain", "text/html"])
    )
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setattr("IPython.display.display", lambda data, raw: got.append(data))
    return got


def page_of(displayed: list[dict[str, str]]) -> str:
    [data] = displayed
    found = re.fullmatch(r'<iframe srcdoc="([^"]*)" ([^<>]*)></iframe>', data["text/html"])
    assert found
    assert 'sandbox="allow-scripts allow-downloads"' in found[2]
    return html.unescape(found[1])


def words_of(page: str) -> str:
    """All of a page but the drawing, whose ids count up."""
    before, _, after = page.partition('<script type="application/json" id="charts">')
    assert after
    return before


@pytest.mark.parametrize("given", ["folder", "text", "run", "trainer"])
def test_a_notebook_gets_the_very_page_in_a_frame(
    given: str, folder: Path, displayed: list[dict[str, str]]
) -> None:
    things: dict[str, Any] = {
        "folder": folder,
        "text": str(folder),
        "run": read_run(folder),
        "trainer": SimpleNamespace(args=SimpleNamespace(output_dir=str(folder))),
    }
    assert counterpoint.show(things[given]) is None
    assert words_of(page_of(displayed)) == words_of(report_html(read_run(folder)))
    assert not (folder / "report.html").exists()


def test_elsewhere_the_page_is_written_and_its_path_given(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=40, looks=0)
    path = counterpoint.show(folder)
    assert path == folder / "report.html"
    assert words_of(path.read_text(encoding="utf-8")) == words_of(report_html(read_run(folder)))


@pytest.mark.parametrize("package", ["IPython", "bokeh"])
def test_a_package_that_is_missing_is_named_with_the_command(
    package: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SetupError, match=rf"^CP502 .*pip install .*{package.lower()}>="):
        counterpoint.show(folder)


@pytest.mark.parametrize(
    ("thing", "more", "message"),
    [
        (42, {}, "CP103 show takes the folder of a run, .* not a int"),
        (None, {}, "CP103 show takes the folder of a run, .* not a NoneType"),
        (".", {"height": 20}, "CP103 height=20 should be pixels, at least 100"),
    ],
)
def test_what_is_no_run_is_refused(thing: Any, more: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        counterpoint.show(thing, **more)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="CP507"):
        counterpoint.show(tmp_path)


def test_in_a_browser_the_frame_draws_its_charts_and_its_links_stay_inside(
    browser: Any, folder: Path, displayed: list[dict[str, str]], tmp_path: Path
) -> None:
    counterpoint.show(folder)
    around = tmp_path / "notebook.html"
    around.write_text(
        f"<!doctype html><title>notebook</title><p>cell</p>{displayed[0]['text/html']}",
        encoding="utf-8",
    )
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda one: said.append(one.text) if one.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(around.as_uri())
    inside = page.frames[1]
    inside.wait_for_selector("html[data-drawn]", timeout=60_000)
    assert inside.evaluate("Bokeh.documents[0].roots().length") > 10
    assert (
        inside.evaluate("(() => { try { return parent.document.title } catch { return '' } })()")
        == ""
    )
    inside.click("nav a[href='#samples']")
    inside.wait_for_function("() => scrollY > 500", timeout=20_000)
    assert inside.query_selector("#samples")
    assert said == []
    page.close()
