"""Pictures behind addresses: fetched once, where allowed, and never from one's own network."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from counterpoint.data import remote
from counterpoint.data.formats import to_preference_row
from counterpoint.data.pictures import PictureRules
from counterpoint.errors import DataError
from counterpoint.preference_row import PreferenceRow
from tests.pictures_on_the_spot import drawn, packed


class Server(ThreadingHTTPServer):
    """Counts what it is asked."""

    daemon_threads = True
    asked: list[str]


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        port = self.server.server_address[1]
        name = self.path.partition("?")[0].strip("/")
        if name in MOVED:
            self.send_response(302)
            self.send_header("Location", MOVED[name].format(port=port))
            self.end_headers()
            return
        if name == "gone":
            self.send_error(404)
            return
        self.send_response(503 if name == "busy" else 200)
        self.end_headers()
        if name == "endless":
            while True:
                try:
                    self.wfile.write(bytes(2**16))
                    time.sleep(0.001)
                except OSError:
                    return
        self.wfile.write(packed(drawn(5, 4)))

    def log_message(self, *args: object) -> None:
        """Say nothing."""


MOVED = {
    "moved": "/there",
    "inward": "http://127.0.0.2:{port}/there",
    "metadata": "http://169.254.169.254/latest",
    "file": "file:///etc/hostname",
    "circle": "/circle",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on this machine, of whose addresses one is taken for public."""
    real = remote.is_public
    monkeypatch.setattr(remote, "is_public", lambda ip: ip == "127.0.0.1" or real(ip))
    found = Server(("127.0.0.1", 0), Answer)
    found.asked = []
    threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def read(address: str, downloads: Path, **rules: bool) -> PreferenceRow:
    row = {"prompt": "What?", "chosen": "a", "rejected": "b", "images": [address]}
    return to_preference_row(row, 3, PictureRules(downloads=str(downloads), **rules))


def at(server: Server, name: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{name}"


def test_nothing_is_fetched_unless_it_is_allowed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^CP229 row 3, field images\[0\]: .*nothing is fetched"):
        read(at(server, "a"), tmp_path)
    assert server.asked == []


def test_an_address_is_asked_once_and_a_redirection_followed(
    server: Server, tmp_path: Path
) -> None:
    for _ in range(2):
        row = read(at(server, "moved?x=1"), tmp_path, allow_remote=True)
        assert row.pictures[0].load().tobytes() == drawn(5, 4).tobytes()
    assert server.asked == ["/moved?x=1", "/there"]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("inward", "CP229", "own network"),
        ("metadata", "CP229", "own network"),
        ("file", "CP229", "no address of http"),
        ("circle", "CP229", "more than 3 addresses"),
        ("gone", "CP230", "says 404"),
        ("busy", "CP222", "says 503"),
        ("endless", "CP231", "more than 1,000,000 bytes"),
    ],
)
def test_what_may_not_be_fetched_is_refused_and_leaves_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name, code, said
) -> None:
    monkeypatch.setattr(remote, "MOST_FETCHED", 1_000_000)
    with pytest.raises(DataError, match=rf"^{code} row 3, field images\[0\]: .*{said}"):
        read(at(server, name), tmp_path, allow_remote=True)
    assert list(tmp_path.iterdir()) == []


def test_a_slow_answer_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MOST_SECONDS", 0.05)
    with pytest.raises(DataError, match=r"^CP222 row 3.*not whole after 0.05 seconds"):
        read(at(server, "endless"), tmp_path, allow_remote=True)


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1/a.png",
        "http://localhost:1/a.png",
        "https://[::1]/a.png",
        "http://[::ffff:127.0.0.1]/a.png",
        "http://10.0.0.1/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://0.0.0.0/a.png",
        "http://user:word@127.0.0.1/a.png",
        "http://127.1/a.png",
        "http:///a.png",
    ],
)
def test_no_row_makes_a_run_ask_its_own_network(tmp_path: Path, address: str) -> None:
    with pytest.raises(DataError, match=r"^CP229 row 3, field images\[0\]: "):
        read(address, tmp_path, allow_remote=True)
    assert remote.is_public("93.184.215.14")
    assert not remote.is_public("224.0.0.1")
