"""``counterpoint loop``: rounds of sampling, scoring, pairing, training and evaluating.

All options of all stages are read before the first one begins, and every mistake is said with its
line.

Not here: the file's entries (``options.loop_options``), the stages (``loop``).
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterpoint import ranks
from counterpoint.console.manners import complain, importing, say, terminal_width
from counterpoint.console.phases import phase
from counterpoint.doctor.findings import Report
from counterpoint.errors import ConfigError, CounterpointError, SetupError
from counterpoint.options.command import Command, made
from counterpoint.options.loop_options import (
    FIRST,
    FIRST_SAMPLE,
    STAGES,
    LoopOptions,
    LoopRecipe,
    located,
    merged_first,
    read_stage,
    words_of,
)
from counterpoint.staged import refuse_unusable

if TYPE_CHECKING:
    from counterpoint.loop.ledger import LoopLedger
    from counterpoint.loop.stages import LoopCourse, Stage
    from counterpoint.options.given import Setting
    from counterpoint.scoring.asked import AskedScorer

USAGE = """\
usage: counterpoint loop LOOP.yaml [--out FOLDER] [--dry_run]

From a model to its own pairs, in rounds: candidates are sampled from the model,
scored and paired, the model is trained on the pairs, and the next round samples
from what came out. LOOP.yaml holds model, prompts, rounds and seed, and a
mapping for each stage (sample, score, pairs, train, evaluate) whose entries are
the options of the command of that name. All of them are checked first.

The same command resumes a loop that was interrupted or killed. A stage whose
options and inputs are what they were is not done again; one of which they
differ is, and so is what depends on it. See docs/loop.md.

examples:
  counterpoint loop loop.yaml
  counterpoint loop loop.yaml --out runs/second --dry_run

options:
"""

COMMAND = Command("loop", USAGE, LoopOptions)

NEEDED = ("score", "train")
"""Stages that a file must say something of; the others have defaults."""

PAGE_NAME = "report.html"
_WHERE = "runs"


def loop(words: list[str]) -> None:
    """Do the rounds that a file asks for, or those that are left.

    Args:
        words: what follows ``counterpoint loop``.

    Raises:
        CounterpointError: CP1xx for options that mean nothing, of any stage; CP537 for several
            mistakes, said before; CP538 for a folder or file that is not the loop's; CP539 for a
            stage that failed.
        KeyboardInterrupt: interrupted; what is done stays.
    """
    path, options = _read_words(words)
    if ranks.launched() > 1:
        raise SetupError(
            "CP503",
            "a loop starts its stages itself, each as one process; call it without torchrun.",
        )
    with importing():
        from counterpoint.checkpoint.lock import locked
        from counterpoint.loop.ledger import LoopLedger
        from counterpoint.loop.running import complete_loop

    folder = Path(options.out or Path(_WHERE) / Path(path).stem).expanduser()
    refuse_unusable(folder)
    course = _course(path, folder)
    if options.dry_run:
        _list(course, LoopLedger(folder))
        return
    ledger = LoopLedger(folder)
    with locked(folder):
        try:
            complete_loop(course, ledger, _tell)
        except KeyboardInterrupt as error:
            error.args = ("What is done stays; the same command resumes the loop.",)
            raise
        finally:
            _report(course, ledger)
    say(f"the last model is {course.model(course.recipe.rounds)}")


def _read_words(words: list[str]) -> tuple[str, LoopOptions]:
    values, files = COMMAND.take(words)
    if not files:
        raise ConfigError("CP107", "the file is missing; write counterpoint loop LOOP.yaml.")
    if files[1:]:
        raise ConfigError("CP101", f"{files[1]!r} belongs to no flag; a loop has one file.")
    return files[0], made(LoopOptions, values)


def _tell(stage: Stage, why: str | None) -> None:
    if why is None:
        say(f"round {stage.round}, {stage.name}: done")
    else:
        say(f"round {stage.round}, {stage.name}: {why}")


def _report(course: LoopCourse, ledger: LoopLedger) -> None:
    """Say what is worrying and draw the page, also of a loop that has not ended."""
    from counterpoint.loop.figures import figures_of
    from counterpoint.loop.page import loop_html
    from counterpoint.loop.worries import worries_of
    from counterpoint.report.writing import refuse_other_file, write_page

    figures = figures_of(course, ledger.ended)
    if not figures:
        return
    scorers = _asked_to_score(course.given["score"])
    findings = worries_of(figures, {one.name for one in scorers if one.is_penalty})
    for line in Report.of(findings).as_lines(terminal_width(), ("warning",)):
        complain(line)
    path = course.folder / PAGE_NAME
    try:
        with phase("drawing the loop"):
            refuse_other_file(path)
            size = write_page(path, loop_html(course, figures, findings))
        say(f"all rounds in {path} ({size / 1e6:.1f} MB)")
    except CounterpointError as error:  # the rounds are there all the same
        complain(f"no page of the loop: {error}")


def _list(course: LoopCourse, ledger: LoopLedger) -> None:
    """Say what would be done; behind the first stage to do it depends on what comes out."""
    due: set[str] = set()
    for stage in course.stages():
        waits = [source for source in stage.reads if source in due]
        why = f"after {waits[0]}, if that changes" if waits else ledger.why(stage)
        if why is not None:
            due |= {str(path) for path in stage.writes}
        _tell(stage, why)


# What is asked for


def _course(path: str, folder: Path) -> LoopCourse:
    from counterpoint.loop.stages import LoopCourse
    from counterpoint.options.yaml_file import read_sections

    top, sections = read_sections(path, (*STAGES, FIRST_SAMPLE))
    recipe, wrong = _recipe(top)
    values: dict[str, Mapping[str, Any]] = {}
    for stage in STAGES:
        settings = sections.get(stage, [])
        if stage not in sections and stage in NEEDED:
            wrong.append(ConfigError("CP107", f"{path} has no mapping {stage}."))
        if stage in sections or stage != "evaluate":
            values[stage], mistakes = _checked(stage, settings, recipe)
            wrong += mistakes
    if FIRST_SAMPLE in sections:
        right = None if wrong else recipe  # both together are looked at where each is right
        values[FIRST_SAMPLE], mistakes = _checked(
            FIRST_SAMPLE, sections[FIRST_SAMPLE], right, values["sample"]
        )
        wrong += mistakes
    _refuse(wrong, path)
    assert recipe is not None  # else something was wrong
    try:
        _refuse_unserved(recipe, values)
    except ConfigError as error:
        raise located(error, [*top, *sections.get("sample", ())], path) from None
    for stage in ("sample", FIRST_SAMPLE):
        _check_prompts(recipe, values.get(stage))
    return LoopCourse(
        recipe,
        folder,
        values,
        {stage: _named(stage, own) for stage, own in values.items()},
        merges=bool(values["train"].get("merge_at_end")),
    )


def _named(stage: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    """What a stage's options name; of its scorers, rubrics and models among it."""
    from counterpoint.loop.digests import sources_in

    asked = {"score": _asked_to_score, "evaluate": _asked_to_evaluate}.get(stage)
    scorers = [] if asked is None else [name for one in asked(values) for name in one.named()]
    return tuple(dict.fromkeys(sources_in([*values.values(), *scorers])))


def _refuse(wrong: Sequence[ConfigError], path: str) -> None:
    if len(wrong) == 1:
        raise wrong[0]
    for error in wrong:
        complain(str(error))
    if wrong:
        raise SetupError("CP537", f"{path} has {len(wrong)} mistakes, which are above.")


def _recipe(settings: Sequence[Setting]) -> tuple[LoopRecipe | None, list[ConfigError]]:
    from counterpoint.options.coerce import coerce
    from counterpoint.options.declared import declared

    known, values, wrong = declared(LoopRecipe), {}, list[ConfigError]()
    for one in settings:
        try:
            if one.name not in known:
                raise ConfigError(
                    "CP101",
                    f"{one.where} is no entry of a loop; there are {', '.join((*known, *STAGES))}.",
                )
            values[one.name] = coerce(one, known[one.name].hint, known[one.name].choices)
        except ConfigError as error:
            wrong.append(error)
    try:
        return made(LoopRecipe, values), wrong
    except ConfigError as error:
        return None, [*wrong, located(error, settings, "the loop")]


def _checked(
    stage: str,
    settings: Sequence[Setting],
    recipe: LoopRecipe | None,
    sample: Mapping[str, Any] | None = None,
) -> tuple[Mapping[str, Any], list[ConfigError]]:
    """A stage's options as its own command reads them, and every mistake."""
    from counterpoint.options.evaluate_options import OF_TRAIN
    from counterpoint.options.sample_options import OF_LOADING
    from counterpoint.options.table import options, reads_as

    flags = {} if stage == "train" else importlib.import_module(_module(stage)).COMMAND.flags()
    of_train = {"train": tuple(options()), "sample": OF_LOADING, "evaluate": OF_TRAIN}
    of_train[FIRST_SAMPLE] = OF_LOADING
    also = {name: reads_as(name) for name in of_train.get(stage, ())}
    if stage == "evaluate":
        also |= {"dataset": reads_as("eval_dataset"), "split": reads_as("eval_dataset_split")}
    if stage == FIRST_SAMPLE:
        also["model"] = (str, ())
    known = also | {name: (one.hint, one.choices) for name, one in flags.items()}
    values, wrong = read_stage(stage, settings, known.get, known)
    if sample is not None:
        values = merged_first(sample, values)
    if wrong or recipe is None:
        return values, wrong
    try:
        _CHECKS[stage](values, recipe)
    except ConfigError as error:
        return values, [located(error, settings, stage)]
    return values, []


def _module(stage: str) -> str:
    return f"counterpoint.cli.{'sample' if stage == FIRST_SAMPLE else stage}"


def _check_loading(stage: str, values: Mapping[str, Any], recipe: LoopRecipe) -> None:
    """What the words of sample or evaluate come to, for the first model."""
    from counterpoint.options.evaluate_options import OF_TRAIN, read_evaluation
    from counterpoint.options.sample_options import OF_LOADING

    _, others = importlib.import_module(_module(stage)).COMMAND.read(list(words_of(values)))
    takes = OF_LOADING if stage == "sample" else OF_TRAIN
    with tempfile.TemporaryDirectory(prefix="counterpoint-") as nowhere:
        read_evaluation(str(recipe.model), others, nowhere, command=stage, takes=takes)


def _check_sample(values: Mapping[str, Any], recipe: LoopRecipe) -> None:
    sampling = importlib.import_module(_module("sample"))
    own = {name: value for name, value in values.items() if name != "model"}
    options, others = sampling.COMMAND.read(list(words_of(own)))
    sampling.refuse_loading(options, others)
    if not options.is_served:
        _check_loading("sample", own, recipe)


def _asked_to_score(values: Mapping[str, Any]) -> Sequence[AskedScorer]:
    from counterpoint.scoring.asked import asked_scorers, judging_flags

    options, _ = importlib.import_module(_module("score")).COMMAND.read(list(words_of(values)))
    return asked_scorers(
        options.with_,
        file=options.scorers,
        weights=options.weight,
        requirements=options.require,
        judging=judging_flags(values),
    )


def _asked_to_evaluate(values: Mapping[str, Any]) -> Sequence[AskedScorer]:
    evaluating = importlib.import_module(_module("evaluate"))
    options, _ = evaluating.COMMAND.read(list(words_of(values)))
    found: Sequence[AskedScorer] = evaluating.scorers_asked(options, values)
    return found


def _check_score(values: Mapping[str, Any], recipe: LoopRecipe) -> None:
    _asked_to_score(values)


def _check_pairs(values: Mapping[str, Any], recipe: LoopRecipe) -> None:
    from counterpoint.data.pair_rules import PairRules

    made(PairRules, dict(values))


def _check_train(values: Mapping[str, Any], recipe: LoopRecipe) -> None:
    from counterpoint.options.settings import read_request

    own = {"model": str(recipe.model), "dataset": ["pairs.jsonl"], "output_dir": "run"}
    read_request(list(words_of({**own, **values})))


def _check_evaluate(values: Mapping[str, Any], recipe: LoopRecipe) -> None:
    if not values.get("dataset") and not values.get("prompts"):
        raise ConfigError("CP107", "evaluate has neither dataset nor prompts.")
    _check_loading("evaluate", values, recipe)
    _asked_to_evaluate(values)


_CHECKS: Mapping[str, Callable[[Mapping[str, Any], LoopRecipe], None]] = {
    "sample": _check_sample,
    FIRST_SAMPLE: _check_sample,
    "score": _check_score,
    "pairs": _check_pairs,
    "train": _check_train,
    "evaluate": _check_evaluate,
}


def _refuse_unserved(recipe: LoopRecipe, values: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to ask a server for models that it cannot have.

    Raises:
        ConfigError: CP104.
    """
    trained = recipe.held_out or (recipe.rounds > 1 and recipe.sample_from != FIRST)
    if values["sample"].get("engine") == "endpoint" and trained:
        raise ConfigError(
            "CP104",
            "sample.engine=endpoint would ask the server for a model that the loop has trained. "
            f"Write engine, endpoint and the model's name there under {FIRST_SAMPLE}: it says how "
            "the first model is sampled from.",
        )
    if values.get(FIRST_SAMPLE, {}).get("engine") == "endpoint" and recipe.beside:
        raise ConfigError(
            "CP104",
            f"beside={recipe.beside[0]} would be asked of the server of {FIRST_SAMPLE}. Leave "
            "one of them out.",
        )


def _check_prompts(recipe: LoopRecipe, values: Mapping[str, Any] | None) -> None:
    """Read all prompts, as sampling will."""
    if values is None:
        return
    from counterpoint.cli.prompt_rows import read_prompt_rows
    from counterpoint.options.sample_options import SampleOptions

    given = {name: one for name, one in values.items() if name in SampleOptions.__annotations__}
    with phase("reading the prompts"):
        for prompts in (recipe.prompts, recipe.held_out):
            if prompts:
                read_prompt_rows(made(SampleOptions, {**given, "prompts": prompts}))
