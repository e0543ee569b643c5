"""A hub that does not answer costs a question, not half a minute; its cache is used."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import datasets
import huggingface_hub
import pytest

from counterpoint.cli.hub import hub_or_cache
from counterpoint.errors import ModelError

HUB = huggingface_hub.constants


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HUB, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub on a port where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    monkeypatch.setattr(HUB, "ENDPOINT", f"http://127.0.0.1:{port}")


@pytest.fixture
def refusing_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that answers every question with 403."""

    class Refuse(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            """Nothing on the screen."""

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    thread = Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(HUB, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("silent_hub")
def test_a_silent_hub_is_left_out_while_loading_and_this_is_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("counterpoint"), "propagate", True)
    with hub_or_cache(["some/model"]):
        assert (HUB.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (True, True)
    assert (HUB.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (False, False)
    assert f"{HUB.ENDPOINT} does not answer" in caplog.text


@pytest.mark.usefixtures("silent_hub")
def test_what_fails_for_want_of_the_hub_is_said_once_by_its_own_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ModelError), hub_or_cache(["some/model"]):
        raise ModelError("CP301", "not in the cache")
    assert not HUB.HF_HUB_OFFLINE
    assert caplog.text == ""


@pytest.mark.usefixtures("refusing_hub")
def test_a_hub_that_answers_anything_is_used() -> None:
    with hub_or_cache(["some/model"]):
        assert not HUB.HF_HUB_OFFLINE


@pytest.mark.parametrize("name", ["pairs.jsonl", "./gone", "/gone", "."])
def test_what_lies_here_asks_no_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: asked.append(name))
    with hub_or_cache([name]):
        assert not HUB.HF_HUB_OFFLINE
    assert asked == []
