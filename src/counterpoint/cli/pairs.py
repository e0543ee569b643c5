"""``counterpoint pairs``: scored candidates from files or the hub to a file of pairs.

Nothing is written before every row is read and found sound.

Not here: which candidates become pairs (``data.scored``).
"""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from counterpoint.console.manners import complain_all, put
from counterpoint.data.pair_rules import PairRules
from counterpoint.errors import ConfigError
from counterpoint.options.command import Command, made
from counterpoint.options.declared import option
from counterpoint.options.limits import refuse_unless_given
from counterpoint.strict import strict_json

USAGE = """\
usage: counterpoint pairs SCORED ... --out PAIRS.jsonl [--option value ...]

Makes preference pairs of scored candidates: files (.jsonl, .json, .csv, .tsv,
.parquet, also .gz), a folder or a hub id, each row a prompt with a list of
candidates, or each a candidate. What became of every row and every two
candidates is said on standard error. In prompt_template and completion_prefix
\\n is a line break, \\t a tab and \\\\ a backslash.

examples:
  counterpoint pairs scored.jsonl.gz --out pairs.jsonl --score mqm \\
      --lower_is_better --prompt_template 'Into English: {source}\\n' --min_gap 5
  counterpoint train --model Qwen/Qwen2.5-0.5B --dataset pairs.jsonl

options:
"""

_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}


@dataclass(frozen=True, slots=True)
class PairsOptions:
    """What the command takes beside ``PairRules``; every field's help states its meaning."""

    out: str | None = option(
        None, "Required. File to write: .jsonl, .jsonl.gz or .parquet; written whole or not at all."
    )
    overwrite: bool = option(False, "Replace the file if it is there already.")
    human: str | None = option(
        None,
        "File with a human's choices, JSON lines: each names a candidate by model, row and "
        "candidate, or by prompt and text. It is chosen, whatever scores and vetoes say.",
    )
    split: str | None = option(None, "Split to read; null: train, or the only one there is.")
    json: bool = option(False, "Write the summary as a JSON object to standard output instead.")


COMMAND = Command("pairs", USAGE, PairsOptions, beside=PairRules)


def pairs(words: list[str]) -> None:
    """Make the pairs that a command line asks for.

    Args:
        words: what follows ``counterpoint pairs``.

    Raises:
        CounterpointError: with the code of what cannot be done; then nothing is written.
    """
    sources, options, rules = _read_words(words)
    # slow to import, and so after what the words alone can tell
    from counterpoint.data.human_marks import read_marks
    from counterpoint.data.saving import check_target, write_rows
    from counterpoint.data.scored import pairs_from_scored
    from counterpoint.data.sources import load, pick_split

    out = Path(str(options.out)).expanduser()
    check_target(out, overwrite=options.overwrite)
    if any(Path(source).exists() and out.exists() and out.samefile(source) for source in sources):
        raise ConfigError("CP104", f"{out} is the file to read; name another one with --out.")
    marks = None if options.human is None else read_marks(Path(options.human).expanduser())
    one = sources[0] if len(sources) == 1 else sources
    rows = pick_split(load(one, split=options.split, streaming=True))
    names = " ".join(Path(s).name for s in sources)
    made = pairs_from_scored(rows, rules, name=names, marks=marks)
    write_rows(made.pairs, out, overwrite=options.overwrite)
    _write_origin(out, sources, rules)
    if options.json:
        told = strict_json({**made.counts.as_dict(), "out": str(out)}, ensure_ascii=False)
        put(told)
    else:
        complain_all(f"{made.counts.summary()}\nwritten to {out}")


def _write_origin(out: Path, sources: list[str], rules: PairRules) -> None:
    """Beside pairs of scored candidates, which files these came from, for ``trace``."""
    from counterpoint.evaluation.candidate_file import settings_path, write_settings

    scored = [source for source in sources if settings_path(Path(source)).is_file()]
    if scored:
        found = {"sources": [os.path.relpath(source, out.parent) for source in scored]}
        write_settings(out, {**found, "rules": asdict(rules)})


def _read_words(words: list[str]) -> tuple[list[str], PairsOptions, PairRules]:
    values, sources = COMMAND.take(words)
    refuse_unless_given(
        {
            "the file to read (counterpoint pairs SCORED.jsonl)": sources,
            "out (--out PAIRS.jsonl)": values.get("out"),
        }
    )
    for name in ("prompt_template", "completion_prefix"):
        if values.get(name):
            values[name] = _unescaped(values[name])
    return sources, made(PairsOptions, values), made(PairRules, values)


def _unescaped(text: str) -> str:
    r"""Text with ``\n``, ``\t`` and ``\\`` as the characters they stand for in a shell's word."""
    return re.sub(r"\\[nt\\]", lambda found: _ESCAPES[found[0]], text)
