"""``examine``: every check of a run, all findings in one report.

Checks run one after the other, each shielded: an exception inside one becomes a finding (CW901)
and the others go on. Options, model, tokenizer and data are given as objects, any of which may be
missing; nothing is changed, trained or written.

Not here: loading by name (the command does), and a run in miniature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from counterpoint.config import CPOConfig
from counterpoint.console.phases import phase
from counterpoint.data.encoder import Encoder
from counterpoint.data.mixture import Mixture, joined_rows
from counterpoint.data.options import PrepareOptions
from counterpoint.data.processors import tokenizer_of
from counterpoint.data.sources import pick_split
from counterpoint.doctor.findings import Finding, Report, find, from_error
from counterpoint.doctor.of_batch import of_batch, steps_of
from counterpoint.doctor.of_data import of_both, of_data
from counterpoint.doctor.of_machine import of_machine
from counterpoint.doctor.of_memory import of_memory
from counterpoint.doctor.of_mixture import of_mixture, places_of_epoch
from counterpoint.doctor.of_model import of_model
from counterpoint.doctor.of_objective import of_objective
from counterpoint.doctor.of_reference import of_reference
from counterpoint.doctor.of_tokenizer import of_tokenizer
from counterpoint.doctor.of_unused import Rest, of_unused
from counterpoint.doctor.survey import Progress, Survey, TokenFacts, survey
from counterpoint.errors import CounterpointError, kind_and_line
from counterpoint.models.preparing import embedding_rows, encoder_of
from counterpoint.planner.shapes import Lengths

TRAIN = "train"


def examine(
    args: CPOConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    peft_config: Any = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Examine a run before its first step.

    Args:
        args: the run's options.
        model: a causal language model, loaded and not adapted yet; None leaves it out.
        tokenizer: the trainer's ``processing_class``, or the tokenizer in it; None leaves it out.
        train_dataset: raw rows in any shape that the trainer takes, or a ``Mixture`` of several
            sets; None leaves them out.
        eval_dataset: likewise, or a dict of named sets.
        peft_config: the adapter that will be trained; None to train all weights.
        overwrite: what the output folder holds may be replaced.
        progress: called now and then with a set's name, rows looked at, and rows in all.

    Returns:
        All that was found, the worst first. Nothing is raised, changed or written, but for the
        cache of prepared data sets, which the trainer then finds.
    """
    findings: list[Finding] = []
    tokenizer = tokenizer_of(tokenizer)

    def run(check: Callable[..., Iterable[Finding]], *facts: Any, **more: Any) -> None:
        findings.extend(shielded(check, *facts, **more))

    sets: dict[str, Any] = {}
    run(_name_sets, sets, train_dataset, eval_dataset)
    readable: list[Encoder[Any]] = []
    if _can_read(tokenizer):
        run(_reads, readable, model, tokenizer, args)
    surveys: dict[str, Survey] = {}
    for name, rows in sets.items():
        run(_look, surveys, rows, readable, args, name, len(sets) > 1, progress)
    train = surveys.get(TRAIN)
    for name, found in surveys.items():
        run(of_data, found, args)
        if train is not None and name != TRAIN:
            run(of_both, train, found)
    pairs = train.usable if train is not None and train.whole else None
    if isinstance(train_dataset, Mixture) and train is not None and pairs:
        run(of_mixture, train_dataset, train)
        pairs = places_of_epoch(train_dataset, train)
    adapted = peft_config is not None or getattr(model, "peft_config", None) is not None
    run(of_objective, args, adapted=adapted)
    streams = train_dataset is not None and not hasattr(train_dataset, "__len__")
    run(of_reference, args, model, tokenizer, streams=streams)
    run(of_unused, args, Rest(evaluates=eval_dataset is not None, streams=streams))
    run(of_batch, args, pairs=pairs, ranks=args.world_size)
    if tokenizer is not None:
        samples = train.samples if train is not None else []
        known = embedding_rows(model)
        bos = readable[0].bos if readable else getattr(tokenizer, "bos_token_id", None)
        run(of_tokenizer, tokenizer, samples, embedding=known and known.read, bos=bos)
    if model is not None:
        with phase("examining the model"):
            run(of_model, model, args, peft_config=peft_config, tokens=_tokens(train))
    steps = steps_of(args, pairs, args.world_size).total
    run(of_machine, args, model=model, peft_config=peft_config, steps=steps, overwrite=overwrite)
    if isinstance(model, nn.Module):
        with phase("examining what a step needs in memory"):
            run(of_memory, model, args, peft_config=peft_config, lengths=_lengths(train, args))
    return Report.of(findings)


def examine_second_sets(
    args: CPOConfig,
    sets: Mapping[str, Any],
    *,
    model: Any = None,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Examine the rows of constraints that have a set of their own.

    Args:
        args: the run's options.
        sets: raw rows by the names of the constraints.
        model: as for ``examine``, or its configuration.
        tokenizer: as for ``examine``.
        progress: as for ``examine``.
    """
    tokenizer = tokenizer_of(tokenizer)
    readable: list[Encoder[Any]] = []
    if _can_read(tokenizer):  # what is wrong with it is found with the run's own sets
        [*shielded(_reads, readable, model, tokenizer, args)]
    surveys: dict[str, Survey] = {}
    findings: list[Finding] = []
    for name, rows in sets.items():
        findings += shielded(_look, surveys, rows, readable, args, name, True, progress)
    for found in surveys.values():
        findings += shielded(of_data, found, args)
    return findings


def shielded(
    check: Callable[..., Iterable[Finding]], *facts: Any, **more: Any
) -> Iterator[Finding]:
    """The findings of a check; what it raises is one of them, after those it had made."""
    try:
        yield from check(*facts, **more)
    except CounterpointError as error:
        yield from_error(error)
    except Exception as error:
        yield find("CW901", f"{check.__name__.strip('_')}: {kind_and_line(error)}")


def _tokens(train: Survey | None) -> TokenFacts | None:
    """Of the training pairs; None where no row is left to speak of."""
    tokens = None if train is None else train.tokens
    return tokens if tokens is not None and len(tokens.prompt) else None


def _lengths(train: Survey | None, args: CPOConfig) -> Lengths | None:
    """Of the training pairs as they will be cut."""
    tokens = _tokens(train)
    if tokens is None:
        return None
    limits = PrepareOptions.of(args).limits
    return Lengths(np.stack(tokens.parts, 1), tokens.shown).within(
        limits.max_length, limits.max_completion_length
    )


def _name_sets(sets: dict[str, Any], train: Any, evaluation: Any) -> Iterator[Finding]:
    """Every set by the name that messages call it."""
    yield from ()
    if isinstance(evaluation, Mapping):
        sets.update({f"eval {name}": rows for name, rows in evaluation.items()})
    elif evaluation is not None:
        sets["eval"] = evaluation
    if train is not None:
        sets[TRAIN] = joined_rows(pick_split(train) if isinstance(train, Mapping) else train)


def _can_read(tokenizer: Any) -> bool:
    return isinstance(tokenizer, PreTrainedTokenizerBase) and tokenizer.eos_token_id is not None


def _reads(
    readable: list[Encoder[Any]], model: Any, tokenizer: PreTrainedTokenizerBase, args: CPOConfig
) -> Iterator[Finding]:
    """What makes ids of the run's rows, if anything does."""
    readable.append(encoder_of(model, tokenizer, args))
    yield from ()


def _look(
    surveys: dict[str, Survey],
    rows: Any,
    readable: list[Encoder[Any]],
    args: CPOConfig,
    name: str,
    sign: bool,
    progress: Progress | None,
) -> Iterator[Finding]:
    options = PrepareOptions.of(args)
    encoder = readable[0] if readable else None
    surveys[name] = survey(rows, encoder, options, name=name, sign=sign, progress=progress)
    yield from ()
