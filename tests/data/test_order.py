"""The order of an epoch: a permutation of any size without a list, and torch's for small sets."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.data import order
from counterpoint.data.order import (
    COMPUTED,
    LISTED,
    WRITTEN_OUT,
    KeyedPermutation,
    order_of,
)

LARGE = 100_003
KEYS = [f"{seed} {epoch}" for seed in range(4) for epoch in range(4)]


@pytest.mark.parametrize("size", [*range(1, 200), 255, 256, 257, 1023, 1024, 1025, 4095, 4097])
def test_every_number_is_reached_once(size: int):
    for key in ("0 0", "0 1", "7 3"):
        found = KeyedPermutation(size, key)(np.arange(size))
        assert np.array_equal(np.sort(found), np.arange(size))


@settings(max_examples=40)
@given(st.integers(1, 1 << 17), st.text(max_size=8))
def test_every_number_is_reached_once_whatever_size_and_key(size: int, key: str):
    found = KeyedPermutation(size, key)(np.arange(size))
    assert np.array_equal(np.bincount(found, minlength=size), np.ones(size))


@given(st.integers(1, 1 << 63), st.integers(0, 1 << 63), st.integers(1, 64))
def test_places_of_huge_sets_are_sent_into_them_and_apart(size: int, start: int, count: int):
    start %= size
    places = np.arange(start, min(start + count, size), dtype=np.uint64).astype(np.int64)
    found = KeyedPermutation(size, "0 0")(places)
    assert found.min() >= 0
    assert int(found.max()) < size
    assert len(np.unique(found)) == len(places)


@given(st.integers(1, 5000), st.integers(0, 99), st.data())
def test_a_place_is_sent_alike_alone_and_among_others(size: int, epoch: int, data):
    permutation = KeyedPermutation(size, f"0 {epoch}")
    some = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
    whole = permutation(np.arange(size))
    assert np.array_equal(permutation(np.array(some, dtype=np.int64)), whole[some])


@pytest.mark.parametrize("size", [0, -3, (1 << 63) + 1])
def test_a_size_that_is_none_is_refused(size: int):
    with pytest.raises(ValueError, match="expected 1 to"):
        KeyedPermutation(size, "")


# Each statistic below is that of a random permutation within five standard deviations, for every
# key tried: the chance that all hold for random permutations is above 0.9999.


def test_places_are_sent_as_far_as_at_random():
    # |place - key| of a random permutation: mean n/3, standard deviation n/sqrt(18) a place
    for key in KEYS:
        found = KeyedPermutation(LARGE, key)(np.arange(LARGE))
        mean = np.abs(found - np.arange(LARGE)).mean()
        assert abs(mean - LARGE / 3) < 5 * LARGE / np.sqrt(18 * LARGE)


def test_neighbours_and_their_neighbours_are_not_correlated():
    for key in KEYS:
        found = KeyedPermutation(LARGE, key)(np.arange(LARGE)).astype(float)
        for lag in (1, 2, 3, 8, 64, 1000, LARGE // 2):
            found_lag = np.corrcoef(found[:-lag], found[lag:])[0, 1]
            assert abs(found_lag) < 5 / np.sqrt(LARGE - lag)


def test_epochs_and_seeds_have_nothing_in_common():
    every = [KeyedPermutation(LARGE, key)(np.arange(LARGE)) for key in KEYS]
    for number, one in enumerate(every):
        for other in every[:number]:
            assert (one == other).sum() <= 9  # Poisson with mean 1: above 9 once in 10^7
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(LARGE)
        assert (one == np.arange(LARGE)).sum() <= 9


def test_a_step_is_spread_evenly_over_the_set():
    """Chi-squared of each step's keys over 16 parts of the set."""
    step = 4096
    for key in KEYS:
        permutation = KeyedPermutation(10**12, key)
        for start in (0, 10**6, 10**12 - step):
            found = permutation(np.arange(start, start + step))
            counts = np.bincount(found * 16 // 10**12, minlength=16)
            chi = ((counts - step / 16) ** 2 / (step / 16)).sum()
            assert chi < 60  # 15 degrees of freedom: above it once in 10^6


def test_all_orders_of_a_few_pairs_come_about_alike():
    drawn = 24 * 200
    orders = Counter(
        tuple(KeyedPermutation(4, str(key))(np.arange(4)).tolist()) for key in range(drawn)
    )
    assert len(orders) == 24
    chi = sum((count - drawn / 24) ** 2 / (drawn / 24) for count in orders.values())
    assert chi < 70  # 23 degrees of freedom: above it once in 10^6


@pytest.mark.parametrize("version", [WRITTEN_OUT, COMPUTED])
def test_a_set_of_some_size_keeps_torchs_order(version: int):
    for pairs, seed, epoch in ((1, 0, 0), (1000, 3, 2)):
        drawn = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed + epoch))
        found = order_of(pairs, seed, epoch, version=version)(np.arange(pairs))
        assert found.tolist() == drawn.tolist()


def test_a_larger_set_is_shuffled_by_computing_unless_its_run_began_otherwise(monkeypatch):
    monkeypatch.setattr(order, "LISTED", 10)
    places = np.arange(11)
    drawn = torch.randperm(11, generator=torch.Generator().manual_seed(5)).numpy()
    assert np.array_equal(order_of(11, 3, 2, version=WRITTEN_OUT)(places), drawn)
    assert np.array_equal(order_of(11, 3, 2)(places), KeyedPermutation(11, "3 2")(places))
    assert np.array_equal(order_of(11, None, 2)(places), places)


def test_a_billion_pairs_cost_no_memory():
    tracemalloc.start()
    try:
        found = order_of(10**9, 0, 0)
        for start in range(0, 10**9, 10**8):
            found(np.arange(start, start + 512))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert LISTED < 10**9
    assert peak < 1 << 20
