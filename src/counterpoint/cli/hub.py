"""Whether the hub answers: asked once, before its client would wait for it.

Without a network that client tries each name six times with growing pauses, 25 seconds in all,
also where its cache holds everything that is needed.

Not here: what is loaded from the hub (``models.loading``, ``data.sources``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import huggingface_hub

from counterpoint.console.phases import phase
from counterpoint.data.files import kind_of
from counterpoint.data.sources import HUB_ID
from counterpoint.log import logger


@contextmanager
def hub_or_cache(names: Iterable[str]) -> Iterator[None]:
    """Where the hub does not answer, take what its cache holds, and say so.

    Args:
        names: of models and data sets; the hub is asked only if one of them may be there.
    """
    hub = huggingface_hub.constants
    wanted = not hub.HF_HUB_OFFLINE and any(map(_may_be_on_the_hub, names))
    silence = _silence() if wanted else None
    if silence is None:
        yield
        return
    before = hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
    logger().warning(
        "%s does not answer (%s): loaded what its cache holds, which may be old",
        hub.ENDPOINT,
        silence,
    )


def _may_be_on_the_hub(name: str) -> bool:
    path = Path(name).expanduser()
    return HUB_ID.match(name) is not None and kind_of(path) is None and not path.exists()


def _silence() -> str | None:
    """Why the hub does not answer; None: it does, if only to refuse."""
    hub = huggingface_hub.constants
    try:
        with phase(f"asking {hub.ENDPOINT}"):
            huggingface_hub.get_session().head(hub.ENDPOINT, timeout=hub.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # of whichever HTTP client the hub's is built on
        return str(error) or type(error).__name__
    return None
