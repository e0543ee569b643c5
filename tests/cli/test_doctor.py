"""``counterpoint doctor``: every mistake at once, before anything is trained or written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from counterpoint.doctor.table import TABLE
from counterpoint.errors import CODES, SetupError
from tests.cli.conftest import PAIRS, Command, tree, write_pairs
from tests.cli.test_bad_input import GALLERY, GOOD, Spoil, occupied


def codes(text: str) -> set[str]:
    """The codes of a report in JSON."""
    return {finding["code"] for finding in json.loads(text)["findings"]}


@pytest.mark.parametrize(
    ("spoil", "words", "code", "said"), [case[1:] for case in GALLERY], ids=[c[0] for c in GALLERY]
)
def test_the_doctor_finds_what_the_command_refuses_and_leaves_nothing_behind(
    workshop: Path, command: Command, spoil: Spoil, words: str, code: str, said: str
) -> None:
    healthy = command("doctor", *GOOD, "--json")
    assert code not in codes(healthy.out)
    assert healthy.code == 1
    spoil(workshop)
    before = tree(workshop.parent)
    answer = command("doctor", *GOOD, *words.split(), "--json")
    assert (answer.code, answer.err) == (2, "")
    assert code in codes(answer.out)
    report = json.loads(answer.out)
    assert "CW901" not in codes(answer.out)
    assert report["exit_code"] == 2
    assert tree(workshop.parent) == before


def test_all_of_several_mistakes_are_found_at_once(workshop: Path, command: Command) -> None:
    occupied(workshop)
    write_pairs(workshop / "pairs.jsonl", [*PAIRS, {**PAIRS[0], "rejected": ""}])
    settings = json.loads(Path("model/tokenizer_config.json").read_text())
    Path("model/tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": None}))
    answer = command("doctor", *GOOD, "--loss_type", "simpo", "--json")
    assert {"CP203", "CP302", "CP504", "CW101", "CW103", "CW104"} <= codes(answer.out)


def test_options_that_contradict_each_other_do_not_hide_the_rest(
    workshop: Path, command: Command
) -> None:
    write_pairs(workshop / "pairs.jsonl", [*PAIRS, {**PAIRS[0], "rejected": ""}])
    contradicting = ["--simpo_gamma", "1.0", "--learning_rate", "1.0"]
    answer = command("doctor", *GOOD, *contradicting, "--json")
    assert {"CP104", "CP203", "CN201", "CN501"} <= codes(answer.out)
    assert not {"CW105", "CN121"} & codes(answer.out)


def test_a_model_that_starts_from_scratch_may_know_nothing(
    workshop: Path, command: Command
) -> None:
    words = ["--dataset", "pairs.jsonl", "--output_dir", "out"]
    untrained = {"CW322", "CW327"}
    scratch = command("doctor", "--model", "bare", "--from_scratch", *words, "--json")
    assert not untrained & codes(scratch.out)
    assert "CW327" in codes(command("doctor", "--model", "model", *words, "--json").out)


def test_a_file_that_cannot_be_read_is_a_finding(workshop: Path, command: Command) -> None:
    Path("run.yaml").write_text("model: [", encoding="utf-8")
    answer = command("doctor", "run.yaml", "--json")
    assert answer.code == 2
    assert codes(answer.out) == {"CP106"}


def test_a_missing_package_is_a_finding(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "CP502" in codes(command("doctor", *GOOD, "--lora_r", "2", "--json").out)


def test_training_is_refused_with_every_finding_and_one_coded_line(
    workshop: Path, command: Command
) -> None:
    write_pairs(workshop / "pairs.jsonl", [*PAIRS, {**PAIRS[0], "rejected": ""}])
    before = tree(workshop.parent)
    answer = command("train", *GOOD, "--loss_type", "simpo")
    assert (answer.code, answer.out) == (2, "")
    *table, last = answer.err.splitlines()
    assert last.startswith("counterpoint: CP203 train: 1 of 13 rows (7.7%). The first: row 12")
    assert any(line.startswith("ERROR   CP203") for line in table)
    assert any(line.startswith("WARNING CW101") for line in table)
    assert tree(workshop.parent) == before


def test_warnings_are_shown_and_do_not_refuse(workshop: Path, command: Command) -> None:
    answer = command("train", *GOOD, "--loss_type", "simpo")
    assert answer.code == 0
    assert "\nCW101  " in f"\n{answer.err}"
    assert "NOTE" not in answer.err
    quiet = command("train", *GOOD, "--loss_type", "simpo", "--output_dir", "two", "--doctor=off")
    assert quiet.code == 0
    assert "CW101" not in quiet.err


def test_the_table_fits_a_terminal_of_80_columns(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("counterpoint.console.manners.width_of", lambda stream: 80)
    rows = [{**PAIRS[0], "chosen": ""}, *PAIRS]
    write_pairs(workshop / "pairs.jsonl", rows)
    out = command("doctor", *GOOD).out
    wide = [line for line in out.splitlines() if len(line) > 80 and "  paste " not in line]
    assert wide == []
    assert "paste invalid_rows: drop" in out
    assert re.search(r"\n1 error, \d+ warnings, \d+ notes\n$", out)


def test_a_code_is_explained_without_anything_slow(workshop: Path) -> None:
    program = (
        "import sys; from counterpoint.cli.main import main; main(['doctor', '--explain', 'cw325'])"
        "; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    *lines, loaded = done.stdout.splitlines()
    assert lines[0] == "CW325 (warning): weights that cannot move"
    assert loaded == "False"


@pytest.mark.parametrize("words", [["--explain"], ["--explain", "CW32"], ["--explain=X"]])
def test_a_code_that_is_none_is_refused(command: Command, words: list[str]) -> None:
    answer = command("doctor", *words)
    assert answer.code == 2
    assert answer.err.startswith("counterpoint: CP103 --explain")


@pytest.mark.parametrize("code", TABLE)
def test_every_code_is_explained(command: Command, code: str) -> None:
    answer = command("doctor", f"--explain={code}")
    assert answer.code == 0
    assert answer.out.startswith(f"{code} (")
    assert all(len(line) <= 80 for line in answer.out.splitlines())


def test_the_doctor_tells_how_to_ask_it(command: Command) -> None:
    answer = command("doctor", "--help")
    assert (answer.code, answer.err) == (0, "")
    assert "--explain CODE" in answer.out


@pytest.mark.parametrize("code", ["CP521", "CP519"])
def test_an_error_that_no_check_of_the_doctor_makes_is_a_finding_all_the_same(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """As of a folder with stray files; it was a bug of the doctor's."""

    def refused(*facts: object, **more: object) -> None:
        raise SetupError(code, "files that nobody knows.")

    monkeypatch.setattr("counterpoint.cli.parts.load_config", refused)
    words = ("doctor", "--model", "model", "--dataset", "pairs.jsonl", "--output_dir", "out")
    said = command(*words)
    assert said.code == 2
    assert f"{code}  {CODES[code]}" in said.out
    assert "files that nobody knows" in said.out
    found = {one["code"]: one for one in json.loads(command(*words, "--json").out)["findings"]}
    assert found[code]["why"] == "The run would end with this error."
    assert "运行会以这个错误结束" not in json.dumps(found, ensure_ascii=False)
    assert code in command("--language", "zh", *words).out
