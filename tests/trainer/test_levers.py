"""Levers of memory in a run: the same steps bit for bit, however cut, killed or done again."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint import CounterpointError, CPOConfig, NonFiniteError
from counterpoint.checkpoint.folder import finished
from counterpoint.forward.offload import activations_on_host, copied
from counterpoint.step.replay.file import read_replay
from counterpoint.trainer import stepping
from tests.steps import distance, random_pairs, train_watched

LEVERS: dict[str, dict[str, Any]] = {
    "half of the layers": {"gradient_checkpointing": True, "checkpointing_share": 0.5},
    "on the host": {"activation_offload": True},
    "both": {
        "gradient_checkpointing": True,
        "checkpointing_share": 0.25,
        "activation_offload": True,
    },
}


@pytest.fixture(autouse=True)
def trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let activations travel on a CPU as well, and count those that do."""
    gone: list[int] = []

    def going(tensor: torch.Tensor) -> torch.Tensor:
        gone.append(tensor.nbytes)
        return copied(tensor, tensor.device)

    def offloading(device: torch.device, *, wanted: bool) -> AbstractContextManager[None]:
        # with nothing large enough to go, the hooks are there all the same
        return activations_on_host(least=0 if wanted else 2**60, to_host=going)

    monkeypatch.setattr(stepping, "offloading", offloading)
    return gone


def run(models, tokenizer, folder: Path, **options: Any) -> tuple[list[dict], dict]:
    model = models("gpt2", num_hidden_layers=4, resid_pdrop=0.2)
    merged = {"disable_dropout": False, "per_device_train_batch_size": 4, **options}
    steps, trainer = train_watched(model, tokenizer, random_pairs(16), folder, **merged)
    return steps, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("name", LEVERS)
def test_a_run_with_dropout_is_the_same_bit_for_bit(
    name: str, models, gpt2_tokenizer, tmp_path: Path, trips: list[int]
):
    steps, weights = run(models, gpt2_tokenizer, tmp_path / "plain")
    assert trips == []
    again, moved = run(models, gpt2_tokenizer, tmp_path / "lever", **LEVERS[name])
    assert bool(trips) == ("activation_offload" in LEVERS[name])
    for one, other in zip(steps, again, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert all(torch.equal(weights[key], moved[key]) for key in weights)


@pytest.mark.parametrize(
    "options",
    [
        {"fsdp": True, "optimizer_offload": True},
        {"fsdp": True, "fsdp_config": {"cpu_offload": True}},
        {"fsdp": True, "fsdp_config": {"fsdp_offload_params": True}},
        {"fsdp": "full_shard offload"},
    ],
)
def test_shards_on_the_host_have_one_meaning_by_all_of_their_names(options, tmp_path: Path):
    args = CPOConfig(output_dir=str(tmp_path), use_cpu=True, **options)
    assert args.optimizer_offload
    assert args.fsdp_plugin_args["cpu_offload"] is True
    assert "offload_params" not in args.fsdp_config


def test_shards_that_a_launcher_keeps_on_the_host_are_known(tmp_path: Path, monkeypatch):
    assert not CPOConfig(output_dir=str(tmp_path), use_cpu=True, fsdp=True).optimizer_offload
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    assert not CPOConfig(output_dir=str(tmp_path), use_cpu=True).optimizer_offload
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert CPOConfig(output_dir=str(tmp_path), use_cpu=True).optimizer_offload


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fsdp": None}, "nothing asks for shards. Set fsdp=2 as well; on a single .*paged_adamw"),
        ({"optim": "adamw_bnb_8bit"}, "optim='adamw_bnb_8bit' computes on the accelerator"),
        ({"optim": "paged_adamw_32bit"}, "optim='paged_adamw_32bit' computes on the acc"),
        ({"stochastic_rounding": True}, "stochastic_rounding and optimizer_offload"),
        ({"load_in_4bit": True}, "load_in_4bit and optimizer_offload: quantised weights stay"),
    ],
)
def test_what_the_host_cannot_update_is_refused(options, said: str, tmp_path: Path):
    given = {"fsdp": True, "optimizer_offload": True, **options}
    with pytest.raises(CounterpointError, match=rf"^CP104 .*{said}"):
        CPOConfig(output_dir=str(tmp_path), use_cpu=True, **given)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3_moe"])
@pytest.mark.parametrize("name", ["both"])
def test_a_step_is_the_same_however_it_is_cut(
    kind: str, name: str, models, chatml_tokenizer, tmp_path: Path
):
    pictures = []
    for size, options in ((8, {}), (8, LEVERS[name]), (2, LEVERS[name]), (1, LEVERS[name])):
        steps, _ = train_watched(
            models(kind, num_hidden_layers=4).double(),
            chatml_tokenizer,
            random_pairs(8),
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            **options,
        )
        pictures += steps
    assert len(pictures) == 4
    assert all(torch.equal(pictures[0][key], pictures[1][key]) for key in pictures[0])
    # a router computes in float32, in which other sums round otherwise
    within = 1e-12 if kind == "qwen2" else 1e-6
    assert max(distance(pictures[0], other) for other in pictures[2:]) <= within


def test_a_run_that_was_ended_resumes_bit_for_bit(models, gpt2_tokenizer, tmp_path: Path):
    options = {**LEVERS["both"], "save_strategy": "steps", "save_steps": 2}
    _, whole = run(models, gpt2_tokenizer, tmp_path / "whole", **options)
    first, _ = run(models, gpt2_tokenizer, tmp_path / "cut", **options)
    assert len(first) == 4
    from counterpoint import CPOTrainer

    # from its second step, and without levers: they are no part of an experiment
    for levers in (LEVERS["both"], {}):
        args = {**options, "gradient_checkpointing": False, "checkpointing_share": 1.0}
        args = {**args, "activation_offload": False, **levers}
        trainer = CPOTrainer(
            model=models("gpt2", num_hidden_layers=4, resid_pdrop=0.2),
            args=CPOConfig(
                output_dir=str(tmp_path / "cut"),
                use_cpu=True,
                num_train_epochs=1,
                max_grad_norm=0.0,
                train_sampling_strategy="sequential",
                disable_tqdm=True,
                logging_steps=1,
                learning_rate=1e-3,
                disable_dropout=False,
                per_device_train_batch_size=4,
                **args,
            ),
            train_dataset=random_pairs(16),
            processing_class=gpt2_tokenizer,
        )
        second = next(path for path in finished(tmp_path / "cut") if path.name.endswith("-2"))
        trainer.train(resume_from_checkpoint=str(second))
        assert trainer.state.global_step == 4
        for name, parameter in trainer.model.named_parameters():
            assert torch.equal(parameter, whole[name]), name


def test_a_replay_says_which_levers_the_step_had(models, chatml_tokenizer, tmp_path: Path):
    pairs = random_pairs(8).map(lambda row: {"margin": float("nan") if row["row"] > 5 else 0.0})
    with pytest.raises(NonFiniteError):
        train_watched(
            models("qwen2"),
            chatml_tokenizer,
            pairs,
            tmp_path,
            per_device_train_batch_size=8,
            **LEVERS["half of the layers"],
        )
    settings = asdict(read_replay(next(tmp_path.glob("replay-*.safetensors"))).settings)
    assert settings["checkpointing"]
    assert settings["checkpointing_share"] == 0.5
    assert settings["offload"] is False  # on a CPU they are on the host


@pytest.mark.parametrize("share", [0, -0.5, 1.5, float("nan"), True, "half"])
def test_a_share_that_is_none_is_refused(share: Any):
    with pytest.raises(CounterpointError, match=r"^CP103 checkpointing_share=.*\(0, 1\]"):
        CPOConfig(output_dir="o", use_cpu=True, checkpointing_share=share)


@pytest.mark.parametrize(
    ("name", "ours"), [("every_n_layers", "checkpointing_share"), ("offload", "activation_offload")]
)
def test_what_only_some_releases_of_transformers_take_is_refused(name: str, ours: str):
    with pytest.raises(CounterpointError, match=rf"^CP105 .*'{name}' is refused.*{ours}"):
        CPOConfig(output_dir="o", use_cpu=True, gradient_checkpointing_kwargs={name: 2})
