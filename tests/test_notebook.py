"""What objects show in a notebook: tables with the right numbers, and nothing of a stranger's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from counterpoint import pairs_from_scored
from counterpoint.doctor.findings import Finding, Report
from counterpoint.language import speaking
from counterpoint.monitor.difference import Difference, TensorDifference
from counterpoint.monitor.weight_files import Entry
from counterpoint.notebook import LONGEST, notebook_html, rows_shown
from counterpoint.planner.prediction import Estimate, Plan, Remedy, Split
from counterpoint.runlog import Run
from counterpoint.smoke.report import Check, SmokeReport

HOSTILE = "<script>hacked()</script><img src=x onerror='hacked()'>\x1b[2J"
GIB = 2**30


class Reader(HTMLParser):
    """Tags, text cell by cell, and whether every tag is closed."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.rows: list[list[str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.open.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def run(text: str) -> Run:
    lines = (
        {"step": 1, "time": 5.0, "loss": 1.25, text: 1.0},
        {"step": 2, "time": 6.0, "loss": 0.5},
    )
    facts = {
        "model": {"name": text},
        "objective": text,
        "ended": {"state": "failed", "step": 2, "error": {"code": "CP401", "seen": text}},
    }
    alarm = {"code": "CW401", "step": 2, "since": 1, "seen": text}
    return Run(Path(text), facts, lines, (alarm,), (), ())


def difference(text: str) -> Difference:
    one = TensorDifference("mlp", 1000, 0.25, 3.0, 12.0, 0.5)
    return Difference(
        {f"model.{text}": one},
        {text: ((2, 3), (3, 2))},
        {f"new {text}": Entry(text, (2,))},
        {},
    )


def plan(text: str) -> Plan:
    one = Estimate(4, 512, GIB, 2 * GIB, 0, 0, GIB, GIB // 2, 0, 0, 0, 0, 5 * GIB, False)
    return Plan(
        parameters=1000,
        trained=10,
        layout="shared",
        share=1.0,
        reason=text,
        precision=text,
        checkpointing=False,
        memory=4 * GIB,
        usable=3 * GIB,
        lengths={"median": 100},
        pairs=32,
        asked=one,
        longest=one,
        budget=0,
        whole=2048,
        splits=(Split(4, 8, 1, 512, 5 * GIB, False), Split(1, 32, 1, 128, GIB, True)),
        remedies=(Remedy(text, text, 2 * GIB, 300, True),),
    )


def scored(text: str) -> Any:
    candidates = [{"text": text, "score": 2.0}, {"text": "b", "score": 1.0}]
    return pairs_from_scored([{"prompt": text, "candidates": candidates}])


KINDS: dict[str, Callable[[str], Any]] = {
    "Report": lambda text: Report.of(
        [Finding("CP203", "error", text, (3, 4), text), Finding("CN501", "note", text)]
    ),
    "Finding": lambda text: Finding("CW101", "warning", text, (), text),
    "Run": run,
    "Difference": difference,
    "Plan": plan,
    "ScoredPairs": scored,
    "SmokeReport": lambda text: SmokeReport(text, (Check(text, "failed", text),), None, 1.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_object_holds_becomes_text_of_a_table(kind: str) -> None:
    page = KINDS[kind](HOSTILE)._repr_html_()
    found = Reader(page)
    assert found.tags["table"] >= 1
    assert not set(found.tags) & {"script", "img", "iframe"}
    assert "hacked()" in page
    assert "\x1b" not in page


def row(page: str, first: str) -> list[str]:
    return next(cells for cells in Reader(page).rows if cells[0] == first)


def test_the_numbers_are_those_of_the_object() -> None:
    page = run("m")._repr_html_()
    assert row(page, "loss") == ["loss", "1.25", "0.5"]
    assert row(page, "state") == ["state", "failed, step 2"]
    assert row(page, "CW401") == ["CW401", "2", "1", "m"]
    page = difference("w")._repr_html_()
    assert row(page, "model.w") == ["model.w", "mlp", "25.00%", "0.25", "0.5"]
    assert row(page, "mlp") == ["mlp", "1", "1,000", "25.00%", "0.25", "0.5"]
    assert row(page, "w") == ["w", "another shape: [2, 3], then [3, 2]"]
    page = plan("p")._repr_html_()
    assert row(page, "peak") == ["peak", "5 GiB, too much", "5 GiB, too much"]
    assert row(page, "4") == ["4", "8", "1", "512", "5 GiB", "too much"]
    assert row(page, "1") == ["1", "32", "1", "128", "1 GiB", "fits"]
    page = scored("a")._repr_html_()
    assert row(page, "a")[:4] == ["a", "a", "b", "1"]


def test_the_doctors_table_speaks_the_language() -> None:
    report = Report.of([Finding("CP203", "error", "3 rows", (1, 2), "")])
    assert row(report._repr_html_(), "CP203")[1:4] == [
        "error",
        "a completion is empty or blank",
        "3 rows (rows 1, 2)",
    ]
    with speaking("zh"):
        page = report._repr_html_()
    assert row(page, "CP203")[1:3] == ["错误", "回答为空或只有空白"]
    assert row(page, "代码")[1] == "级别"


@pytest.mark.parametrize("kind", KINDS)
def test_the_words_of_every_table_are_in_the_language_spoken(kind: str) -> None:
    made = KINDS[kind]("δοκιμή")
    with speaking("zh"):
        rows = Reader(made._repr_html_()).rows
    columns = {"prompt", "chosen", "rejected", "score_gap", "chosen_score", "rejected_score"}
    names = {"loss", "mlp", "all"}
    heads = {cells[0] for cells in rows} | {cell for cells in rows[:1] for cell in cells}
    words = {cell for cell in heads if re.fullmatch(r"[a-z][a-z _]+", cell)}
    assert words - columns - names == set()


def test_nothing_found_is_a_sentence_and_no_table() -> None:
    page = Report.of([])._repr_html_()
    assert "0 errors, 0 warnings, 0 notes" in page
    assert "<table" not in page


def test_many_rows_are_folded_and_a_long_text_is_cut_with_its_length() -> None:
    page = notebook_html("many", rows_shown(("n",), ([n] for n in range(1000)), label="n", most=20))
    assert Reader(page).tags["tr"] == 2 + 200
    assert "180 more, and others" in page
    text = "x" * (LONGEST + 7)
    page = notebook_html("long", rows_shown(("t",), [[text]], label="t"))
    assert "… (7 more characters)" in page
    assert len(page) < LONGEST + 700
