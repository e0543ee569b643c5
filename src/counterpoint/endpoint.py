"""Asking a server that speaks OpenAI's protocol: many questions at once, an answer to each.

1. A question is answered or fails for good, and its asker is told which (``Reply``). The failure of
   one loses no other.
2. What may pass is asked again: 408, 409, 425, 429, 5xx, time limits, lost connections, half an
   answer. The wait doubles and is drawn from zero on (full jitter), or is what the server says.
3. What no wait mends ends everything at once, as CP529: nothing listens there, the key is not
   taken, the model is not known, the address leads elsewhere.
4. The key comes from an environment variable, and stands in no message and no file.

    def take(number: int, reply: Reply) -> None:
        ...  # as each is done, in any order

    Endpoint("http://127.0.0.1:8000/v1", "served-name").ask_all(
        [Question("2 + 2 ="), Question([{"role": "user", "content": "Hello"}], {"seed": 1})], take
    )

The client is httpx2, or httpx, whichever huggingface_hub has brought; proxies are found as it does.

Not here: reading answers (``replies``); what is asked, and what becomes of them.
"""

from __future__ import annotations

import asyncio
import importlib
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from counterpoint.errors import ConfigError, SetupError, kind_and_line
from counterpoint.invocation import EXTRAS, installing
from counterpoint.masking import keep_secrets
from counterpoint.replies import (
    Reply,
    ReplyKind,
    TryAgain,
    complaint_of,
    passed_on,
    reply_of,
    seconds_of,
)
from counterpoint.strict import strict_json

KEY_ENV = "OPENAI_API_KEY"
"""Names the variable that other clients read, too; without it no key is sent."""

RETRIED = frozenset((408, 409, 425, 429))
"""Beside all from 500 on."""

FIRST_WAIT, MOST_WAIT = 1.0, 60.0
"""Seconds: most of the first wait, and most of any, also of one that the server names."""

CONNECTING = 10.0
"""Most seconds until somebody takes the connection."""

MOST_BYTES = 64 * 2**20
"""Of an answer; nothing that is asked for here is as long."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Args:
        prompt: a text, which is continued as it stands (``/completions``), or messages, to which
            the server's own template is put (``/chat/completions``).
        settings: others of the request's fields, such as ``temperature``, ``max_tokens``, ``stop``.
    """

    prompt: str | Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A served model.

    Args:
        url: up to the version, as in ``http://127.0.0.1:8000/v1``.
        model: its name there.
        key_env: environment variable that holds the key.
        timeout: most seconds of one try, above 0.
        retries: further tries of a question, at least 0.
        concurrency: most questions that are open at once, at least 1.

    Raises:
        ConfigError: CP103 for what cannot be meant.
    """

    url: str
    model: str
    key_env: str = KEY_ENV
    timeout: float = 300.0
    retries: int = 5
    concurrency: int = 16

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        _check_address(self.url)
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise ConfigError(
                "CP103", f"timeout={self.timeout} should be a number of seconds, above 0."
            )
        for name, least in (("retries", 0), ("concurrency", 1)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(
                    "CP103", f"{name}={value} should be a whole number, at least {least}."
                )

    def ask_all(
        self, questions: Iterable[Question], take: Callable[[int, Reply], None]
    ) -> Counter[ReplyKind]:
        """Ask everything, ``concurrency`` questions at a time.

        Args:
            questions: taken one by one, as there is room for them.
            take: called with the question's number, from 0, and what came of it, as soon as that
                is known; never twice at once. An error that it raises ends everything.

        Returns:
            How many questions came to what.

        Raises:
            SetupError: CP529 where no question can be answered, CP502 without an HTTP client.
            ConfigError: CP107 without the key that ``key_env`` names, CP103 for one that is none.
        """
        work = self._ask_all(questions, take)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(work)
        # a notebook runs a loop of its own in this thread
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, work).result()

    async def _ask_all(
        self, questions: Iterable[Question], take: Callable[[int, Reply], None]
    ) -> Counter[ReplyKind]:
        counts: Counter[ReplyKind] = Counter()
        numbered = enumerate(questions)
        http, key = http_library(), self._key()
        client = http.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=http.Timeout(self.timeout, connect=min(CONNECTING, self.timeout)),
            limits=http.Limits(
                max_connections=self.concurrency, max_keepalive_connections=self.concurrency
            ),
            follow_redirects=False,  # a key belongs to one address
        )
        async with client:
            asking = _Asking(self, http, client)

            async def work() -> None:
                for number, question in numbered:  # whoever is free takes the next one
                    reply = await asking.reply_to(question)
                    counts[reply.kind] += 1
                    take(number, reply)

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self.concurrency):
                        group.create_task(work())
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        return counts

    def _key(self) -> str | None:
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            if self.key_env == KEY_ENV:
                return None  # servers of one's own ask for none
            raise ConfigError(
                "CP107",
                f"the environment variable {self.key_env}, which api_key_env names, is not set. "
                "Put the key into it.",
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                "CP103",
                f"api_key_env={self.key_env} should hold a key: one word of plain characters.",
            )
        keep_secrets({"api_key": key})
        return key


def http_library() -> Any:
    """httpx2, or httpx before it: their faces are the same.

    Raises:
        SetupError: CP502 where neither is installed.
    """
    for name in ("httpx2", "httpx"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise SetupError(
        "CP502", f"an endpoint needs the package httpx2: {installing(EXTRAS['endpoint'])}"
    )


class _Asking:
    """The questions of one call of ``ask_all``."""

    def __init__(self, endpoint: Endpoint, http: Any, client: Any) -> None:
        self._endpoint, self._http, self._client = endpoint, http, client
        self._chance = random.Random()  # not the one that training draws from
        self._heard = False

    async def reply_to(self, question: Question) -> Reply:
        tries = 0
        while True:
            got, tries = await self._try(question), tries + 1
            if isinstance(got, Reply):
                return replace(got, tries=tries)
            if tries > self._endpoint.retries:
                break
            await _sleep(self._wait(tries, got.after))
        if got.unheard:
            raise _useless(self._endpoint.url, f"does not answer any more: {got.reason}")
        return Reply(ReplyKind.FAILED, reason=got.reason, status=got.status, tries=tries)

    def _wait(self, tries: int, after: float | None) -> float:
        if after is not None:  # and a little more, or all would come back together
            return min(after, MOST_WAIT) + self._chance.uniform(0, FIRST_WAIT)
        return self._chance.uniform(0, min(MOST_WAIT, FIRST_WAIT * 2 ** (tries - 1)))

    async def _try(self, question: Question) -> Reply | TryAgain:
        http = self._http
        try:
            # the client's own limit begins anew with each byte
            async with asyncio.timeout(self._endpoint.timeout):
                status, headers, content = await self._post(question)
        except (http.ConnectError, http.ConnectTimeout) as error:
            if not self._heard:
                raise _useless(
                    self._endpoint.url, f"cannot be reached: {passed_on(kind_and_line(error))}"
                ) from error
            return TryAgain(passed_on(kind_and_line(error)), unheard=True)
        except (TimeoutError, http.TimeoutException):
            return TryAgain(f"no answer within {self._endpoint.timeout:g} seconds")
        except http.RequestError as error:
            return TryAgain(f"the connection was lost: {passed_on(kind_and_line(error))}")
        return self._judged(question, status, headers, content)

    async def _post(self, question: Question) -> tuple[int, Mapping[str, str], bytes]:
        is_text = isinstance(question.prompt, str)
        path = "completions" if is_text else "chat/completions"
        asked = {"prompt" if is_text else "messages": question.prompt}
        body = {"model": self._endpoint.model, **asked, **question.settings}
        async with self._client.stream(
            "POST",
            f"{self._endpoint.url.rstrip('/')}/{path}",
            content=strict_json(body).encode(),  # half a character is escaped, where UTF-8 has none
            headers={"Content-Type": "application/json"},
        ) as response:
            self._heard = True
            content = bytearray()
            async for part in response.aiter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    break  # it is no answer, and is judged as what it is
            return response.status_code, response.headers, bytes(content)

    def _judged(
        self, question: Question, status: int, headers: Mapping[str, str], content: bytes
    ) -> Reply | TryAgain:
        if status in RETRIED or status >= 500:
            after = seconds_of(headers.get("retry-after"))
            return TryAgain(f"{status} {complaint_of(content)}".strip(), status, after)
        complaint = complaint_of(content) or str(status)
        if status == 401:
            raise _useless(
                self._endpoint.url,
                f"does not take the key of {self._endpoint.key_env}: {complaint}",
            )
        if status == 404:
            raise _useless(
                self._endpoint.url,
                f"has no model {self._endpoint.model}, or speaks another protocol: {complaint}",
            )
        if 300 <= status < 400:
            raise _useless(
                self._endpoint.url, f"leads to {passed_on(headers.get('location', 'nowhere'))}"
            )
        if status != 200:
            return Reply(
                ReplyKind.FAILED, reason=f"{status} {complaint_of(content)}".strip(), status=status
            )
        return reply_of(content, isinstance(question.prompt, str))


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


def _useless(url: str, what: str) -> SetupError:
    return SetupError(
        "CP529",
        f"{url} {what}. See that the server is up and serves that model by that name under that "
        "address; then the same command resumes.",
    )


def _check_address(url: str) -> None:
    """Refuse what is no base URL, without repeating what may be a password."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        beside = "@" in parts.netloc or bool(parts.query or parts.fragment)
    except ValueError:
        usable, beside = False, "@" in url
    if beside:
        raise ConfigError(
            "CP103",
            "endpoint should be an address alone, without user, password, ? or #: a key belongs in "
            "the environment variable that api_key_env names.",
        )
    if not usable:
        raise ConfigError(
            "CP103", f"endpoint={url} should be as in http://127.0.0.1:8000/v1, with its http://."
        )
