"""An alarm where people look: in the log, and as an alert of the trackers that have such.

trackio shows alerts on a page of its own and sends them to its webhook; wandb sends them to Slack
or by e-mail, as its user has set it. A tracker that fails never ends a run.

Not here: log lines, which transformers hands to trackers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from counterpoint.alarms.effect import in_words
from counterpoint.doctor.table import TABLE, severity_of
from counterpoint.errors import kind_and_line
from counterpoint.log import logger
from counterpoint.masking import masked
from counterpoint.runlog import Alarm


def say_alarm(alarm: Alarm, trackers: Collection[str]) -> None:
    """Say an alarm; to be called by one rank.

    Args:
        alarm: its code is in the doctor's table.
        trackers: names of ``report_to``; those that are not loaded or have no alerts hear nothing.
    """
    text = in_words(alarm)
    logger().warning("%s", text)
    title, level = masked(f"{alarm.code}: {TABLE[alarm.code].title}"), _level(alarm)
    for name in trackers:
        module = sys.modules.get(name)  # transformers has loaded it, or it keeps no run
        if name not in _ALERTS or module is None:
            continue
        try:
            _ALERTS[name](module, title, masked(text), level)
        except Exception as error:  # whatever a tracker or its network does
            logger().warning(
                "%s did not take the alert of %s: %s", name, alarm.code, kind_and_line(error)
            )


def _level(alarm: Alarm) -> str:
    return "INFO" if severity_of(alarm.code) == "note" else "WARN"


def _to_trackio(module: Any, title: str, text: str, level: str) -> None:
    if hasattr(module, "alert"):  # older ones have none
        module.alert(title=title, text=text, level=getattr(module.AlertLevel, level))


def _to_wandb(module: Any, title: str, text: str, level: str) -> None:
    if module.run is not None:
        # no waiting: an alarm is raised once an episode already
        module.run.alert(
            title=title, text=text, level=getattr(module.AlertLevel, level), wait_duration=0
        )


_ALERTS: Mapping[str, Callable[[Any, str, str, str], None]] = MappingProxyType(
    {"trackio": _to_trackio, "wandb": _to_wandb}
)
