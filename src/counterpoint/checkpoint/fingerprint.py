"""Whether a checkpoint belongs to this experiment, and what differs if it does not.

A fingerprint is a flat table of what makes two runs the same experiment: data, objective, model,
how pairs make steps, optimizer. How long a run is, how often it logs and saves, and how its
steps are cut into micro-batches are not in it: they may change on the way.

Not here: the digest of the data (``data.pair_digest``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

from torch import nn

from counterpoint.model_seams import class_of
from counterpoint.strict import spelt
from counterpoint.tensor_parts import filed_as

Value = str | int | float | bool | None
Fingerprint = Mapping[str, Value]


def model_facts(model: nn.Module) -> dict[str, Value]:
    """What of a fingerprint a model gives: its kind, and the names and shapes of its weights.

    Args:
        model: unwrapped, ready to train.
    """
    filed = {name: (*filed_as(p), p.requires_grad) for name, p in model.named_parameters()}
    lines = [f"{name} {shape} {dtype} {trains}\n" for name, (shape, dtype, trains) in filed.items()]
    digest = hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()[:16]
    trained = sum(math.prod(shape) for shape, _, trains in filed.values() if trains)
    weights = sum(math.prod(shape) for shape, _, _ in filed.values())
    return {
        "model": class_of(model).__name__,
        "weights": weights,
        "weights that train": trained,
        "names, shapes and precision of the weights": digest,
    }


def differences(then: Fingerprint, now: Fingerprint) -> dict[str, str]:
    """What differs between two fingerprints, by name, in words; what only one has does not.

    Args:
        then: that of a checkpoint; JSON has made lists of its tuples.
        now: that of the run that would resume from it.
    """
    return {
        name: f"{name} was {_shown(then[name])} and is {_shown(value)}"
        for name, value in now.items()
        if name in then and spelt(then[name]) != spelt(value)  # no NaN equals itself
    }


def _shown(value: Value) -> str:
    return "unknown" if value is None else str(value)
