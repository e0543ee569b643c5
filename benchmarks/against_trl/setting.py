"""What every measurement shares: the two sides, small models, rows, one watched step.

Both sides get the same model, tokenizer, rows and options; an option that TRL needs to run at
all on a CPU (``use_cpu``, ``bf16=False``) is given to both.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import os
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, disable_progress_bars
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from trl.experimental.cpo import CPOConfig as TRLConfig
from trl.experimental.cpo import CPOTrainer as TRLTrainer

from counterpoint import CPOConfig, CPOTrainer
from tests.models_on_the_spot import make_model
from tests.steps import GradientCamera
from tests.tokenizers_on_the_spot import CHATML, byte_level

__all__ = ["Finding", "Watched", "attempt", "make_model", "one_run", "quiet", "tokenizer", "words"]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: its name, trainer and configuration."""

    name: str
    trainer: Any
    config: Any


TRL = Side("TRL", TRLTrainer, TRLConfig)
OURS = Side("Counterpoint", CPOTrainer, CPOConfig)
SIDES = (TRL, OURS)


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the table.

    Args:
        what: what a user does.
        trl: what TRL does, with the number.
        ours: what Counterpoint does, with the number.
        numbers: everything measured, JSON-ready.
    """

    what: str
    trl: str
    ours: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Watched:
    """A finished run: the gradient of each step before clipping, the log lines, the trainer."""

    gradients: list[dict[str, Tensor]]
    logs: list[dict[str, float]]
    trainer: Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Both sides' progress, prints and warnings, silenced."""
    disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    logging.getLogger("counterpoint").setLevel(logging.ERROR)
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level tokenizer with Qwen's chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )


SENTENCE = "the sun is warm and a fox can help you print what it sleeps in or not to be"


def words(count: int, rng: random.Random) -> str:
    """Some words, each with the space before it."""
    known = SENTENCE.split()
    return "".join(f" {rng.choice(known)}" for _ in range(count))


def pairs(count: int, *, seed: int = 0, longest: int = 60) -> Dataset:
    """Pairs whose lengths scatter as those of real answers do: many short ones, a few long."""
    rng = random.Random(seed)

    def length() -> int:
        return max(1, min(longest, int(rng.lognormvariate(2.3, 0.9))))

    return Dataset.from_list(
        [
            {
                "prompt": f"Question {n}:{words(length(), rng)}?",
                "chosen": words(length(), rng),
                "rejected": words(length(), rng),
            }
            for n in range(count)
        ]
    )


def trainer(
    side: Side, model: nn.Module | str, rows: Any, *, eval_dataset: Any = None, **options: Any
) -> Any:
    """A trainer of one side on its own copy of the model, in the data set's order."""
    defaults: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(prefix="differences-"),
        "num_train_epochs": 1,
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "bf16": False,
        "use_cpu": True,
    }
    callbacks = options.pop("callbacks", None)
    processing = copy.deepcopy(options.pop("processing_class", None) or tokenizer())
    return side.trainer(
        model=copy.deepcopy(model),
        args=side.config(**{**defaults, **options}),
        train_dataset=rows,
        eval_dataset=eval_dataset,
        processing_class=processing,
        callbacks=callbacks,
    )


def one_run(side: Side, model: nn.Module, rows: Any, **options: Any) -> Watched:
    """Train and watch."""
    camera = GradientCamera()
    with quiet():
        made = trainer(side, model, rows, callbacks=[camera], **options)
        made.train()
    return Watched(camera.pictures, made.state.log_history, made)


def attempt(run: Callable[[], Any]) -> tuple[Any, str]:
    """What a call returns, and "" or the first line of its error."""
    try:
        with quiet():
            return run(), ""
    except Exception as error:  # the error is the measurement
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return None, f"{type(error).__name__}: {first}"


def moved(before: nn.Module, after: nn.Module) -> dict[str, float]:
    """Which weights changed, and which became NaN, as shares of all."""
    new = dict(after.named_parameters())
    changed = not_a_number = total = 0
    for name, old in before.named_parameters():
        values = new[name].detach().to(old.dtype)
        changed += int((values != old.detach()).sum())
        not_a_number += int(torch.isnan(values).sum())
        total += old.numel()
    return {"changed": changed / total, "nan": not_a_number / total}


def real_file(name: str) -> Path | None:
    """A file of the real preference data, if it is on this machine."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    path = Path(os.environ.get("COUNTERPOINT_DATA", beside)) / name
    return path if path.is_file() else None


def percent(values: Sequence[float]) -> str:
    """The largest of some relative differences, readable."""
    worst = max(values)
    return f"{worst:.0%}" if worst >= 0.01 else f"{worst:.1e}"
