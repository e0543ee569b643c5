"""Continuous batching writes what padded batches write, each candidate by its own chance."""

from __future__ import annotations

import copy
import random
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip(
    "transformers.generation.continuous_batching.cb_logits_processors",
    reason="this transformers has no continuous batching that can be given a chance",
)

from counterpoint.errors import ModelError
from counterpoint.evaluation import continuous
from counterpoint.evaluation.continuous import complete_continuously, draw_continuously
from counterpoint.evaluation.generation import Decoding, Prompt, complete
from counterpoint.evaluation.sampling import (
    Draw,
    Sampling,
    candidate_chance,
    draw_candidates,
)
from tests.ranks_in_threads import as_ranks
from tests.translators_on_the_spot import translator

SOME = Sampling(most_tokens=8, batch=4)
Written = dict[tuple[int, int], tuple[tuple[int, ...], bool]]


@pytest.fixture
def tokenizer(llama_tokenizer):
    own = copy.deepcopy(llama_tokenizer)
    own.pad_token = own.eos_token
    return own


def draws_of(k: int) -> list[Draw]:
    rng = random.Random(0)
    prompts = [
        Prompt(tuple(rng.randrange(3, 384) for _ in range(rng.randrange(1, 12)))) for _ in range(5)
    ]
    return [
        Draw(row, n, prompt, candidate_chance(0, "m", prompt, 0, n))
        for row, prompt in enumerate(prompts)
        for n in range(k)
    ]


def written(way: Any, model: Any, tokenizer: Any, draws: Any, how: Sampling = SOME) -> Written:
    found: Written = {}

    def take(done):
        for one, text in done:
            assert (one.row, one.candidate) not in found
            found[one.row, one.candidate] = (text.ids, text.ended)

    way(model, tokenizer, draws, how, lambda one: False, take)
    return found


@pytest.mark.parametrize("kind", ["qwen2", "mistral"])
@pytest.mark.parametrize(
    "how",
    [
        replace(SOME, temperature=0.0),
        SOME,
        replace(SOME, temperature=0.7, top_p=0.9, top_k=20, batch=3),
    ],
    ids=["greedy", "sampled", "warped"],
)
def test_texts_are_those_of_padded_batches(models, tokenizer, kind, how):
    model = models(kind).float()
    draws = draws_of(3 if how.temperature else 1)
    before = torch.get_rng_state(), model.config._attn_implementation, model.training
    found = written(draw_continuously, model, tokenizer, draws, how)
    assert found == written(draw_candidates, model, tokenizer, draws, how)
    assert len(found) == len(draws)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (model.config._attn_implementation, model.training) == before[1:]


def test_more_than_the_cache_holds_is_written_one_after_another(models, tokenizer, monkeypatch):
    """An evicted text is read again, and draws on from where it was."""
    monkeypatch.setattr(continuous, "PAGE", 4)
    model, draws = models("qwen2").float(), draws_of(4)
    padded = written(draw_candidates, model, tokenizer, draws)
    assert written(draw_continuously, model, tokenizer, draws) == padded


def test_what_is_written_already_is_not_written_again(models, tokenizer):
    model, draws = models("qwen2").float(), draws_of(2)
    there, got = {(0, 0), (3, 1)}, {}

    def take(done):
        got.update({(one.row, one.candidate): text.ids for one, text in done})

    draw_continuously(
        model, tokenizer, draws, SOME, lambda one: (one.row, one.candidate) in there, take
    )
    assert set(got) == {(one.row, one.candidate) for one in draws} - there
    draw_continuously(
        model, tokenizer, draws, SOME, lambda one: True, lambda done: pytest.fail("no")
    )


def test_it_computes_as_the_caller_does(models, tokenizer):
    """Autocast is a thread's own, and another thread writes."""
    model, seen = models("qwen2").bfloat16(), set()
    head = model.lm_head.register_forward_hook(
        lambda module, given, out: seen.add(torch.is_autocast_enabled("cpu"))
    )
    with torch.autocast("cpu", torch.bfloat16):
        written(draw_continuously, model, tokenizer, draws_of(1))
    head.remove()
    assert seen == {True}
    assert "forward" not in model.__dict__


def test_an_autocast_that_its_cache_does_not_take_is_refused(models, tokenizer):
    refused = pytest.raises(ModelError, match=r"CP344 .*--dtype bfloat16 loads them so")
    with torch.autocast("cpu", torch.bfloat16), refused:
        written(draw_continuously, models("qwen2").float(), tokenizer, draws_of(1))


def test_an_error_of_the_taker_ends_the_thread_and_is_raised(models, tokenizer):
    def take(done):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        draw_continuously(
            models("qwen2").float(), tokenizer, draws_of(2), SOME, lambda one: False, take
        )


def test_a_model_that_writes_otherwise_there_is_refused(models, tokenizer, monkeypatch):
    """As one is whose attention the paged one does not know."""
    model = models("qwen2").float()
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def uncapped(query: Any, key: Any, value: Any, **more: Any) -> Any:
        wrong = 3.0 if threading.current_thread() is not threading.main_thread() else 1.0
        return sdpa(query * wrong, key, value, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", uncapped)
    with pytest.raises(ModelError, match=r"CP344 .* log-probabilities differ"):
        written(draw_continuously, model, tokenizer, draws_of(1))


@pytest.mark.parametrize("kind", ["gemma2", "gpt2"])
def test_a_model_is_written_with_as_in_padded_batches_or_refused(models, tokenizer, kind):
    """These two transformers 5.23 writes otherwise (scores are capped), and not at all."""
    model, draws, refused = models(kind).float(), draws_of(2), ""
    try:
        found = written(draw_continuously, model, tokenizer, draws)
    except ModelError as error:
        refused = error.code
    assert refused == "CP344" or found == written(draw_candidates, model, tokenizer, draws)


def test_an_encoder_decoder_is_refused():
    model, tokenizer = translator("t5")
    with pytest.raises(ModelError, match=r"CP344 .* no causal language model"):
        written(draw_continuously, model, tokenizer, draws_of(1))


def test_an_evaluation_writes_the_greedy_texts_of_padded_batches(models, tokenizer):
    """In the order of the prompts, equal prompts among them, with their references."""
    model = models("qwen2").float()
    prompts = [replace(one.prompt, reference=str(n)) for n, one in enumerate(draws_of(1))]
    prompts += [replace(prompts[0], reference="again")]
    way = Decoding(8, batch=4)
    found = complete_continuously(model, tokenizer, prompts, way)
    assert found == complete(model, tokenizer, prompts, way)
    assert [one.reference for one in found] == [one.reference for one in prompts]
    assert complete_continuously(model, tokenizer, [], way) == []


def test_what_an_evaluation_samples_follows_from_seed_and_prompt_alone(models, tokenizer):
    model = models("qwen2").float()
    prompts = [one.prompt for one in draws_of(1)]
    way = Decoding(8, temperature=1.0, seed=1, batch=3)
    found = complete_continuously(model, tokenizer, [*prompts, prompts[0]], way)
    assert found[0].ids != found[-1].ids  # equal prompts draw apart
    other = complete_continuously(model, tokenizer, prompts[::-1], replace(way, batch=2))
    assert other[::-1] == found[:-1]
    assert complete_continuously(model, tokenizer, prompts, replace(way, seed=2)) != found[:-1]


def test_ranks_deal_the_prompts_and_all_have_every_text(models, tokenizer):
    model, way = models("qwen2").float(), Decoding(6, temperature=1.0, batch=4)
    prompts = [one.prompt for one in draws_of(1)]
    whole = complete_continuously(model, tokenizer, prompts, way)

    def write():
        return complete_continuously(copy.deepcopy(model), tokenizer, prompts, way)

    assert as_ranks(2, write) == [whole, whole]


def test_prompts_with_pictures_and_a_model_in_parts_are_refused(models, tokenizer):
    model, way = models("qwen2").float(), Decoding(4)
    with pytest.raises(ModelError, match=r"CP344 .* each process holds a part of it"):
        complete_continuously(model, tokenizer, [Prompt((5,))], way, together=True)
    seen: Any = (object(),)
    with pytest.raises(ModelError, match=r"CP344 .* its prompts show pictures"):
        complete_continuously(model, tokenizer, [Prompt((5,), seen=seen)], way)
