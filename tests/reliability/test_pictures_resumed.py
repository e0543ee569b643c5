"""A run on pictures resumes on the same pictures only."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from counterpoint import CPOConfig, CPOTrainer, SetupError
from counterpoint.data.sources import load
from counterpoint.trainer import trainer as of_trainer
from tests.models_on_the_spot import make_model
from tests.pictures_on_the_spot import TEMPLATE, SeeingEncoder, drawn, packed


def test_a_run_does_not_resume_on_another_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chatml_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = copy.deepcopy(chatml_tokenizer)
    tokenizer.chat_template = TEMPLATE
    monkeypatch.setattr(of_trainer, "encoder_of", lambda *_: SeeingEncoder(tokenizer))
    picture, file = tmp_path / "a.png", tmp_path / "rows.jsonl"
    picture.write_bytes(packed(drawn(20, 20)))
    raw = {"prompt": "<image>Hi", "chosen": "yes", "rejected": "no", "images": ["a.png"]}
    file.write_text("\n".join(json.dumps(raw | {"chosen": f"yes {n}"}) for n in range(4)))

    def run(steps: int) -> CPOTrainer:
        args = CPOConfig(
            output_dir=str(tmp_path / "run"),
            **{"max_steps": steps, "save_steps": 1, "per_device_train_batch_size": 2},
            **{"use_cpu": True, "report_to": "none", "disable_tqdm": True},
            lr_scheduler_type="constant",
        )
        model = make_model(vocab_size=len(tokenizer))
        return CPOTrainer(model, args, train_dataset=load(file), processing_class=tokenizer)

    run(1).train()
    run(2).train(resume_from_checkpoint=True)
    changed = drawn(20, 20)
    changed.putpixel((3, 3), (1, 200, 100))
    picture.write_bytes(packed(changed))
    with pytest.raises(SetupError, match=r"^CP513 .*data train was "):
        run(3).train(resume_from_checkpoint=True)
