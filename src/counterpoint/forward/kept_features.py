"""What a frozen vision tower said of pictures, kept from call to call.

1. It is kept only where nothing of tower and projector trains, drops out or is an adapter's.
2. A picture is looked at in a call of its own, whatever else its batch shows. What is said of it
   then follows from the picture and the weights alone, to the bit: not from the batch, from what
   was kept, from how much may be, or from where a run was resumed.
3. It waits in the host's memory, under the digest of the picture and the precision of the call.
   Weights that were moved, written to or unfrozen empty all of it.
4. At most so many bytes are held. What was used longest ago is thrown away first.

Not here: where features go (``seeing``), which runs may ask for it (``models.trainable``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from counterpoint.forward.dropout import dropout_rates
from counterpoint.log import logger
from counterpoint.model_seams import under_adapter
from counterpoint.picture import SeenPicture

DEEPER = "deepstack_features"
FIELDS = ("pooler_output", DEEPER)
"""What models read of the answer of a tower: features, and those of layers on the way."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What a tower said of one picture.

    Args:
        kind: the class of its answer.
        parts: of ``FIELDS`` those that it has, on the CPU.
    """

    kind: type
    parts: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for part in self.parts.values() for tensor in _tensors(part))


class KeptFeatures:
    """The features of one model's pictures.

    Args:
        most_bytes: that they may take, at least 1.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.held = most_bytes, 0
        self._shown = self._at_hand = 0
        self._kept: OrderedDict[tuple[str, torch.dtype | None], _Said] = OrderedDict()
        self._identity: object = None
        self._may_keep = self._has_told = False

    def __len__(self) -> int:
        """Number of pictures whose features are kept."""
        return len(self._kept)

    def counted(self) -> tuple[int, int]:
        """Pictures asked for since the last call, and how many of them were at hand."""
        found = self._shown, self._at_hand
        self._shown = self._at_hand = 0
        return found

    def may_keep(self, reader: nn.Module, names: Sequence[str]) -> bool:
        """Whether the features are those of the pictures for good; asked before each call.

        Args:
            reader: the part of the model whose forward asks the tower.
            names: of its modules and weights that make features, as many as it has.
        """
        starts = tuple(f"{name}." for name in names)

        def makes_features(name: str) -> bool:
            return name in names or name.startswith(starts)

        weights = [weight for name, weight in reader.named_parameters() if makes_features(name)]
        # ranks send each other buffers, which counts as writing to them
        buffers = [buffer for name, buffer in reader.named_buffers() if makes_features(name)]
        identity = (
            [(one.data_ptr(), one.dtype, one._version, one.requires_grad) for one in weights],
            [(one.data_ptr(), one.dtype) for one in buffers],
        )
        if identity != self._identity:
            self._identity = identity
            self._kept.clear()
            self.held = 0
            modules = [module for name, module in reader.named_modules() if name in names]
            self._may_keep = not (
                any(weight.requires_grad for weight in weights) or any(map(_varies, modules))
            )
        return self._may_keep

    def said_of(
        self,
        pictures: Sequence[SeenPicture],
        look: Callable[[SeenPicture], Any],
        device: torch.device,
    ) -> Any:
        """What the tower says of pictures, as if it had been called with all of them.

        Args:
            pictures: each once, at least one.
            look: asks the tower about one.
            device: of the model.
        """
        found = [self._of_one(picture, look, device) for picture in pictures]
        while self.held > self.most_bytes:
            self._throw_away()
        first = found[0]
        return first.kind(
            **{
                name: _joined(
                    [_on(one.parts[name], device) for one in found], levels=name == DEEPER
                )
                for name in first.parts
            }
        )

    def _of_one(
        self, picture: SeenPicture, look: Callable[[SeenPicture], Any], device: torch.device
    ) -> _Said:
        kind = device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = picture.digest, narrow
        said = self._kept.pop(key, None)
        self._shown += 1
        if said is None:
            with torch.no_grad():
                answer = look(picture)
            parts = {name: answer[name] for name in FIELDS if answer.get(name) is not None}
            said = _Said(type(answer), {name: _copied(part) for name, part in parts.items()})
            self.held += said.bytes
        else:
            self._at_hand += 1
        self._kept[key] = said
        return said

    def _throw_away(self) -> None:
        _, oldest = self._kept.popitem(last=False)
        self.held -= oldest.bytes
        if not self._has_told:
            self._has_told = True
            logger().info(
                "features of %s pictures fill the %s MB of picture_cache_gb; those used longest "
                "ago are thrown away.",
                f"{len(self._kept):,}",
                f"{self.most_bytes / 1e6:,.0f}",
            )


_OF_MODELS: WeakKeyDictionary[nn.Module, KeptFeatures] = WeakKeyDictionary()


def keep_features(model: nn.Module, most_bytes: int) -> None:
    """From now on keep what a model's tower says of pictures, as long as nothing of it trains.

    Args:
        model: of ``sights.SIGHTS``, PEFT-wrapped or plain.
        most_bytes: that the features may take; 0: none are kept any more.
    """
    _OF_MODELS.pop(under_adapter(model), None)
    if most_bytes:
        _OF_MODELS[under_adapter(model)] = KeptFeatures(most_bytes)


def kept_features(model: nn.Module) -> KeptFeatures | None:
    """The features that are kept of a model; None where none are to be.

    Args:
        model: PEFT-wrapped or plain.
    """
    return _OF_MODELS.get(under_adapter(model))


def _varies(module: nn.Module) -> bool:
    """Whether a module may say something else of the same picture another time."""
    if any(dropout_rates(module)):
        return True
    return any(
        # an adapter, which may be switched off; a batch norm, which goes by its batch
        any(hasattr(one, name) for name in ("merged_adapters", "modules_to_save"))
        or getattr(one, "running_mean", None) is not None
        for one in module.modules()
    )


def _tensors(part: Any) -> list[Tensor]:
    return (
        [part] if isinstance(part, Tensor) else [one for inner in part for one in _tensors(inner)]
    )


def _each(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(part, Tensor):
        return change(part)
    return [_each(one, change) for one in part] if isinstance(part, list | tuple) else part


def _copied(part: Any) -> Any:
    # a copy, since a view would hold all that it is a view of
    return _each(part, lambda tensor: tensor.detach().cpu().clone())


def _on(part: Any, device: torch.device) -> Any:
    return _each(part, lambda tensor: tensor.to(device, non_blocking=True))


def _joined(parts: Sequence[Any], *, levels: bool = False) -> Any:
    """Features of several pictures, one after the other, as a tower gives them."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if levels:
        return [_joined(level) for level in zip(*parts, strict=True)]
    return [one for part in parts for one in part]
