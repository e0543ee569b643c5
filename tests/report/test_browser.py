"""In a real browser every chart is drawn, in both themes, on a desk and on a telephone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bokeh", reason="the extra [report] is not installed")

from counterpoint.picture import Picture
from counterpoint.report.comparison import comparison
from counterpoint.report.run_report import report_html
from counterpoint.report.watching import server_of
from counterpoint.runlog import METRICS, MOVEMENT, SAMPLES, RunLog, read_run
from tests.report.runs import facts, write_run

DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}

BLANK = """() => [...document.querySelectorAll('.plot')].filter((place) => {
  const canvases = [];
  const search = (node) => {
    if (node.tagName === 'CANVAS') canvases.push(node);
    for (const child of node.shadowRoot?.children ?? []) search(child);
    for (const child of node.children) search(child);
  };
  search(place);
  return !canvases.some((canvas) => {
    if (!canvas.width || !canvas.height) return false;
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    const colours = new Set();
    for (let at = 0; at < pixels.length; at += 4) {
      const [red, green, blue] = [pixels[at], pixels[at + 1], pixels[at + 2]];
      if (pixels[at + 3] > 200) colours.add((red << 16) | (green << 8) | blue);
    }
    return colours.size > 3;
  });
}).map((place) => place.id)"""
"""The charts without a pixel of their own."""

FOLDED_CHARTS = """() => [...document.querySelectorAll('details:not([open]) .plot')]
  .map((place) => place.id)"""

SIDEWAYS = """() => {
  const scrolls = (one) => one
    && (getComputedStyle(one).overflowX !== 'visible' || scrolls(one.parentElement));
  const texts = document.querySelectorAll('main :is(p, td, th, h1, h2, h3, dd, li, pre, figure)');
  const beyond = [...texts].filter((one) =>
    one.getBoundingClientRect().right > innerWidth + 1 && !scrolls(one.parentElement));
  const page = document.documentElement.scrollWidth > innerWidth ? ['the page'] : [];
  return [...page, ...beyond.map((one) => `${one.tagName}: ${one.textContent.slice(0, 40)}`)];
}"""
"""What lies beyond the right edge of the window and in no box that scrolls."""


def sideways(page: Any) -> list[str]:
    found: list[str] = page.evaluate(SIDEWAYS)
    return found


UNDRAWN = """() => Bokeh.documents.flatMap((one) => one.roots())
  .filter((root) => !Bokeh.index.get_by_id(root.id)).length"""


class Visit:
    """A page that is open, and what it said and asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda one: self.said.append(one.text) if one.type == "error" else None)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def go(self, where: str) -> None:
        self.page.goto(where)
        self.page.wait_for_selector("html[data-drawn]", timeout=60_000)


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Open a page: with a size and a colour scheme."""
    contexts = []

    def open_page(where: str, **more: Any) -> Visit:
        context = browser.new_context(**{"viewport": DESK, **more})
        contexts.append(context)
        visit = Visit(context.new_page())
        visit.go(where)
        return visit

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def report_url(long_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pages") / "report.html"
    path.write_text(report_html(read_run(long_run)), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_every_chart_is_drawn_and_nothing_is_asked_of_the_network(
    visit: Any, report_url: str, scheme: str, size: dict[str, int]
) -> None:
    seen = visit(report_url, viewport=size, color_scheme=scheme)
    assert seen.page.evaluate("document.querySelectorAll('.plot').length") >= 14
    folded = seen.page.evaluate(FOLDED_CHARTS)
    assert len(folded) >= 8
    assert set(seen.page.evaluate(BLANK)) <= set(folded)
    seen.page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    seen.page.wait_for_function(f"() => ({BLANK})().length === 0", timeout=20_000)
    assert seen.page.evaluate(UNDRAWN) == 0
    assert seen.said == []
    assert [url for url in seen.asked if not url.startswith("data:")] == [report_url]
    assert sideways(seen.page) == []


def ink_of_axes(page: Any) -> str:
    return str(page.evaluate("Bokeh.documents[0].roots()[0].below[0].major_label_text_color"))


def test_the_switch_changes_page_and_charts_and_is_remembered(visit: Any, report_url: str) -> None:
    seen = visit(report_url, color_scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = seen.page.evaluate(paper), ink_of_axes(seen.page)
    seen.page.click("#theme")
    dark = seen.page.evaluate(paper), ink_of_axes(seen.page)
    assert light[0] != dark[0]
    assert light[1] != dark[1]
    seen.go(report_url)
    assert (seen.page.evaluate(paper), ink_of_axes(seen.page)) == dark
    seen.page.click("#theme")
    assert (seen.page.evaluate(paper), ink_of_axes(seen.page)) == light


def test_a_name_of_the_legend_hides_its_line_and_shows_it_again(
    visit: Any, report_url: str
) -> None:
    seen = visit(report_url)
    key = seen.page.locator('.key[data-line="loss/helpful/loss"]')
    hidden = """Bokeh.documents[0].all_models.size && [...Bokeh.documents[0].all_models]
      .filter((m) => m.tags.includes('line=loss/helpful/loss') && m.type === 'GlyphRenderer')
      .map((m) => m.visible)"""
    assert set(seen.page.evaluate(hidden)) == {True}
    key.click()
    assert (set(seen.page.evaluate(hidden)), key.get_attribute("aria-pressed")) == (
        {False},
        "false",
    )
    key.click()
    assert set(seen.page.evaluate(hidden)) == {True}


def test_no_text_of_a_run_runs_as_a_script(visit: Any, tmp_path: Path) -> None:
    text = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
    log = RunLog(tmp_path / "run")
    log.describe(facts(options={"run_name": text}, objective=text))
    log.append(METRICS, {"step": 1, text: 1.0, "loss": 1.0, f"eval_{text}_loss": 2.0})
    tensor = {"group": text, "update": 1.0, "moved": 1.0}
    groups = {text: {"update": 1.0}}
    log.append(MOVEMENT, {"step": 9, "groups": groups, "tensors": {text: tensor}})
    log.append(SAMPLES, {"step": 0, "prompt": text, "completion": text})
    path = tmp_path / "report.html"
    path.write_text(report_html(read_run(tmp_path / "run")), encoding="utf-8")
    seen = visit(path.as_uri())
    # tooltips are written by the library: show one
    place = seen.page.locator("#plot-movement")
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    seen.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    seen.page.wait_for_timeout(300)
    assert seen.page.evaluate("window.hacked") is None
    assert seen.said == []
    assert seen.page.locator("img").count() == 0


def test_two_runs_lie_over_each_other_and_can_be_drawn_over_pairs(
    visit: Any, tmp_path: Path
) -> None:
    one = write_run(tmp_path / "first", steps=400, looks=0, samples=False)
    other = write_run(tmp_path / "second", steps=200, looks=0, samples=False, seed=1, step_pairs=64)
    path = tmp_path / "comparison.html"
    path.write_text(comparison([read_run(one), read_run(other)]), encoding="utf-8")
    seen = visit(path.as_uri())
    assert seen.page.evaluate(BLANK) == []
    steps = "Bokeh.documents[0].get_model_by_name('steps').end"
    over_steps = seen.page.evaluate(steps)
    seen.page.check("input[value=pairs]")
    seen.page.wait_for_timeout(300)
    assert 390 < over_steps < 420
    assert 12_700 < seen.page.evaluate(steps) < 13_100
    assert seen.said == []


@pytest.fixture(scope="module")
def comparison_url(long_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three runs that differ in long options, one of them with a long name."""
    folder = tmp_path_factory.mktemp("compared")
    options = {
        **facts()["options"],
        "run_name": "simpo-llama-3-8b-instruct-ultrafeedback-lr8e-7-seed-1",
        "beta": 10.0,
        "lora_target_modules": [
            f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")
        ],
    }
    others = [
        write_run(folder / "second", steps=200, looks=0, seed=1, options=options),
        write_run(folder / "third", steps=200, looks=0, seed=2, objective="loss = 1"),
    ]
    path = folder / "comparison.html"
    path.write_text(comparison([read_run(one) for one in (long_run, *others)]), encoding="utf-8")
    return path.as_uri()


def test_a_telephone_shows_every_value_of_a_comparison_beside_its_run(
    visit: Any, comparison_url: str
) -> None:
    seen = visit(comparison_url, viewport=PHONE)
    assert sideways(seen.page) == []
    hidden = """() => [...document.querySelectorAll('.stack td')].filter((cell) =>
      cell.checkVisibility() && cell.getBoundingClientRect().right > innerWidth).length"""
    assert seen.page.evaluate(hidden) == 0
    row = seen.page.locator("#differences tr", has_text="lora_target_modules")
    names = row.locator("td").evaluate_all(
        "all => all.map((one) => getComputedStyle(one, '::before').content)"
    )
    assert names == [
        '"first"',
        '"simpo-llama-3-8b-instruct-ultrafeedback-lr8e-7-seed-1"',
        '"third"',
    ]
    tops = row.locator("td").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect().top)"
    )
    assert tops == sorted(set(tops)), "the cells of a row are stacked"


def test_a_desk_shows_the_same_as_a_table(visit: Any, comparison_url: str) -> None:
    seen = visit(comparison_url)
    assert sideways(seen.page) == []
    row = seen.page.locator("#differences tr", has_text="lora_target_modules")
    tops = row.locator("td").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect().top)"
    )
    assert len(set(tops)) == 1


def test_a_link_to_a_folded_part_unfolds_it(visit: Any, report_url: str) -> None:
    seen = visit(report_url)
    inside = seen.page.locator("#environment table")
    assert not inside.is_visible()
    seen.page.click("nav a[href='#environment']")
    inside.wait_for(state="visible", timeout=5_000)
    seen = visit(f"{report_url}#movement")
    assert seen.page.locator("#plot-movement").is_visible()


def test_a_page_that_follows_a_run_brings_in_what_is_new_and_stays_where_it_is(
    visit: Any, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run", steps=200, looks=3, ended={})
    server, address = server_of(folder, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        seen = visit(address)
        seen.page.evaluate("scrollTo({top: 900, behavior: 'instant'}); window.kept = true")
        place = "document.querySelector('#curves').getBoundingClientRect().top"
        stood = seen.page.evaluate(place)
        last = "Bokeh.documents[0].get_model_by_name('loss/training/loss').data.step.at(-1)"
        assert seen.page.evaluate(last) == 200
        RunLog(folder).append(METRICS, {"step": 210, "loss": 0.5, "grad_norm": 1.0})
        seen.page.wait_for_function(f"() => {last} === 210", timeout=20_000)
        # what stands above may have changed its height
        assert seen.page.evaluate(place) == pytest.approx(stood, abs=1)
        assert seen.page.evaluate("window.kept")
        assert "step 210" in seen.page.inner_text("#part-lead")
        # a metric that is new needs a chart that is not there: the page is loaded again
        RunLog(folder).append(METRICS, {"step": 220, "something_new": 1.0})
        seen.page.wait_for_function("() => window.kept === undefined", timeout=20_000)
        seen.page.wait_for_selector("html[data-drawn]")
        assert "something_new" in seen.page.inner_text("#curves")
        assert seen.said == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_pictures_beside_samples_unfold_and_are_drawn(browser: Any, tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="the extra [vision] is not installed")
    folder = tmp_path / "run"
    write_run(folder, steps=20, samples=False)
    pillow.new("RGB", (900, 600), "teal").save(tmp_path / "a page.png")
    log = RunLog(folder)
    picture = Picture.of(str(tmp_path / "a page.png"), 0, "images[0]")
    entry = {"step": 0, "prompt": "Read it.", "completion": "no", "kind": "greedy"}
    log.append(SAMPLES, {**entry, **log.shown([picture, picture])})
    (tmp_path / "report.html").write_text(report_html(read_run(folder)), encoding="utf-8")
    for size in (DESK, PHONE):
        page = browser.new_page(viewport=size)
        said: list[str] = []
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.goto((tmp_path / "report.html").as_uri())
        shown = page.locator("details.pictures img")
        assert [one.is_visible() for one in shown.all()] == [False, False]
        page.locator("details.pictures summary").click()
        assert [one.is_visible() for one in shown.all()] == [True, True]
        sizes = shown.evaluate_all("all => all.map((one) => [one.naturalWidth, one.alt])")
        assert sizes == [[256, "a page.png, 900 x 600 pixels"]] * 2
        assert sideways(page) == []
        assert said == []
        page.close()
