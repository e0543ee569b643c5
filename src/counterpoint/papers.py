"""Where the losses of the table were published.

Not here: the losses (``objectives``).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a loss was published.

    Args:
        title: of the paper.
        authors: as BibTeX has them.
        year: of its first version.
        arxiv: its number there.
    """

    title: str
    authors: str
    year: str
    arxiv: str


SIGMOID = Paper(
    "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in "
    "Machine Translation",
    "Xu, Haoran and others",
    "2024",
    "2401.08417",
)

HINGE = Paper(
    "SLiC-HF: Sequence Likelihood Calibration with Human Feedback",
    "Zhao, Yao and others",
    "2023",
    "2305.10425",
)

IPO = Paper(
    "A General Theoretical Paradigm to Understand Learning from Human Preferences",
    "Azar, Mohammad Gheshlaghi and others",
    "2023",
    "2310.12036",
)

SIMPO = Paper(
    "SimPO: Simple Preference Optimization with a Reference-Free Reward",
    "Meng, Yu and Xia, Mengzhou and Chen, Danqi",
    "2024",
    "2405.14734",
)

ALPHAPO = Paper(
    "AlphaPO: Reward Shape Matters for LLM Alignment",
    "Gupta, Aman and others",
    "2025",
    "2501.03884",
)

ORPO = Paper(
    "ORPO: Monolithic Preference Optimization without Reference Model",
    "Hong, Jiwoo and Lee, Noah and Thorne, James",
    "2024",
    "2403.07691",
)

REPO = Paper(
    "RePO: ReLU-based Preference Optimization",
    "Wu, Junkang and others",
    "2025",
    "2503.07426",
)

SIMPER = Paper(
    "SimPER: A Minimalist Approach to Preference Alignment without Hyperparameters",
    "Xiao, Teng and others",
    "2025",
    "2502.00883",
)

ARPO = Paper(
    "X-ALMA: Plug & Play Modules and Adaptive Rejection for Quality Translation at Scale",
    "Xu, Haoran and others",
    "2024",
    "2410.03115",
)

DPO = Paper(
    "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    "Rafailov, Rafael and others",
    "2023",
    "2305.18290",
)

HYPO = Paper(
    "Mitigating Mismatch within Reference-based Preference Optimization",
    "Yuan, Suqin and others",
    "2026",
    "2602.11902",
)

DPOP = Paper(
    "Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive",
    "Pal, Arka and others",
    "2024",
    "2402.13228",
)

NCA = Paper(
    "Noise Contrastive Alignment of Language Models with Explicit Rewards",
    "Chen, Huayu and others",
    "2024",
    "2402.05369",
)

TPO = Paper(
    "Triple Preference Optimization: Achieving Better Alignment using a Single Step Optimization",
    "Saeidi, Amir and Verma, Shivanshu and RRV, Aswin and Rasul, Kashif and Baral, Chitta",
    "2024",
    "2405.16681",
)

APO = Paper(
    "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in "
    "Alignment",
    "D'Oosterlinck, Karel and others",
    "2024",
    "2408.06266",
)
