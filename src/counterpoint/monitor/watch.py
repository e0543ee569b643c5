"""Keeps an eye on a model while it trains: what it was at the start, and how far that is gone.

Of weights that train, a sample is kept and compared (``sample``); of what is frozen, a checksum of
every byte (``checksum``). Whether a tensor ever had a gradient is asked at every step until it had
one, which costs nothing once all have. A look reads from the device once.

Where ranks hold parts of the weights, each looks at its own, and a look adds up what all have seen,
in one exchange: every rank then knows all of it and judges alike.

A step's gradients are there before the optimizer's step only, what it did is seen after it; so a
look is in two halves, ``before_step`` and ``after_step``.

Not here: when to look (``callback``), what is wrong with what is seen (``judge``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from counterpoint import ranks
from counterpoint.engine.face import Engine
from counterpoint.engine.plain import Plain
from counterpoint.monitor.checksum import checksum
from counterpoint.monitor.groups import group_of
from counterpoint.monitor.look import Look, TensorLook, add_look
from counterpoint.monitor.sample import Sample
from counterpoint.rounding import rounds_to_nearest

Half = tuple[Tensor, Tensor, Tensor]
"""What is seen before a step: samples of the weights and of their gradients, and the norms."""


class MovementWatch:
    """A model under training, as far as this process holds it.

    Args:
        model: whose named parameters are watched, each once; at least one of them trains.
        optimizer: that moves them.
        step: optimizer steps done before.
        engine: whose parts of the parameters are watched; the whole of them without one.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        step: int = 0,
        engine: Engine | None = None,
    ) -> None:
        self._engine = engine or Plain()
        self._engine.at_rest(model)
        self._own = self._engine.own_part
        here = {n: p for n, p in model.named_parameters() if p.device.type != "meta"}
        self.trained = {name: p for name, p in here.items() if p.requires_grad}
        self.frozen = {name: p for name, p in here.items() if not p.requires_grad}
        self._optimizer = optimizer
        self._sample = Sample({name: self._own(p) for name, p in self.trained.items()})
        self._shares = self._shares_of_rank() if self._engine.shards else None
        self._start = self._last = self._read()
        self._sums = {name: checksum(self._own(p)) for name, p in here.items()}
        self._heard = self._start.new_zeros(len(self.trained))
        self._silent = list(range(len(self.trained)))
        self._rounds = rounds_to_nearest(optimizer)
        self._unoptimized = tuple(n for n, p in self.trained.items() if p not in self._rounds)
        self.since = self.last = self._unchanged_at = step
        self._applied = self._full = 0
        self._acting = False
        self._half: Half | None = None

    # ---- a step ----

    def before_step(self, *, look: bool) -> None:
        """The gradients are there and the weights are about to move.

        Args:
            look: whether the step is to be looked at.
        """
        gradients = [None if p.grad is None else self._own(p.grad) for p in self.trained.values()]
        self._acting = any(gradient is not None for gradient in gradients)
        wanted = range(len(gradients)) if look else self._silent
        norms = self._norms([gradients[number] for number in wanted])
        if look:
            self._heard += norms
            self._half = (self._read(), self._sample.read(gradients), norms)
        elif self._silent:
            self._heard[self._silent] += norms

    def after_step(
        self, step: int, *, look: bool, skipped: bool = False, final: bool = False
    ) -> Look | None:
        """The optimizer has made its step.

        Args:
            step: its number, from 1.
            look: as it was said to ``before_step``.
            skipped: whether the optimizer was kept from it, as by float16's loss scaler.
            final: whether no further step comes.

        Returns:
            What is seen, if the step is to be looked at.
        """
        applied = self._acting and not skipped
        self._applied += applied
        self._full += applied and self._at_full_rate()
        if not look:
            return None
        half, self._half = self._half, None
        return self._look(step, None if skipped else half, final=final)

    def look_back(self, step: int) -> Look:
        """A look between two steps, where there are no gradients.

        Args:
            step: the last one that was done.
        """
        return self._look(step, None, final=True)

    def unchanged(self, names: Collection[str]) -> set[str]:
        """Those of some tensors whose every byte is that of the start; reads from the device.

        Every rank that watches must call it, with the same names.
        """
        chosen = list(names)
        every = {**self.trained, **self.frozen}
        found = self._changed({name: every[name] for name in chosen})
        changed = (ranks.add_up(found) if self._engine.shards else found).tolist()
        return {name for name, other in zip(chosen, changed, strict=True) if not other}

    def _look(self, step: int, half: Half | None, *, final: bool) -> Look:
        for name in [name for name, p in self.frozen.items() if p.requires_grad]:
            del self.frozen[name]  # thawed on purpose
        after = self._read()
        rows, norms, heard, changed = self._told(after, half)
        names = list(self.trained)
        self._silent = [number for number, norm in enumerate(heard) if norm == 0]
        found = tuple(name for name, other in zip(self.frozen, changed, strict=True) if other)
        rates = self._rates()
        taken = self._sample.taken if self._shares is None else self._whole_sizes
        seen = self._own if self._shares is None else _whole
        facts = zip(self.trained.items(), rows, taken, norms, strict=True)
        look = Look(
            step=step,
            since=self.since,
            last=self.last,
            applied=self._applied,
            full=self._full,
            learning_rate=max(rates.values()),
            at_full_rate=half is not None and self._at_full_rate(),
            final=final,
            tensors={
                name: TensorLook.of(
                    seen(tensor), row, taken=taken, norm=norm, loses=self._loses(tensor, rates)
                )
                for (name, tensor), row, taken, norm in facts
            },
            silent=tuple(names[number] for number in self._silent),
            unoptimized=self._unoptimized,
            frozen=_weights_by_group({name: seen(p) for name, p in self.frozen.items()}),
            changed=found,
            unchanged_at=self._unchanged_at,
        )
        self._last, self.last = after, step
        if not found:
            self._unchanged_at = step
        return look

    def _told(
        self, after: Tensor, half: Half | None
    ) -> tuple[list[list[float]], list[float], list[float], list[float]]:
        """All that a look needs from the device, read in one go.

        Returns:
            Of each tensor that trains a row of ``count``, the norm of its gradient, and 0 if it
            never had one; and of each frozen one, whether it has changed.
        """
        none = (after, torch.zeros_like(after), torch.full_like(self._heard, torch.nan))
        before, gradients, norms = half or none
        counts = add_look(self._start, self._last, before, after, gradients)
        parts = [*counts.T, norms, self._heard, self._changed(self.frozen)]
        parts = [part.double() for part in parts]
        if self._shares is not None:
            parts = self._of_all_ranks(parts, self._shares)
        told = iter(torch.cat(parts).tolist())
        *columns, of_step, of_run, changed = (
            [next(told) for _ in range(len(part))] for part in parts
        )
        return [list(row) for row in zip(*columns, strict=True)], of_step, of_run, changed

    def _shares_of_rank(self) -> Float[Tensor, "2 tensors"]:
        """What an entry that this rank looks at stands for, and what a sum of squares counts."""
        shares = [self._engine.share_of(tensor) for tensor in self.trained.values()]
        sizes = [self._own(tensor).numel() for tensor in self.trained.values()]
        entries = [
            share * size / max(1, taken)
            for share, size, taken in zip(shares, sizes, self._sample.taken, strict=True)
        ]
        return torch.tensor([entries, shares], dtype=torch.float64, device=self._sample.device)

    @property
    def _whole_sizes(self) -> list[int]:
        return [tensor.numel() for tensor in self.trained.values()]

    def _of_all_ranks(self, parts: list[Tensor], shares: Tensor) -> list[Tensor]:
        """What ``_told`` reads, added up: as if all entries of a tensor were looked at."""
        *counts, norms, heard, changed = parts
        entries, squares = shares
        mine = [*(count * entries for count in counts), norms.square() * squares, heard, changed]
        sizes = [len(part) for part in mine]
        *counts, norms, heard, changed = torch.split(ranks.add_up(torch.cat(mine)), sizes)
        return [*counts, norms.sqrt(), heard, changed]

    def _loses(self, tensor: Tensor, rates: Mapping[Tensor, float]) -> bool:
        return self._rounds.get(tensor, False) and rates[tensor] > 0

    def _read(self) -> Float[Tensor, "tensors entries"]:
        return self._sample.read([self._own(p) for p in self.trained.values()])

    def _norms(self, gradients: list[Tensor | None]) -> Float[Tensor, " tensors"]:
        device, dtype = self._sample.device, self._sample.dtype
        none = torch.zeros((), device=device, dtype=dtype)
        norms = [
            none
            if gradient is None
            else torch.linalg.vector_norm(gradient.detach(), dtype=dtype).to(device)
            for gradient in gradients
        ]
        return torch.stack(norms) if norms else none.new_zeros(0)

    def _changed(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, " tensors"]:
        """1 where the checksum is not that of the start."""
        device = self._sample.device
        sums = {name: checksum(self._own(tensor)) for name, tensor in tensors.items()}
        flags = [(now != self._sums[name]).to(device) for name, now in sums.items()]
        return torch.stack(flags).double() if flags else torch.zeros(0, device=device).double()

    # ---- learning rates ----

    def _rates(self) -> dict[Tensor, float]:
        """The learning rate of each weight in this step."""
        groups = self._optimizer.param_groups
        return {weight: float(group["lr"]) for group in groups for weight in group["params"]}

    def _at_full_rate(self) -> bool:
        # a warm-up's and a decay's ends say nothing of what the run can do
        return any(
            float(group["lr"]) >= float(group.get("initial_lr", 0.0)) / 2
            for group in self._optimizer.param_groups
        )

    # ---- resuming ----

    def state_dict(self) -> dict[str, Any]:
        """What a later process needs: "facts" for JSON, and "tensors" on the CPU."""
        facts = {
            "trained": list(self.trained),
            "frozen": list(self.frozen),
            "since": self.since,
            "last": self.last,
            "unchanged_at": self._unchanged_at,
            "applied": self._applied,
            "full": self._full,
            "silent": list(self._silent),
        }
        if self._engine.shards:
            facts["shards"] = self._shards()
        sums = [self._sums[name] for name in (*self.trained, *self.frozen)]
        tensors = {
            "start": self._start.cpu(),
            "looked": self._last.cpu(),
            "heard": self._heard.cpu(),
            "sums": torch.stack([one.cpu() for one in sums]),
        }
        return {"facts": facts, "tensors": tensors}

    def _shards(self) -> list[int]:
        """Which shards these are: this rank's number, that of all, and how much it holds."""
        held = sum(self._own(tensor).numel() for tensor in self.trained.values())
        return [ranks.rank(), ranks.count(), held]

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Resume from another process's ``state_dict``.

        Returns:
            False where that was of another model; then nothing is loaded.
        """
        facts, tensors = state["facts"], state["tensors"]
        names = [*self.trained, *self.frozen]
        known = facts["trained"] + facts["frozen"] == names
        fits = known and tensors["start"].shape == self._start.shape
        if self._engine.shards:  # of another rank, or of other shards, as far as that can be seen
            fits = fits and facts.get("shards") == self._shards()
            fits = bool(ranks.least(torch.tensor(int(fits), device=self._sample.device)))
        if not fits:
            return False
        self._start, self._last, self._heard = (
            tensors[name].to(like.device, like.dtype)
            for name, like in (
                ("start", self._start),
                ("looked", self._start),
                ("heard", self._heard),
            )
        )
        self._sums = {
            name: one.to(self._sums[name].device)
            for name, one in zip(names, tensors["sums"], strict=True)
        }
        self.since, self.last = facts["since"], facts["last"]
        self._unchanged_at = facts["unchanged_at"]
        self._applied, self._full = facts["applied"], facts["full"]
        self._silent = list(facts["silent"])
        return True


def _whole(tensor: Tensor) -> Tensor:
    """A parameter that all ranks have looked at together."""
    return tensor


def _weights_by_group(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, tensor in tensors.items():
        found[group_of(name)] = found.get(group_of(name), 0) + tensor.numel()
    return found
