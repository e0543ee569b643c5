"""The front door: help, version, exit codes, one line for an error."""

from __future__ import annotations

import io
import logging
import os
import platform
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest

import counterpoint
from counterpoint.cli import main as door
from counterpoint.cli.completion import MODULES
from counterpoint.console.manners import put, quiet_libraries
from counterpoint.errors import DataError
from counterpoint.options.help import train_help
from counterpoint.options.table import options
from tests.cli.conftest import Command

SLOW = ("torch", "transformers", "datasets", "accelerate", "peft", "numpy", "yaml")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["quickstart", "--help"], []])
def test_the_quick_answers_import_nothing_slow(words: list[str]) -> None:
    program = (
        "import sys; from counterpoint.cli.main import main; "
        f"code = main({words!r}); print(code, [m for m in {SLOW!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"{0 if words else 2} []"


@pytest.mark.parametrize(
    "words", [["train"], ["train", "missing.yaml"], ["quickstart", "--seeds", "1"]]
)
def test_a_wrong_path_or_flag_is_answered_before_anything_slow_is_imported(
    words: list[str], tmp_path: Path
) -> None:
    program = (
        "import sys; from counterpoint.cli.main import main; "
        f"code = main({words!r}); print(code, [m for m in {SLOW[:-1]!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout == "2 []\n"


def test_python_m_counterpoint_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "counterpoint", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    first, *others = done.stdout.splitlines()
    assert first == f"counterpoint {counterpoint.__version__}"
    assert dict(line.split() for line in others) == {
        name: metadata.version(name)
        for name in ("torch", "transformers", "accelerate", "datasets", "peft")
    } | {"python": platform.python_version()}


def test_the_help_names_commands_examples_and_exit_codes(command: Command) -> None:
    said = command("--help")
    assert said.code == 0
    for part in (
        "train [CONFIG.yaml]",
        "init --preset NAME",
        "tokens",
        "pairs",
        "quickstart",
        "examples:",
        "exit codes:",
        "130",
    ):
        assert part in said.out


def test_a_command_that_does_not_exist_is_answered_with_the_nearest(command: Command) -> None:
    said = command("trian")
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "counterpoint: CP101 trian is no command; did you mean train? See counterpoint --help.\n"
    )


def test_the_help_of_train_names_every_option_once_and_keeps_to_the_width() -> None:
    text = train_help(width=72)
    for name in options():
        assert text.count(f"\n  --{name}  (") == 1
    longest_word = max(len(word) for word in text.split())
    examples = [line for line in text.splitlines() if line.startswith("  counterpoint train ")]
    lines = [line for line in text.splitlines() if line not in examples]
    assert max(map(len, lines)) <= max(72, longest_word + 6)


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("name", ["", *MODULES])
def test_every_help_keeps_to_the_width_and_loses_no_word(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    def said_at(columns: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        return command(*filter(None, [name]), "--help").out.splitlines()

    def letters(lines: list[str]) -> str:
        return "".join("\n".join(lines).replace("\\\n", " ").split())

    narrow = said_at(width)
    # a word of an example that is longer than a line stays whole, or no shell would take it
    wide = [line for line in narrow if len(line) > width and not line.lstrip().startswith("--")]
    assert wide == []
    assert letters(narrow) == letters(said_at(110))


def test_the_help_of_train_groups_options_from_the_run_to_transformers() -> None:
    text = train_help(width=80)
    places = [text.index(f"\n  --{name}  (") for name in ("model", "beta", "adam_beta1")]
    assert places == sorted(places)


def test_the_help_of_train_says_why_an_option_is_refused() -> None:
    assert "Refused unless null: only data parallelism is supported yet." in train_help(width=100)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("CP209", "no rows."), 2, "counterpoint: CP209 no rows.\n"),
        (DataError("CP209", "two\nlines."), 2, "counterpoint: CP209 two lines.\n"),
        (KeyboardInterrupt("Nothing saved."), 130, "counterpoint: interrupted. Nothing saved.\n"),
        (
            OSError(28, "No space left on device"),
            1,
            "counterpoint: OSError: [Errno 28] No space left on device\n",
        ),
        (
            ZeroDivisionError("by 0"),
            1,
            "counterpoint: ZeroDivisionError: by 0 (a bug or a limit; --debug shows the trace)\n",
        ),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str,
) -> None:
    def fail(words: list[str]) -> None:
        raise error

    monkeypatch.setattr(door, "_train", fail)
    said = command("train")
    assert (said.code, said.out, said.err) == (code, "", line)


def test_out_of_memory_says_how_to_need_less_without_changing_the_gradient(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(words: list[str]) -> None:
        raise RuntimeError("CUDA out of memory.")

    monkeypatch.setattr(door, "_train", fail)
    said = command("train")
    assert said.code == 1
    assert "double gradient_accumulation_steps" in said.err


@pytest.mark.parametrize("words", [["train", "x.yaml", "--debug"], ["--debug", "train", "x.yaml"]])
def test_debug_shows_the_trace_above_the_line(command: Command, words: list[str]) -> None:
    said = command(*words)
    assert said.code == 2
    assert said.err.startswith("Traceback (most recent call last):")
    assert said.err.splitlines()[-1].startswith("counterpoint: CP106 there is no file x.yaml")


def test_debug_may_be_asked_for_by_the_environment(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNTERPOINT_DEBUG", "1")
    assert "Traceback" in command("train", "x.yaml").err


def test_debug_with_a_word_of_transformers_is_its_option(command: Command) -> None:
    said = command("train", "--debug", "underflow_overflow")
    assert said.err.startswith("counterpoint: CP107 model")


def test_a_rank_names_itself_in_its_error(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert command("trian").err.startswith("counterpoint [rank 3]: CP101 ")


def test_a_reader_that_goes_away_ends_the_command_without_a_word() -> None:
    program = (
        "import os, sys; from counterpoint.cli.main import main; "
        "read, write = os.pipe(); os.close(read); os.dup2(write, 1); code = main(['--help']); "
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["quickstart", "--seed", "x"], "CP103"),
        (["quickstart", "--seed", "-1"], "CP103"),
        (["quickstart", "--seed"], "CP103"),
        (["quickstart", "--beta", "1"], "CP101"),
        (["quickstart", "folder"], "CP101"),
        (["quickstart", "--encoder_decoder", "--vision"], "CP104"),
    ],
)
def test_quickstart_refuses_what_it_does_not_take(
    command: Command, words: list[str], code: str
) -> None:
    said = command(*words)
    assert (said.code, said.err.startswith(f"counterpoint: {code} ")) == (2, True)
    assert len(said.err.splitlines()) == 1


def test_the_libraries_are_quiet_inside_and_as_before_outside() -> None:
    log = logging.getLogger("transformers")
    before = (log.level, os.environ.get("TRANSFORMERS_VERBOSITY"))
    with quiet_libraries():
        warnings.warn("nobody should see this", UserWarning, stacklevel=1)
        assert log.getEffectiveLevel() == logging.ERROR
        assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
    assert (log.level, os.environ.get("TRANSFORMERS_VERBOSITY")) == before
    with pytest.warns(UserWarning, match="seen again"):
        warnings.warn("seen again", UserWarning, stacklevel=1)


def test_torch_imported_inside_warns_of_nothing() -> None:
    program = (
        "from counterpoint.console.manners import quiet_libraries\n"
        "with quiet_libraries():\n"
        "    import logging, torch\n"
        "    logging.getLogger('torch.utils._pytree').warning('nobody should see this')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_a_level_that_the_user_asks_for_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    with quiet_libraries():
        assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"


def test_what_a_terminal_cannot_show_is_spelt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    put("token '好'")
    assert narrow.buffer.getvalue() == b"token '\\u597d'\n"
