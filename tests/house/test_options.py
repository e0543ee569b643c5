"""Every option changes something that can be seen, or is refused; none is read by nothing.

Options that Counterpoint reads are tried: a run with the option and one without must differ in
what the option is for. Options that transformers reads are looked up in its source: in a method
that a ``CPOTrainer`` still runs, since one that is overridden reads nothing.

Not here: what each flag of the command is read into (``tests/cli``).
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from counterpoint import CounterpointError, CPOConfig, CPOTrainer, ranks
from counterpoint.config import REFUSED
from counterpoint.data.encoder import TextEncoder
from counterpoint.data.formats import to_preference_row
from counterpoint.data.options import PrepareOptions
from counterpoint.data.pair_columns import to_pair
from counterpoint.data.picture_files import rules_for
from counterpoint.data.pictures import PictureRules
from counterpoint.data.prepare import prepare
from counterpoint.doctor.of_unused import UNUSED, Rest, in_a_line, unused
from counterpoint.engine.fsdp2 import sharding_keywords
from counterpoint.engine.plain import Plain
from counterpoint.forward.layouts import PADDED, SHARED
from counterpoint.models.loading import load_config, load_model
from counterpoint.models.preparing import encoder_of, prepare_model
from counterpoint.models.trainable import freeze_parts
from counterpoint.models.weights import WeightsPolicy
from counterpoint.runlog import SAMPLES, Alarm, stream_file
from counterpoint.trainer.feed import Feed
from counterpoint.trainer.stepping import SteppingTrainer
from tests.models_on_the_spot import make_model
from tests.pictures_on_the_spot import drawn, packed
from tests.steps import GradientCamera, random_pairs
from tests.templates_on_the_spot import LLAMA3, with_template
from tests.translators_on_the_spot import translator
from tests.vision_on_the_spot import looks_counted, seen_pairs, seer

PAIRS = random_pairs(8)
TEXTS = [
    {"prompt": f"What is {n} and {n} and {n}?", "chosen": f" It is {3 * n}.", "rejected": f" {n}."}
    for n in range(4)
]

BASE: dict[str, Any] = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 1,
    "use_cpu": True,
}
"""Options of the runs that are compared, on both sides."""


class Bench:
    """Where options are tried."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self._runs: dict[str, Run] = {}

    def args(self, options: dict[str, Any]) -> CPOConfig:
        return CPOConfig(output_dir=str(self.folder / "out"), **{**BASE, **options})

    def run(self, options: dict[str, Any]) -> Run:
        """A run on eight pairs, done once for each set of options."""
        key = repr(sorted(options.items()))
        if key not in self._runs:
            self._runs[key] = Run(self, dict(options))
        return self._runs[key]


class Run:
    """A model trained and evaluated, and what there is to see of it.

    ``model`` among the options is a kind of model, with ``model_changes`` to its config.
    """

    def __init__(self, bench: Bench, options: dict[str, Any]) -> None:
        model = make_model(options.pop("model", "qwen2"), **options.pop("model_changes", {}))
        model.to(options.pop("dtype", torch.float32))
        alarm = (
            Alarm("CW421", 1, 1, "sounded by the test.") if options.pop("alarm", False) else None
        )
        if options.pop("poisoned", False):
            torch.nn.init.constant_(model.get_output_embeddings().weight, 3e38)  # logits overflow
        camera, said, self.passes = GradientCamera(), Listener(), 0
        logging.getLogger("counterpoint").addHandler(said)
        self.trainer = CPOTrainer(
            model=model,
            args=bench.args(options),
            train_dataset=PAIRS,
            eval_dataset=PAIRS,
            processing_class=bench.tokenizer,
            callbacks=[camera],
            compute_metrics=lambda prediction: {"rewards": len(prediction.predictions)},
        )
        if alarm:
            camera.on_step_begin = lambda *_, **__: self.trainer.raise_alarm(alarm)
        hook = model.get_input_embeddings().register_forward_hook(self._count)
        # before: a recomputation ends as soon as it has what the backward pass needs
        layer = model.model.layers[0].mlp.register_forward_pre_hook(self._count_layer)
        self.layer_passes = 0
        self.error = None
        try:
            self.trainer.train()
        except CounterpointError as error:
            self.error = error.code
        self.train_passes, self.train_layer_passes = self.passes, self.layer_passes
        self.passes = 0
        self.evaluation = {} if self.error else self.trainer.evaluate()
        written = stream_file(bench.folder / "out", SAMPLES)
        self.written = written.read_text().splitlines() if written.is_file() else []
        written.unlink(missing_ok=True)
        logging.getLogger("counterpoint").removeHandler(said)
        hook.remove()
        layer.remove()
        self.said, self.gradients = said.lines, digest(camera.pictures)
        self.weights = digest([model.state_dict()])
        self.described = json.loads((bench.folder / "out" / "run.json").read_text())

    def _count(self, *_: Any) -> None:
        self.passes += 1

    def _count_layer(self, *_: Any) -> None:
        self.layer_passes += 1


class Listener(logging.Handler):
    """Keeps what the run says to people."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def digest(parts: Iterable[dict[str, torch.Tensor]]) -> str:
    """One word for many tensors."""
    found = hashlib.sha256()
    for part in parts:
        for name in sorted(part):
            found.update(name.encode() + part[name].detach().float().numpy().tobytes())
    return found.hexdigest()


# What can be seen of an option

Look = Callable[[Bench, dict[str, Any]], Any]


def gradients(bench: Bench, options: dict[str, Any]) -> str:
    return bench.run(options).gradients


def beside_a_reference(bench: Bench, options: dict[str, Any]) -> str:
    if options.get("reference") == "another":
        another = bench.folder / "another"
        make_model("qwen2", seed=1).save_pretrained(another)
        options = {**options, "reference": str(another)}
    return gradients(bench, options)


def weights(bench: Bench, options: dict[str, Any]) -> str:
    return bench.run(options).weights


def logged_steps(bench: Bench, options: dict[str, Any]) -> list[int]:
    return [line["step"] for line in bench.run(options).trainer.state.log_history]


def bounds(bench: Bench, options: dict[str, Any]) -> list[float]:
    return [each["bound"] for each in bench.run(options).described.get("constraints", [])]


def logged_names(bench: Bench, options: dict[str, Any]) -> set[str]:
    return {name for line in bench.run(options).trainer.state.log_history for name in line}


def train_passes(bench: Bench, options: dict[str, Any]) -> int:
    return bench.run(options).train_passes


def layer_passes(bench: Bench, options: dict[str, Any]) -> int:
    return bench.run(options).train_layer_passes


def eval_passes(bench: Bench, options: dict[str, Any]) -> int:
    return bench.run(options).passes


def evaluation(bench: Bench, options: dict[str, Any]) -> set[str]:
    return set(bench.run(options).evaluation)


def written(bench: Bench, options: dict[str, Any]) -> list[tuple[str, int]]:
    lines = map(json.loads, bench.run(options).written)
    return [(line["kind"], line["tokens"]) for line in lines]


def layout(bench: Bench, options: dict[str, Any]) -> Any:
    return bench.run(options).described["layout"]


def outcome(bench: Bench, options: dict[str, Any]) -> Any:
    run = bench.run(options)
    return run.error, run.described["skipped_steps"]


def said(bench: Bench, options: dict[str, Any]) -> list[str]:
    return bench.run(options).said


def looks(bench: Bench, options: dict[str, Any]) -> bool:
    return bench.run(options).trainer.monitor is not None


def of_ddp(bench: Bench, options: dict[str, Any]) -> bool:
    return bench.run(options).trainer.accelerator.ddp_handler.broadcast_buffers


def optimizer(bench: Bench, options: dict[str, Any]) -> type[Any]:
    pytest.importorskip("torchao")
    return type(bench.run(options).trainer.optimizer.optimizer)


def saved(bench: Bench, options: dict[str, Any]) -> list[str]:
    """Every file of two checkpoints."""
    folder = bench.folder / f"saved-{options}"
    args = bench.args({**options, "save_strategy": "steps", "save_steps": 1})
    args.output_dir = str(folder)
    CPOTrainer(make_model(), args, train_dataset=PAIRS, processing_class=bench.tokenizer).train()
    return sorted(str(path.relative_to(folder)) for path in folder.glob("checkpoint-*/*"))


def going_on(bench: Bench, options: dict[str, Any]) -> str:
    """How it ends to go on with another beta: at a step, or with a code."""
    folder = str(bench.folder / "going-on")
    last: Any = None
    for beta, resume in ((0.1, None), (0.2, "latest")):
        changes = {"beta": beta, "max_steps": 1, "save_strategy": "steps", **options}
        args = bench.args(changes)
        args.output_dir = folder
        last = CPOTrainer(make_model(), args, train_dataset=PAIRS, processing_class=bench.tokenizer)
        try:
            last.train(resume)
        except CounterpointError as error:
            return error.code
    return f"step {last.state.global_step}"


def emptied_caches(bench: Bench, options: dict[str, Any]) -> int:
    calls: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.trainer.clear_device_cache", lambda *_: calls.append(True))
        bench.run(options)
    return len(calls)


def rows(bench: Bench, options: dict[str, Any]) -> Any:
    """The tokens of four rows, or the code with which they are refused."""
    texts = [*TEXTS, {**TEXTS[0], "chosen": ""}] if options.pop("broken", False) else TEXTS
    try:
        found = prepare(texts, bench.tokenizer, PrepareOptions.of(bench.args(options)), name="t")
    except CounterpointError as error:
        return error.code
    return list(found.pairs)


def spoken_rows(bench: Bench, options: dict[str, Any]) -> Any:
    """The tokens of a row whose completion has several turns."""
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    row = {"prompt": turns[:1], "chosen": turns[1:], "rejected": [{**turns[1], "content": "no"}]}
    tokenizer = with_template(bench.tokenizer, LLAMA3)
    return list(prepare([row], tokenizer, PrepareOptions.of(bench.args(options)), name="t").pairs)


def translated_rows(bench: Bench, options: dict[str, Any]) -> Any:
    """The tokens of rows for an encoder-decoder of many languages, or the code of the refusal."""
    model, tokenizer = translator("nllb")
    tokenizer.tgt_lang = "eng_Latn"
    tokenizer.src_lang = "deu_Latn"
    encoder = encoder_of(model, tokenizer, bench.args(options))
    return list(prepare(TEXTS, encoder, name="t").pairs)


def picture_of_a_row(bench: Bench, options: dict[str, Any]) -> str:
    """The size of a row's picture, or why it may not be opened."""
    own = {name: options.pop(name) for name in ("cell",) if name in options}
    cell = own.get("cell", {"bytes": packed(drawn(4, 5)), "path": None})
    rules = PictureRules.of(PrepareOptions.of(bench.args(options)))
    try:
        found = to_preference_row(TEXTS[0] | {"image": cell}, 0, rules_for(rules, None))
    except CounterpointError as error:
        return str(error)
    return str([(picture.width, picture.height) for picture in found.pictures])


def looks_of_a_frozen_tower(bench: Bench, options: dict[str, Any]) -> int:
    """How often the tower is called by two passes over the same pictures."""
    made = model, processor = seer("llava")
    freeze_parts(model, ["vision", "projector"])
    prepare_model(model, bench.args(options), processor.tokenizer)
    batch = SHARED.collate(seen_pairs(made))
    with looks_counted(model) as seen, SHARED.running(model):
        for _ in range(2):
            model(**SHARED.inputs(batch), use_cache=False)
    return len(seen)


def prepared_model(bench: Bench, options: dict[str, Any]) -> str:
    """The class of a model that is made ready, or the code of the refusal."""
    try:
        return type(prepare_model(make_model(), bench.args(options), bench.tokenizer)).__name__
    except CounterpointError as error:
        return error.code


def streamed_rows(bench: Bench, options: dict[str, Any]) -> Any:
    """The prompts of each window of a stream of two shards."""
    args = bench.args({"max_steps": 1, "per_device_train_batch_size": 2, **options})
    feed = Feed(args, TextEncoder(bench.tokenizer))
    pairs = feed.pairs(Dataset.from_list(TEXTS).to_iterable_dataset(num_shards=2), "train")
    loader = feed.loader(pairs, "train", micro_batch=2, train=True)
    return [[pair.prompt for pair in window] for window in loader]


def processes(bench: Bench, options: dict[str, Any]) -> list[Any]:
    asked: list[Any] = []
    whole = Dataset.map

    def spied(self: Dataset, *facts: Any, **more: Any) -> Dataset:
        asked.append(more.pop("num_proc", None))
        return whole(self, *facts, **more)

    with pytest.MonkeyPatch.context() as patch:
        # rows that another look has prepared would not be asked for again
        patch.setenv("COUNTERPOINT_CACHE", "off")
        patch.setattr(Dataset, "map", spied)
        prepare(TEXTS, bench.tokenizer, PrepareOptions.of(bench.args(options)), name="t")
    return asked


def precision(bench: Bench, options: dict[str, Any]) -> torch.dtype:
    make_model(vocab_size=64).save_pretrained(bench.folder / "model")
    return load_model(str(bench.folder / "model"), bench.args(options)).dtype


def pickled_model(bench: Bench, options: dict[str, Any]) -> str:
    """The precision of a model whose weights are a pickle, or the code of the refusal."""
    folder, model = bench.folder / "pickled", make_model(vocab_size=64)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    try:
        load_config(str(folder), bench.args(options))
        return str(load_model(str(folder), bench.args(options)).dtype)
    except CounterpointError as error:
        return error.code


def kind_of_weights(bench: Bench, options: dict[str, Any]) -> str:
    """What a model that is loaded by its name, to put an adapter on, has as weights."""
    folder = bench.folder / "plain"
    make_model(vocab_size=64).save_pretrained(folder)
    args = bench.args(options)
    model = load_model(str(folder), args, WeightsPolicy.of(args, adapter=True))
    return type(model.model.layers[0].mlp.up_proj.weight).__name__


def kept_on_host(bench: Bench, options: dict[str, Any]) -> Any:
    """Whether accelerate is told to keep shards on the host."""
    return (bench.args(options).fsdp_plugin_args or {}).get("cpu_offload")  # none without fsdp


def copies(bench: Bench, options: dict[str, Any]) -> Any:
    """How four ranks are laid out where they load a model in shards."""
    args = bench.args(options)
    args.fsdp = True  # without it, copies are refused
    with mock.patch.object(ranks, "count", return_value=4):
        said = sharding_keywords(args)["distributed_config"]
    return said["dp_replicate_size"]


def strange_config(bench: Bench, options: dict[str, Any]) -> str:
    """The kind of a model that comes with its own code, or the code of the refusal."""
    folder = bench.folder / "strange"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        '{"model_type": "strange", "architectures": ["StrangeForCausalLM"], "auto_map": '
        '{"AutoConfig": "strange.StrangeConfig", "AutoModelForCausalLM": "strange.Strange"}}'
    )
    (folder / "strange.py").write_text(
        "from transformers import PretrainedConfig, PreTrainedModel\n"
        "class StrangeConfig(PretrainedConfig):\n    model_type = 'strange'\n"
        "class Strange(PreTrainedModel):\n    config_class = StrangeConfig\n"
    )
    args = bench.args(options)
    with pytest.MonkeyPatch.context() as patch:
        module = "transformers.dynamic_module_utils.HF_MODULES_CACHE"
        patch.setattr(module, str(bench.folder / "modules"))
        patch.setattr("sys.path", list(sys.path))
        try:
            return type(load_config(str(folder), args, from_scratch=True)).__name__
        except CounterpointError as error:
            return error.code


def loader(bench: Bench, options: dict[str, Any]) -> Any:
    args = bench.args(options)
    made = Feed(args, TextEncoder(bench.tokenizer)).loader(PAIRS, "t", micro_batch=3, train=True)
    context = made.multiprocessing_context
    return (
        made.num_workers,
        made.persistent_workers,
        made.prefetch_factor,
        context and context.get_start_method(),
    )


def dealt(bench: Bench, options: dict[str, Any]) -> list[list[int]]:
    """The rows of the windows of an epoch."""
    sampler = (
        Feed(bench.args(options), TextEncoder(bench.tokenizer))
        .loader(PAIRS, "t", micro_batch=3, train=True)
        .batch_sampler
    )
    return [list(window) for window in sampler]


def pinned(bench: Bench, options: dict[str, Any]) -> bool:
    """Whether a batch for CUDA is copied from page-locked memory; no such device is needed."""
    args = CPOConfig(output_dir="o", **options)  # use_cpu would turn it off
    host = SimpleNamespace(
        args=args,
        model=make_model("qwen2"),
        engine=Plain(),
        processing_class=bench.tokenizer,
        _assembled=None,
        _balancing_weight=0.0,
        _known_proofs={},
        _feed=SimpleNamespace(encoder=TextEncoder(bench.tokenizer)),
    )
    assembly = SteppingTrainer._assembly(host)
    assembly._device = SimpleNamespace(type="cuda")
    batch = PADDED.collate([to_pair(PAIRS[0])], pad_id=0, vocab_size=640)
    calls: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(batch), "pin_memory", lambda self: calls.append(True) or self)
        patch.setattr(type(batch), "to", lambda self, *_, **__: self)
        assembly._on_device(batch)
    return bool(calls)


def sent_away(bench: Bench, options: dict[str, Any]) -> bool:
    """Whether on a device what waits for the backward would leave it; no device is needed."""
    asked: list[bool] = []

    def offloading(device: torch.device, *, wanted: bool) -> Any:
        asked.append(wanted)
        return nullcontext()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("counterpoint.trainer.stepping.offloading", offloading)
        Run(bench, dict(options))
    return all(asked) and bool(asked)


@dataclass(frozen=True)
class Row:
    """An option with a value that is not its default, and where that is seen.

    Args:
        look: what is seen of a run.
        value: that the option gets on one side.
        base: options of both sides.
    """

    look: Look
    value: Any
    base: dict[str, Any]


def row(look: Look, value: Any, **base: Any) -> Row:
    return Row(look, value, base)


TRIED: dict[str, Row] = {
    # TRL's, and of TrainingArguments what TRL changes
    "learning_rate": row(weights, 0.1),
    "logging_steps": row(logged_steps, 2),
    "gradient_checkpointing": row(layer_passes, False),
    "checkpointing_share": row(layer_passes, 0.5),
    "bf16": row(gradients, True),
    "max_length": row(rows, 12),
    "max_completion_length": row(rows, 3),
    "beta": row(gradients, 0.3),
    "label_smoothing": row(gradients, 0.1),
    "loss_type": row(gradients, "hinge"),
    "disable_dropout": row(gradients, False, model_changes={"attention_dropout": 0.3}),
    "cpo_alpha": row(gradients, 0.5),
    "simpo_gamma": row(gradients, 2.0, loss_type="simpo"),
    "alpha": row(gradients, 0.01),
    "use_weighting": row(gradients, True),
    "ld_alpha": row(gradients, 0.3),
    "arpo_scale": row(gradients, 1.0, loss_type="arpo"),
    "arpo_eta": row(gradients, 1.5, loss_type="arpo"),
    "model_init_kwargs": row(precision, {"dtype": "bfloat16"}),
    "trust_remote_code": row(strange_config, True),
    "dataset_num_proc": row(processes, 2),
    "generate_during_eval": row(evaluation, True),
    "is_encoder_decoder": row(prepared_model, True),
    # Counterpoint's
    "reference": row(beside_a_reference, "another", loss_type="dpo"),
    "rpo_alpha": row(gradients, 0.5, loss_type="dpo"),
    "dpop_lambda": row(gradients, 5.0, loss_type="dpop"),
    "gamma_beta_ratio": row(gradients, 8.0, loss_type="simpo"),
    "nll_reduction": row(gradients, "sequence_sum"),
    "truncation": row(rows, "prompt_start", max_length=16),
    "train_turns": row(spoken_rows, "all"),
    "invalid_rows": row(rows, "drop", broken=True),
    "source_lang": row(translated_rows, "zho_Hans"),
    "target_lang": row(translated_rows, "zho_Hans"),
    "image_folder": row(picture_of_a_row, "nowhere", cell="a.png"),
    "allow_remote_images": row(picture_of_a_row, True, cell="http://127.0.0.1/a.png"),
    "max_image_pixels": row(picture_of_a_row, 10),
    "picture_cache_gb": row(looks_of_a_frozen_tower, 1.0),
    "allow_pickle": row(pickled_model, True),
    "nonfinite": row(outcome, "skip", poisoned=True),
    "layout": row(layout, "padded"),
    "activation_offload": row(sent_away, True),
    "max_micro_batch_tokens": row(train_passes, 40),
    "pairs_per_step": row(gradients, 3),
    "fsdp_replicas": row(copies, 2),
    "optimizer_offload": row(kept_on_host, True, fsdp=True),
    "stream_shards": row(streamed_rows, 2),
    "stochastic_rounding": row(optimizer, True, dtype=torch.bfloat16),
    "load_in_4bit": row(kind_of_weights, True),
    "load_in_8bit": row(kind_of_weights, True),
    "eval_samples": row(written, 2, generate_during_eval=True),
    "eval_sample_tokens": row(written, 2, generate_during_eval=True),
    "generation_num_beams": row(written, 4, generate_during_eval=True),
    "eval_sample_temperature": row(written, 1.0, generate_during_eval=True),
    "resume_anyway": row(going_on, True),
    "router_aux_loss_coef": row(gradients, 5.0, model="mixtral"),
    "early_stopping_patience": row(
        logged_steps, 1, eval_strategy="steps", eval_steps=1, learning_rate=0.0, max_steps=3
    ),
    "early_stopping_threshold": row(
        logged_steps,
        100.0,
        early_stopping_patience=1,
        eval_strategy="steps",
        eval_steps=1,
        learning_rate=0.01,
        max_steps=3,
    ),
    "constraints": row(gradients, [{"kind": "bc", "start": 2.0}]),
    "constraint_calibration": row(bounds, 2, constraints=[{"kind": "bc"}]),
    "constraint_normalization": row(gradients, True, constraints=[{"kind": "bc"}]),
    "monitor_steps": row(looks, 0),
    "on_alarm": row(outcome, "stop", alarm=True),
    # of TrainingArguments, read by Counterpoint in place of transformers
    "per_device_train_batch_size": row(gradients, 2),
    "per_device_eval_batch_size": row(eval_passes, 2),
    "gradient_accumulation_steps": row(gradients, 2),
    "seed": row(gradients, 1),
    "data_seed": row(gradients, 1),
    "train_sampling_strategy": row(gradients, "sequential"),
    "dataloader_drop_last": row(dealt, True, per_device_train_batch_size=3),
    "dataloader_num_workers": row(loader, 1),
    "dataloader_persistent_workers": row(loader, True, dataloader_num_workers=1),
    "dataloader_prefetch_factor": row(loader, 5, dataloader_num_workers=1),
    "dataloader_multiprocessing_context": row(loader, "spawn", dataloader_num_workers=1),
    "dataloader_pin_memory": row(pinned, False),
    "include_num_input_tokens_seen": row(logged_names, "all"),
    "ddp_broadcast_buffers": row(of_ddp, True),
    "prediction_loss_only": row(evaluation, True),
    "remove_unused_columns": row(said, False),
    "torch_empty_cache_steps": row(emptied_caches, 1),
    "save_total_limit": row(saved, 1),
    "save_only_model": row(saved, True),
}
"""Options that Counterpoint reads, or that reach transformers by way of what it overrides."""

ELSEWHERE = {
    "do_train": "not read by any trainer: for scripts; the command does it anyway",
    "do_predict": "not read by any trainer: for scripts; the command refuses it",
    "local_rank": "not read by any trainer: what a launcher of old says to scripts",
}
"""Options that are no trainer's to read, TRL's neither."""

RESOLVED = {
    "fp16": "turned into accelerate's mixed precision by TrainingArguments itself",
    "tf32": "switched by TrainingArguments itself",
    "torch_compile": "turned into torch_compile_backend by TrainingArguments itself",
}
"""Options whose only reader is the constructor that they are given to."""

BY_OTHER_NAMES = {
    "eval_steps": 'getattr(args, f"{step_kind}_steps")',
    "save_steps": 'getattr(args, f"{step_kind}_steps")',
    "activation_checkpointing": "getattr(self, old)",
    "gradient_checkpointing_kwargs": "getattr(self, old)",
}
"""Options that transformers reads by a name that it puts together."""

ASKED: dict[str, Any] = {
    "accelerator_config": {"split_batches": True},
    "auto_find_batch_size": True,
    "average_tokens_across_devices": False,
    "batch_eval_metrics": True,
    "bf16_full_eval": True,
    "dataloader_in_order": False,
    "deepspeed": "ds.json",
    "enable_jit_checkpoint": True,
    "eval_accumulation_steps": 4,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "fp16_full_eval": True,
    "ignore_data_skip": True,
    "include_for_metrics": ["inputs"],
    "label_names": ["labels"],
    "label_smoothing_factor": 0.1,
    "length_column_name": "size",
    "logging_nan_inf_filter": True,
    "neftune_noise_alpha": 5.0,
    "parallelism_config": object(),
    "restore_callback_states_from_checkpoint": True,
    "save_on_each_node": True,
}
"""Of each refused option, a value that asks for something."""

IDLE: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "beta": (0.3, {"loss_type": "repo"}, {}),
    "label_smoothing": (0.1, {"loss_type": "hinge"}, {}),
    "cpo_alpha": (0.5, {"loss_type": "alphapo"}, {}),
    "nll_reduction": ("sequence_sum", {"cpo_alpha": 0.0}, {}),
    "simpo_gamma": (2.0, {}, {}),
    "gamma_beta_ratio": (8.0, {}, {}),
    "reference": ("another", {}, {}),
    "rpo_alpha": (0.5, {}, {}),
    "dpop_lambda": (5.0, {}, {}),
    "alpha": (0.1, {"loss_type": "orpo"}, {}),
    "ld_alpha": (0.3, {"loss_type": "simpo"}, {}),
    "arpo_scale": (1.0, {}, {}),
    "arpo_eta": (1.5, {}, {}),
    "generate_during_eval": (True, {}, {"evaluates": False}),
    "eval_samples": (2, {}, {}),
    "eval_sample_tokens": (2, {"generate_during_eval": True}, {"evaluates": False}),
    "generation_num_beams": (4, {"generate_during_eval": True}, {"evaluates": False}),
    "eval_sample_temperature": (1.0, {"generate_during_eval": True}, {"evaluates": False}),
    "dataset_num_proc": (2, {"max_steps": 1}, {"streams": True}),
    "resume_anyway": (True, {}, {"resumes": False}),
    "constraint_calibration": (2, {}, {}),
    "constraint_normalization": (True, {}, {}),
    "on_alarm": ("stop", {"logging_strategy": "no", "monitor_steps": 0}, {}),
    "learning_rate": (0.1, {}, {"own_optimizer": True}),
    "logging_steps": (2, {"logging_strategy": "epoch"}, {}),
    "prediction_loss_only": (True, {}, {"evaluates": False}),
    "per_device_eval_batch_size": (2, {}, {"evaluates": False}),
    "eval_steps": (2, {"eval_strategy": "epoch"}, {}),
    "eval_delay": (2, {}, {}),
    "metric_for_best_model": ("loss", {"eval_strategy": "epoch"}, {}),
    "greater_is_better": (True, {"eval_strategy": "epoch"}, {}),
    "save_steps": (2, {"save_strategy": "epoch"}, {}),
    "save_total_limit": (2, {"save_strategy": "no"}, {}),
    "save_only_model": (True, {"save_strategy": "no"}, {}),
    "num_train_epochs": (2, {"max_steps": 1}, {}),
    "data_seed": (1, {"train_sampling_strategy": "sequential"}, {}),
    "train_sampling_strategy": ("sequential", {"max_steps": 1}, {"streams": True}),
    "stream_shards": (2, {}, {}),
    "dataloader_persistent_workers": (True, {"max_steps": 1}, {"streams": True}),
    "dataloader_prefetch_factor": (
        3,
        {"max_steps": 1, "dataloader_num_workers": 1},
        {"streams": True},
    ),
    "dataloader_multiprocessing_context": ("spawn", {"max_steps": 1}, {"streams": True}),
    "remove_unused_columns": (False, {}, {}),
    "ddp_find_unused_parameters": (True, {}, {}),
    "ddp_bucket_cap_mb": (3, {}, {}),
    "ddp_broadcast_buffers": (True, {}, {}),
    "checkpointing_share": (0.5, {"gradient_checkpointing": False}, {}),
    "activation_offload": (True, {}, {}),
    "optimizer_offload": (True, {"fsdp": True}, {}),
    "gradient_checkpointing_kwargs": (
        {"use_reentrant": True},
        {"gradient_checkpointing": False},
        {},
    ),
    "optim": ("adafactor", {}, {"own_optimizer": True}),
    "weight_decay": (0.1, {}, {"own_optimizer": True}),
    "adam_beta1": (0.8, {"optim": "sgd"}, {}),
    "adam_beta2": (0.8, {"optim": "sgd"}, {}),
    "adam_epsilon": (1e-6, {"optim": "lion_32bit"}, {}),
    "optim_args": ("momentum=0.9", {}, {}),
    "optim_target_modules": (["q_proj"], {}, {}),
    "lr_scheduler_type": ("cosine", {}, {"own_schedule": True}),
    "warmup_steps": (5, {"lr_scheduler_type": "constant"}, {}),
    "lr_scheduler_kwargs": ({"num_cycles": 2}, {"lr_scheduler_type": "constant"}, {}),
}
"""Of options that depend on the rest of a run: a value, and a rest in which it does nothing."""

ALWAYS = {
    *("max_length", "max_completion_length", "loss_type", "disable_dropout", "truncation"),
    "train_turns",
    *("invalid_rows", "nonfinite", "layout", "max_micro_batch_tokens", "stochastic_rounding"),
    *("use_weighting", "constraints", "monitor_steps", "bf16", "gradient_checkpointing"),
    *("pairs_per_step", "early_stopping_patience", "early_stopping_threshold"),
}
"""Options of ours that matter in every run."""

OF_THE_MODEL = {
    "model_init_kwargs": "refused for a model that is loaded (CP104)",
    "router_aux_loss_coef": "refused for a model without experts (CP104)",
    "trust_remote_code": "a permission, which a model may not need",
    "allow_pickle": "a permission, which a model may not need",
    "load_in_4bit": "refused for a model that is not quantised (CP104)",
    "load_in_8bit": "refused for a model that is not quantised (CP104)",
    "fsdp_replicas": "refused for a model that is not sharded (CP104)",
    "is_encoder_decoder": "refused where the model is another (CP104)",
    "source_lang": "refused for a tokenizer without languages (CP104)",
    "target_lang": "refused for a tokenizer without languages (CP104)",
    "image_folder": "refused for a model that sees no pictures (CP104)",
    "allow_remote_images": "refused for a model that sees no pictures (CP104)",
    "max_image_pixels": "refused for a model that sees no pictures (CP104)",
    "picture_cache_gb": "refused for a model that sees no pictures (CP104)",
}
"""Options of ours that depend on the model alone."""

KNOWN = {field.name for field in fields(CPOConfig)}


@pytest.fixture(scope="module")
def bench(
    tmp_path_factory: pytest.TempPathFactory, gpt2_tokenizer: PreTrainedTokenizerFast
) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), gpt2_tokenizer)


def test_no_option_is_without_a_row() -> None:
    of_transformers = {field.name for field in fields(TrainingArguments)}
    assert {*TRIED, *REFUSED} >= KNOWN - of_transformers
    assert {*TRIED} & {*REFUSED} == set()


@pytest.mark.parametrize("name", sorted(TRIED))
def test_an_option_changes_what_it_is_for(bench: Bench, name: str) -> None:
    if name not in KNOWN:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    one = TRIED[name]
    assert one.look(bench, {**one.base, name: one.value}) != one.look(bench, dict(one.base))


def test_what_is_seen_is_the_same_where_the_options_are(tmp_path: Path, bench: Bench) -> None:
    """Or else any two runs would differ, whatever was changed."""
    again = Bench(tmp_path, bench.tokenizer)
    looks = {one.look for one in TRIED.values()} - {strange_config, precision, optimizer}
    assert {look.__name__: look(again, {}) for look in looks} == {
        look.__name__: look(bench, {}) for look in looks
    }


def test_every_refused_option_is_asked_for_below() -> None:
    assert set(ASKED) == set(REFUSED)


@pytest.mark.parametrize("name", sorted(ASKED))
def test_a_refused_option_is_refused_and_its_default_is_not(name: str) -> None:
    if name not in KNOWN:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    with pytest.raises(CounterpointError, match=rf"^CP105 {name}="):
        CPOConfig(output_dir="o", use_cpu=True, **{name: ASKED[name]})
    CPOConfig(output_dir="o", use_cpu=True, **{name: REFUSED[name][0]})


def test_what_transformers_makes_of_the_defaults_passes_again() -> None:
    resolved = CPOConfig(output_dir="o", use_cpu=True)
    again = {name: getattr(resolved, name) for name in REFUSED if name in KNOWN}
    CPOConfig(output_dir="o", use_cpu=True, **again)
    plain = {"split_batches": False, "even_batches": True, "use_seedable_sampler": True}
    CPOConfig(output_dir="o", use_cpu=True, accelerator_config=plain)


@pytest.mark.parametrize("name", ["dataloader_num_workers", "dataloader_drop_last"])
def test_what_a_stream_cannot_do_is_refused(bench: Bench, name: str) -> None:
    with pytest.raises(CounterpointError, match=rf"^CP104 {name}="):
        CPOTrainer(
            model=make_model(),
            args=bench.args({name: 1, "max_steps": 1}),
            train_dataset=PAIRS.to_iterable_dataset(),
            processing_class=bench.tokenizer,
        )


def test_of_every_option_of_ours_the_rest_where_it_matters_is_stated() -> None:
    of_transformers = {field.name for field in fields(TrainingArguments)}
    ours = (KNOWN - of_transformers) | (set(CPOConfig.__annotations__) & KNOWN)
    assert {*IDLE, *ALWAYS, *OF_THE_MODEL} >= ours - set(REFUSED)
    assert {*IDLE} & {*ALWAYS, *OF_THE_MODEL} == set()
    assert set(UNUSED) <= set(IDLE)


@pytest.mark.parametrize("name", sorted(IDLE))
def test_an_option_that_can_do_nothing_in_a_run_is_said(name: str) -> None:
    if name not in KNOWN:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    value, others, rest = IDLE[name]
    said = what_is_said({**others, name: value}, Rest(**{"evaluates": True, **rest}))
    assert re.match(rf"CP104 {name}=|CW109 .* in this run: (.*; )?{name}=", said)


def what_is_said(options: dict[str, Any], rest: Rest) -> str:
    """That they are refused, or which of them do nothing."""
    try:
        args = CPOConfig(output_dir="o", use_cpu=True, **options)
    except CounterpointError as error:
        return str(error)
    return in_a_line(args, unused(args, rest))


@pytest.mark.parametrize("name", sorted({*TRIED} & {*UNUSED} - {"remove_unused_columns"}))
def test_an_option_that_does_something_is_not_said_to_do_nothing(name: str) -> None:
    one = TRIED[name]
    known = {key: part for key, part in one.base.items() if key in KNOWN}
    if name not in KNOWN:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    args = CPOConfig(output_dir="o", use_cpu=True, **{**known, name: one.value})
    rest = Rest(evaluates=True, resumes=True, streams=name == "stream_shards")
    said = unused(args, rest).get(name)
    assert said in (None, "there is one process") or "on a CPU" in said


# What transformers reads


def test_every_other_option_is_read_by_code_that_still_runs() -> None:
    rest = KNOWN - {*TRIED, *REFUSED, *ELSEWHERE, *RESOLVED, *BY_OTHER_NAMES}
    assert rest - read_by_transformers() == set()


def test_an_option_that_no_trainer_reads_is_not_called_read_by_one() -> None:
    """Were it read one day, its row would be a lie."""
    assert {*ELSEWHERE, *RESOLVED, "prediction_loss_only"} & read_by_transformers() == set()


@pytest.mark.parametrize("name", sorted(BY_OTHER_NAMES))
def test_an_option_read_by_another_name_is_read_so(name: str) -> None:
    if name not in KNOWN:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    folder = Path(transformers.__file__).parent
    text = "".join(
        (folder / file).read_text() for file in ("training_args.py", "trainer_callback.py")
    )
    assert BY_OTHER_NAMES[name] in text


def methods(kind: type[Any]) -> dict[str, ast.FunctionDef]:
    """The methods that a class itself defines, as trees."""
    module = ast.parse(inspect.getsource(import_module(kind.__module__)))
    own = next(n for n in module.body if isinstance(n, ast.ClassDef) and n.name == kind.__name__)
    return {node.name: node for node in own.body if isinstance(node, ast.FunctionDef)}


def names_read(tree: ast.AST, owners: tuple[str, ...]) -> set[str]:
    """Options read as attributes of something of one of these names."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and node.attr in KNOWN
        and ast.unparse(node.value).rpartition(".")[2] in owners
    }


def calls(tree: ast.AST, owner: str) -> set[str]:
    """Attributes of ``self`` or ``super()`` in some code."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == owner
    }


@cache
def silenced() -> set[str]:
    """Methods of transformers' trainer that none of ours comes to call."""
    theirs, ours = methods(Trainer), {}
    for kind in reversed(CPOTrainer.__mro__[: CPOTrainer.__mro__.index(Trainer)]):
        for name, node in methods(kind).items():
            # what a hook of a class above does counts where the hook here hands over to it
            above = ours.get(name, []) if name in calls(node, "super()") else []
            ours[name] = [node, *above]
    live = [node for nodes in ours.values() for node in nodes]
    kept = {name for node in live for name in calls(node, "super()")}
    kept |= {name for node in live for name in calls(node, "Trainer")}
    kept |= {name for node in live for name in calls(node, "self")} - set(ours)
    callers = {
        name: {other for other, node in theirs.items() if name in calls(node, "self")} - {name}
        for name in theirs
    }
    dead = (set(ours) & set(theirs)) - kept
    while more := {
        name
        for name in set(theirs) - dead - kept - set(ours)
        if callers[name] and callers[name] <= dead
    }:
        dead |= more
    return dead


@cache
def read_by_transformers() -> set[str]:
    """Options that are read by transformers in a run of ours."""
    passed_over = {"_validate_args", *silenced()}
    found: set[str] = set()
    for name, node in methods(Trainer).items():
        if name not in passed_over:
            found |= names_read(node, ("args",))
    for name, node in methods(TrainingArguments).items():
        # setters of groups of options read nothing, and the constructor reads everything once
        if not name.startswith("set_") and name not in ("__post_init__", "_validate_args"):
            found |= names_read(node, ("self",))
    folder = Path(transformers.__file__).parent
    parts = ["trainer_callback.py", "trainer_optimizer.py", "integrations/integration_utils.py"]
    for path in (folder / part for part in parts):
        if path.is_file():  # releases of transformers differ in files
            found |= names_read(ast.parse(path.read_text(encoding="utf-8")), ("args",))
    return found


def test_the_methods_that_are_overridden_whole_are_known() -> None:
    """A new one may be what an option was for; then the option needs a row."""
    assert {
        "compute_loss",
        "evaluation_loop",
        "get_batch_samples",
        "get_train_dataloader",
        "prediction_step",
        "_get_dataloader",
        "_get_train_sampler",
    } <= silenced()
    assert {"_save", "_save_checkpoint", "_load_from_checkpoint"} <= silenced()
    assert {"training_step", "log", "create_optimizer", "train"} & silenced() == set()
