"""Law 2: value and gradient of the real step, against the slow truth, on many architectures."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterpoint.forward.routing import find_routers
from counterpoint.objectives import LOSSES
from tests.models_on_the_spot import KINDS
from tests.reference.naive import COMPARING, step_loss
from tests.reliability.trials import TORTURE
from tests.steps import OBJECTIVES, distance, random_pairs, reads_gold, train_watched, with_gold


def _as_reference(options: dict) -> tuple[str, dict, float]:
    """The trainer's options as the reference names them."""
    kind = options["loss_type"]
    beta = options.get("beta", 0.1)
    gamma = 0.0
    if kind in ("simpo", "alphapo", "repo", "tpo_l"):
        ratio = options.get("gamma_beta_ratio")
        gamma = options.get("simpo_gamma", 0.5) if ratio is None else ratio * beta
    o = {
        "beta": beta,
        "gamma": gamma,
        "alpha": options.get("alpha", 0.0),
        "smoothing": options.get("label_smoothing", 0.0),
        "nll": options.get("nll_reduction", "token_mean"),
        "arpo_scale": options.get("arpo_scale", 0.9),
        "arpo_eta": options.get("arpo_eta", 0.4),
        "lambda": options.get("dpop_lambda", 50.0),
    }
    o |= {name: options[name] for name in ("ld_alpha",) if name in options}
    o["weighed"] = options.get("use_weighting", False)
    if kind in COMPARING:
        return kind, o, options.get("rpo_alpha", 0.0)
    return kind, o, 0.0 if kind == "alphapo" else options.get("cpo_alpha", 1.0)


def _compare(model, options: dict, tokenizer, folder: Path, reference=None) -> tuple[float, float]:
    pairs = random_pairs(5, seed=3)
    pairs = with_gold(pairs) if reads_gold(options) else pairs
    kind, o, cpo_alpha = _as_reference(options)
    expected = step_loss(model, list(pairs), kind, o, cpo_alpha, reference)
    expected.backward()
    truth = float(expected.detach())
    gradient = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    extra = {"router_aux_loss_coef": 0.0} if find_routers(model) else {}
    steps, trainer = train_watched(
        model,
        tokenizer,
        pairs,
        folder,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        **options,
        **extra,
    )
    found = trainer.state.log_history[0]["loss"]
    return abs(found - truth) / abs(truth), distance(gradient, steps[0])


@pytest.mark.parametrize("layout", ["padded", "shared"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_in_float64(objective, layout, models, chatml_tokenizer, tmp_path: Path):
    """On a model without RMSNorm, which transformers computes in fp32 whatever the weights."""
    options = {**OBJECTIVES[objective], "layout": layout}
    value, gradient = _compare(models("phi").double(), options, chatml_tokenizer, tmp_path)
    assert value <= 1e-12
    assert gradient <= 1e-12


@pytest.mark.parametrize("layout", ["padded", "shared"] if TORTURE else ["shared"])
@pytest.mark.parametrize(
    "objective",
    [name for name in OBJECTIVES if LOSSES[OBJECTIVES[name]["loss_type"]].needs_reference],
)
def test_every_reference_in_float64(objective, layout, models, chatml_tokenizer, tmp_path: Path):
    """One that is another model: its gaps are far from 0, and of either sign."""
    reference = models("phi", seed=4).double()
    reference.save_pretrained(tmp_path / "reference")
    named = {"reference": str(tmp_path / "reference"), "layout": layout}
    value, gradient = _compare(
        models("phi").double(),
        {**OBJECTIVES[objective], **named},
        chatml_tokenizer,
        tmp_path / "run",
        reference,
    )
    assert value <= 1e-12
    assert gradient <= 1e-12


@pytest.mark.parametrize("layout", ["padded", "shared"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_in_float32(kind, layout, models, chatml_tokenizer, tmp_path: Path):
    """Tied and untied heads, biases, soft-caps, logit scales, sliding windows, experts."""
    options = {"loss_type": "sigmoid", "layout": layout}
    value, gradient = _compare(models(kind), options, chatml_tokenizer, tmp_path)
    assert value <= 1e-6
    assert gradient <= 2e-6


def test_a_reshaped_reward_of_a_sum(models, chatml_tokenizer, tmp_path: Path):
    options = {"loss_type": "sigmoid", "alpha": 0.05, "beta": 0.01}
    value, gradient = _compare(models("phi").double(), options, chatml_tokenizer, tmp_path)
    assert value <= 1e-10
    assert gradient <= 1e-10
