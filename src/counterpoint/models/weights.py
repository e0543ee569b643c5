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

AS_FILED = "auto"
"""transformers' word for the precision of the files."""


@dataclass(frozen=True, slots=True)
class WeightsPolicy:
    """What is asked of a model's weights.

    Args:
        dtype: their precision, by torch or by name; ``AS_FILED`` for that of their files.
        adapter: whether an adapter is what trains.
    """

    dtype: Any
    adapter: bool = False

    @classmethod
    def of(cls, args: CPOConfig, *, adapter: bool = False) -> WeightsPolicy:
        """That of a run.

        Args:
            args: its options.
            adapter: an adapter will be trained.
        """
        usual = "bfloat16" if args.stochastic_rounding else "float32"
        return cls(init_keywords(args).get("dtype", AS_FILED if adapter else usual), adapter)

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
