"""A run of another tool that begins with an adapter: trained on, or with a new one on top.

Not here: what the tool calls its settings (``of_llama_factory``, ``of_axolotl``).
"""

from __future__ import annotations

from counterpoint.migrate.draft import Draft
from counterpoint.options.given import Scalar, Setting, as_python

_OWN = ("use_rslora", "use_dora", "create_new_adapter", "additional_target")
"""Settings of a new adapter whose names do not begin with those of ``_PREFIXES``."""

_PREFIXES = ("lora_", "peft_")


def begin_with_adapter(draft: Draft, name: str, base: str, *, new: bool) -> bool:
    """Name an adapter as the model, where a file names one.

    Args:
        draft: whose settings are translated.
        name: of the tool's setting that names adapters, several with commas between them.
        base: of the setting that names what they lie on.
        new: whether the tool puts a new one on top.

    Returns:
        Whether that adapter trains, so that nothing describes another one.
    """
    setting = draft.take(name)
    if setting is None:
        return False
    given = as_python(setting.given)
    found = given if isinstance(given, list) else str(given).split(",")
    named = [str(one).strip() for one in found if str(one).strip()]
    if len(named) != 1:
        draft.leave(
            setting,
            "a run begins with one adapter; make a model of all but the last with counterpoint "
            "merge, and name that in base_model_name_or_path of the last",
        )
        return False
    draft.add("model", Setting(name, Scalar(named[0], quoted=True), setting.where), f"was {name}")
    under = draft.take(base) or draft.take("model")
    if under is not None:
        draft.notes.append(
            f"model: {base}={as_python(under.given)} is not written, since an adapter names its "
            "own base, in base_model_name_or_path of adapter_config.json."
        )
    if new:
        draft.put("create_new_adapter", True, "merged into its base, as there")
        return False
    for other in [one for one in draft.rest if one.startswith(_PREFIXES) or one in _OWN]:
        if unused := draft.take(other):
            draft.leave(unused, "an adapter that is trained on keeps its own settings")
    return True
