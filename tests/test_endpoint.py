"""A served model: what may pass is asked again, and each question has its answer or its reason."""

from __future__ import annotations

import asyncio
import email.utils
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import counterpoint.endpoint as module
from counterpoint.endpoint import Endpoint, Question
from counterpoint.errors import ConfigError, SetupError
from counterpoint.replies import Reply, ReplyKind
from tests.endpoint_on_the_spot import Answer, Served, said, serving

KEY = "sk-a-key-that-nobody-may-read-4711"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been waited; no proxy and no key of whoever runs the tests."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(module, "_sleep", sleep)
    return found


def ask(url: str, *prompts: Any, **how: Any) -> list[Reply]:
    """The reply to each, each taken exactly once."""
    found: dict[int, Reply] = {}

    def take(number: int, reply: Reply) -> None:
        assert number not in found
        found[number] = reply

    counts = Endpoint(url, "served", **how).ask_all([Question(one) for one in prompts], take)
    assert sorted(found) == list(range(len(prompts)))
    assert sum(counts.values()) == len(prompts)
    return [found[number] for number in sorted(found)]


def answers(*in_turn: Answer) -> Any:
    """A script that answers the first try with the first, and so on; the last one stays."""
    return lambda path, body, seen: in_turn[min(seen, len(in_turn) - 1)]


FAULTS: dict[str, Answer] = {
    "408": Answer({"error": {"message": "slow"}}, 408),
    "409": Answer({}, 409),
    "429": Answer({"error": {"message": "busy"}}, 429),
    "500": Answer(b"<html>oops</html>", 500),
    "503": Answer(b"", 503),
    "599": Answer(b"", 599),
    "hung up": Answer(status=0),
    "cut short": Answer({"choices": [{"message": {"content": "half"}}]}, cut=20),
    "half a JSON": Answer(b'{"choices": [{"message": {"content": "ha'),
    "no JSON": Answer(b"Bad gateway"),
    "no choices": Answer({"choices": []}),
    "an error of 200": Answer({"error": {"message": "worker died"}}),
    "a list": Answer([1, 2]),
    "null": Answer(None),
    "not text": Answer(b"\xff\xfe"),
    "wrong encoding": Answer(b"no gzip", headers={"Content-Encoding": "gzip"}),
    "aborted": said("half a te", "abort"),
}


def of(body: dict[str, Any]) -> str:
    """What was asked, as a text or as a user's turn."""
    return str(body["prompt"] if "prompt" in body else body["messages"][0]["content"])


@pytest.mark.parametrize("is_text", [True, False])
def test_what_may_pass_is_asked_again_and_then_answered(is_text, waits):
    def script(path: str, body: dict[str, Any], seen: int) -> Answer:
        assert path == f"/v1/{'completions' if is_text else 'chat/completions'}"
        return FAULTS[of(body)] if seen < 2 else said(of(body))

    with serving(script) as server:
        asked = [one if is_text else [{"role": "user", "content": one}] for one in FAULTS]
        replies = ask(server.url, *asked, retries=2)
    for fault, reply in zip(FAULTS, replies, strict=True):
        assert (reply.kind, reply.text, reply.tries) == (ReplyKind.TEXT, fault, 3), reply
        assert (reply.finish, reply.ended, reply.model) == ("stop", True, "served")
        assert reply.tokens == len(fault.split())
    assert len(waits) == 2 * len(FAULTS)


def test_what_does_not_pass_is_a_failure_that_loses_no_other():
    def script(path: str, body: dict[str, Any], seen: int) -> Answer:
        return FAULTS.get(of(body), said("fine"))

    prompts = [one for fault in FAULTS for one in (fault, f"beside {fault}")]
    with serving(script) as server:
        replies = ask(server.url, *prompts, retries=2)
        tries = Counter(of(body) for _, body, _ in server.asked)
    for prompt, reply in zip(prompts, replies, strict=True):
        if prompt in FAULTS:
            assert (reply.kind, reply.text, reply.tries) == (ReplyKind.FAILED, "", 3), prompt
            assert reply.reason
        else:
            assert (reply.kind, reply.text) == (ReplyKind.TEXT, "fine")
        assert tries[prompt] == reply.tries


def test_a_try_that_takes_too_long_is_asked_again():
    with serving(lambda path, body, seen: server.hang() if not seen else said("late")) as server:
        [reply] = ask(server.url, "x", timeout=0.5, retries=9)  # a loaded machine may need more
        assert reply.text == "late"
        assert reply.tries >= 2
    with serving(lambda path, body, seen: server.hang()) as server:
        [reply] = ask(server.url, "x", timeout=0.5, retries=1)
    assert (reply.kind, reply.reason) == (ReplyKind.FAILED, "no answer within 0.5 seconds")


def test_the_time_limit_is_of_the_whole_answer_not_of_each_byte():
    done = threading.Event()

    def drip() -> None:
        taken, _ = listening.accept()
        with taken:
            taken.recv(4096)
            taken.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not done.wait(0.02):
                try:
                    taken.sendall(b"{")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
            [reply] = ask(url, "x", timeout=0.5, retries=0)
        finally:
            done.set()
            thread.join()
    assert reply.reason == "no answer within 0.5 seconds"


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_what_the_server_will_not_have_is_not_asked_again(status):
    refusal = Answer({"error": {"message": "too long by 7 tokens"}}, status)
    with serving(answers(refusal)) as server:
        [reply] = ask(server.url, "x", retries=5)
        assert len(server.asked) == 1
    assert (reply.kind, reply.status, reply.tries) == (ReplyKind.FAILED, status, 1)
    assert reply.reason == f"{status} too long by 7 tokens"


@pytest.mark.parametrize(
    ("reply", "kind", "reason"),
    [
        (said(""), ReplyKind.EMPTY, ""),
        (said(" \n"), ReplyKind.EMPTY, ""),
        (said(None), ReplyKind.EMPTY, ""),
        (said(None, refusal="I cannot."), ReplyKind.REFUSED, "I cannot."),
        (said("I can", "content_filter"), ReplyKind.REFUSED, "content_filter"),
    ],
)
def test_nothing_and_a_refusal_are_no_texts_and_no_failures(reply, kind, reason):
    with serving(answers(reply)) as server:
        [got] = ask(server.url, [{"role": "user", "content": "x"}])
        assert len(server.asked) == 1
    assert (got.kind, got.reason, got.status) == (kind, reason, 200)


def test_a_text_that_was_cut_has_not_ended():
    with serving(answers(said("and so", "length"))) as server:
        [reply] = ask(server.url, "x")
    assert (reply.kind, reply.finish, reply.ended) == (ReplyKind.TEXT, "length", False)


def test_half_a_character_is_replaced_and_sent_as_it_is():
    """JSON can say it, UTF-8 cannot: a file could not hold it."""
    half = Answer(b'{"choices": [{"text": "a\\ud83d \\ud83d\\ude00"}]}')
    with serving(answers(half)) as server:
        [reply] = ask(server.url, "b\ud83d")
        assert server.asked[0][1]["prompt"] == "b\ud83d"
    assert reply.text == "a\ufffd \U0001f600"
    assert reply.tokens is None


# How long it waits


def test_waits_double_and_are_drawn_from_zero_on(monkeypatch, waits):
    drawn: list[tuple[float, float]] = []

    class Chance:
        def uniform(self, low: float, high: float) -> float:
            drawn.append((low, high))
            return high

    monkeypatch.setattr(module.random, "Random", Chance)
    with serving(answers(FAULTS["503"])) as server:
        ask(server.url, "x", retries=8)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert drawn == [(0, high) for high in waits]


@pytest.mark.parametrize(
    ("after", "least", "most"),
    [
        ("7", 7, 8),
        ("0.5", 0.5, 1.5),
        ("100000", 60, 61),
        ("inf", 60, 61),
        ("-3", 0, 1),
        ("nan", 0, 1),
        ("soon", 0, 1),
        ("in 20 seconds", 18, 21),  # as a date
        ("20 seconds ago", 0, 1),
    ],
)
def test_the_server_says_how_long_but_not_for_ever(after, least, most, waits):
    if after.startswith("in "):
        after = email.utils.formatdate(time.time() + 20, usegmt=True)
    elif after.endswith("ago"):
        after = email.utils.formatdate(time.time() - 20, usegmt=True)
    busy = Answer(b"", 429, {"Retry-After": after})
    with serving(answers(busy, said("ok"))) as server:
        [reply] = ask(server.url, "x")
    assert reply.text == "ok"
    assert least <= waits[0] <= most


# How many at once


def test_as_many_are_open_as_are_allowed_and_no_more():
    full = threading.Event()

    def script(path: str, body: dict[str, Any], seen: int) -> Answer:
        if server.open == 3:
            full.set()
        full.wait(5)
        return said("ok")

    with serving(script) as server:
        replies = ask(server.url, *map(str, range(20)), concurrency=3)
        assert server.most_open == 3
    assert [one.text for one in replies] == ["ok"] * 20


def test_questions_are_taken_as_there_is_room_and_answers_given_as_they_come():
    taken: list[int] = []
    given: list[int] = []

    def questions() -> Iterator[Question]:
        for number in range(10):
            taken.append(number)
            yield Question(str(number))

    def take(number: int, reply: Reply) -> None:
        given.append(number)
        assert len(taken) <= len(given) + 2

    with serving(answers(said("ok"))) as server:
        Endpoint(server.url, "m", concurrency=2).ask_all(questions(), take)
    assert sorted(given) == list(range(10))


def test_an_error_of_the_taker_is_the_one_that_is_raised():
    def take(number: int, reply: Reply) -> None:
        raise OSError(28, "No space left on device")

    with serving(answers(said("ok"))) as server, pytest.raises(OSError, match="No space left"):
        Endpoint(server.url, "m").ask_all([Question("x")] * 40, take)


def test_where_a_loop_runs_already_it_asks_beside_it():
    """As in a notebook."""

    async def cell() -> list[Reply]:
        return ask(server.url, "x", "y")

    # in a thread: a browser of other tests may run a loop in this one
    with serving(answers(said("ok"))) as server, ThreadPoolExecutor(1) as pool:
        replies = pool.submit(lambda: asyncio.run(cell())).result()
    assert [one.text for one in replies] == ["ok", "ok"]


def test_the_random_numbers_of_a_training_are_left_alone():
    random.seed(0)
    before = random.getstate()
    with serving(answers(FAULTS["500"], said("ok"))) as server:
        ask(server.url, "x")
    assert random.getstate() == before


# What ends everything


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (
            Answer({"error": {"message": "bad key"}}, 401),
            "does not take the key of OPENAI_API_KEY: b",
        ),
        (Answer({"detail": "The model m does not exist"}, 404), "has no model served, or speaks"),
        (Answer(b"", 404), "another protocol: 404"),
        (Answer(b"", 308, {"Location": "https://x.example/v1"}), "leads to https://x.example/v1"),
    ],
)
def test_what_no_wait_mends_ends_everything_at_once(answer, wrong, waits):
    with serving(answers(answer)) as server:
        with pytest.raises(SetupError, match="CP529") as raised:
            ask(server.url, *map(str, range(50)), concurrency=2)
        assert len(server.asked) <= 2
    assert wrong in raised.value.message
    assert waits == []


def test_where_nothing_listens_it_says_so_at_once(waits):
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    with pytest.raises(SetupError, match=f"CP529 http://127.0.0.1:{port}/v1 cannot be reached"):
        ask(f"http://127.0.0.1:{port}/v1", "x")
    assert waits == []


def test_a_server_that_is_gone_is_tried_again_and_then_ends_it(waits):
    def take(number: int, reply: Reply) -> None:
        given.append(reply.text)
        server.close()

    given: list[str] = []
    server = Served(answers(Answer(said("ok").body, headers={"Connection": "close"})))
    endpoint = Endpoint(server.url, "m", concurrency=1, retries=3)
    with pytest.raises(SetupError, match=r"CP529 .* does not answer any more"):
        endpoint.ask_all([Question("x"), Question("y")], take)
    assert given == ["ok"]
    assert len(waits) == 3


# The key


def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch, caplog):
    monkeypatch.setenv("SOME_VARIABLE", f" {KEY}\n")
    echo = Answer({"error": {"message": f"no such key: {KEY}"}}, 400)
    with serving(answers(echo)) as server:
        [reply] = ask(server.url, "x", key_env="SOME_VARIABLE")
        assert server.asked[0][2]["Authorization"] == f"Bearer {KEY}"
    assert "no such key" in reply.reason
    assert KEY not in reply.reason
    refused = pytest.raises(SetupError, match="no such key")
    with serving(answers(Answer(echo.body, 401))) as server, refused as raised:
        ask(server.url, "x", key_env="SOME_VARIABLE")
    assert KEY not in str(raised.value)
    assert KEY not in repr(Endpoint("http://127.0.0.1:1/v1", "m", "SOME_VARIABLE"))
    assert KEY not in caplog.text


def test_without_a_key_none_is_sent_unless_one_was_asked_for(monkeypatch):
    with serving(answers(said("ok"))) as server:
        ask(server.url, "x")
        assert "Authorization" not in server.asked[0][2]
        with pytest.raises(ConfigError, match=r"CP107 .*NOT_SET, which api_key_env names"):
            ask(server.url, "x", key_env="NOT_SET")
        for wrong in ("two words", "schlüssel", "a\x00b"):
            monkeypatch.setattr(module.os, "environ", {"ODD": wrong})
            with pytest.raises(ConfigError, match="CP103 api_key_env=ODD") as raised:
                ask(server.url, "x", key_env="ODD")
            assert wrong not in str(raised.value)


def test_without_a_client_it_says_what_to_install(monkeypatch):
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(module.importlib, "import_module", missing)
    with pytest.raises(SetupError, match=r"CP502 .*httpx2"):
        ask("http://127.0.0.1:1/v1", "x")


@pytest.mark.parametrize(
    ("how", "wrong"),
    [
        ({"url": "localhost:8000/v1"}, "endpoint=localhost:8000/v1"),
        ({"url": "ftp://a/v1"}, "endpoint=ftp"),
        ({"url": "http:///v1"}, "endpoint=http:"),
        ({"url": "http://a:99999/v1"}, "endpoint=http"),
        ({"url": "http://me:secret@a/v1"}, "endpoint should be an address alone"),
        ({"url": "https://a/v1?key=secret"}, "endpoint should be an address alone"),
        ({"url": "http://[me:secret@a/v1"}, "endpoint should be an address alone"),
        ({"timeout": 0}, "timeout=0"),
        ({"timeout": float("nan")}, "timeout=nan"),
        ({"retries": -1}, "retries=-1"),
        ({"concurrency": 0}, "concurrency=0"),
    ],
)
def test_what_cannot_be_meant(how, wrong):
    with pytest.raises(ConfigError, match=re.escape(f"CP103 {wrong}")) as raised:
        Endpoint(**{"url": "http://a/v1", "model": "m", **how})
    assert "secret" not in str(raised.value)
