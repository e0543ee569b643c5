"""Several processes, each with a part of every weight: PyTorch's ``fully_shard`` (FSDP2).

A model comes sharded through one of two doors: it was loaded so (transformers'
``DistributedConfig``), or accelerate shards it before the first step. Weights are gathered a layer
at a time, in every forward and backward, so that all ranks must enter each of them together.
Gradients are added up in every backward and kept in shards: waiting for the last micro-batch
would keep whole ones.

What ``fully_shard`` does not manage, as an adapter that was put on a model which was loaded in
shards, is whole on every rank; its gradient is added up once, after the step's last backward.

Not here: how many micro-batches ranks have (``step``), checkpoints by shard (``checkpoint``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from accelerate import ParallelismConfig
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from transformers.training_args import ParallelMode

from counterpoint import ranks
from counterpoint.engine import FSDP_1
from counterpoint.engine.face import Engine, Pass, Reduction, sees_pictures
from counterpoint.engine.through_accelerate import keep_precise, keep_ties_together
from counterpoint.errors import ConfigError, SetupError, first_line
from counterpoint.model_seams import reduced_by_its_engine
from counterpoint.tensor_parts import local_part, on_its_mesh

SHARDED = "ACCELERATE_USE_FSDP"
"""How accelerate is asked to shard; transformers sets it for its option as well."""


def sharding_asked(environment: Mapping[str, str] | None = None) -> bool:
    """Whether accelerate was asked to shard: by an option, its configuration or its launcher.

    Args:
        environment: by default that of the process, which accelerate writes an option into.
    """
    # looked up at each call: datasets puts a copy in its place after a map with processes
    said = os.environ if environment is None else environment
    return said.get(SHARDED, "").lower() == "true"


def shards_at_load(args: Any) -> bool:
    """Whether a model that is given by its name is read in shards: several ranks on CPUs.

    On accelerators accelerate shards, which it does not do on CPUs.

    Args:
        args: transformers' ``TrainingArguments``.
    """
    return bool(args.fsdp) and ranks.count() > 1 and args.device.type == "cpu"


def sharding_keywords(args: Any) -> dict[str, Any]:
    """What ``from_pretrained`` is told so that each rank reads its own part; nothing elsewhere.

    Args:
        args: transformers' ``TrainingArguments``.

    Raises:
        ConfigError: CP104 for settings of accelerate's, or for copies of a model that is not
            sharded; CP103 for a number of copies that the ranks cannot hold.
        SetupError: CP503 where transformers would take an accelerator that the run may not use.
    """
    if not shards_at_load(args):
        return {}
    given = {k: v for k, v in (args.fsdp_config or {}).items() if v not in (None, False, 0)}
    theirs = sorted(given.keys() - AT_LOAD)
    if theirs:
        raise ConfigError(
            "CP104",
            f"fsdp_config with {', '.join(theirs)} speaks to accelerate, which shards on "
            "accelerators only; on CPUs a model is loaded in shards as its own plan says. Leave "
            "it out.",
        )
    if torch.accelerator.is_available():
        raise SetupError(
            "CP503",
            f"fsdp on CPUs beside an accelerator ({torch.accelerator.current_accelerator()}): "
            "transformers would load the shards onto it. Hide it (CUDA_VISIBLE_DEVICES=), or "
            "leave use_cpu out.",
        )
    copies = _copies_asked(args) or 1
    return {
        "distributed_config": {
            "fsdp_size": ranks.count() // copies,
            "dp_replicate_size": copies,
        }
    }


AT_LOAD = {"version", "cpu_offload"}
"""What of ``fsdp_config`` is so already where a model is loaded in shards."""


def _copies_asked(args: Any) -> int | None:
    """Copies of the model over all ranks, if the ranks can hold so many."""
    copies: int | None = getattr(args, "fsdp_replicas", None)
    if copies is None:
        return None
    if not (args.fsdp or sharding_asked()):
        raise ConfigError(
            "CP104",
            f"fsdp_replicas={copies} makes copies of a model in shards, and nothing asks for "
            "shards. Set fsdp=2 as well, or leave it out.",
        )
    if ranks.count() % copies or ranks.count() < 2 * copies:
        raise ConfigError(
            "CP103",
            f"fsdp_replicas={copies} should divide the {ranks.count()} ranks and leave each "
            "copy at least 2 of them; as many as there are machines is the usual choice.",
        )
    return copies


class Fsdp2(Engine):
    """A part of the model on every rank, and the sum of their gradients in every backward."""

    name = "fsdp2"
    reduction: ClassVar[Reduction] = "sum"
    shards = True

    def __init__(self, accelerator: Any = None) -> None:
        super().__init__(accelerator)
        plugin = getattr(getattr(accelerator, "state", None), "fsdp_plugin", None)
        if plugin is not None and plugin.fsdp_version == 2:
            keep_precise(plugin)
            keep_ties_together(accelerator)
        self._whole: list[nn.Parameter] = []
        """What trains and is whole on every rank, though other weights are sharded."""

    @classmethod
    def runs(cls, kind: str) -> bool:
        """Where accelerate shards."""
        return kind == "FSDP"

    @classmethod
    def settle(cls, args: Any) -> None:
        """Have accelerate lay ranks out as copies of the model, each in shards (HSDP).

        Raises:
            ConfigError: CP104 for copies of a model that is not sharded, CP103 for a number of them
                that does not leave each at least two of the ranks, CP105 for shards of one process.
        """
        if args.fsdp and ranks.alone() and args.parallel_mode != ParallelMode.DISTRIBUTED:
            raise ConfigError(
                "CP105",
                "fsdp spreads a model over several processes, and this is one by itself. Launch "
                "as many as there are to be shards (torchrun --nproc-per-node 2 -m counterpoint "
                "train ...), or leave fsdp out.",
            )
        copies = _copies_asked(args)
        if copies is None or shards_at_load(args):
            return
        args.parallelism_config = ParallelismConfig(
            dp_replicate_size=copies, dp_shard_size=ranks.count() // copies
        )

    @classmethod
    def owns(cls, model: nn.Module) -> bool:
        """A model that was loaded in shards."""
        return any(isinstance(module, FSDPModule) for module in model.modules())

    def refuses(self, model: nn.Module) -> str | None:
        """Refuse version 1, checkpointing of its own, and weights split in another way besides."""
        plugin = getattr(getattr(self._accelerator, "state", None), "fsdp_plugin", None)
        if plugin is not None and plugin.fsdp_version == 1:
            return f"accelerate is set up for FSDP, and {FSDP_1}"
        if getattr(plugin, "activation_checkpointing", False):
            return (
                "accelerate's own checkpointing (fsdp_activation_checkpointing, or "
                "activation_checkpointing in fsdp_config) draws other dropout where a layer is "
                "computed again, and no plan knows it. Turn it off, and set "
                "gradient_checkpointing=True"
            )
        if sees_pictures(model):
            return (
                "what sees is gathered by all ranks together, and used by those alone whose pairs "
                "show pictures: a model that sees trains on one process or with DDP"
            )
        for name, weight in model.named_parameters():
            if isinstance(weight, DTensor) and not _is_split_once(weight):
                return (
                    f"{name} is split over {weight.device_mesh.shape} of {ranks.count()} ranks as "
                    f"{weight.placements}: tensor and expert parallelism are not supported"
                )
        if cut := _cut_adapter(model):
            return (
                f"PEFT made the adapter of {cut} for one rank's part of it, as it does for a model "
                "that was loaded in shards as several copies. Load the model whole, and set fsdp=2 "
                "and fsdp_replicas"
            )
        return None

    def ready(self, model: nn.Module) -> None:
        """Have gradients added up, not averaged, and leave the head gathered until its backward."""
        self.at_rest(model)
        _hold_ties_once(model)
        for module in _sharded(model):
            # a mean times the number of ranks would round twice
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        for module in _around_the_head(model):
            # the head computes after the model's forward, from the weight that is gathered there
            module.set_reshard_after_forward(False, recurse=False)
        self._whole = [
            weight
            for weight in model.parameters()
            if weight.requires_grad and not isinstance(weight, DTensor)
        ]
        for weight in self._whole:
            reduced_by_its_engine(weight)
            ranks.from_the_first(weight.data)

    def at_rest(self, model: nn.Module) -> None:
        """Give back what a forward has left gathered: it would outlive a change of the weights."""
        for module in _sharded(model):
            module.reshard()

    # ---- a step ----

    @property
    def collective_passes(self) -> frozenset[Pass]:
        """All of them: weights are gathered in a forward, and in a backward."""
        return frozenset() if ranks.alone() else frozenset(Pass)

    def accumulating(self, model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Sharded gradients meet in every backward, those of whole weights after the last."""
        return self._met() if last and self._whole else nullcontext()

    @contextmanager
    def _met(self) -> Iterator[None]:
        yield
        weights = self._whole
        zero = [w.grad is None for w in weights]
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        for dtype in dict.fromkeys(grad.dtype for grad in grads):
            some = [grad for grad in grads if grad.dtype == dtype]
            flat = ranks.add_up(torch.cat([grad.flatten() for grad in some]))
            parts = torch.split(flat, [grad.numel() for grad in some])
            for grad, part in zip(some, parts, strict=True):
                grad.copy_(part.view_as(grad))
        # one that nothing was said of on any rank is left as it is by an optimizer
        absent = ranks.least(torch.tensor(zero, dtype=torch.int32, device=grads[0].device))
        for weight, grad, nowhere in zip(weights, grads, absent.tolist(), strict=True):
            weight.grad = None if nowhere else grad

    def whole_norm(self, parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
        """From the norm of each rank's own parts, in float64 where the device has it."""
        found = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not found:
            return torch.nn.utils.get_total_norm([])
        sharded: dict[int, list[Tensor]] = {}
        whole = []
        for grad in found:
            if isinstance(grad, DTensor):
                sharded.setdefault(_copies(grad), []).append(self.own_part(grad))
            else:
                whole.append(grad)
        device = self.own_part(found[0]).device
        wide = torch.float32 if device.type == "mps" else torch.float64
        squares = torch.zeros((), dtype=wide, device=device)
        for copies, parts in sharded.items():
            squares += _squares(parts, wide) / copies
        total = (ranks.add_up(squares) + _squares(whole, wide).to(device)).sqrt()
        return total.to(found[0].dtype)

    def gradient(self, total: Tensor, model: nn.Module) -> list[Tensor | None]:
        """A backward as in a step, of which nothing stays."""
        if total.requires_grad:
            with self.accumulating(model, last=True):
                torch.autograd.backward(total)
        self.at_rest(model)
        found = []
        for weight in model.parameters():
            if weight.requires_grad:
                found.append(None if weight.grad is None else self.own_part(weight.grad))
                weight.grad = None
        return found

    # ---- a parameter ----

    def whole_weight(self, parameter: Tensor) -> Tensor:
        """All of a parameter: gathered now, unless it is gathered already.

        Raises:
            RuntimeError: for a part that is taken for all of it.
        """
        if not isinstance(parameter, DTensor):
            if parameter.numel() and not parameter.untyped_storage().size():
                raise RuntimeError("a weight was read after it had been given back to its shards")
            return parameter
        everywhere = [Replicate()] * parameter.device_mesh.ndim
        # what each rank's pairs say of it is a part of the sum
        sums = [Partial()] * parameter.device_mesh.ndim
        there: Any = on_its_mesh(parameter)
        whole: Tensor = there.redistribute(placements=everywhere).to_local(grad_placements=sums)
        if whole.shape != parameter.shape:
            raise RuntimeError(f"{whole.shape} was gathered of a weight of {parameter.shape}")
        return whole

    def own_part(self, parameter: Tensor) -> Tensor:
        """This rank's shard, which may be empty; of a weight that is not sharded all."""
        return local_part(parameter)

    def share_of(self, parameter: Tensor) -> float:
        """One of as many copies as there are of a shard, or of a weight that is not sharded."""
        copies = _copies(parameter) if isinstance(parameter, DTensor) else ranks.count()
        return 1 / copies

    @property
    def watches(self) -> bool:
        """Every rank sees its own shards."""
        return True


def gather_around_parts(model: nn.Module) -> None:
    """Gather what stands around a model's sharded parts, for whoever calls these by themselves.

    A weight is gathered by the forward of the module that ``fully_shard`` was given. ``generate``
    calls an encoder without the model around it, whose embedding and norm would stay in shards.

    Args:
        model: unwrapped from distributed training; nothing is done to one that is not in shards.
    """
    for module in _outermost(model):
        _managed(module)
        module.unshard()


def _outermost(module: nn.Module) -> Iterator[FSDPModule]:
    if isinstance(module, FSDPModule):
        yield module
        return
    for child in module.children():
        yield from _outermost(child)


def _cut_adapter(model: nn.Module) -> str | None:
    """The name of a layer whose adapter is smaller than the layer; None where there is none."""
    name: str
    for name, module in model.named_modules():
        base: Any = getattr(module, "base_layer", None)
        if isinstance(base, nn.Linear):
            own = (getattr(module, side, None) for side in ("in_features", "out_features"))
            if tuple(own) not in ((base.in_features, base.out_features), (None, None)):
                return name
    return None


def _sharded(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _hold_ties_once(model: nn.Module) -> None:
    """Let every place that a weight is tied to gather it from one storage.

    transformers ties the weights of a model that it loads in shards after ``fully_shard``, which
    then manages the weight twice. Where its rows do not divide by the ranks, each of the two pads a
    copy of its own, and an optimizer moves one of them.
    """
    held: dict[int, Tensor] = {}
    managed = [one for module in _sharded(model) for one in _managed(module)]
    for one in managed:
        here = one.sharded_param.to_local().untyped_storage().data_ptr()
        if one._sharded_param_data.untyped_storage().data_ptr() == here:
            held[id(one.sharded_param)] = one._sharded_param_data
    for one in managed:
        one._sharded_param_data = held.get(id(one.sharded_param), one._sharded_param_data)


def _managed(module: Any) -> list[Any]:
    """What ``fully_shard`` knows of each weight of a module."""
    state = module._get_fsdp_state()
    try:
        state._lazy_init()  # which pads; the outermost module comes first, and goes through all
    except ValueError as error:  # weights that are tied over several of accelerate's wraps
        raise ConfigError(
            "CP105",
            f"torch cannot shard this model as accelerate wraps it: {first_line(error)} Leave fsdp "
            "out, or load the model in shards (distributed_config), where ties are held once.",
        ) from error
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    return [one for group in groups if group is not None for one in group.fsdp_params]


def _around_the_head(model: nn.Module) -> Iterator[FSDPModule]:
    """The sharded module that gathers the head's weight, or those of all places it is tied to."""
    finder: Any = getattr(model, "get_output_embeddings", None)
    head = finder() if finder else None
    weight = getattr(head, "weight", None)
    if weight is None:
        return

    def look(module: nn.Module, around: FSDPModule | None) -> Iterator[FSDPModule]:
        around = module if isinstance(module, FSDPModule) else around
        if around is not None and any(own is weight for own in module.parameters(recurse=False)):
            yield around
        for child in module.children():
            yield from look(child, around)

    yield from look(model, None)


def _is_split_once(weight: DTensor) -> bool:
    """Whether all ranks hold it, in copies that are each split along one dimension of the mesh."""
    splits = [isinstance(one, Shard) for one in weight.placements]
    return weight.device_mesh.size() == ranks.count() and sum(splits) == 1


def _copies(tensor: DTensor) -> int:
    """How many ranks hold each part of it."""
    sizes = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
    copies = 1
    for placement, size in sizes:
        copies *= size if placement.is_replicate() else 1
    return copies


def _squares(parts: list[Tensor], wide: torch.dtype) -> Tensor:
    """The sum of the squares of some tensors, 0 for none."""
    norms = [part.norm().to(wide) for part in torch._foreach_norm(parts)] if parts else []
    return torch.stack(norms).square().sum() if norms else torch.zeros((), dtype=wide)
