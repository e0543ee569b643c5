"""A page that follows a run while it goes on, served to this machine alone.

Two addresses are answered, the page and its news; no path reaches the disk. A request must name
this server as its host, so that no page of another site can read a run by a name that it points
here (DNS rebinding).

Not here: what the page says (``run_report``).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from counterpoint.errors import CounterpointError, SetupError
from counterpoint.report.drawing import check_bokeh
from counterpoint.report.page import LIVE
from counterpoint.report.run_report import live_report, news
from counterpoint.report.story import QUIET
from counterpoint.runlog import RUN_FILE, STREAMS, read_run, stream_file

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
"""What a request may call this server."""


class Watched:
    """A run and what was last made of it; read again only when one of its files has changed.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._made: dict[tuple[str, str], bytes] = {}

    def version(self) -> str:
        """A word for what is on the disk: it changes with every line that is written."""
        files = [self.folder / RUN_FILE, *(stream_file(self.folder, one) for one in STREAMS)]
        known = []
        for path in files:
            try:
                found = path.stat()
            except OSError:
                known.append((0, 0))
            else:
                known.append((found.st_mtime_ns, found.st_size))
        # a run that falls silent is a change, too, and the longer it is the more
        silent = (time.time() - max(changed for changed, _ in known) / 1e9) // QUIET
        return hashlib.sha256(repr((known, silent)).encode()).hexdigest()[:16]

    def page(self) -> bytes:
        """The page of the run as it stands.

        Raises:
            SetupError: CP507 where the run cannot be read.
        """
        return self._make("page", live_report)

    def news(self) -> bytes:
        """What a page that was sent before needs to catch up, as JSON.

        Raises:
            SetupError: CP507 where the run cannot be read.
        """
        return self._make("news", news)

    def _make(self, kind: str, make: Callable[..., str]) -> bytes:
        with self._lock:
            version = self.version()
            if (kind, version) not in self._made:
                self._made = {key: made for key, made in self._made.items() if key[1] == version}
                self._made[kind, version] = make(read_run(self.folder), version).encode()
            return self._made[kind, version]


class _Handler(BaseHTTPRequestHandler):
    """Answers for the page and its news, to those who know where they ask."""

    server: _Server
    server_version = "counterpoint"
    sys_version = ""

    def do_GET(self) -> None:
        """The page, its news, or a refusal."""
        if self.headers.get("Host") not in self.server.hosts:
            self._send(HTTPStatus.FORBIDDEN, b"this server has another name\n")
            return
        path = urlsplit(self.path).path
        if path not in ("/", f"/{LIVE}"):
            self._send(HTTPStatus.NOT_FOUND, b"there is only one page here\n")
            return
        watched = self.server.watched
        tag = f'"{watched.version()}"'
        if path != "/" and self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED)
            return
        try:
            page = path == "/"
            body = watched.page() if page else watched.news()
        except CounterpointError as error:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode())
            return
        kind = "text/html" if page else "application/json"
        self._send(HTTPStatus.OK, body, kind, ETag=tag)

    def _send(
        self, status: HTTPStatus, body: bytes = b"", kind: str = "text/plain", **headers: str
    ) -> None:
        self.send_response(status)
        headers |= {
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        if status != HTTPStatus.NOT_MODIFIED:
            headers |= {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Say nothing of each request."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, watched: Watched, look: Callable[[], None]) -> None:
        super().__init__((HOST, port), _Handler)
        self.watched = watched
        self.service_actions = look  # type: ignore[method-assign]
        self.hosts = frozenset(f"{name}:{self.server_address[1]}" for name in NAMES)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is no error."""


def server_of(
    folder: Path, port: int, look: Callable[[], None] = lambda: None
) -> tuple[ThreadingHTTPServer, str]:
    """A server for a run, listening but not answering yet; and its address.

    Args:
        folder: the run directory.
        port: to listen on; 0 takes any that is free.
        look: called twice a second while it answers.

    Raises:
        SetupError: CP502 where Bokeh is not installed, CP507 where there is no run, CP508 where
            the port cannot be listened on.
    """
    check_bokeh()
    read_run(folder)
    try:
        server = _Server(port, Watched(folder), look)
    except OSError as error:
        raise SetupError(
            "CP508",
            f"port {port} cannot be listened on: {error.strerror or error}. Choose another with "
            "--port, or --port 0 for any that is free.",
        ) from error
    return server, f"http://{HOST}:{server.server_address[1]}/"
