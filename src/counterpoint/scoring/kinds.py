"""Every kind of scorer: its argument, its options, and what makes it. One table.

Not here: the scorers themselves, which are imported when one is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from counterpoint.scoring.scorer import Scorer
from counterpoint.scoring.scorer_options import (
    BleuOptions,
    CommandOptions,
    GradeOptions,
    JudgeOptions,
    NoOptions,
    RewardOptions,
)


@dataclass(frozen=True, slots=True)
class ScorerKind:
    """A kind of scorer.

    Args:
        name: in ``--with`` and as a key of YAML.
        what: it counts, and in which range.
        make: argument and options -> a scorer.
        argument: what stands behind the colon; "" for none.
        needs_argument: whether it must.
        options: dataclass of what else it can be told.
        weighs: whether it counts in the sum where no weight is given.
        check: refuses options without all that the kind needs; None: it needs none.
        penalties: arguments with which a lower score is better.
    """

    name: str
    what: str
    make: Callable[[str, Any], Scorer]
    argument: str = ""
    needs_argument: bool = False
    options: type[Any] = NoOptions
    weighs: bool = True
    check: Callable[[Any], object] | None = None
    penalties: tuple[str, ...] = ()


def _chrf(argument: str, options: NoOptions) -> Scorer:
    from counterpoint.scoring.of_texts import against_reference

    return against_reference("chrf")


def _bleu(argument: str, options: BleuOptions) -> Scorer:
    from counterpoint.scoring.of_texts import against_reference

    return against_reference("bleu", options.tokenizer)


def _exact(argument: str, options: NoOptions) -> Scorer:
    from counterpoint.scoring.of_texts import exact

    return exact()


def _length(argument: str, options: NoOptions) -> Scorer:
    from counterpoint.scoring.of_texts import length_of_text

    return length_of_text(argument)


def _language(argument: str, options: NoOptions) -> Scorer:
    from counterpoint.scoring.of_texts import in_language

    return in_language(argument)


def _column(argument: str, options: NoOptions) -> Scorer:
    from counterpoint.scoring.of_texts import of_column

    return of_column(argument)


def _reward(argument: str, options: RewardOptions) -> Scorer:
    from counterpoint.scoring.of_reward_model import RewardModel

    return RewardModel(argument, options)


def _function(argument: str, options: NoOptions) -> Scorer:
    from counterpoint.scoring.of_function import OwnFunction

    return OwnFunction(argument)


def _command(argument: str, options: CommandOptions) -> Scorer:
    from counterpoint.scoring.of_process import OwnProcess

    return OwnProcess(argument, options.timeout)


def _judge(argument: str, options: JudgeOptions) -> Scorer:
    from counterpoint.scoring.of_judge import EndpointJudge

    return EndpointJudge(argument, options)


def _grade(argument: str, options: GradeOptions) -> Scorer:
    from counterpoint.scoring.of_grade import EndpointGrade

    return EndpointGrade(argument, options)


FUNCTION = "function"

KINDS: dict[str, ScorerKind] = {
    one.name: one
    for one in (
        ScorerKind("chrf", "chrF of the sentence against its reference, in [0, 100]", _chrf),
        ScorerKind(
            "bleu",
            "BLEU of the sentence against its reference, in [0, 100]",
            _bleu,
            options=BleuOptions,
        ),
        ScorerKind(
            "exact", "1 where it is its reference but for white space around it, else 0", _exact
        ),
        ScorerKind(
            "length",
            "characters; tokens; or characters that it is shorter or longer than its reference",
            _length,
            argument="characters, tokens or reference",
            penalties=("reference",),
        ),
        ScorerKind(
            "language",
            "1 for a text in the language, 0 for one in another, null where it cannot be told",
            _language,
            argument="a code such as de; none: that in the column target_lang",
            weighs=False,
        ),
        ScorerKind(
            "column",
            "a number, true or false that the candidate has already",
            _column,
            argument="the column's name",
            needs_argument=True,
        ),
        ScorerKind(
            "reward",
            "what a sequence classification model says of prompt and text",
            _reward,
            argument="hub id or folder",
            needs_argument=True,
            options=RewardOptions,
        ),
        ScorerKind(
            "judge",
            "the share of comparisons that it wins, by a rubric and a model behind an endpoint",
            _judge,
            argument="the rubric's file",
            needs_argument=True,
            options=JudgeOptions,
            check=JudgeOptions.served,
        ),
        ScorerKind(
            "grade",
            "a number on a scale, by a rubric and a model behind an endpoint",
            _grade,
            argument="the rubric's file",
            needs_argument=True,
            options=GradeOptions,
            check=GradeOptions.served,
        ),
        ScorerKind(
            FUNCTION,
            "what a Python function of yours returns; --with may leave the word function: out",
            _function,
            argument="module:function",
            needs_argument=True,
        ),
        ScorerKind(
            "command",
            "what a process of its own answers, JSON lines in and JSON lines out",
            _command,
            argument="the command's words",
            needs_argument=True,
            options=CommandOptions,
        ),
    )
}
"""Every kind by its name."""
