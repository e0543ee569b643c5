"""CPO of a model that sees: it learns which of two texts about a picture is better.

    python examples/vision_pairs.py PAIRS.jsonl [MODEL]

PAIRS.jsonl has rows of ``prompt``, ``images``, ``chosen`` and ``rejected``. The images are paths
from the folder in which this runs.
The vision tower and its projector stay as they are, and a LoRA adapter trains the language model.
Plain transformers and PEFT open what is saved.
"""

import sys

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor

from counterpoint import CPOConfig, CPOTrainer

MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"


def main(pairs, model=MODEL, output_dir="runs/seeing", **options):
    rows = load_dataset("json", data_files=pairs, split="train")
    parts = rows.train_test_split(test_size=max(1, min(200, len(rows) // 10)), seed=0)
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=16,
        target_modules="all-linear",
        exclude_modules=r".*\.(visual|vision_tower|vision_model|multi_modal_projector|connector)(\..*)?",
    )
    trainer = CPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(model),
        processing_class=AutoProcessor.from_pretrained(model),
        args=CPOConfig(
            output_dir=output_dir,
            learning_rate=1e-4,
            per_device_train_batch_size=4,
            num_train_epochs=1,
            max_length=2048,
            dataloader_num_workers=2,  # they decode the pictures
            eval_strategy="epoch",
            **options,
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        peft_config=adapter,
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
