"""``counterpoint loop``: all mistakes of all stages before the first one, then their files."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import yaml

from counterpoint.cli.main import main
from counterpoint.loop import running
from counterpoint.loop.stages import Stage
from tests.cli.conftest import Command, write_pairs
from tests.endpoint_on_the_spot import Answer, said, serving

RECIPE: dict[str, Any] = {
    "model": "model",
    "prompts": "pairs.jsonl",
    "held_out": "held.jsonl",
    "sample": {"k": 3, "max_new_tokens": 5, "use_cpu": True},
    "score": {"with": "scorer_of_lengths:lengths"},
    "train": {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True},
    "evaluate": {"dataset": "pairs.jsonl", "resamples": 20, "use_cpu": True},
}

SCORER = """
def lengths(rows):
    return [float(len(row["text"])) for row in rows]
"""


class Here:
    """A stage in this very process, as ``running.Started`` has it."""

    def __init__(self, stage: Stage, log: BinaryIO, held: BinaryIO) -> None:
        self.words = list(stage.words)

    def wait(self) -> int:
        return main(self.words)

    def terminate(self) -> None: ...


@pytest.fixture
def recipe(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A loop of one round in the current folder, its stages in this process."""
    monkeypatch.setattr(running, "start_stage", Here)
    Path("scorer_of_lengths.py").write_text(SCORER)
    write_pairs(Path("held.jsonl"), [{"prompt": f"What is {n} and {n}?"} for n in (20, 30)])
    write_recipe(RECIPE)
    return json.loads(json.dumps(RECIPE))


def write_recipe(content: dict[str, Any]) -> None:
    Path("loop.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_a_round_goes_from_the_model_to_a_model_of_its_own_pairs(
    recipe: dict[str, Any], command: Command
) -> None:
    done = command("loop", "loop.yaml", "--out", "out")
    assert done.code == 0, done.err
    drawn, scored = lines("out/round-1/candidates.jsonl"), lines("out/round-1/scored.jsonl")
    assert len(drawn) == len(scored) == 3 * 12
    assert [one["score"] for one in scored] == [float(len(one["text"])) for one in drawn]
    for pair in lines("out/round-1/pairs.jsonl"):
        # from a pair one comes back to its candidates, and so to their model and scores
        texts = [one for one in scored if one["prompt"] == pair["prompt"]]
        by_text = {one["text"]: one["score"] for one in texts}
        assert by_text[pair["chosen"]] - by_text[pair["rejected"]] == pair["score_gap"]
    traced = command("trace", "out/round-1/pairs.jsonl", "0", "--json")
    assert traced.code == 0, traced.err
    assert "model" in traced.out
    of_run = json.loads(Path("out/round-1/run/run.json").read_text())
    assert of_run["options"]["max_steps"] == 1
    for number in (0, 1):
        assert Path(f"out/round-{number}/evaluation.json").is_file()
        assert len(lines(f"out/round-{number}/held-out-scored.jsonl")) == 3 * 2
    assert "the last model is out/round-1/run" in done.out
    if find_spec("bokeh"):
        page = Path("out/report.html").read_text(encoding="utf-8")
        assert "1 of 1 rounds" in page
        assert "wins over the round before" in page
    # once more: everything is done; and what an option changes is not
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.jsonl")}
    again = command("loop", "loop.yaml", "--out", "out")
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.jsonl")} == before
    write_recipe(recipe | {"pairs": {"select": "all"}})
    listed = " ".join(command("loop", "loop.yaml", "--out", "out", "--dry_run").out.split())
    assert "round 1, score: done" in listed
    assert "round 1, pairs: it was without, now --select=all" in listed
    assert "round 1, train: after out/round-1/pairs.jsonl, if that changes" in listed


def test_every_mistake_of_every_stage_is_said_with_its_line(
    recipe: dict[str, Any], command: Command
) -> None:
    recipe["rounds"] = 0
    recipe["sample"]["temprature"] = 0.5
    recipe["pairs"] = {"select": "bestest", "out": "mine.jsonl"}
    recipe["train"]["beta"] = "much"
    write_recipe(recipe)
    done = command("loop", "loop.yaml", "--out", "out")
    assert done.code == 2
    said = " ".join(done.err.split())
    text = Path("loop.yaml").read_text().splitlines()
    for code, what in (
        ("CP103", "rounds"),
        ("CP101", "temprature"),
        ("CP102", "select"),
        ("CP104", "out"),
        ("CP103", "beta"),
    ):
        line = next(n for n, one in enumerate(text, 1) if one.strip().startswith(f"{what}:"))
        place = f"{code} loop.yaml line {line}: "
        assert place in said, (place, said)
    assert "did you mean temperature?" in said
    assert "CP537 loop.yaml has 5 mistakes" in said
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"sample": {"k": 0}}, "CP103", "line 5: sample.k: k=0 should be a whole number"),
        (
            {"train": {"label_smoothing": 0.7}},
            "CP103",
            "train.label_smoothing: label_smoothing=0.7",
        ),
        ({"pairs": {"per_prompt": 2}}, "CP104", "pairs.per_prompt: per_prompt does nothing"),
        ({"evaluate": {}}, "CP107", "evaluate has neither dataset nor prompts"),
        ({"score": {"with": "charf"}}, "CP102", "score.with: --with: 'charf' is not one of"),
        ({"rounds": 2, "sampel": {}}, "CP101", "sampel is no entry of a loop"),
        ({"prompts": "none.jsonl"}, "CP211", "none.jsonl"),
        ({"sample_from": "last"}, "CP102", "previous, first"),
    ],
)
def test_what_cannot_be_meant_starts_nothing(
    recipe: dict[str, Any], command: Command, changes: dict[str, Any], code: str, said: str
) -> None:
    write_recipe({**recipe, **changes})
    done = command("loop", "loop.yaml", "--out", "out")
    assert done.code == 2
    assert code in done.err
    assert said in " ".join(done.err.split())
    assert not Path("out").exists()


def test_a_loop_has_a_file(workshop: Path, command: Command) -> None:
    assert "CP107 the file is missing" in command("loop").err
    assert "CP106" in command("loop", "nowhere.yaml").err
    assert "CP101" in command("loop", "a.yaml", "b.yaml").err


def test_a_rubric_that_has_changed_has_its_stage_done_again(
    recipe: dict[str, Any], command: Command
) -> None:
    """Wherever it is named: among the flags, or in a file of scorers."""
    Path("scorers.yaml").write_text("other:\n  judge: second.txt\n  against: reference\n")
    for name in ("first.txt", "second.txt"):
        Path(name).write_text("The longer one.")

    def grade(path: str, body: dict[str, Any], seen: int) -> Answer:
        return said(f"[[{1 + len(body['messages'][0]['content']) % 7}]]")

    with serving(grade) as server:
        recipe["score"] = {
            **{"with": ["grade:first.txt"], "scorers": "scorers.yaml", "weight": ["grade=1"]},
            **{"judge_endpoint": server.url, "judge_model": "m"},
        }
        recipe.pop("held_out")
        recipe.pop("evaluate")
        write_recipe(recipe)
        done = command("loop", "loop.yaml", "--out", "out")
    assert done.code == 0, done.err
    for name in ("first.txt", "second.txt"):
        before = Path(name).read_text()
        Path(name).write_text("The shorter one.")
        listed = " ".join(command("loop", "loop.yaml", "--out", "out", "--dry_run").out.split())
        assert "round 1, sample: done" in listed
        assert f"round 1, score: {name} has changed" in listed
        Path(name).write_text(before)
    recipe["score"].pop("judge_model")
    write_recipe(recipe)
    done = command("loop", "loop.yaml", "--out", "other")
    assert "model of the judge is missing" in " ".join(done.err.split())
    assert not Path("other").exists()


def teacher(path: str, body: dict[str, Any], seen: int) -> Answer:
    """What a larger model would write: longer or shorter, as the seed has it."""
    return said("word " * (1 + body["seed"] % 9))


def test_the_first_round_samples_from_a_server_and_later_ones_from_what_was_trained(
    recipe: dict[str, Any], command: Command
) -> None:
    recipe.pop("evaluate")
    recipe["rounds"] = 2
    with serving(teacher) as server:
        asks = {"engine": "endpoint", "endpoint": server.url, "model": "teacher", "k": 4}
        write_recipe(recipe | {"first_sample": asks})
        done = command("loop", "loop.yaml", "--out", "out")
        assert done.code == 0, done.err
        assert {body["model"] for _, body, _ in server.asked} == {"teacher"}
        assert len(server.asked) == 4 * 12
        assert {body["max_tokens"] for _, body, _ in server.asked} == {5}  # as sample has it
    by_round = [lines(f"out/round-{n}/candidates.jsonl") for n in (1, 2)]
    assert [{one["model"] for one in drawn} for drawn in by_round] == [
        {"teacher"},
        {"out/round-1/run"},
    ]
    assert [len(drawn) for drawn in by_round] == [4 * 12, 3 * 12]
    # the server's texts train the model of the recipe, which answers what is held out, too
    stages = json.loads(Path("out/loop.json").read_text())["stages"]
    assert "--model=model" in stages["round-1/train"]["command"]
    assert {one["model"] for one in lines("out/round-0/held-out.jsonl")} == {"model"}
    traced = command("trace", "out/round-1/pairs.jsonl", "0")
    assert server.url in traced.out
    assert "done" in command("loop", "loop.yaml", "--out", "out", "--dry_run").out  # it is gone


def test_a_loop_whose_server_has_moved_resumes_at_the_new_address(
    recipe: dict[str, Any], command: Command
) -> None:
    for name in ("evaluate", "held_out"):
        recipe.pop(name)
    asks = {"engine": "endpoint", "model": "teacher"}

    def fails(path: str, body: dict[str, Any], seen: int) -> Answer:
        return teacher(path, body, seen) if body["seed"] % 2 else Answer(status=400)

    with serving(fails) as server:
        write_recipe(recipe | {"first_sample": asks | {"endpoint": server.url}})
        assert "CP539" in command("loop", "loop.yaml", "--out", "out").err
        there = lines("out/round-1/candidates.jsonl")
        assert 0 < len(there) < 3 * 12
    with serving(teacher) as server:
        moved = asks | {"endpoint": server.url, "new_address": True}
        write_recipe(recipe | {"first_sample": moved})
        done = command("loop", "loop.yaml", "--out", "out")
        assert done.code == 0, done.err
        assert len(server.asked) == 3 * 12 - len(there)
        assert lines("out/round-1/candidates.jsonl")[: len(there)] == there
        # what is done is not done again for an address, nor for how often it is asked
        write_recipe(recipe | {"first_sample": moved | {"endpoint": "http://x/v1", "retries": 1}})
        listed = command("loop", "loop.yaml", "--out", "out", "--dry_run").out
        assert listed.count("done") == len(listed.splitlines()) == 4
        write_recipe(recipe | {"first_sample": moved | {"new_address": False}})
        assert (
            "round 1, sample: done" in command("loop", "loop.yaml", "--out", "out", "--dry_run").out
        )
        write_recipe(recipe | {"first_sample": asks | {"endpoint": "http://x/v1"}})
        listed = " ".join(command("loop", "loop.yaml", "--out", "out", "--dry_run").out.split())
        assert f"it was --endpoint={server.url}, now --endpoint=http://x/v1" in listed


SERVED = {"engine": "endpoint", "endpoint": "http://x/v1"}


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"sample": SERVED, "held_out": None, "rounds": 2}, "CP104", "that the loop has trained"),
        ({"sample": SERVED}, "CP104", "under first_sample"),
        ({"first_sample": SERVED, "beside": ["other"]}, "CP104", "beside=other would be asked"),
        ({"first_sample": {"engine": "endpoint"}}, "CP107", "first_sample"),
        ({"first_sample": SERVED | {"use_cpu": True}}, "CP101", "use_cpu would do nothing"),
        ({"first_sample": SERVED | {"out": "x.jsonl"}}, "CP104", "first_sample.out is the loop's"),
        ({"first_sample": SERVED | {"temprature": 1}}, "CP101", "did you mean temperature?"),
        ({"first_sample": {"new_address": True}}, "CP104", "first_sample.new_address"),
    ],
)
def test_a_server_that_could_not_be_asked_starts_nothing(
    recipe: dict[str, Any], command: Command, changes: dict[str, Any], code: str, said: str
) -> None:
    made = {name: value for name, value in {**recipe, **changes}.items() if value is not None}
    write_recipe(made)
    done = command("loop", "loop.yaml", "--out", "out")
    assert done.code == 2
    assert code in done.err
    assert said in " ".join(done.err.split())
    assert not Path("out").exists()
