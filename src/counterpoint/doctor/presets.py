"""Published settings of each loss, each with its source: to compare a run with, or to begin one.

The doctor compares runs with them, ``counterpoint init`` writes them, docs/presets.md lists
them. Plain numbers: nothing slow is imported.

Not here: what is far from them (``of_objective``), and how a file is written (``migrate``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from counterpoint.objectives import (
    ALPHAPO,
    ARPO,
    LOSSES,
    ORPO,
    SIGMOID,
    SIMPER,
    SIMPO,
    TPO,
    TPO_L,
)

OF_SIMPO = "arXiv:2405.14734 and its repository's training configurations"
OF_CPO = "arXiv:2401.08417 and the ALMA repository (runs/cpo_ft.sh)"
OF_CPO_SIMPO = "fe1ixxu/CPO_SIMPO"
# TRL takes the table's 0.1 for gamma itself; SimPO's own row for this model has it as gamma / beta
OF_ALPHAPO = (
    "arXiv:2501.03884, Table 3, as TRL's paper index quotes it, its margin read as gamma / beta; "
    "the rest as SimPO's"
)
OF_TPO = "arXiv:2405.16681 and its repository's table of hyperparameters"
OF_SIMPER = "arXiv:2502.00883 and its repository's training configurations"
OF_ARPO = (
    "the ALMA repository (runs/cpo_ft.sh with utils/cpo_trainer.py, which is arXiv:2410.03115's)"
)
OF_ORPO = "arXiv:2403.07691 and xfactlab/orpo (scripts/run_mistral_orpo_beta.sh)"

PAIRS_PER_STEP = 128
"""Pairs of an optimizer step in all of the settings that do not say otherwise."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One published setting.

    Args:
        name: as ``counterpoint init --preset`` takes it.
        method: what its authors call it.
        model: the model it was published for.
        loss_type: as ``CPOConfig.loss_type``.
        beta: scale of the reward; of ORPO, the weight of the odds-ratio term; None for a loss
            that reads none.
        ratio: gamma divided by beta; None for a loss without a margin.
        cpo_alpha: weight of the NLL term.
        learning_rate: peak of AdamW's.
        source: where it is published.
        lora_r: rank of the adapter that was trained; None: all weights were.
        alpha: shape of AlphaPO's reward.
        max_length: most tokens of prompt and completion.
        schedule: as ``lr_scheduler_type``.
        warmup_steps: steps of warm-up; below 1, their share of the run.
        epochs: passes over the data.
        weight_decay: AdamW's.
        pairs: pairs of an optimizer step.
    """

    name: str
    method: str
    model: str
    loss_type: str
    beta: float | None
    ratio: float | None
    cpo_alpha: float
    learning_rate: float
    source: str
    lora_r: int | None = None
    alpha: float = 0.0
    max_length: int = 2048
    schedule: str = "cosine"
    warmup_steps: float = 0.1
    epochs: int = 1
    weight_decay: float = 0.0
    pairs: int = PAIRS_PER_STEP

    @property
    def adapter(self) -> bool:
        """Whether an adapter was trained, and not all weights."""
        return self.lora_r is not None


def _simpo(
    name: str, model: str, beta: float, ratio: float, learning_rate: float, max_length: int = 2048
) -> Preset:
    return Preset(
        f"simpo-{name}",
        "SimPO",
        model,
        SIMPO.name,
        beta,
        ratio,
        0.0,
        learning_rate,
        OF_SIMPO,
        max_length=max_length,
    )


def _simper(name: str, model: str, learning_rate: float, max_length: int = 2048) -> Preset:
    return Preset(
        f"simper-{name}",
        "SimPER",
        model,
        SIMPER.name,
        None,
        None,
        0.0,
        learning_rate,
        OF_SIMPER,
        max_length=max_length,
    )


def _tpo(
    name: str,
    model: str,
    learning_rate: float,
    nll: float,
    beta: float = 0.01,
    ratio: float | None = None,
) -> Preset:
    loss = TPO if ratio is None else TPO_L
    return Preset(
        f"{loss.method.lower()}-{name}",
        loss.method,
        model,
        loss.name,
        beta,
        ratio,
        nll,
        learning_rate,
        OF_TPO,
        max_length=1024,
    )


PRESETS: tuple[Preset, ...] = (
    _simpo("mistral-base", "Mistral-7B, SFT on UltraChat", 2.0, 0.8, 3e-7, max_length=1024),
    _simpo("mistral-instruct", "Mistral-7B-Instruct-v0.2", 2.5, 0.1, 5e-7),
    _simpo("llama3-base", "Llama-3-8B, SFT on UltraChat", 2.0, 0.5, 6e-7),
    _simpo("llama3-instruct", "Llama-3-8B-Instruct", 2.5, 0.55, 1e-6),
    _simpo("llama3-instruct-v0.2", "Llama-3-8B-Instruct", 10.0, 0.3, 1e-6),
    _simpo("gemma2-instruct", "Gemma-2-9B-it", 10.0, 0.5, 8e-7),
    Preset(
        "cpo-translation",
        "CPO (ALMA-R)",
        "ALMA-13B",
        SIGMOID.name,
        0.1,
        None,
        1.0,
        1e-4,
        OF_CPO,
        lora_r=16,
        max_length=512,
        schedule="inverse_sqrt",
        warmup_steps=0.01,
        weight_decay=0.01,
    ),
    Preset(
        "cpo-simpo",
        "CPO-SimPO",
        "Llama-3-8B-Instruct",
        SIMPO.name,
        10.0,
        0.54,
        0.05,
        1e-6,
        OF_CPO_SIMPO,
    ),
    Preset(
        ALPHAPO.name,
        "AlphaPO",
        "Mistral-7B-Instruct",
        ALPHAPO.name,
        2.5,
        0.1,
        0.0,
        7e-7,
        OF_ALPHAPO,
        alpha=0.25,
    ),
    Preset(
        ORPO.name,
        "ORPO (Mistral-ORPO-beta)",
        "Mistral-7B-v0.1",
        ORPO.name,
        0.1,
        None,
        1.0,
        5e-6,
        OF_ORPO,
        schedule="inverse_sqrt",
        warmup_steps=200,
        epochs=5,
        pairs=32,
    ),
    _simper("mistral-base", "Mistral-7B, SFT on UltraChat", 3e-7, max_length=1024),
    _simper("mistral-instruct", "Mistral-7B-Instruct-v0.2", 5e-7),
    _simper("llama3-base", "Llama-3-8B, SFT on UltraChat", 6e-7),
    _simper("llama3-instruct", "Llama-3-8B-Instruct", 1e-6),
    _tpo("llama3-base", "Llama-3-8B, 40,000 rows", 5e-7, 1.0),
    _tpo("mistral-base", "Mistral-7B-v0.3, 40,000 rows", 5e-7, 1.0),
    _tpo("llama3-instruct", "Llama-3-8B-Instruct", 1e-6, 0.05),
    _tpo("mistral-instruct", "Mistral-7B-Instruct-v0.2", 1e-6, 0.05),
    _tpo("mistral-base", "Mistral-7B-v0.3, 40,000 rows", 5e-7, 0.05, 2.0, 0.8),
    _tpo("llama3-instruct", "Llama-3-8B-Instruct", 1e-6, 0.05, 10.0, 0.3),
    _tpo("mistral-instruct", "Mistral-7B-Instruct-v0.2", 1e-6, 0.05, 2.5, 0.12),
    Preset(
        "arpo-translation",
        "ARPO",
        "ALMA-13B",
        ARPO.name,
        0.1,
        None,
        1.0,
        1e-4,
        OF_ARPO,
        lora_r=16,
        max_length=512,
        schedule="inverse_sqrt",
        warmup_steps=0.01,
        weight_decay=0.01,
    ),
)

BY_NAME: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in PRESETS})


def betas_of(loss_type: str) -> list[float]:
    """The published betas of a loss, in the order of its settings; none where it reads none."""
    return [preset.beta for preset in presets_of(loss_type) if preset.beta is not None]


def presets_of(loss_type: str) -> tuple[Preset, ...]:
    """The settings of a loss and of the one that it generalises, as AlphaPO does SimPO."""
    loss = LOSSES.get(loss_type)
    named = (loss_type, loss.at_alpha_zero) if loss is not None else ()
    return tuple(preset for preset in PRESETS if preset.loss_type in named)
