"""Fixtures for every test: tokenizers and models built on the spot, and the real data."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import sys
from itertools import count
from pathlib import Path

import pytest
import torch

with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401 - refuses to be imported after the distutils that it replaces
from hypothesis import HealthCheck, settings

# The gate tries the same examples in every run, so that it tells of a change and not of chance;
# make torture tries others each time. Time limits would fail on a busy machine.
settings.register_profile(
    "here",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not os.environ.get("COUNTERPOINT_TORTURE"),
)
settings.load_profile("here")

pytest_plugins = ["tests.tokenizers_on_the_spot", "tests.models_on_the_spot"]


# What the command prints depends on how it can be called; here as in an activated environment,
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

# nor on what whoever runs the tests has set: CI says COLUMNS=80, which counts before a terminal
_ASKED = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "COUNTERPOINT_DEBUG", "RANK", "WORLD_SIZE")
for _name in _ASKED:
    os.environ.pop(_name, None)

# models this small lose more to the hand-over between threads than they gain
torch.set_num_threads(1)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Set the imported libraries aside: every run collects garbage, and need not scan them."""
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real preference data, which is not part of the repository."""
    beside = Path(__file__).parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("COUNTERPOINT_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set COUNTERPOINT_DATA to its folder")
    return folder


@pytest.fixture(autouse=True)
def _no_phase_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test sees does not depend on how busy the machine is; those of phases set it."""
    monkeypatch.setattr("counterpoint.console.phases.AFTER", math.inf)
    # whatever a trainer has set
    monkeypatch.setattr("counterpoint.console.phases._teller.bars", True)


@pytest.fixture(autouse=True)
def _no_disk_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it wrote; only a power cut would, and none is tested.

    Tests of what is flushed, and in which order, put their own in its place.
    """
    monkeypatch.setattr("os.fsync", lambda handle: None)


_caches = count()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared data sets of tests never meet those of a user, nor each other's."""
    # not mktemp: few tests prepare a set, and a folder for each of thousands takes its time
    own = tmp_path_factory.getbasetemp() / f"cache-{next(_caches)}"
    monkeypatch.setenv("COUNTERPOINT_CACHE", str(own))
