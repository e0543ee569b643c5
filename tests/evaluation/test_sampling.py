"""Candidates: each drawn by its own chance, whatever else is written beside it."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from counterpoint.evaluation.generation import Decoding, Prompt, complete
from counterpoint.evaluation.sampling import (
    Draw,
    Sampling,
    candidate_chance,
    draw_candidates,
)

SOME = Sampling(most_tokens=8, batch=8)
Written = dict[tuple[int, int], tuple[int, ...]]


@pytest.fixture
def tokenizer(llama_tokenizer):
    own = copy.deepcopy(llama_tokenizer)
    own.pad_token = own.eos_token
    return own


def prompts(count: int = 5, seed: int = 0) -> list[Prompt]:
    rng = random.Random(seed)
    return [
        Prompt(tuple(rng.randrange(3, 384) for _ in range(rng.randrange(1, 12))))
        for _ in range(count)
    ]


def draws_of(some: Sequence[Prompt], k: int, seed: int = 0, model: str = "m") -> list[Draw]:
    return [
        Draw(row, n, prompt, candidate_chance(seed, model, prompt, 0, n))
        for row, prompt in enumerate(some)
        for n in range(k)
    ]


def written(model: Any, tokenizer: Any, draws: Sequence[Draw], how: Sampling = SOME) -> Written:
    found: Written = {}

    def take(done):
        found.update({(one.row, one.candidate): text.ids for one, text in done})

    draw_candidates(model, tokenizer, draws, how, lambda one: False, take)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "mistral"])
def test_a_candidate_is_the_same_in_any_batch(models, tokenizer, kind, dtype):
    """In 32 bits, too: logits that differ by a rounding draw the same but once in some 10^5."""
    model, some = models(kind).to(dtype), prompts()
    whole = written(model, tokenizer, draws_of(some, 4))
    assert len(whole) == 20
    assert len(set(whole.values())) > 12  # and candidates are unlike each other
    for batch in (1, 3, 20):
        assert written(model, tokenizer, draws_of(some, 4), replace(SOME, batch=batch)) == whole
    part = [one for one in draws_of(some, 4) if one.row in (1, 3) and one.candidate > 1]
    of_part = {(one.row, one.candidate) for one in part}
    assert written(model, tokenizer, part) == {place: whole[place] for place in of_part}


def test_chances_differ_by_all_that_they_are_a_function_of(models, tokenizer):
    prompt, other = Prompt((1, 5, 3)), Prompt((1, 5, 4))
    chances = {
        candidate_chance(0, "m", prompt, 0, 0),
        candidate_chance(1, "m", prompt, 0, 0),
        candidate_chance(0, "n", prompt, 0, 0),
        candidate_chance(0, "m", other, 0, 0),
        candidate_chance(0, "m", prompt, 1, 0),
        candidate_chance(0, "m", prompt, 0, 1),
    }
    assert len(chances) == 6
    assert all(0 <= one < 2**63 for one in chances)
    # on every machine and in every release, or files that were begun could not be gone on with
    assert candidate_chance(0, "m", prompt, 0, 0) == 5610491223961007227


def test_first_tokens_follow_the_models_own_distribution(models, tokenizer):
    """4,000 candidates of a prompt against the softmax, by chi squared."""
    model, prompt = models("qwen2", vocab_size=16, bos_token_id=0).eval(), Prompt((1, 5, 3))
    with torch.no_grad():
        logits = model(torch.tensor([prompt.ids])).logits[0, -1].double()
    how = Sampling(most_tokens=1, temperature=3.0, batch=4000)
    found = written(model, tokenizer, draws_of([prompt], 4000), how)
    firsts = torch.tensor([ids[0] if ids else 2 for ids in found.values()])
    seen = torch.bincount(firsts, minlength=16).double()
    expected = torch.softmax(logits / 3.0, 0) * 4000
    # 15 degrees of freedom: 1 in 10^6 lies above 55
    assert float(((seen - expected) ** 2 / expected).sum()) < 55


@pytest.mark.parametrize(("change", "kept"), [({"top_k": 3}, 3), ({"top_p": 0.4}, None)])
def test_no_token_is_drawn_that_transformers_leaves_out(models, tokenizer, change, kept):
    model, prompt = models("qwen2", vocab_size=16, bos_token_id=0).eval(), Prompt((1, 5, 3))
    with torch.no_grad():
        logits = model(torch.tensor([prompt.ids])).logits[0, -1].double()
    likeliest = logits.softmax(0).sort(descending=True)
    if kept is None:  # as many as make up the share, the one that exceeds it among them
        kept = int((likeliest.values.cumsum(0) < 0.4).sum()) + 1
    how = replace(Sampling(most_tokens=1, batch=1000), **change)
    found = written(model, tokenizer, draws_of([prompt], 1000), how)
    drawn = {ids[0] if ids else 2 for ids in found.values()}
    assert drawn == set(likeliest.indices[:kept].tolist())


def test_without_a_temperature_it_is_greedy(models, tokenizer):
    model, some = models("qwen2"), prompts()
    found = written(model, tokenizer, draws_of(some, 1), replace(SOME, temperature=0.0))
    greedy = complete(model, tokenizer, some, Decoding(most_tokens=8, batch=8))
    assert [found[row, 0] for row in range(len(some))] == [one.ids for one in greedy]


def test_what_is_written_already_is_not_written_again(models, tokenizer):
    """And the rest is as it would have been: a batch that is begun is done again whole."""
    model, draws = models("qwen2"), draws_of(prompts(), 4)
    whole, there, got = written(model, tokenizer, draws), {(0, 0), (0, 1), (3, 2)}, {}

    def take(done):
        for one, text in done:
            assert (one.row, one.candidate) not in there
            got[one.row, one.candidate] = text.ids

    draw_candidates(
        model, tokenizer, draws, SOME, lambda one: (one.row, one.candidate) in there, take
    )
    assert got == {place: ids for place, ids in whole.items() if place not in there}
    draw_candidates(
        model, tokenizer, draws, SOME, lambda one: True, lambda done: pytest.fail("written")
    )


def test_a_token_that_stops_ends_a_text(models, tokenizer):
    model, some = models("qwen2"), prompts()
    plain = written(model, tokenizer, draws_of(some, 2))
    token = next(ids[3] for ids in plain.values() if len(ids) > 4)
    stopped = written(model, tokenizer, draws_of(some, 2), replace(SOME, stops=(token,)))
    for place, ids in plain.items():
        end = ids.index(token) if token in ids else len(ids)
        assert stopped[place] == ids[:end]


def test_the_longest_prompt_of_all_decides_how_much_room_there_is(models, tokenizer):
    model = models("gpt2", n_positions=16, max_position_embeddings=16)
    how = Sampling(most_tokens=50, longest=12)
    found = written(model, tokenizer, draws_of([Prompt((5, 6))], 8), how)
    assert max(map(len, found.values())) == 4


def test_modes_and_random_state_are_as_before(models, tokenizer):
    model = models("qwen2").train()
    before = torch.get_rng_state()
    written(model, tokenizer, draws_of(prompts(), 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
