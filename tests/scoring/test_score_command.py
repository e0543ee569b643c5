"""``counterpoint score``: every scorer, weights and vetoes, bad input, and resuming."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sacrebleu.metrics import CHRF

from counterpoint.scoring import windows
from tests.cli.conftest import Command, Said, command, write_pairs
from tests.reliability.trials import TORTURE

__all__ = ["command"]

GERMAN = "Guten Tag, wie geht es Ihnen heute Abend?"
ENGLISH = "Good evening, how are you doing today, my friend?"
OUT = ("--out", "s.jsonl")


def candidates(count: int = 9) -> list[dict[str, Any]]:
    """Three of each prompt; one reference is missing, one text blank, one too short to tell."""
    texts = [GERMAN, ENGLISH, "Ja.", f"{GERMAN} Auf Wiedersehen!", "", "Gut."]
    return [
        {
            "prompt": f"Say {n // 3}",
            "text": texts[n % len(texts)],
            "model": "m",
            "row": n // 3,
            "candidate": n % 3,
            "tokens": n + 1,
            "ended": n % 2 == 0,
            "reference": None if n == 3 else GERMAN,
        }
        for n in range(count)
    ]


@pytest.fixture(autouse=True)
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with candidates, some functions and windows of four, and the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(windows, "WINDOW", 4)
    write_pairs(tmp_path / "c.jsonl", candidates())
    (tmp_path / "own_scorers.py").write_text(
        "import json, os\n"
        "def size(rows): return [len(row['text']) for row in rows]\n"
        "def odd(rows): return [float('nan') if r['row'] == 2 else True for r in rows]\n"
        "def few(rows): return [1]\n"
        "def words(rows): return ['x' for row in rows]\n"
        "def fails(rows):\n"
        "    if any(r['tokens'] == 6 for r in rows): raise KeyError('six')\n"
        "    return [None for row in rows]\n"
        "def once(rows):\n"
        "    if rows[0]['tokens'] > 4 and not os.path.exists('ready'): raise OSError('offline')\n"
        "    return [1 for row in rows]\n"
        "broken = 1\n"
    )
    monkeypatch.delitem(__import__("sys").modules, "own_scorers", raising=False)
    return tmp_path


def rows(path: str = "s.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def scored(command: Command, *words: str) -> list[dict[str, Any]]:
    said = command("score", "c.jsonl", *OUT, "--overwrite", *words)
    assert said.code == 0, said.err
    return rows()


def refused(said: Said, *texts: str) -> None:
    assert said.code == 2, said.err
    for text in texts:
        assert text in said.err


# The numbers


def test_what_was_scored_before_keeps_its_scores_and_its_vetoes(command: Command) -> None:
    first = scored(command, "--with", "length", "--require", "lang=de", "length>=1")
    again = ("s.jsonl", "--out", "t.jsonl", "--with", "exact", "length=own_scorers:size")
    assert command("score", *again, "--require", "length<=45", "--weight", "exact=1").code == 0
    for row, before in zip(rows("t.jsonl"), first, strict=True):
        size = len(row["text"])
        assert row["scores"] == {**before["scores"], "exact": row["score"], "length": size}
        vetoes = {"lang": "lang" in before["vetoed"], "length": size > 45, "blank": not size}
        assert set(row["vetoed"]) == {name for name, there in vetoes.items() if there}
        assert len(row["vetoed"]) == len(set(row["vetoed"]))
    assert any("lang" in row["vetoed"] for row in rows("t.jsonl"))


def test_a_row_stays_as_it_is_and_gets_scores_their_sum_and_its_vetoes(command: Command) -> None:
    found = scored(
        command,
        *("--with", "chrf", "exact", "length", "n=column:tokens", "--weight", "chrf=1"),
        *("length=-0.1", "--require", "n<=8", "lang=de"),
    )
    assert len(found) == 9
    metric = CHRF()
    for row, given in zip(found, candidates(), strict=True):
        assert {name: row[name] for name in given} == given
        assert list(row) == [*given, "scores", "score", "vetoed"]
        scores, reference = row["scores"], given["reference"]
        assert scores["length"] == len(given["text"])
        assert scores["n"] == given["tokens"]
        if reference is None:
            assert (scores["chrf"], scores["exact"], row["score"]) == (None, None, None)
        else:
            assert scores["chrf"] == metric.sentence_score(given["text"], [reference]).score
            assert scores["exact"] == (given["text"] == reference)
            assert row["score"] == pytest.approx(scores["chrf"] - 0.1 * scores["length"], abs=1e-12)
        # of a short text no language is told, and that is no veto
        assert scores["lang"] == {GERMAN: 1, ENGLISH: 0}.get(given["text"][:49], scores["lang"])
        wanted = [
            name for name, bad in (("n", scores["n"] > 8), ("lang", scores["lang"] == 0)) if bad
        ]
        assert row["vetoed"] == (["blank"] if not given["text"] else []) + wanted
    assert found[2]["scores"]["lang"] is None
    assert found[2]["vetoed"] == []


def test_what_is_required_and_not_known_leaves_no_score(command: Command) -> None:
    found = scored(command, "--with", "length", "exact", "--require", "exact=1")
    assert [row["score"] is None for row in found] == [n == 3 for n in range(9)]
    assert [row["vetoed"] for row in found[:4]] == [[], ["exact"], ["exact"], []]


def test_lengths_have_three_units(command: Command) -> None:
    names = ("c=length:characters", "t=length:tokens", "r=length:reference")
    found = scored(command, "--with", *names, "--weight", "c=1")
    assert [row["scores"]["t"] for row in found] == list(range(1, 10))
    for row in found:
        away = row["reference"] and abs(len(row["text"]) - len(GERMAN))
        assert row["scores"]["r"] == away


def test_the_language_of_a_row_is_that_of_its_column(command: Command) -> None:
    given = [{**one, "target_lang": "eng_Latn"} for one in candidates(2)]
    write_pairs(Path("c.jsonl"), given)
    found = scored(command, "--with", "length", "lang=language", "--require", "lang")
    assert [row["vetoed"] for row in found] == [["lang"], []]
    write_pairs(Path("c.jsonl"), candidates(2))
    refused(
        command("score", "c.jsonl", *OUT, "--overwrite", "--with", "length", "--require", "lang"),
        "CP201 c.jsonl line 1 has no column target_lang",
    )


def test_pairs_takes_the_file_and_counts_what_is_left_out(command: Command) -> None:
    scored(command, "--with", "chrf", "--require", "lang=de")
    said = command("pairs", "s.jsonl", "--out", "p.jsonl")
    assert said.code == 0, said.err
    assert "left out: 3 vetoed by a requirement, 1 without a score" in said.err
    assert all(pair["chosen"] == GERMAN for pair in rows("p.jsonl"))
    assert [pair["rejected"] for pair in rows("p.jsonl")] == ["Ja.", "Ja."]


def test_the_summary_counts_every_candidate(command: Command) -> None:
    said = command("score", "c.jsonl", *OUT, "--with", "chrf", "--require", "lang=de", "--json")
    told = json.loads(said.out)
    assert told["candidates"] == 9
    assert told["scores"]["chrf"]["scored"] + told["scores"]["chrf"]["without"] == 9
    assert told["scores"]["score"]["without"] == 1
    assert told["vetoes"] == {"blank": 1, "lang": 2}
    assert told["vetoed"] == 3


# Resuming


def test_cut_anywhere_it_resumes_to_the_same_bytes(command: Command) -> None:
    words = ("--with", "chrf", "own_scorers:size", "p=command:python own_process.py", "--weight")
    Path("own_process.py").write_text(
        "import json, sys\nfor line in sys.stdin: print(json.loads(line)['tokens'], flush=True)\n"
    )
    words = (*words, "chrf=1", "p=1")
    scored(command, *words)
    whole = Path("s.jsonl").read_bytes()
    assert [row["scores"]["p"] for row in rows()] == list(range(1, 10))
    for cut in sorted(random.Random(0).sample(range(1, len(whole)), 5)):
        Path("s.jsonl").write_bytes(whole[:cut])
        assert command("score", "c.jsonl", *OUT, *words).code == 0
        assert Path("s.jsonl").read_bytes() == whole, cut


@pytest.mark.skipif(not TORTURE, reason="takes a minute; make torture runs it")
def test_killed_thirty_times_it_ends_with_the_same_bytes(command: Command) -> None:
    write_pairs(Path("c.jsonl"), candidates(3_000))
    Path("slow.py").write_text(
        "import time\ndef size(rows):\n    time.sleep(0.2)\n"
        "    return [len(row['text']) for row in rows]\n"
    )
    words = ("--with", "chrf", "slow:size", "--weight", "chrf=1")

    def start(out: str) -> subprocess.Popen[bytes]:
        call = [sys.executable, "-m", "counterpoint", "score", "c.jsonl", "--out", out, *words]
        return subprocess.Popen(call, stderr=subprocess.DEVNULL)

    assert start("whole.jsonl").wait() == 0
    whole, chance, kills = Path("whole.jsonl").read_bytes(), random.Random(0), 0
    while kills < 30:
        run = start("s.jsonl")
        try:
            assert run.wait(chance.uniform(0.5, 4)) == 0
            assert Path("s.jsonl").read_bytes() == whole
            Path("s.jsonl").unlink()
        except subprocess.TimeoutExpired:
            run.send_signal(signal.SIGKILL)
            run.wait()
            kills += 1
    assert start("s.jsonl").wait() == 0
    assert Path("s.jsonl").read_bytes() == whole


def test_what_was_written_before_an_error_stays_and_is_not_scored_again(command: Command) -> None:
    words = ("score", "c.jsonl", *OUT, "--with", "own_scorers:once")
    refused(command(*words), "CP347 own_scorers:once failed at c.jsonl line 5", "offline")
    assert len(rows()) == 4
    Path("ready").touch()
    assert command(*words).code == 0
    assert [row["tokens"] for row in rows()] == list(range(1, 10))


def test_a_file_of_candidates_that_has_grown_is_scored_on(command: Command) -> None:
    write_pairs(Path("c.jsonl"), candidates(6))
    scored(command, "--with", "length")
    before = Path("s.jsonl").read_bytes()
    write_pairs(Path("c.jsonl"), candidates(9))
    assert command("score", "c.jsonl", *OUT, "--with", "length").code == 0
    assert Path("s.jsonl").read_bytes().startswith(before)
    assert [row["tokens"] for row in rows()] == list(range(1, 10))


@pytest.mark.parametrize(
    ("words", "change", "wrong"),
    [
        (["--with", "exact"], None, "was scored with length="),
        (["--with", "length", "--weight", "length=2"], None, 'length={"kind": "length"'),
        (["--with", "length", "--reference", "text"], None, 'reference="reference", and now'),
        (["--with", "length"], candidates(8), "holds scores of 9 other candidates"),
        (["--with", "length"], candidates()[::-1], "holds scores of 9 other candidates"),
    ],
)
def test_other_scorers_or_candidates_never_mix(
    command: Command, words: list[str], change: list[dict[str, Any]] | None, wrong: str
) -> None:
    scored(command, "--with", "length")
    before = Path("s.jsonl").read_bytes()
    if change:
        write_pairs(Path("c.jsonl"), change)
    refused(command("score", "c.jsonl", *OUT, *words), "CP534 s.jsonl", wrong)
    assert Path("s.jsonl").read_bytes() == before


# What a scorer does wrong, and what a row is


@pytest.mark.parametrize(
    ("scorer", "wrong"),
    [
        ("own_scorers:odd", "CP243 c.jsonl line 7: the scorer odd gave 'nan'"),
        ("own_scorers:few", "CP243 the scorer few gave 1 numbers for 4 candidates"),
        ("own_scorers:words", "CP243 c.jsonl line 1: the scorer words gave 'x'"),
        ("own_scorers:fails", "CP347 own_scorers:fails failed at c.jsonl line 6: KeyError"),
        ("own_scorers:gone", "CP102 own_scorers:gone: the module has no function"),
        ("own_scorers:broken", "CP102 own_scorers:broken"),
        ("no_such_module:f", "CP102 no_such_module:f: there is no module"),
        ("language:xx", "CP103 language:xx"),
        ("length:feet", "CP102 length:feet"),
        ("column:gone", "CP201 c.jsonl line 1 has no column gone"),
        ("column:text", "CP202 c.jsonl line 1: text is of type str"),
        ("command:no-such-command", "CP502 no-such-command cannot be started"),
        ("command:python -c pass", "CP347 python -c pass, c.jsonl line 1: it ended before"),
        ("command:python -c 'print(\"loaded\")'", "c.jsonl line 1: answered 'loaded'"),
        ("command:python -c 'print(\"NaN\\n\" * 9)'", "CP243 c.jsonl line 1"),
    ],
)
def test_what_a_scorer_does_wrong_is_named_by_row(
    command: Command, scorer: str, wrong: str
) -> None:
    refused(
        command("score", "c.jsonl", *OUT, "--with", f"{scorer}", "--weight", _one(scorer)), wrong
    )


def _one(scorer: str) -> str:
    kind, _, rest = scorer.partition(":")
    return f"{rest if kind.endswith(('scorers', 'module')) else kind}=1"


def test_a_process_may_answer_when_it_has_read_everything(command: Command) -> None:
    Path("late.py").write_text(
        "import json, sys\nrows = [json.loads(line) for line in sys.stdin]\n"
        "for row in rows: print(json.dumps({'score': None if row['row'] else row['tokens']}))\n"
    )
    found = scored(command, "--with", "late=command:python late.py")
    assert [row["score"] for row in found] == [1, 2, 3, *[None] * 6]


def test_the_example_answers_for_comet_whatever_that_prints(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in of COMET's own interface: the package is not installed here."""
    example = Path(__file__).parents[2] / "examples" / "score_comet.py"
    Path("comet.py").write_text(
        "from types import SimpleNamespace\n"
        "print('downloading')\n"
        "def download_model(name): return name\n"
        "class Model:\n"
        "    def predict(self, rows, **more):\n"
        "        print('predicting')\n"
        "        return SimpleNamespace(scores=[len(one['mt']) / 100 for one in rows])\n"
        "def load_from_checkpoint(path): return Model()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    found = scored(command, "--with", f"comet=command:python {example} --batch 2")
    for row, given in zip(found, candidates(), strict=True):
        assert row["score"] == (len(given["text"]) / 100 if given["reference"] else None)


METRICX = """
import argparse, json, sys
parser = argparse.ArgumentParser()
for name in ("tokenizer", "model_name_or_path", "input_file", "output_file"):
    parser.add_argument(f"--{name}", required=True)
for name in ("max_input_length", "batch_size"):
    parser.add_argument(f"--{name}", type=int, required=True)
parser.add_argument("--qe", action="store_true")
asked = parser.parse_args()
print("predicting")
with open(asked.input_file) as given, open(asked.output_file, "w") as made:
    for row in map(json.loads, given):
        assert set(row) == {"source", "hypothesis", "reference"}
        assert (row["reference"] == "") == asked.qe
        row["prediction"] = len(row["hypothesis"]) / 4
        made.write(json.dumps(row) + "\\n")
"""
"""A stand-in of MetricX's own script: its code is no package."""


@pytest.mark.parametrize("flag", ["", " --qe"])
def test_the_example_answers_for_metricx(flag: str, command: Command) -> None:
    example = Path(__file__).parents[2] / "examples" / "score_metricx.py"
    Path("code/metricx24").mkdir(parents=True)
    Path("code/metricx24/predict.py").write_text(METRICX)
    words = f"metricx=command:python {example} --code code{flag}"
    found = scored(command, "--with", words, "--weight", "metricx=-1")
    for row, given in zip(found, candidates(), strict=True):
        is_asked = flag or given["reference"]
        assert row["score"] == (-len(given["text"]) / 4 if is_asked else None)


def test_a_process_that_answers_nothing_is_stopped(command: Command) -> None:
    Path("slow.yaml").write_text(
        "slow:\n  command: python -c 'import time; time.sleep(60)'\n  timeout: 0.2\n"
    )
    said = command("score", "c.jsonl", *OUT, "--scorers", "slow.yaml")
    refused(said, "CP347", "c.jsonl line 1: no answer within 0.2 seconds")


BAD: list[tuple[str, str]] = [
    ("{", "CP210 c.jsonl line 2 is no JSON"),
    ("[1]", "CP210 c.jsonl line 2 is no JSON object"),
    ('{"prompt": "a"}', "CP201 c.jsonl line 2 has no column text; it has prompt"),
    ('{"prompt": "a", "text": null}', "CP202 c.jsonl line 2: text is of type NoneType"),
    ('{"prompt": 3, "text": "b"}', "CP202 c.jsonl line 2"),
    ('{"prompt": "a", "text": "b", "reference": 3}', "CP202 c.jsonl line 2: reference"),
]


@pytest.mark.parametrize(("line", "wrong"), BAD)
def test_a_row_that_is_no_candidate_is_named_or_dropped_and_counted(
    command: Command, line: str, wrong: str
) -> None:
    good = '{"prompt": "a", "text": "b", "reference": [{"role": "assistant", "content": "b"}]}'
    Path("c.jsonl").write_text(f"{good}\n{line}\n{good}")
    refused(command("score", "c.jsonl", *OUT, "--with", "exact"), wrong)
    said = command("score", "c.jsonl", *OUT, "--with", "exact", "--invalid_rows", "drop")
    assert said.code == 0, said.err
    assert f"dropped: 1 × {wrong[:5]}" in said.err
    assert [row["score"] for row in rows()] == [1, 1]


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["gone.jsonl", *OUT, "--with", "exact"], "CP211 gone.jsonl cannot be read"),
        (["c.jsonl", "--with", "exact"], "CP107 out (--out SCORED.jsonl) is missing"),
        ([*OUT, "--with", "exact"], "CP107 the file to read"),
        (["c.jsonl", "--out", "c.jsonl", "--with", "exact"], "CP104 c.jsonl is the file to read"),
        (["c.jsonl", "--out", "s.csv", "--with", "exact"], "CP103 out=s.csv"),
        (["c.jsonl", *OUT, "--with", "exact", "--max_rows", "0"], "CP103 max_rows=0"),
        (["own_scorers.py", *OUT, "--with", "exact"], "CP210 own_scorers.py line 1"),
    ],
)
def test_what_cannot_be_meant(command: Command, words: list[str], wrong: str) -> None:
    refused(command("score", *words), wrong)
    assert not Path("s.jsonl").exists()


def test_a_file_that_is_no_scoring_is_left_alone(command: Command) -> None:
    Path("s.jsonl").write_text("mine\n")
    refused(command("score", "c.jsonl", *OUT, "--with", "exact"), "CP506 s.jsonl is there already")
    assert Path("s.jsonl").read_text() == "mine\n"


def test_the_first_rows_are_scored_where_that_is_asked_for(command: Command) -> None:
    assert len(scored(command, "--with", "length", "--max_rows", "5")) == 5
