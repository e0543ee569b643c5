"""Metrics as running sums on the device, each weighted by what it counts.

A metric is a sum and a count; over micro-batches, steps and ranks both are added, and only a
log line divides them. Nothing is read back from the device in between, and a log line costs one
reduction and one read, however many metrics there are.

Not here: which metrics a trainer logs when (``trainer``), the loss itself (``losses``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from counterpoint import ranks
from counterpoint.forward.pair_forward import PairOutput
from counterpoint.records import LossTerms, PairBatch, exact_dtype

Means = Mapping[str, tuple[Tensor, Tensor]]
"""Metric -> (sum, count), both scalars."""


def pair_means(terms: LossTerms, output: PairOutput, batch: PairBatch) -> Means:
    """TRL's metrics of a micro-batch, over its real pairs.

    Args:
        terms: of the batch's pairs.
        output: of the forward pass that led to them.
        batch: the pairs; fillers count nowhere.

    Returns:
        ``rewards/*`` and ``logps/*`` as means over pairs, ``logits/*`` (mean over the
        vocabulary) and ``nll_loss`` as means over completion tokens; ``policy_weights``, where
        pairs are weighed by the policy, as a mean over pairs.
    """
    counted = batch.counted
    pairs = counted.sum()

    def over(values: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept = torch.where(counted, values.detach(), torch.zeros_like(values))
        return kept.sum(), pairs if counts is None else (counts * counted).sum()

    logps, likeness = output.logps, output.logps.facts.likeness
    weighed = {} if likeness is None else {"policy_weights": over(likeness.clamp(max=0).exp())}
    chosen_logits, rejected_logits = output.logit_sums.view(-1, len(batch))[:2]
    return {
        "rewards/chosen": over(terms.chosen_rewards),
        "rewards/rejected": over(terms.rejected_rewards),
        "rewards/accuracies": over(
            (terms.chosen_rewards > terms.rejected_rewards).to(terms.chosen_rewards.dtype)
        ),
        "rewards/margins": over(terms.chosen_rewards - terms.rejected_rewards),
        "logps/chosen": over(terms.chosen_logps),
        "logps/rejected": over(terms.rejected_logps),
        "logits/chosen": over(chosen_logits, logps.chosen_tokens),
        "logits/rejected": over(rejected_logits, logps.rejected_tokens),
        "nll_loss": over(terms.nll, terms.nll_tokens),
        **weighed,
    }


class MetricSums:
    """Sums since the last log line, those of the running step held back until it is applied."""

    def __init__(self) -> None:
        self._applied: dict[str, Tensor] = {}
        self._pending: dict[str, Tensor] = {}

    def add(self, means: Means) -> None:
        """Add a micro-batch's sums and counts to the running step."""
        for name, (total, count) in means.items():
            dtype = exact_dtype(total.device)
            entry = torch.stack([total.detach().to(dtype), count.detach().to(dtype)])
            previous = self._pending.get(name)
            self._pending[name] = entry if previous is None else previous + entry

    def apply(self) -> None:
        """The step reached the weights: its sums count."""
        for name, entry in self._pending.items():
            previous = self._applied.get(name)
            self._applied[name] = entry if previous is None else previous + entry
        self._pending = {}

    def discard(self) -> None:
        """The step was skipped: its sums count nowhere."""
        self._pending = {}

    def state_dict(self) -> dict[str, Tensor]:
        """The sums of applied steps, for a checkpoint; each [sum, count]."""
        return dict(self._applied)

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Resume with the sums of a checkpoint."""
        self._applied, self._pending = {n: t.to(device) for n, t in state.items()}, {}

    @staticmethod
    def merged(states: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], ...]:
        """The states of several ranks as that of one, and that of the others: the same, empty.

        Args:
            states: of ``state_dict``.
        """
        every = [(name, entry) for state in states for name, entry in state.items()]
        empty = {name: torch.zeros_like(entry) for name, entry in every}
        total = {name: entry.clone() for name, entry in empty.items()}
        for name, entry in every:
            total[name] += entry
        return total, empty

    def read(
        self, own: Mapping[str, int] | None = None, device: torch.device | str = "cpu"
    ) -> dict[str, tuple[float, float]]:
        """Sum and count of each metric over all ranks since the last call; then starts anew.

        Every rank must call it with the same metrics.

        Args:
            own: numbers that this rank has counted itself, to be added up in the same reduction;
                each comes back twice, as sum and as count.
            device: where the metrics are.
        """
        exact = exact_dtype(device)
        # filled in on the device: a copy from the host would wait for it
        entries = self._applied | {
            name: torch.full((2,), number, dtype=exact, device=device)
            for name, number in (own or {}).items()
        }
        self._applied = {}
        if not entries:
            return {}
        names = sorted(entries)  # ranks may have met them in different orders
        sums = ranks.add_up(torch.stack([entries[name] for name in names]))
        found = dict(zip(names, sums.tolist(), strict=True))
        return {name: (found[name][0], found[name][1]) for name in entries}


def means(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Sum over count of each metric; one that counted nothing is left out."""
    return {name: total / count for name, (total, count) in sums.items() if count}
