"""Train while reading: rows that are never all in memory, two evaluation sets by name.

    python examples/streaming.py

Rows come from a generator here; ``datasets.load_dataset(..., streaming=True)`` gives the same
kind of set from files or the hub. A stream has no length, so the run's is ``max_steps``.
"""

from datasets import IterableDataset
from transformers import ByT5Tokenizer, Qwen2Config, Qwen2ForCausalLM

from counterpoint import CPOConfig, CPOTrainer


def sums(first, last):
    """Right sums preferred to wrong ones; a long sum counts double."""
    for a in range(first, last):
        for b in range(first, last):
            yield {
                "prompt": f"{a} + {b} =",
                "chosen": f" {a + b}",
                "rejected": f" {a + b + 1}",
                "weight": 2.0 if a + b > 9 else 1.0,
            }


def stream(first, last):
    """The same as a set that is read row by row."""
    return IterableDataset.from_generator(sums, gen_kwargs={"first": first, "last": last})


def main(output_dir="runs/streaming"):
    config = Qwen2Config(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    trainer = CPOTrainer(
        model=Qwen2ForCausalLM(config),
        args=CPOConfig(
            output_dir=output_dir,
            max_steps=12,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            eval_strategy="steps",
            eval_steps=6,
            logging_steps=6,
            save_strategy="no",
        ),
        processing_class=ByT5Tokenizer(),
        train_dataset=stream(0, 10),
        eval_dataset={"small": stream(0, 3), "large": stream(20, 23)},
    )
    trainer.train()
    final = {name: line for line in trainer.state.log_history for name in line}
    for name in ("small", "large"):
        line = final[f"eval_{name}_loss"]
        print(f"{name}: loss {line[f'eval_{name}_loss']:.3f} at step {line['step']}")
    return final


if __name__ == "__main__":
    main()
