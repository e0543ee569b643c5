"""Rows of encoder-decoders: what is read, what the decoder begins with, what it is to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from counterpoint import ConfigError, DataError, ModelError
from counterpoint.config import CPOConfig
from counterpoint.data import cache
from counterpoint.data.formats import to_prompt
from counterpoint.data.options import Limits, PrepareOptions
from counterpoint.data.prepare import iter_pairs, prepare
from counterpoint.data.row_tokens import tokens_of_row
from counterpoint.data.sources import dataset_from_rows
from counterpoint.data.translation import TranslationEncoder, languages_of
from counterpoint.data.vocabularies import reader_of_sources
from counterpoint.models.family import family_of
from counterpoint.records import TokenPair
from tests.translators_on_the_spot import KINDS, LANGUAGES, ROWS, translator

T5S = ("t5", "flan-t5", "mt5", "umt5")

# What the documentation of each tokenizer says: around a source; before and after a completion.
FRAMES: dict[str, tuple[list[str], list[str], list[str]]] = {
    **dict.fromkeys(T5S, ([], ["</s>"], ["<pad>"])),
    **dict.fromkeys(("marian", "marian-apart"), ([], ["</s>"], ["<pad>"])),
    "pegasus": ([], ["</s>"], ["<pad>"]),
    "bart": (["<s>"], ["</s>"], ["</s>", "<s>"]),
    "nllb": (["eng_Latn"], ["</s>"], ["</s>", "deu_Latn"]),
    "m2m100": (["__en__"], ["</s>"], ["</s>", "__de__"]),
    "mbart": ([], ["</s>", "en_XX"], ["de_DE"]),
    "mbart50": (["en_XX"], ["</s>"], ["</s>", "de_DE"]),
}


def encoder_for_kind(kind: str, **options: Any) -> Any:
    model, tokenizer = translator(kind)
    named = dict(zip(("source_lang", "target_lang"), LANGUAGES.get(kind, ()), strict=False))
    config: Any = model.config
    return family_of(config).encoder(tokenizer, config, PrepareOptions(**{**named, **options}))


def pairs(encoder: Any, rows: Any = ROWS, **options: Any) -> list[TokenPair]:
    return list(iter_pairs(prepare(rows, encoder, PrepareOptions(**options))))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_framed_as_the_tokenizer_says(kind: str) -> None:
    encoder = encoder_for_kind(kind)
    tokenizer, (before, after, start) = encoder.tokenizer, FRAMES[kind]
    names = tokenizer.convert_ids_to_tokens
    assert encoder.start_tokens == len(start)
    if kind in LANGUAGES:
        tokenizer.tgt_lang = LANGUAGES[kind][1]
    for row, pair in zip(ROWS, pairs(encoder), strict=True):
        source = names(list(pair.prompt))
        assert source[: len(before)] == before
        assert source[-len(after) :] == after
        words = list(pair.prompt)[len(before) : -len(after)]
        read = reader_of_sources(tokenizer).decode(words)
        assert read.replace("▁", " ").strip() == row["prompt"]
        assert names(list(pair.start)) == start
        for side in ("chosen", "rejected"):
            said = list(getattr(pair, side))
            own = tokenizer(text_target=row[side], add_special_tokens=False).input_ids
            assert said == [*own, tokenizer.eos_token_id]


def test_literal_ids_of_two_families() -> None:
    nllb = encoder_for_kind("nllb")
    codes = nllb.tokenizer.convert_tokens_to_ids(["eng_Latn", "deu_Latn"])
    (pair,) = pairs(nllb, [{"prompt": "five", "chosen": "fünf", "rejected": "eins"}])
    text = {t: nllb.tokenizer(t, add_special_tokens=False).input_ids for t in ("five", "fünf")}
    assert pair.prompt == [codes[0], *text["five"], 2]
    assert pair.start == [2, codes[1]]
    assert pair.chosen == [*text["fünf"], 2]
    t5 = encoder_for_kind("t5")
    (pair,) = pairs(t5, [{"prompt": "five", "chosen": "fünf", "rejected": "eins"}])
    assert pair.start == [0]
    assert pair.prompt[-1] == pair.chosen[-1] == pair.rejected[-1] == 1


def test_marian_writes_in_the_vocabulary_of_its_targets() -> None:
    encoder = encoder_for_kind("marian")
    (pair,) = pairs(encoder, ROWS[:1])
    as_source = encoder.tokenizer(ROWS[0]["chosen"], add_special_tokens=False).input_ids
    assert list(pair.chosen)[:-1] != as_source
    assert len(pair.chosen) < len(as_source)


def test_a_row_says_its_own_direction() -> None:
    encoder = encoder_for_kind("nllb")
    rows = [
        {**ROWS[0], "source_lang": "deu_Latn", "target_lang": "fra_Latn"},
        {**ROWS[0], "target_lang": "zho_Hans"},
        {**ROWS[0], "source_lang": None, "target_lang": None},
    ]
    names = encoder.tokenizer.convert_ids_to_tokens
    found = [(names(p.prompt[0]), names(p.start[-1])) for p in pairs(encoder, rows)]
    assert found == [("deu_Latn", "fra_Latn"), ("eng_Latn", "zho_Hans"), ("eng_Latn", "deu_Latn")]
    # as with a data set for each direction
    alone = [pair for row in rows for pair in pairs(encoder, [row])]
    assert [pair.prompt for pair in pairs(encoder, rows)] == [pair.prompt for pair in alone]


def test_a_tokenizer_is_left_as_it_was() -> None:
    encoder = encoder_for_kind("mbart50")
    tokenizer = encoder.tokenizer
    before = (tokenizer.src_lang, tokenizer.tgt_lang, tokenizer("five").input_ids)
    table = dataset_from_rows(ROWS)
    key = cache.digest(table, table.column_names, encoder, Limits())
    pairs(encoder, [{**ROWS[0], "source_lang": "fr_XX", "target_lang": "ja_XX"}])
    assert (tokenizer.src_lang, tokenizer.tgt_lang, tokenizer("five").input_ids) == before
    assert cache.digest(table, table.column_names, encoder, Limits()) == key


def test_what_the_tokenizer_was_made_with_counts_last() -> None:
    model, tokenizer = translator("nllb")
    config: Any = model.config
    tokenizer.tgt_lang = "fra_Latn"
    tokenizer.src_lang = "deu_Latn"
    encoder = family_of(config).encoder(tokenizer, config, PrepareOptions())
    names = tokenizer.convert_ids_to_tokens
    assert [names(p.start[-1]) for p in pairs(encoder, ROWS[:1])] == ["fra_Latn"]
    assert [names(p.prompt[0]) for p in pairs(encoder, ROWS[:1])] == ["deu_Latn"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target_lang": "deu_Lat"}, r"CP227 .*field target_lang: 'deu_Lat' is .*are deu_Latn, "),
        ({"source_lang": 7}, r"CP202 .*field source_lang: is of type int; expected the code of a"),
        ({"prompt": " "}, r"CP206 .*row 0 has no source"),
        (
            {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            r"CP202 .*field prompt: is a conversation of 2 turns",
        ),
        ({"prompt": "half a character \ud800"}, r"CP202 .*row 0"),
    ],
)
def test_a_row_that_cannot_be_meant_is_refused(change: dict[str, Any], said: str) -> None:
    row = {**ROWS[0], **change}
    if isinstance(row["prompt"], list):
        row |= {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen",)}
        row["rejected"] = [{"role": "assistant", "content": "other"}]
    with pytest.raises(DataError, match=said):
        pairs(encoder_for_kind("nllb"), [row])


def test_a_language_that_nobody_gave_is_an_error_and_not_a_guess() -> None:
    encoder = encoder_for_kind("nllb", target_lang=None)
    with pytest.raises(DataError, match=r"CP227 .*row 0 says no target language, and neither the"):
        pairs(encoder)
    encoder = encoder_for_kind("nllb", source_lang=None)
    with pytest.raises(DataError, match=r"CP227 .*row 0 says no source language"):
        pairs(encoder)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (
            "nllb",
            {"target_lang": "ger_Latn"},
            r"^CP102 target_lang='ger_Latn' is no language of Nl",
        ),
        ("t5", {"source_lang": "en"}, r"^CP104 source_lang='en' has no meaning: T5Tokenizer has n"),
    ],
)
def test_an_option_that_the_tokenizer_does_not_know_is_refused(
    kind: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        encoder_for_kind(kind, **options)


@pytest.mark.parametrize(
    ("kind", "written", "meant"),
    [
        ("nllb", "en", ["eng_Latn"]),
        ("nllb", "de_DE", ["deu_Latn"]),
        ("nllb", "zh-Hans", ["zho_Hans", "zho_Hant"]),
        ("mbart", "deu_Latn", ["de_DE"]),
    ],
)
def test_a_code_of_another_models_kind_leads_to_that_of_its_language(
    kind: str, written: str, meant: list[str]
) -> None:
    with pytest.raises(ConfigError, match=f"; nearest are {', '.join(meant)}"):
        encoder_for_kind(kind, target_lang=written)
    row = {**ROWS[0], "target_lang": written}
    with pytest.raises(DataError, match=f"CP227 .*; nearest are {', '.join(meant)}"):
        pairs(encoder_for_kind(kind), [row])


def test_a_decoder_has_no_languages(models: Callable[..., Any], chatml_tokenizer: Any) -> None:
    config = models("qwen2").config
    with pytest.raises(ConfigError, match=r"^CP104 target_lang='deu_Latn' is for encoder-decoders"):
        family_of(config).encoder(chatml_tokenizer, config, PrepareOptions(target_lang="deu_Latn"))


def test_a_source_may_stand_in_its_own_column() -> None:
    encoder = encoder_for_kind("t5")
    rows = [
        {"source": row["prompt"], **{s: row[s] for s in ("chosen", "rejected")}} for row in ROWS
    ]
    assert pairs(encoder, rows) == pairs(encoder)
    asked = to_prompt(encoder.named({"source": "five"}, 0), 0)
    assert encoder.prompt_ids(asked) == [*encoder.tokenizer("five").input_ids, 0]


def test_what_two_translations_begin_with_is_no_source() -> None:
    row = {"chosen": "ein Haus", "rejected": "ein Hund"}
    with pytest.raises(DataError, match=r"CP206 .*row 0 has no source"):
        pairs(encoder_for_kind("t5"), [row])


def test_a_run_may_say_that_both_completions_begin_with_the_source() -> None:
    encoder = encoder_for_kind("t5", is_encoder_decoder=True)
    alike = {"prompt": ROWS[0]["prompt"], "chosen": " sieben", "rejected": " acht"}
    given = {side: alike["prompt"] + alike[side] for side in ("chosen", "rejected")}
    assert pairs(encoder, [given]) == pairs(encoder, [alike])
    with pytest.raises(DataError, match=r"CP206 .*row 0.* share no beginning"):
        pairs(encoder, [{"chosen": "ein Haus", "rejected": "drei Haus"}])
    # where other rows have a source, one is missing
    for name in ("prompt", "source"):
        with pytest.raises(DataError, match=r"CP206 .*row 1 has no source"):
            pairs(encoder, [{**given, name: "seven"}, given])
    # a column that may be the source is not passed over
    with pytest.raises(DataError, match=r"CP201 .*row 0 has no prompt, but a column src"):
        pairs(encoder, [{**given, "src": "seven"}])


def test_a_single_turn_is_its_text() -> None:
    encoder = encoder_for_kind("t5")
    spoken = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in ROWS
    ]
    assert pairs(encoder, spoken) == pairs(encoder)


@pytest.mark.parametrize("kind", ["nllb", "mbart", "t5"])
def test_sources_and_completions_are_cut_apart_and_counted(kind: str) -> None:
    encoder = encoder_for_kind(kind)
    whole = pairs(encoder)
    longest = max(len(pair.prompt) for pair in whole)
    before, after, _ = FRAMES[kind]
    for policy in ("prompt_end", "prompt_start"):
        limits = {"max_length": longest - 2, "max_completion_length": 4, "truncation": policy}
        found = prepare(ROWS, encoder, PrepareOptions(**limits))
        for one, other in zip(iter_pairs(found), whole, strict=True):
            assert len(one.prompt) == min(len(other.prompt), longest - 2)
            # what stands around a source stays
            assert list(one.prompt)[: len(before)] == list(other.prompt)[: len(before)]
            assert list(one.prompt)[-len(after) :] == list(other.prompt)[-len(after) :]
            assert one.start == other.start
            assert list(one.chosen) == list(other.chosen)[:4]
        assert found.counts.cut_rows["prompt"] >= 1
        assert found.counts.cut_rows["chosen"] >= 1


def test_a_source_that_is_too_long_is_refused_or_dropped() -> None:
    encoder = encoder_for_kind("t5")
    with pytest.raises(DataError, match=r"CP204 .*row 0: the source takes \d+ of 6 tokens. Raise"):
        pairs(encoder, max_length=6)
    with pytest.raises(DataError, match=r"CP209"):
        pairs(encoder, max_length=6, max_completion_length=2, truncation="drop")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in T5S])
def test_nothing_is_longer_than_the_positions_of_the_model(kind: str) -> None:
    """Whatever the options allow: 128 tokens of a source, and of a row of the decoder."""
    long = {**ROWS[0], "prompt": " ".join([ROWS[0]["prompt"]] * 60)}
    row = {**long, "chosen": " ".join([long["chosen"]] * 200)}
    encoder = encoder_for_kind(kind)
    with pytest.raises(DataError, match=r"CP204 .*row 0: .* encoder has 128 positions. Set trunc"):
        pairs(encoder, [row])
    (pair,) = pairs(encoder, [row], truncation="prompt_end")
    assert len(pair.prompt) == 128
    assert len(pair.start) + len(pair.chosen) - 1 == 128
    shown = tokens_of_row(row, 0, encoder, Limits(truncation="prompt_end"))
    assert sum(piece.cut for piece in shown.prompt) > 0
    model = translator(kind)[0]
    row_of_decoder = torch.tensor([[*pair.start, *pair.chosen[:-1]]])
    with torch.no_grad():
        said = model(input_ids=torch.tensor([[*pair.prompt]]), decoder_input_ids=row_of_decoder)
    assert said.logits.shape[1] == 128


@pytest.mark.parametrize("kind", T5S)
def test_a_t5_has_no_positions_to_run_out_of(kind: str) -> None:
    row = {**ROWS[0], "prompt": " ".join([ROWS[0]["prompt"]] * 60)}
    (pair,) = pairs(encoder_for_kind(kind), [row], max_length=4096)
    assert len(pair.prompt) > 300


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_without_an_end_is_refused(kind: str) -> None:
    model, tokenizer = translator(kind)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="CP302"):
        family_of(model.config).encoder(tokenizer, model.config, PrepareOptions())


def test_two_vocabularies_must_agree_on_where_a_text_ends() -> None:
    model, tokenizer = translator("marian-apart")
    tokenizer.target_encoder["</s>"] = 7
    with pytest.raises(ModelError, match=r"CP302 .* 0 among sources and 7 among targets"):
        family_of(model.config).encoder(tokenizer, model.config, PrepareOptions())


def test_a_text_that_ends_with_eos_gets_no_second_one() -> None:
    encoder = encoder_for_kind("t5")
    (pair,) = pairs(encoder, [{"prompt": "a", "chosen": "drei</s>", "rejected": "zwei"}])
    assert list(pair.chosen).count(encoder.tokenizer.eos_token_id) == 1


def test_languages_are_those_of_the_tokenizer() -> None:
    assert {"eng_Latn", "zho_Hans"} <= set(languages_of(translator("nllb")[1]))
    assert {"en", "de"} <= set(languages_of(translator("m2m100")[1]))
    assert "en_XX" in languages_of(translator("mbart")[1])
    assert languages_of(translator("t5")[1]) == ()


def test_a_marian_of_many_languages_reads_the_target_in_its_source() -> None:
    model, tokenizer = translator("marian")
    tokenizer.supported_language_codes = [">>deu<<", ">>fra<<"]
    config: Any = model.config
    encoder = family_of(config).encoder(tokenizer, config, PrepareOptions(target_lang="deu"))
    assert isinstance(encoder, TranslationEncoder)
    (draft,) = [encoder.draft(pair) for pair in [_row(ROWS[0])]]
    assert draft.texts[0] == f">>deu<< {ROWS[0]['prompt']}"
    (marked,) = [encoder.draft(pair) for pair in [_row({**ROWS[0], "prompt": ">>fra<< one"})]]
    assert marked.texts[0] == ">>fra<< one"
    for quoted in (">> one", ">>one<two", ">> one <<"):  # no mark of a language
        (draft,) = [encoder.draft(pair) for pair in [_row({**ROWS[0], "prompt": quoted})]]
        assert draft.texts[0] == f">>deu<< {quoted}"


def _row(raw: dict[str, Any]) -> Any:
    from counterpoint.data.formats import to_preference_row

    return to_preference_row(raw, 0)


def test_options_reach_the_rows_of_a_run() -> None:
    from counterpoint.models.preparing import encoder_of

    model, tokenizer = translator("nllb")
    args = CPOConfig(
        output_dir="unused", use_cpu=True, source_lang="eng_Latn", target_lang="deu_Latn"
    )
    encoder: Any = encoder_of(model, tokenizer, args)
    assert encoder._default == ("eng_Latn", "deu_Latn")


def test_completions_may_be_longer_than_sources_where_that_is_meant() -> None:
    lengths = {"output_dir": "unused", "max_length": 8, "max_completion_length": 20}
    with pytest.raises(ConfigError, match=r"^CP104 max_completion_length=20 leaves no .*is_enc"):
        CPOConfig(**lengths)
    args = CPOConfig(**lengths, is_encoder_decoder=True)
    row = {"prompt": "a", "chosen": ROWS[2]["chosen"], "rejected": "eins"}
    (pair,) = iter_pairs(prepare([row], encoder_for_kind("t5"), PrepareOptions.of(args)))
    assert 8 < len(pair.chosen) <= 20


@pytest.mark.parametrize("kind", ["marian", "marian-apart"])
def test_tokens_of_a_source_are_named_by_the_vocabulary_of_sources(kind: str) -> None:
    encoder = encoder_for_kind(kind)
    before = encoder.tokenizer.decoder, encoder.tokenizer.separate_vocabs
    shown = tokens_of_row(ROWS[0], 0, encoder, Limits())
    for part, field in ((shown.prompt, "prompt"), (shown.chosen, "chosen")):
        pieces = [piece.token for piece in part if not piece.special]
        assert "".join(pieces).replace("▁", " ").strip() == ROWS[0][field]
    assert (encoder.tokenizer.decoder, encoder.tokenizer.separate_vocabs) == before
