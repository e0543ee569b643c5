"""What moves at a learning rate of 1e-6, in every precision that weights can be kept in."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from counterpoint import ConfigError, CPOConfig, CPOTrainer, SetupError
from counterpoint.models import precision, stochastic_adamw
from counterpoint.models.precision import rounding, warn_of_rounding
from counterpoint.models.stochastic_adamw import StochasticAdamW
from counterpoint.rounding import held
from tests.reliability.trials import TORTURE
from tests.steps import random_pairs

STEP = 1e-6
STEPS = 200 if TORTURE else 50
"""In which the ways of two precisions part, if they do; bfloat16's does at once."""

# PyTorch's compiler of PyTorch, when it is first imported
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")


@pytest.fixture
def uncompiled():
    """Compiling takes seconds a shape, and changes no number but the draws."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def build(models, chatml_tokenizer, tmp_path: Path):
    """A trainer that goes on at one learning rate; options and arguments by keyword."""

    def make(model=None, *, folder: str = "run", **options) -> CPOTrainer:
        arguments = {k: options.pop(k) for k in ("peft_config", "optimizers") if k in options}
        defaults = {
            "output_dir": str(tmp_path / folder),
            "per_device_train_batch_size": 2,
            "learning_rate": STEP,
            "lr_scheduler_type": "constant",
            "max_steps": 2,
            "logging_steps": 100,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            "gradient_checkpointing": False,
        }
        return CPOTrainer(
            model=models() if model is None else model,
            args=CPOConfig(**{**defaults, **options}),
            processing_class=chatml_tokenizer,
            train_dataset=random_pairs(16, weighted=False),
            **arguments,
        )

    return make


# Which weights a step does not move


def test_a_step_below_half_a_unit_in_the_last_place_is_lost():
    # from 2^-11 on half a unit is 2^-19 = 1.9e-6; below it, 2^-20 = 9.5e-7
    weights = torch.tensor([1.0, -1.0, 1.5 * 2**-11, 1.5 * 2**-12, 0.0], dtype=torch.bfloat16)
    assert held(weights, STEP).tolist() == [True, True, True, False, False]


def test_a_weight_that_one_direction_moves_is_not_held():
    power = torch.tensor([2.0**-11], dtype=torch.bfloat16)  # the units below it are half as large
    assert torch.equal((power.float() + STEP).bfloat16(), power)
    assert held(power, STEP).tolist() == [False]


def test_half_a_unit_exactly_moves_odd_weights_only():
    odd, even = 1 + 2**-7, 1 + 2**-6
    assert held(torch.tensor([odd, even], dtype=torch.bfloat16), 2**-8).tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("step", [2**-23, 3 * 2**-21, 2**-14])
def test_held_are_the_weights_that_an_optimizer_leaves_where_they_are(dtype, step):
    weights = torch.randn(5_000, generator=torch.Generator().manual_seed(0)).mul(0.02).to(dtype)
    stays = torch.ones(5_000, dtype=torch.bool)
    for direction in (-1.0, 1.0):
        moved = nn.Parameter(weights.clone())
        moved.grad = torch.full_like(moved, direction)
        torch.optim.SGD([moved], lr=step).step()
        stays &= moved.detach() == weights
    assert torch.equal(held(weights, step), stays)


def test_the_count_is_over_groups_and_chunks_each_at_its_own_rate(monkeypatch):
    monkeypatch.setattr(precision, "CHUNK", 2)
    ones = nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
    same = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    wide = nn.Parameter(torch.ones(7))
    groups = [{"params": [ones, wide], "lr": 1e-6}, {"params": [same], "lr": 1e-2}]
    found = rounding(torch.optim.AdamW(groups))
    assert (found.held, found.weights, found.learning_rate) == (5, 8, 1e-2)


# The warning


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "cannot move" in r.getMessage()]


def test_bfloat16_weights_at_a_small_rate_are_counted_aloud_and_in_the_run_log(
    build, models, caplog
):
    trainer = build(models().bfloat16())
    with caplog.at_level(logging.WARNING, "counterpoint"):
        trainer.train()
    found = json.loads((Path(trainer.args.output_dir) / "run.json").read_text())["rounding"]
    weights = torch.cat([p.flatten() for p in models().bfloat16().parameters()])
    assert found == {
        "held": int(held(weights, STEP).sum()),
        "weights": weights.numel(),
        "learning_rate": STEP,
    }
    assert found["held"] > 0.9 * found["weights"]
    (message,) = warnings_of(caplog)
    assert f"{100 * found['held'] / found['weights']:.1f}% of the {weights.numel():,}" in message
    assert "stochastic_rounding=True" in message


def test_a_schedule_that_starts_at_zero_does_not_hide_the_rate():
    weights = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([weights], lr=STEP)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert optimizer.param_groups[0]["lr"] == 0
    found = warn_of_rounding(optimizer)
    assert found is not None
    assert (found.held, found.learning_rate) == (4, STEP)


@pytest.mark.parametrize("case", ["rate of 1e-4", "float32", "autocast", "lora", "stochastic"])
def test_nothing_is_said_where_updates_arrive(case, build, models, caplog, uncompiled):
    half = models().bfloat16()
    trainer = {
        "rate of 1e-4": lambda: build(half, learning_rate=1e-4),
        "float32": lambda: build(models()),
        "autocast": lambda: build(models(), bf16=True),
        # PEFT keeps its adapters in float32
        "lora": lambda: build(half, peft_config=peft.LoraConfig(target_modules="all-linear")),
        "stochastic": lambda: build(half, stochastic_rounding=True),
    }[case]()
    with caplog.at_level(logging.WARNING, "counterpoint"):
        trainer.train()
    assert warnings_of(caplog) == []


def test_an_optimizer_that_keeps_its_rounding_errors_loses_none():
    weights = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    kahan = [{"params": [weights], "use_kahan_summation": True}]
    assert rounding(torch.optim.SGD(kahan, lr=STEP)).weights == 0
    assert rounding(torch.optim.SGD([weights], lr=STEP)).held == 4


# What the modes move


def displacement(build, models, mode: str, **options) -> torch.Tensor:
    """How far 200 steps move the weights; every mode starts from the same bfloat16 values."""
    # spread as transformers initialises, 0.02; wide enough that the draws average out
    model = models(hidden_size=64, head_dim=16, intermediate_size=256, num_hidden_layers=1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_((weight * 0.1 if weight.dim() > 1 else weight).bfloat16())
    if mode in ("bfloat16", "stochastic rounding"):
        model = model.bfloat16()
    start = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    trainer = build(model, folder=mode, max_steps=STEPS, **options)
    trainer.train()
    return torch.cat([p.detach().double().flatten() for p in model.parameters()]) - start


@pytest.mark.slow
def test_many_steps_move_the_weights_as_far_in_every_mode_as_in_float32(build, models, uncompiled):
    wanted = displacement(build, models, "float32")

    def projected(mode: str, **options) -> float:
        return float(displacement(build, models, mode, **options) @ wanted / (wanted @ wanted))

    assert projected("float32, autocast", bf16=True) >= 0.99
    assert projected("stochastic rounding", stochastic_rounding=True) >= 0.99
    # what the warning is for
    assert projected("bfloat16") < 0.2


# Stochastic rounding


def test_rounding_is_right_on_average(uncompiled):
    weights = nn.Parameter(torch.ones(100_000, dtype=torch.bfloat16))
    optimizer = StochasticAdamW([weights], lr=1e-4)
    for _ in range(10):
        weights.grad = torch.ones_like(weights)
        optimizer.step()
    moved = 1 - weights.detach().double()
    # a weight moves by units of 2^-8, each with variance below 2^-8 x 1e-3 in all
    assert float(moved.mean()) == pytest.approx(1e-3, abs=5 * (2**-8 * 1e-3 / 100_000) ** 0.5)
    assert set(moved.unique().tolist()) <= {k * 2**-8 for k in range(11)}


def test_its_moments_are_those_of_float32(uncompiled):
    """In bfloat16 the second moment would stand still: its own updates round away."""
    weights = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    twin = nn.Parameter(torch.ones(64))
    optimizer, plain = StochasticAdamW([weights], lr=STEP), torch.optim.AdamW([twin], lr=STEP)
    generator = torch.Generator().manual_seed(0)
    for step in range(600):
        size = 1.0 if step < 300 else 0.1
        weights.grad = (size * torch.randn(64, generator=generator)).bfloat16()
        twin.grad = weights.grad.float()
        optimizer.step()
        plain.step()
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(
            optimizer.state[weights][name], plain.state[twin][name], rtol=1e-4, atol=1e-7
        )


def test_it_decays_the_weights_that_transformers_would_with_the_options_of_the_run(
    build, models, uncompiled
):
    trainer = build(
        models().bfloat16(),
        stochastic_rounding=True,
        weight_decay=0.1,
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-7,
    )
    plain = build(models(), weight_decay=0.1)

    def sizes(optimizer) -> list[tuple[float, int]]:
        return [(g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]

    optimizer = trainer.create_optimizer()
    assert type(optimizer) is StochasticAdamW
    assert sizes(optimizer) == sizes(plain.create_optimizer())
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-7)
    assert float(group["lr"]) == pytest.approx(STEP)


def test_every_rank_rounds_the_same_way_whatever_it_drew_before(uncompiled):
    ends = []
    for drawn in (0, 5):
        torch.manual_seed(1)
        torch.rand(drawn)
        weights = nn.Parameter(torch.ones(1_000, dtype=torch.bfloat16))
        optimizer = StochasticAdamW([weights], lr=1e-4, seed=3)
        before = torch.get_rng_state()
        for _ in range(3):
            weights.grad = torch.ones_like(weights)
            optimizer.step()
        assert torch.equal(torch.get_rng_state(), before)
        ends.append(weights.detach())
    assert torch.equal(*ends)


def test_other_seeds_and_steps_draw_otherwise(uncompiled):
    def moved(seed: int, steps: int) -> list[torch.Tensor]:
        weights = nn.Parameter(torch.ones(1_000, dtype=torch.bfloat16))
        optimizer = StochasticAdamW([weights], lr=1e-3, seed=seed)
        seen = [weights.detach().clone()]
        for _ in range(steps):
            weights.grad = torch.ones_like(weights)
            optimizer.step()
            seen.append(weights.detach().clone())
        return [b != a for a, b in pairwise(seen)]

    first, second = moved(0, 2)
    assert not torch.equal(first, second)
    assert not torch.equal(first, moved(1, 1)[0])


def test_a_resumed_run_ends_where_the_whole_one_does(build, models, uncompiled):
    options = {
        "stochastic_rounding": True,
        "learning_rate": 1e-4,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "lr_scheduler_type": "linear",
    }
    whole = build(models().bfloat16(), folder="whole", **options)
    whole.train()
    again = build(models().bfloat16(), folder="again", **options)
    again.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-3"))
    ends = dict(again.model.named_parameters())
    assert not [n for n, p in whole.model.named_parameters() if not torch.equal(p, ends[n])]
    moments = {m.dtype for s in again.optimizer.state.values() for k, m in s.items() if k != "step"}
    assert moments == {torch.float32}


def test_a_model_given_by_name_is_loaded_in_bfloat16(build, models, tmp_path):
    models().save_pretrained(tmp_path / "model")
    trainer = build(str(tmp_path / "model"), stochastic_rounding=True)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "those under training are float32"),
        ({"peft_config": peft.LoraConfig(target_modules="all-linear")}, "training are float32"),
        ({"fp16": True}, "fp16=True contradicts it"),
        ({"optim": "sgd"}, "optim='sgd' would not be used"),
        ({"optimizers": (object(), None)}, "optimizers has one"),
    ],
    ids=["float32", "lora", "fp16", "another optim", "another optimizer"],
)
def test_it_is_refused_where_it_would_do_nothing(options, reason, build):
    with pytest.raises(ConfigError, match=reason) as caught:
        build(stochastic_rounding=True, **options)
    assert caught.value.code == "CP104"


def test_without_torchao_the_install_command_is_named(build, models, monkeypatch):
    monkeypatch.delitem(sys.modules, "counterpoint.models.stochastic_adamw")
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(SetupError, match=r"-m pip install 'torchao>=0\.18'") as caught:
        build(models().bfloat16(), stochastic_rounding=True)
    assert caught.value.code == "CP502"


def test_without_a_compiler_it_runs_uncompiled_and_says_so(monkeypatch, caplog, uncompiled):
    def fails(x):
        raise RuntimeError("no g++ here\nand a long story")

    monkeypatch.setattr(stochastic_adamw, "_probe", fails)
    weights = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = StochasticAdamW([weights], lr=1.0)
    for _ in range(2):
        weights.grad = torch.ones_like(weights)
        optimizer.step()
    assert weights.tolist() == [-1.0] * 8
    (message,) = [r.getMessage() for r in caplog.records]
    assert message.startswith("stochastic_rounding runs uncompiled")
    assert message.endswith("no g++ here")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_compiled_and_uncompiled_steps_differ_in_their_draws_only(caplog):
    ends = {}
    for stance in ("default", "force_eager"):
        weights = nn.Parameter(torch.linspace(-1, 1, 50_000).bfloat16())
        optimizer = StochasticAdamW([weights], lr=1e-3, weight_decay=0.1)
        weights.grad = torch.linspace(-2, 3, 50_000).bfloat16()
        with torch.compiler.set_stance(stance):
            optimizer.step()
        ends[stance] = (weights.detach().double(), optimizer.state[weights]["exp_avg_sq"])
    assert not [r for r in caplog.records if "uncompiled" in r.getMessage()]
    (compiled, moment), (eager, expected) = ends.values()
    torch.testing.assert_close(moment, expected)
    unit = 2.0**-8 * eager.abs().clamp(min=2**-8)
    assert bool(((compiled - eager).abs() <= 2 * unit).all())
    # sums of independent draws: five standard deviations
    assert abs(float((compiled - eager).mean())) < 5 * float((unit**2).mean() / 50_000) ** 0.5


# The optimizer of a run without options


def test_the_default_optimizer_is_one_fused_kernel(build):
    trainer = build()
    trainer.train()
    assert type(trainer.optimizer.optimizer) is torch.optim.AdamW
    assert [group["fused"] for group in trainer.optimizer.param_groups] == [True, True]
