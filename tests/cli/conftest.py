"""A folder with what a run needs, and the command called in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from counterpoint.cli.main import main
from tests.models_on_the_spot import make_model

PAIRS = [
    {"prompt": f"What is {n} and {n}?", "chosen": f" It is {2 * n}.", "rejected": f" {n}, I am."}
    for n in range(1, 13)
]


@dataclass(frozen=True)
class Said:
    """What the command said and its exit code."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture(scope="session")
def pattern(
    tmp_path_factory: pytest.TempPathFactory, gpt2_tokenizer: PreTrainedTokenizerFast
) -> Path:
    """``model`` (weights, tokenizer), ``bare`` (config and tokenizer), ``pairs.jsonl``."""
    folder = tmp_path_factory.mktemp("pattern")
    model = make_model("qwen2", vocab_size=len(gpt2_tokenizer))
    model.save_pretrained(folder / "model")
    model.config.save_pretrained(folder / "bare")
    for name in ("model", "bare"):
        gpt2_tokenizer.save_pretrained(folder / name)
    write_pairs(folder / "pairs.jsonl", PAIRS)
    return folder


@pytest.fixture
def workshop(tmp_path: Path, pattern: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own with a copy of ``pattern``, and the current one."""
    folder = tmp_path / "workshop"
    shutil.copytree(pattern, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Call ``counterpoint`` with words, or with one string of them."""

    def call(*words: str | Path) -> Said:
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Said(code, out, err)

    return call


def write_pairs(path: Path, rows: list[dict[str, object]]) -> None:
    """Rows as JSON lines."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def tree(folder: Path) -> list[str]:
    """Every file and folder below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
