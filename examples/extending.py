"""A loss, a kind of constraint, a layout and an engine of our own, added from outside.

    python examples/extending.py

Each is a row of a table and a few lines of code: options, the doctor, the report, the planner
and the training know it from then on. The task is the quickstart's, shipped with the package:
offline, a few seconds.

Not here: what each part of a row means (docs/extending.md).
"""

from dataclasses import replace

import numpy as np
import torch

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.constraints import ConstraintKind, register_constraint_kind
from counterpoint.engine.plain import Plain
from counterpoint.engine.table import register_engine
from counterpoint.forward.layouts import Padded, register_layout
from counterpoint.forward.rows import longest_row
from counterpoint.losses.constrained import ConstraintMath
from counterpoint.losses.objective import LossMath
from counterpoint.objectives import Loss, register_loss
from counterpoint.quickstart.task import preference_pairs
from counterpoint.quickstart.translate import load_base

# SimPER (arXiv:2502.00883) with the root of its rewards, which are less flat where a completion is
# unlikely; nothing to tune
register_loss(
    Loss(
        "soft-simper",
        "softened SimPER",
        math=LossMath(
            loss=lambda pairs, objective: -pairs.gap,
            formula=lambda objective: "-gap",
            reward=lambda logp, objective: (logp / 2).exp(),
            reward_formula=lambda logp, objective: f"exp({logp} / 2)",
        ),
        options=("cpo_alpha", "nll_reduction"),
        beta_scales_gap=False,
        nll=0.0,
    )
)

# the log-probability of rejected completions, which is to stay below a bound
register_constraint_kind(
    ConstraintKind(
        "rejected_likelihood",
        "nats a token of the rejected completions, as a log-probability",
        math=ConstraintMath(
            numerator=lambda asked, seen: seen.logps.rejected,
            denominator=lambda asked, objective, batch: batch.target_counts.view(2, -1)[1],
        ),
    )
)


class PaddedToEight(Padded):
    """Padded rows whose width is a multiple of 8, as matrix units like it."""

    name = "padded-to-8"

    def tokens(self, pairs):
        return 2 * len(pairs) * whole(max(longest_row(pair) for pair in pairs))

    def tokens_alone(self, lengths):
        prompt, chosen, rejected = lengths.T
        return 2 * whole(prompt + np.maximum(chosen, rejected))

    def rows(self, pairs, pad_id):
        rows = super().rows(pairs, pad_id)
        width = rows.ids.shape[1]
        more = ((0, 0), (0, whole(width) - width))
        return replace(
            rows,
            ids=np.pad(rows.ids, more, constant_values=pad_id),
            mask=np.pad(rows.mask, more),
            sources=[flat // width * whole(width) + flat % width for flat in rows.sources],
        )


def whole(width):
    return -(-width // 8) * 8


register_layout(PaddedToEight())


@register_engine
class Offloaded(Plain):
    """One process; what the backward needs waits for it in the host's memory."""

    name = "offloaded"

    def accumulating(self, model, *, last):
        return torch.autograd.graph.save_on_cpu()


def main(output_dir="runs/extending", steps=40):
    model, tokenizer = load_base()
    args = CPOConfig(
        output_dir=output_dir,
        loss_type="soft-simper",
        layout="padded-to-8",
        cpo_alpha=0.1,
        constraints=[{"kind": "rejected_likelihood", "bound": -2.5}],
        learning_rate=2e-4,
        max_steps=steps,
        per_device_train_batch_size=32,
        max_length=64,
        gradient_checkpointing=False,
        logging_steps=max(1, steps // 4),
        save_strategy="no",
    )
    trainer = CPOTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=[pair.row for pair in preference_pairs(32 * steps, seed=0)],
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
