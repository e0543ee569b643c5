"""A raw set becomes pairs: in order, cached by content, every lost row and token in the account."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import logging
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerFast

from counterpoint.data import cache
from counterpoint.data.options import PrepareOptions
from counterpoint.data.prepare import Prepared, iter_pairs, prepare
from counterpoint.errors import ConfigError, DataError, ModelError, SetupError
from tests.tokenizers_on_the_spot import CHATML, byte_level

GOOD = [{"prompt": f"Say {n}:", "chosen": f" {n} yes", "rejected": " no"} for n in range(6)]
EMPTY = {"prompt": "Say:", "chosen": " ", "rejected": " no"}
SAME = {"prompt": "Say:", "chosen": " no", "rejected": " no"}
LONG = {"prompt": "Say " + "word " * 60, "chosen": " yes", "rejected": " no"}
DROP = PrepareOptions(invalid_rows="drop", max_length=40)


class Counting(PreTrainedTokenizerFast):
    """Counts the texts that it is given."""

    calls = 0

    def __call__(self, text: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().__call__(text, **kwargs)


@pytest.fixture
def tokenizer() -> Counting:
    return Counting(
        tokenizer_object=byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        eos_token="<|im_end|>",
        chat_template=CHATML,
    )


def texts(prepared: Prepared, tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, str, str]]:
    pairs = list(iter_pairs(prepared))
    return [tuple(tokenizer.decode(x) for x in (p.prompt, p.chosen, p.rejected)) for p in pairs]


def stream(rows: list[dict]) -> IterableDataset:
    return IterableDataset.from_generator(_yield, gen_kwargs={"rows": rows})


def _yield(rows: list[dict]) -> Iterator[dict]:
    yield from rows


SOURCES = {"a list": list, "a Dataset": Dataset.from_list, "a stream": stream, "an iterator": iter}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_set_gives_the_same_pairs_in_order(
    tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    prepared = prepare(SOURCES[kind](GOOD), tokenizer)
    assert texts(prepared, tokenizer) == [
        (f"Say {n}:", f" {n} yes<|im_end|>", " no<|im_end|>") for n in range(6)
    ]
    assert [pair.row for pair in iter_pairs(prepared)] == list(range(6))


@pytest.mark.parametrize("kind", ["a list", "a stream"])
def test_the_account_adds_up(tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    rows = [*GOOD[:2], EMPTY, SAME, LONG, EMPTY, GOOD[2]]
    prepared = prepare(SOURCES[kind](rows), tokenizer, DROP, name="train")
    pairs = list(iter_pairs(prepared))
    counts = prepared.counts.as_dict()
    assert [pair.row for pair in pairs] == [0, 1, 6]
    assert (counts["rows"], counts["kept"]) == (7, 3)
    assert counts["dropped"] == {"CP203": 2, "CP204": 1, "CP205": 1}
    assert counts["examples"]["CP203"].startswith("CP203 row 2, field chosen")
    for part in ("prompt", "chosen", "rejected"):
        assert counts["tokens"][part] == sum(len(getattr(pair, part)) for pair in pairs)
    assert json.loads(json.dumps(counts)) == counts
    assert prepared.counts.summary().startswith("train: 3 of 7 rows")


@pytest.mark.parametrize("kind", ["a list", "a stream"])
def test_every_cut_is_counted(tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    options = PrepareOptions(max_length=12, truncation="prompt_start", max_completion_length=2)
    whole = prepare([LONG], tokenizer, PrepareOptions(max_length=999)).counts.tokens
    prepared = prepare(SOURCES[kind]([LONG]), tokenizer, options)
    (pair,) = iter_pairs(prepared)
    counts = prepared.counts
    for part in ("prompt", "chosen", "rejected"):
        assert counts.cut_tokens[part] == whole[part] - len(getattr(pair, part))
        assert counts.cut_rows[part] == (whole[part] > len(getattr(pair, part)))
    assert counts.cut_rows["prompt"] == 1


def test_sides_that_cutting_makes_equal_are_kept_and_counted(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [{"prompt": "a", "chosen": " the same start b", "rejected": " the same start c"}]
    options = PrepareOptions(max_completion_length=1)
    assert prepare(rows, tokenizer, options).counts.same_rows == 1


def test_tokens_merging_over_the_boundary_are_counted(
    merging_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [{"prompt": "Q:", "chosen": "ax", "rejected": "bx"}]
    counts = prepare(rows, merging_tokenizer).counts
    assert (counts.boundary_rows, counts.boundary_tokens) == (1, 1)


def test_weight_and_margin_arrive(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{**GOOD[0], "weight": 0.5, "margin": 2}]
    (pair,) = iter_pairs(prepare(rows, tokenizer))
    assert (pair.weight, pair.margin) == (0.5, 2.0)


def test_the_longest_prompt_and_completion_fill_the_budget_exactly(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    size = len(tokenizer(LONG["prompt"])["input_ids"])
    options = PrepareOptions(max_length=size + 1)
    (pair,) = iter_pairs(prepare([LONG], tokenizer, options))
    assert (len(pair.prompt), len(pair.chosen), len(pair.rejected)) == (size, 1, 1)


# Refusals


def test_the_first_bad_row_stops_and_the_rest_is_counted(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(DataError) as caught:
        prepare([GOOD[0], SAME, EMPTY, EMPTY], tokenizer, name="train")
    assert caught.value.code == "CP205"
    assert caught.value.message.startswith("train, row 1, field chosen: ")
    assert "3 of its 4 rows cannot be used (2 × CP203, 1 × CP205)" in caught.value.message
    assert 'invalid_rows="drop"' in caught.value.message


def test_a_stream_stops_at_its_first_bad_row(tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = iter_pairs(prepare(stream([GOOD[0], EMPTY, GOOD[1]]), tokenizer, name="eval"))
    assert next(pairs).row == 0
    with pytest.raises(DataError, match=r"CP203 eval, row 1, field chosen"):
        next(pairs)


@pytest.mark.parametrize("kind", ["a list", "a stream"])
def test_the_drop_policy_drops_long_rows_even_where_bad_rows_stop(
    tokenizer: PreTrainedTokenizerFast, kind: str
) -> None:
    options = PrepareOptions(max_length=40, truncation="drop")
    prepared = prepare(SOURCES[kind]([GOOD[0], LONG]), tokenizer, options)
    assert [pair.row for pair in iter_pairs(prepared)] == [0]
    assert prepared.counts.as_dict()["dropped"] == {"CP204": 1}


def test_a_prompt_without_room_is_refused_with_its_size(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    size = len(tokenizer(LONG["prompt"])["input_ids"])
    with pytest.raises(DataError, match=r"CP204 .*row 0: the prompt takes \d+ of 40 tokens") as got:
        prepare([LONG], tokenizer, PrepareOptions(max_length=40))
    assert f"Raise max_length above {size}" in got.value.message


@pytest.mark.parametrize("kind", ["a list", "a Dataset", "a stream"])
def test_a_set_without_rows_is_refused(tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    with pytest.raises(DataError, match=r"CP209 train has no rows"):
        list(iter_pairs(prepare(SOURCES[kind]([]), tokenizer, name="train")))


@pytest.mark.parametrize("kind", ["a list", "a stream"])
def test_a_set_of_bad_rows_only_is_refused(tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    with pytest.raises(DataError, match=r"CP209 none of the 2 rows of .* \(?.*1 × CP203"):
        list(iter_pairs(prepare(SOURCES[kind]([EMPTY, SAME]), tokenizer, DROP)))


def test_missing_columns_stop_before_any_row(tokenizer: Counting) -> None:
    with pytest.raises(DataError, match=r"CP201 train has no column chosen.*prompt, answer"):
        prepare([{"prompt": "a", "answer": "b"}], tokenizer, DROP, name="train")
    assert tokenizer.calls == 0


def test_a_tokenizer_that_cannot_serve_stops_even_where_bad_rows_drop(
    gpt2_tokenizer: PreTrainedTokenizerFast,
) -> None:
    chat = {
        "prompt": [{"role": "user", "content": "Hi?"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    with pytest.raises(DataError, match="CP208"):
        prepare([chat], gpt2_tokenizer, DROP)
    endless = copy.deepcopy(gpt2_tokenizer)
    endless.eos_token = None
    with pytest.raises(ModelError, match="CP302"):
        prepare(GOOD, endless, DROP)


def test_a_single_token_that_nothing_predicts_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [{"prompt": "", "chosen": "a b", "rejected": "b b"}]
    options = PrepareOptions(max_completion_length=1)
    with pytest.raises(DataError, match=r"CP214 .*row 0"):
        prepare(rows, tokenizer, options)
    assert prepare(rows, tokenizer).counts.kept == 1


def test_completions_of_the_same_tokens_are_refused() -> None:
    from tokenizers import normalizers

    backend = byte_level(["<|im_end|>"])
    backend.normalizer = normalizers.Lowercase()
    blind = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    with pytest.raises(DataError, match=r"CP205 .*row 0: the tokenizer makes the same"):
        prepare([{"prompt": "a", "chosen": " B", "rejected": " b"}], blind)


@pytest.mark.parametrize("option", [{"truncation": "middle"}, {"invalid_rows": "ignore"}])
def test_an_option_that_does_not_exist_is_refused(option: dict) -> None:
    with pytest.raises(ConfigError, match="CP102"):
        PrepareOptions(**option)


# The cache


def test_equal_content_is_read_from_the_cache(tokenizer: Counting) -> None:
    first = prepare([*GOOD, EMPTY], tokenizer, DROP)
    calls = tokenizer.calls
    again = prepare(Dataset.from_list([*GOOD, EMPTY]), tokenizer, DROP)
    shuffled_back = Dataset.from_list([EMPTY, *GOOD][::-1]).select([*range(5, -1, -1), 6])
    other_way = prepare(shuffled_back, tokenizer, DROP)
    assert tokenizer.calls == calls > 0
    assert again.pairs.to_list() == first.pairs.to_list() == other_way.pairs.to_list()
    assert again.counts == first.counts


def test_columns_that_mean_nothing_do_not_change_the_key(tokenizer: Counting) -> None:
    prepare(GOOD, tokenizer)
    calls = tokenizer.calls
    prepare([{**row, "score": 1.0} for row in GOOD], tokenizer)
    assert tokenizer.calls == calls


def test_dropping_bad_rows_reuses_what_refusing_them_made(tokenizer: Counting) -> None:
    with pytest.raises(DataError):
        prepare([*GOOD, EMPTY], tokenizer)
    calls = tokenizer.calls
    prepare([*GOOD, EMPTY], tokenizer, PrepareOptions(invalid_rows="drop"))
    assert tokenizer.calls == calls


def other_rows(tokenizer: Counting) -> Prepared:
    return prepare([*GOOD[:-1], {**GOOD[-1], "chosen": " else"}], tokenizer)


def other_order(tokenizer: Counting) -> Prepared:
    return prepare(GOOD[::-1], tokenizer)


def other_limit(tokenizer: Counting) -> Prepared:
    return prepare(GOOD, tokenizer, PrepareOptions(max_length=999))


def other_policy(tokenizer: Counting) -> Prepared:
    return prepare(GOOD, tokenizer, PrepareOptions(truncation="drop"))


def other_template(tokenizer: Counting) -> Prepared:
    tokenizer.chat_template = CHATML + " "
    return prepare(GOOD, tokenizer)


def other_eos(tokenizer: Counting) -> Prepared:
    tokenizer.eos_token = "<|endoftext|>"
    return prepare(GOOD, tokenizer)


def other_vocabulary(tokenizer: Counting) -> Prepared:
    tokenizer.add_tokens(["yes"])
    return prepare(GOOD, tokenizer)


OTHERS = [
    other_rows,
    other_order,
    other_limit,
    other_policy,
    other_template,
    other_eos,
    other_vocabulary,
]


@pytest.mark.parametrize("change", OTHERS)
def test_what_changes_the_pairs_misses_the_cache(tokenizer: Counting, change: Any) -> None:
    prepare(GOOD, tokenizer)
    calls = tokenizer.calls
    change(tokenizer)
    assert tokenizer.calls > calls


def test_a_tokenizer_s_padding_and_truncation_do_not_matter(tokenizer: Counting) -> None:
    first = prepare(GOOD, tokenizer)
    calls = tokenizer.calls
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    assert prepare(GOOD, tokenizer).pairs.to_list() == first.pairs.to_list()
    assert tokenizer.calls == calls


@pytest.mark.parametrize("harm", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"noise"])
def test_a_damaged_cache_is_made_anew(
    tokenizer: Counting, harm: Any, caplog: pytest.LogCaptureFixture
) -> None:
    first = prepare(GOOD, tokenizer).pairs.to_list()
    (kept,) = Path(os.environ["COUNTERPOINT_CACHE"]).glob("*.arrow")
    content = kept.read_bytes()
    kept.unlink()
    kept.write_bytes(harm(content))
    with caplog.at_level(logging.WARNING):
        assert prepare(GOOD, tokenizer).pairs.to_list() == first
    assert "damaged" in caplog.text


def test_a_folder_that_cannot_be_written_costs_only_the_cache(
    tokenizer: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("COUNTERPOINT_CACHE", str(tmp_path / "file" / "cache"))
    assert prepare(GOOD, tokenizer).counts.kept == 6
    monkeypatch.setenv("COUNTERPOINT_CACHE", "/proc/self")  # exists, and takes no files
    assert prepare(GOOD, tokenizer).counts.kept == 6


def test_a_full_disk_costs_only_the_cache(
    tokenizer: Counting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_write", full)
    assert prepare(GOOD, tokenizer).counts.kept == 6
    assert "No space left" in caplog.text
    assert list(Path(os.environ["COUNTERPOINT_CACHE"]).iterdir()) == []


def test_caching_can_be_switched_off(tokenizer: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(os.environ["COUNTERPOINT_CACHE"])
    monkeypatch.setenv("COUNTERPOINT_CACHE", "off")
    prepare(GOOD, tokenizer)
    monkeypatch.setenv("COUNTERPOINT_CACHE", str(folder))
    monkeypatch.setattr(datasets, "is_caching_enabled", lambda: False)
    prepare(GOOD, tokenizer)
    assert not folder.exists()


def test_writers_at_one_time_leave_one_whole_file(tokenizer: Counting) -> None:
    rows, results = GOOD * 20, []
    writers = [
        threading.Thread(target=lambda: results.append(prepare(rows, tokenizer).pairs.to_list()))
        for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(results) == 4
    assert all(result == results[0] for result in results)
    names = [path.name for path in Path(os.environ["COUNTERPOINT_CACHE"]).iterdir()]
    assert len(names) == 1
    assert names[0].endswith(".arrow")


def test_processes_share_the_work_and_the_cache(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [*GOOD, EMPTY] * 3
    two = prepare(rows, chatml_tokenizer, PrepareOptions(invalid_rows="drop", num_proc=2))
    one = prepare(rows, chatml_tokenizer, PrepareOptions(invalid_rows="drop"))
    assert two.pairs.to_list() == one.pairs.to_list()
    assert two.counts == one.counts
    names = [path.name for path in Path(os.environ["COUNTERPOINT_CACHE"]).iterdir()]
    assert len(names) == 1


def test_a_transform_on_reading_is_what_is_trained_on(tokenizer: Counting) -> None:
    def shout(batch: dict) -> dict:
        return {
            "prompt": batch["q"],
            "chosen": [text.upper() for text in batch["a"]],
            "rejected": batch["b"],
        }

    raw = Dataset.from_dict({"q": ["Say:"], "a": [" yes"], "b": [" no"]}).with_transform(shout)
    assert texts(prepare(raw, tokenizer), tokenizer)[0][1] == " YES<|im_end|>"


# What is no fault of the row is neither kept nor dropped

CHAT = {
    "prompt": [{"role": "user", "content": "Hi?"}],
    "chosen": [{"role": "assistant", "content": "Good."}],
    "rejected": [{"role": "assistant", "content": "Bad."}],
}


def test_rows_refused_for_an_old_package_are_read_once_it_is_new(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import chat_template_utils

    chat_template_utils._compile_jinja_template.cache_clear()
    monkeypatch.setattr("jinja2.__version__", "3.0.0")
    with pytest.raises(SetupError, match=r"CP502 no chat template can be rendered here: .*jinja2"):
        prepare([CHAT], tokenizer, DROP)
    monkeypatch.undo()
    assert prepare([CHAT], tokenizer, DROP).counts.kept == 1


@pytest.mark.parametrize("processes", [None, 2])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(28, "No space left on device"), r"CP222 .*row \d+ could not be rendered"),
        (MemoryError(), r"CP217 .*row \d+: the chat template wants more memory"),
    ],
)
def test_an_error_of_the_machine_stops_and_leaves_nothing_in_the_cache(
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    raised: str,
    processes: int | None,
) -> None:
    def fails(*_: Any, **__: Any) -> str:
        raise error

    options = PrepareOptions(invalid_rows="drop", num_proc=processes)
    with monkeypatch.context() as patch:
        patch.setattr(Counting, "apply_chat_template", fails)
        with pytest.raises(DataError, match=raised):
            prepare([CHAT] * 2, tokenizer, options)
        with pytest.raises(DataError, match=raised):
            list(iter_pairs(prepare(stream([CHAT] * 2), tokenizer, options)))
    assert list(Path(os.environ["COUNTERPOINT_CACHE"]).iterdir()) == []
    assert prepare([CHAT] * 2, tokenizer, options).counts.kept == 2


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_an_interrupted_reading_leaves_nothing_behind(
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("counterpoint.data.encode.to_preference_row", fails)
        with pytest.raises((DataError, KeyboardInterrupt)) as caught:
            prepare(GOOD, tokenizer, DROP)
    assert error is KeyboardInterrupt or caught.value.code == "CP222"
    assert list(Path(os.environ["COUNTERPOINT_CACHE"]).iterdir()) == []
    assert prepare(GOOD, tokenizer, DROP).counts.kept == 6


@pytest.mark.parametrize("package", ["jinja2", "tokenizers", "transformers", "sentencepiece"])
def test_another_version_of_what_renders_misses_the_cache(
    tokenizer: Counting, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    prepare(GOOD, tokenizer)
    calls, version = tokenizer.calls, importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "99.0" if name == package else version(name)
    )
    prepare(GOOD, tokenizer)
    assert tokenizer.calls > calls


# A turn that the prompt begins and the completions continue

USER, BEGUN = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "The capital is"}
PREFILLED: dict[str, dict[str, Any]] = {
    "messages": {
        "prompt": [USER, BEGUN],
        "chosen": [{"role": "assistant", "content": " Paris."}],
        "rejected": [{"role": "assistant", "content": " Rome."}],
    },
    "one message a side": {
        "prompt": [USER, BEGUN],
        "chosen": {"role": "assistant", "content": " Paris."},
        "rejected": {"role": "assistant", "content": " Rome."},
    },
    "texts": {"prompt": [USER, BEGUN], "chosen": " Paris.", "rejected": " Rome."},
    "an implicit prompt": {
        "chosen": [USER, BEGUN, {"role": "assistant", "content": " Paris."}],
        "rejected": [USER, BEGUN, {"role": "assistant", "content": " Rome."}],
    },
    "whole conversations beside their prompt": {
        "prompt": [USER, BEGUN],
        "chosen": [USER, {"role": "assistant", "content": "The capital is Paris."}],
        "rejected": [USER, {"role": "assistant", "content": "The capital is Rome."}],
    },
    "ShareGPT": {
        "conversations": [
            {"from": "human", "value": "Hi?"},
            {"from": "gpt", "value": "The capital is"},
        ],
        "chosen": {"from": "gpt", "value": " Paris."},
        "rejected": {"from": "gpt", "value": " Rome."},
    },
    "messages beside texts": {"messages": [USER, BEGUN], "chosen": " Paris.", "rejected": " Rome."},
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("shape", PREFILLED)
def test_of_a_turn_that_the_prompt_begins_only_the_continuation_carries_loss(
    tokenizer: PreTrainedTokenizerFast, shape: str, streamed: bool
) -> None:
    rows = [PREFILLED[shape]]
    prepared = prepare(stream(rows) if streamed else rows, tokenizer)
    prompt = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nThe capital is"
    assert texts(prepared, tokenizer) == [(prompt, " Paris.<|im_end|>", " Rome.<|im_end|>")]
    assert prepared.counts.boundary_rows == 0


def test_trl_s_name_of_the_prompt_costs_neither_memory_nor_cache(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    prepare(GOOD, tokenizer)
    pairs = prepare([*GOOD, EMPTY], tokenizer, PrepareOptions(invalid_rows="drop")).pairs
    whole = prepare(GOOD, tokenizer).pairs
    assert pairs["prompt_input_ids"][:] == pairs["prompt_ids"][:] == whole["prompt_ids"][:]
    table = whole.data
    ours, theirs = (table.column(n).chunk(0) for n in ("prompt_ids", "prompt_input_ids"))
    assert [buffer and buffer.address for buffer in ours.buffers()] == [
        buffer and buffer.address for buffer in theirs.buffers()
    ]
    for path in cache.folder().glob("*.arrow"):
        assert "prompt_input_ids" not in Dataset.from_file(str(path)).column_names
    assert len(pickle.dumps(whole)) < 10_000  # of the files' names: workers map them again
