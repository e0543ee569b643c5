"""Walk a newcomer's path: a fresh clone, the newest packages, every command as it is printed.

    python scripts/newcomer.py [--python PYTHON] [--keep FOLDER]

Clones this repository's last commit into an empty folder, makes a virtual environment, installs the
package there as the README says, without the constraints of ``make``, and goes on: quickstart, the
commands that it prints, data of one's own, LoRA, the card's recipe, report, compare, the notebooks,
Chinese. A line a step, with its time; the exit code is 1 at the first that does not work.

Needs the network or an index for the packages, no hub. ``--python`` names an environment that has
them already; the clone is installed into it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = "report,peft"
SHORT = ["--max_steps", "6", "--logging_steps", "1", "--use_cpu"]


class Walk:
    """The steps so far, and where they are done.

    Args:
        place: the newcomer's folder.
        environment: the folder of scripts of the virtual environment.
    """

    def __init__(self, place: Path, scripts: Path) -> None:
        """Nothing is done yet."""
        self.place, self.scripts, self.steps = place, scripts, 0
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        path = f"{scripts}{os.pathsep}{kept['PATH']}"
        cache = str(place / "cache")
        self.variables = {**kept, "PATH": path, "COUNTERPOINT_CACHE": cache, "COLUMNS": "80"}

    def step(self, words: str | Sequence[str], *, code: int = 0, **variables: str) -> str:
        """Run a command through a shell, as a person would paste it; what it said."""
        line = words if isinstance(words, str) else shlex.join(words)
        began = time.monotonic()
        done = subprocess.run(
            line,
            shell=True,
            cwd=self.place,
            env=self.variables | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.steps += 1
        shown = " ".join(line.split())
        print(f"{self.steps:3d}  {time.monotonic() - began:6.1f} s  {shown[:110]}", flush=True)
        if done.returncode != code:
            print(done.stdout[-4000:])
            raise SystemExit(f"step {self.steps} ended with {done.returncode}, not {code}")
        return done.stdout


def main() -> None:
    """Walk the path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="of an environment that has the packages already")
    parser.add_argument("--keep", type=Path, help="an empty folder to do it in, and to keep")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="newcomer-") as made:
        place = (wanted.keep or Path(made)).resolve()
        place.mkdir(exist_ok=True)
        given = Path(wanted.python).absolute() if wanted.python else None
        steps(place, given)


def steps(place: Path, given: Path | None) -> None:
    """Every step, in the order of the README."""
    scripts = given.parent if given else place / "env" / "bin"
    walk = Walk(place, scripts)
    walk.step(["git", "clone", "--quiet", str(ROOT), "counterpoint"])
    if given is None:
        walk.step([sys.executable, "-m", "venv", "env"])
        walk.step(["python", "-m", "pip", "install", "-q", f"./counterpoint[{EXTRAS}]", "nbclient"])
        walk.step(["python", "-m", "pip", "install", "-q", "ipykernel"])
    else:
        walk.step(["python", "-m", "pip", "install", "-q", "--no-deps", "./counterpoint"])
    print(walk.step("counterpoint --version"))
    quickstart(walk)
    own_data(walk)
    for name in ("quickstart", "from_trl"):
        walk.step(f"cd counterpoint/examples && jupyter execute {name}.ipynb")
    print(f"{walk.steps} steps, each as printed")


def quickstart(walk: Walk) -> None:
    """The quickstart, and what it prints to go on with."""
    said = walk.step("counterpoint quickstart")
    look = re.search(r"^look at it +(.+)$", said, re.MULTILINE)
    further = re.search(r"^next, .*\n((?:  .+\n?)+)", said, re.MULTILINE)
    assert look is not None, said
    assert further is not None, said
    walk.step(look[1])
    walk.step(further[1].strip() + " \\\n" + shlex.join(SHORT))
    walk.step("counterpoint compare counterpoint-quickstart/cpo counterpoint-quickstart/simpo")


def own_data(walk: Walk) -> None:
    """Pairs of one's own: init, doctor, tokens, plan, smoke, train with LoRA, evaluate, card."""
    base = "counterpoint-quickstart/base"
    for name, own, rows in (("pairs", "mine", 32), ("held-out", "held", 8)):
        text = (walk.place / f"counterpoint-quickstart/{name}.jsonl").read_text(encoding="utf-8")
        some = text.splitlines(keepends=True)[-rows:]
        (walk.place / f"{own}.jsonl").write_text("".join(some), encoding="utf-8")
    preset = "--preset simpo-llama3-instruct"
    walk.step(f"counterpoint init {preset} --model {base} --dataset mine.jsonl --out run.yaml")
    walk.step("counterpoint doctor run.yaml || test $? = 1")  # warnings
    assert "警告" in walk.step("counterpoint doctor run.yaml --language zh || test $? = 1")
    for command in ("tokens run.yaml --row 3", "plan run.yaml", "smoke run.yaml"):
        walk.step(f"counterpoint {command}")
    adapter = "--lora_r 4 --eval_dataset held.jsonl --eval_strategy steps --eval_steps 3"
    walk.step(f"counterpoint train run.yaml {adapter} --output_dir lora {shlex.join(SHORT)}")
    walk.step("counterpoint report lora")
    walk.step(f"counterpoint evaluate lora --base {base} --dataset held.jsonl")
    walk.step("counterpoint compare lora counterpoint-quickstart/cpo --out both.html")
    recipe(walk, "lora", {"mine.jsonl", "held.jsonl"})


def recipe(walk: Walk, run: str, data: set[str]) -> None:
    """What a run's card says makes it again does, with the same first loss."""
    card = (walk.place / run / "README.md").read_text(encoding="utf-8")
    file = re.search(r"```yaml\n(.*?)```", card, re.DOTALL)
    call = re.search(r"```sh\n(.*?)```", card, re.DOTALL)
    assert file is not None, card
    assert call is not None, card
    again = walk.place / "again"
    again.mkdir()
    for name in data:
        (again / name).symlink_to(walk.place / name)
    (again / "base").symlink_to(walk.place / "counterpoint-quickstart" / "base")
    (again / "run.yaml").write_text(file[1], encoding="utf-8")
    walk.step(f"cd again && {call[1].strip()}")
    first = [_first_loss(folder / "metrics.jsonl") for folder in (walk.place / run, again / "out")]
    assert first[0] == first[1], first


def _first_loss(stream: Path) -> float:
    lines = map(json.loads, stream.read_text(encoding="utf-8").splitlines())
    return next(float(line["loss"]) for line in lines if "loss" in line)


if __name__ == "__main__":
    main()
