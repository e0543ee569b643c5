"""The plan of a run: what it needs, how to cut its steps, and what to turn on where it is too much.

A step is the same function of its pairs however it is cut; so the first remedy, smaller
micro-batches, costs nothing, and ``train`` takes it by itself.

Not here: how memory is predicted (``demand``), what a plan holds (``prediction``), how it is shown
in a terminal (``table``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from counterpoint.config import CPOConfig, pairs_on
from counterpoint.errors import ModelError, kind_and_line
from counterpoint.forward.affine_logps import LOGITS_ELSEWHERE, LOGITS_PER_TILE
from counterpoint.forward.layout_choice import first_choice
from counterpoint.forward.layouts import AUTO, LAYOUTS
from counterpoint.models.family import family_of
from counterpoint.models.trainable import freeze_parts
from counterpoint.planner.demand import MOST_TOKENS, Demand
from counterpoint.planner.holdings import holdings_of
from counterpoint.planner.prediction import Estimate, Plan, Remedy, Split
from counterpoint.planner.rehearsal import Rehearsal, Way, rehearse
from counterpoint.planner.scaling import Cluster, Scaling, scaling_of
from counterpoint.planner.setting import MemorySetting, changes_of
from counterpoint.planner.shapes import Lengths, Shape
from counterpoint.planner.sharding import Groups, groups_of, in_shards
from counterpoint.planner.weightless import adapted, fake_mode, quiet_fakes, weightless_twin

REHEARSED = (1, 2)
"""How often the two rehearsals have each of two pairs; of four, where padding counts."""

LONGER = 16
"""Tokens by which a prompt grows, at least, in the rehearsal of more text and as many patches."""

BYTES_PER_LOGIT = 8
"""What a tile of the head holds of a logit: in float32, and twice in 16 bits."""


class Planner:
    """Predicts a run's memory under its own setting and under others.

    Args:
        model: what will be trained, on any device, ``meta`` included; it is neither run nor
            changed.
        args: the run's options.
        lengths: of its training pairs.
        adapter: a ``peft.PeftConfig`` that will be put on the model; None if it has its own.
        ranks: processes that share a step.
        shards: how many of them share each weight, its gradient and its moments; 1: none.
        device: kind of device that it is planned for; None: that of ``args``.

    Raises:
        ModelError: CP306 for a model whose code cannot run without data.
    """

    def __init__(
        self,
        model: nn.Module,
        args: CPOConfig,
        lengths: Lengths,
        *,
        adapter: Any = None,
        ranks: int = 1,
        shards: int = 1,
        device: str | None = None,
    ) -> None:
        """Find the layout that the run will use."""
        self.model, self.args, self.lengths, self.ranks = model, args, lengths, ranks
        self.shards = shards
        self.device = args.device.type if device is None else device
        self._known: list[tuple[MemorySetting, bool, Demand]] = []
        self._rehearsals: list[tuple[Any, bool, tuple[Rehearsal, ...]]] = []
        autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        # the trainer turns dropout off, if it does, before it asks
        stays = not args.disable_dropout
        self._possible = family_of(model.config).layouts
        layout, why = first_choice(model, args.layout, dropout_stays=stays, possible=self._possible)
        self.reason = why or ""
        self.setting = MemorySetting(
            layout=layout.name,
            autocast=autocast,
            checkpointing=_checkpointing(args),
            adapter=adapter,
            stochastic=args.stochastic_rounding,
            share=args.checkpointing_share,
            offload=args.activation_offload and self.device != "cpu",
            shards_on_host=args.optimizer_offload and self.device != "cpu",
        )
        if layout is not self._possible[-1]:
            try:
                self.demand(self.setting)
            except ModelError as error:  # the trainer too would fall back
                self.reason = error.message
                self.setting = replace(self.setting, layout=self._possible[-1].name)
        self._either = [self.setting]
        if args.layout == AUTO and LAYOUTS[self.setting.layout].is_timed(self.device):
            self._either.append(replace(self.setting, layout=self._possible[-1].name))
            self.setting = max(self._either, key=self._heaviest)
            self.reason = "what needs more, as the run will time both and use the faster"

    def among(self, ranks: int, shards: int) -> Planner:
        """The same run on another number of ranks, without rehearsing it again.

        Args:
            ranks: processes that share a step.
            shards: how many of them share each weight.
        """
        other = copy.copy(self)
        other.ranks, other.shards, other._known = ranks, shards, []
        return other

    def demand(self, setting: MemorySetting, *, accumulates: bool = True) -> Demand:
        """Memory as a function of tokens.

        Args:
            setting: how the run is set.
            accumulates: a step has more than one micro-batch.

        Raises:
            ModelError: CP306 for a model whose code cannot run without data.
        """
        for known, accumulated, demand in self._known:
            if (known, accumulated) == (setting, accumulates):
                return demand
        try:
            demand = self._rehearsed(setting, accumulates)
        except Exception as error:  # whatever a model's own code may raise
            try:  # a loop over experts asks where each token went; one product for all does not
                demand = self._rehearsed(setting, accumulates, experts="grouped_mm")
            except Exception:
                raise ModelError(
                    "CP306",
                    f"{type(self.model).__name__} does not run without data, so that its memory "
                    f"cannot be planned: {kind_and_line(error)}",
                ) from error
        self._known.append((setting, accumulates, demand))
        return demand

    def estimate(self, pairs: int | None, usable: int, *, accumulates: bool = True) -> Estimate:
        """What the run needs with its heaviest micro-batch of so many pairs.

        Args:
            pairs: of the micro-batch; None: as the run is configured.
            usable: bytes that may be used.
            accumulates: a step has more than one micro-batch.
        """
        layout, most = self.setting.layout, self.args.max_micro_batch_tokens
        if pairs is None:
            pairs = min(self.args.per_device_train_batch_size, len(self.lengths))
            load = self.lengths.load(pairs, layout)
            if most is not None:  # then pairs are cut by tokens alone
                step = pairs * self.args.gradient_accumulation_steps
                whole = self.lengths.load(step, layout)
                load = whole.within(max(most, self.lengths.heaviest(1, layout)))
                pairs = max(1, load.cost * step // whole.cost)
                accumulates = load.cost < whole.cost
        else:
            load = self.lengths.load(pairs, layout)
        demand = self.demand(self.setting, accumulates=accumulates)
        parts, held = demand.parts(*load), demand.holdings
        peak = demand.peak(*load)
        return Estimate(
            pairs=pairs,
            tokens=load.cost,
            weights=held.weights,
            optimizer=held.optimizer,
            initial=held.initial,
            buckets=held.buckets,
            gradients=parts.gradients,
            activations=parts.activations,
            head=parts.head,
            passing=parts.passing,
            gathered=parts.gathered,
            host=demand.host(*load),
            peak=peak,
            fits=peak <= usable,
            patches=load.patches,
        )

    def asked(self, usable: int) -> Estimate:
        """What the run needs as it is configured."""
        several = self.args.gradient_accumulation_steps > 1
        return self.estimate(None, usable, accumulates=several)

    def budget(self, usable: int, setting: MemorySetting | None = None) -> int:
        """Most tokens of a micro-batch that fit, its longest pair alone included; 0 for none."""
        return min(self._budget(usable, one) for one in ([setting] if setting else self._either))

    def _budget(self, usable: int, setting: MemorySetting) -> int:
        demand, alone = self.demand(setting), self.lengths.load(1, setting.layout)
        if demand.peak(*alone) > usable:
            return 0
        # pairs of another kind may need more for as much; the longest is known to fit
        return max(alone.cost, demand.budget(usable, self.lengths.shares(setting.layout)))

    def splits(self, pairs: int, usable: int) -> Iterator[Split]:
        """Every way to make a step of so many pairs, the largest micro-batches first.

        Args:
            pairs: of a step, over all ranks.
            usable: bytes that may be used.
        """
        share, rest = divmod(pairs, self.ranks)
        for per_device in range(share, 0, -1) if not rest else ():
            if share % per_device == 0:
                times = share // per_device
                found = self.estimate(per_device, usable, accumulates=times > 1)
                yield Split(per_device, times, self.ranks, found.tokens, found.peak, found.fits)

    def remedies(self, usable: int) -> Iterator[Remedy]:
        """What to turn on where the run does not fit, the cheapest first, until it does."""
        asked = self.asked(usable)
        if asked.fits:
            return
        setting = self.setting
        best = self._alone(setting)
        budget = self.budget(usable)
        if budget:
            line = f"max_micro_batch_tokens: {budget}"
            yield Remedy(line, "nothing: the same step, cut smaller", best, budget, True)
            return
        changes = changes_of(
            setting,
            self.model,
            self.args,
            possible=self._possible,
            device=self.device,
            shards=self.shards,
        )
        for line, cost, change in changes:
            changed = replace(setting, **change)
            try:
                peak, budget = self._alone(changed), self.budget(usable, changed)
            except ModelError:
                continue
            if peak >= best:  # autocast keeps copies of weights, which may outweigh its gain
                continue
            setting, best = changed, peak
            yield Remedy(line, cost, peak, budget, budget > 0)
            if budget:
                return
        room = self.demand(setting).budget(usable)
        length = room // 2  # a pair is its completions and its prompt, once or twice
        # what stands for pictures is never cut
        if room >= FEWEST_TOKENS and self.lengths.shown is None:
            yield Remedy(f"max_length: {length}", "cuts the longest pairs", usable, room, True)

    def scaling(self, cluster: Cluster, usable: int) -> Scaling:
        """How long ranks compute and exchange, in micro-batches of several sizes.

        Args:
            cluster: the machines.
            usable: bytes of a device that may be used.
        """
        demand = self.demand(self.setting)
        whole = demand.holdings.trained == demand.holdings.parameters
        sizes = {
            "as configured": self.asked(usable).tokens,
            "most that fit": min(self.budget(usable), MOST_TOKENS - 1),
        }
        return scaling_of(self.groups, demand.large.work(whole=whole), cluster, sizes)

    @property
    def groups(self) -> Groups:
        """How the model is gathered, where it is in shards."""
        model = self.model
        if self.setting.adapter is not None:
            model = adapted(model, self.setting.adapter)
        return groups_of(model, self.setting.autocast)

    def plan(
        self,
        memory: int,
        usable: int,
        pairs: int | None = None,
        cluster: Cluster | None = None,
    ) -> Plan:
        """The whole plan.

        Args:
            memory: bytes of the device.
            usable: bytes of it to plan with.
            pairs: wanted of a step over all ranks; None: what the options make of the ranks.
            cluster: the machines of a run in shards; None: nothing is said of its speed.
        """
        args = self.args
        if pairs is None:
            pairs = pairs_on(args, self.ranks)
        held = self.demand(self.setting).holdings
        return Plan(
            parameters=held.parameters,
            trained=held.trained,
            layout=self.setting.layout,
            reason=self.reason,
            precision=self._precision(),
            checkpointing=self.setting.checkpointing is not None,
            share=self.setting.share,
            memory=memory,
            usable=usable,
            lengths=self.lengths.quantiles(),
            pairs=pairs,
            asked=self.asked(usable),
            longest=self.estimate(1, usable),
            budget=self.budget(usable),
            whole=self.lengths.heaviest(max(1, pairs // self.ranks), self.setting.layout),
            splits=tuple(self.splits(pairs, usable)),
            remedies=tuple(self.remedies(usable)),
            scaling=None if cluster is None else self.scaling(cluster, usable),
        )

    def _rehearsed(
        self, setting: MemorySetting, accumulates: bool, experts: str | None = None
    ) -> Demand:
        mode, model, dtype = fake_mode(), self.model, setting.dtype
        if setting.adapter is not None:
            model, dtype = adapted(model, setting.adapter, dtype), None
        twin: Any = weightless_twin(model, mode, dtype)
        freeze_parts(twin, setting.frozen)
        if experts is not None:
            twin.set_experts_implementation(experts)
        optim = str(getattr(self.args.optim, "value", self.args.optim))
        held = holdings_of(
            twin,
            optim=optim,
            stochastic=setting.stochastic,
            ranks=self.ranks,
            drift=any(one.row.needs_policy for one in self.args.constrained_by),
            shards=self.shards,
            offload=setting.shards_on_host,
        )
        sharded = self.shards > 1
        if sharded:
            # weights are gathered in the dtype of products; gradients are there from the first on
            groups, accumulates = groups_of(twin, setting.autocast), True
            if setting.autocast is not None:
                twin = weightless_twin(model, mode, setting.autocast)
                freeze_parts(twin, setting.frozen)
        way = Way(
            setting.layout,
            setting.autocast,
            setting.checkpointing,
            accumulates,
            setting.share,
            setting.offload,
        )
        rehearsed = self._several(twin, mode, way, (setting, sharded, experts))
        if sharded:
            rehearsed = tuple(in_shards(one, groups, held.gradients) for one in rehearsed)
        small, large, *more = rehearsed
        extra = 0 if self.device == "cpu" else EXTRA
        return Demand(held, small, large, extra, *more)

    def _several(
        self, twin: nn.Module, mode: Any, way: Way, key: tuple[Any, ...]
    ) -> tuple[Rehearsal, ...]:
        """Two or three rehearsals; what is the same for other numbers of ranks is done once."""
        for known, accumulates, found in self._rehearsals:
            if (known, accumulates) == (key, way.accumulates):
                return found
        shapes, shown = [self.lengths.long(way.layout)] * 2, self.lengths.shown
        if LAYOUTS[way.layout].skips_padding(self.device):
            shapes = self.lengths.uneven(self.args.per_device_train_batch_size, way.layout)
        micro_batches = [shapes * times for times in REHEARSED]
        if shown is not None:
            least = shown.picture.tokens + LONGER
            shapes = [one._replace(prompt=max(one.prompt, least)) for one in shapes]
            longer = [
                Shape(2 * one.prompt - shown.picture.tokens, *(2 * length for length in one[1:]))
                for one in shapes
            ]
            micro_batches = [*(shapes * times for times in REHEARSED), longer * REHEARSED[-1]]
        with quiet_fakes():
            found = tuple(rehearse(twin, mode, one, way, shown) for one in micro_batches)
        self._rehearsals.append((key, way.accumulates, found))
        return found

    def _heaviest(self, setting: MemorySetting) -> int:
        """Peak of as many of the longest pairs as a micro-batch holds."""
        pairs = min(self.args.per_device_train_batch_size, len(self.lengths))
        return self.demand(setting).peak(*self.lengths.load(pairs, setting.layout))

    def _alone(self, setting: MemorySetting) -> int:
        """Peak of the longest pair alone."""
        return self.demand(setting).peak(*self.lengths.load(1, setting.layout))

    def _precision(self) -> str:
        kinds = {weight.dtype for weight in self.model.parameters() if weight.is_floating_point()}
        names = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        if self.setting.autocast is None:
            return f"{names} weights"
        products = str(self.setting.autocast).removeprefix("torch.")
        return f"{names} weights, {products} products"


FEWEST_TOKENS = 16
"""Budget below which no length is worth a recommendation."""

EXTRA = BYTES_PER_LOGIT * (LOGITS_ELSEWHERE - LOGITS_PER_TILE["cpu"])
"""Bytes by which the head's tiles on an accelerator are larger than on a CPU, at most."""


def _checkpointing(args: CPOConfig) -> Mapping[str, Any] | None:
    return dict(args.gradient_checkpointing_kwargs or {}) if args.gradient_checkpointing else None
