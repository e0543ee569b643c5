"""``counterpoint pairs``: a file of scored candidates becomes a file that ``train`` takes."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from safetensors.torch import load_file

from counterpoint import staged
from counterpoint.cli.pairs import COMMAND, PairsOptions
from counterpoint.data.pair_rules import PairRules
from counterpoint.data.sources import load
from counterpoint.options.declared import declared
from tests.cli.conftest import Command, tree, write_pairs

TED = "ted-mqm-zhen-scored.jsonl.gz"
SCORED: list[dict[str, Any]] = [
    {
        "id": n,
        "source": f"Was ist {n} und {n}?",
        "candidates": [
            {"text": f"It is {2 * n}.", "quality": 9},
            {"text": f"{n}, I am.", "quality": 2.5},
            {"text": "No.", "quality": 1},
        ],
    }
    for n in range(1, 9)
]
MAKE = ["--score", "quality", "--prompt_template", r"{source}\n"]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``scored.jsonl``, and the current one."""
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "scored.jsonl", SCORED)
    return tmp_path


def read(path: str) -> list[dict[str, Any]]:
    """Rows of a file of lines."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_what_it_writes_trains(workshop: Path, command: Command) -> None:
    write_pairs(workshop / "scored.jsonl", SCORED)
    said = command("pairs", "scored.jsonl", "--out", "made.jsonl.gz", *MAKE, "--select", "all")
    assert (said.code, said.out) == (0, "")
    assert said.err.splitlines() == [
        "scored.jsonl: 8 rows, 8 prompts, 24 candidates",
        "  24 candidate pairs: 24 usable",
        "  24 pairs from 8 prompts",
        "written to made.jsonl.gz",
    ]
    options = ["--model", "model", "--dataset", "made.jsonl.gz", "--output_dir", "out"]
    said = command("train", *options, "--max_steps", "2", "--learning_rate", "0.01", "--use_cpu")
    assert said.code == 0, said.err
    before, after = (load_file(f"{folder}/model.safetensors") for folder in ("model", "out"))
    assert any((before[name] != after[name]).any() for name in after)
    counts = json.loads(Path("out/run.json").read_text())["data"]["train"]
    assert (counts["rows"], counts["kept"]) == (24, 24)


def test_all_kinds_of_file_hold_the_same_rows_and_always_the_same_bytes(
    bench: Path, command: Command
) -> None:
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet", "b.jsonl.gz", "b.parquet"):
        assert command("pairs", "scored.jsonl", "--out", name, *MAKE, "--keep", "id").code == 0
    rows = read("a.jsonl")
    assert rows[0] == {
        "prompt": "Was ist 1 und 1?\n",
        "chosen": "It is 2.",
        "rejected": "No.",
        "score_gap": 8.0,
        "chosen_score": 9.0,
        "rejected_score": 1.0,
        "id": 1,
    }
    for name in ("a.jsonl.gz", "a.parquet"):
        assert load(name).to_list() == rows
        assert Path(name).read_bytes() == Path(name.replace("a.", "b.")).read_bytes()


def test_a_flat_table_in_csv_gives_the_pairs_of_the_lists(bench: Path, command: Command) -> None:
    lines = ["source,text,quality"]
    lines += [
        f'{row["source"]},"{one["text"]}",{one["quality"]}'
        for row in SCORED
        for one in row["candidates"]
    ]
    Path("flat.csv").write_text("\n".join(lines), encoding="utf-8")
    rules = [*MAKE, "--select", "best_random", "--seed", "5", "--per_prompt", "2"]
    assert command("pairs", "scored.jsonl", "--out", "nested.jsonl", *rules).code == 0
    assert command("pairs", "flat.csv", "--out", "flat.jsonl", *rules).code == 0
    assert read("flat.jsonl") == read("nested.jsonl")
    assert len(read("flat.jsonl")) == 16


def test_json_is_one_object_on_standard_output(bench: Path, command: Command) -> None:
    said = command("pairs", "scored.jsonl", "--out", "p.jsonl", *MAKE, "--json", "--min_gap", "7")
    told = json.loads(said.out)
    assert (said.err, told["pairs"], told["out"]) == ("", 8, "p.jsonl")
    # 9 to 2.5 and 2.5 to 1 are too near
    assert (told["candidate_pairs"]["narrow"], told["candidate_pairs"]["usable"]) == (16, 8)


def test_what_is_dropped_is_said(bench: Path, command: Command) -> None:
    write_pairs(bench / "scored.jsonl", [*SCORED, {"source": "x", "candidates": None}])
    words = ["pairs", "scored.jsonl", "--out", "p.jsonl", *MAKE, "--invalid_rows", "drop"]
    said = command(*words)
    assert said.code == 0
    assert "  dropped: 1 × CP202\n    for example CP202 row 8, field candidates: is of" in said.err


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ([], "CP107 the file to read (counterpoint pairs SCORED.jsonl) and out "),
        (["scored.jsonl"], "CP107 out (--out PAIRS.jsonl) is missing."),
        (["scored.jsonl", "--out"], "CP103 --out needs a value"),
        (["missing.jsonl", "--out", "p.jsonl"], "CP211 there is no file missing.jsonl"),
        (["scored.jsonl", "--out", "p.txt"], "CP103 p.txt should end with .jsonl"),
        (["scored.jsonl", "--out", "scored.jsonl"], "CP506 scored.jsonl is there already."),
        (
            ["scored.jsonl", "--out", "./scored.jsonl", "--overwrite"],
            "CP104 scored.jsonl is the file to read",
        ),
        (["scored.jsonl", "--out", "folder.jsonl"], "CP501 folder.jsonl cannot be written"),
        (["scored.jsonl", "--out", "scored.jsonl/p.jsonl"], "CP501 "),
        (
            ["scored.jsonl", "--out", "p.jsonl", "--min_gaps", "1"],
            "CP101 --min_gaps is no option; ",
        ),
        (["scored.jsonl", "--out", "p.jsonl", "--min_gap", "x"], 'CP103 --min_gap="x" should be a'),
        (["scored.jsonl", "--out", "p.jsonl", "--select", "bst"], 'CP102 --select="bst" is not'),
        (
            ["scored.jsonl", "--out", "p.jsonl"],
            "CP201 scored.jsonl, row 0 has no column prompt; it has id, source, candidates.",
        ),
        (
            ["scored.jsonl", "--out", "p.jsonl", "--prompt", "source"],
            "CP201 scored.jsonl, row 0, field candidates[0].score: is missing; there are text",
        ),
        (
            ["scored.jsonl", "--out", "p.jsonl", *MAKE, "--min_gap", "99"],
            "CP209 scored.jsonl gives",
        ),
        (["scored.jsonl", "--out", "p.jsonl", *MAKE, "--split", "dev"], "CP211 there is no split"),
        (["cut.jsonl", "--out", "p.jsonl", *MAKE], "CP210 cut.jsonl, line 1: not JSON"),
    ],
)
def test_what_is_wrong_is_one_coded_line_and_nothing_is_written(
    bench: Path, command: Command, words: list[str], start: str
) -> None:
    (bench / "folder.jsonl").mkdir()
    (bench / "cut.jsonl").write_bytes((bench / "scored.jsonl").read_bytes()[:40])
    before = {name: (bench / name).stat().st_mtime_ns for name in tree(bench)}
    said = command("pairs", *words)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith(f"counterpoint: {start}")
    assert {name: (bench / name).stat().st_mtime_ns for name in tree(bench)} == before


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.parquet"])
def test_a_write_that_fails_leaves_the_file_that_was_there(
    bench: Path, command: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (bench / name).write_text("precious")
    before = tree(bench)

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staged.os, "fsync", full)
    said = command("pairs", "scored.jsonl", "--out", name, *MAKE, "--overwrite")
    assert (said.code, "No space left on device" in said.err) == (1, True)
    assert ((bench / name).read_text(), tree(bench)) == ("precious", before)
    monkeypatch.undo()
    monkeypatch.chdir(bench)
    assert command("pairs", "scored.jsonl", "--out", name, *MAKE, "--overwrite").code == 0
    assert len(load(name)) == 8


def test_parquet_refuses_a_column_of_two_types(bench: Path, command: Command) -> None:
    rows = [{**row, "kept": "x" if row["id"] > 4 else [1]} for row in SCORED]
    write_pairs(bench / "scored.jsonl", rows)
    before = tree(bench)
    said = command("pairs", "scored.jsonl", "--out", "p.parquet", *MAKE, "--keep", "kept")
    assert said.err.startswith("counterpoint: CP202 Parquet takes values of one type a column: ")
    assert tree(bench) == before
    assert command("pairs", "scored.jsonl", "--out", "p.jsonl", *MAKE, "--keep", "kept").code == 0


def test_half_a_character_in_a_kept_column_is_written_as_json_spells_it(
    bench: Path, command: Command
) -> None:
    write_pairs(bench / "scored.jsonl", [{**row, "kept": "\ud83d"} for row in SCORED])
    assert command("pairs", "scored.jsonl", "--out", "p.jsonl", *MAKE, "--keep", "kept").code == 0
    assert read("p.jsonl")[0]["kept"] == "\ud83d"


def test_folders_that_are_missing_are_made_for_the_file(bench: Path, command: Command) -> None:
    assert command("pairs", "scored.jsonl", "--out", "new/deep/p.parquet", *MAKE).code == 0
    assert pyarrow.parquet.read_table("new/deep/p.parquet").num_rows == 8
    assert tree(bench / "new") == ["deep", "deep/p.parquet"]


# Each option with a value that differs from its default, and what it needs beside it.
CHANGES: dict[str, list[str]] = {
    "out": ["--out", "other.jsonl"],
    "overwrite": ["--overwrite"],
    "human": ["--human", "choices.txt"],
    "split": ["--split", "dev"],
    "json": ["--json"],
    "select": ["--select", "all"],
    "min_gap": ["--min_gap", "7.9"],
    "lower_is_better": ["--lower_is_better"],
    "preferred": ["--preferred", "mark"],
    "reference": ["--reference", "source"],
    "reference_score": ["--reference", "source", "--reference_score", "id"],
    "per_prompt": ["--select", "all", "--per_prompt", "1"],
    "seed": ["--select", "best_random", "--seed", "2"],
    "average_same_text": ["--average_same_text"],
    "candidates": ["--candidates", "more"],
    "text": ["--text", "other"],
    "score": ["--score", "grade"],
    "prompt": ["--prompt", "source"],
    "prompt_template": ["--prompt_template", "{id}"],
    "group": ["--group", "id"],
    "completion_prefix": ["--completion_prefix", " "],
    "margin_scale": ["--margin_scale", "0.5"],
    "keep": ["--keep", "id", "source"],
    "invalid_rows": ["--invalid_rows", "drop"],
}


def test_every_option_changes_what_is_written_or_said_or_is_refused(
    bench: Path, command: Command
) -> None:
    assert list(CHANGES) == list(declared(PairsOptions, PairRules))
    listed = [
        {"text": text, "other": text.upper(), "score": score, "grade": -score, "mark": mark}
        for text, score, mark in (("a", 9, 0), ("b", 5, 1), ("a", 1.5, 0), ("c", 1.2, 0))
    ]
    rows = [
        {"id": n, "prompt": f"p{n}", "source": f"s{n}", "candidates": listed, "more": listed[1:]}
        for n in range(8)
    ]
    (bench / "choices.txt").write_text('{"prompt": "p1", "text": "c"}')
    rows.append({**rows[0], "candidates": [{**listed[0], "score": 5, "grade": 2}, *listed[1:]]})
    write_pairs(bench / "scored.jsonl", [*rows, {**rows[0], "prompt": 3}])

    def outcome(*words: str) -> tuple[Any, ...]:
        for path in bench.glob("*.jsonl"):
            if path.name != "scored.jsonl":
                path.unlink()
        (bench / "taken.jsonl").write_text("taken")
        said = command("pairs", "scored.jsonl", *words)
        written = {p.name: p.read_text() for p in bench.glob("*.jsonl") if p.name[0] != "s"}
        return said, written

    for name, words in CHANGES.items():
        shared = ["--out", "taken.jsonl" if name == "overwrite" else "p.jsonl"]
        if name not in ("invalid_rows",):
            shared += ["--invalid_rows", "drop"]
        beside = (["--select", "all"], ["--select", "best_random"], ["--reference", "source"])
        if words[:2] in beside and len(words) > 2:
            shared, words = [*shared, *words[:2]], words[2:]
        assert outcome(*shared, *words) != outcome(*shared), name


def test_the_help_names_every_option_once_and_keeps_to_the_width(command: Command) -> None:
    said = command("pairs", "--help")
    assert (said.code, said.err) == (0, "")
    text = COMMAND.help(width=72)
    for name in declared(PairsOptions, PairRules):
        assert text.count(f"\n  --{name}  (") == 1
    assert max(map(len, text.splitlines())) <= 80


def test_help_and_mistakes_in_flags_import_no_torch(tmp_path: Path) -> None:
    for words, code in ((["--help"], 0), (["x.jsonl", "--out"], 2), (["--keeps"], 2)):
        program = (
            "import sys; from counterpoint.cli.main import main; "
            f"code = main(['pairs', *{words!r}]); "
            "slow = [m for m in ('torch', 'transformers', 'datasets') if m in sys.modules]; "
            "print(code, slow)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == f"{code} []"


# The real file, in a process of its own: at full speed, without the tests' checks of shapes


def ted(folder: Path, out: Path, *words: str) -> dict[str, Any]:
    """The summary of making pairs of the scored translations."""
    rules = ["--score", "mqm", "--lower_is_better", "--prompt_template", "{source}"]
    command = [sys.executable, "-m", "counterpoint", "pairs", str(folder / TED), *rules]
    done = subprocess.run(
        [*command, "--out", str(out), "--select", "all", "--json", *words],
        capture_output=True,
        text=True,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize(
    ("gap", "unequal", "same_text", "usable"),
    [("0", 33_251, 2_260, 30_991), ("5", 19_303, 1_244, 18_059)],
)
def test_the_known_counts_of_scored_translations_come_out(
    real_data: Path, tmp_path: Path, gap: str, unequal: int, same_text: int, usable: int
) -> None:
    out = tmp_path / "pairs.jsonl.gz"
    told = ted(real_data, out, "--min_gap", gap)
    fates = told["candidate_pairs"]
    assert (fates["same_text"], fates["usable"], told["pairs"]) == (same_text, usable, usable)
    assert fates["same_text"] + fates["usable"] == unequal
    assert sum(fates.values()) == 529 * 15 * 14 // 2
    with gzip.open(out, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == usable
    assert all(row["rejected_score"] - row["chosen_score"] == row["score_gap"] for row in rows)
    assert min(row["score_gap"] for row in rows) >= float(gap)
    assert all(row["chosen"] != row["rejected"] for row in rows)


def test_averaging_leaves_no_real_pair_repeated_or_contradicted(
    real_data: Path, tmp_path: Path
) -> None:
    told = ted(real_data, tmp_path / "p.jsonl", "--average_same_text", "--keep", "id")
    with gzip.open(real_data / TED, "rt", encoding="utf-8") as lines:
        segments = [json.loads(line) for line in lines]
    texts = sum(len({one["text"] for one in row["candidates"]}) for row in segments)
    assert told["candidates"] - told["averaged"] == texts
    assert (told["repeated"], told["contradicted"]) == (0, 0)
    made = {(row["id"], row["chosen"], row["rejected"]) for row in read(str(tmp_path / "p.jsonl"))}
    assert len(made) == told["pairs"]
    assert not any((row, rejected, chosen) in made for row, chosen, rejected in made)
