"""The slow truth of law 2: one pair at a time, every logit, float64, textbook formulas.

Shares no code with the package: it is what every fast path is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Row = Mapping[str, Any]

COMPARING = ("dpo", "hypo", "dpop", "dpo_hinge", "dpo_ipo", "apo_zero", "apo_down", "nca_pair")
"""Losses that compare with a reference."""


def completion_logps(model: nn.Module, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """Log-probability of each token of a completion, from all the logits of its own row."""
    ids = torch.tensor([[*prompt, *completion]])
    logps = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    first = len(prompt)
    return torch.stack([logps[first + i - 1, token] for i, token in enumerate(completion)])


def trained(logps: Tensor, given: Sequence[int]) -> Tensor:
    """Those of a completion's tokens that carry loss: the ones outside of all given spans."""
    spans = list(zip(given[::2], given[1::2], strict=True))
    kept = [n for n in range(len(logps)) if not any(a <= n < b for a, b in spans)]
    return logps[kept]


def drift(model: nn.Module, initial: nn.Module, prompt: Sequence[int], completion: Sequence[int]):
    """KL(initial || model) of the next token, summed over a completion's places."""
    ids = torch.tensor([[*prompt, *completion]])
    places = slice(len(prompt) - 1, -1)
    now = model(input_ids=ids, use_cache=False).logits[0, places].double().log_softmax(-1)
    with torch.no_grad():
        then = initial(input_ids=ids, use_cache=False).logits[0, places].double().log_softmax(-1)
    return (then.exp() * (then - now)).sum()


def likeness(model: nn.Module, prompt: Sequence[int], completion: Sequence[int]) -> float:
    """WPO's mean over a completion of log p(token) - log sum p^2."""
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        odds = model(input_ids=ids, use_cache=False).logits[0].double().softmax(-1)
    found = [
        torch.log(odds[place, token] / odds[place].square().sum()).item()
        for place, token in enumerate(completion, len(prompt) - 1)
    ]
    return sum(found) / len(found)


def length_weighed(
    chosen: Tensor, rejected: Tensor, o: Mapping[str, float]
) -> tuple[Tensor, Tensor]:
    """LD-DPO: what lies past the shorter completion counts by alpha."""
    if "ld_alpha" not in o:
        return chosen, rejected
    shorter, alpha = min(len(chosen), len(rejected)), o["ld_alpha"]
    both = [torch.cat([one[:shorter], alpha * one[shorter:]]) for one in (chosen, rejected)]
    return both[0], both[1]


def preference(kind: str, chosen: Tensor, rejected: Tensor, o: Mapping[str, float]) -> Tensor:
    """One pair's loss from its tokens' log-probabilities, as the papers print it."""
    chosen, rejected = length_weighed(chosen, rejected, o)
    beta, gamma, margin = o["beta"], o.get("gamma", 0.0), o.get("margin", 0.0)
    alpha, smoothing = o.get("alpha", 0.0), o.get("smoothing", 0.0)
    if kind in ("sigmoid", "hinge", "tpo"):
        reward_w, reward_l = chosen.sum(), rejected.sum()
    else:
        reward_w, reward_l = chosen.mean(), rejected.mean()
    if kind == "orpo":
        odds_w = reward_w.exp() / (1 - reward_w.exp())
        odds_l = reward_l.exp() / (1 - reward_l.exp())
        return -beta * torch.log(torch.sigmoid(torch.log(odds_w / odds_l) - margin))
    if kind == "repo":
        return torch.clamp(gamma + margin - (reward_w - reward_l), min=0)
    if kind == "arpo":
        distance = (chosen.mean() - rejected.mean()).abs()
        tau = torch.clamp(o["arpo_scale"] * torch.exp(o["arpo_eta"] * distance) - 1, max=1)
        reward_w, reward_l = chosen.sum(), tau * rejected.sum()
    if kind == "simper":
        return reward_l.exp() - reward_w.exp() + margin
    if alpha:
        reward_w = (1 - reward_w.exp() ** -alpha) / alpha
        reward_l = (1 - reward_l.exp() ** -alpha) / alpha
    if kind == "ipo":
        return (reward_w - reward_l - margin - 1 / (2 * beta)) ** 2
    if kind == "hinge":
        return torch.clamp(1 + margin - beta * (reward_w - reward_l), min=0)
    gap = beta * (reward_w - reward_l) - gamma - margin
    right = 1 / (1 + torch.exp(-gap))
    return -(1 - smoothing) * torch.log(right) - smoothing * torch.log(1 - right)


def against_reference(kind: str, chosen: Tensor, rejected: Tensor, o: Mapping[str, Any]) -> Tensor:
    """The same of losses that compare with a reference, whose tokens are among the options."""
    chosen, rejected = length_weighed(chosen, rejected, o)
    said = length_weighed(o["reference_w"], o["reference_l"], o)
    of_w, of_l = (float(one.sum()) for one in said)
    ratio_w, ratio_l = chosen.sum() - of_w, rejected.sum() - of_l
    inside = ratio_w - ratio_l
    if kind == "dpo_hinge":
        return torch.clamp(1 + o["margin"] - o["beta"] * inside, min=0)
    if kind == "dpo_ipo":
        means = ratio_w / len(chosen) - ratio_l / len(rejected)
        return (means - o["margin"] - 1 / (2 * o["beta"])) ** 2
    if kind in ("apo_zero", "apo_down", "nca_pair"):
        return anchored(kind, o["beta"] * ratio_w, o["beta"] * ratio_l, o["margin"])
    if kind == "hypo":
        inside = chosen.sum() - rejected.sum() - max(0.0, of_w - of_l)
    if kind == "dpop":
        # flat where nothing is lost: clamp would have a slope there
        inside = inside - o["lambda"] * torch.relu(-ratio_w)
    right = 1 / (1 + torch.exp(o["margin"] - o["beta"] * inside))
    smoothing = o.get("smoothing", 0.0)
    return -(1 - smoothing) * torch.log(right) - smoothing * torch.log(1 - right)


def anchored(kind: str, reward_w: Tensor, reward_l: Tensor, margin: float) -> Tensor:
    """The same of losses that judge scaled rewards one by one; only APO-down has a margin."""

    def likely(reward: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-reward))

    if kind == "apo_zero":
        return (1 - likely(reward_w)) + likely(reward_l)
    if kind == "apo_down":
        return likely(reward_w) + (1 - likely(reward_w - reward_l - margin))
    noise = sum(torch.log(1 - likely(reward)) for reward in (reward_w, reward_l))
    return -torch.log(likely(reward_w)) - noise / 2


def step_loss(
    model: nn.Module,
    rows: Sequence[Row],
    kind: str,
    o: Mapping[str, Any],
    cpo_alpha: float,
    reference: nn.Module | None = None,
) -> Tensor:
    """The loss of a step that consists of these rows; None compares with the model as it is."""
    weights = [row.get("weight", 1.0) for row in rows]
    total = nll = torch.zeros((), dtype=torch.float64)
    tokens = 0.0
    for row, weight in zip(rows, weights, strict=True):
        chosen = completion_logps(model, row["prompt_ids"], row["chosen_ids"])
        rejected = completion_logps(model, row["prompt_ids"], row["rejected_ids"])
        chosen = trained(chosen, row.get("chosen_given") or ())
        rejected = trained(rejected, row.get("rejected_given") or ())
        with torch.no_grad():
            other = model if reference is None else reference
            said = {
                f"reference_{side}": trained(
                    completion_logps(other, row["prompt_ids"], row[f"{name}_ids"]),
                    row.get(f"{name}_given") or (),
                )
                for side, name in (("w", "chosen"), ("l", "rejected"))
                if kind in COMPARING
            }
        formula = against_reference if kind in COMPARING else preference
        pair = formula(kind, chosen, rejected, {**o, **said, "margin": row.get("margin", 0.0)})
        if o.get("weighed"):
            sides = (row["chosen_ids"], row["rejected_ids"])
            alike = sum(likeness(model, row["prompt_ids"], side) for side in sides)
            pair = pair * min(1.0, math.exp(alike))
        total = total + weight * pair
        likely = chosen
        if kind in ("tpo", "tpo_l"):
            likely = completion_logps(model, row["prompt_ids"], row["gold_ids"])
            likely = trained(likely, row.get("gold_given") or ())
        nll = nll - weight * likely.sum()
        tokens += weight * len(likely)
    over = sum(weights) if o.get("nll") == "sequence_sum" else tokens
    return total / math.fsum(weights) + cpo_alpha * nll / over
