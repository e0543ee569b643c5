"""A large set prepared in parts is the set prepared whole; who does which part changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_from_disk
from hypothesis import given
from hypothesis import strategies as st

from counterpoint import DataError, ranks
from counterpoint.data import cache, pair_digest, parts
from counterpoint.data import prepare as room
from counterpoint.data.counts import PrepareCounts
from counterpoint.data.options import PrepareOptions
from counterpoint.data.pair_digest import JoinedDigest, digest_like, digests_joined, pairs_digest
from counterpoint.data.prepare import Prepared, iter_pairs, prepare
from tests.ranks_in_threads import as_ranks

GOOD = [
    {
        "prompt": f"What is {n} and {n}?",
        "chosen": f" It is {2 * n}.",
        "rejected": " No." * (n % 3 + 1),
    }
    for n in range(23)
]
BAD = {"prompt": "Same?", "chosen": " yes", "rejected": " yes"}
LONG = {"prompt": "Say it" * 80, "chosen": " yes", "rejected": " no"}
MIXED = [BAD, *GOOD[:8], BAD, LONG, *GOOD[8:], {**GOOD[0], "prompt": None}]
DROP = {"invalid_rows": "drop", "max_length": 120}


@pytest.fixture
def make(
    chatml_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Prepared]:
    """Prepare rows, in parts of some rows; in a cache of their own."""
    monkeypatch.setenv("COUNTERPOINT_CACHE", str(tmp_path / "cache"))

    def made(rows: Any, part: int = 5, alone: int = 10, **options: Any) -> Prepared:
        monkeypatch.setattr(parts, "PART_ROWS", part)
        monkeypatch.setattr(pair_digest, "ALONE", alone)
        data = Dataset.from_list(rows) if isinstance(rows, list) else rows
        return prepare(data, chatml_tokenizer, PrepareOptions(**options))

    return made


def told(prepared: Prepared) -> tuple[list[Any], dict[str, Any]]:
    return list(iter_pairs(prepared)), prepared.counts.as_dict()


@pytest.mark.parametrize(
    ("rows", "part"),
    [(MIXED, 1), (GOOD, 5), (MIXED, 7), ([*GOOD[:5], *[BAD] * 5, *GOOD[5:]], 5)],
)
def test_parts_give_the_pairs_and_the_account_of_the_whole(make, rows, part: int):
    whole = told(make(rows, part=1000, **DROP))
    assert told(make(rows, part=part, **DROP)) == whole
    prepared = make(rows, part=part, **DROP)  # from the cache
    assert told(prepared) == whole
    assert whole[1]["digest"].startswith("joined:")
    assert pairs_digest(prepared.pairs) == whole[1]["digest"]
    assert prepared.pairs["prompt_input_ids"][:] == prepared.pairs["prompt_ids"][:]


def test_without_a_cache_all_is_as_with_one(make, monkeypatch):
    with_one = told(make(MIXED, **DROP))
    monkeypatch.setenv("COUNTERPOINT_CACHE", "off")
    assert told(make(MIXED, **DROP)) == with_one


def test_a_set_of_few_pairs_keeps_the_digest_that_it_always_had(make):
    before = make(MIXED, part=1000, alone=1000, **DROP).counts.as_dict()["digest"]
    assert len(before) == 40
    assert make(MIXED, part=5, alone=1000, **DROP).counts.as_dict()["digest"] == before
    pairs = make(MIXED, part=5, alone=10, **DROP).pairs
    assert pairs_digest(pairs) != before
    assert pairs_digest(pairs, as_before=True) == before
    # which a checkpoint of 0.4 is compared with
    assert digest_like(before, pairs_digest(pairs), pairs) == before
    assert digest_like("joined:0", pairs_digest(pairs), pairs) == pairs_digest(pairs)


@pytest.mark.parametrize("number", [2, 3, 4])
def test_ranks_share_the_parts_and_have_the_same(make, monkeypatch, number: int):
    encoded: list[tuple[int, int]] = []
    original = room.encode_rows

    def watched(batch: Any, rows: Any, **more: Any) -> Any:
        encoded.append((ranks.rank(), len(rows)))
        return original(batch, rows, **more)

    monkeypatch.setattr(room, "encode_rows", watched)
    make(GOOD[:1])  # sets the limits for the threads
    encoded.clear()
    options = PrepareOptions(**DROP)
    # rows of its own, that no other number of ranks has left in the cache
    rows = [{**row, "rejected": f"{row['rejected']} ({number})"} for row in MIXED if row != BAD]
    data = Dataset.from_list(rows)
    tokenizer = _tokenizer_of(make)
    found = as_ranks(number, lambda: told(prepare(data, tokenizer, options)))
    assert [each == found[0] for each in found] == [True] * number
    assert sum(rows for _, rows in encoded) == len(rows)  # each row once, in all
    assert {rank for rank, _ in encoded} == set(range(number))
    assert found[0] == told(make(rows, part=1000, **DROP))


def _tokenizer_of(make: Callable[..., Prepared]) -> Any:
    cells = dict(zip(make.__code__.co_freevars, make.__closure__, strict=True))
    return cells["chatml_tokenizer"].cell_contents


@pytest.mark.parametrize("number", [1, 3])
def test_unusable_rows_are_raised_by_every_rank_in_the_words_of_one(make, number: int):
    with pytest.raises(DataError) as whole:
        make(MIXED, part=1000, max_length=120)
    make(GOOD[:1])
    data, options = Dataset.from_list(MIXED), PrepareOptions(max_length=120)
    tokenizer = _tokenizer_of(make)
    if number == 1:
        with pytest.raises(DataError) as raised:
            prepare(data, tokenizer, options)
        assert str(raised.value) == str(whole.value)
        return
    found = as_ranks(number, lambda: told(prepare(data, tokenizer, options)))
    assert found == [str(whole.value)] * number


def test_a_second_start_on_the_same_files_hashes_and_encodes_nothing(make, monkeypatch, tmp_path):
    Dataset.from_list(MIXED).save_to_disk(tmp_path / "rows")
    first = told(make(load_from_disk(tmp_path / "rows"), **DROP))

    def refuse(*facts: Any, **more: Any) -> Any:
        raise AssertionError("done again")

    with monkeypatch.context() as again:
        for where, name in ((cache, "_add_rows"), (room, "_map"), (parts, "counts_of")):
            again.setattr(where, name, refuse)
        assert told(make(load_from_disk(tmp_path / "rows"), **DROP)) == first
        # other rows under the same name are other files
        Dataset.from_list(GOOD).save_to_disk(tmp_path / "rows")
        with pytest.raises(AssertionError, match="done again"):
            make(load_from_disk(tmp_path / "rows"), **DROP)


def test_a_damaged_memory_of_a_part_is_made_anew(make, tmp_path):
    whole = told(make(MIXED, **DROP))
    remembered = list((tmp_path / "cache").glob("*-account.json"))
    assert len(remembered) == -(-len(MIXED) // 5)
    for path in remembered:
        path.write_text(path.read_text()[:-9])
    for path in (tmp_path / "cache").glob("*-pairs.arrow"):
        path.write_bytes(b"nothing")
    assert told(make(MIXED, **DROP)) == whole


ROWS = st.lists(
    st.tuples(*[st.lists(st.integers(0, 9), max_size=3)] * 3, st.floats(0, 2), st.floats(-1, 1)),
    max_size=12,
)


def of_rows(rows: list[Any]) -> Iterator[JoinedDigest]:
    for prompt, chosen, rejected, weight, margin in rows:
        ids = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        yield JoinedDigest.of_row({**ids, "weight": weight, "margin": margin})


@given(ROWS, ROWS, ROWS)
def test_a_joined_digest_does_not_depend_on_where_it_was_cut(one, two, three):
    a, b, c = (digests_joined(of_rows(rows)) for rows in (one, two, three))
    assert (a + b) + c == a + (b + c) == digests_joined(of_rows([*one, *two, *three]))
    assert a + JoinedDigest() == JoinedDigest() + a == a


@given(ROWS, ROWS)
def test_other_rows_or_another_order_have_another_joined_digest(one, two):
    assert (digests_joined(of_rows(one)) == digests_joined(of_rows(two))) is (
        repr(one) == repr(two)
    )


def test_accounts_add_up_in_the_order_of_the_rows():
    one, two = PrepareCounts("a"), PrepareCounts("b")
    one.drop("CP205 row 1")
    two.drop("CP204 row 2")
    two.drop("CP205 row 3")
    two.kept = 4
    one.add(two)
    assert (one.rows, one.kept) == (3, 4)
    assert one.dropped == {"CP205": 2, "CP204": 1}
    assert list(one.examples.items()) == [("CP205", "CP205 row 1"), ("CP204", "CP204 row 2")]
