"""How long ranks compute and how long they exchange weights and gradients: sharded runs on paper.

A micro-batch of a sharded run gathers every layer's weights twice and adds up its gradients once,
whatever the micro-batch holds. Computation grows with its tokens. So below some number of tokens,
the break-even, ranks wait for the network.

    seconds = max(computing, exchanging) + what nothing hides

What is outside of the layers (embedding, final norm, head) is taken to be hidden by nothing, and
all else wholly by the computation. Not here: latency, a network that others use, ranks that wait
for the slowest one, optimizer and data; each makes a run slower than this says.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from counterpoint.planner.rehearsal import Work
from counterpoint.planner.sharding import Groups


@dataclass(frozen=True, slots=True)
class Cluster:
    """The machines of a run.

    Args:
        ranks: devices in all.
        nodes: machines; each has the same number of the devices.
        replicas: whole models among the ranks; 1: each weight is split over all of them.
        intra: bytes a second that a device exchanges with others of its machine, each way.
        inter: the same with devices of other machines.
        peak: operations a second of a device, by its data sheet.
        efficiency: share of them that large products reach, in (0, 1].
    """

    ranks: int
    nodes: int = 1
    replicas: int = 1
    intra: float = 360e9
    inter: float = 40e9
    peak: float = 989e12
    efficiency: float = 0.5

    @property
    def shards(self) -> int:
        """Ranks that share a weight."""
        return self.ranks // self.replicas

    @property
    def sharing(self) -> float:
        """Bytes a second between ranks that share weights: the slowest way between them."""
        a_node = self.ranks // self.nodes
        # neighbours share: where a node's ranks are no multiple of them, some lie on two nodes
        return self.inter if a_node % self.shards else self.intra

    @property
    def copying(self) -> float:
        """The same between replicas."""
        return self.inter if self.nodes > 1 else self.intra


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a device receives in a micro-batch, and sends as many.

    Args:
        gathered: weights, in the forward and in the backward.
        scattered: gradients that are added up and split.
        copied: gradients of replicas that are added up.
        outside: of all of that, what is not of a layer.
    """

    gathered: int
    scattered: int
    copied: int
    outside: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.gathered + self.scattered + self.copied


@dataclass(frozen=True, slots=True)
class PredictedPace:
    """One size of micro-batches.

    Args:
        what: which one, in words.
        tokens: input tokens of a device's micro-batch.
        computing: seconds of its computation.
        exchanging: seconds of its exchanges.
        seconds: of a micro-batch.
        mfu: useful operations over those of the data sheet.
    """

    what: str
    tokens: int
    computing: float
    exchanging: float
    seconds: float
    mfu: float


@dataclass(frozen=True, slots=True)
class Scaling:
    """What is said of a sharded run's speed.

    Args:
        cluster: the machines, as they were described.
        layer: bytes of the largest layer, whole, as it is gathered.
        work: operations a token.
        traffic: bytes a micro-batch.
        break_even: tokens of a device's micro-batch at which it computes as long as it exchanges.
        paces: some sizes of micro-batches.
    """

    cluster: Cluster
    layer: int
    work: Work
    traffic: Traffic
    break_even: int
    paces: tuple[PredictedPace, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bytes, seconds, operations."""
        return asdict(self)


def traffic_of(groups: Groups, cluster: Cluster) -> Traffic:
    """Bytes that a device exchanges in a micro-batch.

    Args:
        groups: how the model is gathered.
        cluster: the machines.
    """
    others = (cluster.shards - 1) / cluster.shards
    copies = 2 * (cluster.replicas - 1) / cluster.replicas / cluster.shards
    every, tail, outside = groups.all, groups.tail, groups.outside
    # the tail is gathered once
    once = outside.weights * 2 - tail.weights
    return Traffic(
        gathered=round(others * (every.weights * 2 - tail.weights)),
        scattered=round(others * every.reduced),
        copied=round(copies * every.reduced),
        outside=round(others * (once + outside.reduced) + copies * outside.reduced),
    )


def scaling_of(groups: Groups, work: Work, cluster: Cluster, sizes: dict[str, int]) -> Scaling:
    """Compare computation with exchange.

    Args:
        groups: how the model is gathered.
        work: operations a token.
        cluster: the machines.
        sizes: tokens of micro-batches to look at, by what they are called.
    """
    traffic = traffic_of(groups, cluster)
    exchanging = _seconds(traffic, cluster)
    exposed = exchanging * traffic.outside / max(1, traffic.total)
    a_token = work.done / (cluster.peak * cluster.efficiency)
    even = round(exchanging / a_token)

    def pace(what: str, tokens: int) -> PredictedPace:
        computing = tokens * a_token
        seconds = max(computing, exchanging) + exposed
        mfu = tokens * work.useful / (cluster.peak * seconds)
        return PredictedPace(what, tokens, computing, exchanging, seconds, mfu)

    sizes = {**sizes, "break-even": even}
    paces = tuple(pace(what, tokens) for what, tokens in sizes.items() if tokens > 0)
    return Scaling(cluster, groups.largest.weights, work, traffic, even, paces)


def _seconds(traffic: Traffic, cluster: Cluster) -> float:
    shared = (traffic.gathered + traffic.scattered) / cluster.sharing
    return shared + traffic.copied / cluster.copying
