"""The cases of test_sharded, run by one process or by each of several ranks that share a model.

As a script it is one rank: it trains every case and rank 0 writes what it saw.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from contextlib import nullcontext
from datetime import timedelta
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import PreTrainedTokenizerFast

from counterpoint import ranks
from tests.engine.doors import loaded_in_shards, taken_for_accelerators
from tests.invariance.ranks import HELD, flat
from tests.reliability.trials import TORTURE
from tests.steps import whole

STEP_PAIRS = 12
"""As many as two, three and four ranks can share evenly."""

CASES: dict[str, dict[str, Any]] = {
    "tied, cut by tokens, evaluated": {"max_micro_batch_tokens": 60, "held_out": 2},
    "tied, through accelerate": {"door": "accelerate"},
    "not tied, checkpointed, clipped": {
        "kind": "llama",
        "max_grad_norm": 0.5,
        "gradient_checkpointing": True,
        "pairs": 3 * STEP_PAIRS,
        "bad_row": STEP_PAIRS + 5,
    },
    "an adapter, through accelerate": {
        "kind": "llama",
        "adapter": True,
        "door": "accelerate",
        "pairs": 2 * STEP_PAIRS - 1,
    },
    "experts, short last step": {
        "kind": "qwen3_moe",
        "router_aux_loss_coef": 1.0,
        "pairs": STEP_PAIRS + 1,
    },
    "constrained": {"constraints": HELD, "pairs": 2 * STEP_PAIRS - 2},
    "fp32": {"dtype": "float32"},
    "an adapter over nf4, biases, constrained": {
        "kind": "qwen2",
        "adapter": True,
        "door": "accelerate",
        "quantized": "load_in_4bit",
        "dtype": "float32",
        "constraints": HELD[4:],
    },
    "several sets, lists of rejected, a reference": {
        "kind": "phi",  # in float64 throughout: what pairs have in common depends on the cut
        "sets": True,
        "loss_type": "dpo",
        "train_sampling_strategy": "random",
        "max_micro_batch_tokens": 60,
    },
    "an encoder-decoder, positions that are computed, writes": {
        "kind": "mbart",
        "model": {"model_type": "marian"},
        "pairs": STEP_PAIRS,
        "writes": True,
    },
    "an encoder-decoder, tied four times, through accelerate": {
        "kind": "t5",
        "door": "accelerate",
        "gradient_checkpointing": True,
        "constraints": HELD[4:],
        "pairs": 2 * STEP_PAIRS - 1,
    },
    # the rest where there is time for it
    "an encoder-decoder, an untied head, through accelerate": {
        "kind": "t5",
        "model": {"model_type": "mt5", "tie_word_embeddings": False},
        "door": "accelerate",
        "pairs": STEP_PAIRS,
    },
    "an encoder-decoder, loaded in shards, checkpointed": {
        "kind": "t5",
        "gradient_checkpointing": True,
        "max_micro_batch_tokens": 60,
        "held_out": 2,
    },
    "an encoder-decoder, an adapter, constrained, through accelerate": {
        "kind": "mbart",
        "adapter": True,
        "door": "accelerate",
        "constraints": HELD,
    },
    "an encoder-decoder, drift of an adapter": {
        "kind": "nllb",
        "adapter": True,
        "constraints": HELD[4:],
        "max_micro_batch_tokens": 60,
        "sources": 3,
        "pairs": 3 * STEP_PAIRS,
    },
    "an encoder-decoder, an adapter over nf4": {
        "kind": "t5",
        "adapter": True,
        "door": "accelerate",
        "quantized": "load_in_4bit",
        "dtype": "float32",
    },
    "not tied, through accelerate": {"kind": "llama", "door": "accelerate"},
    "padded": {"layout": "padded", "gradient_checkpointing": True},
    "an adapter": {"kind": "llama", "adapter": True, "pairs": 2 * STEP_PAIRS - 1},
    "checkpointed, through accelerate": {"gradient_checkpointing": True, "door": "accelerate"},
    "experts, cut by tokens": {
        "kind": "qwen3_moe",
        "router_aux_loss_coef": 1.0,
        "max_micro_batch_tokens": 60,
    },
    "a second set": {
        "constraints": [{"kind": "safety", "bound": 0.1, "start": 0.7, "pairs": 1}],
        "second": 11,
    },
    "constrained, through accelerate": {"constraints": HELD, "door": "accelerate"},
    "drift of an adapter": {
        "kind": "llama",
        "adapter": True,
        "constraints": HELD[4:],
        "pairs": 3 * STEP_PAIRS,
    },
    "a head with a bias": {"kind": "phi"},
    "an encoder-decoder, constrained": {
        "kind": "nllb",
        "constraints": HELD,
        "pairs": STEP_PAIRS + 1,
    },
    "a step that is not finite": {"pairs": 3 * STEP_PAIRS, "bad_row": STEP_PAIRS + 5},
    "steps that are not finite, cut by tokens": {
        "kind": "llama",
        "adapter": True,
        "door": "accelerate",
        "constraints": HELD,
        "pairs": 4 * STEP_PAIRS,
        "bad_row": 2 * STEP_PAIRS + 1,
        "max_micro_batch_tokens": 60,
    },
    "drift in bfloat16": {
        "constraints": HELD[4:],
        "pairs": 3 * STEP_PAIRS,
        "dtype": "float32",
        "bf16": True,
        "learning_rate": 1e-2,
    },
    "an adapter over int8": {
        "kind": "llama",
        "adapter": True,
        "door": "accelerate",
        "quantized": "load_in_8bit",
        "dtype": "float32",
    },
    "two copies": {"replicas": 2},
    "two copies, through accelerate": {"door": "accelerate", "replicas": 2},
    "two copies, an adapter, constrained": {
        "kind": "llama",
        "adapter": True,
        "constraints": HELD,
        "door": "accelerate",
        "replicas": 2,
    },
}
"""What one process takes too: the same steps."""

LONGEST = 60
"""Seconds that a rank may wait for another; longer is a hang, and ends its case with an error."""

LOGGED = ("loss", "grad_norm", "logps/chosen", "aux_loss")

QUANTISES = find_spec("bitsandbytes") is not None

QUICK = 11
"""How many of them are run in every suite."""

MEMORY: dict[str, dict[str, Any]] = {
    "some pairs": {"micro_batch": 4, "memory": (90, "backward")},
    "a step of one pair a rank": {"step_pairs": 1, "memory": "second step"},
    "the optimizer": {"memory": "optimizer"},
    "an evaluation": {"held_out": 6, "memory": "evaluation"},
    # the rest where there is time for it
    "some pairs, in a forward": {"micro_batch": 4, "memory": (90, "forward")},
    "a proof": {"step_pairs": 1, "memory": (5, "forward")},
    "one pair a rank, checkpointed": {
        "step_pairs": 1,
        "memory": "second step",
        "gradient_checkpointing": True,
    },
    "one pair a rank, through accelerate": {
        "step_pairs": 1,
        "memory": "second step",
        "door": "accelerate",
    },
    "one pair at a time, constrained": {"constraints": HELD, "memory": "second step"},
    "one pair at a time, experts": {
        "kind": "qwen3_moe",
        "router_aux_loss_coef": 1.0,
        "memory": "second step",
    },
    "a batch on its way to the device": {"memory": "batch"},
}
"""Where rank 1 runs out of memory."""


def cases() -> dict[str, dict[str, Any]]:
    """Those of this suite."""
    everything = TORTURE
    some = list(CASES.items())[: None if everything else QUICK]
    return {name: case for name, case in some if QUANTISES or "quantized" not in case}


def memory_cases() -> dict[str, dict[str, Any]]:
    """Those of this suite in which memory runs out."""
    everything = TORTURE
    return dict(list(MEMORY.items())[: None if everything else 4])


def adapted(model: Any) -> Any:
    """The model with an adapter whose second matrix is not 0, the same on every rank."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    layers = ["q_proj", "down_proj", "q", "wo"]  # the last two are T5's
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=layers))
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.data = torch.randn(weight.shape, dtype=model.dtype) / 4
    return adapted


def quantized(option: str, model: Any, folder: Path, *, shards: bool) -> Any:
    """The model's weights in 8 or 4 bits, stored as they have to be where ranks get parts."""
    from counterpoint import CPOConfig
    from counterpoint.models.loading import load_model
    from counterpoint.models.weights import WeightsPolicy

    ranks.first_does(lambda: model.save_pretrained(folder))
    more: dict[str, Any] = {option: True}
    args = CPOConfig(output_dir=str(folder), use_cpu=True, **more)
    said = {"ACCELERATE_USE_FSDP": "true"} if shards else {}
    with mock.patch.dict(os.environ, said):
        return load_model(str(folder), args, WeightsPolicy.of(args, adapter=True))


def resumed(folder: Path) -> str:
    """Two steps through accelerate, and the second of them again from a checkpoint."""
    from counterpoint import CPOConfig, CPOTrainer
    from tests.models_on_the_spot import make_model
    from tests.steps import random_pairs
    from tests.tokenizers_on_the_spot import byte_level

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(["</s>"]), eos_token="</s>")
    ends = []
    for checkpoint in (None, "checkpoint-1"):
        args = CPOConfig(
            output_dir=str(folder / "run"),
            use_cpu=True,
            ddp_backend="gloo",
            fsdp="2",
            pairs_per_step=STEP_PAIRS,
            max_steps=2,
            save_steps=1,
            disable_tqdm=True,
        )
        base: Any = make_model("llama")
        if QUANTISES:
            base = quantized("load_in_4bit", base, folder / "base", shards=True)
        with taken_for_accelerators():
            trainer = CPOTrainer(
                model=adapted(base),
                args=args,
                train_dataset=random_pairs(2 * STEP_PAIRS),
                processing_class=tokenizer,
            )
            trainer.train(checkpoint and str(folder / "run" / checkpoint))
        # bytes: what codes are as numbers may be none
        parts = [trainer.engine.own_part(weight.detach()) for weight in trainer.model.parameters()]
        ends.append([part.contiguous().view(torch.uint8) for part in parts])
    same = all(map(torch.equal, *ends))
    return f"{trainer.engine.name} {'the same' if same else 'another'}"


def some_pairs(count: int, sources: int | None) -> Any:
    """Pairs of random ids, each with a prompt of its own, or so many prompts of several pairs."""
    from tests.steps import random_pairs

    pairs = random_pairs(count)
    if sources is None:
        return pairs
    return pairs.map(lambda row: {"prompt_ids": [1, 7, 9 + row["row"] % sources, 0]})


def some_sets(folder: Path) -> Any:
    """Two files as one set: two steps, of 8 pairs and twice of 8, whose rejected stand in lists."""
    from counterpoint.data.listed import read_listed
    from counterpoint.data.mixture import open_sets

    rows = [
        [{"prompt": f"{n} and 1 is", "chosen": f" {n + 1}", "rejected": " 0"} for n in range(8)],
        [{"prompt": f"{n}?", "chosen": f" {n}", "rejected": [" No.", " 0 0"]} for n in range(4)],
    ]
    files = [folder / "texts.jsonl", folder / "lists.jsonl"]

    def write() -> None:
        folder.mkdir(parents=True)
        for file, own in zip(files, rows, strict=True):
            file.write_text("\n".join(map(json.dumps, own)))

    ranks.first_does(write)
    return open_sets([read_listed(str(files[0])), read_listed(f"{files[1]}:2")])


def run(case: dict[str, Any], folder: Path, count: int) -> dict[str, Any]:
    """Train one case on this rank; the gradient of each step, and its log lines."""
    from tests.models_on_the_spot import make_model
    from tests.steps import random_pairs, train_watched
    from tests.tokenizers_on_the_spot import byte_level

    case = dict(case)
    door = case.pop("door", "load")
    door = door if count > 1 else "none"
    kind = case.pop("kind", "qwen2_tied")
    # transformers loads no shard without an expert
    more = {"num_experts": STEP_PAIRS} if "moe" in kind else case.pop("model", {})
    model: Any = make_model(kind, **more)
    model = model.to(getattr(torch, case.pop("dtype", "float64")))
    pairs = (
        some_sets(folder / "sets")
        if case.pop("sets", False)
        else some_pairs(case.pop("pairs", 2 * STEP_PAIRS), case.pop("sources", None))
    )
    bad = case.pop("bad_row", None)
    if bad is not None:
        case["nonfinite"] = "skip"
        pairs = pairs.map(lambda row: {"margin": math.nan if row["row"] == bad else 0.0})
    micro_batch = case.pop("micro_batch", 1)
    step_pairs = case.pop("step_pairs", 0) * count or STEP_PAIRS
    defaults = (("second", None), ("held_out", 0), ("writes", False))
    second, held_out, writes = (case.pop(name, value) for name, value in defaults)
    if "max_micro_batch_tokens" in case and ranks.rank() % 2:
        case["max_micro_batch_tokens"] //= 2  # ranks need not agree on it
    small, copies = case.pop("memory", None), case.pop("replicas", 1)
    copies = 1 if count < 2 * copies or count % copies else copies
    if copies > 1 and door == "accelerate":
        case["fsdp_replicas"] = copies
    if option := case.pop("quantized", None):
        model = quantized(option, model, folder / "model", shards=door == "accelerate")
        case[option] = True
    if door == "load":
        model = loaded_in_shards(model, folder / "model", copies)
    if small and ranks.rank() == 1:
        run_out(model, small)
    if case.pop("adapter", False):
        model = adapted(model)
    with taken_for_accelerators() if door == "accelerate" else nullcontext():
        steps, trainer = train_watched(
            model,
            PreTrainedTokenizerFast(tokenizer_object=byte_level(["</s>"]), eos_token="</s>"),
            pairs,
            folder / "run",
            None if second is None else {"safety": random_pairs(second, seed=5)},
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=max(1, step_pairs // (micro_batch * count)),
            ddp_backend="gloo" if count > 1 else None,
            monitor_steps=0,
            fsdp=door == "accelerate" or None,
            **case,
        )
    trainer.engine.at_rest(trainer.model)
    # what a step that is left out leaves behind is seen in the weights; elsewhere AdamW makes much
    # of rounding where a gradient is 0 but for it, as that of a key's bias
    weights = trainer.model.named_parameters() if bad is not None else ()
    moved = {name: whole(weight.data) for name, weight in weights}
    return {
        "gradients": [*steps, moved],
        "logs": [
            {
                name: value
                for name, value in line.items()
                if name in LOGGED or name.endswith("/multiplier")
            }
            for line in trainer.state.log_history
            if "loss" in line
        ],
        "skipped": trainer.skipped_steps,
        "culprits": sorted(ranks.everywhere(culprits(folder / "run"))),
        "mean": trainer.state.log_history[-1]["train_loss"],
        "evaluated": {
            name: value
            for name, value in (
                trainer.evaluate(random_pairs(held_out, seed=1)) if held_out else {}
            ).items()
            if "per_second" not in name and "runtime" not in name
        },
        "written": written(trainer, folder / "saved") if writes else [],
        "engine": trainer.engine.name,
        "held": held(trainer),
        "copies": copies,
        "weights": sum(w.numel() for w in trainer.model.parameters()),
    }


def written(trainer: Any, folder: Path) -> list[list[list[int]]]:
    """What a translator writes to two sources: in shards, and opened again as one whole model."""
    from transformers import AutoModelForSeq2SeqLM

    from counterpoint.evaluation.generation import Decoding, Prompt, complete

    trainer.save_model(str(folder))
    whole = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float64)
    sources = [Prompt(ids, None, (2,)) for ids in ((5, 9, 30, 0), (77, 8, 41, 50, 9, 0))]
    several = not ranks.alone()
    return [
        [
            list(text.ids)
            for text in complete(
                model, trainer.processing_class, sources, Decoding(12), together=together
            )
        ]
        for model, together in ((trainer.model, several), (whole, False))
    ]


def culprits(run: Path) -> list[list[str]]:
    """What this rank's record of a step that was not finite says of pairs: which term of which."""
    from counterpoint.step.replay.file import read_replay

    several = "" if ranks.alone() else f"-rank-{ranks.rank()}"
    found = [read_replay(path) for path in run.glob(f"replay-*{several}.safetensors")]
    told = {(one.term, one.name, str(one.row)) for replay in found for one in replay.culprits}
    return [list(one) for one in told if one[0] != "gradient"]


def held(trainer: Any) -> int:
    """Numbers that this rank keeps of the weights."""
    trainer.engine.at_rest(trainer.model)
    return sum(trainer.engine.own_part(weight).numel() for weight in trainer.model.parameters())


def run_out(model: Any, where: tuple[int, str] | str) -> None:
    """Let memory run out on this rank, in passes of more tokens or at a named place."""
    from torch.optim import optimizer

    from counterpoint.records import PairBatch
    from tests.small_memory import SmallMemory

    def fails(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def in_the_pass(module: Any, _: Any) -> None:
        if module.training == trains:
            fails()

    def from_now_on(*_: Any) -> None:
        if where == "batch":
            PairBatch.to = fails
        else:
            model.register_forward_pre_hook(in_the_pass)

    trains = where == "second step"
    if where == "optimizer":
        optimizer.register_optimizer_step_pre_hook(fails)
    elif isinstance(where, str):
        optimizer.register_optimizer_step_post_hook(from_now_on)
    else:
        SmallMemory(model, *where)


def out_of_memory(name: str, folder: Path) -> None:
    """Train where rank 1 runs out of memory, and write how this rank ended; then end it."""
    from counterpoint import CounterpointError

    # a process that ends closes its connections, and no group comes after one that broke
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}.store", **_own(), timeout=timedelta(seconds=LONGEST)
    )
    said = "trained"
    try:
        run(MEMORY[name], folder, ranks.count())
    except CounterpointError as error:
        said = str(error)
    folder.with_name(f"{name}, rank {ranks.rank()}").write_text(said)
    os._exit(0)


def _own() -> dict[str, int]:
    return {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}


def main(folder: Path) -> None:
    """Be one rank."""
    from safetensors.torch import save_file

    warnings.filterwarnings("ignore")
    for number, name in enumerate(memory_cases()):
        facts = (name, folder / f"memory-{number}")
        forked = get_context("fork").Process(target=out_of_memory, args=facts)
        forked.start()
        forked.join()
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=LONGEST))
    ranks.leave_at_exit()
    seen = {}
    for number, (name, case) in enumerate(cases().items()):
        result = run(case, folder / f"run-{number}", int(os.environ["WORLD_SIZE"]))
        parts = ranks.gathered(result["held"])
        if ranks.rank() == 0:
            save_file(flat(result.pop("gradients")), folder / f"{number}.safetensors")
            seen[name] = {**result, "held": parts}
    if ranks.rank() == 0:
        (folder / "seen.json").write_text(json.dumps(seen))
    (folder / f"resumed-{ranks.rank()}").write_text(resumed(folder / "resumed"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
