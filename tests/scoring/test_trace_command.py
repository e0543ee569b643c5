"""``counterpoint trace``: from a pair to candidate, model, scores and settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from counterpoint.evaluation.candidate_file import open_candidates
from tests.cli.conftest import Command, command, write_pairs

__all__ = ["command"]


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> Path:
    """Candidates of two models, scored, and pairs of them; each in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    with open_candidates(Path("drawn/c.jsonl"), {"seed": 0, "temperature": 0.8}) as file:
        for model in ("old", "new"):
            file.admit(model, {"weights": f"digest of {model}"})
            file.append(
                {
                    "prompt": f"p{row}",
                    "text": "x" * (3 * row + k + 2 * (model == "new") + 1),
                    "model": model,
                    "row": row,
                    "candidate": k,
                }
                for row in range(3)
                for k in range(2)
            )
    words = ("--with", "length", "--require", "length<=8")
    assert command("score", "drawn/c.jsonl", "--out", "scored/s.jsonl", *words).code == 0
    assert command("pairs", "scored/s.jsonl", "--out", "p.jsonl", "--select", "all").code == 0
    return tmp_path


def test_every_pair_leads_to_its_candidates_scores_and_settings(command: Command) -> None:
    pairs = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert len(pairs) > 6
    for number, pair in enumerate(pairs):
        told = json.loads(command("trace", "p.jsonl", str(number), "--json").out)
        for side in ("chosen", "rejected"):
            found = told[side]
            assert found["candidate"]["text"] == pair[side] == found["text"]
            assert found["from"] == pair[f"{side}_from"]
            assert found["candidate"]["score"] == pair[f"{side}_score"] == len(pair[side])
            assert found["scorers"]["length"]["require"] == "<= 8"
            assert (found["sampled"]["seed"], found["sampled"]["temperature"]) == (0, 0.8)
            model = found["from"]["model"]
            assert found["sampled"]["model"] == {"weights": f"digest of {model}"}
        assert told["rules"]["select"] == "all"
        assert told["missing"] == []


def test_it_is_told_in_lines_and_what_is_gone_is_said(command: Command) -> None:
    said = command("trace", "p.jsonl", "0")
    assert said.code == 0, said.err
    assert "from: model new, row 0, candidate 1" in said.out
    assert "scores: length 4, score 4" in said.out
    assert "seed 0, temperature 0.8" in said.out
    Path("scored/s.jsonl").unlink()
    said = command("trace", "p.jsonl", "0")
    assert "scored/s.jsonl is not there any more." in said.out
    assert "its line of scores was not found" in said.out
    Path("p.jsonl.settings.json").unlink()
    assert command("trace", "p.jsonl", "0").code == 0


def test_a_pair_of_another_origin_says_so(command: Command) -> None:
    write_pairs(Path("q.jsonl"), [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    assert "does not say which candidate" in command("trace", "q.jsonl", "0").out


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["p.jsonl"], "CP107 write counterpoint trace"),
        (["p.jsonl", "-1"], "CP101"),
        (["p.jsonl", "x"], "CP103 row x"),
        (["p.jsonl", "999"], "CP209 p.jsonl has no row 999"),
        (["scored/s.jsonl", "0"], "CP201 scored/s.jsonl: the row has no column chosen"),
        (["gone.jsonl", "0"], "CP211"),
    ],
)
def test_what_cannot_be_traced(command: Command, words: list[str], wrong: str) -> None:
    said = command("trace", *words)
    assert said.code == 2
    assert wrong in said.err
