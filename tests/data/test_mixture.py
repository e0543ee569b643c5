"""Several sets in one run: what asks for them, how they are joined, and the order of an epoch."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data.formats import to_preference_row
from counterpoint.data.held_out import hold_out
from counterpoint.data.listed import ListedSet, names_of_sets, read_listed
from counterpoint.data.mixed_order import MixedOrder, SetShare
from counterpoint.data.mixture import Mixture, as_mixture, first_rows, open_sets
from counterpoint.data.prepare import prepare
from counterpoint.data.sampler import StepSampler
from counterpoint.data.sources import load
from counterpoint.errors import ConfigError, DataError

TEXT = [
    {"prompt": f"{n} + {n} =", "chosen": f" {2 * n}", "rejected": f" not {n}"} for n in range(6)
]
CHAT = [
    {
        "conversations": [{"from": "human", "value": f"Is {n} even?"}],
        "chosen": {"from": "gpt", "value": "Yes." if n % 2 == 0 else "No."},
        "rejected": {"from": "gpt", "value": "Perhaps."},
        "weight": 0.5 + n,
    }
    for n in range(4)
]
WHOLE = [
    {
        "chosen": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": "ok"}],
        "rejected": [
            {"role": "user", "content": f"Say {n}"},
            {"role": "assistant", "content": "?"},
        ],
    }
    for n in range(3)
]


def written(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


# What asks for a set

WORDS: dict[str, ListedSet] = {
    "a.jsonl": ListedSet(("a.jsonl",)),
    "a.jsonl:2": ListedSet(("a.jsonl",), weight=Fraction(2)),
    "a.jsonl:0.5": ListedSet(("a.jsonl",), weight=Fraction(1, 2)),
    "a.jsonl:.25": ListedSet(("a.jsonl",), weight=Fraction(1, 4)),
    "a.jsonl#500": ListedSet(("a.jsonl",), rows=500),
    "a.jsonl#500:0.1": ListedSet(("a.jsonl",), weight=Fraction(1, 10), rows=500),
    r"C:\data\a.jsonl": ListedSet((r"C:\data\a.jsonl",)),
    r"C:\data\a.jsonl:2": ListedSet((r"C:\data\a.jsonl",), weight=Fraction(2)),
    "owner/name": ListedSet(("owner/name",)),
    "owner/name:3": ListedSet(("owner/name",), weight=Fraction(3)),
    "owner/name:train": ListedSet(("owner/name:train",)),
    "owner/name:de-en:train:0.5": ListedSet(("owner/name:de-en:train",), weight=Fraction(1, 2)),
    "owner/name:train[:100]": ListedSet(("owner/name:train[:100]",)),
    "owner/name:train[:100]:2": ListedSet(("owner/name:train[:100]",), weight=Fraction(2)),
    "owner/name:default#500": ListedSet(("owner/name:default",), rows=500),
}


@pytest.mark.parametrize("word", WORDS)
def test_a_word_names_a_set_its_rows_and_its_weight(word: str) -> None:
    assert read_listed(word) == WORDS[word]


def test_a_word_that_is_a_file_is_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd#5").mkdir()
    assert read_listed("odd#5") == ListedSet(("odd#5",))
    assert read_listed("odd#5:2") == ListedSet(("odd",), weight=Fraction(2), rows=5)


def test_a_mapping_says_all_of_a_set() -> None:
    whole = {
        "path": ["a.jsonl", "b.jsonl"],
        "weight": 0.1,
        "subset": "de",
        "split": "half",
        "columns": {"prompt": "question"},
        "rows": 7,
    }
    assert read_listed(whole) == ListedSet(
        ("a.jsonl", "b.jsonl"), Fraction(1, 10), "de", "half", {"prompt": "question"}, 7
    )
    assert read_listed({"path": "a.jsonl"}) == ListedSet(("a.jsonl",))


REFUSED: list[tuple[Any, str, str]] = [
    (" ", "CP107", "blank"),
    ({}, "CP107", "no path"),
    ({"path": []}, "CP107", "no path"),
    ({"path": 7}, "CP103", "a path"),
    (7, "CP103", "a mapping"),
    ({"path": "a", "wieght": 2}, "CP103", "has no 'wieght'"),
    ("a:0", "CP103", "a weight above 0"),
    ("a:1001", "CP103", "at most 1,000"),
    ("a#0", "CP103", "rows of at least 1"),
    ({"path": "a", "weight": True}, "CP103", "a weight"),
    ({"path": "a", "weight": float("nan")}, "CP103", "a weight"),
    ({"path": "a", "weight": "much"}, "CP103", "a weight"),
    ({"path": "a", "weight": -1}, "CP103", "a weight"),
    ({"path": "a", "rows": 1.5}, "CP103", "rows of"),
    ({"path": "a", "split": 3}, "CP103", "a word for split"),
    ({"path": "a", "columns": ["prompt"]}, "CP103", "columns such as"),
    ({"path": "a", "columns": {"prompt": 1}}, "CP103", "columns such as"),
]


@pytest.mark.parametrize(("given_", "code", "said"), REFUSED)
def test_what_names_no_set_is_refused(given_: Any, code: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{code} .*{said}"):
        read_listed(given_)


def test_no_two_sets_have_the_same_name() -> None:
    words = ["x/a.jsonl", "y/a.jsonl", "b.jsonl", "b.jsonl:2", "owner/name:train"]
    names = names_of_sets([read_listed(word) for word in words])
    assert names == ["x/a.jsonl", "y/a.jsonl", "b.jsonl (3)", "b.jsonl (4)", "owner/name:train"]


# The order of an epoch

SIZES = st.lists(
    st.tuples(
        st.integers(1, 23), st.fractions(min_value=Fraction(1, 9), max_value=3, max_denominator=9)
    ),
    min_size=1,
    max_size=4,
)


def mixed(sets: list[tuple[int, Any]]) -> MixedOrder:
    return MixedOrder(
        [SetShare(str(number), size, size, Fraction(w)) for number, (size, w) in enumerate(sets)]
    )


def epochs(order: MixedOrder, seed: int | None, count: int) -> list[list[int]]:
    orders = order.orders(seed)
    return [orders(epoch)(np.arange(order.pairs)).tolist() for epoch in range(count)]


@given(SIZES, st.integers(0, 2**40))
def test_every_epoch_holds_each_sets_share_and_no_pair_falls_behind(
    sets: list[tuple[int, Fraction]], seed: int
) -> None:
    order = mixed(sets)
    firsts = np.cumsum([0, *(size for size, _ in sets)])
    drawn: Counter[int] = Counter(dict.fromkeys(range(int(firsts[-1])), 0))
    for epoch in epochs(order, seed, 5):
        of = np.searchsorted(firsts, epoch, side="right") - 1
        for number, (size, weight) in enumerate(sets):
            wanted = max(1, int(weight * size + Fraction(1, 2)))
            assert int((of == number).sum()) == wanted
        drawn.update(epoch)
        for first, end in itertools.pairwise(firsts):
            times = [drawn[key] for key in range(first, end)]
            assert max(times) - min(times) <= 1


def test_a_weight_of_two_takes_each_pair_twice_and_one_of_a_half_the_other_half_next() -> None:
    first, second, third = epochs(mixed([(5, 1), (4, 2), (8, Fraction(1, 2))]), 3, 3)
    assert len(first) == 5 + 8 + 4
    for epoch in (first, second, third):
        times = Counter(epoch)
        assert [times[key] for key in range(5)] == [1] * 5
        assert [times[key] for key in range(5, 9)] == [2] * 4
    halves = [{key for key in epoch if key >= 9} for epoch in (first, second, third)]
    assert halves[0] | halves[1] == set(range(9, 17))
    assert not halves[0] & halves[1]
    assert len(halves[2]) == 4


def test_the_order_is_a_function_of_the_seed_and_may_be_asked_for_in_pieces() -> None:
    sets = [(50, 1), (9, 3), (40, Fraction(1, 2))]
    order = mixed(sets)
    whole = epochs(order, 7, 3)
    assert epochs(mixed(sets), 7, 3) == whole
    assert epochs(order, 8, 1)[0] != whole[0]
    assert whole[0] != whole[1]
    orders = order.orders(7)
    for epoch in (2, 0, 1):  # in any order, from any place
        places = np.arange(order.pairs)
        pieces = [orders(epoch)(places[at : at + 7]) for at in range(0, order.pairs, 7)]
        assert np.concatenate(pieces).tolist() == whole[epoch]


def test_without_a_seed_sets_come_one_after_another_in_their_own_order() -> None:
    first, second = epochs(mixed([(3, 1), (4, Fraction(1, 2)), (2, 2)]), None, 2)
    assert first == [0, 1, 2, 3, 4, 7, 8, 7, 8]
    assert second == [0, 1, 2, 5, 6, 7, 8, 7, 8]


def steps(order: MixedOrder, ranks: int, *, done: int = 0, epoch: int = 1) -> list[list[int]]:
    """The pairs of each step, of all ranks, fillers left out."""
    found: list[list[int]] = []
    for rank in range(ranks):
        sampler = StepSampler(
            order.pairs,
            micro_batch=2,
            step_pairs=4,
            ranks=ranks,
            rank=rank,
            orders=order.orders(11),
        )
        sampler.set_epoch(epoch)
        sampler.done = done * sampler.accumulation
        boxes = list(sampler)
        for number in range(0, len(boxes), sampler.accumulation):
            step = number // sampler.accumulation
            found += [[] for _ in range(step + 1 - len(found))]
            mine = [key for box in boxes[number : number + sampler.accumulation] for key in box]
            found[step] += [key for key in mine if key >= 0]
    return [sorted(step) for step in found]


def test_a_step_is_the_same_pairs_on_any_number_of_ranks_and_when_resumed() -> None:
    order = mixed([(5, 1), (3, 2), (8, Fraction(1, 2))])
    one = steps(order, 1)
    assert sum(map(len, one)) == order.pairs
    assert steps(order, 2) == one == steps(order, 3)
    assert steps(order, 2, done=2)[2:] == one[2:]


# Opening


def as_read(rows: Any) -> list[Any]:
    return [replace(to_preference_row(raw, n), row=0, absent=()) for n, raw in enumerate(rows)]


def test_rows_of_any_shapes_are_read_as_each_in_its_own_file(tmp_path: Path) -> None:
    files = [
        written(tmp_path, name, rows)
        for name, rows in (("t.jsonl", TEXT), ("c.jsonl", CHAT), ("w.jsonl", WHOLE))
    ]
    made = open_sets([read_listed(f"{file}:2") for file in files])
    own = [row for file in files for row in as_read(load(file))]
    assert as_read(made) == own
    assert len(made) == 13
    assert [made.set_of(row) for row in (0, 5, 6, 9, 10, 12)] == [
        *[("t.jsonl", 0), ("t.jsonl", 5), ("c.jsonl", 0)],
        *[("c.jsonl", 3), ("w.jsonl", 0), ("w.jsonl", 2)],
    ]


def test_columns_splits_and_first_rows_are_each_sets_own(tmp_path: Path) -> None:
    other = [
        {"q": f"Why {n}?", "answers": {"good": {"text": " So."}, "bad": " No."}, "chosen": "x"}
        for n in range(5)
    ]
    splits = DatasetDict(
        {"train": Dataset.from_list(TEXT[:1]), "half": Dataset.from_list(TEXT[3:])}
    )
    splits.save_to_disk(str(tmp_path / "splits"))
    made = open_sets(
        [
            ListedSet((str(tmp_path / "splits"),), split="half"),
            ListedSet(
                (written(tmp_path, "o.jsonl", other),),
                columns={"prompt": "q", "chosen": "answers.good.text", "rejected": "answers.bad"},
                rows=2,
            ),
            ListedSet((written(tmp_path, "t.jsonl", TEXT),)),
        ],
        most=4,
    )
    read = as_read(made)
    assert [row.prompt for row in read] == [
        *[f"{n} + {n} =" for n in (3, 4, 5)],
        *["Why 0?", "Why 1?"],
        *[f"{n} + {n} =" for n in range(4)],
    ]
    assert [(row.chosen, row.rejected) for row in read[3:5]] == [(" So.", " No.")] * 2


def test_two_columns_may_change_their_places(tmp_path: Path) -> None:
    file = written(tmp_path, "t.jsonl", TEXT)
    turned = {"chosen": "rejected", "rejected": "chosen"}
    made = open_sets([ListedSet((file,), columns=turned)])
    assert [(row.chosen, row.rejected) for row in as_read(made)] == [
        (row["rejected"], row["chosen"]) for row in TEXT
    ]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"prompt": "question"}, "has no column question; it has prompt, chosen, rejected"),
        ({"prompt": "chosen.text"}, "no row has chosen.text"),
        ({"question_": "prompt"}, "'question_' has no meaning here"),
    ],
)
def test_a_column_that_is_not_there_is_refused(
    tmp_path: Path, columns: dict[str, str], said: str
) -> None:
    file = written(tmp_path, "t.jsonl", TEXT)
    with pytest.raises(DataError, match=rf"^CP237 .*{said}"):
        open_sets([ListedSet((file,), columns=columns)])


def test_a_set_without_preferences_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, "none.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match=r"^CP201 none\.jsonl has no column chosen"):
        open_sets([ListedSet((written(tmp_path, "t.jsonl", TEXT),)), ListedSet((file,))])


def test_first_rows_are_those_of_lists_and_streams_alike() -> None:
    rows = Dataset.from_list(TEXT)
    assert list(first_rows(rows, 2)) == TEXT[:2] == list(first_rows(rows.to_iterable_dataset(), 2))
    assert first_rows(rows, None) is rows is first_rows(rows, 6)


# Preparing


def sets(tmp_path: Path, *weights: Any) -> Mixture:
    bad = {**TEXT[0], "rejected": ""}
    files = [written(tmp_path, "t.jsonl", [*TEXT, bad]), written(tmp_path, "o.jsonl", TEXT[:3])]
    return open_sets([ListedSet((f,), Fraction(w)) for f, w in zip(files, weights, strict=True)])


def options(**more: Any) -> Any:
    from counterpoint.data.options import PrepareOptions

    return PrepareOptions(**more)


def test_shares_are_of_pairs_and_are_said(tmp_path: Path, gpt2_tokenizer: Any) -> None:
    found = prepare(
        sets(tmp_path, 1, "1/2"), gpt2_tokenizer, options(invalid_rows="drop"), name="train"
    )
    assert found.mix is not None
    assert found.mix.pairs == 6 + 2
    assert found.counts.as_dict()["shares"] == [
        {"name": "t.jsonl", "rows": 7, "pairs": 6, "epoch": 6, "weight": 1.0},
        {"name": "o.jsonl", "rows": 3, "pairs": 3, "epoch": 2, "weight": 0.5},
    ]
    said = found.counts.summary().splitlines()
    assert "o.jsonl: 3 of 3 rows, weight 0.5: 2 of 8 pairs of an epoch (25.0%)" in said[2]


def test_an_unusable_row_is_named_by_its_set(tmp_path: Path, gpt2_tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"^CP203 .*row 6 \(row 6 of t\.jsonl\)"):
        prepare(sets(tmp_path, 1, 1), gpt2_tokenizer, name="train")


def test_a_set_without_a_pair_is_refused(tmp_path: Path, gpt2_tokenizer: Any) -> None:
    bad = written(tmp_path, "bad.jsonl", [{**TEXT[0], "chosen": ""}])
    both = open_sets([ListedSet((written(tmp_path, "t.jsonl", TEXT),)), ListedSet((bad,))])
    with pytest.raises(DataError, match=r"^CP209 train: none of the 1 rows of bad\.jsonl"):
        prepare(both, gpt2_tokenizer, options(invalid_rows="drop"), name="train")


def test_one_set_as_it_is_has_the_order_that_it_always_had(gpt2_tokenizer: Any) -> None:
    rows = Dataset.from_list(TEXT)
    found = prepare(as_mixture(rows, "t").kept(np.array([1, 3, 5])), gpt2_tokenizer, name="train")
    assert found.mix is None
    assert found.counts.summary() == (
        prepare(rows.select([1, 3, 5]), gpt2_tokenizer, name="train").counts.summary()
    )


def test_rows_that_list_several_rejected_completions_are_held_out_together() -> None:
    rows = [{"prompt": f"{n}?", "chosen": " a", "rejected": [" b", " c"]} for n in range(6)]
    whole = as_mixture(Dataset.from_list(rows), "lists")
    assert len(whole) == 12
    found = hold_out(whole.rows, 0.34, 0)
    assert (found.prompts, found.held_prompts, len(found.held)) == (6, 2, 4)


def test_rows_that_are_left_keep_their_numbers(tmp_path: Path) -> None:
    made = sets(tmp_path, 1, 2).kept(np.array([0, 4, 6, 8]))
    assert [made.set_of(row) for row in range(4)] == [
        *[("t.jsonl", 0), ("t.jsonl", 4), ("t.jsonl", 6), ("o.jsonl", 1)]
    ]
    again = made.kept(np.array([1, 3]))
    assert [again.set_of(row) for row in range(2)] == [("t.jsonl", 4), ("o.jsonl", 1)]
    assert again.sets_of(np.array([0, 1])).tolist() == [0, 1]
