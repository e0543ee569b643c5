"""torchrun that shrinks and grows: two agents on one host, one killed and started again.

    python -m tests.reliability.elastic_launch

``--nnodes=1:2`` with c10d, as users start it. Both agents train; one is killed with all below it,
and the other one's rank is started again alone; then the second agent comes back, and both train to
the end. What is compared with a run on one process: weights, and every log line. ``make torture``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

from counterpoint.runlog import read_run
from tests.reliability.elastic import weights
from tests.reliability.kill_trial import BASE, _folder
from tests.reliability.test_ranks_die import environment, free_port
from tests.steps import distance

STEPS = 120
OPTIONS = {
    **BASE,
    "per_device_train_batch_size": 2,
    "pairs_per_step": 4,
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "logging_steps": 3,
    "save_steps": 4,
    "doctor": "off",
}


def start(folder: Path, name: str, *launcher: str) -> subprocess.Popen[bytes]:
    """Start a run, or one agent of it."""
    (folder / "run.yaml").write_text(yaml.safe_dump(OPTIONS))
    words = [sys.executable, "-W", "ignore", *launcher, "-m", "counterpoint", "train", "run.yaml"]
    with (folder / f"said-{name}").open("ab") as said:
        return subprocess.Popen(
            [*words, "--output_dir", "out", "--resume", "auto"],
            cwd=folder,
            # without it torch's agents do not tell one that comes later where to meet
            env={**environment(), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )


def agent(folder: Path, name: str, port: int) -> subprocess.Popen[bytes]:
    """One agent of one rank, of one or two."""
    return start(
        folder,
        name,
        *("-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1"),
        *("--max-restarts=5", "--rdzv-backend=c10d", "--rdzv-id=elastic"),
        *(f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-conf=last_call_timeout=5"),
    )


def until(done: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    """Wait; the process has to live meanwhile."""
    end = time.monotonic() + 600
    while not done():
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"{what}: it ended with {process.poll()}")
        time.sleep(0.05)


def segments(folder: Path) -> list[int]:
    """Ranks of each segment of the run so far."""
    try:
        return [one["ranks"] for one in read_run(folder / "out").facts.get("segments") or []]
    except Exception:  # a run that has not begun yet
        return []


def newest(folder: Path) -> int:
    """Step of the newest checkpoint; 0 without one."""
    found = (folder / "out").glob("checkpoint-*/manifest.json")
    return max((int(path.parent.name.split("-")[1]) for path in found), default=0)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a machine: the agent and all below it at once."""
    own = psutil.Process(process.pid)
    for one in [own, *own.children(recursive=True)]:
        one.kill()
    process.wait()


def compared(alone: Path, folder: Path) -> list[str]:
    """What is not as in the run on one process, beyond rounding."""
    far = distance(weights(alone), weights(folder))
    one, other = (
        {line["step"]: line["loss"] for line in read_run(run).metrics if "loss" in line}
        for run in (alone, folder)
    )
    steps = [line["step"] for line in read_run(folder).metrics if "loss" in line]
    apart = max((abs(one[s] - other[s]) / one[s] for s in one.keys() & other.keys()), default=1.0)
    print(f"weights within {far:.1e} of one process, {len(other)} log lines within {apart:.1e}")
    wrong = [] if far <= 1e-6 and apart <= 1e-5 else ["beyond rounding"]
    return wrong if steps == list(one) else [*wrong, f"lines of steps {steps}"]


def main() -> int:
    """Shrink, grow, compare; the exit code is 1 where anything differs."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="counterpoint-launch-") as place:
        alone, folder = (_folder(Path(place), name) for name in ("alone", "elastic"))
        if start(alone, "alone").wait(1200):
            raise SystemExit((alone / "said-alone").read_text()[-3000:])
        port = free_port()
        try:
            one = agent(folder, "one", port)
            time.sleep(2)  # the first one keeps the store of the rendezvous
            other = agent(folder, "other", port)
            until(lambda: newest(folder) >= 12, one, "two agents")
            print(f"{segments(folder)} at step {newest(folder)}; one agent is killed")
            kill(other)
            until(lambda: segments(folder)[-1:] == [1], one, "one agent")
            left = newest(folder)
            until(lambda: newest(folder) >= left + 8, one, "one agent")
            print(f"{segments(folder)} at step {newest(folder)}; it comes back")
            other = agent(folder, "other", port)
            codes = [one.wait(1200), other.wait(1200)]
        finally:
            for process in (one, other):
                if process.poll() is None:
                    kill(process)
        wrong = compared(alone / "out", folder / "out")
        if codes != [0, 0] or segments(folder) != [2, 1, 2]:
            wrong.append(f"exit codes {codes}, segments {segments(folder)}")
        for text in wrong:
            print(text)
        for name in ("one", "other") if wrong else ():
            print(name, (folder / f"said-{name}").read_text(errors="replace")[-6000:])
    print(f"{time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
