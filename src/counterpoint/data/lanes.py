"""A stream that is read by shard: every rank its own, and a step the same pairs on any number.

1. The shards of a stream are divided into ``lanes``, a number that belongs to the experiment and
   not to the launch. Pairs come from the lanes in turn, one from each; a lane that has ended is
   passed over. This order, and so each step, depends on the stream and the number of lanes alone.
2. Where the number of ranks divides that of lanes, rank r reads lanes r, r + ranks and so on, and
   trains what it has read: no other rank reads those shards. Where it does not, every rank reads
   all lanes and keeps its share of each step.
3. Ranks must know when a lane of another has ended. So they tell each other at every step which of
   their lanes gave fewer pairs than their turns, how far each is, and what was counted.

Not here: what a lane's rows become (``prepare``), a stream of one lane (``batching``).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from counterpoint import ranks
from counterpoint.data.account import empty
from counterpoint.data.batching import DealtStream, filler
from counterpoint.data.counts import PrepareCounts
from counterpoint.data.sampler import deal
from counterpoint.errors import DataError
from counterpoint.log import logger
from counterpoint.records import TokenPair

Pull = Callable[[int, int, PrepareCounts], Iterator[TokenPair | None]]
"""Reads a lane: its number, the rows of it that are left out, and where rows are counted. Gives a
pair for a row that is one, and None for every other."""


@dataclass
class StreamPlace:
    """Where a pass over a stream is, the same on every rank.

    Args:
        rows: read of each lane.
        turn: the lane whose turn is next.
        ended: the lanes that have ended.
        counted: whether rows are counted, which is done in the first pass.
    """

    rows: list[int]
    turn: int
    ended: list[int]
    counted: bool

    @classmethod
    def first(cls, lanes: int, *, counted: bool) -> StreamPlace:
        """The beginning of a pass."""
        return cls([0] * lanes, 0, [], counted)

    def state_dict(self) -> dict[str, Any]:
        """As a tree."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Told:
    """What a rank has found in its lanes.

    Args:
        left: pairs of this step that a lane still had, of lanes that have ended.
        rows: read of each lane.
        counts: what became of the rows since the last step.
        spare: a pair that stands in where a rank has none.
    """

    left: dict[int, int]
    rows: dict[int, int]
    counts: dict[str, Any]
    spare: TokenPair | None


def turns(wanted: int, first: int, left: Mapping[int, int], lanes: int) -> list[int]:
    """Whose turns the pairs of a step are.

    Args:
        wanted: pairs of the step.
        first: the lane that begins.
        left: how many pairs a lane still has, of lanes that have ended; others have enough.
        lanes: number of lanes.

    Returns:
        Lanes in their order; fewer than ``wanted`` only where all have ended.
    """
    found: list[int] = []
    rest, lane, idle = dict(left), first, 0
    while len(found) < wanted and idle < lanes:
        if rest.get(lane, 1) > 0:
            found.append(lane)
            idle = 0
            if lane in rest:
                rest[lane] -= 1
        else:
            idle += 1
        lane = (lane + 1) % lanes
    return found


def check_lanes(shards: int, lanes: int, ranks: int) -> None:
    """Refuse more lanes than a stream has shards; say where ranks read what they do not train.

    Args:
        shards: of the stream.
        lanes: into which they are to be divided, at least 1.
        ranks: number of ranks.

    Raises:
        DataError: CP225.
    """
    if lanes > shards:
        raise DataError(
            "CP225",
            f"stream_shards={lanes}, but the streamed train_dataset has {shards} "
            f"shard{'s' * (shards > 1)}. Lower it, or stream more files.",
        )
    if ranks > 1 and lanes % ranks:
        how = "read by lanes of its shards" if lanes > 1 else "one lane"
        more = (
            f"stream_shards={shards // ranks * ranks} would let each read its own shards."
            if shards >= ranks
            else f"It has {shards} of them; with {ranks} or more each could read its own."
        )
        logger().info(
            "the stream is %s, and each of %d ranks reads all of it and trains a share. %s",
            how,
            ranks,
            more,
        )


class LanedStream(DealtStream):
    """One rank's windows of a stream in lanes, whole steps only.

    Args:
        pull: reads a lane.
        lanes: number of lanes, at least 1.
        begin: gives the place where the next pass begins.
        counts: of the whole stream; the same on every rank after each step.
        micro_batch: most pairs of a micro-batch.
        step_pairs: pairs of a step over all ranks, at least 1.
        ranks: number of ranks.
        rank: which of them, from 0.
    """

    def __init__(
        self,
        pull: Pull,
        lanes: int,
        begin: Callable[[], StreamPlace],
        counts: PrepareCounts,
        *,
        micro_batch: int,
        step_pairs: int,
        ranks: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(
            tuple, micro_batch=micro_batch, step_pairs=step_pairs, ranks=ranks, rank=rank
        )
        self.pull, self.lanes, self.begin, self.counts = pull, lanes, begin, counts
        self.apart = lanes % ranks == 0
        """Whether each rank reads lanes of its own."""

    def __iter__(self) -> Iterator[list[TokenPair]]:
        """The windows of one pass over the stream."""
        place = self.begin()
        reading = _Reading(self, place)
        yield from ([] for _ in range(self.done))
        self.done = 0
        if not any(place.rows) and not reading.look():
            raise empty(self.counts.name, self.counts)
        while (mine := reading.step()) is not None:
            yield from mine


class _Reading:
    """One pass of one rank over a ``LanedStream``."""

    # whose class is torch's, with a hint that the checkers of shapes warn of
    def __init__(self, stream: Any, place: StreamPlace) -> None:
        self.stream, self.place = stream, place
        mine = range(stream.rank, stream.lanes, stream.ranks) if stream.apart else None
        self.mine = [*(mine or range(stream.lanes))]
        self.fresh = self._none()
        self.rows = {lane: place.rows[lane] for lane in self.mine}
        self.held: dict[int, deque[TokenPair]] = {lane: deque() for lane in self.mine}
        self.spare: TokenPair | None = None
        # a generator opens its lane with the first pair that is asked of it
        self.open = {
            lane: stream.pull(lane, self.rows[lane], self.fresh)
            for lane in self.mine
            if lane not in place.ended
        }

    def step(self) -> list[list[TokenPair]] | None:
        """This rank's windows of the next step; None at the end of the pass."""
        stream, place = self.stream, self.place
        order = self._agreed(stream.step_pairs)
        if not order:
            return None
        place.turn = (order[-1] + 1) % stream.lanes
        step = [self.held[lane].popleft() for lane in order if lane in self.held]
        if stream.apart:
            size, more = divmod(len(step), stream.accumulation)
            ends = [0]
            for window in range(stream.accumulation):
                ends.append(ends[-1] + size + (window < more))
            windows = [step[a:b] for a, b in pairwise(ends)]
            return [window or [filler(self._stand_in())] for window in windows]
        keys = deal(
            range(len(step)),
            micro_batch=stream.micro_batch,
            ranks=stream.ranks,
            rank=stream.rank,
            rounds=stream.accumulation,
        )
        return [[step[k] if k >= 0 else filler(step[~k]) for k in window] for window in keys]

    def look(self) -> bool:
        """Whether the stream has a pair."""
        return bool(self._agreed(1))

    def _agreed(self, wanted: int) -> list[int]:
        """Whose turns the pairs of a step are, once every lane has what its turns ask for."""
        place = self.place
        left = dict.fromkeys(place.ended, 0)
        while True:
            order = turns(wanted, place.turn, left, self.stream.lanes)
            asked = Counter(order)
            every = self._exchanged(partial(self._fetched, asked))
            news = {lane: n for told in every for lane, n in told.left.items() if lane not in left}
            for told in every:
                for lane, rows in told.rows.items():
                    place.rows[lane] = rows
                part = self._none()
                part.load_state_dict(told.counts)
                if place.counted:
                    self.stream.counts.add(part)
            self.spare = self.spare or next((t.spare for t in every if t.spare), None)
            if not news:
                place.ended = sorted(left)
                return order
            left |= news

    def _exchanged(self, work: Callable[[], _Told]) -> list[_Told]:
        return ranks.each_gives(work) if self.stream.apart else [work()]

    def _fetched(self, asked: Counter[int]) -> _Told:
        """Read this rank's lanes until they hold what is asked of them, or end."""
        left: dict[int, int] = {}
        for lane in self.mine:
            held = self.held[lane]
            while len(held) < asked[lane] and lane in self.open:
                for pair in self.open[lane]:
                    self.rows[lane] += 1
                    if pair is not None:
                        held.append(pair)
                        break
                else:
                    del self.open[lane]
            if len(held) < asked[lane]:
                left[lane] = len(held)
        counts = self.fresh.taken()
        spare = next((held[0] for held in self.held.values() if held), None)
        return _Told(left, dict(self.rows), counts, spare if self.spare is None else None)

    def _stand_in(self) -> TokenPair:
        if self.spare is None:
            raise RuntimeError("a step without a pair on any rank")
        return self.spare

    def _none(self) -> PrepareCounts:
        return PrepareCounts(self.stream.counts.name, digest=None, limits=self.stream.counts.limits)
