# /// script
# requires-python = ">=3.9,<3.12"
# dependencies = ["transformers[torch]==4.30.2", "sentencepiece==0.1.99", "datasets==2.13.1"]
# ///
r"""MetricX as a scorer of `counterpoint score`, in a process and an environment of its own.

    git clone https://github.com/google-research/metricx
    counterpoint score candidates.jsonl --out scored.jsonl --weight metricx=-1 \
        --with 'metricx=command:uv run examples/score_metricx.py --code metricx'

MetricX gives an error from 0 to 25: lower is better, hence the negative weight. Its code is no
package, but a script on files, in the folder that `--code` names; the requirements above are its
own. So all candidates are read first, and answered together: a number a line, in order; null where
there is no reference, unless `--qe` asks for a judgement of source and candidate alone.
The source is the column "source" (`counterpoint sample --keep source reference`), or the prompt.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description="MetricX-24 errors, a line each.")
    parser.add_argument("--code", type=Path, required=True, help="folder of MetricX's repository")
    parser.add_argument("--model", default="google/metricx-24-hybrid-large-v2p6")
    parser.add_argument("--tokenizer", default="google/mt5-large")
    parser.add_argument("--batch", type=int, default=1, help="candidates at once")
    parser.add_argument("--qe", action="store_true", help="without references")
    options = parser.parse_args()
    # whatever a library prints goes to standard error: standard output is for answers alone
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    rows = [json.loads(line) for line in sys.stdin]
    asked = [row for row in rows if options.qe or row.get("reference")]
    found = iter(errors_of(asked, options) if asked else [])
    for row in rows:
        number = next(found) if options.qe or row.get("reference") else None
        answers.write(f"{json.dumps(number)}\n")
    answers.flush()


def errors_of(rows: list, options: argparse.Namespace) -> list:
    """The error of each row, by MetricX's own script."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = (Path(folder, f"{name}.jsonl") for name in ("given", "made"))
        lines = [
            {
                "source": row.get("source", row["prompt"]),
                "hypothesis": row["text"],
                "reference": "" if options.qe else row["reference"],
            }
            for row in rows
        ]
        given.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
        words = ["--tokenizer", options.tokenizer, "--model_name_or_path", options.model]
        words += ["--max_input_length", "1536", "--batch_size", str(options.batch)]
        words += ["--input_file", str(given), "--output_file", str(made)]
        words += ["--qe"] * options.qe
        call = [sys.executable, "-m", "metricx24.predict", *words]
        subprocess.run(call, cwd=options.code, check=True)
        text = made.read_text(encoding="utf-8")
    return [json.loads(line)["prediction"] for line in text.splitlines()]


if __name__ == "__main__":
    main()
