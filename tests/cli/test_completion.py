"""What Tab completes is what the command takes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from counterpoint.cli import main as door
from counterpoint.cli.completion import LIKE_TRAIN, SHELLS, all_words
from counterpoint.options.evaluate_options import OF_TRAIN
from counterpoint.options.table import options
from tests.cli.conftest import Command

LISTED = door.HELP.partition("commands:")[2].partition("examples:")[0]
COMMANDS = sorted(set(re.findall(r"^  (\w+) ", LISTED, re.MULTILINE)))


def test_every_command_of_the_help_is_completed_and_no_other() -> None:
    assert sorted(all_words()) == COMMANDS


@pytest.mark.parametrize("name", sorted(all_words()))
def test_the_flags_of_a_command_are_those_of_its_help(name: str, command: Command) -> None:
    said = command(name, "--help").out
    words = set(all_words()[name].flags) - {"help"}
    own = set(re.findall(r"^  --(\w+)", said, re.MULTILINE)) - {"help"}
    if name == "evaluate":
        own |= set(OF_TRAIN)
    elif name in LIKE_TRAIN:
        own |= set(options())
    assert words == own


def completed(script: Path, *words: str) -> list[str]:
    program = (
        f"source {script}; COMP_WORDS=({' '.join(repr(word) for word in words)}); "
        'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _counterpoint; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_finishes_commands_flags_and_choices(command: Command, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(command("completion", "bash").out, encoding="utf-8")
    assert completed(script, "counterpoint", "qui") == ["quickstart"]
    assert completed(script, "counterpoint", "train", "--nll_") == ["--nll_reduction"]
    assert completed(script, "counterpoint", "doctor", "--loss_type", "si") == [
        "sigmoid",
        "simpo",
        "simper",
    ]
    assert completed(script, "counterpoint", "train", "--loss_type", "dp") == [
        *("dpo", "dpop", "dpo_hinge", "dpo_ipo")
    ]
    assert completed(script, "counterpoint", "completion", "") == list(SHELLS)
    assert completed(script, "counterpoint", "report", "--ou") == ["--out"]
    # a file name: bash's own completion takes over
    assert completed(script, "counterpoint", "train", "run.ya") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_every_script_is_one_that_its_shell_can_read(
    shell: str, command: Command, tmp_path: Path
) -> None:
    said = command("completion", shell)
    assert (said.code, said.err) == (0, "")
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(said.out, encoding="utf-8")
    subprocess.run([shell, "-n", str(script)], check=True)


@pytest.mark.parametrize(("words", "code"), [([], "CP107"), (["tcsh"], "CP102")])
def test_a_shell_without_a_script_is_refused(words: list[str], code: str, command: Command) -> None:
    said = command("completion", *words)
    assert (said.code, said.out) == (2, "")
    assert f"{code} " in said.err
