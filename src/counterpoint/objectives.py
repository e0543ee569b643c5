"""The table of losses: everything the package knows of each, one row a loss.

Options and their help, what contradicts what, the doctor, the report, the remedies of alarms and
the translation of other tools' files read it here. ``register_loss`` adds a row.

Not here: the arithmetic, which is named in the row (``losses.objective``), papers (``papers``),
and published settings (``doctor.presets``). No torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from counterpoint import papers
from counterpoint.papers import Paper
from counterpoint.tables import add_row

OBJECTIVE_OPTIONS = (
    "loss_type",
    "beta",
    "simpo_gamma",
    "gamma_beta_ratio",
    "alpha",
    "cpo_alpha",
    "nll_reduction",
    "label_smoothing",
    "use_weighting",
    "ld_alpha",
    "arpo_scale",
    "arpo_eta",
    "reference",
    "rpo_alpha",
    "dpop_lambda",
)
"""Options that say what is minimised."""

OF_EVERY_LOSS = ("loss_type", "use_weighting")
"""Those that every loss reads."""

_NLL = ("cpo_alpha", "nll_reduction")
_GAMMA = ("simpo_gamma", "gamma_beta_ratio")
_REFERENCE = ("reference", "rpo_alpha", "nll_reduction")

INITIAL = "initial"
"""The reference that is the model itself, as a run begins with it."""


@dataclass(frozen=True, slots=True)
class Loss:
    """One row of the table of losses.

    Args:
        name: as ``loss_type`` names it.
        method: what its authors call it.
        math: how it is computed, a ``losses.objective.LossMath``; of the losses that come with the
            package its name there, so that reading the table imports no torch.
        paper: where it was published.
        options: those of ``OBJECTIVE_OPTIONS`` that it reads; others do nothing or are refused.
        has_gap: its loss reads the gap; where it does not, a pair's own margin and a price on
            length have nothing to stand on, and are refused.
        per_token: its reward reads the mean over a completion's tokens, not their sum.
        beta_scales_gap: beta multiplies the difference of rewards.
        beta: what beta is where it is not the scale of the reward.
        beta_in_paper: the paper's own letter for it.
        nll: weight of the NLL term as published; None: nothing is published.
        nll_note: a word on that term in a run's file.
        gold: the NLL term is that of a third completion of each row, and not of the chosen one.
        with_nll: what the method is called with an NLL term, where it has none as published.
        without_nll: what it is called without one.
        at_alpha_zero: the loss that it is with alpha 0, where its reward has a shape.
        trl: the trainer of TRL that has it, as "CPO" of CPOTrainer; "": none.
        trl_nll: how TRL's NLL term differs.
        names: tool -> its name for the loss.
    """

    name: str
    method: str
    math: Any
    paper: Paper | None = None
    options: tuple[str, ...] = ("beta", "alpha", *_NLL)
    has_gap: bool = True
    per_token: bool = True
    beta_scales_gap: bool = True
    beta: str = ""
    beta_in_paper: str = ""
    nll: float | None = None
    nll_note: str = ""
    gold: bool = False
    with_nll: str = ""
    without_nll: str = ""
    at_alpha_zero: str = ""
    trl: str = ""
    trl_nll: str = ""
    names: Mapping[str, str] = field(default_factory=dict)

    def reads(self, option: str) -> bool:
        """Whether it reads one of ``OBJECTIVE_OPTIONS``."""
        return option in OF_EVERY_LOSS or option in self.options

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with what a reference model gives each pair."""
        return self.reads("reference")


SIGMOID = Loss(
    "sigmoid",
    "CPO",
    math="LOGISTIC",
    paper=papers.SIGMOID,
    options=("beta", "alpha", *_NLL, "label_smoothing", "ld_alpha"),
    per_token=False,
    nll=1.0,
    nll_note="as published; with nll_reduction: sequence_sum it is the paper's Eq. 5, a sum",
    without_nll="CPO without its NLL term",
    trl="CPO",
    names={"ms-swift": "cpo"},
)
HINGE = Loss(
    "hinge",
    "CPO, hinge loss (SLiC)",
    math="HINGE",
    paper=papers.HINGE,
    options=("beta", "alpha", *_NLL, "ld_alpha"),
    per_token=False,
    trl="CPO",
)
IPO = Loss(
    "ipo",
    "IPO",
    math="SQUARED",
    paper=papers.IPO,
    beta_scales_gap=False,
    beta="strength of the regularisation",
    beta_in_paper="tau",
    trl="CPO",
)
SIMPO = Loss(
    "simpo",
    "SimPO",
    math="LOGISTIC",
    paper=papers.SIMPO,
    options=("beta", *_GAMMA, "alpha", *_NLL, "label_smoothing"),
    nll=0.0,
    with_nll="CPO-SimPO",
    trl="CPO",
    names={"LLaMA-Factory": "simpo", "Axolotl": "simpo", "ms-swift": "simpo"},
)
ALPHAPO = Loss(
    "alphapo",
    "AlphaPO",
    math="LOGISTIC",
    paper=papers.ALPHAPO,
    options=("beta", *_GAMMA, "alpha", "nll_reduction", "label_smoothing"),
    at_alpha_zero=SIMPO.name,
    trl="CPO",
)
ORPO = Loss(
    "orpo",
    "ORPO",
    math="ODDS_RATIO",
    paper=papers.ORPO,
    options=("beta", *_NLL),
    beta_scales_gap=False,
    beta="weight of the odds-ratio term",
    beta_in_paper="lambda",
    nll=1.0,
    nll_note="ORPO is the NLL of the chosen plus the odds-ratio term",
    trl="ORPO",
    trl_nll="takes the NLL over prompt and chosen completion, Counterpoint over the completion "
    "alone",
    names={"LLaMA-Factory": "orpo", "Axolotl": "orpo", "ms-swift": "orpo"},
)
REPO = Loss(
    "repo",
    "RePO",
    math="RECTIFIED",
    paper=papers.REPO,
    options=("simpo_gamma", *_NLL),
    beta_scales_gap=False,
    beta="unused",
    nll=0.0,
)

SIMPER = Loss(
    "simper",
    "SimPER",
    math="INVERSE_PERPLEXITY",
    paper=papers.SIMPER,
    options=_NLL,
    beta_scales_gap=False,
    beta="unused",
    nll=0.0,
)

ARPO = Loss(
    "arpo",
    "ARPO",
    math="ADAPTIVE",
    paper=papers.ARPO,
    options=("beta", "arpo_scale", "arpo_eta", *_NLL, "label_smoothing"),
    per_token=False,
    nll=1.0,
    nll_note="as published; with nll_reduction: sequence_sum both terms are sums",
    without_nll="ARPO without its NLL term",
)

TPO = Loss(
    "tpo",
    "TPO",
    math="LOGISTIC",
    paper=papers.TPO,
    options=("beta", *_NLL, "label_smoothing", "ld_alpha"),
    per_token=False,
    nll=1.0,
    nll_note="of the gold completion, as published",
    gold=True,
    without_nll="CPO without its NLL term",
    trl="TPO",
    names={"TPOTrainer": "sigmoid"},
)
TPO_L = Loss(
    "tpo_l",
    "TPO-L",
    math="LOGISTIC",
    paper=papers.TPO,
    options=("beta", *_GAMMA, *_NLL, "label_smoothing"),
    nll=1.0,
    nll_note="of the gold completion, as published",
    gold=True,
    without_nll="SimPO",
    trl="TPO",
    names={"TPOTrainer": "tpo-l"},
)

DPO = Loss(
    "dpo",
    "DPO",
    math="LOGISTIC",
    paper=papers.DPO,
    options=("beta", *_REFERENCE, "label_smoothing", "ld_alpha"),
    per_token=False,
    with_nll="RPO",
    trl="DPO",
    names={
        **{"DPOTrainer": "sigmoid", "LLaMA-Factory": "sigmoid"},
        **{"Axolotl": "dpo", "ms-swift": "dpo"},
    },
)
HYPO = Loss(
    "hypo",
    "HyPO",
    math="OPTIMISTIC",
    paper=papers.HYPO,
    options=("beta", *_REFERENCE, "label_smoothing", "ld_alpha"),
    per_token=False,
)
DPOP = Loss(
    "dpop",
    "DPO-Positive",
    math="POSITIVE",
    paper=papers.DPOP,
    options=("beta", "dpop_lambda", *_REFERENCE, "label_smoothing", "ld_alpha"),
    per_token=False,
)
DPO_HINGE = Loss(
    "dpo_hinge",
    "DPO, hinge loss",
    math="HINGE",
    paper=HINGE.paper,
    options=("beta", *_REFERENCE, "ld_alpha"),
    per_token=False,
    names={"DPOTrainer": "hinge", "LLaMA-Factory": "hinge"},
)
DPO_IPO = Loss(
    "dpo_ipo",
    "IPO against a reference",
    math="SQUARED",
    paper=IPO.paper,
    options=("beta", *_REFERENCE),
    beta_scales_gap=False,
    beta=IPO.beta,
    beta_in_paper=IPO.beta_in_paper,
    names={"DPOTrainer": "ipo", "LLaMA-Factory": "ipo", "Axolotl": "ipo"},
)
APO_ZERO = Loss(
    "apo_zero",
    "APO-zero",
    math="ABOVE_AND_BELOW",
    paper=papers.APO,
    options=("beta", *_REFERENCE, "ld_alpha"),
    has_gap=False,
    per_token=False,
    names={"DPOTrainer": "apo_zero"},
)
APO_DOWN = replace(
    APO_ZERO,
    name="apo_down",
    method="APO-down",
    math="BOTH_BELOW",
    has_gap=True,
    names={"DPOTrainer": "apo_down"},
)
NCA = Loss(
    "nca_pair",
    "NCA",
    math="NOISE_CONTRASTIVE",
    paper=papers.NCA,
    options=APO_ZERO.options,
    has_gap=False,
    per_token=False,
    names={"DPOTrainer": "nca_pair"},
)

_ROWS: dict[str, Loss] = {
    row.name: row
    for row in (
        *(SIGMOID, HINGE, IPO, SIMPO, ALPHAPO, ORPO, REPO, SIMPER, ARPO, TPO, TPO_L),
        *(DPO, HYPO, DPOP, DPO_HINGE, DPO_IPO, APO_ZERO, APO_DOWN, NCA),
    )
}
LOSSES: Mapping[str, Loss] = MappingProxyType(_ROWS)
"""Loss type -> its row."""

DEFAULT_LOSS = SIGMOID.name
"""The loss of a run that names none, as in TRL."""


DEFAULTS_OF_TRL: Mapping[str, str] = MappingProxyType(
    {row.trl: row.name for row in (SIGMOID, ORPO, DPO, TPO)}
)
"""Trainer of TRL, as "CPO" of CPOTrainer -> the loss of those of its options that name none."""


def register_loss(row: Loss) -> Loss:
    """Add a loss to the table; options, doctor, report, planner and training then know it.

    Args:
        row: with a name that no row has.

    Returns:
        The same.

    Raises:
        ValueError: for a name that is taken.
    """
    return add_row(_ROWS, row, "a loss called")


def reading(option: str) -> list[str]:
    """The losses that read an option."""
    return [name for name, row in LOSSES.items() if row.reads(option)]


def no_gap(loss_type: str) -> str:
    """Why a pair's margin has no place in a loss without a gap, and what to do."""
    others = [name for name, row in LOSSES.items() if row.needs_reference and row.has_gap]
    return (
        f"loss_type={loss_type!r} asks where each completion stands against the reference, and "
        f"has no gap to take it off. Leave it out, or choose one of {', '.join(others)}."
    )


def called(tool: str, name: str | None) -> Loss | None:
    """The loss that another tool has under a name; None where it is none of the table.

    Args:
        tool: as ``Loss.names`` has it.
        name: there.
    """
    return next((row for row in LOSSES.values() if name and row.names.get(tool) == name), None)


def names_of(tool: str) -> list[str]:
    """The names that another tool has for losses of the table."""
    return [row.names[tool] for row in LOSSES.values() if tool in row.names]
