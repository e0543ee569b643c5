"""Features of a frozen tower that are kept: the same bits as looking again, and never stale."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from counterpoint.errors import ConfigError, ModelError
from counterpoint.forward import kept_features as kept_module
from counterpoint.forward.kept_features import KeptFeatures, keep_features, kept_features
from counterpoint.forward.layouts import PADDED, PICTURES_TWICE, SHARED, Layout
from counterpoint.models.trainable import freeze_parts, keep_pictures
from counterpoint.records import TokenPair
from tests.forward.test_seeing import NARROW, distance, layouts_of, of_layout, rounding_of
from tests.vision_on_the_spot import (
    KINDS as EVERY_KIND,
)
from tests.vision_on_the_spot import (
    ROWS,
    Made,
    looks_counted,
    seen_pairs,
    seer,
    tower_of,
)

KINDS = [kind for kind in EVERY_KIND if kind != "mllama"]
"""All but the kind that looks at pictures in layers of its text, of which nothing is kept."""

PLENTY = 10**8


def frozen(kind: str, most_bytes: int = PLENTY) -> Made:
    made = seer(kind)
    freeze_parts(made[0], ["vision", "projector"])
    keep_features(made[0], most_bytes)
    return made


def kept_of(made: Made) -> KeptFeatures:
    found = kept_features(made[0])
    assert found is not None
    return found


def numbers(made: Made, pairs: Sequence[TokenPair], layout: Layout | None = None) -> list[Tensor]:
    """Values and gradients of a step, in the best layout or another."""
    logps, gradient = of_layout(made, layout or layouts_of(made[0])[-1], pairs)
    return [logps.chosen, logps.rejected, *(gradient[name] for name in sorted(gradient))]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("kind", KINDS)
def test_kept_features_are_those_of_the_truth_and_have_the_bits_of_looking_again(kind: str) -> None:
    made = frozen(kind)
    pairs, kept = seen_pairs(made), kept_of(made)
    _, truth = of_layout(made, PICTURES_TWICE, pairs)
    assert len(kept) == 0  # the truth looks for itself
    with looks_counted(made[0]) as looks:
        first = numbers(made, pairs)
        assert len(looks) == len(kept) == 4
        again = numbers(made, pairs)
        assert len(looks) == 4
        padded = numbers(made, pairs, PADDED)
        assert len(looks) == 4
    assert kept.counted() == (12, 8)
    assert same(first, again)
    best = layouts_of(made[0])[-1]
    limit = rounding_of(kind) if kind in NARROW else 1e-5
    assert distance(truth, of_layout(made, best, pairs)[1]) <= limit
    # another cut, another order and an empty cache: the features have the same bits
    keep_features(made[0], PLENTY)
    numbers(made, pairs[2:4])
    assert same(numbers(made, pairs), first)
    keep_features(made[0], PLENTY)
    assert same(numbers(made, pairs, PADDED), padded)


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_changes_no_bit_and_is_kept_to(kind: str) -> None:
    made = frozen(kind)
    pairs = seen_pairs(made)
    plenty = numbers(made, pairs)
    whole = kept_of(made).held
    assert whole > 0
    for most in (1, whole // 2, whole):
        keep_features(made[0], most)
        kept = kept_of(made)
        for _ in range(2):
            assert same(numbers(made, pairs), plenty)
            assert kept.held <= most
        if most == whole:
            assert kept.counted() == (8, 4)


def test_what_was_used_longest_ago_is_thrown_away_first() -> None:
    made = frozen("llava")
    (cat, bird, fish) = seen_pairs(made, [((n,), *ROWS[0][1:]) for n in range(3)])
    numbers(made, [cat])
    keep_features(made[0], 2 * kept_of(made).held)  # all of LLaVA's pictures are of one size
    kept = kept_of(made)
    for pair, at_hand in ((cat, 0), (bird, 0), (cat, 1), (fish, 0), (cat, 1), (bird, 0)):
        numbers(made, [pair])
        assert kept.counted() == (1, at_hand)
        assert len(kept) <= 2


def test_the_log_tells_once_that_the_budget_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []

    class Voice:
        def info(self, text: str, *values: Any) -> None:
            told.append(text % values)

    monkeypatch.setattr(kept_module, "logger", Voice)
    made = frozen("llava", 1)
    for _ in range(2):
        numbers(made, seen_pairs(made))
    (line,) = told
    assert "picture_cache_gb" in line


def unfrozen(model: Any) -> None:
    next(tower_of(model).parameters()).requires_grad_(True)


def written_to(model: Any) -> None:
    with torch.no_grad():
        next(tower_of(model).parameters()).mul_(1.5)


def replaced(model: Any) -> None:
    weight = next(tower_of(model).parameters())
    weight.data = weight.data * 1.5


def loaded(model: Any) -> None:
    state = {name: value * 1.25 for name, value in model.state_dict().items() if "proj" in name}
    model.load_state_dict(state, strict=False)


@pytest.mark.parametrize("change", [unfrozen, written_to, replaced, loaded])
@pytest.mark.parametrize("kind", ["llava", "qwen3_vl"])
def test_weights_that_change_leave_no_stale_features(
    kind: str, change: Callable[[Any], None]
) -> None:
    made = frozen(kind)
    pairs = seen_pairs(made)[:3]
    before = numbers(made, pairs)
    change(made[0])
    with looks_counted(made[0]) as looks:
        after = numbers(made, pairs)
    assert looks
    # pictures that share a call have other last bits
    assert torch.allclose(before[0], after[0], rtol=1e-6, atol=0) is (change is unfrozen)
    model, processor = frozen(kind)
    change(model)
    assert same(after, numbers((model, processor), pairs))
    keep_features(model, 0)
    truth = of_layout((model, processor), PICTURES_TWICE, pairs)
    assert torch.allclose(truth[0].chosen, after[0], rtol=1e-5, atol=0)


def test_a_tower_that_trains_is_looked_through_each_time_and_gets_its_gradient() -> None:
    made = frozen("llava")
    pairs = seen_pairs(made)[:3]
    numbers(made, pairs)
    for weight in made[0].parameters():
        weight.requires_grad_(True)
    _, found = of_layout(made, SHARED, pairs)
    keep_features(made[0], 0)
    _, truth = of_layout(made, SHARED, pairs)
    assert all(torch.equal(found[name], gradient) for name, gradient in truth.items())
    assert any("vision_tower" in name and gradient.any() for name, gradient in truth.items())


def test_a_narrow_call_has_features_of_its_own() -> None:
    made = frozen("llava")
    pairs, kept = seen_pairs(made)[:1], kept_of(made)
    wide = numbers(made, pairs)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = numbers(made, pairs)
        assert same(narrow, numbers(made, pairs))
    assert not same(wide, narrow)
    assert same(wide, numbers(made, pairs))
    assert kept.counted() == (4, 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda tower: tower.register_module("odd", nn.Dropout(0.1)),
        lambda tower: tower.register_module("odd", nn.BatchNorm1d(2).requires_grad_(False)),
        lambda tower: setattr(tower, "attention_dropout", 0.1),
    ],
    ids=["dropout", "batch norm", "dropout of attention"],
)
def test_nothing_is_kept_of_a_tower_that_may_say_something_else_next_time(
    change: Callable[[Any], None],
) -> None:
    made = frozen("llava")
    change(tower_of(made[0]))
    with looks_counted(made[0]) as looks:
        numbers(made, seen_pairs(made))
    assert len(looks) == 1  # all pictures in one call
    assert len(kept_of(made)) == 0


def test_an_adapter_beside_the_tower_keeps_features_and_one_in_it_none() -> None:
    for targets, held in (
        (r".*language_model.*q_proj", 4),
        (r".*(vision_tower|language).*q_proj", 0),
    ):
        model, processor = seer("llava")
        adapted: Any = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets))
        keep_features(adapted, PLENTY)
        pairs = seen_pairs((model, processor))
        first = numbers((adapted, processor), pairs)
        kept = kept_features(adapted)
        assert kept is not None
        assert len(kept) == held
        assert same(numbers((adapted, processor), pairs), first)
        for name, weight in adapted.named_parameters():
            weight.requires_grad_("language_model" in name and "lora" in name)
        numbers((adapted, processor), pairs)
        assert len(kept) == held  # also frozen, since an adapter may be switched off


def test_features_go_with_their_model() -> None:
    made = frozen("llava")
    numbers(made, seen_pairs(made)[:1])
    before = len(kept_module._OF_MODELS)
    del made
    gc.collect()
    assert len(kept_module._OF_MODELS) < before


def test_what_could_keep_nothing_is_refused(models: Any) -> None:
    model, _ = seer("llava")
    with pytest.raises(ModelError, match=r"^CP336 .* \d+ of vision and \d+ of projector train"):
        keep_pictures(model, 1.0)
    freeze_parts(model, ["vision"])
    with pytest.raises(ModelError, match=r"^CP336 .*weights \d+ of projector train"):
        keep_pictures(model, 1.0)
    freeze_parts(model, ["projector"])
    keep_pictures(model, 0.5)
    found = kept_features(model)
    assert found is not None
    assert found.most_bytes == 5 * 10**8
    keep_pictures(model, 0)
    assert kept_features(model) is None
    with pytest.raises(ConfigError, match=r"^CP104 picture_cache_gb=1 has no meaning for Qwen2"):
        keep_pictures(models("qwen2"), 1.0)
    keep_pictures(models("qwen2"), 0)
    with pytest.raises(ConfigError, match=r"^CP104 .*Mllama.* looks at them in layers of its text"):
        keep_pictures(seer("mllama")[0], 1.0)
