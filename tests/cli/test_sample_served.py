"""``counterpoint sample --engine``: never a lost candidate, never one twice or wrong."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import counterpoint.endpoint
from counterpoint.evaluation.candidate_file import settings_path
from tests.cli.conftest import Command, write_pairs
from tests.endpoint_on_the_spot import Answer, Served, said, serving

KEY = "sk-a-key-that-nobody-may-read-4711"
PROMPTS = [{"prompt": f"question {n}", "reference": f"answer {n}"} for n in range(6)]
Place = tuple[int, int]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with prompts, without proxy, key and waits."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(counterpoint.endpoint, "_sleep", sleep)
    monkeypatch.chdir(tmp_path)
    write_pairs(Path("p.jsonl"), PROMPTS)


def words(server: Served | str, *more: str) -> list[str]:
    url = server if isinstance(server, str) else server.url
    usual = ("--engine", "endpoint", "--endpoint", url, "--prompts", "p.jsonl", "--out", "c.jsonl")
    return ["sample", "served", *usual, "-k", "2", *more]


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("c.jsonl").read_text("utf-8").splitlines()]


def texts() -> dict[Place, str]:
    found = {(one["row"], one["candidate"]): one["text"] for one in rows()}
    assert len(found) == len(rows())
    return found


def parrot(path: str, body: dict[str, Any], seen: int) -> Answer:
    """What a deterministic server writes: a function of prompt and seed."""
    return said(f"{body.get('prompt', body.get('messages'))} {body['seed']}")


def test_each_candidate_has_its_prompt_and_a_seed_of_its_own(command: Command, caplog: Any):
    with serving(parrot) as server:
        done = command(*words(server, "--keep", "reference", "--top_k", "7", "--stop", "END"))
        assert done.code == 0, done.err
        asked = [body for _, body, _ in server.asked]
    assert len(asked) == 12
    for one in asked:
        assert one["model"] == "served"
        assert {name: one[name] for name in ("max_tokens", "temperature", "top_p", "top_k")} == {
            "max_tokens": 256,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 7,
        }
        assert one["stop"] == ["END"]
    assert len({one["seed"] for one in asked}) == 12
    assert all(0 <= one["seed"] < 2**31 for one in asked)
    for one in rows():
        assert one["prompt"] == f"question {one['row']}"
        assert one["text"].startswith(one["prompt"])
        assert one["reference"] == f"answer {one['row']}"
        assert (one["model"], one["tokens"], one["ended"]) == ("served", 3, True)
    assert set(texts()) == {(row, n) for row in range(6) for n in range(2)}
    assert "may write other texts another time" in caplog.text


def test_shards_k_and_equal_prompts_change_no_seed(command: Command):
    write_pairs(Path("p.jsonl"), [PROMPTS[0], *PROMPTS])
    with serving(parrot) as server:
        assert command(*words(server)).code == 0
        whole = texts()
        assert len(set(whole.values())) == 14  # an equal prompt, too, has seeds of its own
        assert command(*words(server, "-k", "3")).code == 0
        assert {place: text for place, text in texts().items() if place[1] < 2} == whole
        parts: dict[Place, str] = {}
        for shard in ("1/2", "2/2"):
            assert command(*words(server, "--shard", shard, "--overwrite")).code == 0
            parts |= texts()
    assert parts == whole


def test_messages_are_sent_as_messages_and_text_as_text(command: Command):
    own = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "Who?"}]
    write_pairs(
        Path("p.jsonl"),
        [{"prompt": own, "chat_template_kwargs": {"enable_thinking": False}}, {"prompt": "text"}],
    )
    with serving(parrot) as server:
        assert command(*words(server, "-k", "1")).code == 0
        asked = {path: body for path, body, _ in server.asked}
    assert asked["/v1/chat/completions"]["messages"] == own
    assert asked["/v1/chat/completions"]["chat_template_kwargs"] == {"enable_thinking": False}
    assert asked["/v1/completions"]["prompt"] == "text"
    assert rows()[0]["prompt"] in (own, "text")


TROUBLES: dict[str, Answer] = {
    "429": Answer({"error": "busy"}, 429, {"Retry-After": "1"}),
    "500": Answer(b"oops", 500),
    "half a JSON": Answer(b'{"choices": [{"text": "ha'),
    "cut": Answer(said("whole").body, cut=30),
    "hung up": Answer(status=0),
    "400": Answer({"error": {"message": "no"}}, 400),
    "refusal": said("I will not", "content_filter"),
    "nothing": said("", "length"),
    "a call": said("", "tool_calls"),
}


@pytest.mark.parametrize("seed", range(3))
def test_whatever_goes_wrong_no_candidate_is_lost_twice_or_wrong(command: Command, seed: int):
    """Any mix of troubles, for good or for a while; then the same command asks for the rest."""
    chance = random.Random(seed)
    for_good: dict[Place, str] = {}
    healed = False

    def script(path: str, body: dict[str, Any], seen: int) -> Answer:
        key = (body["prompt"], body["seed"])
        if key not in for_good:
            for_good[key] = chance.choice([*TROUBLES, "", "", ""])
        if for_good[key] and not healed:
            return TROUBLES[for_good[key]]
        passing = ("429", "500", "half a JSON", "cut", "hung up")
        if seen == 0 and not healed and chance.random() < 0.5:
            return TROUBLES[chance.choice(passing)]
        return parrot(path, body, seen)

    with serving(script) as server:
        first = command(*words(server, "--retries", "1"))
        there = Path("c.jsonl").read_bytes()
        lacking = sum(map(bool, for_good.values()))
        assert lacking
        assert len(texts()) == 12 - lacking
        assert first.code == 2
        assert f"CP249 c.jsonl lacks candidates that the endpoint did not give: {lacking} of" in (
            " ".join(first.err.split())
        )
        healed = True
        before = len(server.asked)
        second = command(*words(server, "--retries", "1"))
        assert second.code == 0, second.err
        assert len(server.asked) - before == lacking  # and for no other
    assert Path("c.jsonl").read_bytes().startswith(there)
    assert len(texts()) == 12
    for one in rows():
        assert one["text"].startswith(f"{one['prompt']} ")


def test_a_text_that_the_model_ended_at_once_is_a_candidate(command: Command):
    with serving(lambda path, body, seen: said("")) as server:
        assert command(*words(server)).code == 0
    assert {(one["text"], one["ended"]) for one in rows()} == {("", True)}


def test_cut_anywhere_it_resumes_without_a_candidate_twice(command: Command):
    """At any byte of the file, as a kill or a full disk leaves it."""
    with serving(parrot) as server:
        assert command(*words(server)).code == 0
        whole, content = texts(), Path("c.jsonl").read_bytes()
        for cut in random.Random(0).sample(range(1, len(content)), 4):
            Path("c.jsonl").write_bytes(content[:cut])
            before = len(server.asked)
            assert command(*words(server)).code == 0
            assert texts() == whole
            assert len(server.asked) - before == 12 - content[:cut].count(b"\n")


def test_the_settings_name_the_server_and_never_the_key(command: Command, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(parrot) as server:
        done = command(*words(server, "--api_key_env", "MY_KEY"))
        assert done.code == 0, done.err
        assert {headers["Authorization"] for _, _, headers in server.asked} == {f"Bearer {KEY}"}
        settings = settings_path(Path("c.jsonl")).read_text("utf-8")
        assert json.loads(settings)["models"] == {
            "served": {"engine": "endpoint", "endpoint": server.url}
        }
        for text in (settings, Path("c.jsonl").read_text("utf-8"), done.err, done.out):
            assert KEY not in text
    other = command(*words("http://127.0.0.1:9/v1", "-k", "3"))
    assert "CP534" in other.err  # another server has other weights, for all that is known


def test_a_server_that_cannot_be_used_ends_it_at_once(command: Command):
    with serving(lambda path, body, seen: Answer({"error": {"message": "who?"}}, 401)) as server:
        done = command(*words(server))
    assert done.code == 2
    assert "CP529" in done.err
    assert "does not take the key of OPENAI_API_KEY: who?" in " ".join(done.err.split())
    gone = command(*words(server))
    assert "cannot be reached" in " ".join(gone.err.split())


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        (["--batch", "4"], "CP104 batch would do nothing with engine=endpoint"),
        (["--use_cpu"], "CP101 --use_cpu would do nothing with --engine endpoint"),
        (["--timeout", "0"], "CP103 timeout=0"),
        (["--retries", "-1"], "CP103 retries=-1"),
        (["--concurrency", "0"], "CP103 concurrency=0"),
        (["--endpoint", "127.0.0.1:8000"], "CP103 endpoint=127.0.0.1:8000"),
        (["--endpoint", "http://me:word@x/v1"], "CP103 endpoint should be an address alone"),
        (["--api_key_env", "NOT_SET_AT_ALL"], "CP107 the environment variable NOT_SET_AT_ALL"),
        (["--engine", "transformers"], "CP104 endpoint would do nothing with engine=transformers"),
        (["--engine", "vllm"], "CP102"),
    ],
)
def test_what_cannot_be_meant(command: Command, more: list[str], wrong: str):
    done = command(*words("http://127.0.0.1:9/v1", *more))
    assert done.code == 2
    assert wrong in " ".join(done.err.split())
    assert "word@" not in done.err


def test_an_endpoint_is_missing(command: Command):
    usual = ("--prompts", "p.jsonl", "--out", "c.jsonl")
    done = command("sample", "m", "--engine", "endpoint", *usual)
    assert "CP107 endpoint is missing" in done.err


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"prompt": "x", "source_lang": "en"}, "CP202 row 0: source_lang is nothing that an"),
        (
            {
                "prompt": [
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Well,"},
                ]
            },
            "CP221 row 0: prompt ends within an assistant's turn",
        ),
    ],
)
def test_prompts_that_no_server_is_asked(command: Command, row: dict[str, Any], wrong: str):
    write_pairs(Path("p.jsonl"), [row])
    with serving(parrot) as server:
        done = command(*words(server))
        assert server.asked == []
    assert wrong in " ".join(done.err.split())


def test_the_reasons_are_counted(command: Command):
    def script(path: str, body: dict[str, Any], seen: int) -> Answer:
        refused = said("", "content_filter")
        return refused if body["prompt"] == "question 0" else Answer({"detail": "long"}, 400)

    with serving(script) as server:
        done = command(*words(server))
    told = " ".join(done.err.split())
    assert "12 of served (10 times failed: 400 long; 2 times refused: content_filter)" in told
    assert Counter(map(type, rows())) == Counter()


# Continuous batches


def test_continuous_batches_write_what_padded_ones_do(workshop: Path, command: Command):
    pytest.importorskip("transformers.generation.continuous_batching.cb_logits_processors")
    usual = ("--prompts", "pairs.jsonl", "--out", "c.jsonl", "--max_new_tokens", "6", "--use_cpu")
    few = ("sample", "model", *usual, "-k", "2", "--max_rows", "4")
    padded = command(*few)
    assert padded.code == 0, padded.err
    before = texts()
    other = command(*few, "-k", "3", "--engine", "continuous")
    assert "CP534" in other.err  # not into that file
    done = command(*few, "--engine", "continuous", "--overwrite")
    assert done.code == 0, done.err
    assert texts() == before
    content = Path("c.jsonl").read_bytes()
    Path("c.jsonl").write_bytes(content[: len(content) // 2])
    assert command(*few, "--engine", "continuous").code == 0
    assert texts() == before


def test_an_older_transformers_is_named(workshop: Path, command: Command, monkeypatch):
    monkeypatch.setitem(sys.modules, "counterpoint.evaluation.continuous", None)
    usual = ("--prompts", "pairs.jsonl", "--out", "c.jsonl", "--use_cpu")
    done = command("sample", "model", *usual, "--engine", "continuous")
    assert "CP502 engine=continuous needs transformers" in " ".join(done.err.split())


def test_a_file_moves_to_another_address_if_one_says_so_and_keeps_both(command: Command):
    """Half of it at the first server, which then fails; a third one asks for what was lost."""

    def fails(path: str, body: dict[str, Any], seen: int) -> Answer:
        return Answer(status=400) if body["prompt"] > "question 2" else parrot(path, body, seen)

    with serving(fails) as first:
        assert "CP249" in command(*words(first)).err
    with serving(parrot) as second:
        other = command(*words(second))
        assert "CP534" in other.err
        assert "add --new_address if that very model is served there" in " ".join(other.err.split())
        moved = command(*words(second, "--new_address"))
        assert moved.code == 0, moved.err
        assert len(second.asked) == 6
        again = command(*words(second, "-k", "3"))  # from here on it is the file's own
        assert again.code == 0, again.err
    with serving(parrot) as third:
        assert command(*words(third, "-k", "4", "--new_address")).code == 0
        whole = texts()
        assert command(*words(third, "-k", "4", "--overwrite")).code == 0
        assert texts() == whole  # seeds do not depend on addresses
        assert (
            "earlier"
            not in json.loads(settings_path(Path("c.jsonl")).read_text())["models"]["served"]
        )
        idle = command("sample", "m", "--prompts", "p.jsonl", "--out", "x.jsonl", "--new_address")
        assert "CP104 new_address would do nothing with engine=transformers" in idle.err


def test_a_pair_is_traced_to_both_addresses(command: Command):
    def some(path: str, body: dict[str, Any], seen: int) -> Answer:
        return Answer(status=400) if body["seed"] % 2 else parrot(path, body, seen)

    urls = []
    for script, more in ((some, ()), (parrot, ("--new_address",))):
        with serving(script) as server:
            urls.append(server.url)
            command(*words(server, *more))
    drawn = json.loads(settings_path(Path("c.jsonl")).read_text())["models"]["served"]
    assert drawn["endpoint"] == urls[1]
    (before,) = drawn["earlier"]
    assert before["endpoint"] == urls[0]
    assert 0 < before["candidates"] < 12
    Path("of_seeds.py").write_text("def last(rows): return [int(r['text'][-1]) for r in rows]\n")
    assert command("score", "c.jsonl", "--out", "s.jsonl", "--with", "of_seeds:last").code == 0
    assert command("pairs", "s.jsonl", "--out", "pairs.jsonl", "--select", "all").code == 0
    said = command("trace", "pairs.jsonl", "0").out
    assert urls[0] in said
    assert urls[1] in said
