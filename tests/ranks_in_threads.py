"""Several ranks in one process: each is a thread, and what they exchange goes from hand to hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from counterpoint import CounterpointError, ranks


def as_ranks(number: int, work: Callable[[], Any]) -> list[Any]:
    """What each of several ranks finds; the text of an error of ours where it raises one.

    Args:
        number: of ranks.
        work: asks ``counterpoint.ranks`` which rank it is.
    """
    own, meeting = threading.local(), threading.Barrier(number, timeout=120)
    mine: list[Any] = [None] * number
    found: list[Any] = [None] * number

    def gathered(given: Any) -> list[Any]:
        mine[own.rank] = given
        meeting.wait()
        every = list(mine)
        meeting.wait()  # nobody gives anew before all have taken
        return every

    def first_does(work: Callable[[], Any]) -> Any:
        return ranks._settled(gathered(ranks._attempt(work) if own.rank == 0 else None)[0], 0)

    def be(rank: int) -> None:
        own.rank = rank
        try:
            found[rank] = work()
        except CounterpointError as error:
            found[rank] = str(error)
        except BaseException as error:
            meeting.abort()
            found[rank] = error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "rank", lambda: own.rank)
        patch.setattr(ranks, "count", lambda: number)
        patch.setattr(ranks, "gathered", gathered)
        patch.setattr(ranks, "first_does", first_does)
        threads = [threading.Thread(target=be, args=(rank,)) for rank in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found
