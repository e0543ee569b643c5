"""What is known of three published files, found by the doctor; and nothing that is not so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from counterpoint.config import CPOConfig
from counterpoint.data.sources import load
from counterpoint.doctor import examine
from counterpoint.doctor.findings import Finding, Report

TRANSCRIPTS = "hh-rlhf-harmless-base-test.jsonl.gz"
CONVERSATIONS = "llamafactory-dpo-zh-demo.json.gz"
TRANSLATIONS = "ted-mqm-zhen-scored.jsonl.gz"


def report(file: Path, tokenizer: PreTrainedTokenizerFast | None, folder: Path) -> Report:
    """The doctor's on a file; no pair of it is longer than the limit."""
    args = CPOConfig(output_dir=str(folder / "out"), use_cpu=True, max_length=100_000)
    return examine(args, tokenizer=tokenizer, train_dataset=load(file))


def of(code: str, found: Report) -> Finding:
    """The only finding of a code."""
    (finding,) = [finding for finding in found.findings if finding.code == code]
    return finding


def count(finding: Finding) -> int:
    """In how many rows it was seen."""
    match = re.search(r": ([\d,]+) of [\d,]+ rows", finding.seen)
    assert match, finding.seen
    return int(match[1].replace(",", ""))


def errors(found: Report) -> list[str]:
    """Codes of its errors."""
    return [finding.code for finding in found.of_severity("error")]


@pytest.mark.slow
def test_transcripts(
    real_data: Path, chatml_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    found = report(real_data / TRANSCRIPTS, chatml_tokenizer, tmp_path)
    assert errors(found) == ["CP203", "CP206"]
    assert count(of("CP203", found)) == 4
    assert count(of("CP206", found)) == 5
    assert of("CN201", found).seen.startswith("train: 2,303 of 2,312 rows are pairs")
    # 4 of the 5 completions that begin the other one are the empty ones; 2 prompts come again:
    # neither is worth a warning, nor is a length that wins in 44.3 %
    assert "too few for a warning: 2 x CW203, 1 x CW206" in of("CN201", found).seen
    assert "chosen is longer in 44.3% " in of("CN202", found).seen
    quiet = {"CW202", "CW203", "CW206", "CW211"}
    assert quiet.isdisjoint(finding.code for finding in found.findings)


@pytest.mark.slow
def test_conversations(
    real_data: Path, chatml_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    found = report(real_data / CONVERSATIONS, chatml_tokenizer, tmp_path)
    assert errors(found) == []
    assert count(of("CW202", found)) == 11
    assert "11 x CW203, 1 x CW206" in of("CN201", found).seen
    assert "chosen is longer in 62.0% " in of("CW211", found).seen
    assert of("CN201", found).seen.startswith("train: 300 of 300 rows are pairs")


def test_scored_candidates_are_no_pairs_yet(real_data: Path, tmp_path: Path) -> None:
    found = report(real_data / TRANSLATIONS, None, tmp_path)
    assert errors(found) == ["CP201"]
    assert "Turn each row's candidates into pairs first" in (of("CP201", found).seen)


@pytest.mark.parametrize(
    ("name", "prompts", "duplicates", "prefixes", "longer"),
    [(TRANSCRIPTS, 2, 0, 5, 0.443), (CONVERSATIONS, 11, 11, 1, 0.620)],
)
def test_the_counts_are_those_that_are_known(
    real_data: Path, name: str, prompts: int, duplicates: int, prefixes: int, longer: float
) -> None:
    import numpy as np

    from counterpoint.data.options import PrepareOptions
    from counterpoint.doctor.lengths import length_bias
    from counterpoint.doctor.survey import survey

    found = survey(load(real_data / name), None, PrepareOptions(), name="train")
    assert len(found.consistency.prompts) == prompts
    assert len(found.consistency.duplicates) == duplicates
    assert found.consistency.contradictions == []
    # an empty completion begins every other
    assert found.seen["CW206"].count + found.problems["CP203"].count == prefixes
    chosen, rejected = np.array(found.characters).T
    assert length_bias(chosen, rejected).longer == pytest.approx(longer, abs=5e-4)
