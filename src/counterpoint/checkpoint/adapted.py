"""What a fingerprint says of an adapter, and of the model that it lies on.

A checkpoint of an adapter holds no base model, so that one of the same shapes would be taken for
it. Its identity is a digest: of the names, shapes and precisions of all that no file of the
adapter holds and that does not train, and of some bytes of each (``BLOCKS`` of ``BLOCK``), which
fine-tuning does not leave as they were. That is a tenth of a second where weights take gigabytes;
what changes while a run goes on is the monitor's to find, which reads every byte.

Of every model the scalars of its configuration are facts, too: a base of a rotary angle means
other numbers from the same weights. Each is a fact of its own, and what only one of two releases
of transformers or PEFT knows is not compared.

Not here: comparing (``fingerprint``), refusing (``trainer``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from counterpoint import ranks
from counterpoint.checkpoint.fingerprint import Value, model_facts
from counterpoint.checkpoint.shards import first_copy, span_of
from counterpoint.checkpoint.weights import held_by_adapters, is_adapted
from counterpoint.model_seams import SOURCE_KEY
from counterpoint.tensor_parts import filed_as, is_sharded, local_part, parts_of

BASE = "base model's weights"
"""The fact's name."""

_NOT_OF_NUMBERS = ("bnb_4bit_quant_storage",)
"""Settings of a quantiser that say where codes lie, and not which: another one under FSDP."""

BLOCKS, BLOCK = 16, 256
"""How many places of a tensor are read, evenly spread, and how many bytes at each."""

_NOT_OF_A_RUN = (
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "task_type",
    "runtime_config",
)
"""Settings of an adapter that its numbers do not depend on."""

_USUAL_TASK = "CAUSAL_LM"
"""The task that is not told: a recipe takes it where it finds none."""

_TOLD = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules")
"""Settings that are told also where they have their default values."""

_NOT_OF_A_MODEL = (
    SOURCE_KEY,
    "transformers_version",
    "architectures",
    "dtype",
    "torch_dtype",
    "use_cache",
    "return_dict",
    "auto_map",
    "distributed_config",
)
"""Entries of a configuration that say nothing of the numbers."""


def base_identity(model: nn.Module) -> str | None:
    """What an adapter lies on: "form-values", 16 hexadecimal digits each.

    Args:
        model: unwrapped, with its adapters, before it has trained; where it is sharded, every rank
            must call it.

    Returns:
        None for a model without an adapter: its checkpoints hold all of it.
    """
    if not is_adapted(model):
        return None
    form, values = hashlib.sha256(), hashlib.sha256()
    under = dict(sorted(_under(model), key=lambda pair: pair[0]))
    for name, tensor in under.items():
        form.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    sampled = _of_shards({n: one for n, one in under.items() if is_sharded(one)})
    for name, tensor in under.items():
        for part in () if name in sampled else parts_of(tensor):
            values.update(_some_of(part))
        values.update(sampled.get(name, b""))
    return f"{form.hexdigest()[:16]}-{values.hexdigest()[:16]}"


def _under(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights and buffers that are neither trained nor in a file of an adapter."""
    weights = dict(model.named_parameters())
    trained = {name for name, weight in weights.items() if weight.requires_grad}
    held = held_by_adapters(model)
    for name, tensor in model.state_dict().items():
        if name not in trained and isinstance(tensor, Tensor) and name not in held:
            # codes that are stored for shards are the same codes
            shape, dtype = filed_as(weights.get(name, tensor))
            codes = dtype != tensor.dtype and not is_sharded(tensor)
            yield name, tensor.contiguous().view(dtype).reshape(shape) if codes else tensor


def _some_of(tensor: Tensor) -> bytes:
    if tensor.is_meta or not tensor.numel():  # what lies elsewhere cannot be read cheaply
        return b""
    flat = tensor.detach().reshape(-1)
    places = _places(flat.numel(), flat.element_size())
    if places is not None:
        flat = torch.cat([flat[begin:end] for begin, end in places])
    found: bytes = _bytes(flat).tobytes()
    return found


def _places(entries: int, size: int) -> list[tuple[int, int]] | None:
    """Which entries of a tensor are read, as ranges; None for all.

    Args:
        entries: of the tensor.
        size: of an entry, in bytes.
    """
    a_block = max(1, BLOCK // size)
    if entries <= BLOCKS * a_block:
        return None
    last = entries - a_block
    begins = [last * n // (BLOCKS - 1) for n in range(BLOCKS)]
    return [(begin, begin + a_block) for begin in begins]


def _of_shards(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The same bytes of tensors of which ranks hold parts; every rank calls it."""
    own, sizes = [], []
    for tensor in tensors.values():
        places = _places(tensor.numel(), tensor.element_size()) or [(0, tensor.numel())]
        entries = np.concatenate([np.arange(begin, end) for begin, end in places])
        found = np.zeros((len(entries), tensor.element_size()), dtype=np.uint8)
        if first_copy(tensor):
            at = np.unravel_index(entries, tuple(tensor.shape))
            cuts = span_of(tensor)
            here = np.all([(a >= c.start) & (a < c.stop) for a, c in zip(at, cuts, strict=True)], 0)
            mine = tuple(torch.from_numpy(a[here] - c.start) for a, c in zip(at, cuts, strict=True))
            if here.any():
                found[here] = _bytes(local_part(tensor.detach())[mine]).reshape(
                    -1, tensor.element_size()
                )
        own.append(found.reshape(-1))
        sizes.append(found.size)
    if not own:
        return {}
    # no byte is on two ranks, so that the sum is what each has
    device = local_part(next(iter(tensors.values()))).device
    joined = ranks.add_up(torch.from_numpy(np.concatenate(own)).to(device)).cpu().numpy()
    parts = np.split(joined, np.cumsum(sizes)[:-1])
    return {name: part.tobytes() for name, part in zip(tensors, parts, strict=True)}


def _bytes(flat: Tensor) -> Any:
    return flat.contiguous().view(torch.uint8).cpu().numpy()


def another_base(then: str | None, now: str | None) -> bool:
    """Whether two identities are of the same form, and of other values.

    Of other forms (another precision, another adapter) nothing can be said.
    """
    if then is None or now is None or then.count("-") != 1:
        return False
    return then != now and then.split("-")[0] == now.split("-")[0]


def model_identity(model: nn.Module, *, dropout: bool) -> dict[str, Value]:
    """The facts of a model, its configuration, its adapters and what they lie on.

    They are taken once, before the run: an engine that takes a model over may give it another
    precision.

    Args:
        model: unwrapped, before it has trained.
        dropout: whether rates of dropout mean anything in the run.
    """
    base = base_identity(model)
    found = {
        **model_facts(model),
        **({} if base is None else {BASE: base}),
        **dict(_of_config(model)),
        **dict(_of_adapters(model)),
    }
    return {
        name: value
        for name, value in found.items()
        if dropout or not ("dropout" in name or name.endswith("pdrop"))
    }


def _of_config(model: nn.Module) -> Iterator[tuple[str, Value]]:
    config: Any = getattr(model, "config", None)
    if config is None:
        return
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name, value in _flat(text.to_dict()):
        if name not in _NOT_OF_A_MODEL and not name.endswith(("_token_id", "2label", "label2id")):
            yield f"config {name}", _as_fact(value)


def _flat(entries: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each setting of a quantiser by itself, since releases of one add some."""
    for name, value in entries.items():
        if name == "quantization_config" and isinstance(value, Mapping):
            yield from ((f"{name} {k}", v) for k, v in value.items() if k not in _NOT_OF_NUMBERS)
        else:
            yield name, value


def _of_adapters(model: nn.Module) -> Iterator[tuple[str, Value]]:
    for adapter, config in _configs(model).items():
        which = "adapter" if adapter == "default" else f"adapter {adapter}"
        for name, value in config.to_dict().items():
            # where a new adapter begins is over when there is a checkpoint
            if name not in _NOT_OF_A_RUN and not name.startswith("init_"):
                yield f"{which} {name}", _as_fact(_json_ready(value))


def adapter_settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The settings of each adapter that are unlike their defaults, and the chief ones; JSON-ready.

    Args:
        model: unwrapped.

    Returns:
        By the adapters' names; empty for a model without one.
    """
    return {adapter: dict(_told(config)) for adapter, config in _configs(model).items()}


def _told(config: Any) -> Iterator[tuple[str, Any]]:
    defaults = dict(_defaults(type(config)))
    for name, value in config.to_dict().items():
        ready = _json_ready(value)
        usual = _json_ready(defaults.get(name))
        if name == "task_type" and ready not in (None, _USUAL_TASK):
            yield name, ready
        if name in _NOT_OF_A_RUN or ready is None:
            continue
        if name in _TOLD or (ready != usual and ready not in ({}, [], "")):
            yield name, ready


def _defaults(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    for option in fields(kind) if is_dataclass(kind) else ():
        made = option.default_factory
        yield option.name, option.default if made is MISSING else made()


def _configs(model: nn.Module) -> Mapping[str, Any]:
    configs: Any = model.peft_config if is_adapted(model) else {}
    return {name: one for name, one in configs.items() if hasattr(one, "to_dict")}


def _json_ready(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _json_ready(part) for key, part in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [_json_ready(part) for part in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _as_fact(value: Any) -> Value:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(_json_ready(value), sort_keys=True)
