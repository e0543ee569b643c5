"""The same rows are the same pairs, whichever package's types they are written in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from counterpoint.config import CPOConfig
from counterpoint.data.formats import to_preference_row, to_prompt
from counterpoint.data.options import PrepareOptions
from counterpoint.data.plain import plain
from counterpoint.data.prepare import iter_pairs, prepare
from counterpoint.data.scored import pairs_from_scored
from counterpoint.data.sources import dataset_from_rows
from counterpoint.doctor.survey import survey
from counterpoint.errors import DataError
from counterpoint.records import TokenPair
from counterpoint.smoke.rows import own_pairs

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": [1, 2], "on": True}}}
ROWS = [
    {
        "prompt": [{"role": "user", "content": f"Say {n}"}],
        "chosen": [{"role": "assistant", "content": "", "tool_calls": [CALL]}],
        "rejected": [{"role": "assistant", "content": "no"}],
        "tools": [TOOL],
        "chat_template_kwargs": {"thinking": True},
        "system": "Be brief.",
        "weight": 0.5,
        "margin": 2.0,
    }
    for n in range(3)
]


def array_of(values: list[Any]) -> np.ndarray:
    """Of objects, which numpy would else try to unfold."""
    made = np.empty(len(values), dtype=object)
    made[:] = [numpy_s(value) for value in values]
    return made


def numpy_s(value: Any) -> Any:
    """A value in numpy's types throughout."""
    if isinstance(value, dict):
        return {np.str_(key): numpy_s(one) for key, one in value.items()}
    if isinstance(value, list):
        return array_of(value)
    kinds: dict[type, Callable[[Any], Any]] = {
        bool: np.bool_,
        str: np.str_,
        int: np.int16,
        float: np.float32,
    }
    return kinds[type(value)](value)


WRITTEN: dict[str, Callable[[], list[dict]]] = {
    "in Python's types": lambda: ROWS,
    "in numpy's types": lambda: [numpy_s(row) for row in ROWS],
    "as tuples": lambda: [{**row, "prompt": tuple(row["prompt"])} for row in ROWS],
    "with arrays of no dimension": lambda: [
        {**row, "weight": np.array(0.5), "system": np.array("Be brief.")} for row in ROWS
    ],
    "with tensors": lambda: [{**row, "weight": torch.tensor(0.5)} for row in ROWS],
    "with decimals": lambda: [{**row, "weight": Decimal("0.5")} for row in ROWS],
    "with a long double": lambda: [{**row, "margin": np.longdouble(2)} for row in ROWS],
    "with pandas' nulls": lambda: [
        {**row, "conversations": pd.NA, "messages": pd.NaT, "instruction": float("nan")}
        for row in ROWS
    ],
}


def stream(rows: list[dict]) -> IterableDataset:
    return IterableDataset.from_generator(_yield, gen_kwargs={"rows": rows})


def _yield(rows: list[dict]) -> Iterator[dict]:
    yield from rows


SETS: dict[str, Callable[[list[dict]], Any]] = {
    "a list": list,
    "an iterator": iter,
    "a stream": stream,
    "a stream of two shards": lambda rows: IterableDataset.from_generator(
        _yield_shards, gen_kwargs={"shards": [rows[:1], rows[1:]]}
    ),
    "a Dataset": dataset_from_rows,
    "a Dataset of a transform": lambda rows: Dataset.from_dict(
        {"n": range(len(rows))}
    ).with_transform(lambda batch: columns_of([rows[n] for n in batch["n"]])),
    "a table of pandas": lambda rows: pd.DataFrame(rows).to_dict("records"),
}


def _yield_shards(shards: list[list[dict]]) -> Iterator[dict]:
    for rows in shards:
        yield from rows


def columns_of(rows: list[dict]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def pairs(data: Any, tokenizer: PreTrainedTokenizerFast) -> list[TokenPair]:
    return list(iter_pairs(prepare(data, tokenizer)))


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("kind", SETS)
def test_every_set_of_rows_in_any_types_gives_the_same_pairs(
    chatml_tokenizer: PreTrainedTokenizerFast, kind: str, written: str
) -> None:
    found = pairs(SETS[kind](WRITTEN[written]()), chatml_tokenizer)
    assert found == pairs(ROWS, chatml_tokenizer)
    assert [pair.weight for pair in found] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("form", ["numpy", "torch", "pandas", "arrow"])
def test_no_format_of_a_set_changes_its_rows(
    chatml_tokenizer: PreTrainedTokenizerFast, form: str
) -> None:
    data = dataset_from_rows(ROWS)
    args = CPOConfig(output_dir="unused", report_to=[])
    for each in (data.with_format(form), data.to_iterable_dataset().with_format(form)):
        assert pairs(each, chatml_tokenizer) == pairs(ROWS, chatml_tokenizer)
        assert survey(each, None, PrepareOptions(), name="train").usable == 3
        assert [pair.weight for pair in own_pairs(each, chatml_tokenizer, args, 3)] == [0.5] * 3


@pytest.mark.parametrize("written", WRITTEN)
def test_a_row_alone_is_read_as_in_a_set(written: str) -> None:
    for number, row in enumerate(WRITTEN[written]()):
        read = to_preference_row(row, number)
        assert read == to_preference_row(ROWS[number], number)
        assert to_prompt(row, number).prompt == read.prompt
        json.dumps([read.chosen, read.tools, read.template_kwargs])  # nothing of numpy is left


def test_scores_and_candidates_may_be_numpy_s() -> None:
    row = {"prompt": "2 + 2 =", "responses": [" 4", " 5"], "score": [1.0, 0.5]}
    made = pairs_from_scored([row]).pairs
    assert pairs_from_scored([numpy_s(row)]).pairs == made
    assert [pair["chosen"] for pair in made] == [" 4"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-100, 100) | st.just(0.5) | st.text(max_size=2),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=1), inner),
        max_leaves=8,
    )
)
def test_what_is_plain_stays_as_it_is(value: Any) -> None:
    assert plain(value) == value


def test_what_is_no_value_is_refused_where_it_stands() -> None:
    with pytest.raises(DataError, match=r"CP202 row 1, field chosen: is of type Fraction"):
        to_preference_row({"prompt": "a", "chosen": Fraction(1, 2), "rejected": "b"}, 1)
