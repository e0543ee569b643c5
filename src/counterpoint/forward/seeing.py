"""Pictures in a forward pass: the vision tower runs once for each, whatever the layout.

A model is called once, as ever, with the pixels of a micro-batch's pictures. Each stands there
once, though both completions of its pair look at it and several pairs may show it. Two hooks are
open around the call: one before the model's own forward, which gives it the pixels and, where a
family counts positions in three dimensions, those of each pair; and one around
``get_image_features``, which hands what the tower says of a picture to every place that shows it.
So gradients of all places meet in the tower, and wrappers and engines see one call. The layout's
own keyword stops there too: no token of a prompt is in the tower. Where text looks at pictures in
layers of its own, these are told what each token looks at instead (``crossing``).

The reference needs neither: pixels of every row, in the order of rows, and the model's own ways.

Not here: from a file to pixels (``data.vision``), the kinds of models (``sights``), and what a
layout says of its rows (``shown``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from inspect import signature
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from counterpoint.errors import ModelError
from counterpoint.forward.crossing import Crossing, Stretch, crossing, crossing_of, marks_in
from counterpoint.forward.kept_features import KeptFeatures, kept_features
from counterpoint.forward.shared_attention import KEYWORD
from counterpoint.forward.shown import LOOK, RowsShown
from counterpoint.forward.sights import SIGHTS, Sight, sight_of
from counterpoint.model_seams import under_adapter
from counterpoint.picture import SeenPicture
from counterpoint.records import TokenPair

PARTS_THAT_SEE = ("vision", "projector")
"""What of such a model may be frozen: its tower, and what makes of it what stands in the text."""


def weights_that_see(model: nn.Module, part: str) -> list[nn.Parameter]:
    """The weights of a part of a model that sees.

    Args:
        model: of ``SIGHTS``, PEFT-wrapped or plain.
        part: of ``PARTS_THAT_SEE``.
    """
    config: Any = model.config
    sight = SIGHTS[config.model_type]
    reader = _reader(under_adapter(model), sight)

    def within(name: str, modules: Sequence[str]) -> bool:
        return any(f"{name}.".startswith(f"{module}.") for module in modules)

    def is_of_part(name: str) -> bool:
        if part == "projector" or within(name, sight.projector):
            return part == "projector" and within(name, sight.projector)
        return within(name, sight.tower)

    return [weight for name, weight in reader.named_parameters() if is_of_part(name)]


def seeing(model: nn.Module) -> AbstractContextManager[None]:
    """While open, the model understands what a layout says of pictures; others stay as they are.

    Args:
        model: unwrapped from distributed training; PEFT-wrapped or plain.
    """
    sight = sight_of(getattr(model, "config", None))
    return nullcontext() if sight is None else _eyes_open(model, sight)


@contextmanager
def _eyes_open(model: nn.Module, sight: Sight) -> Iterator[None]:
    whole = under_adapter(model)
    if whole in _OPEN:
        yield
        return
    reader, now, kept = _reader(whole, sight), _Now(), kept_features(whole)

    def before(module: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, Any]:
        given = named.get(LOOK)
        now.look = look = given if isinstance(given, RowsShown) else None
        now.crossing = now.kept = None
        if look is None:
            return args, named
        # the truth looks for itself
        if kept is not None and not (look.repeated or sight.crosses):
            now.kept = kept if kept.may_keep(reader, (*sight.tower, *sight.projector)) else None
        named = {**named, **_called_with(look, sight, reader, named["input_ids"], now.kept)}
        if sight.crosses:
            now.crossing = crossing_of(look, named, reader.config.image_token_id)
        if look.segments and (layers := _both_ways(sight, reader.config)) != "none":
            blocks = _blocks(look, named["input_ids"], reader)
            windowed = layers == "windowed"
            named[KEYWORD] = replace(named[KEYWORD], blocks=blocks, windowed=windowed)
        return args, named

    if sight.crosses:
        told = crossing(reader.language_model, lambda: now.crossing)
    else:
        told = _features_to_all_places(reader, sight, now)
    handle = whole.register_forward_pre_hook(before, with_kwargs=True)
    _OPEN.add(whole)
    try:
        with told:
            yield
    finally:
        _OPEN.discard(whole)
        handle.remove()


_OPEN: WeakSet[nn.Module] = WeakSet()
"""Models that understand already: experts are counted anew within a step that is done again."""


@contextmanager
def _features_to_all_places(reader: Any, sight: Sight, now: _Now) -> Iterator[None]:
    own = reader.get_image_features

    def features(*args: Any, **named: Any) -> Any:
        named = {name: value for name, value in named.items() if name in _ALLOWED}
        look = now.look
        if look is not None and now.kept is not None:
            call, device = signature(own).bind_partial(*args).arguments | named, reader.device

            def at_one(picture: SeenPicture) -> Any:
                pixels = _pixels([picture], sight, reader, device)
                return own(**call | {name: pixels[name] for name in pixels if name in call})

            said = now.kept.said_of(look.given, at_one, device)
        else:
            said = own(*args, **named)
        return said if look is None or look.repeated else _to_all_places(said, look)

    vars(reader)["get_image_features"] = features
    try:
        yield
    finally:
        del vars(reader)["get_image_features"]


_ALLOWED = {
    "pixel_values",
    "pixel_attention_mask",
    "image_grid_thw",
    "image_position_ids",
    "image_sizes",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "return_dict",
}
"""Keywords that reach the tower: what is told to the text's attention is none of its business."""


class _Now:
    """What the running call shows, and the features that are kept of it, where any may be."""

    look: RowsShown | None = None
    crossing: Crossing | None = None
    kept: KeptFeatures | None = None


def _reader(whole: Any, sight: Sight) -> Any:
    """The part of a model whose forward asks the tower."""
    inner = getattr(whole, "model", None)
    return inner if hasattr(inner, sight.tower[0]) else whole


# What a model is called with


def _called_with(
    look: RowsShown, sight: Sight, reader: Any, ids: Tensor, kept: KeptFeatures | None
) -> dict[str, Any]:
    shown = look.given
    named: dict[str, Any]
    if kept is not None:
        # none is looked at yet, and a model asks no more than whether there are pixels
        none = ids.new_zeros(len(shown))
        named = {name: none for name in shown[0].inputs if name.startswith("pixel_")}
        about = [{n: one.inputs[n] for n in one.inputs if n not in named} for one in shown]
        named |= {
            name: tensor.to(ids.device) for name, tensor in joined(about, sight.joined).items()
        }
    else:
        named = _pixels(shown, sight, reader, ids.device)
    if sight.three and not look.repeated:
        named["position_ids"] = _positions_in_rows(look, sight, reader, ids.shape[1]).to(ids.device)
    elif sight.types and not look.segments:
        types = [_types(pair.prompt, reader.config) for pair in look.pairs]
        types *= len(look.pairs[0].completions)
        wide = [F.pad(row, (0, ids.shape[1] - len(row))) for row in types]
        named[sight.types] = torch.stack(wide).to(ids.device)
    return named


def _as_taken(pixels: dict[str, Tensor], sight: Sight, reader: Any) -> dict[str, Tensor]:
    """What a tower is given, in the dtype in which it computes where that is left to us."""
    if not sight.cast:
        return pixels
    dtype = getattr(reader, sight.tower[0]).dtype
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in pixels.items()
    }


def _pixels(
    shown: Sequence[SeenPicture], sight: Sight, reader: Any, device: torch.device
) -> dict[str, Any]:
    """What a tower takes of pictures, as the processor makes it."""
    pixels = joined([seen.inputs for seen in shown], sight.joined)
    return {
        name: tensor.to(device, non_blocking=True)
        for name, tensor in _as_taken(pixels, sight, reader).items()
    }


def joined(inputs: Sequence[Mapping[str, Tensor]], dim: int = 0) -> dict[str, Tensor]:
    """What several pictures are for a model, one after the other.

    Args:
        inputs: of each; at least one.
        dim: along which they are joined; in the others the smaller ones are filled up with zeros,
            as processors do.
    """
    return {name: _joined([one[name] for one in inputs], dim) for name in inputs[0]}


def _joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    dim = min(dim, tensors[0].dim() - 1)
    sizes = [max(tensor.shape[axis] for tensor in tensors) for axis in range(tensors[0].dim())]
    filled = []
    for tensor in tensors:
        missing = [
            0 if axis == dim else size - tensor.shape[axis] for axis, size in enumerate(sizes)
        ]
        pad = [number for axis in reversed(missing) for number in (0, axis)]
        filled.append(F.pad(tensor, pad) if any(missing) else tensor)
    return torch.cat(filled, dim)


def _types(prompt: Sequence[int], config: Any) -> Int[Tensor, " prompt"]:
    """1 where an id of a prompt stands for a picture."""
    token: int = config.image_token_id
    return (torch.tensor(prompt, dtype=torch.long) == token).long()


def shown_before(
    model: nn.Module,
    prompts: Sequence[tuple[Sequence[int], Sequence[SeenPicture]]],
    width: int,
    device: torch.device,
    after: int = 0,
) -> dict[str, Tensor]:
    """What a model is called with beside prompts in rows of text; nothing without pictures.

    Args:
        model: unwrapped from distributed training; PEFT-wrapped or plain.
        prompts: ids and pictures of each.
        width: of the part of the rows at whose end they stand.
        device: of the rows.
        after: tokens of a row behind its prompt.
    """
    config: Any = model.config
    sight, shown = sight_of(config), [one.inputs for _, seen in prompts for one in seen]
    if sight is None or not shown:
        return {}
    if sight.crosses:
        named = _looked_at_before(prompts, config.image_token_id, width, after)
        return {name: tensor.to(device) for name, tensor in named.items()}
    named = _as_taken(joined(shown, sight.joined), sight, _reader(under_adapter(model), sight))
    if sight.types:
        rows = [_types(ids, config) for ids, _ in prompts]
        named[sight.types] = torch.stack([F.pad(row, (width - len(row), after)) for row in rows])
    return {name: tensor.to(device) for name, tensor in named.items()}


def written_to_alone(model: nn.Module) -> bool:
    """Whether no two prompts of a model may be continued in one batch (``crossing`` says why).

    Args:
        model: unwrapped from distributed training; PEFT-wrapped or plain.
    """
    sight = sight_of(getattr(model, "config", None))
    return sight is not None and sight.crosses


def _looked_at_before(
    prompts: Sequence[tuple[Sequence[int], Sequence[SeenPicture]]],
    token_id: int,
    width: int,
    after: int,
) -> dict[str, Tensor]:
    """The pictures of one prompt side by side, and which of them each token looks at."""
    ((ids, seen),) = prompts
    named = joined([one.inputs for one in seen], 1)
    marks = marks_in(ids, token_id, width - len(ids))
    row = Stretch(0, 0, width + after, marks, tuple(range(len(seen))))
    tiles = named["aspect_ratio_mask"][0].bool()
    look = Crossing.of([row], tiles, width + after)
    named["cross_attention_mask"] = (look.seen & look.behind[..., None, None]).long()
    return named


def _both_ways(sight: Sight, config: Any) -> str:
    """In which layers of a model the tokens of a picture see each other both ways."""
    if sight.both_ways == "windowed":  # Gemma 4: the larger ones alone, and they say so
        asked = getattr(config.get_text_config(), "use_bidirectional_attention", None)
        return sight.both_ways if asked == "vision" else "none"
    return sight.both_ways


def _blocks(look: RowsShown, ids: Tensor, reader: Any) -> tuple[Tensor, ...]:
    """Of each pair, which stretch of a picture's tokens an id of its prompt is in; -1 for none."""
    found = []
    for pair in look.pairs:
        types = _types(pair.prompt, reader.config)
        begins = types * (1 - F.pad(types, (1, 0))[:-1])
        found.append(torch.where(types == 1, begins.cumsum(0) - 1, -1).to(ids.device))
    return tuple(found)


# Positions in three dimensions


def _positions_in_rows(look: RowsShown, sight: Sight, reader: Any, width: int) -> Tensor:
    """Positions of all rows, ``[3, rows, tokens]``: each completion goes on after its prompt."""
    if look.segments:
        laid = zip(look.pairs, look.segments, strict=True)
        parts = [_positions(pair, s.completions, sight, reader) for pair, s in laid]
        return torch.cat([torch.cat(one, 1) for one in parts], 1)[:, None]
    each = [_positions(p, [*map(len, p.completions)], sight, reader) for p in look.pairs]
    sides = range(1, len(each[0]))
    rows = [torch.cat([one[0], one[side]], 1) for side in sides for one in each]
    return torch.stack([F.pad(row, (0, width - row.shape[1])) for row in rows], 1)


def _positions(pair: TokenPair, lengths: Sequence[int], sight: Sight, reader: Any) -> list[Tensor]:
    """Of the prompt, counted as if it were alone, and of completions of some lengths."""
    if pair.seen:
        types = _types(pair.prompt, reader.config)[None]
        grids = [{"image_grid_thw": seen.inputs["image_grid_thw"]} for seen in pair.seen]
        grid = {**joined(grids), sight.types: types}
        ids = torch.tensor(pair.prompt, dtype=torch.long)[None]
        prompt: Tensor = reader.get_rope_index(ids, **grid)[0][:, 0]
    else:
        prompt = torch.arange(len(pair.prompt)).expand(3, -1)
    after = int(prompt.max()) + 1 if prompt.numel() else 0
    sides = [(after + torch.arange(length)).expand(3, -1) for length in lengths]
    return [prompt, *sides]


# What the tower says


def _to_all_places(said: Any, look: RowsShown) -> Any:
    """The tower's features, once for each place that shows the picture."""
    shown = look.given
    if len(shown) == len(look.places):
        return said
    order = look.numbers
    lengths = [seen.tokens for seen in shown]
    said["pooler_output"] = _at_places(said["pooler_output"], lengths, order)
    deeper = said.get("deepstack_features") if hasattr(said, "get") else None
    if deeper is not None:
        said["deepstack_features"] = [_at_places(one, lengths, order) for one in deeper]
    return said


def _at_places(features: Any, lengths: list[int], order: list[int]) -> Any:
    several = isinstance(features, list | tuple)
    parts = list(features) if several else [features]
    flat = torch.cat([part.flatten(0, -2) for part in parts])
    if flat.shape[0] != sum(lengths):
        raise ModelError(
            "CP331",
            f"the vision tower gives {flat.shape[0]} features for {len(lengths)} pictures, in the "
            f"place of which prompts have {sum(lengths)} tokens. Does the processor belong to the "
            "model?",
        )
    split = torch.split(flat, lengths)
    found = [split[place] for place in order]
    if several:
        return found
    return torch.cat(found).reshape(-1, *features.shape[1:])
