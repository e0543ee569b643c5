"""Trackers that ``report_to`` names: whether they are there, and what they call the run.

transformers itself hands each log line on to them.

Not here: what a log line holds (``trainer``, ``metrics``).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from types import MappingProxyType

from counterpoint.config import CPOConfig
from counterpoint.errors import ConfigError, SetupError
from counterpoint.invocation import installing
from counterpoint.masking import masked

NAMES = ("run_name", "project")
"""Options that trackers are told as they are, beside ``to_dict``."""

TRACKERS: Mapping[str, tuple[tuple[str, ...], str]] = MappingProxyType(
    {
        "azure_ml": (("azureml",), "azureml-sdk"),
        "clearml": (("clearml",), "clearml"),
        "codecarbon": (("codecarbon",), "codecarbon"),
        "comet_ml": (("comet_ml",), "comet-ml"),
        "dagshub": (("dagshub",), "dagshub"),
        "dvclive": (("dvclive",), "dvclive"),
        "flyte": (("flytekit",), "flytekit"),
        "mlflow": (("mlflow",), "mlflow"),
        "neptune": (("neptune",), "neptune"),
        "swanlab": (("swanlab",), "swanlab"),
        "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
        "trackio": (("trackio",), "trackio"),
        "wandb": (("wandb",), "wandb"),
    }
)
"""Name in ``report_to`` -> modules of which one is needed, and the package that brings it."""


def check_trackers(args: CPOConfig) -> None:
    """Refuse a tracker that does not exist or is not installed.

    Args:
        args: ``report_to`` is used, as transformers has resolved it.

    Raises:
        ConfigError: CP102 for a name that is no tracker of the transformers installed.
        SetupError: CP502 for one whose package is missing.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in args.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ConfigError("CP102", f"report_to={name!r} is not one of {known}, all, none.")
        modules, package = TRACKERS.get(name, ((), ""))
        if modules and not any(find_spec(module) for module in modules):
            raise SetupError(
                "CP502",
                f"report_to={name} needs the package {modules[0]}, which is not installed: "
                + installing(package),
            )


def hide_secrets(args: CPOConfig) -> None:
    """Take secrets out of the names under which trackers keep a run.

    Args:
        args: whose ``NAMES`` are replaced where they hold one.
    """
    for name in NAMES:
        given = getattr(args, name, None)
        if isinstance(given, str):
            setattr(args, name, masked(given))
