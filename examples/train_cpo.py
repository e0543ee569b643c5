"""The script that every user of TRL's CPOTrainer starts from; only its import is another.

    python examples/train_cpo.py                        a tiny model made here: offline, seconds
    python examples/train_cpo.py Qwen/Qwen2.5-0.5B      any causal language model of the hub

Not here: evaluation, adapters (``simpo_lora.py``), data from files (``streaming.py``).
"""

import sys

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ByT5Tokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from counterpoint import CPOConfig, CPOTrainer


def tiny_model():
    """A model of 0.1M parameters that reads bytes; its tokenizer needs no file."""
    config = Qwen2Config(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return Qwen2ForCausalLM(config), ByT5Tokenizer()


def pairs():
    """Sixteen preferences: sums, the right one chosen."""
    return Dataset.from_list(
        [
            {"prompt": f"{a} + {b} =", "chosen": f" {a + b}", "rejected": f" {a + b + 1}"}
            for a in range(4)
            for b in range(4)
        ]
    )


def main(name=None, output_dir="runs/train_cpo"):
    if name is None:
        model, tokenizer = tiny_model()
    else:
        model = AutoModelForCausalLM.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.eos_token

    training_args = CPOConfig(
        output_dir=output_dir,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        logging_steps=2,
    )
    trainer = CPOTrainer(
        model=model,
        args=training_args,
        processing_class=tokenizer,
        train_dataset=pairs(),
    )

    before = {name: param.clone() for name, param in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    changed = [name for name, param in before.items() if not torch.equal(param, after[name])]

    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    print(f"{len(changed)} of {len(before)} parameters changed")
    return before.keys(), changed


if __name__ == "__main__":
    main(*sys.argv[1:])
