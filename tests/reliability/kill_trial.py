"""Runs as users start them, killed from outside until they end: every exit code, every difference.

    python -m tests.reliability.kill_trial [--kills 150] [--seed 0] [--jobs 1] [--only NAME]

``make torture`` forks its runs and looks into them; here nothing is shared with the program but its
command line and two scripts. A run is the command or a script, alone or under torchrun, and is hit
at a random instant of its life, while it imports, prepares, trains, saves or leaves: by SIGKILL
(all of it, or one rank), SIGTERM or SIGINT. It is started again with the same words until it
ends, and then compared with the run that nobody hit: weights, optimizer, generators, streams.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from counterpoint.checkpoint.folder import checkpoints
from tests.reliability.scenarios import differences, lines
from tests.reliability.test_ranks_die import environment, free_port

LEAVE = 35
"""Seconds that processes have to leave; torchrun gives its ranks thirty before it kills them."""

BASE = {
    "model": "model",
    "dataset": "pairs.jsonl",
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "logging_steps": 2,
    "save_strategy": "steps",
    "save_steps": 3,
    "save_total_limit": 3,
    "num_train_epochs": 4,
    "report_to": "none",
    "use_cpu": True,
}
"""Four epochs of twelve pairs: twenty-four steps, of which every third is saved."""

BEST = {
    "eval_dataset": "held.jsonl",
    "eval_strategy": "steps",
    "eval_steps": 3,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
}
LORA = {"lora_r": 2, "lora_dropout": 0.2, "disable_dropout": False}
TRANSLATOR = {
    "model": "translator",
    "dataset": "translations.jsonl",
    "source_lang": "en_XX",
    "target_lang": "de_DE",
    "disable_dropout": False,
    "learning_rate": 1e-4,
}
BOUNDS = {
    "constraints": [
        {"kind": "bc", "slack": 0.5},
        {"kind": "safety", "data": "held.jsonl", "bound": 0.2},
    ]
}

SCRIPT = """
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, EarlyStoppingCallback
from counterpoint import CPOConfig, CPOTrainer

rows = load_dataset("json", data_files={"train": "pairs.jsonl", "test": "held.jsonl"})
trainer = CPOTrainer(
    model=AutoModelForCausalLM.from_pretrained("model", dtype="float32"),
    processing_class=AutoTokenizer.from_pretrained("model"),
    args=CPOConfig(
        output_dir="out", per_device_train_batch_size=2, learning_rate=0.1, logging_steps=2,
        save_steps=3, save_total_limit=3, num_train_epochs=8, eval_strategy="steps", eval_steps=3,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", report_to="none",
        use_cpu=True, disable_tqdm=True,
    ),
    train_dataset=rows["train"],
    eval_dataset=rows["test"],
    callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
)
trainer.train(resume_from_checkpoint="auto")
trainer.save_model()
"""


@dataclass(frozen=True)
class Scenario:
    """A run that is killed.

    Args:
        options: of the command; None: the script, which stops early.
        ranks: processes, under torchrun where more than one.
    """

    options: dict[str, object] | None
    ranks: int = 1


SCENARIOS = {
    "an adapter with dropout, the best model": Scenario(BASE | BEST | LORA),
    "constraints, with a second set": Scenario(BASE | BOUNDS),
    "a stream": Scenario(BASE | {"streaming": True, "max_steps": 24}),
    "a script that stops early": Scenario(None),
    "an encoder-decoder with dropout": Scenario(BASE | TRANSLATOR),
    "workers": Scenario(BASE | {"dataloader_num_workers": 1}),
    "two ranks, an adapter with dropout, the best model": Scenario(BASE | BEST | LORA, ranks=2),
    "two ranks, constraints": Scenario(BASE | BOUNDS, ranks=2),
    "two ranks, a script that stops early": Scenario(None, ranks=2),
}

RIGHT: dict[str, dict[int, str]] = {
    "KILL": {-signal.SIGKILL: "killed"},
    "TERM": {143: "saved and left", -signal.SIGTERM: "before the run had begun"},
    "INT": {130: "saved and left", -signal.SIGINT: "before the run had begun"},
    # signals of a script are Python's own; some imports turn an interrupt into an error of theirs
    "TERM, script": {-signal.SIGTERM: "Python's own"},
    "INT, script": {-signal.SIGINT: "Python's own", 1: "an import's error"},
    # torchrun turns its ranks' ends into its own; what each said is in their output
    "KILL, two ranks": {-signal.SIGKILL: "killed"},
    "KILL of one rank": {1: "torchrun's, for the rank that was killed"},
    "TERM, two ranks": {
        1: "torchrun's, for ranks that left with 143",
        -signal.SIGTERM: "before torchrun had begun",
        143: "torchrun's own",
    },
    "INT, two ranks": {
        1: "torchrun's, for ranks that left with 130",
        -signal.SIGINT: "before torchrun had begun",
        130: "torchrun's own",
    },
}
"""How a life may end that was hit, and why; 0, where it had ended before, is right as well."""


@dataclass(slots=True)
class Account:
    """What became of a run.

    Args:
        kills: that hit a running life.
        inside: of these, while a checkpoint was being written.
        ends: how lives ended, counted.
        wrong: everything that should not be.
    """

    kills: int = 0
    inside: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def main() -> int:
    """Hit runs until there were enough kills; the exit code is 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=6, help="kills of one run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", default="", help="scenarios with this in their name")
    wanted = parser.parse_args()
    names = [name for name in SCENARIOS if wanted.only in name]
    began, total, runs = time.monotonic(), Account(), 0
    with tempfile.TemporaryDirectory(prefix="counterpoint-kills-") as place:
        whole = {name: _whole(Path(place), n, name) for n, name in enumerate(names)}

        def one(number: int) -> tuple[int, str, Account]:
            name = names[number % len(names)]
            draw = random.Random(f"{wanted.seed} {number}")
            folder = _folder(Path(place), f"run-{number}")
            account = _hit_until_done(folder, name, *whole[name], draw, most=wanted.most)
            shutil.rmtree(folder)
            return number, name, account

        with ThreadPoolExecutor(wanted.jobs) as pool:
            while total.kills < wanted.kills:
                batch = range(runs, runs := runs + wanted.jobs)
                for number, name, account in pool.map(one, batch):
                    total.kills += account.kills
                    total.inside += account.inside
                    total.ends += account.ends
                    total.wrong += [f"run {number}, {name}: {text}" for text in account.wrong]
                    verdict = "; ".join(account.wrong) or "equal to the bit"
                    print(f"run {number}, {name}: {account.kills} kills, {verdict}", flush=True)
    print(
        f"{runs} runs, {total.kills} kills, {total.inside} while a checkpoint was being written; "
        f"{len(total.wrong)} things wrong ({time.monotonic() - began:.0f} s)"
    )
    for end, times in sorted(total.ends.items()):
        print(f"  {times:4d}  {end}")
    return 1 if total.wrong else 0


def _whole(place: Path, number: int, name: str) -> tuple[Path, float]:
    """A run that nobody hits, and how long it took."""
    folder = _folder(place, f"whole-{number}")
    began = time.monotonic()
    process = _start(folder, name)
    if process.wait(600) != 0:
        raise SystemExit(f"{name}: {(folder / 'said').read_text()[-3000:]}")
    taken = time.monotonic() - began
    print(f"{name}: {taken:.0f} s, {[path.name for path in checkpoints(folder / 'out')]}")
    return folder, taken


def _folder(place: Path, name: str) -> Path:
    """A folder with a model and data, where a run takes place."""
    from transformers import PreTrainedTokenizerFast

    from counterpoint.quickstart.task import preference_pairs
    from counterpoint.quickstart.translate import load_base
    from tests.models_on_the_spot import make_model
    from tests.tokenizers_on_the_spot import byte_level

    folder, shared = place / name, place / "shared"
    if not shared.is_dir():
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=byte_level(["</s>", "<pad>"]), eos_token="</s>", pad_token="<pad>"
        )
        make_model("qwen2", vocab_size=len(tokenizer)).save_pretrained(shared / "model")
        tokenizer.save_pretrained(shared / "model")
        for file, numbers in (("pairs.jsonl", range(12)), ("held.jsonl", range(20, 25))):
            rows = (
                {"prompt": f"{n} and {n}?", "chosen": f" It is {2 * n}.", "rejected": f" {n}?"}
                for n in numbers
            )
            (shared / file).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        translator, of_translator = load_base(encoder_decoder=True)
        translator.config.dropout = 0.1
        for part in (translator, of_translator):
            part.save_pretrained(shared / "translator")
        (shared / "translations.jsonl").write_text(
            "".join(f"{json.dumps(pair.translation)}\n" for pair in preference_pairs(12, seed=0))
        )
    folder.mkdir()
    for one in shared.iterdir():
        (folder / one.name).symlink_to(one)
    return folder


def _start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    scenario = SCENARIOS[name]
    words = [sys.executable, "-W", "ignore"]
    if scenario.ranks > 1:
        port = f"--master_port={free_port()}"
        words += ["-m", "torch.distributed.run", f"--nproc_per_node={scenario.ranks}", port]
    if scenario.options is None:
        (folder / "script.py").write_text(SCRIPT)
        words += ["script.py"]
    else:
        (folder / "run.yaml").write_text(yaml.safe_dump(scenario.options))
        words += ["-m", "counterpoint", "train", "run.yaml", "--output_dir", "out"]
        words += ["--resume", "auto"]
    with (folder / "said").open("ab") as said:
        return subprocess.Popen(
            words, cwd=folder, env=environment(), stdout=said, stderr=said, start_new_session=True
        )


def _hit_until_done(
    folder: Path, name: str, whole: Path, taken: float, draw: random.Random, *, most: int
) -> Account:
    account = Account()
    while True:
        process = _start(folder, name)
        if account.kills >= most:
            code = process.wait(600)
            break
        _wait(process, folder / "out", taken, draw)
        inside = any((folder / "out").glob(".checkpoint-*.part"))
        everyone = _everyone(process)
        how = _hit(process, SCENARIOS[name], draw) if process.poll() is None else ""
        code = process.wait(600)
        if left := _left_running(everyone):
            account.wrong.append(f"{how}: {left}")
        if code == 0:
            account.ends["0, it had ended before"] += 1 if how else 0
            break
        account.kills += 1
        account.inside += inside
        meaning = RIGHT.get(how, {}).get(code)
        account.ends[f"{how}: {code}, {meaning or 'NOT EXPECTED'}"] += 1
        said = (folder / "said").read_text(errors="replace")
        if meaning is None:
            account.wrong.append(f"{how} ended with {code}: {said[-1500:]}")
    if code != 0:
        account.wrong.append(f"it ended with {code}: {(folder / 'said').read_text()[-1500:]}")
    else:
        account.wrong += _compared(whole / "out", folder / "out")
    return account


def _wait(process: subprocess.Popen[bytes], out: Path, taken: float, draw: random.Random) -> None:
    """Until a random instant of a whole life, or one within the writing of a checkpoint."""
    end = time.monotonic() + draw.uniform(0, taken)
    if draw.random() < 0.4:
        end = time.monotonic() + taken
        while process.poll() is None and time.monotonic() < end:
            if any(out.glob(".checkpoint-*.part")) and draw.random() < 0.2:
                return
            time.sleep(0.001)
        return
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def _hit(process: subprocess.Popen[bytes], scenario: Scenario, draw: random.Random) -> str:
    """Hit a life; in which way."""
    how = draw.choices(["KILL", "TERM", "INT", "KILL of one rank"], [5, 2, 2, 2])[0]
    if how == "KILL of one rank":
        ranks = psutil.Process(process.pid).children()
        if len(ranks) == scenario.ranks > 1:
            draw.choice(ranks).kill()
            return how
        how = "KILL"
    if how == "KILL":  # as a scheduler ends a job: everything at once
        for one in _everyone(process):
            one.kill()
    else:
        process.send_signal(getattr(signal, f"SIG{how}"))
    if scenario.ranks > 1:
        return f"{how}, two ranks"
    return f"{how}, script" if scenario.options is None and how != "KILL" else how


def _everyone(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A life's own process and all below it; torchrun's ranks are sessions of their own."""
    try:
        own = psutil.Process(process.pid)
        return [own, *own.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _left_running(everyone: list[psutil.Process]) -> str:
    """Who outlives a life by more than a moment; they are killed."""
    _, left = psutil.wait_procs(everyone, timeout=LEAVE)
    for one in left:
        one.kill()
    return f"{len(left)} of its processes still ran {LEAVE} s later" if left else ""


def _compared(whole: Path, out: Path) -> list[str]:
    """What differs of two runs, beside times."""
    wrong = []
    expected = [path.name for path in checkpoints(whole)]
    if [path.name for path in checkpoints(out)] != expected:
        wrong.append(f"checkpoints {[path.name for path in checkpoints(out)]}, not {expected}")
    else:
        for name in expected:
            found = differences(whole / name, out / name, checked=False)
            wrong += [f"{name}: {text}" for text in found]
    for path in sorted(whole.glob("*.safetensors")):
        if not (out / path.name).is_file() or (out / path.name).read_bytes() != path.read_bytes():
            wrong.append(f"the final {path.name}")
    wrong += [
        f"stream {stream}" for stream, kept in lines(whole).items() if lines(out)[stream] != kept
    ]
    return wrong


if __name__ == "__main__":
    sys.exit(main())
