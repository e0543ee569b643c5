"""What an evaluation measures, by name, and whether more of it is better.

Not here: measuring it (``metrics``, ``evaluation``), and a user's own ``compute_metrics``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PREFIX = "eval_"

OF_PAIRS: Mapping[str, bool | None] = MappingProxyType(
    {
        "loss": False,
        "nll_loss": False,
        "rewards/chosen": None,
        "rewards/rejected": None,
        "rewards/accuracies": True,
        "rewards/accuracies_low": True,
        "rewards/accuracies_high": True,
        "rewards/margins": True,
        "logps/chosen": None,
        "logps/rejected": None,
        "logits/chosen": None,
        "logits/rejected": None,
    }
)
"""Metric of every evaluation -> whether more is better; None where that is the user's to say."""

OF_PACE: Mapping[str, bool | None] = MappingProxyType(
    {"runtime": False, "samples_per_second": True, "steps_per_second": True}
)
"""The same of what transformers adds."""

OF_EXPERTS: Mapping[str, bool | None] = MappingProxyType({"aux_loss": False})
"""The same of models with experts."""

OF_WEIGHTS: Mapping[str, bool | None] = MappingProxyType({"policy_weights": None})
"""The same of runs that weigh pairs by the policy."""

OF_TEXTS: Mapping[str, bool | None] = MappingProxyType(
    {
        "length": None,
        "ended": True,
        "empty": False,
        "repetition": False,
        "exact_match": True,
        "distinct_1": None,
        "distinct_2": None,
    }
)
"""The same of ``samples/`` and ``samples/sampled_``, with ``generate_during_eval``."""

OF_CONSTRAINT: Mapping[str, bool | None] = MappingProxyType({"value": False, "violation": False})
"""The same of ``constraints/NAME/``."""


WORDS: Mapping[str, str] = MappingProxyType(
    {
        "loss": "loss",
        "rewards/accuracies": "accuracy",
        "rewards/margins": "margin",
        "logps/chosen": "log-probability of chosen",
    }
)
"""The word for a metric wherever people read it: display, tables, report, docs."""

SHORT: Mapping[str, str] = MappingProxyType(
    {"log-probability of chosen": "chosen", "multiplier": "mult"}
)
"""What takes the place of a word in a line of 80 columns that has no room for it."""


def more_is_better(metric: str) -> bool | None:
    """Whether more of a metric is better; None where that is not known.

    Args:
        metric: by the name that an evaluation gives it, with or without ``eval_``; that of a
            named set too.
    """
    for known in (OF_PAIRS, OF_PACE, OF_EXPERTS, OF_WEIGHTS):
        for name, better in known.items():
            if _is(metric, name):
                return better
    for part, known in (("samples/", OF_TEXTS), ("constraints/", OF_CONSTRAINT)):
        _, found, rest = metric.rpartition(part)
        last = rest.removeprefix("sampled_").rpartition("/")[2]
        if found and last in known:
            return known[last]
    return None


def _is(metric: str, name: str) -> bool:
    """Whether a metric is this one, of the only evaluation set or of a named one."""
    bare = metric.removeprefix(PREFIX)
    return bare == name or (metric != bare and bare.endswith(f"_{name}"))
