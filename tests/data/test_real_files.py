"""The facts known of three real files hold after reading them; the files are kept elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from counterpoint.data.formats import to_preference_row
from counterpoint.data.options import PrepareOptions
from counterpoint.data.prepare import iter_pairs, prepare
from counterpoint.data.sources import load
from counterpoint.errors import DataError
from counterpoint.preference_row import PreferenceRow

HH = "hh-rlhf-harmless-base-test.jsonl.gz"
ZH = "llamafactory-dpo-zh-demo.json.gz"
TED = "ted-mqm-zhen-scored.jsonl.gz"
ANY_LENGTH = PrepareOptions(max_length=100_000, invalid_rows="drop")


def read(data: Any) -> tuple[list[PreferenceRow], dict[str, int]]:
    rows, codes = [], {}
    for number, raw in enumerate(data):
        try:
            rows.append(to_preference_row(raw, number))
        except DataError as error:
            codes[error.code] = codes.get(error.code, 0) + 1
    return rows, codes


def test_hh_transcripts_have_the_known_faults_and_lengths(real_data: Path) -> None:
    rows, codes = read(load(real_data / HH))
    assert codes == {"CP203": 4, "CP206": 5}
    assert len(rows) == 2312 - 9
    assert all(str(row.prompt).endswith("\n\nAssistant:") for row in rows)
    longer = sum(len(row.chosen) > len(row.rejected) for row in rows)
    assert longer / len(rows) == pytest.approx(0.443, abs=0.002)
    for part, mean in (("prompt", 486), ("chosen", 168), ("rejected", 211)):
        assert sum(len(getattr(row, part)) for row in rows) / len(rows) == pytest.approx(
            mean, abs=2
        )


def test_the_chinese_sharegpt_file_has_no_fault(
    real_data: Path, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows, codes = read(load(real_data / ZH))
    assert (len(rows), codes) == (300, {})
    longer = sum(len(row.chosen[0]["content"]) > len(row.rejected[0]["content"]) for row in rows)
    assert longer / 300 == pytest.approx(0.62, abs=0.001)
    few = load(real_data / ZH).select(range(20))
    for row, pair in zip(
        rows, iter_pairs(prepare(few, chatml_tokenizer, ANY_LENGTH)), strict=False
    ):
        content = row.chosen[0]["content"]
        assert chatml_tokenizer.decode(pair.chosen) == f"{content}<|im_end|>"
        assert chatml_tokenizer.decode(pair.prompt).endswith("<|im_start|>assistant\n")


def test_scored_translations_say_that_they_need_pairing(
    real_data: Path, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(DataError, match=r"CP201.*candidates.*Turn each row's candidates"):
        prepare(load(real_data / TED), chatml_tokenizer)


def test_best_and_worst_translations_train(
    real_data: Path, gpt2_tokenizer: PreTrainedTokenizerFast
) -> None:
    pairs = []
    for row in load(real_data / TED).select(range(60)):
        ranked = sorted(row["candidates"], key=lambda candidate: candidate["mqm"])
        pairs.append(
            {"prompt": row["source"], "chosen": ranked[0]["text"], "rejected": ranked[-1]["text"]}
        )
    counts = prepare(pairs, gpt2_tokenizer, ANY_LENGTH).counts
    assert set(counts.dropped) == {"CP205"}
    assert counts.kept + counts.dropped["CP205"] == 60


@pytest.mark.parametrize("policy", ["completion_end", "prompt_start", "prompt_end", "drop"])
def test_no_pair_of_hh_exceeds_the_budget_or_is_empty(
    real_data: Path, gpt2_tokenizer: PreTrainedTokenizerFast, policy: str
) -> None:
    options = PrepareOptions(max_length=128, truncation=policy, invalid_rows="drop")
    prepared = prepare(load(real_data / HH).select(range(200)), gpt2_tokenizer, options)
    pairs = list(iter_pairs(prepared))
    assert len(pairs) == prepared.counts.kept > 20
    for pair in pairs:
        assert pair.prompt[0] == gpt2_tokenizer.bos_token_id
        for side in (pair.chosen, pair.rejected):
            assert side
            assert len(pair.prompt) + len(side) <= 128


def test_a_stream_of_hh_gives_the_pairs_of_the_file(
    real_data: Path, gpt2_tokenizer: PreTrainedTokenizerFast
) -> None:
    eager = prepare(load(real_data / HH).select(range(150)), gpt2_tokenizer, ANY_LENGTH)
    lazy = prepare(load(real_data / HH, streaming=True).take(150), gpt2_tokenizer, ANY_LENGTH)
    assert list(iter_pairs(lazy)) == list(iter_pairs(eager))
    assert lazy.counts == eager.counts
