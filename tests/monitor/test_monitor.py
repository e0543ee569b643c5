"""The monitor in whole runs: sabotages raise their alarm, healthy runs raise none.

Small models made on the spot, and the quickstart's own base model on its own pairs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn.functional import linear
from transformers import TrainerCallback

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.engine.plain import Plain
from counterpoint.monitor.callback import Monitor, is_look
from counterpoint.monitor.sample import MOST
from counterpoint.monitor.watch import MovementWatch
from counterpoint.quickstart.task import preference_pairs
from counterpoint.quickstart.translate import load_base
from counterpoint.runlog import Run, read_run
from tests.steps import random_pairs

STEPS = 12

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")


@pytest.fixture
def build(chatml_tokenizer, tmp_path: Path):
    """A trainer of twelve steps; options and arguments by keyword."""

    def make(model: nn.Module, *, folder: str = "run", **options: Any) -> CPOTrainer:
        names = ("peft_config", "optimizers", "callbacks", "train_dataset", "processing_class")
        arguments = {name: options.pop(name) for name in names if name in options}
        defaults: dict[str, Any] = {
            "output_dir": str(tmp_path / folder),
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "max_steps": STEPS,
            "logging_steps": 100,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            "gradient_checkpointing": False,
        }
        return CPOTrainer(
            model=model,
            args=CPOConfig(**{**defaults, **options}),
            **{
                "processing_class": chatml_tokenizer,
                "train_dataset": random_pairs(16, weighted=False),
                **arguments,
            },
        )

    return make


@pytest.fixture
def quickstart(build):
    """A trainer of the quickstart's base on eight of its pairs a step, with its options."""

    def make(change: Callable[[Any], None] | None = None, **options: Any) -> CPOTrainer:
        model, tokenizer = load_base()
        if change is not None:
            change(model)
        defaults: dict[str, Any] = {
            "beta": 2.0,
            "cpo_alpha": 0.03,
            "learning_rate": 2e-4,
            "lr_scheduler_type": "linear",
            "warmup_steps": 5,
            "per_device_train_batch_size": 8,
            "max_length": 64,
            "train_dataset": [pair.row for pair in preference_pairs(8 * STEPS, seed=0)],
            "processing_class": tokenizer,
        }
        return build(model, **{**defaults, **options})

    return make


def trained(trainer: CPOTrainer, **arguments: Any) -> Run:
    """What the run directory says after training."""
    trainer.train(**arguments)
    return read_run(trainer.args.output_dir)


def told(run: Run) -> list[str]:
    return [alarm["code"] for alarm in run.alarms]


@pytest.fixture
def uncompiled():
    """Compiling takes seconds a shape, and changes no number but the draws."""
    with torch.compiler.set_stance("force_eager"):
        yield


# Sabotage


def test_a_learning_rate_of_zero_is_told(quickstart):
    (alarm,) = trained(quickstart(learning_rate=0.0)).alarms
    assert (alarm["code"], alarm["step"], alarm["since"]) == ("CW411", 10, 1)
    assert "the learning rate is 0" in alarm["seen"]


def test_bfloat16_weights_at_a_rate_of_1e_9_are_told(quickstart):
    trainer = quickstart(lambda model: model.bfloat16(), learning_rate=1e-9, warmup_steps=0)
    run = trained(trainer)
    (alarm,) = run.alarms
    assert (alarm["code"], alarm["since"]) == ("CW414", 1)
    assert alarm["fix"] == "stochastic_rounding: true"
    assert all(look["groups"]["mlp"]["stuck"] > 0.99 for look in run.movement)


class CutHead(nn.Linear):
    """A head that passes gradients on and takes none for itself."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return linear(states, self.weight.detach(), self.bias)


def test_a_head_whose_weight_is_cut_off_is_told(build, models):
    model = models()
    model.lm_head.__class__ = CutHead
    run = trained(build(model))
    (alarm,) = run.alarms
    assert alarm["code"] == "CW413"
    assert "lm_head.weight" in alarm["seen"]
    assert run.movement[-1]["without_gradient"] == ["lm_head.weight"]


def test_a_head_that_is_detached_from_the_trunk_is_told(quickstart):
    def cut(model: Any) -> None:
        model.lm_head.register_forward_pre_hook(lambda module, given: (given[0].detach(),))

    run = trained(quickstart(cut))
    (alarm,) = run.alarms
    assert (alarm["code"], alarm["step"], alarm["since"]) == ("CW413", 10, 1)
    # the embedding is the head too, and learns as such
    silent = set(run.movement[-1]["without_gradient"])
    assert silent == set(run.movement[-1]["tensors"]) - {"model.embed_tokens.weight"}
    assert f"{len(silent)} of the {len(silent) + 1} tensors" in alarm["seen"]


def test_lora_on_a_module_without_a_gradient_is_told(quickstart):
    def cut(model: Any) -> None:
        attention = model.model.layers[1].self_attn
        attention.o_proj.register_forward_hook(lambda module, given, out: out.detach())

    adapter = peft.LoraConfig(target_modules=["q_proj", "up_proj"], r=4)
    run = trained(quickstart(cut, peft_config=adapter))
    (alarm,) = run.alarms
    assert (alarm["code"], alarm["step"]) == ("CW412", 10)
    assert "no gradient ever reached them" in alarm["seen"]
    assert alarm["seen"].endswith("model.layers.1.self_attn.q_proj.")


def test_lora_on_a_module_that_the_model_does_not_run_is_told(build, models):
    model = models()
    model.model.spare = nn.Linear(32, 32)
    adapter = peft.LoraConfig(target_modules=["q_proj", "spare"], r=2)
    (alarm,) = trained(build(model, peft_config=adapter)).alarms
    assert alarm["code"] == "CW412"
    assert alarm["seen"].endswith("model.spare.")


class Edit(TrainerCallback):
    """Writes to one entry of a tensor after step 7."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 7:
            tensor = kwargs["model"].get_parameter(self.name)
            flat = tensor.data.view(-1)
            flat[len(flat) // 2] += 1e-4


def test_one_entry_of_a_frozen_layer_edited_in_place_is_told(quickstart):
    name = "base_model.model.model.layers.1.mlp.up_proj.weight"
    adapter = peft.LoraConfig(target_modules=["q_proj"], r=4)
    run = trained(quickstart(peft_config=adapter, callbacks=[Edit(name)]))
    (alarm,) = run.alarms
    assert (alarm["code"], alarm["step"], alarm["since"]) == ("CW415", 10, 6)
    assert alarm["seen"] == f"1 frozen tensor changed between step 5 and step 10: {name}."
    assert [look["changed"] for look in run.movement] == [[], [], [], [name], [name]]
    assert run.movement[-1]["groups"]["mlp"]["changed"] == 1


def test_layers_that_are_frozen_by_hand_are_watched_too(build, models):
    model = models()
    model.model.layers[0].requires_grad_(False)
    run = trained(build(model, callbacks=[Edit("model.layers.0.self_attn.k_proj.bias")]))
    assert told(run) == ["CW415"]


def test_an_optimizer_that_holds_other_parameters_is_told(build, models):
    optimizer = torch.optim.AdamW(models().parameters(), lr=1e-3)
    (alarm,) = trained(build(models(), optimizers=(optimizer, None))).alarms
    assert alarm["code"] == "CW411"
    assert "the optimizer holds none of them" in alarm["seen"]


def test_an_adapter_that_the_optimizer_does_not_hold_is_told(build, models):
    """As of an optimizer that was made before the adapter was."""
    model = models()
    optimizer = torch.optim.AdamW(model.lm_head.parameters(), lr=1e-3)
    adapter = peft.LoraConfig(target_modules=["q_proj"], r=2)
    adapted = peft.get_peft_model(model, adapter)
    model.lm_head.requires_grad_(True)
    (alarm,) = trained(build(adapted, optimizers=(optimizer, None))).alarms
    assert alarm["code"] == "CW412"
    assert "since the optimizer does not hold them" in alarm["seen"]


# Health


def test_the_quickstart_is_healthy(quickstart):
    run = trained(quickstart())
    assert told(run) == []
    assert [look["step"] for look in run.movement] == [1, 2, 5, 10, STEPS]
    last = run.movement[-1]
    assert all(one["moved"] > 0.99 for one in last["tensors"].values())
    assert last["without_gradient"] == []


def test_lora_under_a_warm_up_from_zero_is_healthy(quickstart):
    adapter = peft.LoraConfig(target_modules="all-linear", r=4, modules_to_save=["norm"])
    run = trained(quickstart(peft_config=adapter, warmup_steps=6))
    assert told(run) == []
    first = run.movement[0]
    assert all(".lora_" in name or "modules_to_save" in name for name in first["tensors"])
    # A has no gradient until B has moved
    assert first["without_gradient"] == [name for name in first["tensors"] if "lora_A" in name]
    assert run.movement[-1]["without_gradient"] == []
    assert run.movement[-1]["groups"]["adapters"]["moved"] > 0.9


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_experts_are_healthy(kind, build, models):
    assert told(trained(build(models(kind, num_hidden_layers=1)))) == []


def test_stochastic_rounding_at_a_small_rate_is_healthy(build, models, uncompiled):
    model = models(num_hidden_layers=1).bfloat16()
    run = trained(build(model, stochastic_rounding=True, learning_rate=1e-6))
    assert told(run) == []
    # a single step leaves nearly all weights where they are, but loses nothing
    assert run.movement[0]["groups"]["mlp"]["moved"] < 0.2
    assert all(look["groups"]["mlp"]["stuck"] == 0 for look in run.movement)


@pytest.mark.parametrize(
    "options",
    [
        {"lr_scheduler_type": "cosine", "warmup_steps": 11},
        {"lr_scheduler_type": "constant", "weight_decay": 0.1},
        {"loss_type": "hinge", "cpo_alpha": 0.0},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
        {"max_micro_batch_tokens": 30},
        {"bf16": True},
        {"optim": "sgd"},
        {"optim": "adafactor"},
    ],
    ids=str,
)
def test_other_ways_to_train_are_healthy(options, build, models):
    assert told(trained(build(models(), **options))) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_weights_of_other_precisions_are_healthy(dtype, build, models):
    model = models(num_hidden_layers=1).to(dtype)
    run = trained(build(model, max_steps=4))
    assert told(run) == []
    assert run.movement[-1]["without_gradient"] == []


def test_a_vocabulary_of_which_few_words_are_used_is_healthy(build, models):
    run = trained(build(models(vocab_size=20_000, num_hidden_layers=1)))
    assert told(run) == []
    assert 0 < run.movement[-1]["tensors"]["model.embed_tokens.weight"]["moved"] < 0.05


# What is written


def test_a_look_says_of_each_tensor_what_the_weights_say(build, models):
    """Tensors this small are taken whole, so that nothing is estimated."""
    model = models(num_hidden_layers=1)
    taken: list[dict[str, torch.Tensor]] = []

    class Camera(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.on_optimizer_step(args, state, control, **kwargs)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            gradients = {n: p.grad.clone() for n, p in kw["model"].named_parameters()}
            taken.append(gradients)

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            taken.append({n: p.detach().clone() for n, p in kw["model"].named_parameters()})

    run = trained(build(model, callbacks=[Camera()], max_steps=5))
    start, weights, gradients = taken[0], taken[2::2], taken[1::2]
    for look in run.movement:
        step = look["step"]
        last = start if look["last"] == 0 else weights[look["last"] - 1]
        now, gradient = weights[step - 1], gradients[step - 1]
        for name, one in look["tensors"].items():
            if now[name].numel() > MOST:
                continue
            change = (now[name] - last[name]).norm() / now[name].norm()
            assert one["moved"] == pytest.approx(
                float((now[name] != start[name]).double().mean()), rel=1e-3
            )
            assert one["moved_last"] == pytest.approx(
                float((now[name] != last[name]).double().mean()), rel=1e-3
            )
            assert one["update"] == pytest.approx(float(change), rel=1e-3)
            assert one["grad_norm"] == pytest.approx(float(gradient[name].norm()), rel=1e-3)
    assert [look["step"] for look in run.movement] == [1, 2, 5]
    assert [look["last"] for look in run.movement] == [0, 1, 2]
    assert {look["since"] for look in run.movement} == {0}


def test_a_group_adds_up_its_tensors_and_tied_weights_count_once(build, models):
    run = trained(build(models("qwen2_tied"), max_steps=2))
    look, parameters = run.movement[-1], dict(models("qwen2_tied").named_parameters())
    assert set(look["tensors"]) == set(parameters)
    assert "head" not in look["groups"]
    for group, found in look["groups"].items():
        names = [name for name, one in look["tensors"].items() if one["group"] == group]
        assert found["tensors"] == len(names)
        assert found["trainable"] == sum(parameters[name].numel() for name in names)
        norms = [look["tensors"][name]["grad_norm"] for name in names]
        assert found["grad_norm"] == pytest.approx(math.hypot(*norms), rel=1e-3)


def test_a_tensor_whose_name_has_a_word_of_secrets_is_written_all_the_same(build, models):
    model = models(num_hidden_layers=1)
    model.model.query_key_value = nn.Linear(4, 4)
    run = trained(build(model, max_steps=1))
    assert "model.query_key_value.weight" in run.movement[0]["tensors"]


def test_every_line_is_json_that_browsers_read(build, models):
    trainer = build(models("mixtral", num_hidden_layers=1), max_steps=2)
    trainer.train()
    text = (Path(trainer.args.output_dir) / "movement.jsonl").read_text()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    for line in text.splitlines():
        json.loads(line, parse_constant=refuse)


# When it looks


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (50, [1, 2, 5, 10, 20, 50, 100, 150]),
        (1, list(range(1, 161))),
        (100, [1, 2, 5, 10, 20, 50, 100]),
        (7, [1, 2, 5, *range(7, 161, 7)]),
    ],
)
def test_looks_are_close_together_at_first(every, steps):
    assert [step for step in range(1, 161) if is_look(step, every)] == steps


def test_monitor_steps_of_zero_turns_it_off(build, models):
    trainer = build(models(num_hidden_layers=1), monitor_steps=0, max_steps=1)
    assert trainer.monitor is None
    assert trained(trainer).movement == ()


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == 3


def test_a_run_that_is_stopped_is_looked_at_once_more(build, models):
    run = trained(build(models(num_hidden_layers=1), callbacks=[Stop()]))
    assert [look["step"] for look in run.movement] == [1, 2, 3]
    last = run.movement[-1]["tensors"]["model.norm.weight"]
    assert (last["grad_norm"], last["moved_last"]) == (None, 1.0)


def test_only_the_first_rank_looks(models):
    class State:
        global_step, max_steps = 0, 5

    class Second(Plain):
        watches = False

    monitor = Monitor(1, pytest.fail, pytest.fail, Second())
    model = models(num_hidden_layers=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor.on_train_begin(None, State, None, model=model, optimizer=optimizer)
    monitor.on_pre_optimizer_step(None, State, None)
    monitor.on_optimizer_step(None, State, None, optimizer=optimizer)
    assert monitor.state_dict() == {"facts": {}, "tensors": {}}


def test_a_rank_looks_at_its_own_parts_alone(models):
    class Halves(Plain):
        def own_part(self, parameter: torch.Tensor) -> torch.Tensor:
            return parameter[: len(parameter) // 2]

    model = models(num_hidden_layers=1)
    frozen = model.model.embed_tokens.requires_grad_(False).weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = MovementWatch(model, optimizer, engine=Halves())
    for parameter in watch.trained.values():
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad[: len(parameter) // 4] = 1
    watch.before_step(look=True)
    optimizer.step()
    with torch.no_grad():
        frozen[-1] += 1  # of another rank
    look = watch.after_step(1, look=True)
    norm = look.tensors["model.norm.weight"]
    assert (norm.weights, norm.moved) == (len(model.model.norm.weight) // 2, 0.5)
    assert look.frozen["embeddings"] == frozen.numel() // 2
    assert look.changed == ()


# What it leaves alone


def test_watching_changes_no_bit_of_what_is_trained(build, models):
    ends = []
    for every in (0, 1):
        model = models(num_hidden_layers=1, attention_dropout=0.1)
        options = {"disable_dropout": False, "monitor_steps": every, "max_steps": 4}
        build(model, folder=str(every), **options).train()
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_steps_that_are_left_out_do_not_count(models):
    model = models(num_hidden_layers=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = MovementWatch(model, optimizer)

    def step(number: int, *, gradients: bool, skipped: bool = False) -> Any:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if gradients else None
        watch.before_step(look=True)
        if not skipped:
            optimizer.step()
        return watch.after_step(number, look=True, skipped=skipped)

    assert step(1, gradients=True, skipped=True).applied == 0  # as float16's scaler does
    skipped = step(2, gradients=False)  # as nonfinite="skip" does
    assert (skipped.applied, skipped.full) == (0, 0)
    assert {one.stuck for one in skipped.tensors.values()} == {0.0}
    applied = step(3, gradients=True)
    assert (applied.applied, applied.full) == (1, 1)
    assert applied.silent == ()


def test_a_layer_that_is_thawed_on_the_way_has_not_changed_against_orders(models):
    model = models(num_hidden_layers=1)
    model.lm_head.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = MovementWatch(model, optimizer)
    model.lm_head.requires_grad_(True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    watch.before_step(look=True)
    optimizer.step()
    look = watch.after_step(1, look=True)
    assert look is not None
    assert look.changed == ()


# Resuming


class Keep(TrainerCallback):
    """Keeps the monitor's state when the run is saved, through JSON and a safetensors file."""

    def __init__(self) -> None:
        self.monitor: Monitor | None = None
        self.kept: tuple[str, bytes] = ("", b"")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6:
            found = self.monitor.state_dict()
            self.kept = (json.dumps(found["facts"]), save(found["tensors"]))

    def restored(self) -> dict[str, Any]:
        facts, tensors = self.kept
        return {"facts": json.loads(facts), "tensors": load(tensors)}


@pytest.mark.parametrize("case", ["all weights", "adapter"])
def test_a_resumed_run_sees_what_the_whole_one_would_have_seen(case, build, models):
    options: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 6,
        "callbacks": [keep := Keep(), Edit("base_model.model.lm_head.weight")],
        "peft_config": peft.LoraConfig(target_modules=["q_proj"], r=2),
    }
    if case == "all weights":
        options |= {"callbacks": [keep], "peft_config": None}
    whole = build(models(num_hidden_layers=1), folder="whole", **options)
    keep.monitor = whole.monitor
    expected = trained(whole)
    resumed = build(models(num_hidden_layers=1), folder="again", **options)
    resumed.monitor.load_state_dict(keep.restored())
    checkpoint = Path(whole.args.output_dir) / "checkpoint-6"
    found = trained(resumed, resume_from_checkpoint=str(checkpoint))

    def without_time(lines: Any) -> list[Any]:
        return [{k: v for k, v in line.items() if k != "time"} for line in lines]

    later = [look for look in expected.movement if look["step"] > 6]
    assert without_time(found.movement) == without_time(later)
    assert found.movement[-1]["since"] == 0
    assert without_time(found.alarms) == without_time(expected.alarms)
    assert told(expected) == ([] if case == "all weights" else ["CW415"])


def test_a_run_that_goes_on_from_a_checkpoint_counts_from_its_own_start(build, models):
    options = {"save_strategy": "steps", "save_steps": 6}
    build(models(num_hidden_layers=1), folder="whole", **options).train()
    resumed = build(models(num_hidden_layers=1), folder="whole", **options)
    checkpoint = Path(resumed.args.output_dir) / "checkpoint-6"
    run = trained(resumed, resume_from_checkpoint=str(checkpoint))
    assert {look["since"] for look in run.movement} == {0}


def test_the_state_of_another_model_is_passed_over_aloud(build, models, caplog):
    keep = Keep()
    options = {"save_strategy": "steps", "save_steps": 6, "max_steps": 6}
    first = build(models(num_hidden_layers=1), callbacks=[keep], **options)
    keep.monitor = first.monitor
    first.train()
    other = build(models(num_hidden_layers=2), folder="other", max_steps=1)
    other.monitor.load_state_dict(keep.restored())
    run = trained(other)
    assert [line for line in caplog.messages if "of other parameters" in line]
    assert run.movement[0]["since"] == 0


class Parts(Plain):
    """An engine that shards, on one rank, which then has all of every weight."""

    shards = True


def test_what_a_rank_has_seen_of_its_shards_is_its_own_to_resume(caplog):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    optimizer = torch.optim.SGD([model.weight], lr=0.1)
    facts = {"model": model, "optimizer": optimizer}

    def begun() -> Monitor:
        monitor = Monitor(1, looks.append, pytest.fail, Parts())
        monitor.on_train_begin(None, SimpleNamespace(global_step=0), None, **facts)
        return monitor

    looks: list[Any] = []
    monitor = begun()
    model(torch.ones(1, 3)).sum().backward()
    now = SimpleNamespace(global_step=0, max_steps=3)
    monitor.on_pre_optimizer_step(None, now, None)
    optimizer.step()
    monitor.on_optimizer_step(None, now, None, optimizer=optimizer)
    assert monitor.state_dict() == {"facts": {}, "tensors": {}}  # which all ranks would load
    kept = monitor.rank_state_dict()
    assert kept["facts"]["shards"] == [0, 1, 6]
    resumed = begun()
    resumed.load_state_dict(kept)
    found = resumed.rank_state_dict()
    assert found["facts"] == kept["facts"]
    assert all(torch.equal(found["tensors"][n], one) for n, one in kept["tensors"].items())
    (look,) = looks
    assert look["tensors"]["weight"]["moved"] == 1.0
    kept["facts"]["shards"] = [1, 2, 3]  # of another rank: counted from here on
    other = begun()
    other.load_state_dict(kept)
    assert other.rank_state_dict()["facts"]["applied"] == 0
    assert [line for line in caplog.messages if "or of other shards; movement is counted" in line]
    # on another number of ranks there is nothing of a rank's own, which is told as well
    caplog.clear()
    monitor = begun()
    monitor.load_state_dict({"facts": {}, "tensors": {}})
    assert [line for line in caplog.messages if "or of other shards; movement is counted" in line]
    caplog.clear()
    resumed = begun()
    resumed.load_state_dict(kept | {"facts": kept["facts"] | {"shards": [0, 1, 6]}})
    resumed.load_state_dict({"facts": {}, "tensors": {}})  # beside a rank's own
    assert resumed.rank_state_dict()["facts"]["applied"] == 1
    assert caplog.messages == []
