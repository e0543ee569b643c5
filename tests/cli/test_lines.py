"""What a newcomer's commands print fits 80 columns, and is soon over before step 1."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tqdm import tqdm

from counterpoint.cli.main import main
from counterpoint.config import CPOConfig
from counterpoint.log import LogHandler, logger, quiet_calls, quiet_imports
from counterpoint.models.loading import load_model
from counterpoint.quickstart.task import preference_pairs
from counterpoint.quickstart.translate import BASE
from counterpoint.wrap import columns, wrapped_command
from tests.terminal import Screen, Terminal

MOST_LINES = 16
"""Of a run of the quickstart's model on own data, before its first step."""

STYLE = re.compile(r"\x1b\[[\d;]*m")


def lines_of(shown: str) -> list[str]:
    """What was sent to a terminal, line by line, before it folds anything."""
    return re.split(r"[\r\n]+", STYLE.sub("", shown))


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [pair.row for pair in preference_pairs(40, seed=1)]
    Path("own.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path


@contextmanager
def at_a_terminal() -> Iterator[Terminal]:
    """Standard output and error are a terminal of 80 columns, the log's lines too."""
    with Terminal(80) as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", terminal.stream)
        patch.setattr(sys, "stderr", terminal.stream)
        patch.setenv("TERM", "xterm")
        patch.delenv("COLUMNS", raising=False)
        handler = LogHandler()
        logger().addHandler(handler)
        try:
            yield terminal
        finally:
            logger().removeHandler(handler)


def test_a_newcomers_run_says_little_before_its_first_step(own: Path) -> None:
    Path("base").symlink_to(BASE)
    words = shlex.split(
        "train --model base --dataset own.jsonl --eval_dataset own.jsonl --output_dir first "
        "--max_steps 2 --learning_rate 1e-4 --generate_during_eval true --use_cpu true"
    )
    with Terminal(80) as terminal:
        ended = subprocess.run(
            [sys.executable, "-m", "counterpoint", *words],
            stdin=subprocess.DEVNULL,
            stdout=terminal.stream,
            stderr=terminal.stream,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "OMP_NUM_THREADS": "1"},
            check=False,
        )
        shown = terminal.shown()
    assert ended.returncode == 0, shown
    assert max(columns(line) for line in lines_of(re.sub(r"\x1b\[\d*[AK]", "", shown))) <= 80
    lines = Screen(80).feed(shown).lines()
    bar = next(place for place, line in enumerate(lines) if re.match(r"\d+/2  ", line))
    assert bar <= MOST_LINES, "\n".join(lines)
    # the command that says the rest can be copied, in however many lines it is
    told = "\n".join(lines[:bar])
    begin = told.index("counterpoint doctor ") + len("counterpoint doctor ")
    command = re.match(r"(?:.*\\\n)*.*", told[begin:])
    assert command is not None
    assert shlex.split(command[0].replace("\\\n", " ")) == words[1:]


@pytest.mark.parametrize(
    "words",
    [
        "smoke --model {base} --dataset own.jsonl --output_dir first --bf16 true",
        "plan --model {base} --dataset own.jsonl --output_dir first --lora_r 4 --bf16 true",
        "tokens --model {base} --dataset own.jsonl --row 1",
        "evaluate {base} --dataset own.jsonl --base {base} --generate 4",
        "doctor --model {base} --dataset own.jsonl --output_dir first --learning_rate 1e-3",
    ],
)
def test_no_line_of_a_command_is_wider_than_its_terminal(own: Path, words: str) -> None:
    Path("base").symlink_to(BASE)
    with at_a_terminal() as terminal:
        main(words.format(base="base").split())
        shown = terminal.shown()
    wide = [line for line in lines_of(shown) if columns(line) > 80]
    assert wide == []
    assert "Warning" not in shown


def test_a_line_of_the_log_is_folded_on_a_terminal_and_whole_in_a_pipe() -> None:
    said = "those of the run of first: " + ", ".join(f"option_{n}" for n in range(20))
    with at_a_terminal() as terminal:
        logger().info("%s\nand a second line", said)
        shown = terminal.shown()
    lines = [line for line in lines_of(shown) if line]
    assert max(map(len, lines)) <= 80
    assert " ".join(line.strip() for line in lines) == f"{said} and a second line"
    assert lines[-1] == "and a second line"
    record = logging.LogRecord("x", logging.INFO, "", 0, said, (), None)
    assert LogHandler(io.StringIO()).format(record) == said


def test_a_bar_makes_room_for_a_line_of_the_log() -> None:
    with at_a_terminal() as terminal:
        bar = tqdm(total=4, file=terminal.stream, ncols=60, mininterval=0)
        bar.update(1)
        logger().info("layout: shared")
        bar.update(1)
        bar.close()
        shown = terminal.shown()
    lines = [line for line in Screen(80).feed(shown).lines() if line]
    assert lines[0] == "layout: shared"
    assert "2/4" in lines[-1]
    assert len(lines) == 2


def test_libraries_that_are_loaded_say_errors_alone(caplog: pytest.LogCaptureFixture) -> None:
    names = ("torchao.kernel.intmm", "torch.utils._pytree")
    with quiet_imports():
        for name in names:
            logging.getLogger(name).setLevel(logging.NOTSET)  # as torch does meanwhile
            logging.getLogger(name).warning("no triton")
            logging.getLogger(name).error("broken")
    for name in names:
        logging.getLogger(name).warning("now")
    said = [(record.name, record.getMessage()) for record in caplog.records]
    assert said == [(n, "broken") for n in names] + [(n, "now") for n in names]


def test_what_libraries_say_to_each_other_is_not_heard(caplog: pytest.LogCaptureFixture) -> None:
    generation = logging.getLogger("transformers.generation.configuration_utils")
    with quiet_calls():
        warnings.warn("is_gradient_checkpointing is deprecated", FutureWarning, stacklevel=1)
        generation.warning("flags are not valid")
        logging.getLogger("transformers.modeling_utils").warning("weights are newly initialized")
    generation.warning("now")
    assert [one.getMessage() for one in caplog.records] == ["weights are newly initialized", "now"]
    with pytest.raises(FutureWarning):  # which pytest makes of it outside
        warnings.warn("a word to the user", FutureWarning, stacklevel=1)


def test_a_published_generation_config_is_loaded_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    folder = tmp_path / "published"
    shutil.copytree(BASE, folder)
    values = {"eos_token_id": 2, "temperature": 0.9, "top_p": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(values))
    model = load_model(str(folder), CPOConfig(output_dir=str(tmp_path)))
    assert model.generation_config.temperature == 0.9
    assert caplog.messages == []


def test_an_option_and_its_value_stay_together() -> None:
    words = ["counterpoint", "doctor", "a file.yaml", "--flag", "--beta", "2.0", "--x=1", "--end"]
    lines = list(wrapped_command(words, 30))
    assert lines == [
        "  counterpoint doctor \\",
        "    'a file.yaml' --flag \\",
        "    --beta 2.0 --x=1 --end",
    ]
    assert shlex.split("\n".join(lines).replace("\\\n", " ")) == words
