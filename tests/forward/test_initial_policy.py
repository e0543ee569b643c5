"""The initial policy computes as it did, and nothing of the policy that trains notices."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from counterpoint.forward.head import find_head
from counterpoint.forward.initial_policy import InitialPolicy
from counterpoint.forward.layouts import PADDED
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.records import TokenPair
from tests.models_on_the_spot import make_model
from tests.reliability.trials import TORTURE
from tests.steps import random_pairs

IDS = torch.tensor([[1, 5, 9, 300, 17, 23, 8, 2]])


def adapted(config: Any) -> nn.Module:
    torch.manual_seed(1)
    return peft.get_peft_model(make_model("qwen2"), config)


def lora(**options: Any) -> Any:
    targets = {"target_modules": ["q_proj", "v_proj"], **options}
    return peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **targets)


def checkpointed(model: Any) -> nn.Module:
    # the name that newer releases have
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    return model


def half_frozen() -> nn.Module:
    model = make_model("qwen2")
    for name, weight in model.named_parameters():
        weight.requires_grad_("layers.0" in name)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: make_model("qwen2"),
    "tied": lambda: make_model("qwen2_tied"),
    "half frozen": half_frozen,
    "checkpointed": lambda: checkpointed(make_model("qwen2_tied")),
    "lora": lambda: adapted(lora()),
    "lora of the head": lambda: adapted(lora(target_modules=["q_proj", "lm_head"])),
    "dora": lambda: adapted(lora(use_dora=True)),
    "modules to save": lambda: adapted(lora(modules_to_save=["lm_head", "embed_tokens"])),
    "prompt tuning": lambda: adapted(
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ),
}


def move(model: nn.Module) -> None:
    """In place, as an optimizer."""
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn_like(weight)


@pytest.fixture(params=MODELS)
def model(request: Any) -> nn.Module:
    return MODELS[request.param]()


def test_it_computes_bit_for_bit_what_the_model_computed(model):
    policy = InitialPolicy(model)
    with torch.no_grad():
        then = model(IDS).logits
        move(model)
        now = model(IDS).logits
        with policy.as_it_was():
            found = model(IDS).logits
        after = model(IDS).logits
    assert torch.equal(found, then)
    assert not torch.equal(now, then)
    assert torch.equal(after, now)


def gradient(model: nn.Module, between: Callable[[], Any], autocast: bool) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(IDS, labels=IDS).loss
        between()
        loss = loss + model(IDS.flip(1), labels=IDS).loss
    between()
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("autocast", [False, True])
def test_between_a_forward_and_its_backward_it_changes_no_bit_of_a_gradient(model, autocast):
    policy = InitialPolicy(model)
    model.train()
    move(model)

    def run() -> None:
        with policy.as_it_was():
            model(IDS)

    expected = gradient(model, lambda: None, autocast)
    found = gradient(model, run, autocast)
    assert found.keys() == expected.keys()
    assert found
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_no_narrowed_weight_of_the_one_is_taken_for_the_other(model):
    """autocast keeps narrowed copies of weights that train, for as long as it is open."""
    policy = InitialPolicy(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        then = model(IDS).logits
    move(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(IDS)
        with policy.as_it_was():
            found = model(IDS).logits
        after = model(IDS).logits
    with torch.autocast("cpu", torch.bfloat16):
        now = model(IDS).logits
    assert torch.equal(found, then)
    assert torch.equal(after, now)


def test_the_weights_that_train_are_put_aside_and_not_written_to(model):
    policy = InitialPolicy(model)
    before = [(n, id(p), p.data_ptr(), p._version) for n, p in model.named_parameters()]
    with policy.as_it_was():
        model(IDS)
    assert [(n, id(p), p.data_ptr(), p._version) for n, p in model.named_parameters()] == before


def test_an_error_while_it_is_open_leaves_the_policy_in_its_place(model):
    policy = InitialPolicy(model)
    move(model)
    expected = deepcopy(dict(model.state_dict()))
    with pytest.raises(ZeroDivisionError), policy.as_it_was():
        raise ZeroDivisionError
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_dropout_is_off_while_it_is_open_and_then_as_it_was():
    model = make_model("gpt2", resid_pdrop=0.5)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with InitialPolicy(model).as_it_was():
        one, other = model(IDS).logits, model(IDS).logits
    assert torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes


def test_it_takes_the_memory_of_what_trains_and_of_a_tied_weight_once():
    tied = make_model("qwen2_tied")
    assert InitialPolicy(tied).size == 4 * sum(p.numel() for p in tied.parameters())
    thin = MODELS["lora"]()
    trained = sum(p.numel() for p in thin.parameters() if p.requires_grad)
    assert InitialPolicy(thin).size == 4 * trained < 0.02 * InitialPolicy(tied).size + 4 * trained


@pytest.mark.parametrize("kind", ["plain", "lora"] if TORTURE else ["lora"])  # 25 seconds each
def test_a_compiled_model_is_run_as_it_was_too(kind):
    """Through dynamo's guards; what a backend makes of the graph is its own affair."""
    model = MODELS[kind]()
    policy = InitialPolicy(model)
    with torch.no_grad():
        then = model(IDS).logits
    move(model)
    model.compile(backend="eager")
    expected = gradient(model, lambda: None, autocast=False)
    seen = []

    def run() -> None:
        with policy.as_it_was():
            seen.append(model(IDS).logits)

    found = gradient(model, run, autocast=False)
    for logits in seen:
        torch.testing.assert_close(logits, then, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_log_probabilities_are_bit_for_bit_what_they_are_without_a_drift(model):
    pairs = [
        TokenPair(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"], row["row"])
        for row in random_pairs(4)
    ]
    policy, batch = InitialPolicy(model), PADDED.collate(pairs)
    move(model)
    head, grads = find_head(model), []
    for initial in (None, policy):
        logps = pair_forward(model, head, batch, initial=initial).logps
        model.zero_grad(set_to_none=True)
        (logps.chosen - logps.rejected).sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert (logps.drift > 0).all()
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])
