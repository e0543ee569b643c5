"""Which engines there are, and which one runs: what accelerate has set up, not what was asked for.

``accelerate launch --use_fsdp`` sets it up through the environment, where no option is seen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from counterpoint.engine import DEEPSPEED, NOT_SUPPORTED
from counterpoint.engine.ddp import Ddp
from counterpoint.engine.face import Engine
from counterpoint.engine.fsdp2 import SHARDED, Fsdp2, sharding_asked
from counterpoint.engine.plain import Plain
from counterpoint.errors import ConfigError
from counterpoint.tables import add_row

ENGINES: dict[str, type[Engine]] = {}
"""Every engine by its name; of several that would run, the last one does."""

_LAUNCHED = {
    "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED",
    SHARDED: "FSDP",
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


for _engine in (Plain, Ddp, Fsdp2):
    register_engine(_engine)


def engine_for(accelerator: Any, model: nn.Module | None = None) -> Engine:
    """The engine that accelerate has set up.

    Args:
        accelerator: of the run.
        model: that is to be trained, if there is one.

    Raises:
        ConfigError: CP105 where none of ``ENGINES`` runs so, where it refuses the model, and where
            sharding was asked for and is not what came out.
    """
    kind = accelerator.distributed_type.value
    found = _running(kind, model)
    if found is None:
        raise ConfigError("CP105", _not_run(kind))
    if sharding_asked() and not found.shards:
        raise ConfigError("CP105", _not_sharded(kind))
    engine = found(accelerator)
    if model is not None:
        reason = engine.refuses(model)
        if reason is not None:
            raise ConfigError("CP105", f"{reason}; {NOT_SUPPORTED}.")
        engine.expects(model)
    return engine


def settle(args: Any) -> None:
    """Set the options that the engines need and the user has left open.

    Args:
        args: transformers' ``TrainingArguments``; accelerate has not read them yet.
    """
    for engine in ENGINES.values():
        engine.settle(args)


def refusal(kind: str, environment: Mapping[str, str] | None = None) -> str | None:
    """What is said of a way to distribute that no engine runs; None where one does.

    Args:
        kind: the name of accelerate's ``DistributedType``.
        environment: by default that of the process.
    """
    found = _running(kind)
    if found is None:
        return _not_run(kind)
    return _not_sharded(kind) if sharding_asked(environment) and not found.shards else None


def launched_for(kind: str, environment: Mapping[str, str] | None = None) -> str:
    """What accelerate will set up, before it has.

    Args:
        kind: of its ``PartialState``, which processes have as soon as there are options.
        environment: by default that of the process.
    """
    # on CPUs accelerate does not heed these, without a word
    if not kind.startswith("MULTI_") or kind == "MULTI_CPU":
        return kind
    said = os.environ if environment is None else environment
    asked = [made for name, made in _LAUNCHED.items() if said.get(name, "").lower() == "true"]
    return asked[0] if asked else kind


def _not_run(kind: str) -> str:
    why = DEEPSPEED if kind == "DEEPSPEED" else NOT_SUPPORTED
    return f"accelerate is set up for {kind}, but {why}."


def _not_sharded(kind: str) -> str:
    """Accelerate falls back without a word: on CPUs, and with one process."""
    return (
        f"sharding was asked for ({SHARDED}, which fsdp sets too), but accelerate is set up for "
        f"{kind}: it shards several processes on accelerators only, and each would hold the whole "
        "model. On several CPUs give the model by its name with fsdp=2, which loads it in shards; "
        "or leave sharding out."
    )


def _running(kind: str, model: nn.Module | None = None) -> type[Engine] | None:
    rows = list(reversed(ENGINES.values()))
    owners = [one for one in rows if model is not None and one.owns(model)]
    return next((one for one in [*owners, *(row for row in rows if row.runs(kind))]), None)
