"""What is counted is where tokens went: against the experts' own calls, whatever chose them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from counterpoint.errors import ModelError
from counterpoint.forward.router import balancing_loss, router_sums
from counterpoint.forward.routing import choices, find_routers, own_coefficient, prove_routers
from tests.models_on_the_spot import LATENT, SMALL

EXPERTS = 8
COMMON = {
    "num_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0,
}
WIDE = {**LATENT, "n_routed_experts": EXPERTS}
FAMILIES = {
    "glm4_moe": {},
    "glm4_moe_lite": {**WIDE, "mlp_layer_types": ["sparse"] * 2},
    "deepseek_v3": {**WIDE, "n_group": 4, "topk_group": 2},
    "ernie4_5_moe": {"moe_num_experts": EXPERTS, "moe_k": 2, "moe_layer_start_index": 0},
    "minimax_m2": {},
    "dots1": {},
    "lfm2_moe": {"layer_types": ["full_attention"] * 2, "num_dense_layers": 0},
    "mixtral": {},
    "gpt_oss": {},
    "phimoe": {},
}
BIASED = ("correction_bias", "expert_bias")


def made(kind: str, **options) -> nn.Module:
    config = CONFIG_MAPPING[kind](**{**SMALL, **COMMON, **options})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().float()
    model.set_experts_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model


def biased(model: nn.Module, spread: float) -> bool:
    """Give the routers correction biases; whether they have any."""
    generator, found = torch.Generator().manual_seed(1), False
    for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
        if name.endswith(BIASED):
            with torch.no_grad():
                tensor.copy_(spread * torch.randn(tensor.shape, generator=generator))
            found = True
    return found


def use(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """How often each expert was given a token, seen at the experts themselves."""
    used, handles = torch.zeros(EXPERTS, dtype=torch.float64), []

    def note(_, args, named) -> None:
        (chosen,) = (t for t in (*args, *named.values()) if not t.is_floating_point())
        used.add_(F.one_hot(chosen, EXPERTS).sum((0, 1)))

    for name, module in model.named_modules():
        if name.endswith(".experts"):
            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return used


IDS = torch.randint(3, 600, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_counts_are_the_experts_use(kind, spread):
    model = made(kind, **FAMILIES[kind])
    if not biased(model, spread) and spread:
        pytest.skip("no correction bias")
    routers = find_routers(model)
    prove_routers(model, routers, {"input_ids": IDS[:1]})
    with torch.no_grad(), choices(routers) as found:
        model(IDS, use_cache=False)
    sums = router_sums(found, torch.ones(IDS.shape, dtype=torch.float64))
    with torch.no_grad():
        assert sums.sent.tolist() == use(model, IDS).tolist()
    assert sums.sent.sum() == 2 * 2 * IDS.numel()


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "phimoe", "ernie4_5_moe", "minimax_m2"])
def test_without_a_bias_the_loss_is_transformers_own(kind):
    model = made(kind, **FAMILIES[kind])
    biased(model, 0.0)
    with torch.no_grad(), choices(find_routers(model)) as found:
        theirs = model(IDS, use_cache=False, output_router_logits=True).aux_loss
    sums = router_sums(found, torch.ones(IDS.shape, dtype=torch.float64))
    assert balancing_loss(sums, sums).item() == pytest.approx(float(theirs), rel=1e-5)


def test_jetmoe_counts_each_of_its_routers_once():
    """Its attention has experts as well; transformers counts those routers twice."""
    model = made("jetmoe", kv_channels=8)
    with torch.no_grad(), choices(find_routers(model)) as found:
        model(IDS, use_cache=False)
    assert len(found) == 2 * 2
    for choice in found:
        top = choice.scores.topk(2).indices.sort().values
        assert choice.chosen.sort().values.tolist() == top.tolist()
    assert own_coefficient(model.config) == 0.01


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("doge", {"is_moe": True, "num_experts": 16, "keep_window_size": 8}),
        ("zaya", {"num_experts_per_tok": 1}),
    ],
)
def test_a_router_whose_choice_cannot_be_counted_is_refused(kind, options):
    config = CONFIG_MAPPING[kind](**{**SMALL, **COMMON, **options})
    with pytest.raises(ModelError, match=r"CP313 .*router_aux_loss_coef=0"):
        find_routers(AutoModelForCausalLM.from_config(config))


def test_a_router_that_says_nothing_of_its_choice_is_refused():
    model = made("mixtral")
    gate = model.model.layers[0].mlp.gate
    forward = gate.forward
    gate.forward = lambda hidden: (*forward(hidden)[:2], None)
    with pytest.raises(ModelError, match="CP313"), choices(find_routers(model)):
        model(IDS, use_cache=False)


def test_a_router_that_says_other_experts_than_it_sends_to_is_refused():
    model = made("mixtral")
    experts = model.model.layers[0].mlp.experts
    experts.register_forward_pre_hook(lambda _, args: (args[0], 1 - args[1] % 2, args[2]))
    with pytest.raises(ModelError, match=r"CP313 .*other tokens"):
        prove_routers(model, find_routers(model), {"input_ids": IDS[:1]})


def test_a_forward_pass_without_gradient_is_refused_where_one_is_wanted():
    model = made("mixtral")
    with pytest.raises(ModelError, match=r"CP313 .*use_reentrant"), choices(find_routers(model)):
        torch.no_grad()(model)(IDS, use_cache=False)
