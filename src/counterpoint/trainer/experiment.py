"""Which experiment a run is, and what a checkpoint keeps of it beside weights and optimizer.

Not here: how a checkpoint is written and read (``saving``, ``resumable``).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from torch import nn

from counterpoint import ranks
from counterpoint.checkpoint.adapted import model_identity
from counterpoint.checkpoint.experiment import experiment
from counterpoint.checkpoint.fingerprint import Fingerprint
from counterpoint.checkpoint.rank_states import States
from counterpoint.data.pair_digest import digest_like
from counterpoint.metrics import MetricSums
from counterpoint.monitor.callback import Monitor
from counterpoint.report.about import base_name
from counterpoint.step.assembly import Assembly
from counterpoint.step.share import TokenBudget
from counterpoint.trainer.evaluation import EvaluatingTrainer


class ExperimentTrainer(EvaluatingTrainer):
    """What ``CPOTrainer`` inherits of being one experiment and no other."""

    # what the model was before it trained, and which model that is
    _identity: Fingerprint = MappingProxyType({})
    _identified: nn.Module | None = None
    _handed: tuple[Any, Any]
    _assembled: Assembly | None
    _known_proofs: dict[str, Any]
    monitor: Monitor | None

    def _take_identity(self) -> None:
        """What the model is, before anything trains; every rank takes rank 0's word for it."""
        if self._identified is self.model:
            return
        plain, dropout = self.accelerator.unwrap_model(self.model), not self.args.disable_dropout
        # ranks meet in it: of a model in shards each has a part of what an adapter lies on
        mine = model_identity(plain, dropout=dropout)
        self._identity = ranks.first_does(lambda: mine)
        self._identified = self.model

    def base_name(self) -> str:
        """The name of the model that training begins with; "" for one made in memory."""
        return base_name(self.model)

    def fingerprint(self) -> Fingerprint:
        """What makes this experiment this one; ``resume_anyway`` says what it is for."""
        digests = {name: self._feed.digest(pairs) for name, pairs in self._digested().items()}
        return experiment(
            self.args,
            self.objective,
            digests,
            self.steps_in_all(),
            identity=self._identity,
            balancing=self._balancing_weight,
            scheduled=self._handed[1] is None,
        )

    def experiment_like(self, then: Fingerprint) -> Fingerprint:
        """The fingerprint with digests of data that were taken as a checkpoint's were."""
        now = dict(super().experiment_like(then))
        for name, pairs in self._digested().items():
            fact = f"data {name}"
            now[fact] = digest_like(str(then.get(fact, now[fact])), str(now[fact]), pairs)
        return now

    def _digested(self) -> dict[str, Any]:
        return self._sets() | {one.name: one.pairs for one in self._second_sets.all}

    def state_dict(self) -> dict[str, Any]:
        """Skipped steps, what was proved, where the streams are, the multipliers."""
        proofs = self._known_proofs if self._assembled is None else self._assembled.state_dict()
        return {
            "model": self._began_with(),
            "skipped_steps": self.skipped_steps,
            "proofs": proofs,
            "feed": self._feed.state_dict(),
            "constraints": self.constraints.state_dict() if self.constraints.all else None,
            "references": self._feed.references.state_dict(),
        }

    def before_loading(self) -> None:
        """The model is still the one that a run began with, which a constraint may need."""
        self.constraints.remember(self.model)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume with them."""
        self.skipped_steps = state["skipped_steps"]
        # up to 0.4 the layout alone
        self._known_proofs = state["proofs"] if "proofs" in state else {"layout": state["layout"]}
        if self._assembled is not None:
            self._assembled.load_state_dict(self._known_proofs)
        self._feed.load_state_dict(state["feed"], within_pass=self._place.steps > 0)
        self._feed.references.load_state_dict(state.get("references"))
        self._compare(self._digested().values(), moved=True)
        if state.get("constraints"):
            self.constraints.load_state_dict(state["constraints"], anyway=self.args.resume_anyway)
            self._describe()

    def rank_state_dict(self) -> dict[str, Any]:
        """The sums since the last log line, and what was learnt of this rank's memory."""
        return {
            "sums": self.runner.sums.state_dict(),
            "budgets": [budget.state_dict() for budget in self.runner.budgets],
            "monitor": None if self.monitor is None else self.monitor.rank_state_dict(),
        }

    def merge_rank_states(self, states: States) -> tuple[dict[str, Any], dict[str, Any]]:
        """Sums are added up, and budgets hold on every device."""
        budgets = TokenBudget.least_of_each([state["budgets"] for state in states])
        total, empty = MetricSums.merged([state["sums"] for state in states])
        return {"sums": total, "budgets": budgets}, {"sums": empty, "budgets": budgets}

    def load_rank_state_dict(self, state: dict[str, Any]) -> None:
        """Resume with them."""
        self.runner.sums.load_state_dict(state["sums"], self.args.device)
        for budget, saved in zip(self.runner.budgets, state["budgets"], strict=True):
            budget.load_state_dict(saved)
        if self.monitor is not None and state.get("monitor"):  # none of other ranks
            self.monitor.load_state_dict(state["monitor"])
