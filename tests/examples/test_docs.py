"""What the pages of docs/ show is what the code does: rows, cuts, formulas, measurements."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from counterpoint import PairRules, pairs_from_scored
from counterpoint.cli.main import main
from counterpoint.data.encoder import TextEncoder
from counterpoint.data.formats import to_preference_row
from counterpoint.data.options import Limits
from counterpoint.data.pictures import PictureRules
from counterpoint.data.row_tokens import tokens_of_row
from counterpoint.data.several import apart
from counterpoint.data.token_view import draw_tokens
from counterpoint.data.truncate import truncate
from counterpoint.losses.objective import Objective
from counterpoint.objectives import LOSSES
from tests.vision_on_the_spot import encoded

ROOT = Path(__file__).parents[2]
DATA, OBJECTIVES, FROM_TRL = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("data", "objectives", "from-trl")
)


def blocks(page: str, kind: str) -> list[str]:
    # of every kind, or the end of one block would be taken for the beginning of another
    every = re.findall(r"^```([^\n]*)\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    return [text for name, text in every if name == kind]


ROWS = [line for block in blocks(DATA, "json") for line in block.splitlines()]


@pytest.mark.parametrize("line", ROWS)
def test_every_row_shown_is_a_pair(line: str, tmp_path: Path):
    raw = json.loads(line)
    shown = [*raw.get("images", []), *([raw["image"]] if "image" in raw else [])]
    for name in shown:
        (tmp_path / name).write_bytes(encoded(0))
    rules = PictureRules(folder=str(tmp_path)) if shown else None
    for one in apart(raw, 0):
        row = to_preference_row(one, 0, rules)
        assert row.prompt != ""
        assert row.chosen != row.rejected
        assert len(row.pictures) == len(shown)


def test_the_scored_rows_shown_are_one_preference_in_three_shapes():
    nested, beside, *flat = map(json.loads, blocks(DATA, "jsonl")[0].splitlines())
    for rows in ([nested], [beside], flat):
        pair = pairs_from_scored(rows).pairs[0]
        assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("2 + 2 =", " 4", " 5")


def test_the_account_of_scored_translations_is_what_the_builder_says(real_data: Path):
    rules = PairRules(
        score="mqm", lower_is_better=True, prompt_template="{source}", select="all", min_gap=5.0
    )
    name = "ted-mqm-zhen-scored.jsonl.gz"
    with gzip.open(real_data / name, "rt", encoding="utf-8") as lines:
        made = pairs_from_scored(map(json.loads, lines), rules, name=name)
    assert made.counts.summary() in blocks(DATA, "text")


def test_the_tokens_shown_are_what_the_command_draws(gpt2_tokenizer: PreTrainedTokenizerFast):
    raw = {"prompt": "What is 2 and 2?", "chosen": " It is 4.", "rejected": " 2, I am."}
    limits = Limits(max_completion_length=3)
    tokens = tokens_of_row(raw, 1, TextEncoder(gpt2_tokenizer), limits)
    assert draw_tokens(tokens, name="pairs.jsonl") in blocks(DATA, "text")


def test_the_worked_cuts_are_what_truncation_does():
    shown = dict(re.findall(r"^\| `(\w+)`[^|]* \| (.*) \|$", DATA.split("## Too long")[1], re.M))
    limits = [(9, None), (9, 2), (4, None)]
    for policy in ("completion_end", "prompt_start", "prompt_end", "drop"):
        for cell, (length, completion) in zip(shown[policy].split(" | "), limits, strict=True):
            made = truncate(
                *(list(map(ord, part)) for part in ("BPQRST", "abcde", "xyz")),
                max_length=length,
                max_completion_length=completion,
                policy=policy,
                keep_first=True,
            )
            parts = ("".join(map(chr, part)) for part in (made.prompt, made.chosen, made.rejected))
            expected = ", ".join(f"`{part}`" for part in parts)
            assert made.fits == cell.startswith("`"), (policy, length)
            assert cell == expected or not made.fits, (policy, length)


def test_the_formulas_shown_are_those_that_are_printed():
    simpo = Objective(loss_type="simpo", beta=2.5, gamma=0.55 * 2.5, cpo_alpha=0.0)
    assert blocks(OBJECTIVES, "") == [simpo.formula(), Objective().formula()]


def test_the_file_shown_is_translated_with_the_words_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("simpo.yaml").write_text(blocks(FROM_TRL, "yaml")[0], encoding="utf-8")
    shown = next(block for block in blocks(FROM_TRL, "") if block.startswith("$ counterpoint init"))
    command, said = shown.split("\n", 1)
    assert main(command.split()[2:]) == 0
    assert capfd.readouterr().err == f"{said}\n"


def test_the_table_of_differences_holds_what_was_measured():
    results = ROOT / "benchmarks" / "results" / "differences.json"
    findings = json.loads(results.read_text(encoding="utf-8"))["findings"]
    rows = re.findall(r"^\| (.*) \| (.*) \| (.*) \| `(\w+)` \|$", FROM_TRL, re.M)
    shown = {name: (what, trl, ours) for what, trl, ours, name in rows}
    measured = {
        name: tuple(found[key].replace("|", "\\|") for key in ("what", "trl", "ours"))
        for name, found in findings.items()
    }
    assert shown == measured, "run python benchmarks/differences.py --docs"


def test_the_table_of_losses_is_the_table_of_the_code():
    table = OBJECTIVES.split("## The losses")[1].split("\n\n")[1]
    rows = [[cell.strip() for cell in re.split(r" \| ", line)] for line in table.splitlines()[2:]]
    assert [re.findall(r"`(\w+)`", row[0])[0] for row in rows] == list(LOSSES)
    for (_, reads, _, options, paper), loss in zip(rows, LOSSES.values(), strict=True):
        assert loss.paper is not None
        assert f"[{loss.paper.arxiv}](https://arxiv.org/abs/{loss.paper.arxiv})" in paper
        assert ("bar s" in reads) == loss.per_token
        named = set(re.findall(r"`(\w+)`", options.split("; sets")[0]))
        # alpha and nll_reduction have paragraphs of their own
        assert named - {"alpha"} == set(loss.options) - {"alpha", "nll_reduction"} - (
            {"gamma_beta_ratio"} if "gamma_beta_ratio" not in options else set()
        )
