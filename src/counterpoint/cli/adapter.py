"""The adapter that the command's LoRA options describe.

Not here: wrapping a model with it (``models.preparing``).
"""

from __future__ import annotations

from typing import Any

from counterpoint.errors import SetupError
from counterpoint.invocation import EXTRAS, installing
from counterpoint.options.run_options import RunOptions


def adapter_config(run: RunOptions) -> Any:
    """The ``peft.LoraConfig`` that the options describe, or None without ``lora_r``.

    Raises:
        SetupError: CP502 where peft is not installed.
    """
    if run.lora_r is None:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise SetupError(
            "CP502", f"lora_r needs the package peft: {installing(EXTRAS['peft'])}"
        ) from error
    targets = run.lora_target_modules or ["all-linear"]
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=run.lora_r,
        lora_alpha=run.lora_alpha or 2 * run.lora_r,
        lora_dropout=run.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        modules_to_save=run.lora_modules_to_save,
        use_rslora=run.use_rslora,
        use_dora=run.use_dora,
    )
