"""Every kind of adapter that PEFT has trains under the defaults, or is refused with a code."""

from __future__ import annotations

import inspect

import pytest
import torch
from datasets import Dataset
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.errors import CounterpointError

ROWS = [
    {"prompt": f"What is {i} and {i}?", "chosen": f" It is {2 * i}.", "rejected": f" Maybe {i}?"}
    for i in range(2)
]
KINDS = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
OWN = {
    "ADALORA": {"total_step": 4},
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 1, "target_modules": None},
    "C3A": {"block_size": 8},
    "CPT": {"cpt_token_ids": [5, 6], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
    "FOURIERFT": {"n_frequency": 16},
    "IA3": {"feedforward_modules": []},
    "MISS": {"r": 4},
    "P_TUNING": {"encoder_hidden_size": 16},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"target_modules": None, "token_indices": list(range(600))},
    "VBLORA": {"vector_length": 8},
    "WAVEFT": {"n_frequency": 16},
}
REFUSED = {
    "CARTRIDGE": ("CP314", "gradient_checkpointing=False"),
    "MULTITASK_PROMPT_TUNING": ("CP307", "the task of each row"),
    "POLY": ("CP307", "the task of each row"),
    "PREFIX_TUNING": ("CP314", "gradient_checkpointing=False"),
    "SHADOW": ("CP307", "other than tensors"),
    "XLORA": ("CP307", "use_cache"),
}


def config_of(kind: str):
    common = {
        "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj", "v_proj"],
        "num_virtual_tokens": 2,
    }
    known = inspect.signature(KINDS[kind]).parameters
    options = {**{n: v for n, v in common.items() if n in known}, **OWN.get(kind, {})}
    return KINDS[kind](**{n: v for n, v in options.items() if v is not None})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kind_of_adapter_trains_or_is_refused(kind, models, chatml_tokenizer, tmp_path):
    options = CPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        max_steps=2,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        report_to="none",
    )
    if kind == "ADAMSS":
        pytest.importorskip("sklearn", reason="AdaMSS needs it")
    made = {"args": options, "processing_class": chatml_tokenizer}
    made["train_dataset"] = Dataset.from_list(ROWS)
    model = models("llama" if kind == "ADAPTION_PROMPT" else "qwen2")
    if kind in REFUSED:
        code, words = REFUSED[kind]
        with pytest.raises(CounterpointError, match=f"{code} .*{words}"):
            CPOTrainer(model=model, peft_config=config_of(kind), **made)
        return
    trainer = CPOTrainer(model=model, peft_config=config_of(kind), **made)
    trained = {n: w.detach().clone() for n, w in trainer.model.named_parameters()}
    trainer.train()
    moved = [n for n, w in trainer.model.named_parameters() if not torch.equal(w, trained[n])]
    assert moved
    assert all(dict(trainer.model.named_parameters())[name].requires_grad for name in moved)
