"""The ledger counts every byte once, from its birth to its death."""

from __future__ import annotations

import torch

from counterpoint.planner.ledger import Ledger


def totals(ledger: Ledger) -> list[int]:
    return [sum(held.values()) for held in ledger.held()]


def test_memory_is_counted_when_it_is_made_and_no_longer_when_it_is_gone():
    with Ledger("a") as ledger:
        one = torch.zeros(100)
        two = one + 1
        del one
        three = two + 1
    assert totals(ledger) == [400, 800, 800]
    del two, three
    assert [entry.death for entry in ledger.entries] == [2, 3, 3]


def test_views_and_what_is_done_in_place_take_nothing():
    with Ledger("a") as ledger:
        whole = torch.zeros(10, 10)
        part = whole[2:].t().reshape(2, -1)[:1]
        whole.add_(1)
        viewed = whole.view(-1)
    sizes = [entry.size for entry in ledger.entries]
    assert sizes == [400, 320], "the reshape of what is transposed copies, and nothing else"
    del part, viewed


def test_what_was_there_before_is_not_counted_nor_are_its_views():
    weight = torch.zeros(10)
    with Ledger("a", there=[weight]) as ledger:
        view = weight[2:]
        made = view * 2
    assert [entry.size for entry in ledger.entries] == [32]
    del made


def test_bytes_go_by_kind_and_kinds_can_be_known_later():
    with Ledger("a") as ledger:
        one = torch.zeros(1)
        ledger.kind = "b"
        two = torch.zeros(2)
    assert ledger.held() == [{"a": 4}, {"a": 4, "b": 8}]
    ledger.rename([two], "c")
    assert ledger.held()[1] == {"a": 4, "c": 8}
    del one


def test_what_autograd_keeps_is_held_until_it_has_been_used():
    weight = torch.ones(1000, requires_grad=True)
    with Ledger("a", there=[weight]) as ledger:
        value = (weight * 2).exp().sum()  # exp keeps its result
        value.backward()
    line = totals(ledger)
    kept = 4 * 1000
    assert max(line) >= 2 * kept
    assert line[-1] < 3 * kept
