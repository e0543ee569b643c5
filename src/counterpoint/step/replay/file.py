"""A step that was not finite, kept so that it can be done again: tensors, and JSON beside them.

    replay-12.safetensors            of a run of one process
    replay-12-rank-1.safetensors     of one rank of several

The file holds the micro-batches to blame whole: the token ids of their pairs, weights, margins,
row numbers, the denominators of the step, the objective, the constraints with their multipliers,
how it was computed, and the state of the random generators where there is dropout. Of pictures it
holds what the tower was given. No weights: those are the run's. Nothing in it is a pickle, and
nothing in it is trusted when it is read.

Not here: when one is written (``recorder``), what it says (``recompute``, ``cli.replay``), and its
pictures (``pictures``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from counterpoint.constraints import KINDS, Constraint
from counterpoint.errors import ConfigError
from counterpoint.forward.layouts import LAYOUTS
from counterpoint.forward.router import RouterSums
from counterpoint.losses.objective import Objective
from counterpoint.objectives import LOSSES
from counterpoint.records import StepTotals, TokenPair
from counterpoint.run_schema import MOST
from counterpoint.staged import staged
from counterpoint.step.replay.beside_ids import (
    golds_as_tensors,
    golds_of,
    references_as_tensors,
    references_of,
    spans_of,
)
from counterpoint.step.replay.earlier import objective_of_now, settings_of_now
from counterpoint.step.replay.pictures import pairs_with_pictures, pictures_as_tensors
from counterpoint.strict import strict_json

FORMAT = 6
"""Raised with every change of what a file holds; those of 1, which hold no constraints, of 2, and
of 3, which hold no pictures, are read."""

KEY = "counterpoint_replay"
"""Of the metadata: all that is no tensor, as JSON."""

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Settings:
    """How the step was computed.

    Args:
        layout: name of the layout.
        autocast: dtype of mixed precision, "bfloat16" or "float16"; "" without.
        device: kind of device.
        checkpointing: whether activations were recomputed in the backward pass.
        checkpointing_share: of how many of the layers, in (0, 1].
        offload: whether activations waited in the host's memory.
        dropout: whether it was on.
        pictures_alone: whether a frozen tower looked at each picture in a call of its own.
        micro_batches: of the whole step on this rank.
        ranks: of the run.
        balancing_weight: of the load-balancing loss; 0 without experts.
    """

    layout: str = ""
    autocast: str = ""
    device: str = "cpu"
    checkpointing: bool = False
    checkpointing_share: float = 1.0
    offload: bool = False
    dropout: bool = False
    pictures_alone: bool = False
    micro_batches: int = 0
    ranks: int = 1
    balancing_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class Origin:
    """Which weights the step was computed on.

    Args:
        model: name or folder that the model was loaded from; "" for one made in memory.
        kind: of the model, its class.
        dtype: of its weights.
        attention: its implementation of attention.
    """

    model: str
    kind: str
    dtype: str
    attention: str


@dataclass(frozen=True, slots=True)
class Culprit:
    """Something that is not finite.

    Args:
        term: "parameter", "weight", "margin", "pixels", "layer", "log-probability", "reward",
            "loss" or "gradient".
        name: of the parameter or layer, which loss, or the keyword of the pixels.
        row: number of the pair's row; None for what is of no single pair.
        part: of the pair: "prompt", "start", "chosen", "rejected", "padding" behind them, or
            "picture".
        token: its place in that part, from 0, or which of the pair's pictures it is; None for
            neither.
        token_id: its id.
        value: "nan", "inf" or "-inf"; the first one of several.
        count: how many values are not finite.
        total: of how many.
    """

    term: str
    name: str = ""
    row: int | None = None
    part: str = ""
    token: int | None = None
    token_id: int | None = None
    value: str = "nan"
    count: int = 1
    total: int = 1


@dataclass(frozen=True, slots=True)
class HeldConstraint:
    """A constraint as it stood in the step.

    Args:
        asked: its options beyond their defaults; functions by their names.
        multiplier: of the step.
        bound: of the step; None where it was not known yet.
    """

    asked: dict[str, Any]
    multiplier: float
    bound: float | None


@dataclass(frozen=True, slots=True)
class Held:
    """The constraints of a step.

    Args:
        all: in the order of the run.
        totals: denominators of the whole step, ``[constraints]``.
        normalized: whether the loss is divided by 1 + the sum of the multipliers.
        initial: row number -> what the initial policy gave its chosen completion, in nats a token;
            of the rows in the file, where a constraint compares with that.
    """

    all: tuple[HeldConstraint, ...] = ()
    totals: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    normalized: bool = False
    initial: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Replay:
    """What it takes to do the step again, on the same weights.

    Args:
        step: number of the optimizer step, from 1.
        seen: what was said of it then.
        culprits: what was not finite then, in the order of the computation; empty if unknown.
        micro_batches: the pairs of each micro-batch to blame.
        totals: denominators of the whole step.
        router: the step's load-balancing sums, if it has them.
        objective: of the run.
        settings: how it was computed.
        origin: on which weights.
        generators: states of the random generators before each micro-batch, by kind of device;
            empty without dropout.
        held: the constraints of the step.
    """

    step: int
    seen: str
    culprits: tuple[Culprit, ...]
    micro_batches: tuple[tuple[TokenPair, ...], ...]
    totals: StepTotals
    router: RouterSums | None
    objective: Objective
    settings: Settings
    origin: Origin
    generators: tuple[Mapping[str, Tensor], ...] = ()
    held: Held = Held()


def write_replay(replay: Replay, path: Path) -> None:
    """Write the file, whole or not at all.

    Raises:
        OSError: where the disk refuses.
    """
    pairs = [pair for batch in replay.micro_batches for pair in batch]
    parts = [
        part for pair in pairs for part in ([*pair.prompt, *pair.start], pair.chosen, pair.rejected)
    ]
    givens = [one for pair in pairs for one in (pair.chosen_given, pair.rejected_given)]
    tensors = {
        "ids": torch.tensor([token for part in parts for token in part], dtype=torch.long),
        "lengths": torch.tensor([len(part) for part in parts], dtype=torch.long),
        "starts": torch.tensor([len(pair.start) for pair in pairs], dtype=torch.long),
        "given": torch.tensor([n for one in givens for n in one], dtype=torch.long),
        "givens": torch.tensor([len(one) for one in givens], dtype=torch.long),
        "rows": torch.tensor([pair.row for pair in pairs], dtype=torch.long),
        "weight": torch.tensor([pair.weight for pair in pairs], dtype=torch.float64),
        "margin": torch.tensor([pair.margin for pair in pairs], dtype=torch.float64),
        "cut": torch.tensor([len(batch) for batch in replay.micro_batches], dtype=torch.long),
        "totals": torch.stack([replay.totals.weight, replay.totals.nll]).double().cpu(),
    }
    tensors |= references_as_tensors(pairs) | golds_as_tensors(pairs)
    if replay.router is not None:
        for field in fields(RouterSums):
            value: Tensor = getattr(replay.router, field.name)
            tensors[f"router/{field.name}"] = value.detach().double().cpu()
    of_pictures, pictures = pictures_as_tensors(pairs)
    tensors |= of_pictures
    held = replay.held
    tensors["held/totals"] = held.totals.detach().double().cpu()
    tensors["held/rows"] = torch.tensor([*held.initial], dtype=torch.long)
    tensors["held/initial"] = torch.tensor([*held.initial.values()], dtype=torch.float64)
    for number, states in enumerate(replay.generators):
        tensors |= {f"generator/{number}/{kind}": state for kind, state in states.items()}
    described = {
        "format": FORMAT,
        "step": replay.step,
        "seen": replay.seen,
        "culprits": [asdict(culprit) for culprit in replay.culprits],
        "objective": asdict(replay.objective),
        "settings": asdict(replay.settings),
        "origin": asdict(replay.origin),
        "sets": [batch[0].of for batch in replay.micro_batches],
        "constraints": [asdict(one) for one in held.all],
        "normalized": held.normalized,
        "pictures": pictures,
    }
    with staged(path) as file:
        file.write(save(tensors, metadata={KEY: strict_json(described)}))


def read_replay(path: str | Path) -> Replay:
    """Read a file of ``write_replay``; what is not as it should be is refused.

    Raises:
        ConfigError: CP110, with what is wrong.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _broken(path, f"it cannot be opened: {error}") from error
    if KEY not in metadata:
        raise _broken(path, "it holds no step; counterpoint train writes such files")
    try:
        return _read(json.loads(metadata[KEY]), tensors)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, RuntimeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise _broken(path, what) from error


def _read(described: Any, tensors: Mapping[str, Tensor]) -> Replay:
    _check(isinstance(described, dict), "its metadata is no object")
    known = described["format"]
    _check(known in (1, 2, 3, 4, 5, FORMAT), f"its format is {known!r}, not {FORMAT}")
    step, seen = described["step"], described["seen"]
    _check(isinstance(step, int) and step > 0, "its step is no number from 1")
    objective = _made(Objective, objective_of_now(described["objective"]))
    _check(objective.loss_type in LOSSES, f"there is no loss {objective.loss_type!r}")
    fits = "reference" in tensors or not LOSSES[objective.loss_type].needs_reference
    _check(fits, "it lacks what the reference gave its pairs")
    fits = "golds" in tensors or not LOSSES[objective.loss_type].gold
    _check(fits, "it lacks its gold completions")
    settings = _made(Settings, settings_of_now(described["settings"]))
    _check(settings.layout in LAYOUTS, f"there is no layout {settings.layout!r}")
    _check(0 < settings.checkpointing_share <= 1, "its share of layers is not in (0, 1]")
    _check(settings.autocast in ("", "bfloat16", "float16"), "its precision is none")
    batches = _batches(tensors, described["pictures"] if known > 3 else None)
    if known > 1:
        batches = _of_sets(batches, described["sets"])
    weight, nll = _typed(tensors["totals"], torch.float64, 2)
    return Replay(
        step=step,
        seen=str(seen),
        culprits=tuple(_made(Culprit, entry) for entry in described["culprits"]),
        micro_batches=batches,
        totals=StepTotals(weight=weight, nll=nll),
        router=_router(tensors),
        objective=objective,
        settings=settings,
        origin=_made(Origin, described["origin"]),
        generators=_generators(tensors, len(batches)) if settings.dropout else (),
        held=_held(described, tensors) if known > 1 else Held(),
    )


def _of_sets(
    batches: tuple[tuple[TokenPair, ...], ...], names: Any
) -> tuple[tuple[TokenPair, ...], ...]:
    """The pairs of each micro-batch, tagged with the constraint whose set they are of."""
    fits = isinstance(names, list) and len(names) == len(batches)
    _check(fits and all(isinstance(name, str) for name in names), "its sets are no list of names")
    return tuple(
        tuple(replace(pair, of=name) for pair in batch)
        for batch, name in zip(batches, names, strict=True)
    )


def _held(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Held:
    given = described["constraints"]
    _check(isinstance(given, list), "its constraints are no list")
    every = tuple(_held_constraint(entry) for entry in given)
    _check(isinstance(described["normalized"], bool), "normalized is neither true nor false")
    rows = _typed(tensors["held/rows"], torch.long)
    initial = _typed(tensors["held/initial"], torch.float64, len(rows))
    return Held(
        all=every,
        totals=_typed(tensors["held/totals"], torch.float64, len(every)),
        normalized=described["normalized"],
        initial=dict(zip(rows.tolist(), initial.tolist(), strict=True)),
    )


def _held_constraint(entry: Any) -> HeldConstraint:
    _check(isinstance(entry, dict) and isinstance(entry.get("asked"), dict), "a constraint is none")
    asked, multiplier, bound = entry["asked"], entry["multiplier"], entry["bound"]
    _check(asked.get("kind") in KINDS, f"there is no constraint of kind {asked.get('kind')!r}")
    known = {option.name for option in fields(Constraint)}
    _check(set(asked) <= known, "a constraint has other options")
    _check(_is(multiplier, "float"), f"a multiplier is {multiplier!r}")
    _check(bound is None or _is(bound, "float"), f"a bound is {bound!r}")
    return HeldConstraint(asked, float(multiplier), bound)


def _batches(
    tensors: Mapping[str, Tensor], pictures: Any = None
) -> tuple[tuple[TokenPair, ...], ...]:
    rows = _typed(tensors["rows"], torch.long)
    count = len(rows)
    lengths = _typed(tensors["lengths"], torch.long, 3 * count)
    cut = _typed(tensors["cut"], torch.long)
    ids = _typed(tensors["ids"], torch.long)
    weight, margin = (_typed(tensors[n], torch.float64, count) for n in ("weight", "margin"))
    _check(count > 0, "it holds no pair")
    _check(bool((lengths >= 0).all()) and int(lengths.sum()) == len(ids), "lengths and ids differ")
    _check(bool((cut > 0).all()) and int(cut.sum()) == count, "its micro-batches hold other pairs")
    _check(len(ids) > 0 and int(ids.min()) >= 0, "it has negative token ids")
    # a completion without a token, or whose only token nothing predicts, is no pair
    sizes = lengths.reshape(count, 3)
    _check(bool((sizes[:, 1:] >= 1 + (sizes[:, :1] == 0).long()).all()), "a completion is empty")
    # up to 0.4 there were no encoder-decoders
    starts = _typed(tensors.get("starts", torch.zeros_like(rows)), torch.long, count)
    _check(bool(((starts >= 0) & (starts <= sizes[:, 0])).all()), "a start is no part of a prompt")
    prompts = (sizes[:, 0] - starts).tolist()
    spans = spans_of(tensors, sizes[:, 1:].flatten().tolist(), _typed, _check)
    flat, ends = ids.tolist(), lengths.cumsum(0).tolist()
    parts = [flat[a:b] for a, b in pairwise([0, *ends])]
    references = references_of(tensors, count, _typed)
    golds = golds_of(tensors, sizes[:, 0].tolist(), _typed, _check)
    pairs = [
        TokenPair(
            prompt=parts[3 * n][: prompts[n]],
            start=parts[3 * n][prompts[n] :] or (),
            chosen=parts[3 * n + 1],
            rejected=parts[3 * n + 2],
            chosen_given=spans[2 * n],
            rejected_given=spans[2 * n + 1],
            row=row,
            weight=float(weight[n]),
            margin=float(margin[n]),
            reference=references[n],
            gold=golds[n][0],
            gold_given=golds[n][1],
        )
        for n, row in enumerate(rows.tolist())
    ]
    if pictures is not None:
        pairs = pairs_with_pictures(pairs, tensors, pictures, _check)
    cuts = [0, *cut.cumsum(0).tolist()]
    return tuple(tuple(pairs[a:b]) for a, b in pairwise(cuts))


def _router(tensors: Mapping[str, Tensor]) -> RouterSums | None:
    if "router/sent" not in tensors:
        return None
    return RouterSums(**{f.name: tensors[f"router/{f.name}"] for f in fields(RouterSums)})


def _generators(tensors: Mapping[str, Tensor], batches: int) -> tuple[Mapping[str, Tensor], ...]:
    states = []
    for number in range(batches):
        start = f"generator/{number}/"
        found = {name[len(start) :]: state for name, state in tensors.items() if start in name}
        states.append({kind: _typed(state, torch.uint8) for kind, state in found.items()})
        _check("cpu" in found, f"it lacks the random state of micro-batch {number}")
    return tuple(states)


def _made(kind: type[Kind], values: Any) -> Kind:
    """A dataclass of plain values, each of the type that its default or name says."""
    _check(isinstance(values, dict), f"its {kind.__name__.lower()} is no object")
    known = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]
    _check(set(values) == set(known), f"its {kind.__name__.lower()} has other entries")
    for name, value in values.items():
        fits = any(_is(value, one.strip()) for one in known[name].split("|"))
        _check(fits, f"{name} is {value!r}, which is not {known[name]}")
    return kind(**values)


def _is(value: Any, kind: str) -> bool:
    if kind == "float":
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and abs(value) <= MOST  # beyond, a whole number is no float
    named = {"str": str, "int": int, "bool": bool, "None": type(None)}
    return type(value) is named[kind]


def _typed(tensor: Tensor, dtype: torch.dtype, length: int | None = None) -> Tensor:
    fits = tensor.dtype == dtype and tensor.dim() == 1 and length in (None, len(tensor))
    _check(
        fits, f"it holds a tensor of {tensor.dtype} and shape {tuple(tensor.shape)} out of place"
    )
    return tensor


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _broken(path: str | Path, why: str) -> ConfigError:
    return ConfigError("CP110", f"{path} is no replay file, or a broken one: {why}.")
