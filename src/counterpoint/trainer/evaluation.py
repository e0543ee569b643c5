"""Evaluation as transformers asks for it: one pass over a set, its metrics, texts and best model.

Not here: the sums of a pass (``step.evaluation_pass``), statistics and texts (``evaluation``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from counterpoint.alarms.effect import alarm_facts
from counterpoint.alarms.of_samples import degenerate_in_run
from counterpoint.console.display import evaluating
from counterpoint.data.batching import PairLoader
from counterpoint.engine.face import Pass
from counterpoint.engine.stops import names_stops
from counterpoint.errors import DataError
from counterpoint.evaluation.samples import decodings, sample, sample_metrics
from counterpoint.metric_names import PREFIX
from counterpoint.runlog import SAMPLES, constraint_metric
from counterpoint.step.calibration import sums_of
from counterpoint.step.evaluation_pass import EvaluationPass
from counterpoint.trainer.best import not_given, prefixed
from counterpoint.trainer.stepping import SteppingTrainer


class EvaluatingTrainer(SteppingTrainer):
    """What ``CPOTrainer`` inherits of evaluating."""

    def _check_replaced(self) -> None:
        """Refuse what was replaced and is never called."""
        raise NotImplementedError

    def get_eval_dataloader(self, eval_dataset: Any = None) -> PairLoader:
        """The pairs of an evaluation set, given raw, prepared, or by its name."""
        name = "eval"
        if isinstance(eval_dataset, str):
            name, eval_dataset = f"eval {eval_dataset}", self.eval_dataset[eval_dataset]
        elif eval_dataset is None:
            eval_dataset = self.eval_dataset
        if eval_dataset is None:
            raise DataError("CP209", "there is no eval_dataset to evaluate on.")
        return self._loader(self._feed.pairs(eval_dataset, name), name, train=False)

    def get_test_dataloader(self, test_dataset: Any) -> PairLoader:
        """The pairs of a test set, given raw or prepared."""
        return self._loader(self._feed.pairs(test_dataset, "test"), "test", train=False)

    def _loader(self, pairs: Any, name: str, *, train: bool) -> PairLoader:
        loader = self._feed.loader(
            pairs,
            name,
            micro_batch=self.micro_batch_size if train else self.args.eval_batch_size,
            train=train,
        )
        loader.pairs = pairs
        return loader

    @names_stops
    def evaluation_loop(
        self,
        dataloader: PairLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """One pass over a set: its loss is the objective of the whole set, however it is cut."""
        if prediction_loss_only is None:
            prediction_loss_only = self.args.prediction_loss_only
        asked = self.compute_metrics is not None and not prediction_loss_only
        evaluation = self._pass(dataloader, keep_scores=asked)
        metrics, pairs = evaluation.metrics()
        accuracy = evaluation.accuracy()
        metrics |= self._own_values()
        metrics |= {
            "rewards/accuracies_low": accuracy.low,
            "rewards/accuracies_high": accuracy.high,
        }
        predictions = None
        if self.compute_metrics is not None and asked:
            scores = evaluation.scores()
            predictions = np.stack([scores.chosen_rewards, scores.rejected_rewards], axis=1)
            labels = np.zeros(len(predictions), dtype=np.int64)
            metrics |= self.compute_metrics(EvalPrediction(predictions, labels))
        if self.args.generate_during_eval:
            metrics |= self._sampled(dataloader.pairs, metric_key_prefix)
        prefix = f"{metric_key_prefix}_"
        named = {k if k.startswith(prefix) else prefix + k: v for k, v in metrics.items()}
        return EvalLoopOutput(predictions, None, named, pairs)

    def evaluate_in_training(self, *facts: Any, **more: Any) -> dict[str, float]:
        """Evaluate while training; the metric that a learning rate goes by has to be given."""
        try:
            return super().evaluate_in_training(*facts, **more)
        except KeyError as error:
            if "metric_for_best_model" not in str(error):
                raise
            now = [
                line for line in self.state.log_history if line["step"] == self.state.global_step
            ]
            given = {name for line in now for name in line if name.startswith(PREFIX)}
            raise not_given(str(self.args.metric_for_best_model), given) from error

    def is_best_so_far(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether this evaluation is the best so far."""
        wanted = prefixed(self.args.metric_for_best_model)
        if wanted is not None and wanted not in metrics:
            raise not_given(wanted, metrics)
        return super().is_best_so_far(metrics, trial)

    @names_stops
    def measure(self, dataset: Any, name: str = "test") -> EvaluationPass:
        """What the model says of every pair of a set, for statistics; no gradient is paid for.

        Args:
            dataset: raw or prepared rows.
            name: the set's name in messages.

        Returns:
            The pass, with its ``metrics`` and the ``scores`` of each pair, over all ranks.

        Raises:
            DataError: CP2xx for rows that are not pairs.
        """
        loader = self._loader(self._feed.pairs(dataset, name), name, train=False)
        return self._pass(loader, keep_scores=True)

    def _pass(self, dataloader: PairLoader, *, keep_scores: bool) -> EvaluationPass:
        self._check_replaced()
        self.model.eval()
        self.callback_handler.eval_dataloader = dataloader
        self._compare([dataloader.pairs], moved=self.is_resumed or self.state.global_step > 0)
        rows = next((n for n, s in self._sets().items() if s is dataloader.pairs), None)
        evaluation = EvaluationPass(
            self.runner.loss, self.constraints, rows, keep_scores=keep_scores
        )
        batches = iter(dataloader)  # whose workers are forked now, before a phase's thread is there
        with torch.no_grad(), evaluating(self.callback_handler, dataloader) as now:
            for pairs in batches:
                for output, batch in self.runner.measured(pairs, self.args.eval_batch_size):
                    evaluation.add(output, batch)
                self.control = self.callback_handler.on_prediction_step(
                    self.args, self.state, self.control
                )
                now.advance()
        return evaluation

    def _own_values(self) -> dict[str, float]:
        """Values and violations of the constraints that have a set of their own."""
        pairs = self._second_sets.held_out()
        if not pairs:
            return {}
        with torch.no_grad():
            sums = sums_of(self.runner, self.args.eval_batch_size, pairs)
        named = zip(self.constraints.all, *sums.tolist(), strict=True)
        values = {
            constraint_metric(one.asked.name, "value"): numerator / total
            for one, numerator, total in named
            if total > 0
        }
        return values | self.constraints.violations(values)

    def _write_samples(self) -> None:
        """Write to a few prompts of each evaluation set, and log what the texts are like."""
        several = isinstance(self.eval_dataset, dict)
        sets = self.eval_dataset if several else {"": self.eval_dataset}
        found: dict[str, float] = {}
        for name, pairs in sets.items():
            prefix = f"eval_{name}" if name else "eval"
            found |= {f"{prefix}_{k}": v for k, v in self._sampled(pairs, prefix).items()}
        self.log(found)

    def _sampled(self, pairs: Any, name: str) -> dict[str, float]:
        """Samples of one set, written to the run log and judged; their statistics."""
        few = self._feed.some(pairs, self.args.eval_samples)
        ways, meet = decodings(self.args), Pass.FORWARD in self.engine.collective_passes
        with self.engine.autocast():
            written = sample(self.model, self.processing_class, few, ways, together=meet)
        about = {"step": self.state.global_step, "set": name}
        entries = [
            {**about, **one.as_entry(), **self.run_log.shown(one.pictures)} for one in written
        ]
        if self.is_in_train and self.is_world_process_zero():
            facts = alarm_facts(self.args, self.state.max_steps)
            for alarm in degenerate_in_run(self.run_log.folder, entries, facts):
                self.raise_alarm(alarm)
        for entry in entries:
            self.run_log.append(SAMPLES, entry)
        found = dict(sample_metrics(written))
        if self.is_in_train:
            lengths = [len(one.ids) for one in written if not one.sampled]
            step, most = self.state.global_step, self.args.eval_sample_tokens
            found |= self.constraints.written(lengths, step, most)
        return found

    def _sets(self) -> dict[str, Any]:
        """Every prepared set that the trainer was given, by name."""
        given = self.eval_dataset
        named = isinstance(given, Mapping)
        sets = {f"eval {n}": s for n, s in given.items()} if named else {"eval": given}
        every = {"train": self.train_dataset, **sets}
        return {name: pairs for name, pairs in every.items() if pairs is not None}
