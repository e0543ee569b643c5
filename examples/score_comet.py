# /// script
# requires-python = ">=3.9"
# dependencies = ["unbabel-comet>=2.2"]
# ///
r"""COMET as a scorer of `counterpoint score`, in a process and an environment of its own.

    counterpoint score candidates.jsonl --out scored.jsonl \
        --with 'comet=command:uv run examples/score_comet.py'

Reads a candidate a line and answers a number a line, in order; null where there is no reference.
The source is the column "source" (`counterpoint sample --keep source reference`), or the prompt.
"""

import argparse
import json
import os
import sys
from itertools import islice


def main() -> None:
    parser = argparse.ArgumentParser(description="COMET scores, a line each.")
    parser.add_argument("--model", default="Unbabel/wmt22-comet-da")
    parser.add_argument("--batch", type=int, default=32, help="candidates at once")
    parser.add_argument("--gpus", type=int, default=0)
    options = parser.parse_args()
    # whatever a library prints goes to standard error: standard output is for answers alone
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from comet import download_model, load_from_checkpoint

    model = load_from_checkpoint(download_model(options.model))
    rows = (json.loads(line) for line in sys.stdin)
    while batch := list(islice(rows, options.batch)):
        asked = [
            {"src": row.get("source", row["prompt"]), "mt": row["text"], "ref": row["reference"]}
            for row in batch
            if row.get("reference")
        ]
        found = iter([])
        if asked:
            made = model.predict(
                asked, batch_size=options.batch, gpus=options.gpus, progress_bar=False
            )
            found = iter(made.scores)
        for row in batch:
            number = float(next(found)) if row.get("reference") else None
            answers.write(f"{json.dumps(number)}\n")
        answers.flush()


if __name__ == "__main__":
    main()
