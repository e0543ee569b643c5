"""Pictures behind an address: fetched once, within limits, and from no machine of one's own.

1. Only http and https, without a password, and only from addresses that are public: a row must not
   make a run ask the network that it stands in. A name is looked up once, and what it was found to
   be is what is connected to; each redirection is looked at likewise.
2. Size, time and redirections are bounded. Proxies of the environment are not used.
3. What was fetched is a file named by its address. It is never fetched again while it is there.

Not here: whether any of this is allowed (``pictures``).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import os
import socket
import ssl
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

from counterpoint.data.cells import fail

MOST_FETCHED = 2**25
"""Bytes of a picture that is fetched: 32 MiB."""

MOST_SECONDS, MOST_SILENCE = 60.0, 15.0
"""Seconds for one picture, and seconds without a byte."""

MOST_REDIRECTIONS = 3

AT_ONCE = 2**16
"""Bytes that are read at once."""

MOVED = (301, 302, 303, 307, 308)


def kept_at(address: str, downloads: str) -> str:
    """The file in which the picture of an address is kept.

    Args:
        address: as the row has it.
        downloads: the folder of all of them.
    """
    return str(Path(downloads) / hashlib.sha256(address.encode()).hexdigest())


def fetched(address: str, downloads: str, row: int, field: str) -> str:
    """The file of an address, fetched unless it is there.

    Args:
        address: of http or https.
        downloads: the folder of all of them; made where it is missing.
        row: for errors.
        field: for errors.

    Raises:
        DataError: CP229 for an address that may not be asked; CP230 for one that has no such
            picture; CP231 for one that is too large; CP222 where the network fails.
    """
    path = kept_at(address, downloads)
    if os.path.isfile(path):
        return path
    os.makedirs(downloads, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=downloads) as scratch:
        part = Path(scratch) / "part"
        try:
            with part.open("wb") as file:
                for piece in _pieces(address, row, field):
                    file.write(piece)
        except (OSError, http.client.HTTPException) as error:
            said = f"{type(error).__name__}: {error}"
            fail("CP222", row, field, f"{address[:200]!r} could not be fetched: {said}. Try again.")
        os.replace(part, path)
    return path


def _pieces(address: str, row: int, field: str) -> Iterator[bytes]:
    end = time.monotonic() + MOST_SECONDS
    for _ in range(MOST_REDIRECTIONS + 1):
        url = _checked(address, row, field)
        with contextlib.closing(_connected(url, row, field)) as connection:
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            headers = {"Accept": "image/*", "User-Agent": "counterpoint"}
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            if answer.status in MOVED:
                address = urljoin(address, answer.headers.get("Location", ""))
                continue
            if answer.status != 200:
                code = "CP222" if answer.status in (408, 429) or answer.status >= 500 else "CP230"
                text = f"the server says {answer.status} of {address[:200]!r}. Remove the row."
                fail(code, row, field, text)
            yield from _read_within(answer, end, row, field)
            return
    fail("CP229", row, field, f"leads through more than {MOST_REDIRECTIONS} addresses.")


def _read_within(
    answer: http.client.HTTPResponse, end: float, row: int, field: str
) -> Iterator[bytes]:
    size = 0
    while piece := answer.read1(AT_ONCE):
        size += len(piece)
        if size > MOST_FETCHED:
            text = f"is a picture of more than {MOST_FETCHED:,} bytes behind an address. Copy it."
            fail("CP231", row, field, text)
        if time.monotonic() > end:
            msg = f"not whole after {MOST_SECONDS:g} seconds"
            raise TimeoutError(msg)
        yield piece


def _checked(address: str, row: int, field: str) -> SplitResult:
    try:
        url = urlsplit(address)
        port = url.port
    except ValueError as error:
        fail("CP229", row, field, f"{address[:200]!r} is no address: {error}.")
    if url.scheme not in ("http", "https") or not url.hostname or port == 0:
        fail("CP229", row, field, f"{address[:200]!r} is no address of http or https.")
    if url.username is not None or any(ord(each) <= 32 for each in address):
        fail("CP229", row, field, "is an address with a password or a blank in it.")
    return url


def _connected(url: SplitResult, row: int, field: str) -> http.client.HTTPConnection:
    """A connection to what the name was found to be, not to what it is called a moment later."""
    host = str(url.hostname)
    port = url.port or (443 if url.scheme == "https" else 80)
    found = [str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for each in found:
        if not is_public(each):
            fail(
                "CP229",
                row,
                field,
                f"is an address of this machine or of its own network ({host}, {each}), which no "
                "row may ask. Copy the picture into the folder of the data.",
            )
    plain = http.client.HTTPConnection(host, port, timeout=MOST_SILENCE)
    sock = socket.create_connection((found[0], port), timeout=MOST_SILENCE)
    if url.scheme == "https":
        try:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        except OSError:
            sock.close()
            raise
    plain.sock = sock
    return plain


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public network.

    Args:
        address: of version 4 or 6.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(found, "ipv4_mapped", None) or found
    return inner.is_global and not inner.is_multicast
