"""Rows of any kind: each becomes a pair or a counted problem, none stops or spoils the others.

The doctor's pass over ten thousand such rows is ``tests/doctor/test_survey``; here they go through
files, tokenizer and trainer's preparation.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from counterpoint import DataError
from counterpoint.data.options import PrepareOptions
from counterpoint.data.prepare import encode_every_row, prepare
from counterpoint.data.several import apart
from counterpoint.data.sources import dataset_from_rows, load
from counterpoint.errors import CODES
from tests.cli.conftest import PAIRS, Command, command, pattern, tree, workshop
from tests.doctor.test_survey import malformed
from tests.reliability.trials import trials

__all__ = ["command", "pattern", "workshop"]

AT_ONCE = 100
OPTIONS = PrepareOptions(max_length=64, max_completion_length=24, invalid_rows="drop")


def rows_of(rng: random.Random) -> list[dict[str, Any]]:
    """Rows that a table can hold, some good ones among them; the others are refused alone."""
    found = []
    while len(found) < AT_ONCE:
        row = malformed(rng) if rng.random() < 0.9 else rng.choice(PAIRS)
        try:
            json.dumps(row)
            dataset_from_rows([row])
        except DataError as error:
            assert error.code == "CP202"  # noqa: PT017 - one of many
        except (TypeError, ValueError):
            continue  # no JSON
        else:
            found.append(row)
    return found


def written(rows: list[Any], path: Path) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("seed", range(trials(10, 100)))
def test_each_of_ten_thousand_rows_becomes_a_pair_or_a_counted_problem(
    chatml_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, seed: int
) -> None:
    rows = rows_of(random.Random(seed))
    rows = [{k: v for k, v in row.items() if k not in ("weight", "margin")} for row in rows]
    rows.append(PAIRS[0])  # one is a pair
    found = prepare(load(written(rows, tmp_path / "rows.jsonl")), chatml_tokenizer, OPTIONS)
    several = sum(len(apart(row, 0)) for row in rows)  # a row for each of a list
    assert found.counts.rows == several >= len(rows)
    assert found.counts.kept == len(found.pairs) >= 1
    dropped = found.counts.dropped
    assert found.counts.kept + sum(dropped.values()) == several
    assert set(dropped) <= set(CODES)
    for pair in found.pairs:
        longest = max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))
        assert min(len(pair["chosen_ids"]), len(pair["rejected_ids"])) >= 1
        assert longest <= 24
        assert len(pair["prompt_ids"]) + longest <= 64
        assert pair["weight"] >= 0
    assert list(found.pairs["row"]) == sorted(found.pairs["row"])


@pytest.mark.parametrize("seed", range(trials(2, 20)))
def test_the_verdict_on_a_row_is_its_own(
    chatml_tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    rows = rows_of(random.Random(seed))
    together = encode_every_row(dataset_from_rows(rows), chatml_tokenizer, OPTIONS)
    backwards = encode_every_row(dataset_from_rows(rows[::-1]), chatml_tokenizer, OPTIONS)
    for row, (one, other) in enumerate(zip(together, list(backwards)[::-1], strict=True)):
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            assert one[name] == other[name], rows[row]
        assert one["problem"][:5] == other["problem"][:5], rows[row]


@pytest.mark.parametrize("seed", range(trials(8, 100)))
def test_a_file_with_bad_rows_or_bad_bytes_is_one_coded_line_and_leaves_nothing(
    workshop: Path, command: Command, seed: int
) -> None:
    rng = random.Random(seed)
    path = written([*PAIRS, *rows_of(rng)[:5], {"prompt": 3}], workshop / "pairs.jsonl")
    if seed % 2:
        content = bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
    before = tree(workshop)
    words = f"--output_dir out --max_steps 1 --doctor {'off' if seed % 4 < 2 else 'on'}"
    answer = command("train", "--model", "model", "--dataset", "pairs.jsonl", *words.split())
    assert answer.code == 2
    last = answer.err.splitlines()[-1]
    assert last.startswith("counterpoint: CP2")
    assert "Traceback" not in answer.err
    assert len(last) < 2000
    assert answer.out == ""
    assert tree(workshop) == before


@pytest.mark.parametrize("seed", range(trials(20, 400)))
def test_a_file_of_any_bytes_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    kind = rng.choice(["jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz", "csv.xz", "json.bz2"])
    path = tmp_path / f"rows.{kind}"
    start = rng.choice([b"", b"[", b"{", b"PAR1", b"\xef\xbb\xbf", b"\x1f\x8b\x08", b'"', b"a,b\n"])
    path.write_bytes(start + rng.randbytes(rng.randrange(200)))
    try:
        load(path)
    except DataError as error:
        assert error.code in CODES  # noqa: PT017 - either way is right
