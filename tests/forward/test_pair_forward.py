"""The forward pass against one row at a time, on the wrappers and heads that people train."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from counterpoint.errors import ModelError
from counterpoint.forward.head import find_head, prove_head
from counterpoint.forward.layouts import PADDED
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.forward.router import add_sums, balancing_loss, router_sums
from counterpoint.forward.routing import Choice, find_routers
from counterpoint.records import TokenPair
from tests.models_on_the_spot import KINDS
from tests.reference.naive import completion_logps
from tests.steps import random_pairs


def token_pairs(count: int = 4, seed: int = 5) -> list[TokenPair]:
    return [
        TokenPair(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"], row["row"])
        for row in random_pairs(count, seed=seed)
    ]


def assert_equals_single_rows(model, pairs, limit: float = 1e-5) -> None:
    head = prove_head(model, find_head(model), torch.tensor([pairs[0].prompt]))
    assert not head.dense
    logps = pair_forward(model, head, PADDED.collate(pairs)).logps
    with torch.no_grad():
        for i, pair in enumerate(pairs):
            chosen = completion_logps(model, pair.prompt, pair.chosen).sum()
            rejected = completion_logps(model, pair.prompt, pair.rejected).sum()
            assert logps.chosen[i].item() == pytest.approx(chosen.item(), rel=limit)
            assert logps.rejected[i].item() == pytest.approx(rejected.item(), rel=limit)


@pytest.mark.parametrize("kind", KINDS)
def test_each_architecture_says_what_its_single_rows_say(kind, models):
    assert_equals_single_rows(models(kind), token_pairs())


LORA = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "head adapted": {"target_modules": ["q_proj", "lm_head"]},
    "head trained whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("adapter", LORA)
def test_an_adapted_model_says_what_its_single_rows_say(adapter, models):
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **LORA[adapter])
    model = peft.get_peft_model(models("qwen2"), config)
    if adapter == "head trained whole":
        with torch.no_grad():
            model.get_output_embeddings().modules_to_save["default"].weight.mul_(1.5)
    assert_equals_single_rows(model, token_pairs())


@pytest.mark.parametrize("adapter", LORA)
def test_only_the_adapter_gets_a_gradient(adapter, models):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, **LORA[adapter])
    model = peft.get_peft_model(models("qwen2"), config)
    batch = PADDED.collate(token_pairs())
    pair_forward(model, find_head(model), batch).logps.chosen.sum().backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {n for n, p in model.named_parameters() if p.requires_grad}
    if adapter != "attention":
        assert any("lm_head" in name for name in with_gradient)


def test_virtual_tokens_of_prompt_tuning_shift_nothing(models):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(models("qwen2"), config)
    pairs = token_pairs()
    head = prove_head(model, find_head(model), torch.tensor([pairs[0].prompt]))
    assert not head.dense
    logps = pair_forward(model, head, PADDED.collate(pairs)).logps
    with torch.no_grad():
        for i, pair in enumerate(pairs):
            ids = torch.tensor([[*pair.prompt, *pair.chosen]])
            rows = model(input_ids=ids).logits[0, 3:].log_softmax(-1)
            picks = [rows[len(pair.prompt) - 1 + k, token] for k, token in enumerate(pair.chosen)]
            assert logps.chosen[i].item() == pytest.approx(sum(picks).item(), rel=1e-5)


class Sharpened(nn.Module):
    """A model that does something to its logits that no configuration mentions."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()

    def forward(self, *args, **kwargs):
        outputs = self.inner(*args, **kwargs)
        outputs.logits = outputs.logits * 1.7
        return outputs


def test_a_head_that_cannot_be_reproduced_is_found_out_and_left_to_the_model(models):
    model, pairs = Sharpened(models("qwen2")), token_pairs()
    head = prove_head(model, find_head(model), torch.tensor([pairs[0].prompt]))
    assert head.dense
    logps = pair_forward(model, head, PADDED.collate(pairs)).logps
    with torch.no_grad():
        expected = completion_logps(model, pairs[0].prompt, pairs[0].chosen).sum()
    assert logps.chosen[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_model_without_a_head_is_refused(models):
    with pytest.raises(ModelError, match="CP304"):
        find_head(models("qwen2").model)


def test_no_hook_stays_behind(models):
    model = models("qwen2")
    pair_forward(model, find_head(model), PADDED.collate(token_pairs()))
    assert not model.lm_head._forward_pre_hooks


def test_the_head_computes_no_logit_of_prompt_or_padding(models, monkeypatch):
    """Counted in the one place where logits are made."""
    from counterpoint.forward import affine_logps

    seen = []
    original = affine_logps._Columns.tiles

    def counted(columns, hidden, target_ids):
        for tile in original(columns, hidden, target_ids):
            seen.append(tile.logits.numel())
            yield tile

    monkeypatch.setattr(affine_logps._Columns, "tiles", counted)
    pairs = token_pairs()
    model = models("qwen2")
    pair_forward(model, find_head(model), PADDED.collate(pairs))
    targets = sum(len(p.chosen) + len(p.rejected) for p in pairs)
    assert sum(seen) == targets * model.config.vocab_size


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_balancing_is_transformers_balancing(kind, models):
    model, batch = models(kind), PADDED.collate(token_pairs())
    output = pair_forward(model, find_head(model), batch, routers=find_routers(model))
    mask = batch.attention_mask.long()
    theirs = model(input_ids=batch.input_ids, attention_mask=mask, output_router_logits=True)
    ours = balancing_loss(output.router, output.router)
    assert ours.item() == pytest.approx(theirs.aux_loss.item(), rel=1e-6)


def test_a_dense_model_of_a_family_with_experts_has_nothing_to_balance(models):
    model, batch = models("doge"), PADDED.collate(token_pairs())
    routers = find_routers(model)
    assert routers == ()
    assert pair_forward(model, find_head(model), batch, routers=routers).router is None


def test_balancing_shares_add_up_and_micro_batch_means_do_not():
    generator = torch.Generator().manual_seed(0)
    batch = PADDED.collate(token_pairs(4))
    halves = [PADDED.collate(token_pairs(4)[i : i + 2]) for i in (0, 2)]
    logits = [
        tuple(torch.randn(h.input_ids.numel(), 4, generator=generator) for _ in range(2))
        for h in halves
    ]
    parts = [
        router_sums([Choice(each, each.topk(2).indices) for each in one], PADDED.times_counted(h))
        for one, h in zip(logits, halves, strict=True)
    ]
    step = add_sums(parts)
    whole = balancing_loss(step, step)
    shares = sum(balancing_loss(part, step) for part in parts)
    means = sum(balancing_loss(part, part) for part in parts) / 2
    assert shares.item() == pytest.approx(whole.item(), rel=1e-12)
    assert means.item() != pytest.approx(whole.item(), rel=1e-4)
    assert int(step.tokens) == 2 * int(batch.attention_mask.sum())
