"""Pairs about pictures: each layout against one completion at a time, with pixels of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from counterpoint.errors import ConfigError
from counterpoint.evaluation.generation import Decoding, complete
from counterpoint.evaluation.samples import prompts_of
from counterpoint.forward.agreement import layouts_disagree
from counterpoint.forward.head import find_head, prove_head
from counterpoint.forward.layout_choice import first_choice
from counterpoint.forward.layouts import (
    PADDED,
    PICTURES_TWICE,
    SHARED,
    Layout,
    first_tokens,
)
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.forward.router import add_sums, balancing_loss, router_sums
from counterpoint.forward.routing import choices, find_routers, prove_routers
from counterpoint.forward.seeing import weights_that_see
from counterpoint.forward.sights import SIGHTS
from counterpoint.models.family import SEEING, family_of
from counterpoint.models.trainable import freeze_parts
from counterpoint.records import TokenPair
from tests.float64 import Float64Throughout
from tests.reliability.trials import TORTURE
from tests.vision_on_the_spot import (
    EXPERT_KINDS,
    KINDS,
    ROWS,
    Made,
    looks_counted,
    preference,
    seen_pairs,
    seer,
    vision_encoder,
)

Gradient = dict[str, Tensor]

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation",  # of GLM's processors, where a test calls one itself
)

SPLIT = tuple(KINDS) if TORTURE else ("llava", "qwen3_vl", "gemma3", "gemma4")
"""Kinds that are split in every way: one of each that lies otherwise, or all."""


APART = dict.fromkeys(("qwen3_5", "qwen3_5_moe"), "it has layers of kind linear_attention")
"""Kinds whose prompts cannot be shared, and why."""

NARROW = ("qwen3_5",)
"""Kinds whose gradient, one completion at a time, is further from itself in float64 than the limit
where it is computed in float32: no layout can be asked for more."""

SAYS_LITTLE = {"gemma3": 0.3}
"""Kinds that are proved with weights so small that values agree: a proof on values is too weak."""


def alone(made: Made, pair: TokenPair, said: Sequence[int], rows: Sequence[Any] = ROWS) -> Tensor:
    """Log-probability of a completion: all logits of a call of its own, as the processor has it."""
    model, processor = made
    named: dict[str, Any] = {}
    if pair.pictures:
        row = preference(*rows[pair.row], row=pair.row)
        text = vision_encoder(made).tokenizer.apply_chat_template(
            row.prompt, tokenize=False, add_generation_prompt=True
        )
        shown = [picture.load() for picture in pair.pictures]
        named = dict(processor(text=[text], images=[shown], return_tensors="pt"))
        assert named.pop("input_ids")[0].tolist() == list(pair.prompt)
        del named["attention_mask"]
        if SIGHTS[model.config.model_type].cast:
            named["pixel_values"] = named["pixel_values"].to(model.dtype)
        if "cross_attention_mask" in named:  # what is written looks at what the prompt's end does
            mask = named["cross_attention_mask"]
            longer = mask[:, -1:].expand(-1, len(said), -1, -1)
            named["cross_attention_mask"] = torch.cat([mask, longer], 1)
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in named:
                named[name] = F.pad(named[name], (0, len(said)))
    ids = torch.tensor([[*pair.prompt, *said]])
    logps = model(input_ids=ids, use_cache=False, **named).logits[0].log_softmax(-1)
    rows = logps[len(pair.prompt) - 1 : -1]
    return rows.gather(1, torch.tensor(said)[:, None]).sum().double()


def layouts_of(model: Any) -> list[Layout]:
    """The layouts in which the pairs of a model may lie, the truth first."""
    return [one for one in (PICTURES_TWICE, PADDED, SHARED) if one.why_not(model) is None]


def loss_of(chosen: Tensor, rejected: Tensor, rows: Sequence[int]) -> Tensor:
    weights = torch.tensor(rows) + 1
    return (weights * (chosen - 0.5 * rejected)).sum()


def gradient(model: Any, loss: Tensor) -> Gradient:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


def distance(one: Gradient, other: Gradient) -> float:
    """Largest difference of a weight's gradient, relative to its own, or to all where it is 0."""
    assert one.keys() >= other.keys()
    whole = torch.stack([g.norm() for g in one.values()]).norm()
    zero = torch.zeros(())
    return max(
        float((one[n] - other.get(n, zero)).norm() / torch.maximum(g.norm(), 1e-3 * whole))
        for n, g in one.items()
    )


def of_layout(made: Made, layout: Layout, pairs: Sequence[TokenPair]) -> tuple[Any, Gradient]:
    model = made[0]
    with layout.running(model):
        logps = pair_forward(model, find_head(model), layout.collate(pairs)).logps
        rows = [pair.row for pair in pairs]
        return logps, gradient(model, loss_of(logps.chosen, logps.rejected, rows))


def one_at_a_time(made: Made, pairs: Sequence[TokenPair]) -> tuple[Tensor, Tensor, Gradient]:
    """Log-probabilities of both sides, and the gradient, of a call for each completion."""
    sides = [[alone(made, p, getattr(p, s)) for p in pairs] for s in ("chosen", "rejected")]
    chosen, rejected = (torch.stack(side) for side in sides)
    return chosen, rejected, gradient(made[0], loss_of(chosen, rejected, range(len(pairs))))


@contextmanager
def computing_in(dtype: torch.dtype) -> Iterator[None]:
    with Float64Throughout() if dtype == torch.float64 else nullcontext():
        yield


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_says_what_each_completion_says_alone(kind: str, dtype: torch.dtype) -> None:
    made = seer(kind, dtype)
    model, pairs = made[0], seen_pairs(made)
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    widest = rounding_of(kind) if dtype == torch.float32 and kind in NARROW else limit
    with computing_in(dtype):
        chosen, rejected, truth = one_at_a_time(made, pairs)
        few = first_tokens(PADDED, pairs[0], 16)
        assert not prove_head(model, find_head(model), few.input_ids, PADDED.inputs(few)).dense
        for layout in layouts_of(model):
            logps, found = of_layout(made, layout, pairs)
            assert torch.allclose(logps.chosen, chosen, rtol=limit, atol=0)
            assert torch.allclose(logps.rejected, rejected, rtol=limit, atol=0)
            assert distance(truth, found) <= widest
    assert "get_image_features" not in vars(model.model)
    assert not model._forward_pre_hooks


def rounding_of(kind: str) -> float:
    """How far float32 takes the gradient of one completion at a time; it depends on the machine."""
    found = []
    for dtype in (torch.float64, torch.float32):
        made = seer(kind, dtype)
        with computing_in(dtype):
            found.append(one_at_a_time(made, seen_pairs(made))[2])
    return distance(*found)


@pytest.mark.parametrize("kind", NARROW)
def test_a_wider_limit_is_what_float32_makes_of_one_completion(kind: str) -> None:
    assert 1e-5 < rounding_of(kind) < 2e-4


@pytest.mark.parametrize("kind", KINDS)
def test_what_keeps_a_kind_from_sharing_is_said(kind: str) -> None:
    model, _ = seer(kind)
    assert SHARED.why_not(model) == APART.get(kind)
    assert layouts_of(model)[:2] == [PICTURES_TWICE, PADDED]


def test_there_is_a_small_model_of_every_kind() -> None:
    assert {KINDS[kind]()[0].config.model_type for kind in KINDS} == set(SIGHTS)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("kind", EXPERT_KINDS)
def test_experts_are_counted_as_where_each_completion_stands_alone(kind: str) -> None:
    made = seer(kind, torch.float64)
    model, pairs = made[0], seen_pairs(made)
    routers = find_routers(model)
    with Float64Throughout():
        prove_routers(model, routers, PADDED.inputs(first_tokens(PADDED, pairs[0], 16)))
        parts = []
        for pair in pairs:
            for said in (pair.chosen, pair.rejected):
                with choices(routers) as found:
                    alone(made, pair, said)
                once = torch.ones(1, len(pair.prompt) + len(said), dtype=torch.float64)
                parts.append(router_sums(found, once))
        truth = add_sums(parts)
        expected = gradient(model, balancing_loss(truth, truth))
        for layout in layouts_of(model):
            with layout.running(model):
                batch = layout.collate(pairs)
                sums = pair_forward(model, find_head(model), batch, routers=routers).router
                assert sums is not None
                assert torch.equal(sums.sent, truth.sent)
                assert torch.allclose(sums.probability, truth.probability, rtol=1e-12, atol=0)
                assert sums.tokens == truth.tokens
                balanced = gradient(model, balancing_loss(sums, sums))
            assert distance(expected, balanced) <= 1e-12


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("kind", SPLIT)
def test_every_split_of_six_pairs_has_one_gradient(kind: str) -> None:
    made = seer(kind, torch.float64)
    pairs = seen_pairs(made)
    with Float64Throughout():
        _, truth = of_layout(made, PICTURES_TWICE, pairs)
        quick = layouts_of(made[0])[1:]

        @cache  # 21 stretches make all 32 splits
        def part(start: int, end: int) -> Gradient:
            return of_layout(made, quick[(start + end) % len(quick)], pairs[start:end])[1]

        for cuts in range(len(pairs)):
            for inner in combinations(range(1, len(pairs)), cuts):
                ends = [0, *inner, len(pairs)]
                parts = [part(*stretch) for stretch in pairwise(ends)]
                whole = {
                    n: sum((p.get(n, torch.zeros(())) for p in parts), torch.zeros(()))
                    for n in truth
                }
                assert distance(truth, whole) <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_the_tower_looks_once_at_each_picture(kind: str) -> None:
    made = seer(kind)
    pairs = seen_pairs(made)
    pictures = {seen.digest: seen for pair in pairs for seen in pair.seen}
    assert len(pictures) == 4 < sum(len(pair.seen) for pair in pairs)
    alone = sum(one.inputs["pixel_values"].numel() for one in pictures.values())
    for layout in layouts_of(made[0])[1:]:
        with looks_counted(made[0]) as looks:
            of_layout(made, layout, pairs)
        (shape,) = looks
        assert torch.Size(shape).numel() == alone
    with looks_counted(made[0]) as looks:
        of_layout(made, layout, [pair for pair in pairs if not pair.seen])
    assert looks == []


def test_a_picture_is_known_by_its_content_and_not_by_its_size() -> None:
    made = seer("llava")
    one, other = seen_pairs(made, (ROWS[0], ((4,), *ROWS[0][1:])))
    assert one.pictures[0].width == other.pictures[0].width
    assert one.seen[0].digest != other.seen[0].digest
    logps, _ = of_layout(made, SHARED, [one, other])
    assert logps.chosen[0] != logps.chosen[1]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("gemma3", {"both_ways": "none"}),
        ("gemma4", {"both_ways": "none"}),
        ("gemma4", {"both_ways": "all"}),
        *((kind, {"three": False}) for kind in SIGHTS if SIGHTS[kind].three and kind not in APART),
    ],
)
def test_the_proof_finds_what_a_family_needs_to_share(
    kind: str, wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    model, processor = KINDS[kind]()
    with torch.no_grad():  # so that values hardly show what gradients do
        for weight in model.parameters():
            weight.mul_(SAYS_LITTLE.get(kind, 1.0) if weight.dim() > 1 else 1.0)
    pairs = seen_pairs((model, processor))[:3:2]
    assert all(pair.seen for pair in pairs)
    batches = [layout.collate(pairs) for layout in (SHARED, PICTURES_TWICE)]
    assert layouts_disagree(model, find_head(model), *batches) is None
    monkeypatch.setitem(SIGHTS, kind, replace(SIGHTS[kind], **wrong))
    said = layouts_disagree(model, find_head(model), *batches)
    assert said is not None
    assert kind not in SAYS_LITTLE or said.startswith("the gradient of ")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_not_shown_its_pictures_fails(kind: str) -> None:
    made = seer(kind)
    model, pairs = made[0], seen_pairs(made)[:1]
    for layout in (PADDED, PICTURES_TWICE):
        with pytest.raises((AttributeError, TypeError, ValueError)):
            pair_forward(model, find_head(model), layout.collate(pairs))


def test_a_model_that_sees_has_three_layouts_and_a_text_model_two(models: Any) -> None:
    model, _ = seer("llava")
    family = family_of(model.config)
    assert family.name == SEEING
    assert family.layouts == (SHARED, PADDED, PICTURES_TWICE)
    assert first_choice(model, "auto", possible=family.layouts) == (SHARED, None)
    model.set_attn_implementation("flex_attention")
    layout, reason = first_choice(model, "auto", possible=family.layouts)
    assert layout is PADDED
    assert reason == "attention runs through flex_attention, not through sdpa or eager"
    assert PICTURES_TWICE.why_not(models("qwen2")) == "this model sees no pictures"


def test_dropout_that_stays_looks_twice() -> None:
    model, _ = seer("llava")
    model.model.vision_tower.encoder.layers[0].self_attn.dropout = 0.1
    said = "dropout is on, and would fall on a picture once instead of twice"
    assert PADDED.why_not(model) == said
    assert PADDED.why_not(model, dropout_stays=False) is None
    assert PICTURES_TWICE.why_not(model) is None


def test_cost_counts_patches_as_often_as_they_are_looked_at() -> None:
    pairs = seen_pairs(seer("llava"))
    patches = 16 * sum(len(pair.seen) for pair in pairs)
    text = [replace(pair, seen=()) for pair in pairs]
    for layout, times in ((SHARED, 1), (PADDED, 1), (PICTURES_TWICE, 2)):
        assert layout.tokens(pairs) == layout.tokens(text) + times * patches
        assert layout.collate(pairs).cost == layout.tokens(pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_writes_to_prompts_with_pictures_as_to_each_alone(kind: str) -> None:
    made = seer(kind)
    model, pairs = made[0], seen_pairs(made)[:3]
    tokenizer = vision_encoder(made).tokenizer
    found = complete(model, tokenizer, prompts_of(pairs, tokenizer), Decoding(4))
    for pair, written in zip(pairs, found, strict=True):
        said: list[int] = []
        for _ in range(len(written.ids)):
            batch = PICTURES_TWICE.collate([replace(pair, chosen=[*said, 0], rejected=[0])])
            with PICTURES_TWICE.running(model), torch.no_grad():
                logits = model(**PICTURES_TWICE.inputs(batch), use_cache=False).logits[0]
            said.append(int(logits[len(pair.prompt) + len(said) - 1].argmax()))
        assert list(written.ids) == said
        assert said or not written.ended or written.ids == ()


@pytest.mark.parametrize("kind", ["llava", "qwen3_vl", "gemma3", "gemma4", "mllama"])
def test_beams_about_pictures_are_followed_with_a_cache(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = seer(kind)
    pairs, tokenizer = seen_pairs(made)[:3], vision_encoder(made).tokenizer
    with caplog.at_level("INFO", logger="counterpoint"):
        found = complete(made[0], tokenizer, prompts_of(pairs, tokenizer), Decoding(4, beams=2))
    assert len(found) == 3
    assert "does not follow its beams" not in caplog.text


@pytest.mark.parametrize("kind", ["glm4v", "glm46v"])
def test_beams_that_get_each_other_s_pictures_are_left(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Their own code lays two pictures of a prompt side by side for each beam, AABB for ABAB."""
    made = seer(kind)
    pairs, tokenizer = seen_pairs(made)[:3], vision_encoder(made).tokenizer
    prompts = prompts_of(pairs, tokenizer)
    found = complete(made[0], tokenizer, prompts, Decoding(4, beams=2))
    assert "the beams of this model mix up pictures: it writes greedily" in caplog.text
    assert found == complete(made[0], tokenizer, prompts, Decoding(4))
    assert {one.kind for one in found} == {"greedy"}
    caplog.clear()
    few = complete(made[0], tokenizer, prompts[:2], Decoding(4, beams=2))
    assert "greedily" not in caplog.text
    assert {one.kind for one in few} == {"beams"}


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parts_have_no_graph_and_the_rest_its_own_gradient(kind: str) -> None:
    made = seer(kind)
    model, pairs = made[0], seen_pairs(made)[:3]
    layout = layouts_of(model)[-1]
    _, truth = of_layout(made, layout, pairs)
    said: list[Any] = []
    reader: Any = model.model
    for parts in (["projector"], ["vision", "projector"]):
        freeze_parts(model, parts)
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        seeing = {id(p) for part in parts for p in weights_that_see(model, part)}
        assert frozen == {n for n, p in model.named_parameters() if id(p) in seeing}
        _, found = of_layout(made, layout, pairs)
        rest = {n: g for n, g in truth.items() if n not in frozen}
        assert rest.keys() == found.keys()
        assert distance(rest, found) <= 1e-5
    assert not any(n.startswith(("model.language", "model.text", "lm_head")) for n in frozen)
    assert len(frozen) == sum(1 for n, _ in model.named_parameters() if n not in rest)
    inputs = pairs[0].seen[0].inputs
    if SIGHTS[model.config.model_type].crosses:
        states = reader.vision_model(**inputs).last_hidden_state
        said.append(reader.multi_modal_projector(states))
    else:
        said.append(reader.get_image_features(**inputs, return_dict=True).pooler_output)
    flat = said[0] if isinstance(said[0], Tensor) else torch.cat(list(said[0]))
    assert not flat.requires_grad


def test_what_does_not_see_has_nothing_to_freeze(models: Any) -> None:
    with pytest.raises(ConfigError, match=r"^CP104 freeze='vision' has no meaning for Qwen2For"):
        freeze_parts(models("qwen2"), ["vision"])
    with pytest.raises(ConfigError, match=r"^CP102 freeze='eyes' is not one of vision, projector"):
        freeze_parts(seer("llava")[0], ["eyes"])
