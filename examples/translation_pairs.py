"""Scored translations to preference pairs: the best candidate against the worst.

    python examples/translation_pairs.py SCORED.jsonl.gz PAIRS.jsonl
    counterpoint train --model ... --dataset PAIRS.jsonl

Each line of the input is a segment with its candidates and their penalties (MQM: lower is
better):

    {"source_lang": "zh", "target_lang": "en", "source": "...",
     "candidates": [{"text": "...", "mqm": 0.4}, ...]}

As in the paper's recipe (arXiv:2401.08417) the middle is dropped. A segment gives no pair if its
best and worst penalty are equal, or if both belong to the same text: there is nothing to prefer.

Not here: several pairs a segment, a least gap between them.
"""

import gzip
import json
import sys
from pathlib import Path

NAMES = {"zh": "Chinese", "en": "English", "de": "German", "ru": "Russian", "cs": "Czech"}


def best_and_worst(segment):
    """One pair, or None where nothing is to be preferred."""
    ranked = sorted(segment["candidates"], key=lambda candidate: candidate["mqm"])
    best, worst = ranked[0], ranked[-1]
    if best["mqm"] == worst["mqm"] or best["text"].split() == worst["text"].split():
        return None
    source, target = (NAMES.get(segment[key], segment[key]) for key in LANGUAGES)
    return {
        "prompt": f"Translate from {source} to {target}.\n{source}: {segment['source']}\n{target}:",
        "chosen": f" {best['text']}",
        "rejected": f" {worst['text']}",
    }


LANGUAGES = ("source_lang", "target_lang")


def main(scored, pairs):
    opened = gzip.open if scored.endswith(".gz") else open
    with opened(scored, "rt", encoding="utf-8") as lines:
        made = [best_and_worst(json.loads(line)) for line in lines]
    kept = [pair for pair in made if pair is not None]
    text = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in kept)
    Path(pairs).write_text(text, encoding="utf-8")
    print(f"{len(kept)} pairs written to {pairs}; {len(made) - len(kept)} segments without a pair")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
