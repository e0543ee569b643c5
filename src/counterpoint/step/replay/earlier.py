"""What files of earlier releases do not say, as it was then.

Not here: reading a file (``file``).
"""

from __future__ import annotations

from typing import Any

_OBJECTIVE = {
    **{"arpo_scale": 0.9, "arpo_eta": 0.4, "use_weighting": False, "ld_alpha": None},
    "dpop_lambda": 0.0,
}
_SETTINGS = {
    **{"checkpointing_share": 1.0, "offload": False},  # not in files of 2
    "pictures_alone": False,  # nor in the first ones of 4
}


def objective_of_now(described: Any) -> Any:
    """An objective as a file describes it, with the options that came later."""
    return {**_OBJECTIVE, **described} if isinstance(described, dict) else described


def settings_of_now(described: Any) -> Any:
    """The same of a step's settings; ``top_k`` is in files of 0.4.0 alone."""
    if not isinstance(described, dict):
        return described
    return {**_SETTINGS, **{name: one for name, one in described.items() if name != "top_k"}}
