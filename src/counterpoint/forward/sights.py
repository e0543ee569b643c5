"""The kinds of models that see, and how each takes pictures: one table.

Not here: what is done with it in a forward pass (``seeing``), which tokens stand for a picture
(``data.vision``), which layouts a family has (``models.family``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Sight:
    """How models of a kind take pictures.

    Args:
        mark: attribute of the processor that holds the text standing for a picture in a prompt.
        types: keyword by which a model is told which ids stand for pictures; "" for none.
        joined: dimension along which the pixels of several pictures are joined.
        three: whether positions are counted in three dimensions (``get_rope_index``).
        cast: whether pixels are to come in the tower's own dtype, since the model leaves them as
            they are.
        crosses: whether text looks at pictures in layers of its own, so that one token stands for a
            picture whatever its size.
        both_ways: in which layers the tokens of a picture see each other both ways: "all",
            "windowed" (those of a sliding window) or "none".
        tower: names of the modules that see.
        projector: names of the modules, or of single weights, that make of it what stands in the
            text; in the tower or not.
    """

    mark: str = "image_token"
    types: str = ""
    joined: int = 0
    three: bool = False
    cast: bool = False
    crosses: bool = False
    both_ways: Literal["all", "windowed", "none"] = "none"
    tower: tuple[str, ...] = ("vision_tower",)
    projector: tuple[str, ...] = ("multi_modal_projector",)


_IDEFICS = Sight(joined=1, tower=("vision_model",), projector=("connector",))
_QWEN = Sight(
    types="mm_token_type_ids",
    three=True,
    tower=("visual",),
    projector=("visual.merger", "visual.deepstack_merger_list"),
)

_GLM = replace(_QWEN, projector=("visual.merger", "visual.downsample"))

SIGHTS: dict[str, Sight] = {
    "llava": Sight(),
    "llava_next": Sight(projector=("multi_modal_projector", "image_newline")),
    "internvl": Sight(),
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), _QWEN),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), _QWEN),
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v", "glm_ocr"), _GLM),
    "paddleocr_vl": replace(_QWEN, projector=("projector",)),
    "kimi_k25": Sight(cast=True, projector=("mm_projector",)),
    "gemma3": Sight(mark="boi_token", types="token_type_ids", both_ways="all"),
    "gemma4": Sight(types="mm_token_type_ids", both_ways="windowed", projector=("embed_vision",)),
    "mllama": Sight(crosses=True, tower=("vision_model",)),
}
"""Kind of configuration -> how its models take pictures."""


def sight_of(config: Any) -> Sight | None:
    """How models of a configuration take pictures; None for those of which it is not known."""
    return SIGHTS.get(getattr(config, "model_type", ""))
