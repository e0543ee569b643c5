"""Where a model drops out: modules of their own, and rates that are read from attributes.

A search for ``nn.Dropout`` alone would miss the second kind: attention's, and ``layerdrop``, by
which NLLB, BART and OPT leave out whole layers of a step.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def dropout_rates(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Every place with a rate above 0: the name of a module, the module, the attribute.

    Args:
        model: plain or PEFT-wrapped.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p:
            yield name, module, "p"
        for attribute, value in list(vars(module).items()):
            named = "dropout" in attribute or attribute.endswith(("_pdrop", "layerdrop"))
            if named and isinstance(value, float) and value:
                yield name, module, attribute


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout of a model to 0, LoRA's included."""
    for _, module, attribute in dropout_rates(model):
        setattr(module, attribute, 0.0)
