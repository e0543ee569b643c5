"""BLEU and chrF of texts with references, through sacrebleu, whose numbers others can repeat.

Each score comes with sacrebleu's signature, which names its version and settings (Post 2018,
arXiv:1804.08771); chrF is that of Popović 2015. BLEU counts four words in a row; where the
references have none, they would themselves get 0, and it is left out. This module alone imports
sacrebleu.

Not here: the exact match (``texts``), which needs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from counterpoint.errors import SetupError
from counterpoint.invocation import EXTRAS, installing

METRICS = ("bleu", "chrf")
BLEU_TOKENIZERS = ("13a", "zh", "char", "intl")
"""How BLEU cuts texts into words: 13a for most languages, zh for Chinese, char for characters."""

LEAST_OF_ITSELF = 99.9
"""What a score must give the references themselves, but for rounding."""


@dataclass(frozen=True, slots=True)
class ReferenceScore:
    """A score of a whole corpus.

    Args:
        value: in [0, 100].
        signature: of sacrebleu, to repeat it by.
    """

    value: float
    signature: str


def is_installed() -> bool:
    """Whether sacrebleu is there."""
    return find_spec("sacrebleu") is not None


def check_sacrebleu() -> None:
    """Refuse to go on without sacrebleu.

    Raises:
        SetupError: CP502, with how to install it.
    """
    if not is_installed():
        raise SetupError(
            "CP502",
            "BLEU and chrF need the package sacrebleu, which is not installed: "
            + installing(EXTRAS["evaluate"]),
        )


def reference_scores(
    texts: Sequence[str],
    references: Sequence[str],
    metrics: Sequence[str] = METRICS,
    bleu_tokenizer: str = "13a",
) -> dict[str, ReferenceScore]:
    """Scores of a corpus, one reference a text; without those that cannot judge it.

    Args:
        texts: what was written, at least one.
        references: what should have been.
        metrics: of ``METRICS``.
        bleu_tokenizer: one of ``BLEU_TOKENIZERS``.

    Raises:
        SetupError: CP502 without sacrebleu.
    """
    check_sacrebleu()
    from sacrebleu.metrics import BLEU, CHRF

    found = {}
    for name in metrics:
        metric = BLEU(tokenize=bleu_tokenizer) if name == "bleu" else CHRF()
        if metric.corpus_score(list(references), [list(references)]).score < LEAST_OF_ITSELF:
            continue
        score = metric.corpus_score(list(texts), [list(references)])
        found[name] = ReferenceScore(float(score.score), str(metric.get_signature()))
    return found


def sentence_metric(
    metric: str, bleu_tokenizer: str = "13a"
) -> tuple[Callable[[str, str], float], str]:
    """A score of one text against one reference, and its signature.

    BLEU of a sentence takes the effective order, so that a short one is not 0 by its length alone.

    Args:
        metric: one of ``METRICS``.
        bleu_tokenizer: one of ``BLEU_TOKENIZERS``.

    Returns:
        Text and reference -> the score in [0, 100].

    Raises:
        SetupError: CP502 without sacrebleu.
    """
    check_sacrebleu()
    from sacrebleu.metrics import BLEU, CHRF

    made = BLEU(tokenize=bleu_tokenizer, effective_order=True) if metric == "bleu" else CHRF()

    def score(text: str, reference: str) -> float:
        return float(made.sentence_score(text, [reference]).score)

    score("a", "a")  # the signature names the number of references, once there was one
    return score, str(made.get_signature())
