"""Attention over a row of pairs against a dense mask, written out token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.forward.pairwise_attention import attend_to_pairs
from counterpoint.forward.shared_attention import shared_attention
from counterpoint.model_seams import attention_of
from counterpoint.pair_segments import PairSegments


def segments_of(lengths) -> tuple[PairSegments, ...]:
    """Prompts with their completions, one after the other."""
    segments, start = [], 0
    for prompt, *completions in lengths:
        segments.append(PairSegments(0, start, prompt, tuple(completions)))
        start += segments[-1].tokens
    return tuple(segments)


def who_sees_whom(segments, window: int | None) -> torch.Tensor:
    """By its definition: same prompt, no other completion, not later, within the window."""
    tokens = []  # prompt, part, position
    for number, (_, _, prompt, completions) in enumerate(segments):
        tokens += [(number, "prompt", i) for i in range(prompt)]
        for part, length in enumerate(completions):
            tokens += [(number, part, prompt + i) for i in range(length)]
    return torch.tensor(
        [
            [
                pair == its_pair
                and its_part in ("prompt", part)
                and its_position <= position
                and (window is None or position - its_position < window)
                for its_pair, its_part, its_position in tokens
            ]
            for pair, part, position in tokens
        ]
    )


def dense_attention(query, key, value, segments, *, scaling, window, softcap, sinks):
    """Every score of the row, masked; one head after the other."""
    seen = who_sees_whom(segments, window)
    groups = query.shape[1] // key.shape[1]
    heads = []
    for head in range(query.shape[1]):
        scores = query[0, head] @ key[0, head // groups].T
        scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = torch.where(seen, scores.exp(), 0.0)
        total = weights.sum(-1, keepdim=True)
        if sinks is not None:
            total = total + sinks[head].exp()
        heads.append(weights / total @ value[0, head // groups])
    return torch.stack(heads, 1)[None]


def value_and_gradients(attend, inputs, segments, options):
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    sinks = options["sinks"]
    leaves = inputs if sinks is None else [*inputs, sinks.requires_grad_()]
    attended = attend(*inputs, segments, **options)
    weights = torch.arange(1, attended.numel() + 1, dtype=attended.dtype).cos()
    return [attended, *torch.autograd.grad((attended.flatten() * weights).sum(), leaves)]


lengths_of_pairs = st.lists(
    st.builds(
        lambda prompt, sides: (prompt, *sides),
        st.integers(0, 9),
        st.lists(st.integers(1, 9), min_size=2, max_size=5),
    ),
    min_size=1,
    max_size=4,
)
"""Of a prompt and its completions: of one pair, of one with a gold completion, or of several."""


@st.composite
def attentions(draw):
    """Lengths, heads, widths and options; a window is often a length, or one off it."""
    lengths = draw(lengths_of_pairs)
    near = sorted(
        {
            max(1, n + d)
            for p, *sides in lengths
            for n in (p, *sides, *(p + side for side in sides))
            for d in (-1, 0, 1)
        }
    )
    kv_heads, groups = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    width, value_width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    tokens = sum(map(sum, lengths))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = [
        random(1, kv_heads * groups, tokens, width),
        random(1, kv_heads, tokens, width),
        random(1, kv_heads, tokens, value_width),
    ]
    options = {
        "scaling": draw(st.none() | st.floats(0.1, 2)),
        "window": draw(st.none() | st.integers(1, 20) | st.sampled_from(near)),
        "softcap": draw(st.none() | st.floats(0.5, 5)),
        "sinks": random(kv_heads * groups) if draw(st.booleans()) else None,
    }
    return inputs, segments_of(lengths), options


@settings(max_examples=150)
@given(attentions())
def test_pair_by_pair_is_the_dense_mask_in_values_and_gradients(case):
    inputs, segments, options = case
    expected = value_and_gradients(dense_attention, inputs, segments, options)
    found = value_and_gradients(attend_to_pairs, inputs, segments, options)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("window", [None, 1, 3])
def test_what_a_token_does_not_see_gives_it_no_gradient(window):
    """Values tell where attention came from."""
    segments = segments_of([(2, 3, 2), (0, 2, 1)])
    zeros, eye = torch.zeros(1, 1, 10, 4).double(), torch.eye(10).double()[None, None]
    weights = attend_to_pairs(zeros, zeros, eye, segments, window=window)[0, :, 0]
    assert ((weights > 0) == who_sees_whom(segments, window)).all()


def test_a_rejected_token_sees_its_prompt_and_no_chosen_token():
    """Values tell where attention came from: one-hot by segment."""
    segments = (PairSegments(0, 0, 2, (3, 2)), PairSegments(0, 7, 1, (1, 1)))
    owner = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 4, 5])
    values = torch.nn.functional.one_hot(owner, 6).double()[None, None]
    zeros = torch.zeros(1, 1, 10, 4, dtype=torch.float64)
    seen = attend_to_pairs(zeros, zeros, values, segments)[0, :, 0]
    expected = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 0, 0, 0, 0, 0],
            [2 / 3, 1 / 3, 0, 0, 0, 0],
            [2 / 4, 2 / 4, 0, 0, 0, 0],
            [2 / 5, 3 / 5, 0, 0, 0, 0],
            [2 / 3, 0, 1 / 3, 0, 0, 0],
            [2 / 4, 0, 2 / 4, 0, 0, 0],
            [0, 0, 0, 1, 0, 0],
            [0, 0, 0, 1 / 2, 1 / 2, 0],
            [0, 0, 0, 1 / 2, 0, 1 / 2],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(seen, expected)


def test_opened_within_itself_it_is_open_once_and_until_the_outer_end(models):
    model = models("qwen2")
    own = attention_of(model)
    with shared_attention(model):
        ours = attention_of(model)
        with shared_attention(model):
            assert attention_of(model) == ours
        assert attention_of(model) == ours == f"counterpoint_{own}"
    assert attention_of(model) == own
