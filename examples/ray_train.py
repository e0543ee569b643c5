"""Train on the workers of a Ray cluster; one that dies is started again, and nothing is lost.

    pip install '.[ray]'
    python examples/ray_train.py

Ray Train starts the processes and starts them again; everything else is as under torchrun. What
each worker runs is a plain script: it resumes from the newest checkpoint, if there is one. With
``workers=(1, 4)`` Ray trains on as many as it can get, and a step stays ``pairs_per_step`` pairs.

Not here: Ray Data (rows are read by ``datasets``), ray.train.report (the run's own log has it all).
"""

from pathlib import Path

import torch
from datasets import Dataset
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from transformers import ByT5Tokenizer, Qwen2Config, Qwen2ForCausalLM

from counterpoint import CPOConfig, CPOTrainer


def pairs():
    """Sixteen preferences: sums, the right one chosen."""
    return Dataset.from_list(
        [
            {"prompt": f"{a} + {b} =", "chosen": f" {a + b}", "rejected": f" {a + b + 1}"}
            for a in range(4)
            for b in range(4)
        ]
    )


def work(options):
    """What every worker runs, at its first start and at every other one."""
    torch.manual_seed(0)
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
            output_dir=options["output_dir"],
            pairs_per_step=4,
            per_device_train_batch_size=2,
            num_train_epochs=3,
            learning_rate=1e-3,
            logging_steps=4,
            save_steps=2,
            disable_tqdm=True,
        ),
        train_dataset=pairs(),
        processing_class=ByT5Tokenizer(),
        callbacks=options["callbacks"],
    )
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model()


def main(output_dir="runs/ray_train", workers=2, callbacks=()):
    """Train; where workers are on several machines, output_dir is on a disk that they share."""
    run = TorchTrainer(
        work,
        train_loop_config={
            "output_dir": str(Path(output_dir).absolute()),
            "callbacks": list(callbacks),
        },
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=torch.cuda.is_available()),
        run_config=RunConfig(
            name="ray",
            storage_path=str(Path(output_dir).absolute()),
            failure_config=FailureConfig(max_failures=3),
        ),
    )
    return run.fit()


if __name__ == "__main__":
    main()
