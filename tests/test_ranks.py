"""Exchanges between ranks: their values on two processes, and that they do nothing with one."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch

from counterpoint import SetupError, ranks
from tests.invariance.test_ranks import launch


def test_alone_every_exchange_gives_back_what_it_was_given() -> None:
    tensor = torch.tensor([1.5, -2.0])
    assert (ranks.rank(), ranks.count(), ranks.alone()) == (0, 1, True)
    assert all(one(tensor) is tensor for one in (ranks.add_up, ranks.least, ranks.most))
    assert tensor.tolist() == [1.5, -2.0]
    assert ranks.gathered("a") == ["a"]
    assert ranks.everywhere([3, 1]) == [3, 1]
    assert not ranks.raised_between_ranks(RuntimeError("gloo: connection closed by peer"))


@pytest.mark.slow
def test_two_ranks_find_the_same_values() -> None:
    for code, output in launch("tests.test_ranks", []):
        assert code == 0, output[-3000:]


def main() -> None:
    """Be one of two ranks."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    ranks.leave_at_exit()
    own = ranks.rank()
    assert (ranks.count(), ranks.alone()) == (2, False)
    tensor = torch.tensor([1.0 + own, -own])
    assert ranks.add_up(tensor) is tensor
    assert tensor.tolist() == [3.0, -1.0]
    assert ranks.least(torch.tensor([own, -own])).tolist() == [0, -1]
    assert ranks.most(torch.tensor([own, -own])).tolist() == [1, 0]
    assert ranks.gathered({"rank": own}) == [{"rank": 0}, {"rank": 1}]
    assert ranks.everywhere([own] * (own + 1)) == [0, 1, 1]
    assert ranks.first_does(lambda: own + 7) == 7
    assert ranks.each_does(lambda: own) == own

    def fail_on_the_second() -> None:
        if own:
            raise SetupError("CP515", "no space")

    with pytest.raises(SetupError, match=r"^CP515 ") as raised:
        ranks.each_does(fail_on_the_second)
    noted = getattr(raised.value, "__notes__", [])
    assert noted == ([] if own else ["It was raised on rank 1."])


if __name__ == "__main__":
    main()
