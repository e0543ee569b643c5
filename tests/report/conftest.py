"""A browser for the pages, and runs to make them of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from counterpoint.runlog import Alarm
from tests.report.runs import write_run

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

ALARMS = (
    Alarm(
        "CW101",
        step=610,
        since=540,
        seen="the chosen log-probability fell from -0.92 to -1.31 while the margin rose",
        fix="cpo_alpha: 0.2",
    ),
    Alarm("CW101", step=820, since=800, seen="again"),
    Alarm("CW202", step=1000, since=1000, seen="gradient norm 43.1, 14 times its median"),
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium of the system."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        # sandboxes need rights that containers do not give; the pages are our own
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 steps with everything a run can write, three alarms among it."""
    return write_run(tmp_path_factory.mktemp("runs") / "first", alarms=ALARMS)
