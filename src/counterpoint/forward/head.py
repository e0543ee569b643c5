"""The output head of a model: where it is and what happens to its logits.

The trunk is not looked for: the model runs as it is, and a hook on the head takes the head's
own input and lets it compute nothing. Whatever a model does before its head is therefore right
by construction, and so are its wrappers (PEFT, DDP, autocast). What a model does after its
head (soft-cap, scale) is read from its configuration and then proved against the model's own
logits on the run's first batch; where that fails, the model computes its logits itself.

Not here: the log-probabilities (``token_logps``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterpoint.errors import ModelError
from counterpoint.forward.affine_logps import finish_logits
from counterpoint.forward.gradient_proof import NARROW, WIDE, largest_difference, sampled_gradient
from counterpoint.forward.initial_policy import InitialPolicy
from counterpoint.forward.kernels import HEAD_KERNELS, Projection, trusted_head_kernel
from counterpoint.forward.modes import in_evaluation_mode
from counterpoint.forward.token_kl import Affine, affine_token_kl, logits_token_kl
from counterpoint.forward.token_logps import dense_token_logps
from counterpoint.model_seams import class_of, under_adapter
from counterpoint.tensor_parts import is_plain


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


@dataclass(frozen=True, slots=True)
class Head:
    """How to get logits from hidden states.

    Args:
        module: the model's output embedding, a linear layer or a wrapper of one.
        scale: factor of its output.
        softcap: bound of its scaled output, or None.
        dense: True where the model must compute its logits itself.
        kernel: name of its row in ``HEAD_KERNELS``; None for the one of ours that takes it.
        whole: gives all of a weight of which this process may hold a part; the engine's.
        after: gives what the model adds to the module's output, ``[1, vocab]``, which no gradient
            moves (``final_logits_bias`` of BART and its kin); None for nothing.
    """

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None
    dense: bool = False
    kernel: str | None = None
    whole: Callable[[Tensor], Tensor] = _as_it_is
    after: Callable[[], Tensor] | None = None

    def token_logps(
        self, hidden: Float[Tensor, "targets features"], target_ids: Int[Tensor, " targets"]
    ) -> tuple[Float[Tensor, " targets"], Float[Tensor, " targets"]]:
        """Log-probability of each target and mean logit of its row; see ``token_logps``.

        Args:
            hidden: the head's input; of a dense head, the logits.
            target_ids: the token of each row.
        """
        projection = self.projection(hidden)
        kernel = trusted_head_kernel(projection) if self.kernel is None else self.kernel
        return HEAD_KERNELS[kernel].run(projection, hidden, target_ids)

    def projection(self, hidden: Float[Tensor, "targets features"]) -> Projection:
        """The head as a kernel is given it.

        Args:
            hidden: as for ``token_logps``.
        """
        weight, bias = (None, None) if self.dense else self._matrix()
        dtype = hidden.dtype if weight is None else _matmul_dtype(hidden, weight)
        output = self.module if self.after is None else self._output
        return Projection(output, weight, bias, self.scale, self.softcap, dtype, self.dense)

    def _output(self, rows: Tensor) -> Tensor:
        """What the module makes of some rows, and what the model adds to it."""
        found: Tensor = self.module(rows)
        return found if self.after is None else found + self.after()[0]

    def _matrix(self) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias, whole, where the head is these and nothing else; else None twice.

        A subclass (quantized, adapted) computes something else, and so does a weight of a kind of
        its own, which torchao puts into the layer that was there.
        """
        # an engine that shards makes a subclass of the layer, which computes as it did
        if type(self.module).forward is not nn.Linear.forward:
            return None, None
        weight: Any = self.module.weight
        bias: Any = self.module.bias
        weight = self.whole(weight)
        if not is_plain(weight):
            return None, None
        return weight, self._with_after(bias)

    def _with_after(self, bias: Tensor | None) -> Tensor | None:
        """The module's bias, whole, with what the model adds after the module."""
        own = None if bias is None else self.whole(bias)
        if self.after is None:
            return own
        return self.after()[0] if own is None else own + self.after()[0]

    def token_kl(
        self,
        hidden: Float[Tensor, "targets width"],
        initial_hidden: Float[Tensor, "targets width"],
        initial: InitialPolicy,
    ) -> Float[Tensor, " targets"]:
        """KL(initial || policy) of the next token at each row; see ``token_kl``.

        Args:
            hidden: the head's input; of a dense head, the logits.
            initial_hidden: the same of the initial policy.
            initial: the initial policy, whose head may have been another.
        """
        weight, bias = (None, None) if self.dense else self._matrix()
        if weight is not None:
            own: Any = self.module
            return affine_token_kl(
                Affine(hidden, weight, bias),
                Affine(
                    initial_hidden,
                    self.whole(initial.was(own, "weight")),
                    self._with_after(None if own.bias is None else initial.was(own, "bias")),
                ),
                scale=self.scale,
                softcap=self.softcap,
                dtype=_matmul_dtype(hidden, weight),
            )

        def then(rows: Tensor) -> Tensor:
            with initial.as_it_was():
                return self._logits(rows)

        return logits_token_kl(hidden, self._logits, initial_hidden, then)

    def _logits(self, rows: Tensor) -> Tensor:
        if self.dense:
            return finish_logits(rows, 1.0, None)
        return finish_logits(self._output(rows), self.scale, self.softcap)


def find_head(model: nn.Module, whole: Callable[[Tensor], Tensor] = _as_it_is) -> Head:
    """The head of a plain or PEFT-wrapped language model.

    Args:
        model: not wrapped for distributed training.
        whole: the engine's ``whole_weight``.

    Returns:
        The head with scale and soft-cap as the model's configuration names them.

    Raises:
        ModelError: CP304 where the model has no output embedding.
    """
    finder: Any = getattr(model, "get_output_embeddings", None)
    module = finder() if finder else None
    if module is None:
        raise ModelError(
            "CP304",
            f"{class_of(model).__name__} has no output embedding (get_output_embeddings() gives "
            "None); load it with AutoModelForCausalLM.",
        )
    # PEFT keeps a trained copy of the head beside the original; the copy is what runs
    adapter = getattr(module, "active_adapter", None)
    if hasattr(module, "modules_to_save") and adapter in module.modules_to_save:
        module = module.modules_to_save[adapter]
    config: Any = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return Head(module, _scale(config), _softcap(config), whole=whole, after=_after(model))


@contextmanager
def head_input(head: Head) -> Iterator[list[Tensor]]:
    """While open, the head's input is put into the list and the head works on no rows.

    A dense head works as always; the list stays empty.
    """
    taken: list[Tensor] = []

    def take(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        taken.append(args[0])
        return (args[0][..., :0, :], *args[1:])

    if head.dense:
        yield taken
        return
    handle = head.module.register_forward_pre_hook(take)
    try:
        yield taken
    finally:
        handle.remove()


def own_tokens(
    states: Float[Tensor, "rows longer features"], input_ids: Int[Tensor, "rows tokens"]
) -> Float[Tensor, "rows tokens features"]:
    """What belongs to real tokens, without the virtual ones prompt tuning puts before each row."""
    return states[:, -input_ids.shape[1] :]


def prove_head(
    model: nn.Module,
    head: Head,
    input_ids: Int[Tensor, "rows tokens"],
    inputs: Mapping[str, Any] | None = None,
) -> Head:
    """Check the head against the model's own logits on a short input.

    Args:
        model: unwrapped, on the device of ``input_ids``.
        head: as ``find_head`` describes it.
        input_ids: a few real tokens of the rows that are predicted, without padding.
        inputs: what the model is called with, by keyword; None: these ids alone.

    Returns:
        The head with the first kernel whose log-probabilities agree, else the dense one. A kernel
        that the tests have not proved has to have the gradient of one that they have.
    """
    inputs = {"input_ids": input_ids} if inputs is None else inputs
    with in_evaluation_mode(model):
        with torch.no_grad():
            logits = model(**inputs, use_cache=False).logits
            # what stands for a picture may have no row in the head (Llama 3.2 Vision)
            next_ids = input_ids.roll(-1, 1).flatten() % logits.shape[-1]
            expected, _ = dense_token_logps(own_tokens(logits, input_ids).flatten(0, 1), next_ids)
            with head_input(head) as taken:
                model(**inputs, use_cache=False)
        if len(taken) != 1:
            return replace(head, dense=True)
        rows = own_tokens(taken[0], input_ids).flatten(0, 1).detach()
        # two kernels for one product may differ by rounding of the logits, not by more
        limit = 16 * torch.finfo(logits.dtype).eps * logits.abs().max().clamp(min=1)
        candidates = [*_of_others(head, rows, next_ids), head]
        for one in candidates:
            with torch.no_grad():
                found, _ = one.token_logps(rows, next_ids)
            if bool((found - expected).abs().max() <= limit):
                return one
    return replace(head, dense=True)


def _of_others(head: Head, rows: Tensor, target_ids: Tensor) -> Iterator[Head]:
    """The head with each kernel that takes it and has the gradient of ours."""
    projection, device = head.projection(rows), rows.device.type
    able = [k for k in HEAD_KERNELS.values() if not k.trusted and k.takes(projection, device)]
    for kernel in able:
        other = replace(head, kernel=kernel.name)
        ours, theirs = (_gradients(one, rows, target_ids) for one in (head, other))
        narrow = projection.dtype.itemsize < 4
        if largest_difference(ours, theirs)[1] <= (NARROW if narrow else WIDE):
            yield other


def _gradients(head: Head, rows: Tensor, target_ids: Tensor) -> list[Tensor]:
    leaf = rows.clone().requires_grad_()
    trained = [weight for weight in head.module.parameters() if weight.requires_grad]
    with torch.enable_grad():
        return sampled_gradient(head.token_logps(leaf, target_ids)[0].sum(), [leaf, *trained])


def _after(model: Any) -> Callable[[], Tensor] | None:
    """What gives the bias that a model adds to its head's output: a buffer, which may be moved."""
    owner = under_adapter(model)
    bias = getattr(owner, "final_logits_bias", None)
    return (lambda: owner.final_logits_bias) if isinstance(bias, Tensor) else None


def _scale(config: Any) -> float:
    for name in ("logit_scale", "lm_head_multiplier"):
        value = getattr(config, name, None)
        if isinstance(value, int | float):
            return float(value)
    divisor = getattr(config, "logits_scaling", None)
    return 1 / divisor if isinstance(divisor, int | float) else 1.0


def _softcap(config: Any) -> float | None:
    value = getattr(config, "final_logit_softcapping", None)
    return float(value) if value else None


def _matmul_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(hidden.dtype, weight.dtype)
