"""The parts of a checkpoint, each on its own: what goes in comes out, to the bit."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from counterpoint import SetupError
from counterpoint.checkpoint.fingerprint import differences
from counterpoint.checkpoint.optimizer import load_named_state, named_state
from counterpoint.checkpoint.randomness import random_state, set_random_state
from counterpoint.checkpoint.tree import read_tree, write_tree
from counterpoint.data.pair_digest import pairs_digest
from counterpoint.errors import CounterpointError
from counterpoint.ranks import each_does, first_does
from tests.steps import random_pairs

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
    ),
)


@given(tree=VALUES)
def test_a_tree_comes_back_with_its_types(tree, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("tree")
    write_tree(folder, "state", tree)
    back = read_tree(folder, "state")
    assert repr(back) == repr(tree)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(0.1, dtype=torch.float64),
        torch.tensor([1, 2], dtype=torch.uint8),
        torch.randn(3, 4).bfloat16().t(),
        torch.tensor([math.nan, math.inf, -0.0]),
        torch.zeros(0, 3),
        torch.tensor(True),
    ],
)
def test_a_tensor_in_a_tree_comes_back_to_the_bit(tensor: torch.Tensor, tmp_path: Path):
    write_tree(tmp_path, "state", {"a.b": tensor, "a": {"b": tensor}})
    back = read_tree(tmp_path, "state")
    for one in (back["a.b"], back["a"]["b"]):
        assert (one.dtype, one.shape) == (tensor.dtype, tensor.shape)
        same = one.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
        assert torch.equal(*same)


@pytest.mark.parametrize("value", [object(), {1, 2}, torch.ones(1).to_sparse(), torch.ones(1) * 1j])
def test_what_only_pickle_could_write_is_refused_by_its_place(value, tmp_path: Path):
    with pytest.raises(SetupError, match=r"CP517 the state at groups\.0\.lr is a "):
        write_tree(tmp_path, "state", {"groups": [{"lr": value}]})


def test_every_generator_goes_on_where_it_was():
    def draw() -> tuple[float, ...]:
        normal = random.gauss(0, 1), float(np.random.standard_normal())
        return (*normal, random.random(), float(np.random.random()), float(torch.rand(())))

    draw()  # leaves half a pair of normal numbers behind in two of them
    state = random_state(torch.device("cpu"))
    first = [draw() for _ in range(3)]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    set_random_state(state)
    assert [draw() for _ in range(3)] == first


def test_an_optimizer_is_known_by_names_not_by_numbers(tmp_path: Path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    decayed = [p for n, p in model.named_parameters() if "weight" in n]
    others = [p for n, p in model.named_parameters() if "weight" not in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    write_tree(tmp_path, "optimizer", named_state(optimizer, model))
    saved = read_tree(tmp_path, "optimizer")
    assert set(saved["state"]) == {"0.weight", "1.weight", "0.bias", "1.bias"}
    again = torch.optim.AdamW([dict(group) for group in groups], lr=0.5)
    load_named_state(again, model, saved)
    assert again.param_groups[0]["lr"] == 0.1
    assert again.param_groups[0]["betas"] == (0.9, 0.999)
    for parameter in model.parameters():
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(value, again.state[parameter][key])


def test_an_optimizer_of_other_parameters_is_refused():
    model = torch.nn.Linear(2, 2)
    saved = named_state(torch.optim.SGD(model.parameters(), lr=0.1), model)
    fewer = torch.optim.SGD([model.weight], lr=0.1)
    with pytest.raises(SetupError, match=r"CP514 .*no longer 1, bias among them"):
        load_named_state(fewer, model, saved)


# Digests


def test_equal_pairs_have_one_digest_however_they_lie_in_memory():
    pairs = random_pairs(9)
    halves = concatenate_datasets([pairs.select(range(4)), pairs.select(range(4, 9))])
    shuffled_back = pairs.select([3, 1, 2, 0, 4, 5, 6, 7, 8]).select([3, 1, 2, 0, 4, 5, 6, 7, 8])
    assert {pairs_digest(one) for one in (pairs, halves, shuffled_back)} == {pairs_digest(pairs)}


def _changed(column: str, value: object) -> Dataset:
    rows = random_pairs(3).to_list()
    rows[1][column] = value
    return Dataset.from_list(rows, features=random_pairs(3).features)


@pytest.mark.parametrize(
    "other",
    [
        random_pairs(4),
        random_pairs(3, seed=1),
        random_pairs(3).select([1, 0, 2]),
        _changed("weight", 0.123),
        _changed("margin", 0.5),
        _changed("chosen_ids", [5]),
    ],
)
def test_other_pairs_have_another_digest(other: Dataset):
    assert pairs_digest(other) != pairs_digest(random_pairs(3))


def test_a_token_that_moves_over_a_boundary_changes_the_digest():
    rows = random_pairs(2).to_list()
    rows[0]["chosen_ids"], rows[1]["chosen_ids"] = [7, 8], [9]
    one = Dataset.from_list(rows)
    rows[0]["chosen_ids"], rows[1]["chosen_ids"] = [7], [8, 9]
    assert pairs_digest(one) != pairs_digest(Dataset.from_list(rows))


def test_a_fact_that_only_one_release_knows_is_no_difference():
    assert differences({"seed": 1, "old": 2}, {"seed": 1, "new": 3}) == {}
    assert differences({"seed": 1}, {"seed": 2}) == {"seed": "seed was 1 and is 2"}


# Ranks


def test_alone_work_is_just_done():
    assert first_does(lambda: 3) == each_does(lambda: 3) == 3
    with pytest.raises(CounterpointError):
        each_does(lambda: (_ for _ in ()).throw(SetupError("CP515", "no")))
