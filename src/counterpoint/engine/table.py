"""Which engines there are, and which one runs: what accelerate has set up, not what was asked for.

``accelerate launch --use_fsdp`` sets it up through the environment, where no option is seen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from counterpoint.engine import NOT_SUPPORTED
from counterpoint.engine.ddp import Ddp
from counterpoint.engine.face import Engine
from counterpoint.engine.plain import Plain
from counterpoint.errors import ConfigError
from counterpoint.tables import add_row

ENGINES: dict[str, type[Engine]] = {}
"""Every engine by its name; of several that would run, the last one does."""

_LAUNCHED = {
    "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "MEGATRON_LM",
}
"""What ``accelerate launch`` says in the environment, and what it makes of it."""


def register_engine(engine: type[Engine]) -> type[Engine]:
    """Add an engine; one that runs where another would takes its place.

    Args:
        engine: with a name of its own.

    Returns:
        The same, so that it can decorate the class.

    Raises:
        ValueError: for a name that is taken.
    """
    return add_row(ENGINES, engine, "an engine")


for _engine in (Plain, Ddp):
    register_engine(_engine)


def engine_for(accelerator: Any, model: nn.Module | None = None) -> Engine:
    """The engine that accelerate has set up.

    Args:
        accelerator: of the run.
        model: that is to be trained, if there is one.

    Raises:
        ConfigError: CP105 where none of ``ENGINES`` runs so, or where it refuses the model.
    """
    kind = accelerator.distributed_type.value
    found = _running(kind)
    if found is None:
        raise ConfigError("CP105", _not_run(kind))
    engine = found(accelerator)
    reason = None if model is None else engine.refuses(model)
    if reason is not None:
        raise ConfigError("CP105", f"{reason}, and {NOT_SUPPORTED}.")
    return engine


def settle(args: Any) -> None:
    """Set the options that the engines need and the user has left open.

    Args:
        args: transformers' ``TrainingArguments``; accelerate has not read them yet.
    """
    for engine in ENGINES.values():
        for name, value in engine.defaults.items():
            if getattr(args, name) is None:
                setattr(args, name, value)


def refusal(kind: str) -> str | None:
    """What is said of a way to distribute that no engine runs; None where one does.

    Args:
        kind: the name of accelerate's ``DistributedType``.
    """
    return _not_run(kind) if _running(kind) is None else None


def launched_for(kind: str, environment: Mapping[str, str] = os.environ) -> str:
    """What accelerate will set up, before it has.

    Args:
        kind: of its ``PartialState``, which processes have as soon as there are options.
        environment: of the process.
    """
    # on CPUs accelerate does not heed these, without a word
    if not kind.startswith("MULTI_") or kind == "MULTI_CPU":
        return kind
    asked = [
        made for name, made in _LAUNCHED.items() if environment.get(name, "").lower() == "true"
    ]
    return asked[0] if asked else kind


def _not_run(kind: str) -> str:
    return f"accelerate is set up for {kind}, but {NOT_SUPPORTED}."


def _running(kind: str) -> type[Engine] | None:
    return next((one for one in reversed(ENGINES.values()) if one.runs(kind)), None)
