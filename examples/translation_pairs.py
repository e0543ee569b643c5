"""Scored translations to preference pairs: the best candidate against the worst.

    python examples/translation_pairs.py SCORED.jsonl.gz PAIRS.jsonl
    counterpoint train --model ... --dataset PAIRS.jsonl

Each line of the input is a segment with its candidates and their penalties (MQM: lower is
better):

    {"source_lang": "zh", "target_lang": "en", "source": "...",
     "candidates": [{"text": "...", "mqm": 0.4}, ...]}

As in the paper's recipe (arXiv:2401.08417) the middle is dropped. A segment gives no pair if its
best and worst penalty are equal, or if both belong to the same text: there is nothing to prefer.

Not here: writing the file without a line of Python, which ``counterpoint pairs`` does; several
pairs a segment, a least gap, a human's judgement, which are fields of ``PairRules``.
"""

import gzip
import json
import sys
from pathlib import Path

from counterpoint import PairRules, pairs_from_scored

NAMES = {"zh": "Chinese", "en": "English", "de": "German", "ru": "Russian", "cs": "Czech"}

RULES = PairRules(
    score="mqm",
    lower_is_better=True,
    prompt_template="Translate from {from} to {to}.\n{from}: {source}\n{to}:",
    completion_prefix=" ",
)


def with_names(segment):
    """A segment with its languages by the names that the prompt calls them."""
    source, target = (NAMES.get(segment[f"{side}_lang"]) for side in ("source", "target"))
    return {**segment, "from": source, "to": target}


def main(scored, pairs):
    opened = gzip.open if scored.endswith(".gz") else open
    with opened(scored, "rt", encoding="utf-8") as lines:
        segments = (with_names(json.loads(line)) for line in lines)
        made = pairs_from_scored(segments, RULES, name=Path(scored).name)
    text = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in made.pairs)
    Path(pairs).write_text(text, encoding="utf-8")
    print(made.counts.summary())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
