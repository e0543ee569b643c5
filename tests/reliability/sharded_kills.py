"""Runs of two ranks that share every weight, of which one is killed again and again.

    python -W ignore -m tests.reliability.sharded_kills [--kills 40] [--inside 15] [--seed 0]

Either rank is killed with SIGKILL at a random instant of its life, or while a checkpoint is being
written. The other has to leave by itself, unless the two had not met yet: then it is ended, as a
launcher does it. Both are started again, with the same words, until the run has ended. Then it is
compared with the run that nobody hit: shards of weights and moments, generators of each rank, every
line of the streams, and the whole model at the end, to the bit.

Not here: kills of whole launches and of single processes (``kill_trial``, ``torture``).
"""

from __future__ import annotations

import argparse
import atexit
import faulthandler
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from counterpoint.checkpoint.folder import checkpoints
from counterpoint.runlog import read_run
from tests.reliability.killing import Deaths, server
from tests.reliability.scenarios import differences, lines
from tests.reliability.test_ranks_die import free_port

RANKS = 2

LEAVE = 60
"""Seconds that a rank has to leave once the other is gone; a fault where it takes longer."""

SLOWEST = 900
"""Seconds after which a life that does not end is an error."""

STEPS = 8

OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "num_train_epochs": 4,
    "gradient_accumulation_steps": 2,
    "save_steps": 2,
    "logging_steps": 5,
    "ddp_backend": "gloo",
    "lr_scheduler_type": "cosine",
    "disable_dropout": False,
    "gradient_checkpointing": False,
}
"""Eight steps and four checkpoints; log lines that span some of them."""

RUNS: dict[str, dict[str, Any]] = {
    "tied": {"kind": "qwen2_tied", "model": {"attention_dropout": 0.1}},
    "not tied, in bfloat16": {
        "kind": "llama",
        "model": {"attention_dropout": 0.1},
        "dtype": torch.bfloat16,
    },
    "an adapter": {"kind": "llama", "lora_dropout": 0.2},
    "constraints": {
        "constraints": [
            {"kind": "bc", "slack": -0.01, "rate": 50.0},
            {"kind": "absolute_preference", "bound": 0.5, "margin": 1.0, "update": "nu_pi"},
            {"kind": "kl_drift", "bound": 0.0, "rate": 50.0},
        ],
    },
    "an encoder-decoder": {"kind": "t5", "model": {"dropout_rate": 0.1}},
    "levers": {
        "model": {"attention_dropout": 0.1},
        "gradient_checkpointing": True,
        "checkpointing_share": 0.5,
        "activation_offload": True,
    },
}

LAST = f"checkpoint-{STEPS}"


@dataclass(slots=True)
class RankDeaths(Deaths):
    """How the ranks of a run were killed, and how those that were left did leave.

    Args:
        of_rank: kills of each rank.
        unmet: kills before the ranks had met.
        leaving: seconds that a rank took which had to leave by itself.
    """

    of_rank: list[int] = field(default_factory=lambda: [0] * RANKS)
    unmet: int = 0
    leaving: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Unbroken:
    """A run that nobody hits.

    Args:
        folder: of the run.
        seconds: of its life.
        training: of these, in steps and checkpoints.
    """

    folder: Path
    seconds: float
    training: float

    def left(self, folder: Path) -> float:
        """Seconds that the next life of a run will take."""
        saved = checkpoints(folder)
        done = int(saved[-1].name.split("-")[1]) if saved else 0
        return self.seconds - self.training * done / STEPS


def live(folder: Path, name: str) -> None:
    """One life of one rank: train from the last checkpoint to the end, and save the model."""
    from counterpoint import CPOConfig, CPOTrainer, ranks
    from counterpoint.forward.offload import activations_on_host
    from counterpoint.trainer import stepping
    from tests.engine.doors import loaded_in_shards
    from tests.models_on_the_spot import make_model
    from tests.reliability.scenarios import tokenizer
    from tests.steps import random_pairs

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    ranks.leave_at_exit()
    _met(folder, ranks.rank()).touch()
    options = dict(RUNS[name])
    kind, config = options.pop("kind", "qwen2"), options.pop("model", {})
    dtype, dropout = options.pop("dtype", torch.float32), options.pop("lora_dropout", None)
    # where there is a checkpoint, the model it goes into is another one, unless it is measured from
    drawn = 1 if checkpoints(folder) and dropout is None and "constraints" not in options else 0
    model = make_model(kind, seed=drawn, **config).to(dtype)
    # a run notes the name of the model that it began with
    model = loaded_in_shards(model, folder.with_name(f"start-{drawn} {name}"))
    peft_config = None
    if dropout is not None:
        import peft

        torch.manual_seed(len(checkpoints(folder)))
        peft_config = peft.LoraConfig(
            task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], lora_dropout=dropout
        )
    if options.get("activation_offload"):  # on a CPU it would do nothing
        stepping.offloading = lambda *_, **__: activations_on_host(least=0)
    trainer = CPOTrainer(
        model=model,
        args=CPOConfig(
            output_dir=str(folder),
            learning_rate=1e-2,
            save_strategy="steps",
            disable_tqdm=True,
            use_cpu=True,
            **{**OPTIONS, **options},
        ),
        train_dataset=random_pairs(8),
        processing_class=tokenizer(),
        peft_config=peft_config,
    )
    assert trainer.engine.shards, trainer.engine.name
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model()


def _met(folder: Path, rank: int) -> Path:
    return folder.with_name(f"{folder.name}-{rank}.met")


def _log(folder: Path, rank: int) -> Path:
    return folder.with_name(f"{folder.name}-{rank}.log")


def start(folder: Path, name: str) -> list[Any]:
    """Begin a life of both ranks; what they say goes to a file each."""
    port = str(free_port())
    processes = []
    for rank in range(RANKS):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        _met(folder, rank).unlink(missing_ok=True)
        log = _log(folder, rank)
        log.unlink(missing_ok=True)
        processes.append(server.Process(target=_as_rank, args=(own, log, folder, name)))
        processes[-1].start()
    return processes


def _as_rank(own: dict[str, str], log: Path, folder: Path, name: str) -> None:
    import warnings

    warnings.simplefilter("ignore")
    os.environ.update(own)

    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    faulthandler.register(signal.SIGUSR1)
    try:
        live(folder, name)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        code = 2
    # what a process does that was not forked
    atexit._run_exitfuncs()
    os._exit(code)


def killed_until_done(
    folder: Path, whole: Unbroken, name: str, draw: random.Random, *, most: int
) -> RankDeaths:
    """Kill one rank or the other again and again, let the run end, and compare it.

    Args:
        folder: of the run.
        whole: the unbroken run.
        name: of ``RUNS``.
        draw: says when, and whom.
        most: kills after which it is left alone.
    """
    deaths = RankDeaths()
    while True:
        left = whole.left(folder)
        processes = start(folder, name)
        victim = draw.randrange(RANKS)
        if deaths.kills < most and _hit(processes, victim, folder, draw, left, deaths):
            if deaths.wrong:
                return deaths
            continue
        for process in processes:
            process.join(SLOWEST)
        codes = [process.exitcode for process in processes]
        if codes != [0] * RANKS:
            deaths.wrong.append(f"exit codes {codes}: {said(folder)}")
            return deaths
        break
    deaths.wrong += compared(whole.folder, folder)
    return deaths


def _hit(
    processes: list[Any],
    victim: int,
    folder: Path,
    draw: random.Random,
    left: float,
    deaths: RankDeaths,
) -> bool:
    """Kill one of the ranks, and see the others leave; False where they had ended before."""
    _wait(processes, folder, draw, left)
    if processes[victim].exitcode is not None:
        return False
    met = all(_met(folder, rank).exists() for rank in range(RANKS))
    deaths.inside += any(folder.glob(".checkpoint-*.part"))
    processes[victim].kill()
    killed = time.monotonic()
    deaths.kills += 1
    deaths.of_rank[victim] += 1
    deaths.unmet += not met
    for rank, process in enumerate(processes):
        if rank != victim and met:
            process.join(LEAVE)
            deaths.leaving.append(time.monotonic() - killed)
        if process.exitcode is None:
            if rank != victim and met:
                os.kill(process.pid, signal.SIGUSR1)
                time.sleep(1)
                deaths.wrong.append(f"rank {rank} did not leave: {said(folder)}")
            process.kill()
        process.join()
    return True


def _wait(processes: list[Any], folder: Path, draw: random.Random, left: float) -> None:
    """Until a random instant of a life, or one within the writing of a checkpoint."""
    end = time.monotonic() + draw.uniform(0, left)
    inside, skipped = draw.random() < 0.5, draw.randrange(2)
    if inside:
        end = time.monotonic() + SLOWEST
    while all(process.exitcode is None for process in processes) and time.monotonic() < end:
        if inside and any(folder.glob(".checkpoint-*.part")):
            if not skipped:
                time.sleep(draw.uniform(0, 0.02))
                return
            skipped -= 1
            while any(folder.glob(".checkpoint-*.part")) and time.monotonic() < end:
                time.sleep(0.001)
        time.sleep(0.001)


def compared(whole: Path, folder: Path, *, last: str = LAST) -> list[str]:
    """What differs of two runs, beside times.

    Args:
        whole: folder of the one.
        folder: of the other.
        last: name of the checkpoint after their last step.
    """
    found = differences(whole / last, folder / last, checked=False)
    # the order of a header's metadata is not the same in two processes
    wrong = [
        name
        for name in found
        if "/shard-" not in name
        or " " in name
        or parts_in(whole / last / name) != parts_in(folder / last / name)
    ]
    if lines(folder) != lines(whole):
        wrong.append("the streams")
    ends = {path.name for one in (whole, folder) for path in one.glob("*.safetensors")}
    if not ends:
        wrong.append("no final file")
    for final in sorted(ends):
        bits = [path.read_bytes() for one in (whole, folder) if (path := one / final).is_file()]
        if len(bits) < 2 or bits[0] != bits[1]:
            wrong.append(f"the final {final}")
    left = [path.name for path in folder.glob(".*") if not path.name.startswith(".lock")]
    return wrong + [f"left behind: {left}"] * bool(left)


def parts_in(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a file of shards holds: where its parts lie in their tensors, and all of their bits."""
    with safe_open(path, framework="pt") as file:
        places = json.loads(file.metadata()["DCP_SHARDING_INFO"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    bits = {n: one.reshape(-1).view(torch.uint8).numpy().tobytes() for n, one in tensors.items()}
    return {"places": places, "shapes": {n: list(t.shape) for n, t in tensors.items()}}, bits


def said(folder: Path) -> str:
    """The last words of the ranks."""
    logs = [_log(folder, rank) for rank in range(RANKS)]
    return " | ".join(log.read_text(errors="replace")[-2500:] for log in logs if log.is_file())


def unbroken(folder: Path, name: str) -> Unbroken:
    """A run that nobody hits."""
    warm = server.Process(target=int)  # so that no life waits for what the server imports
    warm.start()
    warm.join()
    began = time.monotonic()
    processes = start(folder, name)
    for process in processes:
        process.join(SLOWEST)
    if [process.exitcode for process in processes] != [0] * RANKS:
        raise SystemExit(said(folder))
    seconds = time.monotonic() - began
    training = next(m["train_runtime"] for m in read_run(folder).metrics if "train_runtime" in m)
    return Unbroken(folder, seconds, min(training, seconds))


def main() -> int:
    """Kill until both counts are reached; the exit code is 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--inside", type=int, default=15, help="kills while saving")
    parser.add_argument("--most", type=int, default=8, help="kills of one run")
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    draw, began = random.Random(wanted.seed), time.monotonic()
    dead: list[RankDeaths] = []

    def total(what: str) -> int:
        return sum(getattr(one, what) for one in dead)

    with tempfile.TemporaryDirectory(prefix="counterpoint-shards-") as place:
        whole: dict[str, Unbroken] = {}
        while total("kills") < wanted.kills or total("inside") < wanted.inside:
            name = list(RUNS)[len(dead) % len(RUNS)]
            if name not in whole:
                whole[name] = unbroken(Path(place) / f"whole-{len(whole)}", name)
            folder = Path(place) / f"run-{len(dead)}"
            most = min(wanted.most, max(1, wanted.kills - total("kills")))
            dead.append(killed_until_done(folder, whole[name], name, draw, most=most))
            verdict = "; ".join(dead[-1].wrong) or "equal to the bit"
            print(
                f"run {len(dead)}, {name}: {dead[-1].kills} kills, {dead[-1].inside} inside; "
                f"{verdict} ({time.monotonic() - began:.0f} s)",
                flush=True,
            )
            shutil.rmtree(folder, ignore_errors=True)
    good = [one for one in dead if not one.wrong]
    leaving = sorted(seconds for one in dead for seconds in one.leaving)
    each = [sum(one.of_rank[rank] for one in dead) for rank in range(RANKS)]
    print(
        f"{len(dead)} runs of {RANKS} ranks, {total('kills')} kills of one of them (rank by rank "
        f"{each}), {total('inside')} while a checkpoint was being written, {total('unmet')} before "
        f"they had met: {sum(one.kills for one in good)} of {total('kills')} in {len(good)} of "
        f"{len(dead)} runs that equal the unbroken one to the bit. The other rank left within "
        f"{leaving[-1]:.1f} s, half of them within {leaving[len(leaving) // 2]:.1f} s "
        f"({time.monotonic() - began:.0f} s in all)"
    )
    return 0 if len(good) == len(dead) else 1


if __name__ == "__main__":
    sys.exit(main())
