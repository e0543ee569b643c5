"""A healthy run to break: the quickstart's model, tokenizer and task, and one of conversations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import yaml
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from counterpoint.config import CPOConfig
from counterpoint.doctor import examine
from counterpoint.doctor.findings import Finding, Report
from counterpoint.quickstart.task import preference_pairs
from counterpoint.quickstart.translate import load_base
from tests.models_on_the_spot import make_model
from tests.tokenizers_on_the_spot import CHATML, byte_level
from tests.translators_on_the_spot import translator

PAIRS = 160


@dataclass(frozen=True)
class Patient:
    """A run to examine; changed by functions from one to another."""

    options: dict[str, Any]
    rows: Any
    model: Any
    tokenizer: Any
    eval_rows: Any = None
    adapter: Any = None
    overwrite: bool = field(default=False)

    def examined(self, **more: Any) -> Report:
        """What the doctor says of it."""
        return examine(
            CPOConfig(**self.options),
            model=self.model,
            tokenizer=self.tokenizer,
            train_dataset=self.rows,
            eval_dataset=self.eval_rows,
            peft_config=self.adapter,
            overwrite=self.overwrite,
            **more,
        )


Change = Callable[[Patient], Patient]


@cache
def _base() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_base()


def healthy(folder: str) -> Patient:
    """A run against which the doctor has nothing."""
    model, tokenizer = copy.deepcopy(_base())
    options = {
        "output_dir": folder,
        "use_cpu": True,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 8,
        "learning_rate": 1e-6,
    }
    rows = [pair.row for pair in preference_pairs(PAIRS, seed=0)]
    return Patient(options, rows, model, tokenizer)


def chatting(folder: str) -> Patient:
    """A run of conversations, its tokenizer as Qwen's; the model knows nothing."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {n} and {n}?"}],
            "chosen": [{"role": "assistant", "content": f"It is {2 * n}."}],
            "rejected": [{"role": "assistant", "content": f"Is {n} it?"}],
        }
        for n in range(20)
    ]
    model = make_model("qwen2", vocab_size=len(tokenizer))
    return replace(healthy(folder), rows=rows, model=model, tokenizer=tokenizer)


def translating(folder: str) -> Patient:
    """A run of an encoder-decoder that is told its languages; the model knows nothing."""
    model, tokenizer = translator("nllb")
    whole = healthy(folder)
    languages = {"source_lang": "eng_Latn", "target_lang": "deu_Latn"}
    return replace(whole, options={**whole.options, **languages}, model=model, tokenizer=tokenizer)


# Changes


def options(**values: Any) -> Change:
    """Other options."""
    return lambda patient: replace(patient, options={**patient.options, **values})


def rows(change: Callable[[list[dict[str, Any]]], Any]) -> Change:
    """Other rows."""
    return lambda patient: replace(patient, rows=change(copy.deepcopy(patient.rows)))


def parts(**changes: Any) -> Change:
    """Another part; a function makes it from the patient."""

    def changed(patient: Patient) -> Patient:
        made = {name: make(patient) if callable(make) else make for name, make in changes.items()}
        return replace(patient, **made)

    return changed


def both(*changes: Change) -> Change:
    """One change after the other."""

    def changed(patient: Patient) -> Patient:
        for change in changes:
            patient = change(patient)
        return patient

    return changed


def _ran(lines: str, **names: Any) -> dict[str, Any]:
    """What Python makes of names."""
    exec(lines, names)
    return names


def pasted(finding: Finding) -> Change:
    """The finding's own line: YAML goes into the options, Python is run on the run's parts."""
    lines = finding.fix

    def changed(patient: Patient) -> Patient:
        if "row = " in lines:
            return replace(patient, rows=[_ran(lines, row=row)["row"] for row in patient.rows])
        if "_dataset = " in lines:
            sets = {"train_dataset": patient.rows, "eval_dataset": patient.eval_rows or []}
            made = _ran(lines, **{name: Dataset.from_list(rows) for name, rows in sets.items()})
            return replace(patient, rows=made["train_dataset"], eval_rows=made["eval_dataset"])
        if any(line.startswith(("tokenizer.", "model.", "model =")) for line in lines.splitlines()):
            made = _ran(lines, tokenizer=patient.tokenizer, model=patient.model)
            return replace(patient, tokenizer=made["tokenizer"], model=made["model"])
        values = yaml.safe_load(lines)
        assert isinstance(values, dict), f"{finding.code} has nothing to paste: {lines!r}"
        # 1e-06 is text to YAML 1.1; the command reads it as the option's type
        numbers = {k: float(v) if k == "learning_rate" else v for k, v in values.items()}
        return replace(patient, options={**patient.options, **numbers})

    return changed
