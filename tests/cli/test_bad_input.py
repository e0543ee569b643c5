"""What a user gets wrong, end to end: a code, one line, exit 2, and nothing written."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.cli.conftest import PAIRS, Command, tree, write_pairs

GOOD = ["--model", "model", "--dataset", "pairs.jsonl", "--output_dir", "out", "--max_steps", "1"]

Spoil = Callable[[Path], object]


def rows(*changed: dict[str, Any]) -> Spoil:
    """``pairs.jsonl`` with one more row for each of these, changed from a good one."""
    return only(*PAIRS, *({**PAIRS[0], **row} for row in changed))


def only(*kept: dict[str, Any]) -> Spoil:
    """``pairs.jsonl`` with these rows and no others."""
    return lambda folder: write_pairs(folder / "pairs.jsonl", [*kept])


def text(name: str, content: str | bytes) -> Spoil:
    """A file with this content."""
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def without(*names: str) -> Spoil:
    """The folder less these files."""

    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def edited(name: str, **changes: Any) -> Spoil:
    """A JSON file with other values."""

    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def less_weights(folder: Path) -> None:
    """The model without its final norm."""
    path = folder / "model" / "model.safetensors"
    weights = load_file(path)
    weights.pop("model.norm.weight")
    save_file(weights, path, metadata={"format": "pt"})


def cut(name: str, keep: int) -> Spoil:
    """The first bytes of a file."""

    def shorten(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:keep])

    return shorten


def pickled(folder: Path) -> None:
    """A model with pickled weights only."""
    (folder / "model" / "model.safetensors").rename(folder / "model" / "pytorch_model.bin")


def sharded(folder: Path) -> None:
    """A model whose second file of weights is gone."""
    (folder / "model" / "model.safetensors").rename(
        folder / "model" / "model-00001-of-00002.safetensors"
    )
    index = {
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    }
    (folder / "model" / "model.safetensors.index.json").write_text(json.dumps(index))


def adapter(folder: Path) -> None:
    """A folder with an adapter only."""
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")


def occupied(folder: Path) -> None:
    """A folder of an earlier run."""
    (folder / "out").mkdir()
    (folder / "out" / "run.json").write_text("{}")


def nothing(folder: Path) -> None:
    """No change."""


VOCABULARY = ("tokenizer.json",)
CHAT = [{"role": "user", "content": "Hi"}]
ASKED = [{"role": "user", "content": "Why?"}]

# name, what is wrong, further words, code, what the line says
GALLERY: list[tuple[str, Spoil, str, str, str]] = [
    # what was asked for
    ("an unknown option", nothing, "--bta 1", "CP101", "did you mean beta?"),
    ("an unknown loss", nothing, "--loss_type kto", "CP102", "is not one of"),
    ("an unknown dtype", nothing, "--dtype int8", "CP102", "is not one of auto"),
    ("a word for a number", nothing, "--beta high", "CP103", "should be a number"),
    ("a beta of zero", nothing, "--beta 0", "CP103", "beta=0"),
    ("a rank of zero", nothing, "--lora_r 0", "CP103", "lora_r=0 should be at least 1"),
    ("a sure dropout", nothing, "--lora_r 2 --lora_dropout 1", "CP103", "in [0, 1)"),
    ("a margin for sigmoid", nothing, "--simpo_gamma 1", "CP104", "would do nothing"),
    ("an adapter's scale alone", nothing, "--lora_alpha 8", "CP104", "add lora_r"),
    ("a split of no set", nothing, "--eval_dataset_split test", "CP104", "eval_dataset"),
    (
        "the dtype twice",
        nothing,
        '--dtype float32 --model_init_kwargs {"dtype":"float32"}',
        "CP104",
        "dtype is given as an option and in model_init_kwargs",
    ),
    ("a refused option", nothing, "--label_smoothing_factor 0.1", "CP105", "is refused"),
    ("evaluation of nothing", nothing, "--eval_strategy epoch", "CP107", "eval_dataset is missing"),
    ("a best model of nothing", nothing, "--do_eval", "CP107", "eval_dataset is missing"),
    ("a stream without an end", nothing, "--streaming --max_steps -1", "CP107", "max_steps"),
    ("half the sets named", nothing, "--eval_dataset a=pairs.jsonl b", "CP103", "name=path"),
    ("both names of data", nothing, "--datasets pairs.jsonl", "CP104", "datasets with dataset"),
    ("a set of weight 0", nothing, "--datasets pairs.jsonl:0", "CP103", "a weight above 0"),
    ("a set without a name", nothing, '--datasets [{"weight":2}]', "CP107", "a set has no path"),
    ("all rows held out", nothing, "--eval_share 1", "CP103", "above 0 and below 1"),
    ("no rows at all", nothing, "--max_rows 0", "CP103", "max_rows=0 should be at least 1"),
    (
        "held out beside a set of its own",
        nothing,
        "--eval_share 0.5 --eval_dataset pairs.jsonl",
        "CP104",
        "eval_share with eval_dataset",
    ),
    ("a share of a stream", nothing, "--eval_share 0.5 --streaming", "CP104", "streaming"),
    ("no checkpoint there", nothing, "--resume_from_checkpoint latest", "CP103", "no complete"),
    ("no checkpoint at all", nothing, "--resume_from_checkpoint model", "CP103", "no checkpoint"),
    # the data
    ("a missing column", only({"prompt": "a", "chosen": "b"}), "", "CP201", "rejected"),
    ("null", rows({"chosen": None}), "", "CP202", "row 12"),
    ("a number for a text", rows({"chosen": 7}), "", "CP202", "row 12"),
    ("an empty completion", rows({"rejected": ""}), "", "CP203", "row 12"),
    ("a blank completion", rows({"chosen": " \n"}), "", "CP203", "row 12"),
    (
        "a prompt over the budget",
        rows({"prompt": "why " * 99}),
        "--max_length 64",
        "CP204",
        "row 12",
    ),
    (
        "one prompt, to be on one side",
        only(*({**PAIRS[0], "rejected": f" {n}"} for n in range(3))),
        "--eval_share 0.5",
        "CP238",
        "have 1 that can be read",
    ),
    (
        "no preference",
        rows(
            {
                **{"chosen": None, "rejected": None, "preference_strength": 0},
                **{"response_1": "a", "response_2": "b"},
            }
        ),
        "",
        "CP239",
        "row 12",
    ),
    ("a loss of three, a row of two", rows({}), "--loss_type tpo", "CP236", "row 0"),
    ("the same twice", rows({"rejected": PAIRS[0]["chosen"]}), "", "CP205", "row 12"),
    (
        "two prompts",
        only(
            {
                "chosen": [*CHAT, {"role": "assistant", "content": "A"}],
                "rejected": [*ASKED, {"role": "assistant", "content": "B"}],
            }
        ),
        "",
        "CP206",
        "row 0",
    ),
    (
        "the user has the last word",
        only({"prompt": CHAT, "chosen": CHAT, "rejected": ASKED}),
        "",
        "CP207",
        "row 0",
    ),
    (
        "no chat template",
        only(
            {
                "prompt": CHAT,
                "chosen": [{"role": "assistant", "content": "A"}],
                "rejected": [{"role": "assistant", "content": "B"}],
            }
        ),
        "",
        "CP208",
        "chat template",
    ),
    ("no rows", text("pairs.jsonl", ""), "", "CP209", "no rows"),
    ("a broken line", text("pairs.jsonl", '{"prompt": "a"\n{}\n'), "", "CP210", "line 1"),
    (
        "a cut gzip",
        text("p.jsonl.gz", gzip.compress(b"{}\n" * 99)[:20]),
        "--dataset p.jsonl.gz",
        "CP210",
        "p.jsonl.gz",
    ),
    ("no Parquet", text("p.parquet", "PAR0"), "--dataset p.parquet", "CP210", "not Parquet"),
    ("an unknown kind", text("p.xlsx", "x"), "--dataset p.xlsx", "CP210", "no known kind"),
    ("a file that is not there", nothing, "--dataset gone.jsonl", "CP211", "gone.jsonl"),
    ("a data set of the hub, offline", nothing, "--dataset some/pairs", "CP211", "some/pairs"),
    ("a split that is not there", nothing, "--dataset_split test", "CP211", "split 'test'"),
    (
        "bad rows to evaluate on",
        text("e.jsonl", '{"a": 1}\n'),
        "--eval_dataset e.jsonl",
        "CP201",
        "eval",
    ),
    ("no file to evaluate on", nothing, "--eval_dataset gone.jsonl", "CP211", "gone.jsonl"),
    ("a negative weight", only({**PAIRS[0], "weight": -1.0}), "", "CP212", "row 0"),
    # model and tokenizer
    ("no such folder", nothing, "--model ./gone", "CP301", "there is no such folder"),
    ("a model of the hub, offline", nothing, "--model some/model", "CP301", "is no folder here"),
    ("a file for a model", nothing, "--model pairs.jsonl", "CP301", "is a file"),
    (
        "an empty folder",
        lambda folder: (folder / "e").mkdir(),
        "--model e",
        "CP301",
        "it has no config.json",
    ),
    ("no weights", nothing, "--model bare", "CP301", "add --from_scratch"),
    ("an adapter without a base", adapter, "--model adapter", "CP301", "names no base model"),
    ("pickled weights", pickled, "", "CP310", "as pickles"),
    ("a missing shard", sharded, "", "CP301", "lacks 1 of 2 files of weights"),
    ("cut weights", cut("model/model.safetensors", 100), "", "CP301", "SafetensorError"),
    ("a missing weight", less_weights, "", "CP301", "lacks 1 of its weights (model.norm.weight)"),
    ("a config that is not JSON", text("model/config.json", "{"), "", "CP301", "configuration"),
    (
        "a config of no model",
        text("bare/config.json", "{}"),
        "--model bare --from_scratch",
        "CP301",
        "configuration",
    ),
    (
        "an impossible config",
        edited("bare/config.json", num_attention_heads=0),
        "--model bare --from_scratch",
        "CP301",
        "bare",
    ),
    (
        "no tokenizer",
        without(*(f"model/{name}" for name in VOCABULARY)),
        "",
        "CP301",
        "holds no tokenizer",
    ),
    ("a tokenizer elsewhere, not there", nothing, "--tokenizer ./gone", "CP301", "no such folder"),
    ("a broken tokenizer", text("model/tokenizer.json", "{"), "", "CP301", "tokenizer"),
    ("no such template", nothing, "--chat_template gone.jinja", "CP301", "gone.jinja"),
    (
        "no end of sequence",
        edited("model/tokenizer_config.json", eos_token=None),
        "",
        "CP302",
        "end-of-sequence",
    ),
    ("a blank set to evaluate on", nothing, "--eval_dataset=", "CP211", "is blank"),
    (
        "an encoder-decoder of another kind",
        text("bare/config.json", '{"model_type": "led"}'),
        "--model bare --from_scratch",
        "CP306",
        "it is not known what its decoder begins with; t5, ",
    ),
    (
        "a language for a decoder",
        nothing,
        "--target_lang deu_Latn",
        "CP104",
        "is for encoder-decoders of many languages",
    ),
    (
        "an encoder",
        text("bare/config.json", '{"model_type": "bert"}'),
        "--model bare --from_scratch",
        "CP306",
        "sees the words after a word",
    ),
    (
        "a model of images",
        text("bare/config.json", '{"model_type": "vit"}'),
        "--model bare --from_scratch",
        "CP306",
        "no causal language model",
    ),
    (
        "a model of images and text of another kind",
        text("bare/config.json", '{"model_type": "vipllava"}'),
        "--model bare --from_scratch",
        "CP306",
        "sees pictures, and is of a kind of which it is not known",
    ),
    (
        "layers that are not there",
        nothing,
        "--lora_r 2 --lora_target_modules qq",
        "CP307",
        "does not fit",
    ),
    # the machine
    ("a folder below a file", nothing, "--output_dir pairs.jsonl/out", "CP501", "is a file"),
    ("a file for a folder", nothing, "--output_dir pairs.jsonl", "CP501", "is a file"),
    ("a folder of the kernel's", nothing, "--output_dir /proc/out", "CP501", "/proc"),
    ("a folder with a run", occupied, "", "CP504", "holds a run already"),
]


@pytest.mark.parametrize(
    ("spoil", "words", "code", "said"), [case[1:] for case in GALLERY], ids=[c[0] for c in GALLERY]
)
def test_a_mistake_is_one_coded_line_and_leaves_nothing_behind(
    workshop: Path, command: Command, spoil: Spoil, words: str, code: str, said: str
) -> None:
    spoil(workshop)
    before = tree(workshop.parent)
    answer = command("train", *GOOD, "--doctor", "off", *words.split())
    assert answer.err.startswith(f"counterpoint: {code} "), answer.err
    assert said in answer.err
    assert answer.err.count("\n") == 1
    assert "Traceback" not in answer.err
    assert (answer.code, answer.out) == (2, "")
    assert tree(workshop.parent) == before


@pytest.mark.parametrize("blank", ["model: model\ndataset:\n", "model: ''\ndataset: pairs.jsonl\n"])
def test_a_blank_name_is_not_the_current_folder(
    workshop: Path, command: Command, blank: str
) -> None:
    (workshop / "run.yaml").write_text(blank)
    answer = command("train", "run.yaml", "--output_dir", "out", "--doctor", "off")
    assert answer.err.startswith("counterpoint: CP107 ")
    assert not (workshop / "out").exists()


@pytest.mark.parametrize("missing", ["--model", "--dataset"])
def test_a_run_without_model_or_data_says_what_to_give(command: Command, missing: str) -> None:
    words = [pair for pair in zip(GOOD[::2], GOOD[1::2], strict=True) if pair[0] != missing]
    answer = command("train", *(word for pair in words for word in pair))
    assert answer.code == 2
    assert answer.err.startswith(f"counterpoint: CP107 {missing[2:]} (")
    assert answer.err.count("\n") == 1


def test_a_missing_peft_is_named_with_its_command(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    answer = command("train", *GOOD, "--lora_r", "2", "--doctor", "off")
    assert answer.code == 2
    assert answer.err == (
        "counterpoint: CP502 lora_r needs the package peft: python -m pip install 'peft>=0.18'\n"
    )


def test_several_processes_must_be_given_their_folder(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    answer = command("train", "--model", "m", "--dataset", "d")
    assert answer.code == 2
    assert "CP107 output_dir is missing: several processes must agree" in answer.err
