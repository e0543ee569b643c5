"""TRL's own tests of its CPO with T5 pass here with one import changed.

TRL's package brings no tests. Name a checkout of TRL in ``COUNTERPOINT_TRL``, and its file is run
as it is, but for its import; models and data of the hub are replaced by small ones made on the
spot. What its cases of T5 ask for stands below in our own words, and is always run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint import CPOConfig, CPOTrainer, DataError
from counterpoint.quickstart.task import english, german
from tests.translators_on_the_spot import translator

ROOT = Path(__file__).parents[2]
THEIRS = "from trl.experimental.cpo import CPOConfig, CPOTrainer"
OURS = "from counterpoint import CPOConfig, CPOTrainer"
STAND_INS = '''\
"""Small models and data in the place of those of the hub."""
import datasets, pytest, transformers
from tests.translators_on_the_spot import translator
from tests.parity.test_trl_s_own_tests import begun

def data(path, name=None, split=None):
    whole = datasets.DatasetDict(
        train=datasets.Dataset.from_list(begun(15)), test=datasets.Dataset.from_list(begun(2))
    )
    return whole[split] if split else whole

datasets.load_dataset = data
decoder = transformers.LlamaConfig(
    vocab_size=300, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
)
for auto, make in {
    transformers.AutoModelForCausalLM: lambda: transformers.LlamaForCausalLM(decoder),
    transformers.AutoModelForSeq2SeqLM: lambda: translator("t5")[0],
    transformers.AutoTokenizer: lambda: translator("t5")[1],
}.items():
    auto.from_pretrained = staticmethod(lambda *_, make=make, **__: make())
'''
UTILITIES = '''\
"""What the file asks of TRL's testing_utils."""
import pytest

def require_peft(test):
    return test

class TrlTestCase:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.tmp_dir = str(tmp_path)
'''


def begun(count: int) -> list[dict[str, str]]:
    """Rows of which both completions begin with the source, which stands in no column."""
    return [
        {
            "chosen": f"{english(n)} {german(n)}",
            "rejected": f"{english(n)} und {german(n + 1000)}",
        }
        for n in range(100, 100 + 111 * count, 111)
    ]


def trainer_of(folder: Path, loss_type: str, **options: Any) -> CPOTrainer:
    """With the options of TRL's cases: three steps at a learning rate that moves any weight."""
    model, tokenizer = translator("t5")
    args = CPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_steps=3,
        remove_unused_columns=False,
        gradient_accumulation_steps=1,
        learning_rate=9e-1,
        eval_strategy="steps",
        beta=0.1,
        loss_type=loss_type,
        cpo_alpha=1.0,
        report_to="none",
        use_cpu=True,
    )
    for name, value in options.items():
        setattr(args, name, value)
    return CPOTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=begun(15),
        eval_dataset=begun(2),
    )


@pytest.mark.parametrize("loss_type", ["hinge", "simpo"])
def test_three_steps_of_trl_s_cases_move_every_weight_of_t5(loss_type: str, tmp_path: Path) -> None:
    # set on the finished options, as TRL's tests do
    trainer = trainer_of(tmp_path, loss_type, is_encoder_decoder=True)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] is not None
    for name, weight in trainer.model.named_parameters():
        assert not torch.equal(weight, before[name]), name


def test_without_its_option_such_rows_are_refused_and_say_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"CP206 .*say is_encoder_decoder=True"):
        trainer_of(tmp_path, "hinge")


@pytest.mark.skipif("COUNTERPOINT_TRL" not in os.environ, reason="names no checkout of TRL")
def test_trl_s_file_passes_with_one_import_changed(tmp_path: Path) -> None:
    file = Path(os.environ["COUNTERPOINT_TRL"], "tests", "experimental", "test_cpo_trainer.py")
    text = file.read_text(encoding="utf-8")
    assert text.count(THEIRS) == 1
    own = tmp_path / "own" / "experimental"
    own.mkdir(parents=True)
    for folder in (own, own.parent):
        (folder / "__init__.py").touch()
    (own.parent / "conftest.py").write_text(STAND_INS, encoding="utf-8")
    (own.parent / "testing_utils.py").write_text(UTILITIES, encoding="utf-8")
    (own / file.name).write_text(text.replace(THEIRS, OURS), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "t5", str(own)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "2 passed" in done.stdout
