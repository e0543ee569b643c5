"""``counterpoint train``: check everything, load everything, hand over to ``CPOTrainer``.

Nothing is written before options, folder, data, model and rows are sound. By default the doctor
looks at all of them first, and collects what is wrong; without it the first mistake ends the run.

Not here: what a step is (``step``), how options are read (``options.settings``), how a run's parts
are loaded (``parts``), what the doctor looks for (``doctor``).
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from counterpoint.checkpoint.folder import checkpoints, finished, is_scrap, tidy
from counterpoint.checkpoint.lock import (
    LOCK,
    Contents,
    contents,
    locked,
    own_change,
    refuse_changed,
)
from counterpoint.checkpoint.manifest import MANIFEST
from counterpoint.cli.merge import merge_in_words, merge_into
from counterpoint.cli.new_adapter import call_after_base, keep_base, on_merged_base
from counterpoint.cli.overwritten import MERGED, clear_run
from counterpoint.cli.parts import Attempt, RunParts, call, hide_token, load_own_part, load_parts
from counterpoint.cli.signals import heeded
from counterpoint.config import CPOConfig
from counterpoint.console.display import TrainingDisplay
from counterpoint.console.manners import (
    NARROWEST,
    complain_all,
    is_first_process,
    quiet_bars,
    quiet_replicas,
    say,
    terminal_width,
)
from counterpoint.console.phases import allow_bars
from counterpoint.doctor import examine
from counterpoint.doctor.examination import examine_second_sets
from counterpoint.doctor.findings import Finding, Report, from_error
from counterpoint.engine.fsdp2 import shards_at_load
from counterpoint.engine.stops import stops_named
from counterpoint.engine.table import settle
from counterpoint.errors import ConfigError, CounterpointError, SetupError
from counterpoint.invocation import command
from counterpoint.masking import Mask
from counterpoint.models.adapters import is_adapter
from counterpoint.options.run_options import RunOptions
from counterpoint.options.settings import Request
from counterpoint.ranks import each_does, leave_at_exit
from counterpoint.runlog import (
    METRICS,
    REQUEST_FILE,
    RUN_FILE,
    check_writable,
    stream_file,
)
from counterpoint.staged import staged
from counterpoint.trainer.trackers import check_trackers
from counterpoint.trainer.trainer import CPOTrainer
from counterpoint.wrap import width_of, wrapped_command

UNTRAINED = ("CW322", "CW327")
"""The doctor's codes for a model that knows nothing yet."""

WORDS = ("latest", "auto")
"""For the newest good checkpoint; with auto, where there is none, the run starts anew."""

_NO_ROOM = ("no space left", "os error 28", "quota exceeded", "inline_container", "streamwriter")
"""What is said of a full disk: by the system, by safetensors, by torch."""


def train(request: Request) -> None:
    """Train what was asked for.

    Args:
        request: options read and checked.

    Raises:
        CounterpointError: with the code of what cannot be done.
        KeyboardInterrupt: interrupted; its text says what is saved.
    """
    run, config = request.run, request.config
    leave_at_exit()
    quiet_bars()
    quiet_replicas()
    allow_bars(not config.disable_tqdm)
    hide_token(config)
    folder = Path(config.output_dir)
    check_writable(folder)
    settle(config)
    # before the folder is looked at, and to the end: whatever lies in it by then is this run's
    with (
        stops_named(str(folder)),
        _nothing_left_behind(folder),
        _alone_in(folder),
        _asked(request) as asked,
    ):
        seen = contents(folder)
        if run.doctor and is_first_process():
            parts = _consulted(asked)
        else:
            check_run(asked, call)
            parts = load_parts(asked, call, weights=not shards_at_load(config))
        if shards_at_load(config):  # ranks meet in it, and the doctor is consulted by one
            load_own_part(asked, parts)
        call_after_base(parts, request, asked)
        display = TrainingDisplay()
        trainer = _build(parts, config, display)
        _train(trainer, request, seen)
        if parts.eval_rows is not None and config.eval_strategy == IntervalStrategy.NO:
            say("evaluating once, at the end, since eval_strategy is no")
            with display:
                trainer.evaluate()
        del trainer, parts  # for the merged model there is to be room
        _merge_at_end(request)
        each_does(lambda: None)  # none leaves while another still writes
    metrics = stream_file(config.output_dir, METRICS).name
    say(f"model in {config.output_dir}, its run in {RUN_FILE} and {metrics} there")
    say(f"to look at it: {command()} report {shlex.quote(str(config.output_dir))}")


@contextmanager
def _asked(request: Request) -> Iterator[Request]:
    """What is trained on what; of a new adapter on an old one, on what they make together."""
    resumes = False
    if request.run.create_new_adapter:  # which takes a while
        check_run(request, call)
        resumes = _checkpoint(request.config) is not None
    with on_merged_base(request, resumes=resumes) as asked:
        yield asked


def _train(trainer: CPOTrainer, request: Request, seen: Contents) -> None:
    """Train and save, in a folder that is as it was ``seen``."""
    config, folder = request.config, Path(request.config.output_dir)
    trainer.given, trainer.examined = Mask().of(request.given), request.run.doctor
    with _saved_so_far(folder), trainer.recorded():
        if is_first_process():
            refuse_changed(folder, seen)  # locks are not everybody's
            tidy(folder)
        resume = _checkpoint(config)
        if is_first_process():
            if resume is None:
                clear_run(folder, request)
            own_change(folder)
            trainer.add_callback(_WrittenRequest(request))
        with heeded(trainer):
            trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()


def _merge_at_end(request: Request) -> None:
    """Write adapter and base as one model, where that was asked for; one rank does."""
    if not (request.run.merge_at_end and is_first_process()):
        return
    config = request.config
    folder = Path(config.output_dir)
    target, dtype = folder / MERGED, request.run.dtype
    code, pickle = config.trust_remote_code, config.allow_pickle
    merged = merge_into(target, str(folder), dtype=dtype, code=code, pickle=pickle)
    say(merge_in_words(target, str(folder), merged))


def _attempt(found: list[Finding], function: Callable[..., Any], *facts: Any, **more: Any) -> Any:
    try:
        return function(*facts, **more)
    except CounterpointError as error:
        found.append(from_error(error))
        return None


def consult(request: Request) -> tuple[Report, RunParts]:
    """Load a run as far as it can be, and let the doctor look at it.

    Args:
        request: options read and checked.

    Returns:
        What was found, what could not be loaded included, and what was loaded.
    """
    found: list[Finding] = []
    attempt = partial(_attempt, found)
    run, config = request.run, request.config
    check_run(request, attempt)
    parts = load_parts(request, attempt, weights=not shards_at_load(config))
    report = examine(
        config,
        model=parts.model,
        tokenizer=parts.tokenizer,
        train_dataset=parts.train_rows,
        eval_dataset=parts.eval_rows,
        peft_config=parts.adapter,
        overwrite=run.overwrite_output_dir,
    )
    found += examine_second_sets(config, parts.constraint_rows or {}, tokenizer=parts.tokenizer)
    # of the folder both may have spoken; what stopped the loading is the fuller message
    spoken = {finding.code for finding in found}
    rest = [one for one in report.findings if one.code not in spoken or one.code[2] != "5"]
    if run.from_scratch:  # that it is untrained is what was asked for
        rest = [one for one in rest if one.code not in UNTRAINED]
    return Report.of([*found, *rest]), parts


def _consulted(request: Request) -> RunParts:
    """The parts of a run that the doctor has nothing against; says what it found."""
    _refuse_at_once(request)
    report, parts = consult(request)
    refusal = report.refusal()
    if refusal is not None:
        complain_all(report.as_table(terminal_width(), ("error", "warning")))
        raise refusal
    width = width_of(sys.stderr)
    warnings = report.as_lines(width, ("warning",))
    if warnings:
        complain_all("\n".join([*warnings, *_summed_up(report, request, width)]))
    return parts


def _refuse_at_once(request: Request) -> None:
    """Raise what the options, the folder and the trackers alone refuse, before anything is loaded.

    What else they refuse is said before it, a line each, as the doctor would.
    """
    found: list[Finding] = []
    attempt = partial(_attempt, found)
    check_run(request, attempt)
    report = Report.of(found)
    refusal = report.refusal()
    if refusal is not None:
        if len(report.findings) > 1:
            complain_all("\n".join(report.as_lines(width_of(sys.stderr), ("error",))))
        raise refusal


def _summed_up(report: Report, request: Request, width: int | None) -> Iterator[str]:
    """How much was found, and the command that says it in full; folded at ``width``."""
    words = ["doctor", *request.words]
    if width is None:
        yield f"{report.summary()}; in full: {command()} {shlex.join(words)}"
        return
    yield f"{report.summary()}; in full:"
    yield from wrapped_command([*shlex.split(command()), *words], max(NARROWEST, width))


def check_run(request: Request, attempt: Attempt) -> None:
    """What is asked of folders and evaluation, before anything slow is loaded."""
    config = request.config
    attempt(_check_task, config)
    attempt(_check_merging, request.run)
    attempt(_check_evaluation, request.run, config)
    attempt(check_trackers, config)
    attempt(check_writable, config.output_dir)
    attempt(_checkpoint, config)
    if is_first_process():
        attempt(_check_vacant, config, request.run.overwrite_output_dir)


def _build(parts: RunParts, config: CPOConfig, display: TrainingDisplay) -> CPOTrainer:
    """Everything else that can fail on what the user gave."""
    return CPOTrainer(
        model=parts.model,
        args=config,
        train_dataset=parts.train_rows,
        eval_dataset=parts.eval_rows,
        processing_class=parts.tokenizer,
        peft_config=parts.adapter,
        callbacks=[display],
        constraint_datasets=parts.constraint_rows,
    )


# Evaluation


def _check_task(config: CPOConfig) -> None:
    if config.do_predict:  # meant for scripts, as do_train is, which asks for what is done anyway
        raise ConfigError(
            "CP105",
            "do_predict=True is refused: the command trains and evaluates. CPOTrainer.predict "
            "gives the metrics of a test set.",
        )


def _check_merging(run: RunOptions) -> None:
    if run.merge_at_end and run.lora_r is None and not is_adapter(run.model or ""):
        raise ConfigError(
            "CP104",
            "merge_at_end would do nothing: no adapter is trained, so the model that the run "
            "saves is whole already. Leave it out, or add lora_r.",
        )


def _check_evaluation(run: RunOptions, config: CPOConfig) -> None:
    if run.eval_dataset or run.eval_share is not None:
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
        raise ConfigError(
            "CP107", f"eval_dataset is missing: {asked} needs one, or eval_share to hold rows out."
        )


# The folder


def _checkpoint(config: CPOConfig) -> str | None:
    """The checkpoint to resume from, or the word for it; None to start anew.

    What can be said of it without reading it; the trainer verifies it under its lock.
    """
    wanted = str(config.resume_from_checkpoint or "false")
    if wanted.lower() == "false":
        return None
    if wanted.lower() not in ("true", *WORDS):
        if not (Path(wanted) / MANIFEST).is_file():
            raise ConfigError(
                "CP103",
                f"resume_from_checkpoint={wanted} is no checkpoint: it should be a folder with a "
                f"{MANIFEST}, or one of {', '.join(WORDS)}.",
            )
        return wanted
    folder = Path(config.output_dir)
    if checkpoints(folder):
        return "latest"
    if wanted.lower() == "auto":
        return None
    raise ConfigError("CP103", f"resume_from_checkpoint: {folder} holds no complete checkpoint.")


def _check_vacant(config: CPOConfig, overwrite: bool) -> None:
    folder = Path(config.output_dir)
    resumed = str(config.resume_from_checkpoint or "false").lower()
    if overwrite or not folder.is_dir() or resumed not in ("false", "auto"):
        return
    found = sorted(p.name for p in folder.iterdir() if p.name != LOCK and not is_scrap(p.name))
    if resumed == "auto" and RUN_FILE in found:
        return
    if found:
        what = "a run" if RUN_FILE in found else f"files ({', '.join(found[:3])})"
        raise SetupError(
            "CP504",
            f"{folder} holds {what} already. Choose another output_dir, resume with "
            "--resume auto, or replace it with --overwrite_output_dir.",
        )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep another run out of a folder; of several ranks the first one does."""
    with locked(folder) if is_first_process() else nullcontext():
        yield


class _WrittenRequest(TrainerCallback):
    """Writes what was asked for when training begins: one that is refused changes no folder."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every check has passed by now."""
        given = Mask().of(self._request.given)
        text = yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
        with staged(Path(args.output_dir) / REQUEST_FILE) as file:
            file.write(text.encode())
        keep_base(Path(args.output_dir))


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
    except KeyboardInterrupt as error:
        error.args = (_what_is_saved(folder),)
        raise
    except CounterpointError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        if not any(sign in str(error).lower() for sign in _NO_ROOM):
            raise
        free = shutil.disk_usage(folder).free / 1e6
        raise OSError(
            f"{folder} cannot be written on: no room on its disk ({free:,.1f} MB free). "
            f"{_what_is_saved(folder)}"
        ) from error


def _what_is_saved(folder: Path) -> str:
    saved = finished(folder)
    if not saved:
        return f"No checkpoint was saved; the log is in {folder}."
    return f"The last checkpoint is {saved[-1]}; resume with --resume auto."
