"""``--model FILE.gguf``: dequantised as transformers does it, trained, saved as any other model."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from counterpoint import CPOConfig, ModelError, SetupError
from counterpoint.models.gguf_header import read_gguf_header
from counterpoint.models.loading import load_config, load_model, load_tokenizer
from counterpoint.models.reference import reference_identity
from tests.cli.conftest import PAIRS, Command, write_pairs
from tests.gguf_on_the_spot import KINDS, write_gguf

RUN = ("--dataset", "pairs.jsonl", "--per_device_train_batch_size", "2", "--learning_rate", "1e-3")
EVERY = ("--max_steps", "4", "--save_steps", "2")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, gpt2_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A folder with a GGUF file of each type, each in a folder of its own, and pairs."""
    folder = tmp_path_factory.mktemp("gguf")
    for kind in KINDS:
        (folder / kind).mkdir()
        write_gguf(folder / kind / "tiny.gguf", gpt2_tokenizer, kind)
    write_pairs(folder / "pairs.jsonl", PAIRS)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "here"


def args(**options: object) -> CPOConfig:
    return CPOConfig(output_dir="out", report_to="none", use_cpu=True, bf16=False, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["{}/tiny.gguf", "{}"])
def test_weights_are_those_that_transformers_and_llama_cpp_make_of_them(
    here: Path, kind: str, source: str
) -> None:
    own = load_model(source.format(kind), args())
    theirs = AutoModelForCausalLM.from_pretrained(kind, gguf_file="tiny.gguf", dtype=torch.float32)
    weights = own.state_dict()
    assert {name: value.dtype for name, value in weights.items()} == dict.fromkeys(
        weights, torch.float32
    )
    for name, value in theirs.state_dict().items():
        assert torch.equal(weights[name], value), name
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, own.config.num_hidden_layers)
    filed = {one.name: one for one in gguf.GGUFReader(f"{kind}/tiny.gguf").tensors}
    for name, value in weights.items():
        one = filed[names.get_name(name, try_suffixes=(".weight", ".bias"))]
        numbers = torch.tensor(gguf.dequantize(one.data, one.tensor_type)).reshape(value.shape)
        assert torch.equal(value, numbers), name


def test_a_reference_is_known_by_what_its_file_holds(here: Path, command: Command) -> None:
    """Files of one name in folders of their own: what one said is not taken for the other's."""
    known = {kind: reference_identity(kind) for kind in KINDS}
    assert len({*known.values()}) == len(KINDS)
    assert known == {kind: reference_identity(f"{kind}/tiny.gguf") for kind in KINDS}
    (here / "bare").mkdir()
    shutil.copy("F32/tiny.gguf", here / "bare" / "notes.txt")
    (here / "bare" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="CP301 reference bare has no weights"):
        reference_identity("bare")
    losses = []
    for kind in ("F32", "Q4_0"):
        said = command(
            *("train", "--model", "F32", *RUN, "--loss_type", "dpo", "--reference", kind),
            *("--max_steps", "1", "--logging_steps", "1", "--save_strategy", "no", "--doctor=off"),
            *("--output_dir", f"to-{kind}"),
        )
        assert said.code == 0, said.err
        line = json.loads((here / f"to-{kind}" / "metrics.jsonl").read_text().splitlines()[0])
        losses.append(line["loss"])
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(losses[1] - losses[0]) > 1e-5


def test_the_tokenizer_says_what_the_models_own_folder_says(
    here: Path, gpt2_tokenizer: PreTrainedTokenizerBase
) -> None:
    gpt2_tokenizer.save_pretrained("usual")
    load_config("Q8_0", args()).save_pretrained("usual")
    usual, read = load_tokenizer("usual", args()), load_tokenizer("Q8_0/tiny.gguf", args())
    for pair in PAIRS:
        text = str(pair["prompt"]) + str(pair["chosen"])
        assert read(text)["input_ids"] == usual(text)["input_ids"]
    assert read.eos_token_id == gpt2_tokenizer.eos_token_id


def test_the_tokenizer_is_saved_as_it_is(here: Path, gpt2_tokenizer: Any) -> None:
    """transformers' rules for a folder of Qwen's split numbers, which those for its file do not."""
    write_gguf(Path("chat.gguf"), gpt2_tokenizer, chat_template="{{ messages[0].content }}")
    read = load_tokenizer("chat.gguf", args())
    read.save_pretrained("saved")
    shutil.copy("Q8_0/tiny.gguf", "saved.gguf")
    load_model("saved.gguf", args()).save_pretrained("saved")
    again = load_tokenizer("saved", args())
    for text in (*(f"{one['prompt']}{one['chosen']}" for one in PAIRS), " a  b\n\nc 12345 ﬁ"):
        assert again(text)["input_ids"] == read(text)["input_ids"]
        assert again.decode(read(text)["input_ids"]) == read.decode(read(text)["input_ids"])
    assert again.chat_template == read.chat_template == "{{ messages[0].content }}"
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(again, name) == getattr(read, name)


def test_a_tokenizer_that_lies_beside_the_file_is_taken_where_the_folder_is_named(
    here: Path, gpt2_tokenizer: PreTrainedTokenizerBase
) -> None:
    gpt2_tokenizer.save_pretrained("Q8_0")
    assert load_tokenizer("Q8_0", args()).get_vocab() == gpt2_tokenizer.get_vocab()


def test_it_trains_is_saved_as_a_usual_folder_and_is_resumed_bit_for_bit(
    command: Command, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = Path("Q8_0/tiny.gguf").read_bytes()
    words = ("train", "--model", "Q8_0/tiny.gguf", *RUN, *EVERY)
    said = command(*words, "--output_dir", "whole")
    assert said.code == 0, said.err
    assert "Q8_0/tiny.gguf is dequantised while it is loaded (16 x Q8_0" in caplog.text
    facts = json.loads(Path("whole/run.json").read_text())
    assert facts["model"] == "tiny.gguf"
    assert facts["dequantized"]["architecture"] == "qwen2"
    assert facts["dequantized"]["types"].keys() == {"Q8_0", "F32"}
    shutil.copytree("whole", "again")
    shutil.rmtree("again/checkpoint-4")
    said = command(*words, "--output_dir", "again", "--resume", "auto")
    assert said.code == 0, said.err
    one, other = (load_file(f"{name}/model.safetensors") for name in ("whole", "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    saved = AutoModelForCausalLM.from_pretrained("whole", dtype=torch.float32)
    assert not hasattr(saved.config, "quantization_config")
    begun = load_model("Q8_0/tiny.gguf", args()).state_dict()
    assert any(not torch.equal(begun[name], value) for name, value in saved.state_dict().items())
    assert AutoTokenizer.from_pretrained("whole").eos_token is not None
    assert Path("Q8_0/tiny.gguf").read_bytes() == before
    # and a folder that was trained is a folder like any other
    words = ("train", "--model", "whole", *RUN, "--max_steps", "1", "--output_dir", "on")
    assert command(*words).code == 0
    assert json.loads(Path("on/run.json").read_text())["dequantized"] is None


def test_every_command_takes_it(command: Command, here: Path) -> None:
    run = ("--model", "Q4_0", *RUN, "--max_steps", "2")
    for words in (
        ("doctor", *run),
        ("plan", *run, "--memory", "4GiB"),
        ("tokens", *run, "--row", "1"),
        ("smoke", *run, "--real", "1"),
        ("evaluate", "Q4_0/tiny.gguf", "--dataset", "pairs.jsonl", "--generate", "2"),
    ):
        said = command(*words)
        # a doctor's 1 is a warning, of the learning rate
        assert said.code <= (words[0] == "doctor"), (words, said.err, said.out)


def test_an_adapter_names_the_file_and_is_trained_on_and_merged(
    command: Command, here: Path
) -> None:
    words = ("train", "--model", "F32/tiny.gguf", *RUN, "--max_steps", "2", "--lora_r", "2")
    said = command(*words, "--output_dir", "lora")
    assert said.code == 0, said.err
    named = json.loads(Path("lora/adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == "F32/tiny.gguf"
    said = command("train", "--model", "lora", *RUN, "--max_steps", "1", "--output_dir", "on")
    assert said.code == 0, said.err
    said = command("merge", "lora", "--out", "merged")
    assert said.code == 0, said.err
    assert Path("merged/model.safetensors").is_file()


def test_random_weights_of_its_shape(command: Command, here: Path) -> None:
    words = ("train", "--model", "F16", *RUN, "--max_steps", "1", "--output_dir", "random")
    said = command(*words, "--from_scratch")
    assert said.code == 0, said.err


# What is refused


def test_an_adapter_beside_the_file_is_not_put_on_it(here: Path) -> None:
    Path("Q8_0/adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(ModelError, match="CP301 an adapter lies beside"):
        load_config("Q8_0/tiny.gguf", args())


def test_several_files_in_a_folder(command: Command, here: Path) -> None:
    shutil.copy("Q4_0/tiny.gguf", "Q8_0/another.gguf")
    said = command("doctor", "--model", "Q8_0", *RUN)
    assert "CP530" in said.err + said.out
    assert said.code == 2
    with pytest.raises(SetupError, match=r"^CP530 .* as in --model Q8_0/another.gguf"):
        load_config("Q8_0", args())


def test_what_lies_beside_a_model_is_no_model(here: Path) -> None:
    shutil.copy("Q4_0/tiny.gguf", "Q8_0/mmproj-tiny.gguf")
    assert load_config("Q8_0", args()).hidden_size == 32


def test_a_folder_with_the_usual_weights_is_a_usual_folder(
    here: Path, gpt2_tokenizer: PreTrainedTokenizerBase
) -> None:
    load_model("F32", args()).save_pretrained("both")
    gpt2_tokenizer.save_pretrained("both")
    shutil.copy("Q4_0/tiny.gguf", "both/tiny.gguf")
    model = load_model("both", args())
    assert torch.equal(model.lm_head.weight, load_model("F32", args()).lm_head.weight)


@pytest.mark.parametrize("by", ["name", "content"])
def test_a_part_of_a_model(here: Path, gpt2_tokenizer: PreTrainedTokenizerBase, by: str) -> None:
    Path("parts").mkdir()
    name = "tiny-00001-of-00002.gguf" if by == "name" else "tiny.gguf"
    write_gguf(Path("parts") / name, gpt2_tokenizer, parts=2 if by == "content" else 0)
    if by == "name":
        shutil.copy(Path("parts") / name, "parts/tiny-00002-of-00002.gguf")
    for load in (load_config, load_tokenizer):
        with pytest.raises(SetupError, match=r"CP531 .* llama-gguf-split --merge"):
            load("parts", args())


def test_an_architecture_that_nobody_reads(
    here: Path, gpt2_tokenizer: PreTrainedTokenizerBase
) -> None:
    write_gguf(Path("odd.gguf"), gpt2_tokenizer, architecture="wavtokenizer-dec")
    with pytest.raises(SetupError, match=r"CP533 .* wavtokenizer-dec"):
        load_config("odd.gguf", args())


def test_a_file_that_is_cut_anywhere(here: Path) -> None:
    whole = Path("F16/tiny.gguf").read_bytes()
    cuts = [0, 3, 4, 20, 24, 60, 200, 1000, len(whole) // 8, len(whole) // 2, len(whole) - 40]
    for cut in cuts:
        Path("cut.gguf").write_bytes(whole[:cut])
        with pytest.raises(SetupError, match="CP532 "):
            load_config("cut.gguf", args())
        with pytest.raises(SetupError, match="CP532 "):
            load_tokenizer("cut.gguf", args())


def test_a_file_of_another_kind_or_release(here: Path) -> None:
    whole = Path("F16/tiny.gguf").read_bytes()
    for content, why in (
        (b"PK\x03\x04" + whole[4:], "does not begin with GGUF"),
        (whole[:4] + struct.pack("<I", 1) + whole[8:], "of version 1"),
        (whole[:4] + struct.pack(">I", 3) + whole[8:], "of version 50331648"),
        (whole[:8] + struct.pack("<QQ", 2**60, 2**60) + whole[24:], "ends within its header"),
    ):
        Path("wrong.gguf").write_bytes(content)
        with pytest.raises(SetupError, match=f"CP532 .*{why}"):
            load_config("wrong.gguf", args())


def test_bits_that_are_flipped_make_an_error_of_ours_or_none(here: Path) -> None:
    """Of the header; what the weights hold, nobody can know."""
    whole = bytearray(Path("Q8_0/tiny.gguf").read_bytes())
    for place in range(4, 400, 3):
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        Path("flipped.gguf").write_bytes(broken)
        # any other error than ours fails the test
        with contextlib.suppress(SetupError):
            read_gguf_header(Path("flipped.gguf"))


def test_without_the_package_the_command_that_installs_it_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("counterpoint.models.gguf_files.find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"^CP502 .*pip install .*gguf>="):
        load_config("Q8_0", args())


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--load_in_4bit", "--lora_r", "2"], "CP104 load_in_4bit quantises weights"),
        (["--revision", "main"], "CP104 revision=main would do nothing: Q8_0 is a folder"),
    ],
)
def test_what_cannot_be_meant(command: Command, here: Path, words: list[str], wrong: str) -> None:
    said = command("train", "--model", "Q8_0", *RUN, "--output_dir", "x", *words)
    assert said.code == 2
    assert wrong in said.err, said.err
