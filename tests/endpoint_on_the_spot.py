"""A server that speaks OpenAI's protocol as a test has it speak, on the loopback address."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What the server answers.

    Args:
        body: JSON, or bytes as they are.
        status: of HTTP; 0 hangs up without a word.
        headers: beside the usual ones.
        cut: bytes of the body that are sent before it hangs up; None: all.
    """

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None


def said(text: str | None, finish: str = "stop", **message: Any) -> Answer:
    """A completion, fit for texts and for messages alike."""
    choice = {"message": {"content": text, **message}, "text": text, "finish_reason": finish}
    usage = {"completion_tokens": len((text or "").split())}
    return Answer({"model": "served", "choices": [choice], "usage": usage})


class Served:
    """A server that is up.

    Args:
        script: of a path and a body, and how often this very body was seen before.
    """

    def __init__(self, script: Callable[[str, dict[str, Any], int], Answer]) -> None:
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.open = self.most_open = 0
        self.over = threading.Event()
        self._script, self._lock = script, threading.Lock()
        self._seen: dict[str, int] = {}
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                served._take(self)

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # many come at once
            block_on_close = False

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def hang(self) -> Answer:
        """Answers nobody, until the test is over."""
        self.over.wait(30)
        return Answer(status=0)

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        content = handler.rfile.read(int(handler.headers["Content-Length"]))
        body = json.loads(content)
        with self._lock:
            self.asked.append((handler.path, body, dict(handler.headers)))
            key = content.decode()
            seen = self._seen.get(key, 0)
            self._seen[key] = seen + 1
            self.open += 1
            self.most_open = max(self.open, self.most_open)
        try:
            self._send(handler, self._script(handler.path, body, seen))
        except OSError:  # who asked has hung up
            handler.close_connection = True

    def _send(self, handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        with self._lock:  # before a byte is sent, or who is answered might ask again sooner
            self.open -= 1
        if not answer.status:
            handler.close_connection = True
            return
        whole = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        handler.send_response(answer.status)
        handler.send_header("Content-Length", str(len(whole)))
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(whole if answer.cut is None else whole[: answer.cut])
        handler.close_connection = handler.close_connection or answer.cut is not None


@contextmanager
def serving(script: Callable[[str, dict[str, Any], int], Answer]) -> Iterator[Served]:
    """A server, up while this is open."""
    server = Served(script)
    try:
        yield server
    finally:
        server.close()
