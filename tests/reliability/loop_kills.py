"""Law 4 for a loop: killed over its stages, it ends with the files of one that nobody killed.

    python -m tests.reliability.loop_kills [--kills 30] [--seed 0] [--most 5]

A loop of two rounds of the quickstart's task runs its stages as ``counterpoint loop`` does, but as
forks, so that no life waits for imports. At a random instant SIGKILL hits the loop alone (whose
stage lives on as an orphan), the stage alone, or both; the same loop is then begun again, until it
ends. Everything but logs, the page, and what a run says of times and machine, is compared bit for
bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import psutil
import yaml

from counterpoint.cli.loop import PAGE_NAME
from counterpoint.cli.main import main as call
from counterpoint.errors import SetupError
from counterpoint.loop import running
from counterpoint.loop.ledger import LEDGER_FILE
from counterpoint.loop.stages import Stage
from counterpoint.quickstart.lessons import Translating
from counterpoint.quickstart.task import german, prompt

LOOP, FILE = "loop", "loop.yaml"
VICTIMS = ("loop", "stage", "both")

RECIPE = {
    "model": "base",
    "prompts": "prompts.jsonl",
    "held_out": "held-out.jsonl",
    "rounds": 2,
    "sample": {"k": 4, "max_new_tokens": 24, "batch": 8, "use_cpu": True},
    "score": {"with": "scorer:score"},
    "train": {
        "beta": 2.0,
        "cpo_alpha": 0.03,
        "learning_rate": 1e-3,
        "max_steps": 6,
        "save_steps": 2,
        "per_device_train_batch_size": 4,
        "max_length": 64,
        "report_to": "none",
        "use_cpu": True,
    },
    "evaluate": {
        "dataset": "held-out-pairs.jsonl",
        "resamples": 50,
        "use_cpu": True,
    },
}

SCORER = """
def score(rows):
    return [-len(row["text"].split()) - len(row["text"]) / 1000 for row in rows]
"""


class Forked:
    """A stage in a fork of its loop, as ``running.Started`` has it.

    Args:
        stage: to be done.
        log: takes what it says.
        held: inherited with its lock.
        do: what the fork does with the stage; its exit code comes back.
    """

    def __init__(
        self,
        stage: Stage,
        log: BinaryIO,
        held: BinaryIO,
        do: Callable[[Stage], int] = lambda stage: call(list(stage.words)),
    ) -> None:
        self.pid = os.fork()
        if self.pid:
            return
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        code = 1
        try:
            code = do(stage)
        finally:
            sys.stdout.flush()
            os._exit(code)

    def wait(self) -> int:
        """Its exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def terminate(self) -> None:
        """Ask it to end."""
        os.kill(self.pid, signal.SIGTERM)


def real_loop() -> int:
    """The loop of the current folder, as the command does it."""
    running.start_stage = Forked
    return call(["loop", FILE, "--out", LOOP])


def write_inputs(folder: Path, rows: int = 10) -> None:
    """The base model, prompts and pairs, a scorer, and the loop's file."""
    lesson = Translating()
    shutil.copytree(lesson.base, folder / "base")
    numbers, held = list(range(311, 311 + rows)), lesson.held_out(6, 0)
    files = {
        "prompts.jsonl": [{"prompt": prompt(number)} for number in numbers],
        "held-out.jsonl": [{"prompt": prompt(n), "reference": german(n)} for n in held],
        "held-out-pairs.jsonl": lesson.held_out_rows(held, 0, folder),
    }
    for name, content in files.items():
        (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in content))
    (folder / "scorer.py").write_text(SCORER)
    (folder / FILE).write_text(yaml.safe_dump(RECIPE, sort_keys=False))


def life(do: Callable[[], int]) -> psutil.Process:
    """A fork of this process that does a loop in the current folder."""
    pid = os.fork()
    if pid:
        return psutil.Process(pid)
    code = 1
    try:
        with Path("said.log").open("ab") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        code = do()
    except SetupError as error:  # of a stage that was killed
        code = 2 if error.code == "CP539" else 3
    finally:
        os._exit(code)


def end_of(process: psutil.Process) -> int:
    """The exit code of a life, below 0 for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])


def kill(process: psutil.Process, victim: str) -> bool:
    """Kill a life, its stage, or both; False where there is no such process just now."""
    try:
        stages = process.children(recursive=True)
        hit = {"loop": [process], "stage": stages, "both": [process, *stages]}[victim]
        for one in hit:
            one.kill()
        return bool(hit)
    except psutil.NoSuchProcess:
        return False


@dataclass
class LoopDeaths:
    """What became of a loop that was killed.

    Args:
        kills: by whom they hit.
        stages: that were not done when they hit.
        wrong: what differs from a loop that nobody killed.
    """

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(VICTIMS, 0))
    stages: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Kills in all."""
        return sum(self.kills.values())


def killed_until_ended(
    do: Callable[[], int],
    folder: Path,
    whole: Path,
    kills: Iterable[tuple[Callable[[], object], str]],
) -> LoopDeaths:
    """Kill the loop of the current folder, until it ends.

    Args:
        do: the loop.
        folder: of the loop.
        whole: of one that nobody killed.
        kills: what waits for the moment of each, and whom it hits.
    """
    deaths, due = LoopDeaths(), iter(kills)
    while True:
        process = life(do)
        for wait, victim in islice(due, 1):
            wait()
            if process.status() != psutil.STATUS_ZOMBIE and kill(process, victim):
                deaths.kills[victim] += 1
                deaths.stages.append(begun(folder))
        code = end_of(process)
        if code == 0:
            break
        if code not in (2, -signal.SIGKILL):
            deaths.wrong.append(f"a life ended with {code}: {said()}")
            return deaths
    deaths.wrong += unlike(whole, folder)
    return deaths


def begun(folder: Path) -> str:
    """The stage that a loop was at."""
    try:
        stages = json.loads((folder / LEDGER_FILE).read_text())["stages"]
    except FileNotFoundError:
        return "the beginning"
    return next((name for name, one in stages.items() if one["state"] == "begun"), "between")


def said() -> str:
    """The last words of a loop."""
    return Path("said.log").read_text(errors="replace")[-600:]


def results(folder: Path) -> dict[str, bytes]:
    """What a loop ends with, by its path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        of_run = "/run/" in name and path.suffix != ".safetensors"
        if path.is_file() and not of_run and not name.startswith(("logs/", ".", PAGE_NAME)):
            found[name] = path.read_bytes()
    return found


def unlike(whole: Path, folder: Path) -> list[str]:
    """Files in which two loops differ."""
    one, other = results(whole), results(folder)
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


def main() -> int:
    """Kill until there were enough kills; the exit code is 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=5, help="kills of one loop")
    wanted = parser.parse_args()
    draw, dead, stages = random.Random(wanted.seed), list[LoopDeaths](), set[str]()
    with tempfile.TemporaryDirectory(prefix="counterpoint-loops-") as place:
        os.chdir(place)
        write_inputs(Path())
        began = time.monotonic()

        def random_kills(most: int) -> list[tuple[Callable[[], object], str]]:
            # what is done already takes no time again
            return [
                (
                    partial(time.sleep, draw.uniform(0, seconds * min(2 / most, 0.8))),
                    draw.choice(VICTIMS),
                )
                for _ in range(most)
            ]

        if end_of(life(real_loop)):
            raise SystemExit(said())
        seconds = time.monotonic() - began
        Path(LOOP).rename("whole")
        print(f"nobody killed it: {seconds:.0f} s", flush=True)
        while sum(one.total for one in dead) < wanted.kills:
            left = wanted.kills - sum(one.total for one in dead)
            dead.append(
                killed_until_ended(
                    real_loop, Path(LOOP), Path("whole"), random_kills(min(wanted.most, left))
                )
            )
            stages |= set(dead[-1].stages)
            verdict = "; ".join(dead[-1].wrong) or "equal to the bit"
            print(f"loop {len(dead)}: {dead[-1].kills}, {verdict}", flush=True)
            shutil.rmtree(LOOP)
    each = {name: sum(one.kills[name] for one in dead) for name in VICTIMS}
    wrong = sum(bool(one.wrong) for one in dead)
    print(f"{len(dead)} loops, kills {each}, at {sorted(stages)}; {wrong} ended otherwise")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
