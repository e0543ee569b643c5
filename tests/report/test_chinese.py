"""In Chinese nothing of a page is English but codes, names of options and the run's own text.

The runs of these tests speak Greek, so that whatever is English on a page was said by the page.
"""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bokeh", reason="the extra [report] is not installed")

from counterpoint.doctor.table import TABLE_ZH
from counterpoint.language import speaking
from counterpoint.markup import join
from counterpoint.report.about import About
from counterpoint.report.card import model_card
from counterpoint.report.comparison import comparison
from counterpoint.report.run_report import live_report, report_html, run_page
from counterpoint.runlog import METRICS, SAMPLES, Alarm, Run, RunLog, read_run
from tests.cli.conftest import Command, command, pattern, workshop
from tests.report.runs import facts, write_run

__all__ = ["command", "pattern", "workshop"]  # fixtures

GREEK = "δοκιμή"

TOKEN = re.compile(r"[\w./{}=$@-]+", re.ASCII)
WORD = re.compile(r"[A-Za-z][a-z]+")


FIELD = {"chosen", "Chosen", "rejected", "prompt", "token", "tokens", "logits", "Logits", "mlp"}
NAMES = {
    "Counterpoint",
    "JavaScript",
    "Pillow",
    "counterpoint",
    "watch",
    "doctor",
    "explain",
    "python",
    "git",
}
OPTIONS = {"beta", "simpo", "commit", "torch", "train", "eval", "helpful", "harmless"}
STAY = FIELD | NAMES | OPTIONS
"""The field's words, names of programs and commands, of options, packages and sets."""

NOT_READ = ("script", "style", "code", "pre", "dl.formula")
"""Elements of scripts, of names and values, and of the objective as the run wrote it."""


class Reader(HTMLParser):
    """Texts and spoken attributes of a page, each with the tags around it."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.said: list[str] = []
        self.lang = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.lang = self.lang or (known.get("lang") or "")
        if tag not in ("meta", "link", "br", "input"):
            classes = (known.get("class") or "").split()
            self.open.append(f"dl.{'formula'}" if "formula" in classes else tag)
        spoken = ("aria-label", "title", "data-label", "data-of")
        self.said += [value for name in spoken if (value := known.get(name))]

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not set(self.open) & set(NOT_READ):
            self.said.append(data)


def english(texts: list[str]) -> dict[str, list[str]]:
    """Texts with words of English among them, and these."""
    found: dict[str, list[str]] = {}
    for text in texts:
        tokens = [token.strip(".-") for token in TOKEN.findall(text)]
        words = [one for one in tokens if WORD.fullmatch(one) and one not in STAY]
        if words:
            found[text.strip()] = words
    return found


def drawn(page: str) -> list[str]:
    """What the charts of a page say: axes, tooltips, legends."""
    data = re.search(r'id="charts">(.*?)</script>', page, re.DOTALL)
    assert data
    texts: list[str] = []

    def walk(thing: Any, key: str = "") -> None:
        if isinstance(thing, dict):
            for name, value in thing.items():
                walk(value, name if name not in ("value", "entries") else key)
        elif isinstance(thing, list):
            for value in thing:
                walk(value, key)
        elif isinstance(thing, str) and key in ("axis_label", "tooltips", "text", "row", "shown"):
            texts.append(re.sub(r"[@$]\w+", "", thing))

    content = json.loads(data[1])
    walk(content["document"])
    return [*texts, *content["words"].values()]


CODES = (*[code for code in TABLE_ZH if code.startswith("CW4")][:4], "CW101", "CW000")
"""Alarms, a code that the doctor has, and one that nobody knows."""


def write(folder: Path, **changes: Any) -> Run:
    """A run with something in every part of its report, whose own texts are Greek."""
    bounds = [
        {"name": "βγ", "kind": "bc", "bound": 0.5, "slack": 0.1, "update": "νπ", "rate": 0.1},
        {"name": "κλ", "kind": "kl_drift", "bound": None, "update": "νπ"},
    ]
    alarms = [Alarm(code, step=40 + n, since=40, seen=GREEK) for n, code in enumerate(CODES)]
    account = facts()["data"]["train"]
    data = {
        "train": {
            **account,
            "examples": {"CP203": GREEK},
            "absent_rows": {GREEK: 2},
            "lost": {"drops thoughts of the prompt": 3, "changes white space of chosen": 1},
            "shown": {"drops thoughts of the prompt": GREEK},
            "limits": {"max_length": 1024, "truncation": None},
        },
        "eval": {"rows": 10, "kept": 10},
    }
    environment = {
        **dict.fromkeys(("machine", "cpu", "memory", "os", "installed"), GREEK),
        "cores": 2,
        "gpus": [GREEK],
        "git": {"commit": "0a1b2c"},
    }
    options = {**facts()["options"], "run_name": GREEK}
    told = {
        "objective": f"{GREEK} = σ(β)",
        "options": options,
        "model": GREEK,
        "data": data,
        "environment": environment,
        "constraints": bounds,
        "adapter": {"default": {"r": 16}},
        **changes,
    }
    write_run(folder, steps=100, looks=3, layers=2, alarms=alarms, **told)
    log = RunLog(folder)
    for step in (60, 80, 100):
        held = {"value": 0.6, "bound": 0.5, "violation": 0.1, "smoothed": 0.1, "multiplier": 1.0}
        more = {"feasible": 0.5, "at_cap": 0.1}
        line = {f"constraints/βγ/{key}": value for key, value in (held | more).items()}
        log.append(
            METRICS, {"step": step, "aux_loss": 1.0, **line, "eval_constraints/βγ/value": 0.7}
        )
    for number in range(45):
        sample = {"prompt": f"{GREEK} {number}", "completion": GREEK, "kind": "sampled"}
        more = {"tokens": 9, "repetition": 0.5, "ended": False, "reference": GREEK}
        log.append(SAMPLES, {"step": 0, **sample, "completion": GREEK * 600})
        log.append(SAMPLES, {"step": 100, **sample, **more, "completion": "" if number else GREEK})
    return strip(read_run(folder))


def strip(run: Run) -> Run:
    """The run without the English samples of ``write_run``."""
    kept = tuple(one for one in run.samples if GREEK in one["prompt"])
    return Run(
        run.folder,
        {**run.facts, "command": [GREEK], "versions": {"torch": "2.13"}},
        run.metrics,
        run.alarms,
        run.movement,
        kept,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(GREEK)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Run:
    return write(folder / "1")


def test_a_report_in_chinese_says_nothing_in_english(whole: Run) -> None:
    with speaking("zh"):
        page = report_html(whole)
    found = Reader(page)
    assert found.lang == "zh-Hans"
    assert english(found.said) == {}
    assert english(drawn(page)) == {}
    text = " ".join(found.said)
    for said in (
        "曲线",
        "什么在移动",
        "6 个警报",
        TABLE_ZH[CODES[0]].title,
        "偏好准确率",
        "每步 32 对",
    ):
        assert said in text


def test_a_comparison_in_chinese_says_nothing_in_english(whole: Run, folder: Path) -> None:
    options = {**facts()["options"], "run_name": f"{GREEK} 2", "beta": 9.0}
    other = write(folder / "2", options=options, step_pairs=64, layout="shared")
    with speaking("zh"):
        page = comparison([whole, other])
    found = Reader(page)
    assert found.lang == "zh-Hans"
    assert english(found.said) == {}
    assert english(drawn(page)) == {}
    assert "2 次运行并排" in found.said


@pytest.mark.parametrize(
    "ended",
    [
        {"state": "finished", "step": 100},
        {"state": "interrupted", "step": 100},
        {"state": "stopped", "step": 100},
        {"state": "failed", "step": 100},
        {"state": "failed", "step": 100, "error": {"code": "CP401", "seen": GREEK}},
        {"state": GREEK, "step": 100},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("alarms", [True, False])
@pytest.mark.parametrize("now", [1_790_000_000.0, 1_790_900_000.0], ids=["soon", "late"])
def test_every_verdict_is_said_in_chinese(
    ended: dict[str, Any], alarms: bool, now: float, whole: Run
) -> None:
    told = {**whole.facts, "ended": ended, "steps": 2000}
    run = Run(whole.folder, told, whole.metrics, whole.alarms if alarms else (), (), ())
    with speaking("zh"):
        top = join(run_page(run, now=now).top)
    assert english(Reader(top).said) == {}


@pytest.mark.parametrize("seconds", [0.3, 41, 600, 7500, 200_000])
@pytest.mark.parametrize(
    "loss",
    [
        "sigmoid",
        "hinge",
        "ipo",
        "simpo",
        "alphapo",
        "orpo",
        "repo",
        "simper",
        "arpo",
        "dpo",
        "hypo",
        "dpop",
        "dpo_hinge",
        "dpo_ipo",
        "apo_zero",
        "apo_down",
        "nca_pair",
        "",
        "other",
    ],
)
def test_methods_and_durations_are_said_in_chinese(seconds: float, loss: str) -> None:
    times = {
        "started": 1_790_000_000.0,
        "ended": {"state": "finished", "time": 1_790_000_000.0 + seconds},
    }
    for weight in (0.0, 1.0):
        told = {**times, "options": {"run_name": GREEK, "loss_type": loss, "cpo_alpha": weight}}
        with speaking("zh"):
            top = join(run_page(Run(Path(GREEK), told, (), (), (), ())).top)
        left = [text for text in english(Reader(top).said) if text != loss]
        assert left == []


def test_a_run_of_nothing_says_so_in_chinese(folder: Path) -> None:
    run = Run(folder, {}, (), (), (), ())
    with speaking("zh"):
        for page in (report_html(run), comparison([run, run])):
            assert english(Reader(page).said) == {}


def test_what_the_page_says_later_is_in_chinese_too(whole: Run) -> None:
    with speaking("zh"):
        page = live_report(whole, "1")
    assert english(Reader(page).said) == {}
    assert english(drawn(page)) == {}


def test_in_english_nothing_is_chinese(whole: Run) -> None:
    page = report_html(whole)
    assert '<html lang="en">' in page
    assert not re.search("[\u4e00-\u9fff]", page.split('id="charts"')[0])


def test_the_card_is_english_whatever_is_spoken(whole: Run) -> None:
    about = About(name="m")
    english_card = model_card(whole, about)
    with speaking("zh"):
        assert model_card(whole, about) == english_card


def test_the_command_writes_both_pages_in_the_language_asked_for(
    command: Command, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", steps=20, looks=0)
    for words in (["report", str(run)], ["compare", str(run), str(run)]):
        out = tmp_path / f"{words[0]}.html"
        assert command(*words, "--out", str(out), "--language", "zh").code == 0
        assert '<html lang="zh-Hans">' in out.read_text(encoding="utf-8")
        assert command(*words, "--out", str(out)).code == 0
        assert '<html lang="en">' in out.read_text(encoding="utf-8")


def test_the_environment_decides_where_nothing_is_asked_for(
    whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNTERPOINT_LANGUAGE", "zh")
    assert '<html lang="zh-Hans">' in report_html(whole)
    monkeypatch.delenv("COUNTERPOINT_LANGUAGE")
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    assert '<html lang="zh-Hans">' in report_html(whole)
