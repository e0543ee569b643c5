"""The server of a run answers this machine, for two addresses, under its own name only."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("bokeh", reason="the extra [report] is not installed")

from counterpoint.errors import SetupError
from counterpoint.report.watching import Watched, server_of
from counterpoint.runlog import METRICS, RUN_FILE, RunLog
from tests.report.runs import write_run

Ask = Callable[..., http.client.HTTPResponse]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", steps=40, looks=0, samples=False, ended={})


@pytest.fixture
def port(folder: Path) -> Iterator[int]:
    """A server of ``folder`` that answers."""
    server, _ = server_of(folder, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def ask(port: int) -> Iterator[Ask]:
    """Ask the server of ``folder`` for a path."""
    connections = []

    def call(path: str, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connections.append(connection)
        connection.request(method, path, headers=headers)
        return connection.getresponse()

    yield call
    for connection in connections:
        connection.close()


def test_the_page_follows_its_run_and_news_come_only_when_there_are_some(
    ask: Ask, folder: Path
) -> None:
    page = ask("/").read().decode()
    assert "connect-src &#x27;self&#x27;" in page
    assert 'id="live"' in page
    first = ask("/live.json")
    tag = str(first.getheader("ETag"))
    assert json.loads(first.read())["version"] == tag.strip('"')
    assert ask("/live.json", **{"If-None-Match": tag}).status == 304
    RunLog(folder).append(METRICS, {"step": 50, "loss": 0.25})
    second = ask("/live.json", **{"If-None-Match": tag})
    assert second.status == 200
    news = json.loads(second.read())
    assert news["sources"]["loss/training/loss"]["y"][-1] == 0.25
    assert "at step 50" in news["state"]


@pytest.mark.parametrize(
    "path",
    [
        "/run.json",
        "/../run.json",
        "/%2e%2e/run.json",
        "//etc/passwd",
        "/report.html",
        "/live.json/../run.json",
    ],
)
def test_no_path_reaches_the_disk(ask: Ask, path: str) -> None:
    answer = ask(path)
    assert answer.status == 404
    assert b"objective" not in answer.read()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "localhost:1"])
def test_a_request_under_another_name_is_refused(ask: Ask, host: str) -> None:
    assert ask("/", Host=host).status == 403


def test_it_answers_to_localhost_too(ask: Ask, port: int) -> None:
    assert ask("/", Host=f"localhost:{port}").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed(ask: Ask, method: str) -> None:
    assert ask("/", method).status == 501


def test_it_listens_on_this_machine_alone(folder: Path) -> None:
    server, address = server_of(folder, 0)
    with server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        assert address == f"http://127.0.0.1:{server.server_address[1]}/"


def test_a_run_that_goes_away_is_a_refusal_until_it_is_back(ask: Ask, folder: Path) -> None:
    (folder / RUN_FILE).rename(folder / "aside")
    answer = ask("/live.json")
    assert (answer.status, answer.read()[:6]) == (503, b"CP507 ")
    (folder / "aside").rename(folder / RUN_FILE)
    assert ask("/live.json").status == 200


def test_nothing_is_read_again_while_nothing_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(folder)
    page = watched.page()
    monkeypatch.setattr("counterpoint.report.watching.read_run", None)
    assert watched.page() is page


def test_a_port_that_is_taken_is_a_coded_error(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(SetupError, match=rf"^CP508 port {number} cannot be listened on"):
            server_of(folder, number)


def test_a_folder_without_a_run_is_a_coded_error(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"^CP507 "):
        server_of(tmp_path, 0)


@pytest.mark.skipif(os.name == "nt", reason="signals are another thing there")
def test_ctrl_c_ends_it_and_is_no_failure(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "counterpoint", "watch", str(folder), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # who runs tests in the background of a shell ignores Ctrl-C, and so would the child
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stdout
        said = process.stdout.readline()
        assert f"{folder} at http://127.0.0.1:" in said
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out, err) == (0, "ended\n", "")
