"""How the weights of a run's model are held: in which precision, and whether an adapter trains.

Full fine-tuning keeps float32 weights, whatever the files hold: a bfloat16 weight cannot take
updates as small as a learning rate of 1e-6 makes, unless ``stochastic_rounding`` is on. What lies
under an adapter stays as it is in its files. ``model_init_kwargs`` overrule both.

Not here: what a weight loses of a small update (``precision``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from counterpoint.config import CPOConfig
from counterpoint.engine.fsdp2 import sharding_keywords
from counterpoint.errors import ConfigError
from counterpoint.models.quantized import (
    Quantization,
    loading_keywords,
    no_adapter,
    quantization_of,
)

AS_FILED = "auto"
"""transformers' word for the precision of the files."""


@dataclass(frozen=True, slots=True)
class WeightsPolicy:
    """What is asked of a model's weights.

    Args:
        dtype: their precision, by torch or by name; ``AS_FILED`` for that of their files. Of
            quantised ones, that of all others.
        adapter: whether an adapter is what trains.
        quantization: how linear layers are quantised; None: not.
    """

    dtype: Any
    adapter: bool = False
    quantization: Quantization | None = None

    @classmethod
    def of(cls, args: CPOConfig, *, adapter: bool = False) -> WeightsPolicy:
        """That of a run.

        Args:
            args: its options.
            adapter: an adapter will be trained, or nothing.

        Raises:
            ModelError: CP316 for weights to be quantised and to be trained.
        """
        asked = quantization_of(args)
        if asked is not None and not adapter:
            raise no_adapter(f"{asked.option} asks for")
        usual = "bfloat16" if args.stochastic_rounding else "float32"
        dtype = init_keywords(args).get("dtype", AS_FILED if adapter else usual)
        return cls(dtype, adapter, asked)

    def keywords(self, args: CPOConfig) -> dict[str, Any]:
        """All arguments of ``from_pretrained`` that a run gives.

        Args:
            args: its options.

        Raises:
            SetupError: CP502 where quantising needs a package that is missing, CP503 where shards
                would come onto an accelerator that the run may not use.
            ConfigError: CP103 and CP104 for shards that cannot be, or that ``model_init_kwargs``
                ask for, too; CP104 where they quantise, too.
        """
        given = init_keywords(args)
        shards = sharding_keywords(args)
        for name in shards.keys() & given.keys():
            raise ConfigError(
                "CP104",
                f"fsdp and the {name} in model_init_kwargs both say how the model is sharded; "
                "leave one of them out.",
            )
        given.update(shards)
        if self.quantization is not None:
            given.update(loading_keywords(self.quantization, args))
        return {**given, "dtype": self.dtype}

    def made(self, config: Any) -> Any:
        """The precision where there are no files.

        Args:
            config: of the model, which may name that of its files.
        """
        filed = getattr(config, "dtype", None) or "float32"
        return filed if self.dtype == AS_FILED else self.dtype


def init_keywords(args: CPOConfig) -> dict[str, Any]:
    """The ``model_init_kwargs`` of a run, by transformers' newer names."""
    given = args.model_init_kwargs
    keywords = dict(given) if isinstance(given, Mapping) else {}
    if "torch_dtype" in keywords:
        keywords["dtype"] = keywords.pop("torch_dtype")
    return keywords
