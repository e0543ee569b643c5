"""``counterpoint train``: check everything, load everything, hand over to ``CPOTrainer``.

Nothing is written before options, folder, data, model and rows are sound. By default the doctor
looks at all of them first, and collects what is wrong; without it the first mistake ends the run.

Not here: what a step is (``trainer``), how options are read (``settings``), what the doctor
looks for (``doctor``).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from transformers.trainer_utils import IntervalStrategy

from counterpoint.cli.adapter import adapter_config
from counterpoint.cli.hub import hub_or_cache
from counterpoint.cli.manners import (
    complain_all,
    is_first_process,
    quiet_bars,
    quiet_replicas,
    say,
    show_progress,
    terminal_width,
)
from counterpoint.cli.run_options import RunOptions
from counterpoint.cli.settings import Request
from counterpoint.config import CPOConfig
from counterpoint.data.sources import load, pick_split
from counterpoint.doctor import examine
from counterpoint.doctor.findings import Finding, Report, from_error
from counterpoint.errors import ConfigError, CounterpointError, DataError, SetupError
from counterpoint.runlog import METRICS_FILE, RUN_FILE, check_writable
from counterpoint.trainer.loading import load_config, load_model, load_tokenizer, random_model
from counterpoint.trainer.trainer import CPOTrainer

REQUEST_FILE = "train.yaml"
"""The options a run was given, in its folder: ``counterpoint train`` takes it as it is."""

UNTRAINED = ("CW322", "CW327")
"""The doctor's codes for a model that knows nothing yet."""

EVAL_SPLITS = ("test", "validation", "valid", "val", "dev", "eval")
_NAMED = re.compile(r"([A-Za-z_][\w-]*)=(.+)")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_WRITTEN_LAST = "trainer_state.json"
"""The file with which transformers ends a checkpoint."""
_NO_ROOM = ("no space left", "os error 28", "quota exceeded", "inline_container", "streamwriter")
"""What is said of a full disk: by the system, by safetensors, by torch."""


@dataclass(slots=True)
class Parts:
    """What a run is made of; None for what could not be loaded, or was not asked for.

    Args:
        model: with its weights, not adapted.
        model_config: of the model.
        tokenizer: of the model, or the one given.
        train_rows: raw rows to train on.
        eval_rows: raw rows to evaluate on, or a dict of named sets.
        adapter: a ``peft.LoraConfig``.
    """

    model: Any = None
    model_config: Any = None
    tokenizer: Any = None
    train_rows: Any = None
    eval_rows: Any = None
    adapter: Any = None


Attempt = Callable[..., Any]
"""Calls a function with its arguments; a strict one lets errors pass."""


def train(request: Request) -> None:
    """Train what was asked for.

    Args:
        request: options read and checked.

    Raises:
        CounterpointError: with the code of what cannot be done.
        KeyboardInterrupt: interrupted; its text says what is saved.
    """
    run, config = request.run, request.config
    quiet_bars()
    quiet_replicas()
    hide_token(config)
    with _nothing_left_behind(Path(config.output_dir)):
        if run.doctor and is_first_process():
            parts = _consulted(request)
        else:
            check_run(request, call)
            parts = load_parts(request, call)
        trainer = _build(parts, config)
    resume = _checkpoint(config)
    if is_first_process():
        _clear(Path(config.output_dir), keep=resume is not None)
        _write_request(request)
    with _saved_so_far(Path(config.output_dir)):
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()
    if run.eval_dataset and config.eval_strategy == IntervalStrategy.NO:
        say("evaluating once, at the end, since eval_strategy is no")
        trainer.evaluate()
    say(f"model in {config.output_dir}, its run in {RUN_FILE} and {METRICS_FILE} there")


def call(function: Callable[..., Any], *facts: Any, **more: Any) -> Any:
    """The strict ``Attempt``."""
    return function(*facts, **more)


def consult(request: Request) -> tuple[Report, Parts]:
    """Load a run as far as it can be, and let the doctor look at it.

    Args:
        request: options read and checked.

    Returns:
        What was found, what could not be loaded included, and what was loaded.
    """
    found: list[Finding] = []

    def attempt(function: Callable[..., Any], *facts: Any, **more: Any) -> Any:
        try:
            return function(*facts, **more)
        except CounterpointError as error:
            found.append(from_error(error))
            return None

    run, config = request.run, request.config
    check_run(request, attempt)
    parts = load_parts(request, attempt)
    report = examine(
        config,
        model=parts.model,
        tokenizer=parts.tokenizer,
        train_dataset=parts.train_rows,
        eval_dataset=parts.eval_rows,
        peft_config=parts.adapter,
        overwrite=run.overwrite_output_dir,
        progress=show_progress,
    )
    # of the folder both may have spoken; what stopped the loading is the fuller message
    spoken = {finding.code for finding in found}
    rest = [one for one in report.findings if one.code not in spoken or one.code[2] != "5"]
    if run.from_scratch:  # that it is untrained is what was asked for
        rest = [one for one in rest if one.code not in UNTRAINED]
    return Report.of([*found, *rest]), parts


def _consulted(request: Request) -> Parts:
    """The parts of a run that the doctor has nothing against; says what it found."""
    report, parts = consult(request)
    if report.of_severity("error", "warning"):
        complain_all(report.as_table(terminal_width(), ("error", "warning")))
    refusal = report.refusal()
    if refusal is not None:
        raise refusal
    return parts


def check_run(request: Request, attempt: Attempt) -> None:
    """What is asked of folders and evaluation, before anything slow is loaded."""
    config = request.config
    attempt(_check_evaluation, request.run, config)
    attempt(check_writable, config.output_dir)
    attempt(_checkpoint, config)
    if is_first_process():
        attempt(_check_vacant, config, request.run.overwrite_output_dir)


def load_parts(request: Request, attempt: Attempt, *, weights: bool = True) -> Parts:
    """Load everything that a run is made of.

    Args:
        request: options read and checked.
        attempt: how to call what may fail.
        weights: False leaves the model to ``load_weights``.
    """
    with hub_or_cache(attempt(names_of, request.run) or ()):
        parts = _load_parts(request.run, request.config, attempt)
        if weights and parts.model_config is not None:
            parts.model = attempt(load_weights, request, parts.model_config)
    if weights:
        request.config.model_init_kwargs = None  # the trainer refuses them beside a loaded model
    return parts


def load_weights(request: Request, model_config: Any) -> Any:
    """The model itself, by the ``model_init_kwargs`` that ``load_parts`` has made.

    Args:
        request: options read and checked.
        model_config: of the model, from ``load_parts``.
    """
    run, config = request.run, request.config
    if run.from_scratch:
        return random_model(str(run.model), config, model_config)
    return load_model(str(run.model), config, adapted=run.lora_r is not None)


def _load_parts(run: RunOptions, config: CPOConfig, attempt: Attempt) -> Parts:
    source = str(run.model)
    attempt(merge_model_options, run, config)
    return Parts(
        model_config=attempt(load_config, source, config, from_scratch=run.from_scratch),
        tokenizer=attempt(
            load_tokenizer,
            run.tokenizer or source,
            config,
            of_model=run.tokenizer is None,
            chat_template=run.chat_template,
        ),
        adapter=attempt(adapter_config, run),
        train_rows=attempt(train_rows, run, config),
        eval_rows=attempt(_eval_sets, run),
    )


def _build(parts: Parts, config: CPOConfig) -> CPOTrainer:
    """Everything else that can fail on what the user gave."""
    return CPOTrainer(
        model=parts.model,
        args=config,
        train_dataset=parts.train_rows,
        eval_dataset=parts.eval_rows,
        processing_class=parts.tokenizer,
        peft_config=parts.adapter,
    )


def names_of(run: RunOptions) -> list[str]:
    """All that may have to come from the hub."""
    named = _named_sets(run.eval_dataset)
    evals = named.values() if isinstance(named, Mapping) else named
    return [str(run.model), *([run.tokenizer] if run.tokenizer else []), *run.dataset, *evals]


def hide_token(config: CPOConfig) -> None:
    """Hand the hub's token on where its client looks for it, out of what a run saves.

    Args:
        config: loses its ``hub_token``.
    """
    if config.hub_token:
        os.environ["HF_TOKEN"] = config.hub_token
        config.hub_token = None


def merge_model_options(run: RunOptions, config: CPOConfig) -> None:
    """Put revision, dtype and attention among the keywords that load a model.

    Raises:
        ConfigError: CP104 for what is given twice.
    """
    given = config.model_init_kwargs
    keywords = dict(given) if isinstance(given, Mapping) else {}
    own = {
        "revision": run.revision,
        "dtype": run.dtype,
        "attn_implementation": run.attn_implementation,
    }
    for name, value in own.items():
        if value is None:
            continue
        if name in keywords:
            raise ConfigError(
                "CP104", f"{name} is given as an option and in model_init_kwargs; drop one."
            )
        keywords[name] = value
    config.model_init_kwargs = keywords


# Data


def train_rows(run: RunOptions, config: CPOConfig) -> Any:
    """The raw rows to train on.

    Raises:
        ConfigError: CP107 for a stream without ``max_steps``.
        DataError: CP2xx for what cannot be read.
    """
    rows = pick_split(load(_sources(run.dataset), split=run.dataset_split, streaming=run.streaming))
    if not hasattr(rows, "__len__") and config.max_steps <= 0:
        raise ConfigError(
            "CP107", "max_steps is missing: a streamed data set does not say how long it is."
        )
    return rows


def _sources(names: list[str]) -> str | list[str]:
    return names[0] if len(names) == 1 else names


def _eval_sets(run: RunOptions) -> Any:
    if not run.eval_dataset:
        return None
    named = _named_sets(run.eval_dataset)
    if isinstance(named, Mapping):
        return {name: _open_eval([source], run) for name, source in named.items()}
    return _open_eval(named, run)


def _named_sets(given: list[str] | dict[str, str]) -> list[str] | dict[str, str]:
    """``name=path`` words or a mapping of YAML, as a mapping; sets without names as they are."""
    if isinstance(given, Mapping):
        wrong = [name for name, source in given.items() if not isinstance(source, str)]
        if wrong:
            raise ConfigError("CP103", f"eval_dataset: {wrong[0]} should be a file or a hub id.")
        return dict(given)
    parts = [None if Path(word).exists() else _NAMED.fullmatch(word) for word in given]
    named = {part[1]: part[2] for part in parts if part}
    if not named:
        return given
    if len(named) != len(given):
        raise ConfigError(
            "CP103",
            f"eval_dataset={' '.join(given)} should be name=path with a different name for each "
            "set, or paths without names.",
        )
    return named


def _open_eval(sources: list[str], run: RunOptions) -> Any:
    data = load(_sources(sources), split=run.eval_dataset_split)
    if not isinstance(data, Mapping) or len(data) == 1:
        return pick_split(data)
    for split in EVAL_SPLITS:
        if split in data:
            return data[split]
    raise DataError(
        "CP211",
        f"eval_dataset {' '.join(sources)} has the splits {', '.join(data)}; say which one with "
        "eval_dataset_split.",
    )


# Evaluation


def _check_evaluation(run: RunOptions, config: CPOConfig) -> None:
    if run.eval_dataset:
        return
    if run.eval_dataset_split:
        raise ConfigError("CP104", "eval_dataset_split does nothing without eval_dataset.")
    wanting = {
        f"eval_strategy={config.eval_strategy.value}": config.eval_strategy != IntervalStrategy.NO,
        "load_best_model_at_end": config.load_best_model_at_end,
        "eval_on_start": config.eval_on_start,
        "do_eval": config.do_eval,
    }
    asked = next((name for name, on in wanting.items() if on), None)
    if asked:
        raise ConfigError("CP107", f"eval_dataset is missing: {asked} needs one.")


# The folder


def _checkpoint(config: CPOConfig) -> str | None:
    """The checkpoint to go on from; ``true`` and ``latest`` mean the folder's last one."""
    wanted = config.resume_from_checkpoint
    if not wanted or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() not in ("true", "latest"):
        if not (Path(wanted) / _WRITTEN_LAST).is_file():
            raise ConfigError(
                "CP103",
                f"resume_from_checkpoint={wanted} is no checkpoint: it should be a folder with a "
                f"{_WRITTEN_LAST}, or 'latest'.",
            )
        return str(wanted)
    folder = Path(config.output_dir)
    found = _last_checkpoint(folder)
    if found is None:
        raise ConfigError(
            "CP103", f"resume_from_checkpoint: {folder} holds no complete checkpoint."
        )
    return str(found)


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was saved to its end."""
    numbered = {
        int(name[1]): path
        for path in folder.glob("checkpoint-*")
        if (name := _CHECKPOINT.fullmatch(path.name)) and (path / _WRITTEN_LAST).is_file()
    }
    return numbered[max(numbered)] if numbered else None


def _check_vacant(config: CPOConfig, overwrite: bool) -> None:
    folder = Path(config.output_dir)
    if overwrite or config.resume_from_checkpoint or not folder.is_dir():
        return
    found = sorted(path.name for path in folder.iterdir())
    if found:
        what = "a run" if RUN_FILE in found else f"files ({', '.join(found[:3])})"
        raise SetupError(
            "CP504",
            f"{folder} holds {what} already. Choose another output_dir, go on with "
            "--resume_from_checkpoint latest, or replace it with --overwrite_output_dir.",
        )


def _clear(folder: Path, keep: bool) -> None:
    """Remove what would mix with the new run: an old one's checkpoints and log."""
    if keep or not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.is_dir() and _CHECKPOINT.fullmatch(path.name):
            shutil.rmtree(path)
    for name in (RUN_FILE, METRICS_FILE):
        (folder / name).unlink(missing_ok=True)


def _write_request(request: Request) -> None:
    folder = Path(request.config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(request.given), sort_keys=False, allow_unicode=True)
    (folder / REQUEST_FILE).write_text(text, encoding="utf-8")


@contextmanager
def _nothing_left_behind(folder: Path) -> Iterator[None]:
    """Remove the folders made for a run that could not begin, as long as they are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in missing:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        raise


@contextmanager
def _saved_so_far(folder: Path) -> Iterator[None]:
    """Say what is saved when the user interrupts or the disk is full."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_what_is_saved(folder)) from None
    except (OSError, RuntimeError, SafetensorError) as error:
        if not any(sign in str(error).lower() for sign in _NO_ROOM):
            raise
        free = shutil.disk_usage(folder).free / 1e6
        raise OSError(
            f"{folder} cannot be written on: no room on its disk ({free:,.1f} MB free). "
            f"{_what_is_saved(folder)}"
        ) from error


def _what_is_saved(folder: Path) -> str:
    last = _last_checkpoint(folder)
    if last is None:
        return f"No checkpoint was saved; the log is in {folder}."
    return f"The last checkpoint is {last}; go on with --resume_from_checkpoint latest."
