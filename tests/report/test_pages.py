"""A report is one file that asks nobody for anything, runs its own scripts alone, and is small."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("bokeh", reason="the extra [report] is not installed")

from counterpoint.markup import join
from counterpoint.report.comparison import comparison, comparison_page, differing, run_titles
from counterpoint.report.run_report import MOST_MARKS, alarm_marks, news, report_html, run_page
from counterpoint.report.story import alarm_kinds
from counterpoint.runlog import METRICS, SAMPLES, Alarm, Run, RunLog, read_run
from tests.report.runs import facts, write_run

HOSTILE = '<script>hacked()</script><img src=x onerror="hacked()">'


class Reader(HTMLParser):
    """Tags that are open, text outside scripts, and what is asked of the network."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.asks: list[str] = []
        self.handlers: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "link", "br", "input"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "action", "data", "srcset") and not (value or "").startswith(
                ("#", "data:")
            ):
                self.asks.append(f"{tag} {name}={value}")
            if name.startswith("on"):
                self.handlers.append(f"{tag} {name}")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def page(long_run: Path) -> str:
    return report_html(read_run(long_run))


def test_a_report_of_2000_steps_is_smaller_than_two_megabytes(page: str) -> None:
    assert len(page.encode()) < 2_000_000


def test_it_asks_the_network_for_nothing(page: str) -> None:
    found = read(page)
    assert found.asks == []
    assert "@import" not in page.split("</style>")[0]
    assert "url(" not in page.split("</style>")[0]


def test_its_policy_lets_its_own_scripts_run_and_no_others(page: str) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    allowed = re.findall(r"sha256-([^&#' ]+)", policy[1].replace("&#x27;", "'"))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert allowed == hashes
    assert len(hashes) == 2
    assert "default-src &#x27;none&#x27;" in policy[1]
    assert "connect-src &#x27;none&#x27;" in policy[1]


def test_every_part_is_there_with_its_heading(page: str) -> None:
    text = " ".join(read(page).text)
    for heading in (
        "Alarms",
        "What was trained",
        "Curves",
        "What moved",
        "Samples",
        "Speed and memory",
        "Environment",
    ):
        assert f" {heading} " in text
    for seen in ("first", "CPO-SimPO", "3 alarms", "Why does ice float on water?", "NVIDIA H100"):
        assert seen in text


def test_it_begins_with_what_a_reader_wants_and_folds_the_rest(page: str) -> None:
    body = page[page.index("<main") : page.index("</main>")]
    sections = re.findall(r'<section (?:class="(folded)" )?id="(\w+)"', body)
    assert [name for folded, name in sections if not folded] == [
        "alarms",
        "curves",
        "samples",
        "trained",
    ]
    assert [name for folded, name in sections if folded] == [
        "data",
        "movement",
        "speed",
        "environment",
    ]
    assert [bool(folded) for folded, _ in sections] == [False] * 4 + [True] * 4
    assert body.index('class="verdict') < body.index('class="figures"') < body.index("<section")
    # counts of what was dropped are seen before anything is unfolded
    assert "train: 61,082 of 61,135 rows, eval: 2,000 of 2,000 rows</small></summary>" in body
    first, more = body.index("More curves"), body.index('id="samples"')
    assert body.index('id="plot-grad_norm"') < first < body.index('id="plot-rewards"') < more


def test_a_run_without_alarms_says_so_once_and_in_the_verdict(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", steps=100, looks=0))
    made = run_page(run, now=1_790_000_700)
    assert "No alarm" in join(made.top)
    assert [section.key for section in made.sections][:2] == ["curves", "samples"]


def test_many_kinds_of_alarm_do_not_push_the_curves_away(tmp_path: Path) -> None:
    codes = ("CW101", "CW202", "CW203", "CW401", "CW402")
    alarms = [Alarm(code, step=n, since=n, seen=code) for n, code in enumerate(codes, 1)]
    run = read_run(write_run(tmp_path / "run", steps=100, looks=0, alarms=alarms))
    [first, *_] = run_page(run).sections
    shown, _, folded = join(first.content).partition("<details>")
    assert [code for code in codes if f"<code>{code}</code>" in shown] == list(codes[:3])
    assert [code for code in codes if f"<code>{code}</code>" in folded] == list(codes[3:])
    assert "2 more kinds" in folded


def test_landmarks_and_words_stand_for_what_is_drawn(page: str) -> None:
    found = read(page)
    assert [found.tags.count(tag) for tag in ("main", "header", "footer", "h1", "nav")] == [1] * 5
    figures = re.findall(r'<figure class="[^"]*" aria-labelledby="([^"]*)">', page)
    assert figures
    assert all(f'id="{name}"' in page for name in figures)
    # the words of each chart, for those who do not see it
    assert len(re.findall(r'id="part-words-', page)) == len(figures)


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("hostile") / "run"
    options = {"run_name": HOSTILE, "loss_type": HOSTILE, HOSTILE: HOSTILE}
    log = RunLog(folder)
    log.describe(
        facts(
            objective=HOSTILE,
            options=options,
            changed=[HOSTILE],
            data={HOSTILE: {"rows": 1, "dropped": {HOSTILE: 1}, "digest": HOSTILE}},
            environment={HOSTILE: HOSTILE},
            ended={"state": "failed", "step": 1, "error": HOSTILE},
        )
    )
    log.append(METRICS, {"step": 1, "loss": 1.0, HOSTILE: 2.0, f"eval_{HOSTILE}_loss": 3.0})
    log.append("alarms", {"code": HOSTILE, "step": 1, "since": 1, "seen": HOSTILE, "fix": HOSTILE})
    tensor = {"group": HOSTILE, "update": 1.0, "moved": 1.0}
    log.append(
        "movement",
        {"step": 1, "groups": {HOSTILE: {"update": 1.0}}, "tensors": {HOSTILE: tensor}},
    )
    for step in (0, 1):
        log.append(
            SAMPLES,
            {"step": step, "kind": HOSTILE, "prompt": HOSTILE, "completion": HOSTILE},
        )
    return read_run(folder)


def test_nothing_that_a_run_holds_becomes_a_tag_or_a_handler(hostile_run: Run) -> None:
    for page in (report_html(hostile_run), comparison([hostile_run, hostile_run])):
        found = read(page)
        assert found.handlers == []
        assert found.tags.count("script") == 3
        assert "img" not in found.tags


def test_a_run_of_nothing_says_so_of_every_part(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run")
    log.describe({})
    text = " ".join(read(report_html(read_run(tmp_path / "run"))).text)
    for sentence in (
        "Nothing logged yet",
        "The run did not write down its objective.",
        "The run did not write down its options.",
        "The run wrote no account of its data.",
        "Nothing was logged yet.",
        "Nobody looked at how far the parameters moved.",
        "The run wrote no samples.",
        "The run logged neither speed nor memory.",
    ):
        assert sentence in text


def test_options_unlike_their_defaults_come_before_all_of_them(page: str) -> None:
    text = " ".join(read(page).text)
    first, everything = text.index("Options unlike their defaults"), text.index("All options")
    assert first < text.index("learning_rate") < everything < text.index("some_other_option_59")


def test_the_first_alarm_of_each_kind_is_always_marked() -> None:
    many = [{"code": "CW101", "step": step, "since": step} for step in range(1, 1000)]
    marks = alarm_marks(alarm_kinds([*many, {"code": "CW202", "step": 999, "since": 990}]))
    assert len(marks) <= MOST_MARKS
    assert {(mark.number, mark.step) for mark in marks[:2]} == {(1, 1), (2, 999)}


def test_news_are_json_and_change_shape_only_with_the_charts(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", steps=400, looks=2, ended={})
    before = json.loads(news(read_run(folder), "1"))
    RunLog(folder).append(METRICS, {"step": 410, "loss": float("nan"), "grad_norm": 2.0})
    after = json.loads(news(read_run(folder), "2"))
    assert after["shape"] == before["shape"]
    assert after["sources"]["loss/training/loss"]["step"][-1] == 410
    assert after["sources"]["loss/training/loss"]["y"][-1] is None
    RunLog(folder).append(METRICS, {"step": 420, "something_new": 1.0})
    assert json.loads(news(read_run(folder), "3"))["shape"] != before["shape"]


def test_charts_and_parts_have_ids_of_their_own(long_run: Path) -> None:
    made = run_page(read_run(long_run))
    keys = [chart.key for chart in made.charts]
    assert len(keys) == len(set(keys))


def test_making_a_report_imports_no_torch(long_run: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from counterpoint.cli.main import main; "
        f"codes = [main(['report', {str(long_run)!r}, '--out', 'r.html']), "
        f"main(['compare', {str(long_run)!r}, {str(long_run)!r}])]; "
        "print(codes, [m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "[0, 0] []"


# Comparison


def test_only_what_differs_is_listed() -> None:
    one, other = {"a": 1, "b": 2, "c": [1]}, {"a": 1, "b": 3, "d": None}
    assert differing([one, other]) == {"b": [2, 3], "c": [[1], None]}


def test_a_comparison_begins_with_the_differences_and_marks_the_best(tmp_path: Path) -> None:
    options = {**facts()["options"], "beta": 10.0, "output_dir": "runs/second"}
    one = write_run(tmp_path / "first", steps=100, looks=0)
    other = write_run(tmp_path / "second", steps=100, looks=0, seed=1, options=options)
    page = comparison([read_run(one), read_run(other)])
    found = " ".join(read(page).text)
    assert found.index("What differs") < found.index("Results") < found.index("Curves")
    assert "beta" in found
    assert "output_dir" not in found
    assert "max_length" not in found
    assert page.count('class="best"') > 3
    assert len(page.encode()) < 2_000_000


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [Run(tmp_path / name / "cpo", {}, (), (), (), ()) for name in ("a", "b", "b")]
    assert run_titles(runs) == ["a/cpo", "b/cpo", "b/cpo (3)"]


def test_losses_of_different_objectives_are_not_ranked(tmp_path: Path) -> None:
    alike = [
        read_run(write_run(tmp_path / str(seed), steps=50, looks=0, seed=seed)) for seed in (0, 1)
    ]
    other = read_run(write_run(tmp_path / "other", steps=50, looks=0, seed=1, objective="loss = 1"))
    row = re.compile(r"<span>Loss <small>helpful</small></span></th>(.*?)</tr>")

    def marked(runs: list[Run]) -> bool:
        sections = comparison_page(runs).sections
        found = row.search(join([section.content for section in sections]))
        assert found
        return "best" in found[1]

    assert marked(alike)
    assert not marked([alike[0], other])
