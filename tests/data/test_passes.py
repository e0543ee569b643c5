"""What comes with a step of a second set."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data.order import orders_of
from counterpoint.data.passes import Passes

SIZES = st.integers(1, 60)
SEEDS = st.none() | st.integers(0, 99)


@given(SIZES, SIZES, SEEDS)
def test_every_pair_comes_once_a_pass_in_steps_of_like_sizes(pairs: int, most: int, seed):
    passes = Passes(pairs, most=most, orders=orders_of(pairs, seed))
    for number in range(3):
        steps = [passes.of_step(number * passes.steps + step) for step in range(passes.steps)]
        assert Counter(key for step in steps for key in step) == Counter(range(pairs))
        sizes = {len(step) for step in steps}
        assert 1 <= min(sizes) <= max(sizes) <= min(most, pairs)
        assert max(sizes) - min(sizes) <= 1


@given(SIZES, SIZES, st.integers(0, 99), st.lists(st.integers(0, 200), min_size=1))
def test_a_step_follows_from_seed_and_number_alone(pairs: int, most: int, seed: int, asked):
    used = Passes(pairs, most=most, orders=orders_of(pairs, seed))
    for number in asked:  # in any order, as after going on
        assert used.of_step(number) == Passes(
            pairs, most=most, orders=orders_of(pairs, seed)
        ).of_step(number)


def test_passes_are_shuffled_anew_unless_the_order_is_the_sets():
    shuffled, kept = (Passes(50, most=50, orders=orders_of(50, seed)) for seed in (3, None))
    assert shuffled.of_step(0) != shuffled.of_step(1)
    assert kept.of_step(0) == kept.of_step(1) == list(range(50))
