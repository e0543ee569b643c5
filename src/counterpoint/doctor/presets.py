"""Published settings of each loss, to compare a run with; each with its source.

Not here: what is far from them (``of_objective``).
"""

from __future__ import annotations

from dataclasses import dataclass

SIMPO = "arXiv:2405.14734 and its repository's training configurations"
CPO = "arXiv:2401.08417 and the ALMA repository"
CPO_SIMPO = "fe1ixxu/CPO_SIMPO"

PAIRS_PER_STEP = 128
"""Pairs of an optimizer step in all of the settings."""


@dataclass(frozen=True, slots=True)
class Preset:
    """One published setting.

    Args:
        name: of the model it was published for.
        loss_type: as ``CPOConfig.loss_type``.
        beta: scale of the reward.
        ratio: gamma divided by beta; None for a loss without a margin.
        cpo_alpha: weight of the NLL term.
        learning_rate: peak of AdamW's.
        adapter: whether an adapter was trained, and not all weights.
        source: where it is published.
    """

    name: str
    loss_type: str
    beta: float
    ratio: float | None
    cpo_alpha: float
    learning_rate: float
    adapter: bool
    source: str


def _simpo(name: str, beta: float, ratio: float, learning_rate: float) -> Preset:
    return Preset(name, "simpo", beta, ratio, 0.0, learning_rate, False, SIMPO)


PRESETS: tuple[Preset, ...] = (
    _simpo("Mistral-Base", 2.0, 0.8, 3e-7),
    _simpo("Mistral-Instruct", 2.5, 0.1, 5e-7),
    _simpo("Llama3-Base", 2.0, 0.5, 6e-7),
    _simpo("Llama3-Instruct", 2.5, 0.55, 1e-6),
    _simpo("Llama3-Instruct v0.2", 10.0, 0.3, 1e-6),
    _simpo("Gemma-2", 10.0, 0.5, 8e-7),
    Preset("ALMA-R", "sigmoid", 0.1, None, 1.0, 1e-4, True, CPO),
    Preset("Llama3-Instruct, CPO-SimPO", "simpo", 10.0, 0.54, 0.05, 1e-6, False, CPO_SIMPO),
)


def presets_of(loss_type: str) -> tuple[Preset, ...]:
    """The settings of a loss; AlphaPO's are SimPO's, which it generalises."""
    named = "simpo" if loss_type == "alphapo" else loss_type
    return tuple(preset for preset in PRESETS if preset.loss_type == named)
