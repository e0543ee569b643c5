"""Both layouts name the same targets, in the same order, from the right tokens."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.errors import ModelError
from counterpoint.forward.layouts import LAYOUTS, PADDED, SHARED, Layout
from counterpoint.pair_segments import PairSegments
from counterpoint.records import PairBatch, TokenPair

PAIRS = [
    TokenPair([5, 6], [7, 8, 9], [10], row=3, weight=0.5, margin=0.1),
    TokenPair([5], [6], [7, 8], 4),
]


def test_padded_rows_are_chosen_then_rejected_each_with_its_prompt():
    batch = PADDED.collate(PAIRS)
    assert batch.input_ids.tolist() == [
        [5, 6, 7, 8, 9],
        [5, 6, 0, 0, 0],
        [5, 6, 10, 0, 0],
        [5, 7, 8, 0, 0],
    ]
    assert batch.attention_mask.sum(1).tolist() == [5, 2, 3, 3]
    assert batch.target_ids.tolist() == [7, 8, 9, 6, 10, 7, 8]
    assert batch.target_source.tolist() == [1, 2, 3, 5, 11, 15, 16]
    assert batch.target_counts.tolist() == [3, 1, 1, 2]


def test_a_shared_row_holds_each_prompt_once_and_names_its_end_twice():
    batch = SHARED.collate(PAIRS)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 5, 6, 7, 8]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 2, 0, 1, 1, 2]]
    assert batch.target_source.tolist() == [1, 2, 3, 6, 1, 6, 8]
    assert batch.segments == (PairSegments(0, 0, 2, (3, 1)), PairSegments(0, 6, 1, (1, 2)))


def pairs_for(layout: Layout) -> list[TokenPair]:
    """The pairs, with what a decoder begins with where there is an encoder."""
    return [replace(pair, start=[63]) for pair in PAIRS] if layout.encoded else PAIRS


def computed(batch: PairBatch) -> int:
    """Tokens of the rows, and of the sources beside them."""
    sources = batch.inputs.get("input_ids")
    return batch.input_ids.numel() + (0 if sources is None else sources.numel())


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_what_a_batch_costs_is_what_its_pairs_were_said_to_cost(layout):
    pairs = pairs_for(layout)
    lengths = np.array([[len(p.prompt), len(p.chosen), len(p.rejected)] for p in pairs])
    for number, pair in enumerate(pairs):
        alone = layout.collate([pair])
        assert alone.cost == computed(alone) == layout.tokens_alone(lengths)[number]
    batch = layout.collate(pairs)
    assert batch.cost == computed(batch) == layout.tokens(pairs)
    assert batch.pairs == tuple(pairs)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_place_of_a_batch_knows_its_pair_and_part(layout):
    pairs = pairs_for(layout)
    batch = layout.collate(pairs)
    for row, ids in enumerate(batch.input_ids.tolist()):
        for position, token in enumerate(ids):
            number, part, place = layout.part_at(batch, row, position)
            known = [] if part == "padding" else getattr(pairs[number], part)
            assert (part == "padding") == (not batch.attention_mask[row, position])
            assert part == "padding" or known[place] == token


def test_weight_margin_and_row_travel_along():
    for batch in (PADDED.collate(PAIRS), SHARED.collate(PAIRS)):
        assert batch.weight.tolist() == [0.5, 1.0]
        assert batch.margin.tolist() == [0.1, 0.0]
        assert batch.row_ids.tolist() == [3, 4]
        assert batch.weight.dtype == torch.float64


def tokens_once(pairs: list[TokenPair]) -> int:
    """Tokens of each prompt, and of the different completions that neighbours have of it."""
    total = 0
    for prompt, group in groupby(pairs, key=lambda pair: tuple(pair.prompt)):
        asked = list(group)
        for some in [asked] if prompt else [[pair] for pair in asked]:
            sides = [{tuple(p.chosen) for p in some}, {tuple(p.rejected) for p in some}]
            total += len(prompt) + sum(len(one) for side in sides for one in side)
    return total


# of few ids, so that prompts and completions are often alike
ids = st.lists(st.integers(1, 50), min_size=1, max_size=9) | st.lists(
    st.integers(1, 2), min_size=1, max_size=2
)


@given(st.lists(st.tuples(st.just([]) | ids, ids, ids), min_size=1, max_size=5))
def test_layouts_agree_on_targets_and_on_what_predicts_them(parts):
    pairs = [
        TokenPair(
            prompt, chosen if prompt else [1, *chosen], rejected if prompt else [1, *rejected], n
        )
        for n, (prompt, chosen, rejected) in enumerate(parts)
    ]
    padded, shared = PADDED.collate(pairs), SHARED.collate(pairs)
    assert padded.target_ids.tolist() == shared.target_ids.tolist()
    assert padded.target_counts.tolist() == shared.target_counts.tolist()
    predictors = [b.input_ids.flatten()[b.target_source].tolist() for b in (padded, shared)]
    assert predictors[0] == predictors[1]
    assert shared.input_ids.numel() == tokens_once(pairs)


@pytest.mark.parametrize(
    "collate",
    [
        lambda p, v: PADDED.collate(p, pad_id=0, vocab_size=v),
        lambda p, v: SHARED.collate(p, vocab_size=v),
    ],
)
def test_an_id_beyond_the_embedding_names_its_row(collate):
    collate(PAIRS, 11)
    with pytest.raises(ModelError, match="CP303 row 3 has token id 10"):
        collate(PAIRS, 10)
