"""A loop does what is left and nothing else, wherever it was cut and whatever was changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from counterpoint.errors import SetupError
from counterpoint.loop import running
from counterpoint.loop.ledger import LEDGER_FILE, LoopLedger
from counterpoint.loop.running import complete_loop, start_stage
from counterpoint.loop.stages import LoopCourse, Stage, seed_of
from counterpoint.options.loop_options import FIRST, LoopRecipe
from counterpoint.runlog import RUN_FILE
from tests.reliability.loop_kills import Forked, end_of, killed_until_ended, life

LINES = 3
OUT = Path("out")


def quick(stage: Stage) -> int:
    """What a stage does, without its work: its output follows from words and inputs alone."""
    whole = " ".join(stage.words) + "".join(map(content, stage.reads))
    (out,) = stage.writes
    if stage.name == "train":
        out.mkdir(parents=True, exist_ok=True)
        (out / RUN_FILE).write_text(str(time.monotonic()))
        (out / "config.json").write_text("{}")
        out /= "model.safetensors"
    lines = [hashlib.sha256(f"{whole} {n}".encode()).hexdigest() for n in range(LINES)]
    if stage.resumes and stage.name != "train":
        # appended line by line, as candidates are; what is there must be this stage's own
        done = out.read_text().splitlines() if out.exists() else []
        if done and (done[-1] not in lines or done != lines[: len(done)]):
            return 9
        for line in lines[len(done) :]:
            time.sleep(0.003)
            with out.open("a") as file:
                file.write(f"{line}\n")
        return 0
    if out.exists() and stage.name == "pairs":
        return 8  # as the command refuses it
    time.sleep(0.003)
    out.write_text("\n".join(lines))
    return 0


class Here:
    """A stage in this very process, as ``running.Started`` has it."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def wait(self) -> int:
        return quick(self.stage)

    def terminate(self) -> None: ...


def content(source: str) -> str:
    path = Path(source)
    if path.is_dir():
        return (path / "model.safetensors").read_text()
    return path.read_text() if path.is_file() else source


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A folder with prompts, the current one; and the stages that were done, by their keys."""
    done: list[str] = []

    def start(stage: Stage, log: BinaryIO, held: BinaryIO) -> Here:
        done.append(stage.key)
        return Here(stage)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "start_stage", start)
    Path("prompts.jsonl").write_text("one\n")
    Path("held.jsonl").write_text("two\n")
    return done


def course(**changes: object) -> LoopCourse:
    given = {"sample": {"k": 4}, "score": {"with": ["s:f"]}, "pairs": {}, "train": {"beta": 1.0}}
    for name in ("sample", "score", "pairs", "train"):
        given[name] = {**given[name], **changes.pop(name, {})}  # type: ignore[dict-item]
    wanted = {"model": "m", "prompts": ["prompts.jsonl"], "held_out": ["held.jsonl"], "rounds": 2}
    return LoopCourse(
        LoopRecipe(**(wanted | changes)),  # type: ignore[arg-type]
        OUT,
        {**given, "evaluate": {}},
        dict.fromkeys((*given, "evaluate"), ()),
    )


def do(**changes: object) -> int:
    complete_loop(course(**changes), LoopLedger(OUT), lambda stage, why: None)
    return 0


EACH = ["sample", "score", "pairs", "train"]
ABOUT = ["evaluate", "answer", "judge"]


def test_every_stage_is_done_once_in_its_order(bench: list[str]) -> None:
    do()
    first = [f"round-0/{name}" for name in ABOUT]
    assert bench == first + [f"round-{n}/{name}" for n in (1, 2) for name in EACH + ABOUT]
    bench.clear()
    do()
    assert bench == []


def test_more_rounds_are_added_to_those_that_are_done(bench: list[str]) -> None:
    do()
    before = (OUT / "round-2/run/model.safetensors").read_bytes()
    bench.clear()
    do(rounds=3)
    assert bench == [f"round-3/{name}" for name in EACH + ABOUT]
    assert (OUT / "round-2/run/model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"train": {"beta": 2.0}}, ["round-1/train", "round-2/sample"]),
        ({"pairs": {"min_gap": 1.0}}, ["round-1/pairs", "round-1/train"]),
        ({"score": {"weight": ["s=1"]}}, ["round-0/judge", "round-1/score"]),
    ],
)
def test_a_changed_option_redoes_its_stage_and_what_depends_on_it(
    bench: list[str], change: dict[str, object], redone: list[str]
) -> None:
    do()
    bench.clear()
    do(**change)
    assert set(redone) <= set(bench)
    assert "round-1/sample" not in bench  # nothing that went into it has changed
    assert "round-0/answer" not in bench
    kept = results()
    shutil.rmtree(OUT)
    do(**change)
    assert results() == kept  # and ends as a loop that was so from the beginning


def results() -> dict[str, bytes]:
    skip = (RUN_FILE, LEDGER_FILE)
    files = [one for one in sorted(OUT.rglob("*")) if one.is_file() and one.name not in skip]
    return {str(one): one.read_bytes() for one in files if "logs" not in one.parts}


def test_a_changed_input_redoes_what_reads_it(bench: list[str]) -> None:
    do()
    bench.clear()
    Path("held.jsonl").write_text("three\n")
    why: dict[str, str | None] = {}
    complete_loop(course(), LoopLedger(OUT), lambda stage, reason: why.update({stage.key: reason}))
    assert bench == [f"round-{n}/{name}" for n in range(3) for name in ("answer", "judge")]
    assert why["round-1/answer"] == "held.jsonl has changed"
    assert why["round-1/train"] is None


def test_an_output_that_is_gone_is_made_again_and_what_it_feeds_stays(bench: list[str]) -> None:
    do()
    bench.clear()
    (OUT / "round-1/scored.jsonl").unlink()
    do()
    assert bench == ["round-1/score"]


def test_an_output_that_was_changed_by_hand_is_refused_and_kept(bench: list[str]) -> None:
    do()
    path = OUT / "round-1/scored.jsonl"
    path.write_text("by hand\n")
    with pytest.raises(SetupError, match=r"CP538 .*round-1/scored.jsonl was changed"):
        do()
    assert path.read_text() == "by hand\n"


def test_a_folder_of_something_else_is_refused(bench: list[str]) -> None:
    OUT.mkdir()
    (OUT / "thesis.txt").write_text("years")
    with pytest.raises(SetupError, match=r"CP538 out holds thesis.txt, and no loop"):
        do()
    assert [one.name for one in OUT.iterdir()] == ["thesis.txt"]


def test_a_stage_that_fails_says_why_and_is_begun_again(
    bench: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    works = running.start_stage

    def fails(stage: Stage, log: BinaryIO, held: BinaryIO) -> Forked:
        def end(stage: Stage) -> int:
            os.write(2, b"counterpoint: CP209 no pair\nmore\n")
            return 2

        chosen = end if stage.key == "round-1/pairs" else quick
        return Forked(stage, log, held, chosen)

    monkeypatch.setattr(running, "start_stage", fails)
    with pytest.raises(SetupError, match=r"CP539 round 1, pairs: CP209 no pair; see out"):
        do()
    monkeypatch.setattr(running, "start_stage", works)
    do()
    assert bench[0] == "round-1/pairs"


def test_a_seed_is_of_its_round_and_stage_and_what_is_held_out_has_one(bench: list[str]) -> None:
    stages = {stage.key: " ".join(stage.words) for stage in course().stages()}
    assert f"--seed={seed_of(0, 1, 'sample')}" in stages["round-1/sample"]
    assert f"--seed={seed_of(0, 2, 'sample')}" in stages["round-2/sample"]
    seeds = {
        word for n in range(3) for word in stages[f"round-{n}/answer"].split() if "seed" in word
    }
    assert len(seeds) == 1
    assert len({seed_of(s, n, "train") for s in range(9) for n in range(9)}) == 81


def test_a_round_begins_where_the_recipe_says(bench: list[str]) -> None:
    def models(**changes: object) -> tuple[str, str, str]:
        stages = {stage.key: stage for stage in course(**changes).stages()}
        train = stages["round-2/train"].words
        pairs = next(word for word in train if word.startswith("--dataset"))
        return stages["round-2/sample"].words[1], train[1], pairs

    one, two = "out/round-1/pairs.jsonl", "out/round-2/pairs.jsonl"
    assert models() == ("out/round-1/run", "--model=out/round-1/run", f'--dataset=["{two}"]')
    assert models(sample_from=FIRST, train_from=FIRST, accumulate=True) == (
        "m",
        "--model=m",
        f'--dataset=["{one}", "{two}"]',
    )


def test_training_is_started_by_what_the_recipe_says(tmp_path: Path) -> None:
    words = f"{sys.executable} -c 'import sys; print(*sys.argv[1:])'"
    stages = list(course(train_with=words).stages())
    assert {stage.key for stage in stages if stage.launcher} == {"round-1/train", "round-2/train"}
    train = next(stage for stage in stages if stage.launcher)
    with (tmp_path / "log").open("w+b") as log:
        assert running.start_stage(train, log, log).wait() == 0
        log.seek(0)
        assert log.read().decode().split()[:3] == ["-m", "counterpoint", "train"]


def test_a_launcher_that_is_not_there_fails_its_stage(
    bench: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, real = running.start_stage, start_stage

    def start(stage: Stage, log: BinaryIO, held: BinaryIO) -> Any:
        return (real if stage.launcher else here)(stage, log, held)

    monkeypatch.setattr(running, "start_stage", start)
    with pytest.raises(SetupError, match=r"CP539 round 1, train cannot be started: .*torchraun"):
        do(train_with="torchraun --nproc_per_node 2")
    # another launcher trains the same: what is done stays done
    do()
    bench.clear()
    do(train_with="torchraun")
    assert bench == []


def test_killed_over_its_stages_it_ends_with_the_same_files(
    bench: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop alone, its stage alone, or both; real stages in ``loop_kills``."""
    do()
    OUT.rename("whole")
    monkeypatch.setattr(running, "start_stage", partial(Forked, do=quick))

    def reached(stage: str) -> None:
        until = time.monotonic() + 30
        while not (OUT / "logs" / f"{stage}.log").exists() and time.monotonic() < until:
            time.sleep(0.001)

    where = {"round-0-answer": "both", "round-1-sample": "loop", "round-1-train": "stage"}
    kills = [(partial(reached, stage), victim) for stage, victim in where.items()]
    deaths = killed_until_ended(do, OUT, Path("whole"), kills)
    assert deaths.wrong == []
    assert deaths.total >= 2


def test_a_loop_that_is_ended_ends_its_stage(bench: list[str]) -> None:
    def slow(stage: Stage, log: BinaryIO, held: BinaryIO) -> Forked:
        return Forked(stage, log, held, lambda stage: time.sleep(60) or 0)

    def ended() -> int:
        running.start_stage = slow
        try:
            do()
        except KeyboardInterrupt:
            return 7
        return 1

    loop = life(ended)
    until = time.monotonic() + 30
    while not loop.children() and time.monotonic() < until:
        time.sleep(0.01)
    stage = loop.children()[0]
    time.sleep(0.1)
    loop.send_signal(signal.SIGTERM)
    assert end_of(loop) == 7
    assert not stage.is_running()
