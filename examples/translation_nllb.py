"""CPO of an encoder-decoder: NLLB learns which of two translations is better.

    python examples/translation_nllb.py PAIRS.jsonl [MODEL] [SOURCE TARGET]

PAIRS.jsonl has rows of ``source``, ``chosen`` and ``rejected``, as ``counterpoint pairs`` makes
them of scored candidates. Languages are the tokenizer's codes: ``zho_Hans eng_Latn`` for NLLB,
``zh_CN en_XX`` for mBART-50. Rows with columns ``source_lang`` and ``target_lang`` say their own.

LoRA on attention and feed-forward layers: the translator keeps what it knew, and the adapter is
small enough to send. Plain PEFT and transformers open what is saved.
"""

import sys

from datasets import load_dataset
from peft import LoraConfig

from counterpoint import CPOConfig, CPOTrainer

MODEL = "facebook/nllb-200-distilled-600M"


def main(
    pairs,
    model=MODEL,
    source="zho_Hans",
    target="eng_Latn",
    output_dir="runs/translation",
    **options,
):
    rows = load_dataset("json", data_files=pairs, split="train")
    parts = rows.train_test_split(test_size=min(200, len(rows) // 10), seed=0)
    trainer = CPOTrainer(
        model=model,
        args=CPOConfig(
            output_dir=output_dir,
            source_lang=source,
            target_lang=target,
            learning_rate=1e-4,
            per_device_train_batch_size=16,
            num_train_epochs=1,
            eval_strategy="epoch",
            generate_during_eval=True,  # a few translations before and after, in samples.jsonl
            **options,
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        peft_config=LoraConfig(task_type="SEQ_2_SEQ_LM", r=16, target_modules="all-linear"),
    )
    trainer.train()
    trainer.save_model()
    return trainer


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
