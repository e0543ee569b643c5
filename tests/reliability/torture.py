"""``make torture``: runs killed hundreds of times, and disks that fill up, with the counts.

Each run is killed again and again until it has ended, and is then compared with the one that
never was: weights, optimizer, generators, every line of its streams, to the bit.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.reliability.killing import LONG, SCENARIO, Deaths, killed_until_done, live, start

SCENARIOS = (
    SCENARIO,
    "dropout in an adapter",
    "experts with dropout",
    "an encoder-decoder with dropout",
    "a stream",
)


def main() -> int:
    """Kill until both counts are reached; the exit code is 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--inside", type=int, default=60, help="kills while saving")
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    draw = random.Random(wanted.seed)
    total, runs, began = Deaths(), 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="counterpoint-torture-") as place:
        whole = {
            name: _unbroken(Path(place) / f"whole-{n}", name) for n, name in enumerate(SCENARIOS)
        }
        while total.kills < wanted.kills or total.inside < wanted.inside:
            name = SCENARIOS[runs % len(SCENARIOS)]
            folder = Path(place) / f"run-{runs}"
            one = killed_until_done(folder, whole[name], draw, most=8, scenario=name)
            runs += 1
            total.kills += one.kills
            total.inside += one.inside
            total.wrong += [f"run {runs} ({name}): {text}" for text in one.wrong]
            print(
                f"run {runs}, {name}: killed {one.kills} times, {one.inside} while saving; "
                f"{'DIFFERS: ' + '; '.join(one.wrong) if one.wrong else 'equal to the bit'}",
                flush=True,
            )
            shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{runs} runs, {total.kills} kills, {total.inside} of them while a checkpoint was being "
        f"written: {runs - len({text.split(' (')[0] for text in total.wrong})} of {runs} equal the "
        f"unbroken run to the bit ({time.monotonic() - began:.0f} s)"
    )
    wrong = total.wrong + full_disks()
    for text in wrong:
        print(text, file=sys.stderr)
    return 1 if wrong else 0


def full_disks(moments: int = 10) -> list[str]:
    """Run on small disks of ten sizes, then go on with room; what went wrong."""
    if os.geteuid() != 0:
        print("no full disks: mounting a tmpfs needs root")
        return []
    wrong, filled = [], 0
    with tempfile.TemporaryDirectory(prefix="counterpoint-disk-") as place:
        whole = _unbroken(Path(place) / "whole", SCENARIO)
        size = sum(f.stat().st_size for f in (whole / "checkpoint-12").rglob("*") if f.is_file())
        for moment in range(moments):
            # from less than one checkpoint to more than four
            room = int(size * (0.3 + 0.4 * moment))
            disk = Path(place) / f"disk-{moment}"
            disk.mkdir()
            if subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={room}", "none", str(disk)], check=False
            ).returncode:
                print("no full disks: a tmpfs cannot be mounted here")
                return wrong
            try:
                filled += 1
                text = _fill(disk, whole)
            finally:
                subprocess.run(["umount", "-l", str(disk)], check=True)
            print(f"disk of {room:,} bytes: {text or 'as it should be'}", flush=True)
            wrong += [f"disk of {room:,} bytes: {text}"] if text else []
    print(f"{filled} full disks, {filled - len(wrong)} as they should be")
    return wrong


def _fill(disk: Path, whole: Path) -> str:
    """Train until the disk is full; what is wrong with what is left, or ""."""
    from counterpoint.checkpoint.folder import checkpoints, last_good
    from tests.reliability.scenarios import differences, lines

    folder = disk / "run"
    process = start(live, folder, SCENARIO, LONG, log=disk.with_suffix(".log"))
    process.join(300)
    if process.exitcode == 0:
        return "it was not full"
    if "CP515" not in disk.with_suffix(".log").read_text():
        return "it did not say CP515"
    if any(folder.glob(".*")):
        return f"left behind: {[path.name for path in folder.glob('.*')]}"
    every = checkpoints(folder) if folder.is_dir() else []
    good = last_good(folder) if every else None
    if every and (good is None or good[0] != every[-1]):
        return "the newest checkpoint is not good"
    # the same with room enough ends as the unbroken run
    moved = disk.with_name(f"{disk.name}-moved")
    if folder.is_dir():
        shutil.copytree(folder, moved)
    start_again = start(live, moved, SCENARIO, LONG, log=disk.with_suffix(".log"))
    start_again.join(300)
    if start_again.exitcode != 0:
        return f"going on ended with {start_again.exitcode}"
    wrong = differences(whole / "checkpoint-12", moved / "checkpoint-12", checked=False)
    if lines(moved) != lines(whole):
        wrong.append("the streams")
    return "; ".join(wrong)


def _unbroken(folder: Path, scenario: str) -> Path:
    process = start(live, folder, scenario, LONG, log=folder.with_suffix(".log"))
    process.join(300)
    if process.exitcode != 0:
        raise SystemExit(folder.with_suffix(".log").read_text()[-3000:])
    return folder


if __name__ == "__main__":
    sys.exit(main())
