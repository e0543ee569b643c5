"""A model writes: each prompt as if alone, and nothing is left behind."""

from __future__ import annotations

import copy
import random
from contextlib import nullcontext
from dataclasses import replace

import peft
import pytest
import torch
from transformers import DynamicCache

from counterpoint import DataError
from counterpoint.data.formats import to_prompt
from counterpoint.data.options import PrepareOptions
from counterpoint.data.prepare import iter_pairs, prepare
from counterpoint.data.translation import languages_of
from counterpoint.evaluation.generation import Decoding, Prompt, complete
from counterpoint.evaluation.rounded_otherwise import rounded_otherwise
from counterpoint.evaluation.samples import prompts_of
from counterpoint.evaluation.sampling import Draw, Sampling, draw_candidates
from counterpoint.evaluation.speaker import Speaker
from counterpoint.evaluation.texts import Completion, repetition
from counterpoint.models.family import family_of
from tests.models_on_the_spot import NEED_EAGER
from tests.translators_on_the_spot import KINDS, LANGUAGES, ROWS, translator

SOME = Decoding(most_tokens=8, batch=4)
ALONE = replace(SOME, batch=1)


def prompts(count: int = 7, *, longest: int = 15, seed: int = 0) -> list[Prompt]:
    """Prompts of random ids and unlike lengths."""
    rng = random.Random(seed)
    lengths = [1 + (longest - 1) * n // max(count - 1, 1) for n in range(count)]
    rng.shuffle(lengths)
    return [Prompt(tuple(rng.randrange(3, 384) for _ in range(length))) for length in lengths]


def tokens(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.ids for completion in completions]


def widths_of(model: torch.nn.Module) -> list[tuple[int, int]]:
    """Rows and tokens of each forward pass from now on."""
    seen: list[tuple[int, int]] = []
    model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(tuple(inputs[0].shape))
    )
    return seen


def one_minded(models, token: int):
    """A model that says one token whatever it is told."""
    model = models("phi")
    with torch.no_grad():
        model.lm_head.bias[token] = 1e4
    return model


@pytest.fixture
def tokenizer(llama_tokenizer):
    """BOS 1, EOS 2, which pads too, as the trainer would have it."""
    own = copy.deepcopy(llama_tokenizer)
    own.pad_token = own.eos_token
    return own


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma2", "gpt2", "mistral", "opt", "mamba"])
def test_prompts_of_unlike_lengths_are_continued_as_if_each_were_alone(models, tokenizer, kind):
    # transformers' eager attention takes its softmax in fp32, where a mask of fp64 is -inf
    model = models(kind).to(torch.float32 if kind in NEED_EAGER else torch.float64)
    widths = widths_of(model)
    together = complete(model, tokenizer, prompts(), replace(SOME, batch=7))
    assert any(rows == 7 for rows, _ in widths)
    assert tokens(together) == tokens(complete(model, tokenizer, prompts(), ALONE))
    assert len(set(tokens(together))) > 1


def written_by_hand(model, prompt: Prompt, eos: int, most: int) -> tuple[int, ...]:
    """The likeliest token after what the decoder has, again and again."""
    ids = list(prompt.start)
    while len(ids) < len(prompt.start) + most:
        with torch.no_grad():
            said = model(
                input_ids=torch.tensor([prompt.ids]), decoder_input_ids=torch.tensor([ids])
            )
        ids.append(int(said.logits[0, -1].argmax()))
        if ids[-1] == eos:
            break
    new = ids[len(prompt.start) :]
    return tuple(new[: new.index(eos)] if eos in new else new)


@pytest.mark.parametrize("kind", ["t5", "nllb", "mbart", "mbart50", "bart"])
def test_a_decoder_begins_with_its_prompt_s_start_and_nothing_else(kind: str) -> None:
    model, tokenizer = translator(kind)
    # as files of the hub say it; a start token of its own would come before a language
    ours = model.generation_config
    ours.decoder_start_token_id = model.config.decoder_start_token_id
    ours.bos_token_id = tokenizer.bos_token_id
    codes = languages_of(tokenizer) if kind in LANGUAGES else ()
    config = model.config
    found = []
    for target in (LANGUAGES.get(kind, (None, None))[1], codes[0] if codes else None):
        named = {"source_lang": LANGUAGES[kind][0], "target_lang": target} if codes else {}
        encoder = family_of(config).encoder(tokenizer, config, PrepareOptions(**named))
        for row in ROWS:
            ids = encoder.prompt_ids(to_prompt(row, 0))
            end = len(ids) - encoder.start_tokens
            found.append(Prompt(tuple(ids[:end]), None, tuple(ids[end:])))
    wanted = [written_by_hand(model, prompt, tokenizer.eos_token_id, 6) for prompt in found]
    assert len(set(wanted)) > 1
    together = complete(model, tokenizer, found, replace(SOME, most_tokens=6, batch=12))
    assert tokens(together) == wanted
    assert ours.decoder_start_token_id == model.config.decoder_start_token_id


@pytest.mark.parametrize("kind", ["mbart", "nllb", "bart", "marian", "pegasus"])
def test_a_source_beyond_the_encoder_s_positions_is_refused_before_anything_is_written(
    kind: str,
) -> None:
    """Wherever it is asked; the encoder would end in a lookup, or go on where it knows nothing."""
    model, tokenizer = translator(kind)
    positions = model.config.max_position_embeddings
    fits, long = (Prompt((5,) * length, start=(2,)) for length in (positions, positions + 1))
    assert len(complete(model, tokenizer, [fits], replace(SOME, most_tokens=2))) == 1
    said = f"a source takes {positions + 1} tokens, and the model's encoder has {positions} "
    with pytest.raises(DataError, match=f"^CP204 {said}"):
        complete(model, tokenizer, [fits, long], SOME)
    how = Sampling(2)
    with pytest.raises(DataError, match=f"^CP204 {said}"):
        draw_candidates(model, tokenizer, [Draw(0, 0, long, 1)], how, bool, print)
    speaker = Speaker("it", model, tokenizer, None, how, 0, nullcontext)
    assert speaker.room(fits) == 2
    with pytest.raises(DataError, match=f"^CP235 the conversation takes {positions + 1} tokens"):
        speaker.room(long)


def under_autocast(model: torch.nn.Module) -> torch.nn.Module:
    """As accelerate switches it on: within the model's own forward, over float32 weights."""
    plain = model.forward
    model.forward = lambda *a, **k: torch.autocast("cpu", torch.bfloat16)(plain)(*a, **k)
    return model


IN_16_BITS = {"autocast": under_autocast, "weights": lambda model: model.bfloat16()}


@pytest.mark.parametrize("sharper", [6, 60])
@pytest.mark.parametrize("kind", ["qwen2", "gemma3", "llama"])
@pytest.mark.parametrize("where", IN_16_BITS)
def test_the_rounding_of_16_bits_is_not_taken_for_seeing_padding(
    models, tokenizer, kind, sharper, where
):
    """However sharp the model's words are, and so however much a rounding moves them."""
    model = models(kind).float()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(sharper)
    widths = widths_of(IN_16_BITS[where](model))
    complete(model, tokenizer, prompts(), replace(SOME, batch=7))
    # in batches of one length no two of them would meet
    assert any(rows == 7 for rows, _ in widths)


@pytest.mark.parametrize("precision", ["float32", *IN_16_BITS])
@pytest.mark.parametrize("kind", ["bart", "deepseek_v32"])
def test_a_model_that_sees_padding_gets_none(models, tokenizer, kind, precision):
    """Bart's decoder counts positions from the padding on; an indexer picks tokens of it."""
    model, some = models(kind), [*prompts(), *prompts(seed=1)]
    model = IN_16_BITS.get(precision, lambda same: same)(model)
    widths = widths_of(model)
    together = complete(model, tokenizer, some, replace(SOME, batch=7))
    # one forward pass a batch has more than one token: the trials, then two prompts a length
    assert [rows for rows, width in widths if width > 1][-6:] == [2] * 6
    if precision == "float32":
        assert tokens(together) == tokens(complete(model, tokenizer, some, ALONE))


def test_how_much_rounding_changes_is_measured_on_the_model_as_it_is(models):
    model, given = models("qwen2"), torch.arange(3, 12)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(given).logits
        with rounded_otherwise(model, 0):
            moved = model(given).logits
        with rounded_otherwise(model, 0):
            again = model(given).logits
        assert torch.equal(moved, again)
        assert not torch.equal(moved, plain)
        assert torch.equal(model(given).logits, plain)  # no hook is left behind
    with torch.no_grad(), rounded_otherwise(model, 0):  # in 32 bits nothing is moved
        moved = model(given).logits
    with torch.no_grad():
        assert torch.equal(model(given).logits, moved)


def test_a_greedy_text_is_the_likeliest_token_after_token(models, tokenizer):
    """Against one forward pass a token, without cache, mask or padding."""
    model, some = models("qwen2").double().eval(), prompts(3)
    for prompt, completion in zip(some, complete(model, tokenizer, some, SOME), strict=True):
        ids = list(prompt.ids)
        for token in completion.ids:
            with torch.no_grad():
                assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)


def test_a_model_of_one_word_repeats_itself_and_never_ends(models, tokenizer):
    found = complete(one_minded(models, 77), tokenizer, prompts(3), replace(SOME, most_tokens=23))
    assert tokens(found) == [(77,) * 23] * 3
    assert not any(one.ended for one in found)
    assert repetition(found[0].ids) == pytest.approx(1 - 1 / 20)


def test_a_model_that_ends_at_once_writes_nothing(models, tokenizer):
    found = complete(one_minded(models, 2), tokenizer, prompts(3), SOME)
    assert [(one.ids, one.text, one.ended) for one in found] == [((), "", True)] * 3


def test_every_end_that_the_model_names_is_an_end(models, tokenizer):
    model = one_minded(models, 77)
    model.generation_config.eos_token_id = [2, 77]
    assert [one.ended for one in complete(model, tokenizer, prompts(2), SOME)] == [True, True]


def test_what_a_models_files_say_of_decoding_is_left_aside(models, tokenizer):
    model = models("qwen2")
    plain = tokens(complete(model, tokenizer, prompts(), SOME))
    for name, value in {
        "repetition_penalty": 5.0,
        "do_sample": True,
        "temperature": 9.0,
        "top_k": 3,
        "no_repeat_ngram_size": 1,
    }.items():
        setattr(model.generation_config, name, value)
    assert tokens(complete(model, tokenizer, prompts(), SOME)) == plain
    assert model.generation_config.repetition_penalty == 5.0


def test_samples_are_those_of_their_seed(models, tokenizer):
    model, hot = models("qwen2"), replace(SOME, temperature=1.5)
    first = complete(model, tokenizer, prompts(), hot)
    assert {one.kind for one in first} == {"sampled"}
    assert tokens(complete(model, tokenizer, prompts(), hot)) == tokens(first)
    assert tokens(complete(model, tokenizer, prompts(), replace(hot, seed=5))) != tokens(first)


@pytest.mark.parametrize("change", [{"temperature": 1e-4}, {"temperature": 1.0, "top_p": 1e-6}])
def test_cold_or_narrow_samples_are_greedy(models, tokenizer, change):
    model = models("qwen2")
    greedy = tokens(complete(model, tokenizer, prompts(), SOME))
    assert tokens(complete(model, tokenizer, prompts(), replace(SOME, **change))) == greedy


def test_samples_follow_the_models_own_distribution(models, tokenizer):
    """First tokens of 4,000 samples against the softmax, by chi squared."""
    model, prompt = models("qwen2", vocab_size=16, bos_token_id=0).eval(), Prompt((1, 5, 3))
    with torch.no_grad():
        logits = model(torch.tensor([prompt.ids])).logits[0, -1].double()
    expected = torch.softmax(logits / 3.0, 0) * 4000
    way = Decoding(most_tokens=1, temperature=3.0, batch=4000)
    # copies of one prompt; a text that ends at once has no token
    found = complete(model, tokenizer, [prompt] * 4000, way)
    firsts = torch.tensor([one.ids[0] if one.ids else 2 for one in found])
    seen = torch.bincount(firsts, minlength=16).double()
    # 15 degrees of freedom: 1 in 10^6 lies above 55
    assert float(((seen - expected) ** 2 / expected).sum()) < 55


def test_mode_and_random_state_are_as_before(models, tokenizer):
    model = models("qwen2").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    complete(model, tokenizer, prompts(), replace(SOME, temperature=1.0))
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert not any(p.grad is not None for p in model.parameters())


def test_after_the_prompt_one_token_at_a_time_also_with_checkpointed_activations(models, tokenizer):
    model = models("qwen2").train()
    # newer releases of transformers renamed it
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model.config.use_cache = False  # as a trainer leaves it
    widths = widths_of(model)
    complete(model, tokenizer, [Prompt((1, 5, 9))], replace(SOME, most_tokens=4))
    assert widths[0] == (1, 3)
    assert set(widths[1:]) == {(1, 1)}
    assert model.training


def test_an_adapter_writes_as_what_it_makes_of_its_model(models, tokenizer):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    adapted = peft.get_peft_model(models("qwen2").double(), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 1)
    written = tokens(complete(adapted, tokenizer, prompts(), SOME))
    with adapted.disable_adapter():
        assert tokens(complete(adapted, tokenizer, prompts(), SOME)) != written
    merged = adapted.merge_and_unload()
    assert tokens(complete(merged, tokenizer, prompts(), SOME)) == written


def test_a_text_stops_where_the_models_positions_do(models, tokenizer):
    model = models("gpt2", n_positions=16, max_position_embeddings=16)
    found = complete(model, tokenizer, prompts(3, longest=12), replace(SOME, most_tokens=50))
    assert max(len(one.ids) for one in found) == 4
    with pytest.raises(DataError, match="CP204 a prompt takes 16 tokens"):
        complete(model, tokenizer, prompts(3, longest=16), SOME)


def test_that_texts_end_early_is_said_once(models, tokenizer, caplog, monkeypatch):
    monkeypatch.setattr("counterpoint.evaluation.room._said", set())
    model = models("gpt2", n_positions=16, max_position_embeddings=16)
    for _ in range(2):
        complete(model, tokenizer, prompts(3, longest=12), replace(SOME, most_tokens=50))
    said = [record.getMessage() for record in caplog.records if "texts end" in record.getMessage()]
    assert said == ["texts end after 4 tokens: a prompt takes 12 of the model's 16 positions"]


def test_no_prompt_makes_no_text(models, tokenizer):
    assert complete(models("qwen2"), tokenizer, [], SOME) == []


# Beams

BEAMS = replace(SOME, beams=3)


def best_of_all(model: torch.nn.Module, prompt: Prompt, length: int, end: int) -> tuple[int, ...]:
    """The text of the highest mean log-probability of all that end, or are as long as they may."""
    found: dict[tuple[int, ...], float] = {}
    texts: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(length):
        longer = []
        for ids, score in texts:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt.ids, *ids]])).logits[0, -1]
            for token, logp in enumerate(logits.double().log_softmax(-1).tolist()):
                whole = (*ids, token), score + logp
                if token == end:
                    found[whole[0]] = whole[1] / len(whole[0])
                longer += [whole] * (token != end)
        texts = longer
    found |= {ids: score / len(ids) for ids, score in texts}
    best = max(found, key=lambda ids: found[ids])
    return best[:-1] if best[-1] == end else best


def test_with_as_many_beams_as_there_are_texts_the_best_of_all_is_found(models, tokenizer):
    model = models("qwen2", vocab_size=8, bos_token_id=0).double().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(0.3)  # unsure, so that likely beginnings have unlikely ends
    some = [Prompt(tuple(token % 8 for token in prompt.ids)) for prompt in prompts(8, longest=6)]
    way = Decoding(most_tokens=3, batch=512, beams=64)
    found = tokens(complete(model, tokenizer, some, way))
    assert found == [best_of_all(model, prompt, 3, end=2) for prompt in some]
    assert found != tokens(complete(model, tokenizer, some, replace(way, beams=1)))


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma2", "gpt2", "mistral", "opt", "mamba"])
def test_beams_of_prompts_of_unlike_lengths_are_as_if_each_were_alone(models, tokenizer, kind):
    model = models(kind).to(torch.float32 if kind in NEED_EAGER else torch.float64)
    model.generation_config.eos_token_id = [*range(2, 384, 2)]  # texts end at unlike lengths
    widths = widths_of(model)
    together = complete(model, tokenizer, prompts(), replace(BEAMS, batch=21))
    assert any(rows == 21 for rows, _ in widths)
    assert {one.kind for one in together} == {"beams"}
    assert tokens(together) == tokens(
        complete(model, tokenizer, prompts(), replace(BEAMS, batch=1))
    )
    assert len({len(ids) for ids in tokens(together)}) > 1


def sources(kind: str, tokenizer, count: int = 5) -> list[Prompt]:
    """Sources of unlike lengths, and what the decoder begins with."""
    languages = dict(zip(("source_lang", "target_lang"), LANGUAGES.get(kind, ()), strict=False))
    config = translator(kind)[0].config
    encoder = family_of(config).encoder(tokenizer, config, PrepareOptions(**languages))
    return prompts_of(list(iter_pairs(prepare(ROWS[:count], encoder))), tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_decoder_writes_after_what_it_is_given_and_nothing_else(kind):
    """Greedily: the likeliest token after token, one pass each; by beams: as each alone."""
    model, own = translator(kind, torch.float64)
    some = sources(kind, own)
    for row, prompt, completion in zip(ROWS, some, complete(model, own, some, SOME), strict=False):
        assert completion.prompt.replace("▁", " ").strip().endswith(row["prompt"])
        ids = list(prompt.start)
        for token in (*completion.ids, *[own.eos_token_id] * completion.ended):
            given = {
                "input_ids": torch.tensor([prompt.ids]),
                "decoder_input_ids": torch.tensor([ids]),
            }
            with torch.no_grad():
                assert int(model(**given).logits[0, -1].argmax()) == token
            ids.append(token)
    together = complete(model, own, some, replace(BEAMS, batch=21))
    assert tokens(together) == tokens(complete(model, own, some, replace(BEAMS, batch=1)))


def test_one_beam_is_greedy(models, tokenizer):
    model = models("qwen2").double()
    assert replace(SOME, beams=1).kind == "greedy"
    more = complete(model, tokenizer, prompts(), replace(SOME, beams=1))
    assert tokens(more) == tokens(complete(model, tokenizer, prompts(), SOME))


@pytest.mark.parametrize("broken", [True, False])
def test_a_cache_that_does_not_follow_its_beams_is_left_out(models, tokenizer, monkeypatch, broken):
    model, some = models("qwen2").double(), prompts()
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    right = tokens(complete(model, tokenizer, some, BEAMS))
    if broken:
        monkeypatch.setattr(DynamicCache, "reorder_cache", lambda cache, beams: None)
    widths = widths_of(model)
    assert tokens(complete(model, tokenizer, some, BEAMS)) == right
    # without a cache every pass is over the whole of the texts
    assert (widths[-1][1] > 1) is broken


def test_beams_are_rows_of_a_batch(models, tokenizer):
    model = models("qwen2")
    widths = widths_of(model)
    complete(model, tokenizer, prompts(), replace(SOME, batch=8, beams=4))
    of_texts = [rows for rows, width in widths if width == 1][-7:]
    assert set(of_texts) == {4}  # the seventh prompt; two before it
    assert max(rows for rows, _ in widths) == 12  # the three of the trial
