"""What a plan holds: estimates, ways to cut a step, remedies; and how it looks in a notebook.

Not here: making it (``plan``), the table of a terminal (``table``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from counterpoint.language import phrase
from counterpoint.markup import Content
from counterpoint.notebook import notebook_html, rows_shown
from counterpoint.planner.machine import show_bytes
from counterpoint.planner.scaling import Scaling

ROWS = (
    ("weights", "weights"),
    ("optimizer", "optimizer"),
    ("initial", "initial policy"),
    ("buckets", "exchange between ranks"),
    ("gradients", "gradients"),
    ("activations", "activations"),
    ("head", "head"),
    ("passing", "backward at hand"),
    ("gathered", "whole for a moment"),
)
"""What a peak is made of: fields of ``Estimate``, and what they are called."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a step needs at its worst moment, in bytes.

    Args:
        pairs: of its largest micro-batch.
        tokens: input tokens of that, padding included, and patches of its pictures.
        weights: of the model, buffers included.
        optimizer: what the optimizer keeps.
        initial: of the trained weights as they were, where the drift from them is bounded.
        buckets: what ranks exchange gradients through.
        gradients: as far as they are there at that moment.
        activations: what the forward left.
        head: the output head's.
        passing: what the backward has at hand.
        gathered: weights and gradients in shards that are whole for a moment.
        host: what waits in the host's memory, and is no part of the peak.
        peak: all others.
        fits: whether that is no more than may be used.
        patches: those among the tokens that are patches of pictures.
    """

    pairs: int
    tokens: int
    weights: int
    optimizer: int
    initial: int
    buckets: int
    gradients: int
    activations: int
    head: int
    passing: int
    gathered: int
    host: int
    peak: int
    fits: bool
    patches: int = 0


@dataclass(frozen=True, slots=True)
class Split:
    """One way to get the wanted pairs a step.

    Args:
        per_device: ``per_device_train_batch_size``.
        accumulation: ``gradient_accumulation_steps``.
        ranks: processes.
        tokens: input tokens of the heaviest micro-batch.
        peak: bytes at the worst moment.
        fits: whether that is no more than may be used.
    """

    per_device: int
    accumulation: int
    ranks: int
    tokens: int
    peak: int
    fits: bool


@dataclass(frozen=True, slots=True)
class Remedy:
    """One thing to change, on top of those before it.

    Args:
        line: of the configuration.
        cost: what it costs, in words.
        peak: bytes that the longest pair alone needs then.
        budget: most tokens of a micro-batch then.
        fits: whether the longest pair does.
    """

    line: str
    cost: str
    peak: int
    budget: int
    fits: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is said of a run's memory.

    Args:
        parameters: weights of the model, adapters included.
        trained: those that train.
        layout: of micro-batches, as far as can be known before the run's first pairs.
        reason: why not the other one; "" where there is nothing to say.
        precision: of weights and products, in words.
        checkpointing: whether activations are computed again.
        share: of the layers that do so, in (0, 1].
        memory: bytes of the device.
        usable: bytes of it that are planned with.
        lengths: tokens of a pair, its prompt once, by share of the pairs.
        pairs: of an optimizer step, over all ranks.
        asked: what the run needs as it is configured.
        longest: what the longest pair alone needs.
        budget: the most ``max_micro_batch_tokens`` that fits; 0 where no pair does.
        whole: input tokens of a rank's share of the longest step.
        splits: ways to get the wanted pairs a step, the largest micro-batches first.
        remedies: what to turn on where it does not fit, the cheapest first; each with those before.
        scaling: of a run in shards, computation against exchange.
    """

    parameters: int
    trained: int
    layout: str
    reason: str
    precision: str
    checkpointing: bool
    share: float
    memory: int
    usable: int
    lengths: dict[str, int]
    pairs: int
    asked: Estimate
    longest: Estimate
    budget: int
    whole: int
    splits: tuple[Split, ...]
    remedies: tuple[Remedy, ...]
    scaling: Scaling | None = None

    @property
    def fits(self) -> bool:
        """Whether the run can do its steps, cut as small as it takes."""
        return self.longest.fits

    def _repr_html_(self) -> str:
        """The plan as tables, in a notebook."""
        both = (self.asked, self.longest)
        parts = [
            (phrase("pairs of the micro-batch"), *(one.pairs for one in both)),
            (phrase("tokens of it"), *(one.tokens for one in both)),
            *(
                [(phrase("of these, patches of pictures"), *(one.patches for one in both))]
                if any(one.patches for one in both)
                else []
            ),
            *(
                (phrase(title), *(show_bytes(getattr(one, name)) for one in both))
                for name, title in ROWS
                if any(getattr(one, name) for one in both)
            ),
            (phrase("peak"), *(", ".join(_verdict(one)) for one in both)),
        ]
        splits = [
            (one.per_device, one.accumulation, one.ranks, one.tokens, *_verdict(one))
            for one in self.splits
        ]
        remedies = [(one.line, one.cost, *_verdict(one)) for one in self.remedies]
        ways = ("a device", "accumulated", "ranks", "most tokens", "peak", "")
        head = phrase(
            "{weights} weights, {trained} trained, {precision}; {layout} layout; {pairs} pairs a "
            "step; {usable} to plan with",
            weights=f"{self.parameters:,}",
            trained=f"{self.trained:,}",
            precision=self.precision,
            layout=self.layout,
            pairs=f"{self.pairs:,}",
            usable=show_bytes(self.usable),
        )
        return notebook_html(
            head,
            rows_shown(
                ("at the worst moment", "as configured", "longest pair"), parts, label="peak"
            ),
            rows_shown(ways, splits, label="ways to make the same step", most=12),
            rows_shown(("turn on", "cost", "longest pair", ""), remedies, label="what helps"),
            *self._paces_html(),
        )

    def _paces_html(self) -> tuple[Content, ...]:
        if self.scaling is None:
            return ()
        rows = [
            (phrase(one.what), one.tokens, *_short(one.computing, one.exchanging), f"{one.mfu:.1%}")
            for one in self.scaling.paces
        ]
        heads = ("micro-batch", "tokens", "computing, s", "exchanging, s", "of peak")
        return (rows_shown(heads, rows, label="computation against exchange"),)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; bytes throughout."""
        return {**asdict(self), "fits": self.fits}


def _verdict(one: Estimate | Split | Remedy) -> tuple[str, str]:
    return show_bytes(one.peak), phrase("fits") if one.fits else phrase("too much")


def _short(*seconds: float) -> tuple[str, ...]:
    return tuple(f"{one:.3g}" for one in seconds)
