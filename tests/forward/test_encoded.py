"""Encoder-decoders: source once or twice, against one completion at a time and all its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterpoint import ModelError
from counterpoint.config import CPOConfig
from counterpoint.data.batching import cut
from counterpoint.data.options import PrepareOptions
from counterpoint.data.prepare import iter_pairs, prepare
from counterpoint.forward.encoded import ENCODER_ONCE, ENCODER_TWICE
from counterpoint.forward.head import prove_head
from counterpoint.forward.layouts import PADDED, SHARED, first_tokens
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.models.family import ENCODER_DECODER, family_of
from counterpoint.models.preparing import embedding_rows, encoder_of
from counterpoint.records import TokenPair
from counterpoint.step.replay import recompute
from tests import steps
from tests.models_on_the_spot import make_model
from tests.steps import random_pairs, train_watched
from tests.translators_on_the_spot import KINDS, LANGUAGES, ROWS, Made, translator

COMPUTED_NARROWLY = {"t5", "flan-t5", "mt5", "umt5"}
"""Kinds whose norms compute in float32 whatever the weights are."""


def pairs_of(kind: str, made: Made) -> list[TokenPair]:
    options = dict(zip(("source_lang", "target_lang"), LANGUAGES.get(kind, ()), strict=False))
    config: Any = made[0].config
    encoder = family_of(config).encoder(made[1], config, PrepareOptions(**options))
    return list(iter_pairs(prepare(ROWS, encoder)))


def several_of_one_source(pairs: Sequence[TokenPair]) -> list[TokenPair]:
    """The pairs, and the first one's source against what is said of others."""
    more = [
        replace(pairs[0], rejected=other.rejected, row=100 + n) for n, other in enumerate(pairs)
    ]
    return [pairs[0], pairs[1], more[2], *pairs[2:], more[3]]


def alone(model: nn.Module, pair: TokenPair, said: Sequence[int]) -> Tensor:
    """Log-probability of a completion, from all logits of a call of its own."""
    ids = torch.tensor([[*pair.start, *said[:-1]]])
    source = torch.tensor([list(pair.prompt)])
    logps = model(input_ids=source, decoder_input_ids=ids).logits[0].log_softmax(-1)
    rows = logps[len(pair.start) - 1 :]
    return rows.gather(1, torch.tensor(said)[:, None]).sum().double()


def loss_of(chosen: Tensor, rejected: Tensor) -> Tensor:
    weights = torch.arange(1, len(chosen) + 1)
    return (weights * (chosen - 0.5 * rejected)).sum()


def gradient(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference of a weight's gradient, relative to its own, or to all where it is 0."""
    assert one.keys() == other.keys()
    whole = torch.stack([g.norm() for g in one.values()]).norm()
    return max(
        float((one[n] - other[n]).norm() / torch.maximum(one[n].norm(), 1e-3 * whole)) for n in one
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_layouts_say_what_each_completion_says_alone(kind: str, dtype: torch.dtype) -> None:
    made = translator(kind, dtype)
    model, pairs = made[0], several_of_one_source(pairs_of(kind, made))
    narrow = dtype == torch.float32 or kind in COMPUTED_NARROWLY
    limit = 1e-5 if dtype == torch.float32 else 1e-6 if narrow else 1e-12
    sides = [[alone(model, p, getattr(p, s)) for p in pairs] for s in ("chosen", "rejected")]
    chosen, rejected = (torch.stack(side) for side in sides)
    truth = gradient(model, loss_of(chosen, rejected))

    few = first_tokens(ENCODER_TWICE, pairs[0], 16)
    head = family_of(model.config).find_head(model)
    head = prove_head(model, head, few.input_ids, ENCODER_TWICE.inputs(few))
    assert not head.dense
    for layout in (ENCODER_TWICE, ENCODER_ONCE):
        with layout.running(model):
            logps = pair_forward(model, head, layout.collate(pairs)).logps
        assert torch.allclose(logps.chosen, chosen, rtol=limit, atol=0)
        assert torch.allclose(logps.rejected, rejected, rtol=limit, atol=0)
        assert distance(truth, gradient(model, loss_of(logps.chosen, logps.rejected))) <= limit


def test_a_source_goes_through_the_encoder_once_for_all_pairs_that_have_it() -> None:
    made = translator("t5")
    model, pairs = made[0], several_of_one_source(pairs_of("t5", made))
    seen: list[int] = []
    handle = model.encoder.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(len(kwargs["input_ids"])),
        with_kwargs=True,
    )
    head = family_of(model.config).find_head(model)
    for layout in (ENCODER_TWICE, ENCODER_ONCE):
        with layout.running(model):
            pair_forward(model, head, layout.collate(pairs))
    handle.remove()
    assert seen == [2 * len(pairs), len(ROWS)]
    assert len(pairs) == len(ROWS) + 2
    assert not model._forward_pre_hooks
    assert not model.encoder._forward_pre_hooks
    assert not model.encoder._forward_hooks


def test_sources_of_one_length_need_no_mask() -> None:
    pair = TokenPair([4, 5, 6], [7, 8], [9], row=0, start=[0])
    other = replace(pair, prompt=[6, 5], row=1)
    assert "attention_mask" not in ENCODER_ONCE.collate([pair, replace(pair, row=1)]).inputs
    mask = ENCODER_ONCE.collate([pair, other]).inputs["attention_mask"]
    # as the decoder looks at them: once for each of its rows
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]] * 2


def test_what_the_decoder_is_given_carries_no_loss() -> None:
    pair = TokenPair([4, 5, 6], [7, 8, 2], [9, 2], row=3, start=[2, 30])
    batch = ENCODER_ONCE.collate([pair])
    assert batch.input_ids.tolist() == [[2, 30, 7, 8], [2, 30, 9, 0]]
    assert batch.target_ids.tolist() == [7, 8, 2, 9, 2]
    assert batch.target_source.tolist() == [1, 2, 3, 5, 6]
    assert batch.target_counts.tolist() == [3, 2]
    assert [ENCODER_ONCE.part_at(batch, 0, place)[1:] for place in range(4)] == [
        ("start", 0),
        ("start", 1),
        ("chosen", 0),
        ("chosen", 1),
    ]
    assert ENCODER_ONCE.part_at(batch, 1, 3) == (0, "padding", 1)


@pytest.mark.parametrize("layout", [ENCODER_ONCE, ENCODER_TWICE], ids=lambda one: one.name)
def test_the_cost_is_that_of_what_is_computed(layout: Any) -> None:
    pairs = [
        TokenPair([1] * n, [2] * c, [3] * r, row=n, start=[0]) for n, c, r in ((9, 3, 5), (4, 7, 1))
    ]
    for some in (pairs, [*pairs, replace(pairs[0], chosen=[2], row=5)]):
        batch = layout.collate(some)
        assert batch.cost == batch.input_ids.numel() + batch.inputs["input_ids"].numel()
    (lone,) = layout.tokens_alone(torch.tensor([[9, 3, 5]]).numpy())
    assert lone == layout.tokens(pairs[:1])


def test_a_layout_of_another_family_is_refused_by_name(models: Any) -> None:
    t5, _ = translator("t5")
    for layout in (PADDED, SHARED):
        assert layout.why_not(t5) == "this model has an encoder"
    for layout in (ENCODER_ONCE, ENCODER_TWICE):
        assert layout.why_not(models("qwen2")) == "this model has no encoder"


def test_dropout_that_stays_keeps_sources_apart() -> None:
    model, _ = translator("bart")
    model.model.encoder.layerdrop = 0.1
    said = "dropout is on, and would fall on a source once instead of twice"
    assert ENCODER_ONCE.why_not(model) == said
    assert ENCODER_ONCE.why_not(model, dropout_stays=False) is None


def test_completions_are_held_against_the_vocabulary_that_is_written() -> None:
    """Of a Marian of two: 64 ids are read, 90 are written."""
    made = translator("marian-apart")
    known = embedding_rows(made[0])
    assert known == (64, 90)
    pairs = pairs_of("marian-apart", made)
    assert max(max(pair.chosen) for pair in pairs) > 64
    assert list(pairs[0].start) == [89]
    ENCODER_ONCE.collate(pairs, vocab_size=known)
    for part, highest in (("prompt", 64), ("chosen", 90), ("rejected", 90), ("start", 90)):
        bad = replace(pairs[1], **{part: (3, highest)})
        with pytest.raises(
            ModelError, match=rf"CP303 row 1 has token id {highest}, .* {highest} rows"
        ):
            ENCODER_ONCE.collate([pairs[0], bad], vocab_size=known)
        ENCODER_ONCE.collate([replace(bad, **{part: (3, highest - 1)})], vocab_size=known)


@pytest.mark.parametrize("layout", [ENCODER_TWICE, ENCODER_ONCE], ids=lambda one: one.name)
@pytest.mark.parametrize("name", ["encoder.embed_tokens", "decoder.layers.0.encoder_attn.k_proj"])
def test_a_layer_of_an_encoder_is_named_with_the_token_of_the_source(
    layout: Any, name: str
) -> None:
    """Also where rows are as long as sources, so that shapes do not say whose an output is."""
    model = translator("marian-apart")[0]
    pairs = [
        TokenPair([3 + n, 9, 8, 7, 0], [20, 21, 22, 23, 0], [30, 31, 32, 33, 0], row=n, start=[89])
        for n in range(3)
    ]

    def spoil(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """The third token of the second source."""
        mask = torch.zeros(output.shape[:2], dtype=torch.bool)
        mask[1::3, 2] = True
        return output.masked_fill(mask[..., None], float("inf"))

    model.get_submodule(f"model.{name}").register_forward_hook(spoil)
    batch = layout.collate(pairs)
    head = family_of(model.config).find_head(model)
    with recompute._watched_layers(model, batch) as found, layout.running(model):
        pair_forward(model, head, batch)
    (culprit,) = found
    assert culprit.name == f"model.{name}"
    assert (culprit.row, culprit.part, culprit.token, culprit.token_id) == (1, "prompt", 2, 8)


def test_a_decoder_that_nobody_says_how_to_begin_is_refused() -> None:
    model, tokenizer = translator("t5")
    model.config.decoder_start_token_id = model.config.pad_token_id = None
    with pytest.raises(ModelError, match=r"^CP317 .* neither decoder_start_token_id nor pad_tok"):
        encoder_of(model, tokenizer, CPOConfig(output_dir="unused"))
    assert family_of(model.config).name == ENCODER_DECODER


def test_a_budget_holds_more_pairs_of_one_source() -> None:
    """Candidates of one source are cut into one batch, whatever lengths are between theirs."""
    one = [TokenPair([7] * 20, [2] * n, [3], row=n, start=[0]) for n in (9, 5, 1)]
    others = [TokenPair([n] * 20, [2] * n, [3], row=10 + n, start=[0]) for n in (8, 6, 4)]
    mixed = [pair for both in zip(one, others, strict=True) for pair in both]
    found = cut(
        mixed,
        most_pairs=1,
        most_tokens=80,
        tokens_of=ENCODER_ONCE.tokens,
        common=ENCODER_ONCE.common,
    )
    assert {tuple(pair.row for pair in batch) for batch in found} == {(9, 5, 1), (18, 16), (14,)}
    assert ENCODER_ONCE.tokens(one) == 20 + 2 * 3 * 9
    apart = cut(mixed, most_pairs=1, most_tokens=80, tokens_of=ENCODER_TWICE.tokens)
    assert max(map(len, apart)) == 1


def test_the_proof_sees_two_pairs_of_one_source() -> None:
    """The first pairs of a run may all have sources of their own."""
    first = TokenPair([4, 5, 6], [7, 8], [9], row=0, start=[0])
    for pairs in ([first], [first, replace(first, prompt=[6, 5], row=1)]):
        proved = ENCODER_ONCE.to_prove(pairs, pairs)
        assert ENCODER_ONCE.sources(proved) == [*range(len(pairs)), 0]
        assert ENCODER_TWICE.to_prove(pairs, pairs) == pairs


@pytest.mark.parametrize("adapted", [False, True])
def test_a_step_is_the_same_whether_its_sources_are_shared(
    adapted: bool, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    """Through the trainer: the keyword that tells of sources passes adapters and checkpointing."""
    pairs = random_pairs(8).map(lambda row, n: {"prompt_ids": [1, 9 + n % 2, 0]}, with_indices=True)
    found = {}
    for layout in ("encoder-once", "encoder-twice"):
        model: Any = make_model("t5")
        if adapted:
            peft = pytest.importorskip("peft")
            torch.manual_seed(4)
            lora = peft.LoraConfig(r=4, target_modules=["q", "wo"], task_type="SEQ_2_SEQ_LM")
            model = peft.get_peft_model(model, lora)
        rows: list[int] = []
        model.get_encoder().register_forward_pre_hook(
            lambda module, args, named, rows=rows: rows.append(len(named["input_ids"])),
            with_kwargs=True,
        )
        (found[layout],), trainer = train_watched(
            model,
            chatml_tokenizer,
            pairs,
            tmp_path / layout,
            layout=layout,
            per_device_train_batch_size=8,
            gradient_checkpointing=True,
        )
        assert trainer._assembly().layout == layout
        assert rows[-1] == (2 if layout == "encoder-once" else 16)
    assert steps.distance(found["encoder-twice"], found["encoder-once"]) < 1e-5
