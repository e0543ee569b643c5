"""What accelerate is told before it shards a model, so that steps stay those of one process.

Not here: the engine of a model in shards (``fsdp2``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

ENDS = ("get_input_embeddings", "get_output_embeddings")
"""How a model is asked for its input embedding, and for its head."""


def keep_precise(plugin: Any) -> None:
    """Have accelerate add gradients up in float32, and leave quantised weights as they are.

    With mixed precision it would add them up in 16 bits. For codes that are stored in 16 bits
    transformers asks it for that in all weights, so that the adapter would be rounded, too; each
    weight is gathered as it is instead, and autocast does what it does on one process.

    Args:
        plugin: accelerate's, of FSDP version 2.
    """
    policy: Any = getattr(plugin, "mixed_precision_policy", None)
    reduces = getattr(policy, "reduce_dtype", None)
    if reduces is not None and reduces.itemsize < torch.float32.itemsize:
        plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32)

    def set_mixed_precision(*_: Any, **__: Any) -> None:
        plugin.mixed_precision_policy = None

    plugin.set_mixed_precision = set_mixed_precision


def keep_ties_together(accelerator: Any) -> None:
    """Have accelerate leave a weight that has several places to the outermost wrap.

    It puts input embedding and head into a wrap of their own. An encoder-decoder has their weight
    in the embeddings of its encoder and its decoder as well, and torch gathers no weight in two
    wraps. The outermost one has all places of it, and is whole as long as accelerate's would be.

    Args:
        accelerator: of which FSDP version 2 is asked; its ``prepare`` is changed.
    """
    prepare = accelerator.prepare

    def prepared(*objects: Any, **more: Any) -> Any:
        with ExitStack() as stack:
            for model in objects:
                if isinstance(model, nn.Module) and _has_more_places(model):
                    stack.enter_context(_without_ends(model))
            return prepare(*objects, **more)

    accelerator.prepare = prepared


def _has_more_places(model: nn.Module) -> bool:
    """Whether a weight of the model's ends is that of another module, too."""
    found = [getattr(model, name)() for name in ENDS if hasattr(model, name)]
    ends = [end for end in found if isinstance(end, nn.Module)]
    own = {id(module) for end in ends for module in end.modules()}
    weights = {id(weight) for end in ends for weight in end.parameters()}
    others = (module for module in model.modules() if id(module) not in own)
    return any(id(w) in weights for module in others for w in module.parameters(recurse=False))


@contextmanager
def _without_ends(model: nn.Module) -> Iterator[None]:
    """Within it a model says of no module that it is its input embedding or its head."""
    names = [name for name in ENDS if hasattr(model, name)]
    for name in names:
        setattr(model, name, lambda: None)
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)
