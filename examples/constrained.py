"""Bounds instead of a weight: the preference loss, and what it may cost the chosen completions.

    python examples/constrained.py

The task is the quickstart's, shipped with the package: offline, a quarter of a minute. Two bounds
are held: on the NLL of all chosen completions (``bc``), and on that of the long ones, which is a
constraint of our own: a numerator and a denominator, a number a pair each.

Not here: how to choose a bound, and what the columns mean (docs/constrained.md).
"""

from counterpoint import Constraint, CPOConfig, CPOTrainer
from counterpoint.quickstart.task import preference_pairs
from counterpoint.quickstart.translate import load_base

LONG = 12
"""Tokens from which a completion counts as long."""
HEADER = ("bc", "bound", "multiplier", "long", "bound", "multiplier")


def nll_of_long(logps, batch):
    """The NLL of each long completion, in nats; 0 for the others."""
    return -logps.chosen * (batch.chosen_tokens >= LONG)


def tokens_of_long(batch):
    """The tokens that it is counted over."""
    return batch.chosen_tokens * (batch.chosen_tokens >= LONG)


def main(output_dir="runs/constrained", steps=120):
    model, tokenizer = load_base()
    args = CPOConfig(
        output_dir=output_dir,
        beta=2.0,
        cpo_alpha=0.03,  # where the multiplier of bc starts; no fixed weight any more
        constraints=[
            {"kind": "bc", "slack": 0.2},  # at most 1.2 times the initial policy's NLL
            Constraint(
                kind="custom",
                name="long",
                slack=0.2,
                numerator=nll_of_long,
                denominator=tokens_of_long,
            ),
        ],
        learning_rate=2e-4,
        max_steps=steps,
        per_device_train_batch_size=32,
        max_length=64,
        gradient_checkpointing=False,
        logging_steps=max(1, steps // 12),
        save_strategy="no",
    )
    trainer = CPOTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=[pair.row for pair in preference_pairs(32 * steps, seed=0)],
    )
    trainer.train()

    lines = [line for line in trainer.state.log_history if "loss" in line]
    columns = [
        f"constraints/{name}/{key}"
        for name in ("bc", "long")
        for key in ("value", "bound", "multiplier")
    ]
    print("step", *(f"{word:>10}" for word in HEADER))
    for line in lines:
        print(f"{line['step']:>4}", *(f"{line[column]:>10.3f}" for column in columns))
    return lines


if __name__ == "__main__":
    main()
