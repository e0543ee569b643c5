"""``counterpoint evaluate``: how often a model prefers what people chose, and what it writes.

The forward pass is the trainer's own, so that the numbers are those of an evaluation in training.

Not here: flags (``options.evaluate_options``), what is made of it (``evaluation.findings``).
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterpoint.console.manners import is_first_process, put, quiet_bars, quiet_replicas
from counterpoint.console.phases import phase
from counterpoint.doctor.findings import Finding, Report, find
from counterpoint.errors import ConfigError, CounterpointError, DataError
from counterpoint.evaluation import references
from counterpoint.evaluation.bootstrap import Resampling
from counterpoint.evaluation.findings import AFTER, BEFORE, Findings, Side, by_kind
from counterpoint.evaluation.table import WIDTH
from counterpoint.invocation import EXTRAS, installing
from counterpoint.log import logger
from counterpoint.masking import Mask
from counterpoint.options.command import Command, made
from counterpoint.options.evaluate_options import OF_TRAIN, EvaluateOptions, read_evaluation
from counterpoint.ranks import leave_at_exit
from counterpoint.runlog import check_writable
from counterpoint.scoring.scorer_options import JUDGE_FLAGS
from counterpoint.staged import refuse_taken, staged
from counterpoint.visible import visible

if TYPE_CHECKING:
    from counterpoint.data.encoder import Encoder
    from counterpoint.evaluation.generation import Decoding, Prompt
    from counterpoint.evaluation.texts import Completion
    from counterpoint.options.settings import Request
    from counterpoint.records import TokenPair
    from counterpoint.scoring.asked import AskedScorer

USAGE = """\
usage: counterpoint evaluate MODEL --dataset FILE_OR_HUB ... [--option value ...]
       counterpoint evaluate MODEL --prompts FILE [--option value ...]

Says how often a model prefers the chosen completion, with intervals, by how
much, how likely it finds the chosen, and what length alone would explain. With
--base it does so of two models and of their difference; with --generate or
--prompts it lets them write. MODEL is a hub id, a folder with a model, or one
with a PEFT adapter. Where it lies in a run's folder, the objective and the
limits of length are those of the run, and the weights under an adapter are held
as in it; flags override them.

examples:
  counterpoint evaluate runs/first --dataset held-out.jsonl
  counterpoint evaluate runs/first --dataset easy=a.jsonl hard=b.jsonl --json
  counterpoint evaluate runs/first --base Qwen/Qwen2.5-0.5B --dataset test.jsonl \\
      --generate 100 --with reward:org/reward-model --out evaluated

options:
  --dataset  (list)
      Required but with --prompts. Files, a folder or a hub id, as for train;
      NAME=FILE for several sets, each with numbers of its own.
  --split  (text)
      Split to read; null: test, validation, or the only one there is.
"""

RESULT_FILE, TEXTS_FILE = "evaluation.json", "completions.jsonl"


COMMAND = Command(
    "evaluate",
    USAGE,
    EvaluateOptions,
    beside=JUDGE_FLAGS,
    of_train=True,
    closing=f"and of counterpoint train, which explains them: {', '.join(OF_TRAIN)}",
)


def evaluate(words: list[str]) -> None:
    """Evaluate what a command line asks for, and say it on standard output.

    Args:
        words: what follows ``counterpoint evaluate``.

    Raises:
        CounterpointError: with the code of what cannot be done; then nothing is written, but where
            a scorer failed: everything but its scores is.
    """
    if not words or words[0].startswith("-"):
        raise ConfigError(
            "CP107", "the model is missing; write counterpoint evaluate MODEL --dataset FILE."
        )
    source, *rest = words
    values, others = COMMAND.take(rest)
    options = made(EvaluateOptions, values)
    _check_out(options)
    metrics = _metrics(options)
    asked = scorers_asked(options, values)
    leave_at_exit()
    quiet_bars()
    quiet_replicas()
    with tempfile.TemporaryDirectory(prefix="counterpoint-") as nowhere:
        request = read_evaluation(source, others, nowhere)
        if not request.run.eval_dataset and not options.prompts:
            raise ConfigError(
                "CP107", "dataset (--dataset FILE) is missing; or name --prompts to write to."
            )
        base = options.base
        sides = {}
        if base is not None:
            same = read_evaluation(source, others, nowhere, base=base)
            sides[BEFORE] = _side(base, same, options)
        sides[AFTER] = _side(source, request, options)
    if not is_first_process():
        return
    remarks, failure = _score(sides, asked)
    with phase("working out the intervals"):
        plan = Resampling(options.resamples, options.seed)
        found = Findings(sides, plan, metrics, options.bleu_tokenizer, _penalties(asked))
    warnings = Report.of(_unmoved(found))
    content = {"model": source, "base": options.base, **found.as_dict()}
    if options.blank_pictures:
        content["findings"] = json.loads(warnings.as_json())["findings"]
    text = json.dumps(_json_ready(content, Mask()), indent=1, allow_nan=False)
    if options.out is not None:
        _write(options, text, sides, {BEFORE: options.base, AFTER: source})
    lines = [*found.lines(), *remarks]
    if warnings.findings:
        lines += ["", warnings.as_table(WIDTH)]
    put(text if options.json else "\n".join(lines))
    if failure is not None:
        raise failure


def _score(
    sides: Mapping[str, Side], asked: Sequence[AskedScorer]
) -> tuple[list[str], CounterpointError | None]:
    """Score the texts; what a scorer fails with is raised once everything else is written."""
    if not asked:
        return [], None
    from counterpoint.cli.scored_sides import score_sides

    try:
        return score_sides(sides, asked), None
    except CounterpointError as error:
        return [], error


def _unmoved(found: Findings) -> Iterator[Finding]:
    """What is to be said of pairs that do not go by their pictures."""
    for name, effect in found.pictures[AFTER].items():
        if effect.mostly_unmoved:
            unmoved, kept = (effect.measures[key].value for key in ("unmoved", "kept_preference"))
            yield find(
                "CW235",
                f"{name}: with blank pictures the margins of {unmoved:.0%} of {effect.pairs:,} "
                f"pairs move by {effect.bound:.2g} at most, and {kept:.0%} prefer the same "
                "completion.",
                rows=[one.row for one in effect.least],
            )


# One model


def _side(source: str, request: Request, options: EvaluateOptions) -> Side:
    """Load a model, and let it judge every pair and write to every prompt."""
    from counterpoint.cli.evaluator import evaluating_trainer
    from counterpoint.cli.own_data import eval_sets
    from counterpoint.data.blank_pictures import with_blank_pictures
    from counterpoint.engine.face import Pass
    from counterpoint.evaluation.samples import prompts_of
    from counterpoint.models.preparing import encoder_of
    from counterpoint.trainer.feed import Feed

    write = _writing(options.engine)
    trainer = evaluating_trainer(source, request)
    tokenizer = trainer.processing_class
    side = Side(trainer.objective.formula())
    encoder = encoder_of(trainer.model, tokenizer, request.config)
    feed = Feed(request.config, encoder)
    prompts: dict[str, list[Prompt]] = {}
    for name, rows in _named(eval_sets(request.run), request):
        pairs = feed.pairs(rows, name)
        passed = trainer.measure(pairs, name)
        side.losses[name] = passed.metrics()[0]["loss"]
        side.scores[name] = passed.scores()
        blank = with_blank_pictures(pairs) if options.blank_pictures else None
        if blank is not None:
            side.blank[name] = trainer.measure(blank, f"{name}, blank").scores()
        if options.generate:
            some = feed.some(pairs, options.generate)
            prompts[name] = _with_references(prompts_of(some, tokenizer), some, rows)
    if options.blank_pictures and not side.blank:
        raise ConfigError(
            "CP104", "blank_pictures would do nothing: no row of the data shows a picture."
        )
    if options.prompts:
        prompts["prompts"] = _read_prompts(options.prompts, encoder)
    for counts in feed.counts().values():
        logger().info("%s", counts.summary())
    meet = Pass.FORWARD in trainer.engine.collective_passes
    with trainer.accelerator.autocast():
        for name, few in prompts.items():
            side.written[name] = [
                one
                for way in _decodings(options, request.config.eval_batch_size)
                for one in write(trainer.model, tokenizer, few, way, together=meet)
            ]
    return side


def _writing(engine: str) -> Callable[..., list[Completion]]:
    """What writes texts; refused before a model is loaded where it is not installed."""
    from counterpoint.evaluation.generation import complete
    from counterpoint.evaluation.sampling import continuous_batching

    if engine == "transformers":
        return complete
    write: Callable[..., list[Completion]] = continuous_batching().complete_continuously
    return write


def _named(sets: Any, request: Request) -> Iterator[tuple[str, Any]]:
    """Each set with the name that it has in tables."""
    if isinstance(sets, Mapping):
        yield from sets.items()
    elif sets is not None:
        yield " ".join(Path(word).name for word in request.run.eval_dataset), sets


def _with_references(prompts: list[Prompt], pairs: Sequence[TokenPair], rows: Any) -> list[Prompt]:
    """The rows' own references in place of the chosen completions, where they have any."""
    from counterpoint.data.several import one_rejected_a_row

    if "reference" not in (rows.column_names or ()):
        return prompts
    rows = one_rejected_a_row(rows)
    return [
        replace(prompt, reference=_reference(rows[pair.row], pair.row))
        for prompt, pair in zip(prompts, pairs, strict=True)
    ]


def _reference(row: Mapping[str, Any], number: int) -> str | None:
    reference = row.get("reference")
    if not isinstance(reference, str | None):
        raise DataError(
            "CP202",
            f"row {number}: reference is of type {type(reference).__name__}; expected a text, or "
            "none.",
        )
    return reference


def _decodings(options: EvaluateOptions, batch: int) -> list[Decoding]:
    from counterpoint.evaluation.generation import Decoding

    likeliest = Decoding(options.max_new_tokens, batch=batch, beams=options.num_beams)
    if not options.temperature:
        return [likeliest]
    sampled = Decoding(
        options.max_new_tokens, options.temperature, options.top_p, options.seed, batch
    )
    return [likeliest, sampled]


def _read_prompts(sources: list[str], encoder: Encoder[Any]) -> list[Prompt]:
    from counterpoint.data.csv_sets import lists_of_csv
    from counterpoint.data.formats import to_prompt
    from counterpoint.data.picture_files import folder_of, rules_for
    from counterpoint.data.sources import load, pick_split
    from counterpoint.evaluation.generation import Prompt
    from counterpoint.records import TokenPair

    rows = lists_of_csv(pick_split(load(sources[0] if len(sources) == 1 else sources)))
    found = []
    begun, rules = encoder.start_tokens, rules_for(encoder.pictures, folder_of(rows))
    for number, raw in enumerate(rows):
        row = encoder.named(raw, number)
        prompt = row.get("prompt")
        if not prompt or not isinstance(prompt, str | list):
            raise DataError(
                "CP202",
                f"{' '.join(sources)}, row {number}: prompt is {str(prompt)[:40]!r}; expected a "
                "text or a list of messages.",
            )
        asked = to_prompt(row, number, rules)
        ids = encoder.prompt_ids(asked)
        end = len(ids) - begun
        pair = encoder.look(TokenPair(ids[:end], (), (), number, pictures=asked.pictures))
        given, start, reference = tuple(pair.prompt), tuple(ids[end:]), _reference(row, number)
        found.append(Prompt(given, reference, start, tuple(pair.seen), pair.pictures))
    return found


def _metrics(options: EvaluateOptions) -> list[str]:
    """Scores against references that are to be computed."""
    if options.metrics:
        wanted = [name for name in options.metrics if name != "none"]
        if wanted:
            references.check_sacrebleu()
        return wanted
    if options.writes and not references.is_installed():
        logger().info(
            "BLEU and chrF are left out: sacrebleu is not installed (%s)",
            installing(EXTRAS["evaluate"]),
        )
        return []
    return list(references.METRICS)


def scorers_asked(options: EvaluateOptions, values: Mapping[str, Any]) -> Sequence[AskedScorer]:
    """Scorers of the texts that are to be written.

    Args:
        options: of the command.
        values: of all its flags that were given, by name.

    Raises:
        ConfigError: CP101 to CP107 for what cannot be meant.
    """
    from counterpoint.scoring.asked import asked_scorers, judging_flags, refuse_idle_flags

    judging = judging_flags(values)
    if not options.with_ and options.scorers is None:
        refuse_idle_flags(judging)
        return ()
    return asked_scorers(options.with_, file=options.scorers, judging=judging, are_summed=False)


def _penalties(asked: Sequence[AskedScorer]) -> set[str]:
    return {one.name for one in asked if one.is_penalty}


# Files


def _check_out(options: EvaluateOptions) -> None:
    if options.out is None:
        return
    check_writable(options.out)
    for name in (RESULT_FILE, TEXTS_FILE):
        refuse_taken(Path(options.out) / name, overwrite=options.overwrite)


def _write(
    options: EvaluateOptions,
    text: str,
    sides: Mapping[str, Side],
    models: Mapping[str, str | None],
) -> None:
    mask = Mask()
    lines = [
        visible(
            json.dumps(
                _json_ready(
                    {
                        **{"model": models[who], "set": key[0], **one.as_entry()},
                        **_scores_of(side, key, n),
                    },
                    mask,
                ),
                ensure_ascii=False,
                allow_nan=False,
            )
        )
        for who, side in sides.items()
        for key, completions in by_kind(side).items()
        for n, one in enumerate(completions)
    ]
    folder = Path(str(options.out))
    if options.overwrite:
        (folder / TEXTS_FILE).unlink(missing_ok=True)
    for name, content in ((RESULT_FILE, [text]), (TEXTS_FILE, lines)):
        if content:
            with staged(folder / name, overwrite=options.overwrite) as file:
                file.write("".join(f"{line}\n" for line in content).encode())


def _scores_of(side: Side, key: tuple[str, str], number: int) -> dict[str, Any]:
    """What scorers say of one text, where there are scorers."""
    if key not in side.scored:
        return {}
    return {"scores": {name: found[number] for name, found in side.scored[key].items()}}


def _json_ready(value: Any, mask: Mask) -> Any:
    """The same without secrets, and with null for numbers that JSON does not have."""
    if isinstance(value, str):
        return mask.text(value)
    if isinstance(value, Mapping):
        return {mask.text(str(key)): _json_ready(part, mask) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(part, mask) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
