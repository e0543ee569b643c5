"""``counterpoint score``: candidates from files get scores, a line each.

Not here: the scorers (``scoring.kinds``), how they are asked for (``scoring.asked``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from counterpoint.console.manners import complain_all, put
from counterpoint.errors import ConfigError, SetupError
from counterpoint.options.command import Command, made
from counterpoint.options.declared import option
from counterpoint.options.limits import refuse_below, refuse_other_than_lines, refuse_unless_given
from counterpoint.preference_row import INVALID_ROWS
from counterpoint.scoring.scorer_options import JUDGE_FLAGS
from counterpoint.strict import strict_json

USAGE = """\
usage: counterpoint score CANDIDATES.jsonl ... --out SCORED.jsonl --with SCORER ...

Scores candidates, as counterpoint sample writes them: rows with prompt and
text. Each row is written as it is, with its scores by name, their weighted sum
and its vetoes; counterpoint pairs reads that. What was stopped is resumed by
the same command.

scorers, as --with [NAME=]SCORER:
  chrf, bleu         of the sentence against its reference, in [0, 100]
  exact              1 where it is its reference, else 0
  length:UNIT        characters, tokens, or reference: how far from its length
  language:de        1 in the language, 0 in another
  column:NAME        a number that the row has already
  reward:MODEL       what a sequence classification model says
  module:function    a Python function of yours: rows in, numbers out
  command:WORDS      a process of its own, as for COMET or MetricX
  judge:RUBRIC.txt   the share of comparisons that it wins, by a judge that is
                     asked at --judge_endpoint
  grade:RUBRIC.txt   the judge's grade of it alone, from 1 to 10

examples:
  counterpoint score candidates.jsonl --out scored.jsonl --with chrf --require lang=de
  counterpoint score candidates.jsonl --out scored.jsonl --with chrf length \\
      --weight chrf=1 length=-0.1
  counterpoint score candidates.jsonl --out scored.jsonl --with grade:rubric.txt \\
      --judge_endpoint http://127.0.0.1:8000/v1 --judge_model NAME --judge_scale 1 5
  counterpoint score candidates.jsonl --out scored.jsonl --scorers scorers.yaml
  counterpoint pairs scored.jsonl --out pairs.jsonl

options:
"""


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What the command takes; every field's help is its meaning."""

    out: str | None = option(
        None, "Required. File to write, .jsonl: a candidate a line. One that is there is resumed."
    )
    with_: list[str] = option([], "Scorers, each as [NAME=]SCORER; see above.")
    scorers: str | None = option(
        None, "YAML file of scorers: a name each, with its kind, its options, weight and require."
    )
    weight: list[str] = option(
        [],
        "Weights of the sum, as NAME=NUMBER. With one scorer it is 1; of several, those without "
        "a weight are written and count nothing.",
    )
    require: list[str] = option(
        [],
        "What vetoes a candidate that has it not: NAME (a score of 1), NAME=NUMBER, in quotes "
        "'NAME>=NUMBER', or lang=CODE for a language.",
    )
    reference: str = option("reference", "Column of the reference, where a scorer wants one.")
    max_rows: int | None = option(None, "Most candidates, >= 1: the first ones; null: all.")
    invalid_rows: str = option(
        "raise",
        "What to do with rows that are no candidates: stop, or drop and count.",
        INVALID_ROWS,
    )
    overwrite: bool = option(False, "Begin the file anew where it is there already.")
    json: bool = option(False, "Write the summary as a JSON object to standard output instead.")

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        refuse_below(self, max_rows=1)
        refuse_other_than_lines(self.out)


COMMAND = Command("score", USAGE, ScoreOptions, beside=JUDGE_FLAGS)


def score(words: list[str]) -> None:
    """Score the candidates that a command line names.

    Args:
        words: what follows ``counterpoint score``.

    Raises:
        CounterpointError: with the code of what cannot be done.
    """
    values, sources = COMMAND.take(words)
    options = made(ScoreOptions, values)
    refuse_unless_given(
        {
            "the file to read (counterpoint score CANDIDATES.jsonl)": sources,
            "out (--out SCORED.jsonl)": options.out,
        }
    )
    from counterpoint.scoring.account import account_of
    from counterpoint.scoring.asked import asked_scorers, judging_flags
    from counterpoint.scoring.entries import read_entries
    from counterpoint.scoring.windows import score_candidates
    from counterpoint.staged import refuse_unusable

    asked = asked_scorers(
        options.with_,
        file=options.scorers,
        weights=options.weight,
        requirements=options.require,
        judging=judging_flags(values),
    )
    out = Path(str(options.out)).expanduser()
    refuse_unusable(out)
    if out.is_dir():
        raise SetupError("CP501", f"{out} cannot be written: it is a folder.")
    paths = [Path(source).expanduser() for source in sources]
    if any(path.exists() and out.exists() and out.samefile(path) for path in paths):
        raise ConfigError("CP104", f"{out} is the file to read; name another one with --out.")
    entries = read_entries(
        paths,
        reference=options.reference,
        max_rows=options.max_rows,
        invalid_rows=options.invalid_rows,
    )
    remarks = score_candidates(entries, asked, out, overwrite=options.overwrite)
    account = account_of(out)
    account.dropped, account.examples = entries.dropped, entries.examples
    account.remarks = remarks
    if options.json:
        put(strict_json({**account.as_dict(), "out": str(out)}, ensure_ascii=False))
    else:
        complain_all(f"{account.summary()}\nwritten to {out}")
