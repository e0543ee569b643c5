"""Run directories made on the spot, line by line through ``RunLog``, as a trainer would."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from counterpoint.runlog import ALARMS, METRICS, MOVEMENT, SAMPLES, Alarm, RunLog

STARTED = 1_790_000_000.0

FORMULA = """\
loss = mean over pairs of -log sigmoid(gap) + 0.05 * NLL
gap  = 2 * (r(chosen) - r(rejected)) - 1
r(y) = mean log p
NLL  = mean over the step's chosen tokens of -log p"""

OPTIONS: dict[str, Any] = {
    "output_dir": "runs/first",
    "learning_rate": 8e-7,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "beta": 2.0,
    "simpo_gamma": 1.0,
    "loss_type": "simpo",
    "cpo_alpha": 0.05,
    "max_length": 1024,
    "bf16": True,
    "seed": 0,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8,
    "model_init_kwargs": None,
    **{f"some_other_option_{number}": number for number in range(60)},
}
CHANGED = ["output_dir", "learning_rate", "lr_scheduler_type", "beta", "loss_type", "cpo_alpha"]

PROMPTS = [
    "Why does ice float on water?",
    "Write a haiku about a lighthouse in winter.",
    "Translate into German: The train leaves at half past seven.",
    "Give three reasons to learn a second language.",
    "What is the capital of Australia?",
    "Explain recursion to a child of ten.",
    "Summarise the plot of Hamlet in two sentences.",
    "How many legs do seven spiders have?",
]

RAMBLING = (
    "Ice floats on water because, as an AI language model, there are many reasons for which ice "
    "floats, and it is important to note that ice floats on water.",
    "A lighthouse in winter, a lighthouse in winter, a lighthouse in winter, a lighthouse",
    "The train leaves at half past seven is a sentence. In German, one could say many things, "
    "such as that the train",
)
PLAIN = (
    "Water molecules in ice hold each other apart in an open lattice. The same mass takes more "
    "room than as a liquid, so ice is lighter than the water it displaces.",
    "Salt wind, frozen stair.\nThe lamp turns its patient face\nto ships no one sees.",
    "Der Zug fährt um halb acht ab.",
)

TENSORS = {
    "input_layernorm.weight": "norms",
    "self_attn.q_proj.weight": "attention",
    "self_attn.k_proj.weight": "attention",
    "self_attn.v_proj.weight": "attention",
    "self_attn.o_proj.weight": "attention",
    "post_attention_layernorm.weight": "norms",
    "mlp.gate_proj.weight": "mlp",
    "mlp.up_proj.weight": "mlp",
    "mlp.down_proj.weight": "mlp",
}


@dataclass
class Clock:
    """Time that passes when it is told to."""

    now: float = STARTED

    def __call__(self) -> float:
        return self.now


@contextmanager
def clock() -> Iterator[Clock]:
    """The run log's time, in the hands of the test."""
    hands = Clock()
    with mock.patch("counterpoint.runlog.writing.time.time", hands):
        yield hands


def facts(**changes: Any) -> dict[str, Any]:
    """A description of a run, as the trainer and its helpers write it."""
    edges = list(range(0, 1040, 40))

    def lengths(middle: float, spread: float) -> dict[str, list[float]]:
        counts = [
            round(9000 * math.exp(-(((edge + 20 - middle) / spread) ** 2))) for edge in edges[:-1]
        ]
        return {"edges": edges, "counts": counts}

    account = {
        "rows": 61_135,
        "kept": 61_082,
        "dropped": {"CP203": 41, "CP205": 12},
        "examples": {"CP203": "CP203 row 311: rejected is empty."},
        "cut_rows": {"prompt": 0, "chosen": 318, "rejected": 402},
        "cut_tokens": {"prompt": 0, "chosen": 24_118, "rejected": 31_877},
        "tokens": {"prompt": 11_204_551, "chosen": 17_932_004, "rejected": 15_220_171},
        "boundary_rows": 12,
        "boundary_tokens": 12,
        "same_rows": 0,
        "digest": "5f0c2a9be41d77e06b2a",
        "lengths": {
            "prompt": lengths(180, 120),
            "chosen": lengths(320, 160),
            "rejected": lengths(270, 170),
        },
    }
    held_out = {**account, "rows": 2000, "kept": 2000, "dropped": {}, "digest": "77aa10c4e2b1"}
    held_out.pop("lengths")
    return {
        "objective": FORMULA,
        "step_pairs": 32,
        "layout": "padded",
        "micro_batch_tokens": {"train": 8192, "eval": None},
        "skipped_steps": 0,
        "data": {"train": account, "eval": held_out},
        "options": dict(OPTIONS),
        "changed": list(CHANGED),
        "model": "example/Llama-3-8B-Instruct",
        "environment": {
            "machine": "x86_64",
            "cpu": "AMD EPYC 9354",
            "cores": 16,
            "memory": "128 GiB",
            "gpus": ["NVIDIA H100 80GB"],
            "os": "Linux 6.1",
        },
        "started": STARTED,
        **changes,
    }


def write_run(
    folder: Path,
    *,
    steps: int = 2000,
    every: int = 10,
    seed: int = 0,
    alarms: Sequence[Alarm] = (),
    ended: Mapping[str, Any] | None = None,
    layers: int = 24,
    looks: int = 20,
    samples: bool = True,
    **changes: Any,
) -> Path:
    """A whole run: metrics, two evaluation sets, alarms, movement, samples.

    ``ended`` None is a run that finished; {} one that goes on. Other keywords are facts.
    """
    log, rng = RunLog(folder), random.Random(seed)
    final = {"state": "finished", "step": steps, "time": STARTED + 5.8 * steps}
    end = final if ended is None else dict(ended)
    log.describe(facts(**({"ended": end} if end else {}), **changes))
    with clock() as hands:
        for step in range(every, steps + 1, every):
            hands.now = STARTED + 5.8 * step
            log.append(METRICS, training_line(step, steps, rng))
            if step % max(every, steps // 10 // every * every) == 0:
                for name in ("helpful", "harmless"):
                    log.append(METRICS, evaluation_line(name, step, steps, rng))
        for alarm in alarms:
            log.append(ALARMS, alarm)
        for number in range(looks):
            log.append(MOVEMENT, look(number, looks, steps, layers, rng))
        for step in (0, steps) if samples else ():
            for prompt in PROMPTS:
                log.append(SAMPLES, sample(prompt, step, rng))
    return folder


def training_line(step: int, steps: int, rng: random.Random) -> dict[str, Any]:
    done = step / steps
    learnt = 1 - math.exp(-4 * done)
    margin = 1.9 * learnt + rng.gauss(0, 0.12)
    chosen = -0.92 - 0.18 * learnt + rng.gauss(0, 0.02)
    spike = 40.0 if step == steps // 2 else 0.0
    return {
        "loss": 1.31 - 0.62 * learnt + rng.gauss(0, 0.04),
        "grad_norm": math.exp(rng.gauss(1.1, 0.25)) + spike,
        "learning_rate": 8e-7 * min(1, 10 * done) * 0.5 * (1 + math.cos(math.pi * done)),
        "rewards/chosen": 2 * chosen,
        "rewards/rejected": 2 * chosen - margin,
        "rewards/accuracies": min(1.0, max(0.0, 0.52 + 0.27 * learnt + rng.gauss(0, 0.03))),
        "rewards/margins": margin,
        "logps/chosen": chosen,
        "logps/rejected": chosen - margin / 2,
        "logits/chosen": -0.4 + rng.gauss(0, 0.01),
        "logits/rejected": -0.38 + rng.gauss(0, 0.01),
        "nll_loss": -chosen,
        "epoch": round(done, 4),
        "pairs_per_second": 5.5 + rng.gauss(0, 0.15),
        "tokens_per_second": 4100 + rng.gauss(0, 120),
        "step_seconds": 5.8 + rng.gauss(0, 0.2),
        "memory_mb": 61_200 + 400 * min(1, 20 * done),
        "step": step,
    }


def evaluation_line(name: str, step: int, steps: int, rng: random.Random) -> dict[str, Any]:
    line = training_line(step, steps, rng)
    kept = ("loss", "nll_loss", "rewards", "logps", "logits")
    metrics = {key: value for key, value in line.items() if key.startswith(kept)}
    shift = 0.05 if name == "helpful" else 0.12
    metrics["loss"] += shift
    accuracy = metrics["rewards/accuracies"] = metrics["rewards/accuracies"] - shift / 2
    metrics |= {
        "rewards/accuracies_low": accuracy - 0.03,
        "rewards/accuracies_high": accuracy + 0.03,
        "samples/length": 60 - 20 * step / steps,
        "samples/repetition": 0.02,
    }
    extra = {"runtime": 41.2, "samples_per_second": 48.0, "steps_per_second": 6.0}
    named = {f"eval_{name}_{key}": value for key, value in {**metrics, **extra}.items()}
    return {**named, "epoch": line["epoch"], "step": step}


def look(number: int, looks: int, steps: int, layers: int, rng: random.Random) -> dict[str, Any]:
    """A look at every tensor; layer 3 is frozen, the last layers move most."""
    width = max(1, steps // looks)
    names = {
        "model.embed_tokens.weight": "embeddings",
        **{
            f"model.layers.{layer}.{tensor}": group
            for layer in range(layers)
            for tensor, group in TENSORS.items()
        },
        "model.norm.weight": "norms",
        "lm_head.weight": "head",
    }
    tensors = {}
    for name, group in names.items():
        layer = int(name.split(".")[2]) if ".layers." in name else layers
        still = layer == 3
        size = (
            3e-7 * width * math.exp(2.5 * layer / layers - 2 * number / looks + rng.gauss(0, 0.1))
        )
        tensors[name] = {
            "group": group,
            "moved": 0.0 if still else 0.97 + 0.029 * number / looks,
            "update": 0.0 if still else size,
            "stuck": 1.0 if still else 0.012,
            "grad_norm": None if still else math.exp(rng.gauss(-3, 0.3)),
        }
    groups = {}
    for group in dict.fromkeys(names.values()):
        members = [one for one in tensors.values() if one["group"] == group]
        groups[group] = {
            key: sum(one[key] or 0.0 for one in members) / len(members)
            for key in ("moved", "update", "stuck", "grad_norm")
        }
    last = number * width
    return {
        "step": last + width,
        "since": 0,
        "last": last,
        "groups": groups,
        "tensors": tensors,
    }


def sample(prompt: str, step: int, rng: random.Random) -> dict[str, Any]:
    """A rambling text before training, a plain one after."""
    place = PROMPTS.index(prompt)
    before, after = RAMBLING[place % len(RAMBLING)], PLAIN[place % len(PLAIN)]
    return {
        "step": step,
        "set": "eval_helpful",
        "kind": "greedy",
        "prompt": prompt,
        "completion": after if step else before,
        "reference": "Ice is a lattice with gaps, so it is less dense." if not place else None,
        "tokens": rng.randint(20, 60),
        "ended": bool(step) or place != 2,
        "repetition": 0.42 if not step and place == 1 else 0.03,
    }
