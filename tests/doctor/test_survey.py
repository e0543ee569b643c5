"""One pass over any rows: nothing stops it, and what it counts is so."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from counterpoint.config import CPOConfig
from counterpoint.data.formats import COLUMNS
from counterpoint.data.options import PrepareOptions
from counterpoint.data.pictures import PATHS
from counterpoint.doctor import examine
from counterpoint.doctor.of_data import of_data
from counterpoint.doctor.survey import survey

TEXTS = ["", " ", "a", "Hi there", "\ud800", "\x00", "[", '{"role": "user"}', "Human: x", "国会"]
TEXTS += ["\n\nHuman: a\n\nAssistant: b", "<|im_start|>", "</s>", "a" * 3000, "é", "\u202e", "null"]
SCALARS: list[Any] = [
    None,
    0,
    1,
    -1,
    2**70,
    1.5,
    float("nan"),
    float("inf"),
    True,
    b"x",
    (),
    object,
]
KEYS = ["role", "content", "from", "value", "tool_calls", "text", "type", "", "loss"]


def junk(rng: random.Random, depth: int = 3) -> Any:
    """Anything that JSON can hold, and some things that it cannot."""
    kind = rng.randrange(6 if depth else 3)
    if kind < 2:
        return rng.choice(TEXTS)
    if kind == 2:
        return rng.choice(SCALARS)
    if kind == 3:
        return [junk(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 4:
        return {rng.choice(KEYS): junk(rng, depth - 1) for _ in range(rng.randrange(4))}
    role = rng.choice(["user", "assistant", "system", "tool", "", None, 3])
    return [{"role": role, "content": junk(rng, depth - 1)} for _ in range(rng.randrange(3))]


def malformed(rng: random.Random) -> Any:
    """A row, or what stands where one should be."""
    if rng.random() < 0.05:
        return junk(rng)
    # paths of pictures are refused as pictures are, and would leave little else to be found
    some = [name for name in COLUMNS if name not in PATHS]
    names = rng.sample(some, rng.randrange(len(some)))
    if rng.random() < 0.8:
        names += ["prompt", "chosen", "rejected"]
    row = {name: junk(rng) for name in names}
    if rng.random() < 0.2:
        row.update({name: rng.choice(TEXTS) for name in ("prompt", "chosen", "rejected")})
    return row


@pytest.mark.slow
def test_ten_thousand_malformed_rows_are_counted_and_none_stops_the_pass(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rng = random.Random(4)
    rows = [malformed(rng) for _ in range(10_000)]
    found = survey(rows, chatml_tokenizer, PrepareOptions(), name="junk")
    assert found.bugs.example == ""
    assert found.rows == 10_000
    assert sum(seen.count for seen in found.problems.values()) + found.texts == 10_000
    assert {"CP201", "CP202", "CP203", "CP205", "CP206", "CP207", "CP212"} <= set(found.problems)
    assert found.texts > 100
    args = CPOConfig(output_dir="out", use_cpu=True)
    assert "CW901" not in {finding.code for finding in of_data(found, args)}


@pytest.mark.slow
def test_malformed_rows_do_not_stop_the_tokenizing_of_the_others(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rng = random.Random(5)
    rows = [row for row in (malformed(rng) for _ in range(2000)) if isinstance(row, dict)]
    # a column that only some rows have is null in the others, which no weight may be
    rows = [{name: row.get(name, "") for name in GOOD[0]} for row in rows]
    plain = [row for row in rows if _is_json(row)]
    assert len(plain) > 500
    args = CPOConfig(output_dir="out", use_cpu=True, invalid_rows="drop")
    report = examine(args, tokenizer=chatml_tokenizer, train_dataset=[*plain, *GOOD])
    codes = {finding.code for finding in report.findings}
    assert "CW901" not in codes
    assert {"CP202", "CN201", "CN202"} <= codes


def _is_json(value: Any) -> bool:
    """Whether a data set can hold it."""
    import json

    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return False
    return str(2**70) not in str(value)


@given(rows=st.lists(st.integers(0, 2**32).map(lambda n: malformed(random.Random(n))), max_size=9))
@settings(max_examples=150)
def test_no_data_set_of_malformed_rows_makes_a_check_fail(rows: list[Any]) -> None:
    report = examine(CPOConfig(output_dir="out", use_cpu=True), train_dataset=rows)
    assert "CW901" not in {finding.code for finding in report.findings}
    assert report.exit_code >= (1 if rows else 2)


def test_a_row_that_no_table_can_hold_does_not_hide_the_others() -> None:
    rows = [{"prompt": object, "chosen": "a", "rejected": "b"}, *GOOD, {**GOOD[0], "chosen": ""}]
    report = examine(CPOConfig(output_dir="out", use_cpu=True), train_dataset=rows)
    errors = [(finding.code, finding.rows) for finding in report.of_severity("error")]
    assert errors == [("CP202", ()), ("CP202", (0,)), ("CP203", (31,))]


@pytest.mark.parametrize("with_model", [False, True])
def test_a_set_whose_every_row_the_tokenizer_refuses_is_refused(
    with_model: bool, models: Any, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"prompt": "too long " * 99, "chosen": " a", "rejected": " b"}]
    args = CPOConfig(output_dir="unused", max_length=8, use_cpu=True)
    model = models("qwen2") if with_model else None
    found = examine(args, model=model, tokenizer=chatml_tokenizer, train_dataset=rows).findings
    assert {"CP204", "CP209"} <= {one.code for one in found}
    assert "CW901" not in {one.code for one in found}


def test_splits_without_a_training_set_are_a_finding() -> None:
    import datasets

    splits = datasets.DatasetDict(
        {name: datasets.Dataset.from_list(GOOD) for name in ("left", "right")}
    )
    report = examine(CPOConfig(output_dir="out", use_cpu=True), train_dataset=splits)
    assert [finding.code for finding in report.of_severity("error")] == ["CP211"]


GOOD = [
    {"prompt": f"question {n}?", "chosen": f"answer {n}", "rejected": f"no {n}"} for n in range(30)
]


def test_the_digest_is_of_content_and_order() -> None:
    def digest(rows: list[dict[str, Any]]) -> str:
        return survey(rows, None, PrepareOptions(), name="train").digest

    assert digest(GOOD) == digest([dict(row, ignored=1) for row in GOOD])
    assert digest(GOOD) != digest(GOOD[::-1])
    assert digest(GOOD) != digest([{**GOOD[0], "chosen": "answer 0 "}, *GOOD[1:]])
    assert digest(GOOD) != digest([{**GOOD[0], "weight": 2.0}, *GOOD[1:]])


def test_progress_is_told_from_none_to_all() -> None:
    told: list[tuple[str, int, int | None]] = []
    rows = [{**GOOD[0], "prompt": f"{n}?"} for n in range(2500)]
    survey(rows, None, PrepareOptions(), name="train", progress=lambda *facts: told.append(facts))
    assert told == [("train", n, 2500) for n in (0, 1000, 2000, 2500)]


def test_what_is_streamed_is_found_as_what_is_not() -> None:
    import datasets

    eager = datasets.Dataset.from_list(GOOD)
    one = survey(eager, None, PrepareOptions(), name="train")
    other = survey(eager.to_iterable_dataset(), None, PrepareOptions(), name="train")
    assert (one.digest, one.rows, one.whole) == (other.digest, other.rows, other.whole)


def test_the_trainer_finds_what_the_doctor_prepared(
    chatml_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    import copy

    import datasets

    from counterpoint.data import prepare as room

    tokenizer = copy.deepcopy(chatml_tokenizer)
    tokenizer.pad_token = None
    rows = datasets.Dataset.from_list(GOOD)
    survey(rows, tokenizer, PrepareOptions(), name="train")
    tokenizer.pad_token = tokenizer.eos_token  # as the trainer does

    def refuse(*facts: Any) -> Any:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(room, "_map", refuse)
    assert len(room.prepare(rows, tokenizer, PrepareOptions()).pairs) == len(GOOD)


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_quantized_model_is_examined_by_its_parts(
    spoilt: bool, models: Any, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    model = models("qwen2")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    if spoilt:
        model.model.layers[0].mlp.up_proj.weight.scale.view(-1)[0] = float("nan")
    args = CPOConfig(output_dir="unused", use_cpu=True)
    report = examine(args, model=model, tokenizer=chatml_tokenizer, train_dataset=GOOD)
    found = {one.code: one.seen for one in report.findings}
    assert "CW901" not in found
    assert ("up_proj" in found.get("CP308", "")) is spoilt
