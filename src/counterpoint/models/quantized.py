"""Weights kept in 8 or 4 bits under an adapter: how they are asked for, and what they must be.

1. ``QUANTIZATIONS`` are the options: each a quantiser's own settings, chosen so that a step stays
   a function of its pairs.
2. ``compute_one_way`` makes layers of bitsandbytes compute alike in training and in evaluation
   (``bitsandbytes_layers`` says why), whoever has loaded them.
3. Then one layer of each kind has to show four facts (``_fault``), whatever library it is of.

PEFT's ``prepare_model_for_kbit_training`` is not called. It copies every other weight to float32,
embedding and head too, so that the same adapter would train on other numbers than over weights
that are not quantised; ``dtype: float32`` asks for that. What it does besides is done here anyway.

Not here: loading (``loading``), arithmetic of any quantiser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.config import CPOConfig
from counterpoint.engine.fsdp2 import sharding_asked, shards_at_load
from counterpoint.errors import ConfigError, ModelError, SetupError, kind_and_line
from counterpoint.invocation import EXTRAS, installing
from counterpoint.model_seams import never_quantized
from counterpoint.tensor_parts import is_plain, is_sharded, local_part, parts_of

ROWS = 6
"""Rows of a layer's trial input; one of them is far from the others."""

CLOSEST = 1e-5
"""How far, relatively, two ways to compute the same may be apart in float32."""

OF_OTHERS = ("qweight", "W_q", "packed_weight")
"""What quantisers that keep no ``weight`` call theirs."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """One option that quantises a model while it is loaded.

    Args:
        option: of ``CPOConfig``.
        bits: of a weight.
        settings: precision of products, and that of the storage -> transformers' configuration.
        size: height and width of a matrix -> bytes that it takes, scales included.
    """

    option: str
    bits: int
    settings: Callable[[torch.dtype, torch.dtype], Any]
    size: Callable[[int, int], int]


def _four_bits(products: torch.dtype, storage: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=products,
        bnb_4bit_quant_storage=storage,
    )


def _eight_bits(products: torch.dtype, storage: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    # above 0, a large entry in one row changes how the other rows of a batch are computed
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)


def _size_in_four(height: int, width: int) -> int:
    blocks = -(-height * width // 64)
    # a scale a block in 8 bits, a scale of 256 of these, their offset, and two tables of values
    return -(-height * width // 2) + blocks + 4 * -(-blocks // 256) + 4 * (1 + 16 + 256)


QUANTIZATIONS: Mapping[str, Quantization] = MappingProxyType(
    {
        one.option: one
        for one in (
            Quantization("load_in_4bit", 4, _four_bits, _size_in_four),
            Quantization("load_in_8bit", 8, _eight_bits, lambda h, w: h * w + 4 * h),
        )
    }
)
"""Every option that quantises, by its name."""


def quantization_of(args: CPOConfig) -> Quantization | None:
    """The one that a run asks for.

    Args:
        args: its options, of which at most one quantises.
    """
    return next((one for name, one in QUANTIZATIONS.items() if getattr(args, name)), None)


def products_of(args: CPOConfig) -> torch.dtype:
    """The precision in which a run multiplies.

    Args:
        args: its options.
    """
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def loading_keywords(asked: Quantization, args: CPOConfig) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that quantise a model.

    Args:
        asked: how.
        args: the run's options.

    Raises:
        SetupError: CP502 where the package is missing.
        ConfigError: CP104 where ``model_init_kwargs`` say it, too, or have shards loaded.
    """
    if find_spec("bitsandbytes") is None:
        raise SetupError(
            "CP502",
            f"{asked.option} needs the package bitsandbytes, which is not installed: "
            + installing(EXTRAS["quantized"]),
        )
    given = args.model_init_kwargs
    if isinstance(given, Mapping) and "quantization_config" in given:
        raise ConfigError(
            "CP104",
            f"{asked.option} and the quantization_config in model_init_kwargs both say how weights "
            "are quantised; leave one of them out.",
        )
    own = isinstance(given, Mapping) and "distributed_config" in given
    if own or shards_at_load(args):
        how = "the distributed_config in model_init_kwargs" if own else "fsdp on CPUs"
        raise ConfigError(
            "CP104",
            f"{asked.option} and {how}: transformers would quantise each rank's part of a weight "
            "by itself, and lose its scales. Leave one of them out; on accelerators fsdp=2 shards "
            "weights that were quantised whole.",
        )
    # FSDP cuts weights that are stored in a floating-point type
    storage = torch.bfloat16 if sharding_asked() else torch.uint8
    return {
        "quantization_config": asked.settings(products_of(args), storage),
        # transformers would take an accelerator that it sees, also in a run that may not use it
        "device_map": {"": args.device},
    }


def refuse_twice_quantized(config: Any, source: str, args: CPOConfig) -> None:
    """Refuse an option for a model whose files are quantised already.

    Args:
        config: of the model.
        source: hub id or folder.
        args: the run's options.

    Raises:
        ConfigError: CP104.
    """
    asked = quantization_of(args)
    if asked is not None and getattr(config, "quantization_config", None):
        raise ConfigError(
            "CP104",
            f"the weights of {source} are quantised in its files, so that {asked.option} could do "
            "nothing; leave it out.",
        )


def no_adapter(what: str) -> ModelError:
    """The error of quantised weights that nothing trains on.

    Args:
        what: asks for them, as the subject of a sentence.
    """
    return ModelError(
        "CP316",
        f"{what} quantised weights, which take no gradient: only an adapter trains on them. Give "
        "lora_r (--lora_r 16; a peft_config in a script), or load the weights as they are.",
    )


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers whose weights are quantised, by name.

    Args:
        model: plain or adapted.
    """
    for name, module in model.named_modules():
        # an adapter's layer shows the weight of the layer that it lies on
        if not hasattr(module, "base_layer") and _is_quantized(module):
            yield name, module


def _is_quantized(module: nn.Module) -> bool:
    own = {**module._parameters, **module._buffers}
    if any(own.get(name) is not None for name in OF_OTHERS):
        return True
    weight: Any = own.get("weight")
    if weight is None or getattr(module, "quant_state", None) is not None:
        return weight is not None
    weight = local_part(weight)
    wide = weight.is_floating_point() and weight.element_size() > 1
    return not (wide and is_plain(weight))


def compute_one_way(model: nn.Module) -> None:
    """Make layers of bitsandbytes compute in one way, whatever the mode; others stay.

    Args:
        model: plain or adapted; changed in place.
    """
    layers = [layer for _, layer in quantized_layers(model)]
    if layers and find_spec("bitsandbytes") is not None:
        from counterpoint.models.bitsandbytes_layers import make_one_way

        for layer in layers:
            make_one_way(layer)


def known_in_shards(model: nn.Module) -> None:
    """Give codes of which ranks have got parts the scales that they lost on the way.

    FSDP makes a tensor of its own of every weight. Whoever reads one has to see that it holds
    codes: as numbers most of them mean nothing, and some are none.

    Args:
        model: changed in place, where it is in shards.
    """
    for layer in model.modules():
        weight: Any = layer._parameters.get("weight")
        if weight is None or not is_sharded(weight):
            continue
        state, eight = getattr(layer, "quant_state", None), getattr(layer, "state", None)
        if state is not None:
            weight.quant_state = state
        elif (scales := getattr(eight, "SCB", None)) is not None:
            weight.SCB = scales


def prepare_quantized(model: nn.Module, args: CPOConfig, *, adapted: bool) -> None:
    """Make a model's quantised layers, if it has any, fit to train on.

    Args:
        model: as it was loaded; its layers of bitsandbytes are changed in place.
        args: the run's options.
        adapted: an adapter trains, or nothing does.

    Raises:
        ConfigError: CP104 for an option that quantises beside a model that is not.
        ModelError: CP316 without an adapter, CP319 for layers that are not exact.
    """
    layers = dict(quantized_layers(model))
    asked = quantization_of(args)
    if asked is not None and not layers:
        raise ConfigError(
            "CP104",
            f"{asked.option} is given, but the model is loaded already, and not quantised; pass "
            "its name, or leave the option out.",
        )
    if not layers:
        return
    if not adapted:
        raise no_adapter("the model has")
    _refuse_rounded_inputs(model, layers)
    compute_one_way(model)
    kinds: dict[Any, str] = {}
    for name, layer in layers.items():
        kinds.setdefault((type(layer), _weight_kind(layer)), name)
    for name in kinds.values():
        prove(name, layers[name])


def _refuse_rounded_inputs(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Refuse codes of 4 bits in a layer whose input the model casts to the type of its weight.

    T5 does so before ``wo``, which transformers keeps wide. Codes are stored as bytes, which have
    no gradient, or as bfloat16. Nothing would be raised.
    """
    never = never_quantized(model)
    for name, layer in layers.items():
        if getattr(layer, "quant_state", None) is not None and not never.isdisjoint(
            name.split(".")
        ):
            stored = str(getattr(layer.weight, "dtype", "")).removeprefix("torch.")
            raise ModelError(
                "CP319",
                f"{name} is a {type(layer).__name__}, whose input the model rounds to the type of "
                f"its codes ({stored}). Load the model with load_in_4bit or load_in_8bit from "
                "weights that are not quantised.",
            )


def _weight_kind(layer: nn.Module) -> Any:
    weight = getattr(layer, "weight", None)
    return (type(weight), getattr(weight, "dtype", None))


def prove(name: str, layer: nn.Module) -> None:
    """Refuse a quantised layer on which a step would not be a function of its pairs.

    Args:
        name: of the layer.
        layer: a linear one; others multiply nothing and are not asked.

    Raises:
        ModelError: CP319 with the fact that is missing.
    """
    width = getattr(layer, "in_features", None)
    places = [*layer.parameters(), *layer.buffers()]
    if not isinstance(width, int) or any(place.is_meta for place in places):
        return
    try:
        fault = _fault(layer, width, places[0].device)
    except Exception as error:  # whatever a kernel may say
        fault = f"fails on a few rows: {kind_and_line(error)}"
    if fault:
        raise ModelError(
            "CP319",
            f"{name} is a {type(layer).__name__}, which {fault}. Load the model with load_in_4bit "
            "or load_in_8bit from weights that are not quantised.",
        )


def _fault(layer: nn.Module, width: int, device: torch.device) -> str | None:
    """Which of four facts does not hold of a layer; None where all do.

    Its product has a gradient; that of a row depends on that row alone; it is the same in
    evaluation mode; and an evaluation changes neither the weights nor the gradient after it.
    """
    dtype = products_in(layer)
    limit = max(CLOSEST, torch.finfo(dtype).eps / 2)
    # a row of its own scale, and entries far apart in size: what int8 treats as outliers
    rows = torch.linspace(-1, 1, ROWS * width, device=device).reshape(ROWS, width).sin()
    rows[1] *= 20
    rows[:, ::7] *= 3
    rows = rows.to(dtype)
    training = layer.training
    before = _bytes(layer)
    try:
        layer.train()
        whole = _pass(layer, rows)
        if whole is None:
            return "gives its input no gradient"
        halves = [_pass(layer, half) for half in torch.split(rows, ROWS // 2)]
        for both, parts in zip(whole, zip(*filter(None, halves), strict=True), strict=True):
            if _apart(both, torch.cat(parts)) > limit:
                return "computes a row otherwise when other rows are beside it"
        layer.eval()
        with torch.no_grad():
            seen = layer(rows)
        if _apart(whole[0], seen) > limit:
            return "computes something else in evaluation than in training"
        layer.train()
        after = _pass(layer, rows)
    finally:
        layer.train(training)
    if after is None or _apart(whole[1], after[1]) > limit:
        return "has another gradient after an evaluation"
    return None if _bytes(layer) == before else "changes its weights when it is evaluated"


def products_in(layer: nn.Module) -> torch.dtype:
    """The precision that a quantised layer multiplies in; float32 where it says none.

    Args:
        layer: as it was loaded.
    """
    said = getattr(layer, "compute_dtype", None)
    return said if isinstance(said, torch.dtype) and said.is_floating_point else torch.float32


def _pass(layer: nn.Module, rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """Product and gradient of a few rows; None where there is no gradient, or one of zeros."""
    leaf = rows.clone().requires_grad_()
    with torch.enable_grad():
        product: Tensor = layer(leaf)
    if not product.requires_grad:
        return None
    along = torch.linspace(-1, 2, product.shape[-1], device=rows.device).cos().to(product.dtype)
    (gradient,) = torch.autograd.grad(product, leaf, along.expand_as(product))
    return (product.detach(), gradient) if bool(gradient.any()) else None


def _apart(one: Tensor, other: Tensor) -> float:
    """Norm of the largest row's difference, relative to that row; infinite for what is no number.

    Row by row, so that a large row hides nothing of the others.
    """
    difference = (one.double() - other.double()).norm(dim=-1) / one.double().norm(dim=-1)
    worst = float(difference.max())
    return worst if worst == worst else float("inf")


def _bytes(layer: nn.Module) -> list[bytes]:
    tensors = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    return [
        part.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes()
        for tensor in tensors
        for part in parts_of(tensor)
    ]
