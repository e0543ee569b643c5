"""What comes from strangers is data: no code of it runs, none of it reaches out, all of it ends."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from counterpoint import ConfigError, CPOConfig, DataError, ModelError
from counterpoint.data import bounds, chat, files
from counterpoint.data.cells import MOST_CHARACTERS
from counterpoint.data.encode import encode_rows
from counterpoint.data.encoder import TextEncoder
from counterpoint.data.options import Limits, PrepareOptions
from counterpoint.data.prepare import prepare
from counterpoint.data.sources import load
from counterpoint.models.loading import load_config, load_model
from tests.cli.conftest import PAIRS, Command, command, pattern, tree, workshop, write_pairs
from tests.models_on_the_spot import make_model

__all__ = ["command", "pattern", "workshop"]

ROW = {"prompt": "a", "chosen": "b", "rejected": "c"}
TURNS = {
    "prompt": [{"role": "user", "content": "a"}],
    "chosen": [{"role": "assistant", "content": "b"}],
    "rejected": [{"role": "assistant", "content": "c"}],
}


class Bomb:
    """Opened as a pickle, it writes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.proof),))


def options(**more: Any) -> CPOConfig:
    return CPOConfig(output_dir="out", use_cpu=True, **more)


# Pickles and code


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """A model whose weights are a pickle."""
    folder, model = tmp_path / "pickled", make_model("qwen2", vocab_size=64)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def test_pickled_weights_are_refused_unless_they_are_allowed(pickled: Path) -> None:
    with pytest.raises(ModelError, match=r"CP310 .*as pickles.*safetensors.*--allow_pickle"):
        load_config(str(pickled), options())
    allowed = options(allow_pickle=True)
    load_config(str(pickled), allowed)
    model = load_model(str(pickled), allowed)
    kept = make_model("qwen2", vocab_size=64).state_dict()
    assert all(torch.equal(weight, kept[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("allowed", [False, True])
def test_a_pickle_bomb_never_goes_off(pickled: Path, tmp_path: Path, allowed: bool) -> None:
    proof = tmp_path / "went off"
    with (pickled / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"lm_head.weight": Bomb(proof)}, file)
    args = options(allow_pickle=allowed)
    for loads in (load_config, load_model)[0 if not allowed else 1 :]:
        with pytest.raises(ModelError, match=r"CP301|CP310"):
            loads(str(pickled), args)
    assert not proof.exists()


def test_safetensors_are_taken_where_both_are_there(pickled: Path, tmp_path: Path) -> None:
    make_model("qwen2", vocab_size=64).save_pretrained(pickled)
    with (pickled / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Bomb(tmp_path / "went off"), file)
    load_config(str(pickled), options(allow_pickle=True))
    load_model(str(pickled), options(allow_pickle=True))
    assert not (tmp_path / "went off").exists()


def test_an_adapter_beside_a_model_is_refused_and_not_put_on(tmp_path: Path) -> None:
    """transformers would load it without a word, from a pickle if there is nothing else."""
    make_model("qwen2", vocab_size=64).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "other/model"}')
    with pytest.raises(ModelError, match=r"CP301 .*holds an adapter"):
        load_config(str(tmp_path), options())


@pytest.mark.parametrize(
    ("keywords", "error", "said"),
    [
        ({"use_safetensors": False}, ConfigError, "CP104 .*allow_pickle"),
        ({"weights_only": False}, ConfigError, "CP104 .*allow_pickle"),
        ({"trust_remote_code": True}, ConfigError, "CP104 .*trust_remote_code"),
        ({"adapter_kwargs": {}}, ConfigError, "CP104 .*lora_r"),
        ({"attn_implementation": "some/kernel"}, ModelError, "CP311 .*some/kernel.* code of the"),
        ({"attn_implementation": {"": "a/b:c"}}, ModelError, "CP311 .*a/b:c.* code of the hub"),
    ],
)
def test_no_keyword_of_a_model_opens_another_door(
    tmp_path: Path, keywords: dict[str, Any], error: type[Exception], said: str
) -> None:
    make_model("qwen2", vocab_size=64).save_pretrained(tmp_path)
    with pytest.raises(error, match=said):
        load_config(str(tmp_path), options(model_init_kwargs=keywords))


def test_a_model_that_brings_code_is_refused_with_the_switch(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "odd", "auto_map": {"AutoConfig": "odd.OddConfig"}}'
    )
    (tmp_path / "odd.py").write_text("import os\nos.mkdir('went off')\n")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match=r"CP311 .*code of its own.*--trust_remote_code"):
        load_config(str(tmp_path), options())
    assert not Path("went off").exists()


# Folders


def test_a_link_out_of_a_folder_of_data_is_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path / "secret.jsonl", PAIRS)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(
        DataError, match=r"CP218 .*train\.jsonl leads out of .*name the file itself"
    ):
        load(folder)
    assert len(load(folder / "train.jsonl")) == len(PAIRS)  # named by the user


def test_links_within_a_folder_and_within_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    cache = tmp_path / "datasets--a--b"
    snapshot = cache / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    write_pairs(cache / "blobs" / "5678", PAIRS)
    (snapshot / "train.jsonl").symlink_to("../../blobs/5678")
    assert len(load(snapshot)) == len(PAIRS)
    (snapshot / "test.jsonl").symlink_to("train.jsonl")
    assert set(load(snapshot)) == {"train", "test"}


@pytest.mark.parametrize("name", ["../other/data-00000-of-00001.arrow", "/etc/hostname"])
def test_a_saved_data_set_that_lists_files_outside_is_refused(tmp_path: Path, name: str) -> None:
    Dataset.from_list(PAIRS).save_to_disk(tmp_path / "other")
    Dataset.from_list(PAIRS).save_to_disk(tmp_path / "data")
    state = tmp_path / "data" / "state.json"
    content = json.loads(state.read_text())
    content["_data_files"][0]["filename"] = name
    state.write_text(json.dumps(content))
    with pytest.raises(DataError, match="CP218 "):
        load(tmp_path / "data")


def test_a_dict_of_saved_sets_that_names_folders_outside_is_refused(tmp_path: Path) -> None:
    Dataset.from_list(PAIRS).save_to_disk(tmp_path / "other")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dataset_dict.json").write_text('{"splits": ["../other"]}')
    with pytest.raises(DataError, match="CP218 "):
        load(folder)


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"splits": 3}', '{"splits": [3]}', "[" * 5000, '{"splits": ["gone"]}']
)
def test_a_saved_data_set_whose_lists_are_broken_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset_dict.json").write_text(content)
    with pytest.raises(DataError, match="CP210 "):
        load(tmp_path)


def test_a_template_cannot_read_a_file(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    for template in (
        "{% include '/etc/hostname' %}",
        "{% import '/etc/hostname' as x %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ):
        tokenizer = _with(chatml_tokenizer, template)
        (problem,) = _encode([TURNS], tokenizer)["problem"]
        assert problem.startswith("CP213 row 0: the chat template fails"), template


# Rows and files that are too large


def test_a_row_of_a_hundred_megabytes_is_cut_short(workshop: Path, command: Command) -> None:
    with (workshop / "pairs.jsonl").open("w") as file:
        file.write('{"prompt": "a", "chosen": "b", "rejected": "')
        for _ in range(100):
            file.write("x" * 2**20)
        file.write('"}\n')
    began = time.process_time()
    answer = command("train", "--model", "model", "--dataset", "pairs.jsonl", "--doctor", "off")
    assert answer.code == 2
    assert answer.err.startswith("counterpoint: CP216 pairs.jsonl, line 1: longer than 32 MiB")
    assert answer.err.count("\n") == 1
    assert time.process_time() - began < 10
    assert not (workshop / "runs").exists()


def test_a_row_too_large_is_refused_alone_and_the_others_are_kept(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [ROW, {**ROW, "rejected": "x" * (MOST_CHARACTERS + 1)}, {**ROW, "prompt": "d"}]
    rows.append({**ROW, "chosen": [{"role": "assistant", "content": "x" * MOST_CHARACTERS}]})
    found = prepare(rows, chatml_tokenizer, PrepareOptions(invalid_rows="drop"))
    assert list(found.pairs["row"]) == [0, 2]
    assert found.counts.by_code() == "2 × CP216"


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
@pytest.mark.parametrize("opener", [gzip.open, lzma.open])
def test_a_file_that_unpacks_without_end_is_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, opener: Any
) -> None:
    monkeypatch.setattr(files, "ALWAYS_READ", 2**16)
    monkeypatch.setattr(files, "MOST_GROWTH", 20)
    path = tmp_path / f"bomb.{kind}.{'gz' if opener is gzip.open else 'xz'}"
    line = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    start = {"jsonl": "", "json": "[", "csv": "prompt,chosen,rejected\n"}[kind]
    line = {"jsonl": line, "json": line.replace("\n", ","), "csv": "a,b,c\n"}[kind]
    with opener(path, "wt") as file:
        file.write(start)
        file.write(line * 20_000)
    with pytest.raises(DataError, match=r"CP210 .*unpacks to more than 20 times its size"):
        load(path)


DEEP = "[" * 100_000
NUMBER = "9" * 5000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("deep.jsonl", DEEP),
        ("deep.json", DEEP),
        ("deep.jsonl", '{"chosen": ' + DEEP),
        ("number.jsonl", f'{{"chosen": {NUMBER}}}'),
        ("number.json", f'[{{"chosen": {NUMBER}}}]'),
        ("cell.csv", f'chosen,rejected\n"{"x" * (2**25 + 1)}",b\n'),
    ],
)
def test_a_bomb_in_a_data_file_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=r"CP210|CP216"):
        load(tmp_path / name)


@pytest.mark.parametrize("depth", [50, 300, 600, 950])
@pytest.mark.parametrize("column", ["chosen", "prompt", "tools", "chat_template_kwargs"])
def test_a_cell_nested_to_any_depth_is_a_refused_row(
    chatml_tokenizer: PreTrainedTokenizerFast, depth: int, column: str
) -> None:
    for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        for cell in (text, json.loads(text) if depth < 900 else text):
            row = {**ROW, column: cell}
            encoded = _encode([row], chatml_tokenizer)
            assert encoded["problem"][0] == "" or encoded["problem"][0].startswith("CP2")


def test_a_deep_row_of_a_list_is_refused_with_its_number(
    chatml_tokenizer: PreTrainedTokenizerFast,
) -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(DataError, match=r"CP202 .*row 1, field chosen"):
        prepare([ROW, {**ROW, "chosen": deep}], chatml_tokenizer)


# Templates that do not end


def _with(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    other = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token
    )
    other.chat_template = template
    return other


def _encode(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast) -> dict[str, list[Any]]:
    names = {name for row in rows for name in row}
    batch = {name: [row.get(name) for row in rows] for name in names}
    return encode_rows(batch, range(len(rows)), encoder=TextEncoder(tokenizer), limits=Limits())


LOOPS = {
    "nested loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "a power": "{{ ((7 ** 99999) ** 999) ** 9 }}",
}
SWELLS = {
    "doubling": (
        "{% set n = namespace(t='xxxxxxxx') %}{% for i in range(40) %}{% set n.t = n.t ~ n.t %}"
        "{% endfor %}{{ n.t }}"
    ),
    "a product": "{{ 'x' * 99999999999 }}",
    "a list": "{{ ([0] * 9999999999)|length }}",
    "padding": "{{ 'x'|center(99999999999) }}",
    "a loop that writes": "{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}",
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_template_that_loops_is_stopped(
    chatml_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(chat, "MOST_SECONDS", 0.3)
    began = time.process_time()
    with pytest.raises(DataError, match=r"CP217 row 0: .*not done after 0\.3 seconds of computing"):
        _encode([TURNS], _with(chatml_tokenizer, LOOPS[name]))
    assert time.process_time() - began < 5


@pytest.mark.skipif(bounds.resource is None, reason="no limit of memory on this system")
@pytest.mark.parametrize("name", SWELLS)
def test_a_template_that_swells_is_stopped(
    chatml_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(
        "counterpoint.data.encode.bounded_memory", lambda: bounds.bounded_memory(2**28)
    )
    with pytest.raises(DataError, match=r"CP217 row 0: .*(more memory|characters of it)"):
        _encode([TURNS], _with(chatml_tokenizer, SWELLS[name]))


def test_the_limits_are_lifted_afterwards(chatml_tokenizer: PreTrainedTokenizerFast) -> None:
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)
    for template in (None, "{{ 'x' * 99999999999 }}", "{% x %}"):
        tokenizer = _with(chatml_tokenizer, template) if template else chatml_tokenizer
        try:
            _encode([TURNS], tokenizer)
        except DataError as error:
            assert error.code == "CP217"  # noqa: PT017 - one of three
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGVTALRM)) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_a_looping_template_ends_the_run_in_one_line_though_rows_are_dropped(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropping row after row would take as long as looping."""
    monkeypatch.setattr(chat, "MOST_SECONDS", 0.3)
    write_pairs(workshop / "pairs.jsonl", [TURNS] * 50)
    (workshop / "loop.jinja").write_text(LOOPS["nested loops"])
    before = tree(workshop)
    for doctor in ("on", "off"):
        words = f"--chat_template loop.jinja --invalid_rows drop --output_dir out --doctor {doctor}"
        answer = command("train", "--model", "model", "--dataset", "pairs.jsonl", *words.split())
        assert answer.code == 2
        assert "CP217" in answer.err.splitlines()[-1]
        assert "Traceback" not in answer.err
        assert tree(workshop) == before


# Tokenizers


def test_a_tokenizer_made_to_be_slow_is_an_error_with_a_code(
    workshop: Path, command: Command
) -> None:
    """A regular expression that tries every way to split a run of letters."""
    folder = workshop / "tokenizer"  # beside a config.json, transformers may know better
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (workshop / "model" / name).rename(folder / name)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    slow = {"type": "Split", "pattern": {"Regex": "(x|xx)+$"}, "behavior": "Isolated"}
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{**slow, "invert": False}, content["pre_tokenizer"]],
    }
    path.write_text(json.dumps(content))
    write_pairs(workshop / "pairs.jsonl", [*PAIRS, {**ROW, "chosen": "x" * 60 + "y"}])
    before = tree(workshop)
    words = "--model model --tokenizer tokenizer --dataset pairs.jsonl --output_dir out"
    answer = command("train", *words.split(), "--doctor", "off")
    assert answer.code == 2
    last = answer.err.splitlines()[-1]  # the library itself says that it panicked, before
    assert last.startswith("counterpoint: CP312 the tokenizer gives up on one of ")
    assert tree(workshop) == before


# Configurations


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: &a [x, x, x]\n" + "".join(f"b{n}: &b{n} [*{p}, *{p}, *{p}]\n" for n, p in enumerate(
            ["a", *(f"b{k}" for k in range(20))])), "values"),
        ("x: " + "[" * 100_000, "inside each other"),
        ("x: " + "{a: " * 100_000, "inside each other"),
        ("x: [" + "1, " * 200_000 + "]", "values"),
        ("- " * 100_000, "inside each other"),
        ("x: " + "y" * 2**20, "larger than 1 MiB"),
        ("beta: " + "9" * 100_000, "should be"),
        ("max_steps: 1e999999999", "should be"),
        ("model_init_kwargs: {a: " + "9" * 10_000 + "}", "are missing"),
        ("lora_target_modules: {a: " + "9" * 10_000 + "}", "should be"),
        ("beta: !!python/object/apply:os.mkdir [out]", "tag"),
    ],
)  # fmt: skip
def test_a_bomb_in_a_configuration_is_cut_short(
    workshop: Path, command: Command, content: str, said: str
) -> None:
    (workshop / "bomb.yaml").write_text(content)
    before, began = tree(workshop), time.process_time()
    answer = command("train", "bomb.yaml")
    assert answer.code == 2
    assert answer.err.startswith("counterpoint: CP1")
    assert said in answer.err
    assert len(answer.err) < 1000
    assert answer.err.count("\n") == 1
    assert tree(workshop) == before
    assert time.process_time() - began < 10


@pytest.mark.skipif(bounds.resource is None, reason="no limit of memory on this system")
def test_bounds_of_several_threads_leave_no_limit_behind() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    first, second = bounds.bounded_memory(), bounds.bounded_memory()
    first.__enter__()
    second.__enter__()
    assert resource.getrlimit(resource.RLIMIT_AS) != before
    first.__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_AS) != before
    second.__exit__(None, None, None)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
