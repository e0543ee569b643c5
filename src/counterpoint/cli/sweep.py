"""``counterpoint sweep``: several settings of a run tried, each as a run, and the best one named.

Not here: what is varied, tried and drawn (``sweep``), and what a run is (``train``).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterpoint.console.manners import complain, importing, say
from counterpoint.console.phases import phase
from counterpoint.errors import ConfigError, CounterpointError, SetupError
from counterpoint.invocation import command
from counterpoint.options.command import Command
from counterpoint.options.declared import option
from counterpoint.staged import staged
from counterpoint.strict import strict_json

if TYPE_CHECKING:
    from counterpoint.options.settings import Request
    from counterpoint.sweep.course import Course, RunJudge
    from counterpoint.sweep.space import Axis
    from counterpoint.sweep.study import Study, Trial

USAGE = """\
usage: counterpoint sweep [CONFIG.yaml] --over NAME=VALUES ... [--option value ...]

Trains a run for each of several settings, and names the best one. What varies
is a list of values or a range:

  --over beta=0.1,0.5 loss_type=simpo,sigmoid  every combination is tried
  --over learning_rate=1e-6..1e-4:log          --trials of them, chosen by
                                               optuna's TPE sampler

Each trial is a run with a folder and a process of its own. The same command
resumes a sweep that was interrupted or killed: what is finished stays, and the
interrupted run resumes. A run that fails is counted, and the next one begins.
The options are those of counterpoint train, and rows to evaluate on must be
among them. Needs the package optuna. See docs/sweep.md.

options beside those of train:
"""

SWEEP_FILE = "sweep.json"
"""What a sweep was asked for, in its folder."""

PAGE_FILE = "sweep.html"
SWEPT = "runs/sweep"
TRIALS = 10


@dataclass(frozen=True, slots=True)
class SweepOptions:
    """What the command takes beside ``train``'s options; every field's help is its meaning."""

    over: list[str] | None = option(None, "What varies: NAME=VALUE,VALUE or NAME=LOW..HIGH[:log].")
    metric: str = option(
        "accuracy",
        "What runs are judged by: accuracy, margin, loss, or any metric that an evaluation logs.",
    )
    direction: str | None = option(
        None,
        "What is better of a metric of which that is not known.",
        ("maximize", "minimize"),
    )
    trials: int | None = option(
        None, f"Runs in all. null: all of a grid; {TRIALS} where a range is among what varies."
    )
    jobs: int = option(1, "Runs at a time. They share this machine and its devices.")
    out: str | None = option(
        None, f"Folder of the sweep. null: output_dir with -sweep after it, or {SWEPT}."
    )

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant."""
        for name in ("trials", "jobs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError("CP103", f"{name}={value} should be a whole number from 1.")


COMMAND = Command("sweep", USAGE, SweepOptions, of_train=True)


def sweep(words: list[str]) -> None:
    """Train the runs that a command line asks for, or those of them that are left.

    Args:
        words: what follows ``counterpoint sweep``.

    Raises:
        CounterpointError: CP1xx for words that mean nothing, of any trial; CP502 without optuna;
            CP527 for the folder of another sweep; CP528 where no run gave the metric.
        KeyboardInterrupt: interrupted, after the runs have saved.
    """
    options, others = COMMAND.read(words)
    # slow to import, and so after what the words alone can tell
    with importing():
        from counterpoint.checkpoint.lock import locked
        from counterpoint.sweep.space import read_axes
        from counterpoint.sweep.study import Study, check_optuna

    axes = read_axes(options.over or [])
    check_optuna()
    request = _checked(others, axes)
    judge = _judge(options, request, axes)
    course = _course(options, others, axes, request, judge)
    course.folder.mkdir(parents=True, exist_ok=True)
    with locked(course.folder):
        _remember(course.folder, _asked(options, request, judge))
        study = Study(
            course.folder,
            axes,
            more_is_better=judge.more_is_better,
            seed=request.config.seed,
        )
        try:
            _train(course, study)
        finally:
            _close(course, study)


def _train(course: Course, study: Study) -> None:
    from counterpoint.sweep.space import in_short

    metric = course.judge.metric

    def begun(trial: Trial) -> None:
        say(f"trial {trial.number}, {trial.number + 1} of {course.most}: {in_short(trial.point)}")

    def told(trial: Trial) -> None:
        best = study.best()
        if trial.value is None:
            say(f"trial {trial.number} failed: {trial.reason}; see {course.log(trial)}")
        elif best is not None:
            so_far = f"best so far trial {best.number}, {best.value:.4g}"
            say(f"trial {trial.number}: {metric} {trial.value:.4g}; {so_far}")

    try:
        course.complete(study, begun, told)
    except KeyboardInterrupt as error:
        error.args = ("The runs have saved; the same command resumes the sweep.",)
        raise


def _close(course: Course, study: Study) -> None:
    """Name the best trial and draw the page, also of a sweep that was interrupted."""
    trials, best = study.trials(), study.best()
    if best is None:
        if trials and all(one.state == "failed" for one in trials):
            raise SetupError(
                "CP528",
                f"none of {len(trials)} runs gave {course.judge.metric}; the last one: "
                f"{trials[-1].reason}. Their words are in {course.log(trials[-1]).parent}.",
            )
        return
    _table(course, trials)
    folder = course.run_folder(best)
    say(f"best: trial {best.number} of {len(trials)}; its model is in {folder}")
    again = shlex.join(["train", str(folder / "train.yaml"), "--output_dir", "runs/best"])
    say(f"to train it again: {command()} {again}")
    _page(course, trials)


def _table(course: Course, trials: Sequence[Trial]) -> None:
    from counterpoint.sweep.page import ranked
    from counterpoint.sweep.space import in_short

    say()
    for one in ranked(trials, course.judge.more_is_better):
        result = one.state if one.value is None else f"{one.value:.4g}"
        say(f"{one.number:>5}  {result:>10}  {in_short(one.point)}")
    say()


def _page(course: Course, trials: Sequence[Trial]) -> None:
    from counterpoint.report.writing import refuse_other_file, write_page
    from counterpoint.sweep.page import sweep_html

    path = course.folder / PAGE_FILE
    try:
        refuse_other_file(path)
        with phase("drawing the sweep"):
            size = write_page(path, sweep_html(course, trials))
        say(f"all runs in {path} ({size / 1e6:.1f} MB)")
    except CounterpointError as error:  # the runs are there all the same
        complain(f"no page of the sweep: {error}")


# What is asked for


def _checked(words: Sequence[str], axes: Sequence[Axis]) -> Request:
    """The run that is varied; each value of an axis must be one that it takes.

    Raises:
        CounterpointError: as ``train`` refuses options, naming what was varied.
    """
    from counterpoint import ranks
    from counterpoint.options.settings import read_request, read_values
    from counterpoint.sweep.space import points

    if ranks.launched() > 1:
        raise SetupError(
            "CP503",
            "a sweep starts its runs itself, each as one process; call it without torchrun.",
        )
    given = read_values(list(words))
    place = ("resume", "resume_from_checkpoint", "overwrite_output_dir")
    own = next((name for name in place if given.get(name)), None)
    if own:
        raise ConfigError(
            "CP104", f"{own} is the sweep's to say: the same command resumes it. Leave it out."
        )
    first = {axis.name: axis.ends()[0] for axis in axes}
    grid = points(axes) or [first | {axis.name: value} for axis in axes for value in axis.ends()]
    request = None
    for point in grid:
        varied = [f"--{name}={value}" for name, value in point.items()]
        try:
            request = read_request([*words, *varied, "--output_dir=sweep"])
        except ConfigError as error:
            raise ConfigError(error.code, f"with {shlex.join(varied)}: {error.message}") from error
    assert request is not None  # an axis has a value
    if not (request.run.eval_dataset or request.run.eval_share is not None):
        raise ConfigError(
            "CP107",
            "eval_dataset is missing: a sweep judges its runs by an evaluation. Or hold rows out "
            "with eval_share.",
        )
    return request


def _judge(options: SweepOptions, request: Request, axes: Sequence[Axis]) -> RunJudge:
    from counterpoint.cli.own_data import eval_names
    from counterpoint.metric_names import WORDS, more_is_better
    from counterpoint.objectives import OBJECTIVE_OPTIONS
    from counterpoint.sweep.course import RunJudge
    from counterpoint.trainer.best import not_given, prefixed

    words = {word: name for name, word in WORDS.items()}
    metric = str(prefixed(words.get(options.metric, options.metric)))
    known = _metrics(request.config, eval_names(request.run))
    if metric not in known:  # else every run would train to its end, and count as failed
        error = not_given(options.metric, known)
        message = error.message.replace("metric_for_best_model=", "--metric ")
        raise ConfigError(error.code, message)
    better = more_is_better(metric)
    if better is None and options.direction is None:
        raise ConfigError(
            "CP107", f"--direction is missing: whether more of {metric} is better is yours to say."
        )
    if better is not None and options.direction not in (None, _way(better)):
        raise ConfigError(
            "CP104", f"--direction {options.direction} would take the worst {metric} for the best."
        )
    moved = [axis.name for axis in axes if axis.name in OBJECTIVE_OPTIONS]
    if moved and metric.endswith(("loss", "margins")) and not metric.endswith("nll_loss"):
        complain(
            f"{metric} of other values of {', '.join(moved)} is on another scale, and says nothing "
            "of which is better; accuracy does"
        )
    config = request.config
    takes_best = config.load_best_model_at_end and prefixed(config.metric_for_best_model) == metric
    return RunJudge(
        metric, options.direction == "maximize" if better is None else better, takes_best
    )


def _way(more_is_better: bool) -> str:
    return "maximize" if more_is_better else "minimize"


def _metrics(config: Any, sets: Sequence[str]) -> list[str]:
    """Every metric that an evaluation of a run by these options gives; "": a set has no name."""
    from counterpoint.metric_names import (
        OF_CONSTRAINT,
        OF_EXPERTS,
        OF_PACE,
        OF_PAIRS,
        OF_TEXTS,
        OF_WEIGHTS,
        PREFIX,
    )
    from counterpoint.runlog import constraint_metric

    names = [*OF_PAIRS, *OF_PACE, *OF_EXPERTS, *(OF_WEIGHTS if config.use_weighting else ())]
    if config.generate_during_eval:
        kinds = ("", "sampled_") if config.eval_sample_temperature else ("",)
        names += [f"samples/{kind}{name}" for kind in kinds for name in OF_TEXTS]
    names += [
        constraint_metric(one.name, key) for one in config.constrained_by for key in OF_CONSTRAINT
    ]
    return [f"{PREFIX}{one}_{name}" if one else f"{PREFIX}{name}" for one in sets for name in names]


def _course(
    options: SweepOptions,
    words: Sequence[str],
    axes: Sequence[Axis],
    request: Request,
    judge: RunJudge,
) -> Course:
    from counterpoint.options.settings import read_values
    from counterpoint.sweep.course import Course
    from counterpoint.sweep.space import points

    grid = points(axes)
    if grid is not None and options.trials is not None and options.trials < len(grid):
        raise ConfigError(
            "CP104",
            f"--trials {options.trials} leaves out some of {len(grid)} combinations; list fewer "
            "values, or give a range to choose from.",
        )
    most = len(grid) if grid is not None else options.trials or TRIALS
    placed = read_values(list(words)).get("output_dir")
    folder = Path(options.out or (f"{placed}-sweep" if placed else SWEPT))
    return Course(folder, tuple(words), judge, options.jobs, most)


def _asked(options: SweepOptions, request: Request, judge: RunJudge) -> Mapping[str, Any]:
    varied = [word.partition("=")[0].replace("-", "_") for word in options.over or []]
    own = {"output_dir", *varied}
    return {
        "over": list(options.over or []),
        "metric": judge.metric,
        "direction": _way(judge.more_is_better),
        "run": {name: value for name, value in request.given.items() if name not in own},
    }


def _remember(folder: Path, asked: Mapping[str, Any]) -> None:
    """Write what a sweep is, or refuse another one in its folder.

    Raises:
        SetupError: CP527.
    """
    from counterpoint.masking import Mask

    text = strict_json(Mask().of(dict(asked)), indent=2)
    path = folder / SWEEP_FILE
    if not path.exists():
        others = [one.name for one in folder.iterdir() if not one.name.startswith(".")]
        if others:
            raise SetupError(
                "CP527", f"{folder} holds {others[0]}, and no sweep. Choose another one with --out."
            )
        with staged(path) as file:
            file.write(text.encode())
        return
    try:
        before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        flat = [{**one, **one.pop("run")} for one in (before, now)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError("CP527", f"{path} cannot be read ({error}).") from error
    unlike = [name for name in {**flat[0], **flat[1]} if flat[0].get(name) != flat[1].get(name)]
    if unlike:
        raise SetupError(
            "CP527",
            f"{folder} holds a sweep with other values of {', '.join(sorted(unlike))}. Give those "
            "again to resume it, or choose another folder with --out.",
        )
