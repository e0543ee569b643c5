"""The cases of test_ranks, run by one process or by each of several.

As a script it is one rank: it trains every case and rank 0 writes what it saw.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from counterpoint.data.encode import COLUMNS
from counterpoint.data.pair_columns import GIVEN_COLUMNS, GOLD_IDS
from tests.reliability.trials import TORTURE

HELD: list[dict[str, Any]] = [
    {"kind": "bc", "slack": -0.01, "rate": 50.0},
    {"kind": "absolute_preference", "bound": 0.5, "margin": 1.0, "update": "nu_pi", "nu": 0.3},
    {"kind": "displacement", "bound": 0.0, "update": "augmented_lagrangian"},
    {"kind": "bc", "name": "ascent", "bound": 1.0, "update": "dual_ascent"},
    {"kind": "kl_drift", "bound": 0.0, "rate": 50.0},
]
"""Each kind that reads the step's own pairs, and each rule; bounds that are not held at first."""

OF_RANKS = ("sigmoid", "ipo", "simpo", "orpo", "repo", "simper", "arpo", "tpo")

CASES: dict[str, dict[str, Any]] = {
    **{name: {"objective": name} for name in OF_RANKS},
    "hinge, fp32": {"objective": "hinge", "dtype": "float32"},
    "alphapo, paper's NLL": {"objective": "alphapo", "nll_reduction": "sequence_sum"},
    "experts": {"objective": "sigmoid", "kind": "qwen3_moe", "router_aux_loss_coef": 1.0},
    "a reference": {"objective": "hypo", "reference": True, "pairs": 11},
    "lists of rejected completions, and a reference": {
        "objective": "dpo, shorter",
        "kind": "phi",  # in float64 throughout: what pairs have in common depends on the cut
        "reference": True,
        "lists": 6,
    },
    "a reference and a second set": {
        "objective": "dpop, shorter and weighed",
        "reference": True,
        "pairs": 16,
        "max_micro_batch_tokens": 40,
        "constraints": [{"kind": "safety", "bound": 0.1, "start": 0.7}],
        "second": 11,
    },
    "cut by tokens": {"objective": "sigmoid", "kind": "phi", "max_micro_batch_tokens": 40},
    "padded": {"objective": "sigmoid", "layout": "padded", "pairs": 9},
    "weighed and shorter": {"objective": "hinge, shorter and weighed", "pairs": 11},
    "checkpointed": {"objective": "sigmoid", "gradient_checkpointing": True},
    "short last step": {"objective": "sigmoid", "pairs": 11},
    "last step of one pair": {"objective": "sigmoid", "pairs": 9},
    "streamed, short last step": {"objective": "sigmoid", "pairs": 11, "stream": True},
    "streamed in lanes, short last step": {
        "objective": "sigmoid",
        "pairs": 11,
        "stream": 2,
        "stream_shards": 2,
    },
    "constrained": {"objective": "sigmoid", "pairs": 24, "constraints": HELD},
    "constrained, normalised, cut by tokens": {
        "objective": "cpo-simpo",
        "pairs": 24,
        "constraints": HELD[:2],
        "constraint_normalization": True,
        "max_micro_batch_tokens": 40,
    },
    **{
        f"a second set, {name}": {
            "objective": "simpo",
            "pairs": 24,
            "constraints": [{"kind": "safety", "bound": 0.1, "start": 0.7, **more}],
            "second": 11,
        }
        # fewer of its pairs than ranks with a step; and passes of two steps
        for name, more in {"of one pair": {"pairs": 1}, "of half of it": {"pairs": 6}}.items()
    },
    "a second set does not fit": {
        "objective": "sigmoid",
        "pairs": 16,
        "layout": "padded",
        "constraints": [{"kind": "safety", "bound": 0.1, "start": 0.7}],
        "second": 11,
        "memory": (60, "backward"),
    },
    # memory that runs out on rank 1 alone
    **{
        f"{where} does not fit": {
            "objective": "sigmoid",
            "pairs": 16,
            "layout": "padded",
            "memory": (60, where),
        }
        for where in ("forward", "backward")
    },
    **{
        f"{where} of the only micro-batch does not fit": {
            "objective": "sigmoid",
            "pairs": 16,
            "micro_batch": 4,
            "memory": (90, where),  # above what the proof of the layout takes, on any rank's pairs
        }
        for where in ("forward", "backward")
    },
    "encoder-decoder, constrained": {
        "objective": "simpo",
        "kind": "nllb",
        "pairs": 11,
        "constraints": [HELD[0], HELD[4]],
    },
    "encoder-decoder, cut by tokens": {
        "objective": "sigmoid",
        "kind": "mbart",
        "max_micro_batch_tokens": 60,
        "generate_during_eval": True,
        "eval_samples": 3,
        "eval_sample_tokens": 4,
    },
    # the last micro-batch of one rank shows none, and that of the other does; with checkpointing
    # transformers would not have DDP look for weights that are not used
    "pictures in some pairs": {
        "objective": "sigmoid",
        "kind": "llava",
        "gradient_checkpointing": True,
    },
    "buffers broadcast": {"objective": "sigmoid", "pairs": 16, "ddp_broadcast_buffers": True},
    "writing": {
        "objective": "sigmoid",
        "generate_during_eval": True,
        "eval_samples": 5,
        "eval_sample_tokens": 6,
        "eval_sample_temperature": 1.0,
    },
    "a third completion and a second set, cut by tokens": {
        "objective": "tpo_l",
        "pairs": 11,
        "max_micro_batch_tokens": 60,
        "constraints": [{"kind": "safety", "bound": 0.1, "start": 0.7}, HELD[0]],
        "second": 11,
    },
    "experts do not fit": {
        "objective": "sigmoid",
        "kind": "qwen3_moe",
        "micro_batch": 4,
        "memory": (90, "backward"),
    },
}
TORTURED = {
    *("ipo", "orpo", "repo", "simper", "arpo", "tpo", "alphapo, paper's NLL", "padded"),
    "last step of one pair",
    *("streamed, short last step", "a second set, of half of it", "buffers broadcast"),
    *("forward does not fit", "forward of the only micro-batch does not fit"),
}
"""Cases of which another is nearly the same; CI leaves them to make torture."""
if not TORTURE:
    CASES = {name: case for name, case in CASES.items() if name not in TORTURED}

STEP_PAIRS = 8


def listed(count: int) -> Dataset:
    """Rows of one, two and three rejected completions in turn, each of which makes a pair."""
    rows = [
        {
            "prompt": f"Say {number}:",
            "chosen": f" {number}, as you wish" * (1 + number % 2),
            "rejected": [" no", f" not {number}", " perhaps another time"][: 1 + number % 3],
            "weight": 1.0 + number / 4,
        }
        for number in range(count)
    ]
    return Dataset.from_list(rows)


def run_case(case: dict[str, Any], folder: Path, ranks: int) -> dict[str, Any]:
    """Train one case on this rank; gradients of each step, log lines, an evaluation."""
    from counterpoint.runlog import read_run
    from tests.small_memory import SmallMemory
    from tests.steps import OBJECTIVES, random_pairs, reads_gold, train_watched, with_gold

    case = dict(case)
    options = {**OBJECTIVES[case.pop("objective")]}
    dtype = getattr(torch, case.pop("dtype", "float64"))
    kind = case.pop("kind", "qwen2_tied")
    model, tokenizer, pairs, held_out = made(kind, case)
    if reads_gold(options):
        pairs, held_out = with_gold(pairs), with_gold(held_out)
    model = model.to(dtype)
    options |= reference_of(kind, dtype, folder) if case.pop("reference", False) else {}
    second = case.pop("second", None)
    own = None if second is None else {"safety": random_pairs(second, seed=5)}
    small = case.pop("memory", None)
    memory = SmallMemory(model, *small) if small and os.environ.get("RANK") == "1" else None
    micro_batch = case.pop("micro_batch", 2)
    bad = case.pop("bad_row", None)
    if bad is not None:
        pairs = pairs.map(lambda row: {"margin": math.nan if row["row"] == bad else 0.0})
    shards = int(case.pop("stream", 0))
    if shards:
        options["max_steps"] = -(-len(pairs) // STEP_PAIRS)
        pairs = as_stream(pairs, shards)
    steps, trainer = train_watched(
        model,
        tokenizer,
        pairs,
        folder,
        own,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=STEP_PAIRS // (micro_batch * ranks),
        per_device_eval_batch_size=2,
        ddp_backend="gloo" if ranks > 1 else None,
        **options,
        **case,
    )
    assert memory is None or memory.failed, "nothing ran out of memory"
    evaluated = trainer.evaluate(held_out)
    scores = trainer.measure(held_out).scores()
    written = [] if ranks > 1 and trainer.args.process_index else read_run(folder).samples
    return {
        "gradients": steps,
        "logs": [_numbers(line) for line in trainer.state.log_history if "loss" in line],
        "evaluated": _numbers(evaluated),
        "scores": {f.name: getattr(scores, f.name).tolist() for f in fields(scores)},
        "written": [[line["kind"], line["completion"]] for line in written],
    }


def made(kind: str, case: dict[str, Any]) -> tuple[Any, Any, Any, Dataset]:
    """A case's model, tokenizer, rows and held-out rows; what it says of rows is taken out."""
    from counterpoint.forward.sights import SIGHTS
    from tests.models_on_the_spot import make_model
    from tests.steps import random_pairs
    from tests.tokenizers_on_the_spot import byte_level
    from tests.trainer.test_about_pictures import RAW
    from tests.vision_on_the_spot import seer

    if kind in SIGHTS:
        shown = [RAW[row] for row in (0, 2, 3, 4, 0, 2, 1, 5)]
        return *seer(kind), Dataset.from_list(shown), Dataset.from_list(RAW[:5])
    model, backend = make_model(kind), byte_level(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    if "lists" in case:
        return model, tokenizer, listed(case.pop("lists")), listed(3)
    pairs = random_pairs(case.pop("pairs", STEP_PAIRS))
    return model, tokenizer, pairs, random_pairs(5, seed=1)


def reference_of(kind: str, dtype: torch.dtype, folder: Path) -> dict[str, str]:
    """Another model as the reference, in a folder that the first rank alone writes, as a run's."""
    from counterpoint import ranks
    from tests.models_on_the_spot import make_model

    beside = folder.with_name(f"{folder.name}-reference")
    ranks.first_does(lambda: make_model(kind, seed=4).to(dtype).save_pretrained(beside))
    return {"reference": str(beside)}


def stopped_by_a_bad_pair(folder: Path, ranks: int) -> str:
    """Train on eight pairs of which row 7, the last rank's, has no finite loss; the message."""
    from counterpoint import NonFiniteError

    try:
        run_case({"objective": "hinge", "bad_row": 7}, folder, ranks)
    except NonFiniteError as error:
        return str(error)
    return "trained"


def stopped_by_an_alarm(folder: Path, rank: int) -> str:
    """Train with an alarm that the last rank alone sounds at step 1; where and how it ended."""
    from transformers import TrainerCallback

    from counterpoint import CPOTrainer, TrainingError
    from counterpoint.runlog import Alarm

    class Sounds(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if rank == 1 and state.global_step == 1:
                trainers[-1].raise_alarm(Alarm("CW421", 1, 1, "seen by one."))

    trainers: list[CPOTrainer] = []
    whole = CPOTrainer.__init__

    def with_callback(self: CPOTrainer, *args: Any, **kwargs: Any) -> None:
        whole(self, *args, **kwargs)
        trainers.append(self)
        self.add_callback(Sounds())

    CPOTrainer.__init__ = with_callback
    try:
        run_case({"objective": "sigmoid", "pairs": 24, "on_alarm": "stop"}, folder, 2)
    except TrainingError as error:
        return f"{trainers[-1].state.global_step} {error}"
    finally:
        CPOTrainer.__init__ = whole
    return "trained"


def multipliers(logs: list[dict[str, Any]]) -> list[float]:
    """Every number of a run's log lines that tells where its multipliers are."""
    return [
        value
        for line in logs
        if "loss" in line
        for name, value in sorted(line.items())
        if name.endswith(("/multiplier", "/bound", "/smoothed"))
    ]


def as_stream(pairs: Dataset, shards: int = 1) -> Any:
    """Prepared pairs as the streaming set that ``prepare`` would give."""
    numbers = dict.fromkeys(("cut_prompt", "cut_chosen", "cut_rejected", "boundary", "spelled"), 0)
    numbers |= {"listed": 0, "cut_gold": 0}
    lists: dict[str, list[int]] = {name: [] for name in (*GIVEN_COLUMNS, *GOLD_IDS, "pictures")}
    extra = {**numbers, **lists, "same": False, "absent": "", "lost": "", "problem": ""}
    extra = {name: value for name, value in extra.items() if name not in pairs.column_names}
    assert set(COLUMNS) == {*pairs.column_names, *extra}
    return pairs.map(lambda row: extra).to_iterable_dataset(num_shards=shards)


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    from tests.steps import untimed

    return {k: float(v) for k, v in untimed(line).items() if k != "epoch"}


def flat(gradients: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Gradients of several steps under one roof, for a safetensors file."""
    return {f"{i}/{n}": g.contiguous() for i, step in enumerate(gradients) for n, g in step.items()}


def main(folder: Path) -> None:
    """Be one rank."""
    from safetensors.torch import save_file

    from tests.engine.timed_layouts import FASTER, timed

    warnings.filterwarnings("ignore")
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    seen = {}
    for number, (name, case) in enumerate(CASES.items()):
        result = run_case(case, folder / f"run-{number}", ranks)
        if rank == 0:
            save_file(flat(result.pop("gradients")), folder / f"{number}.safetensors")
            seen[name] = result
    found = {faster: timed(faster, "whole", folder / f"timed-{faster}") for faster in FASTER}
    (folder / f"timed-{rank}.json").write_text(json.dumps(found))
    (folder / f"stopped-{rank}").write_text(stopped_by_a_bad_pair(folder / "bad", ranks))
    (folder / f"alarm-{rank}").write_text(stopped_by_an_alarm(folder / "alarm", rank))
    if rank == 0:
        (folder / "seen.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
