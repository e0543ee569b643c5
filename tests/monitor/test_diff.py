"""``counterpoint diff``: what two saved models or adapters have different, and how it is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file

from counterpoint import ModelError
from counterpoint.cli.main import main
from counterpoint.monitor import weight_files
from counterpoint.monitor.difference import compare_weights
from counterpoint.monitor.weight_files import WeightFiles


def saved(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def difference(before: Path, after: Path):
    with WeightFiles(before) as one, WeightFiles(after) as other:
        return compare_weights(one, other)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two files of three tensors; one entry of one of them differs by 3."""
    tensors = {
        "model.embed_tokens.weight": torch.full((4, 5), 2.0),
        "model.layers.0.mlp.up_proj.weight": torch.zeros(3, 3),
        "model.norm.weight": torch.ones(5, dtype=torch.bfloat16),
    }
    before = saved(tensors, tmp_path / "before.safetensors")
    tensors["model.embed_tokens.weight"][1, 2] = 5.0
    return before, saved(tensors, tmp_path / "after.safetensors")


def test_a_share_a_norm_and_the_largest_change_are_those_of_every_entry(pair):
    found = difference(*pair)
    one = found.tensors["model.embed_tokens.weight"]
    assert (one.group, one.weights, one.moved, one.largest) == ("embeddings", 20, 1 / 20, 3.0)
    assert one.update == pytest.approx(3 / (19 * 4 + 25) ** 0.5)
    assert {name for name, other in found.tensors.items() if not other.moved} == {
        "model.layers.0.mlp.up_proj.weight",
        "model.norm.weight",
    }
    assert found.groups()["all"]["moved"] == pytest.approx(1 / 34)
    assert not found.same


def test_a_large_tensor_is_read_in_parts_with_the_same_result(pair, monkeypatch):
    whole = difference(*pair)
    monkeypatch.setattr(weight_files, "PART", 7)
    in_parts = difference(*pair)
    assert in_parts.as_dict() == whole.as_dict()
    with WeightFiles(pair[0]) as files:
        assert [len(part) for part in files.parts("model.embed_tokens.weight")] == [1] * 4
        assert [len(part) for part in files.parts("model.layers.0.mlp.up_proj.weight")] == [2, 1]


def test_what_is_added_removed_reshaped_or_of_another_dtype_is_named(tmp_path):
    common = torch.tensor([0.5, 1.0])
    before = {"gone": torch.zeros(2, 3), "grown": torch.zeros(2), "cast": common}
    after = {"new": torch.zeros(()), "grown": torch.zeros(3), "cast": common.bfloat16()}
    found = difference(
        saved(before, tmp_path / "a.safetensors"), saved(after, tmp_path / "b.safetensors")
    )
    assert {n: e.shape for n, e in found.removed.items()} == {"gone": (2, 3)}
    assert {n: (e.dtype, e.shape) for n, e in found.added.items()} == {"new": ("F32", ())}
    assert found.shapes == {"grown": ((2,), (3,))}
    assert found.tensors["cast"].dtypes == ("F32", "BF16")
    assert found.tensors["cast"].moved == 0  # one half and one are the same in both
    assert not found.same


def test_a_folder_in_shards_is_the_folder_in_one_piece(models, tmp_path):
    model = models()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    found = difference(tmp_path / "whole", tmp_path / "shards")
    assert found.same
    assert set(found.tensors) == set(model.state_dict())


def test_names_of_a_wrapped_model_are_those_of_the_model(tmp_path):
    one = saved({"a.weight": torch.ones(2)}, tmp_path / "a.safetensors")
    other = saved({"_orig_mod.module.a.weight": torch.ones(2)}, tmp_path / "b.safetensors")
    assert difference(one, other).same


def test_a_merged_adapter_has_moved_what_it_adapts_and_nothing_else(models, tmp_path):
    model = models()
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2))
    adapted.save_pretrained(tmp_path / "first")
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    adapted.save_pretrained(tmp_path / "second")
    adapters = difference(tmp_path / "first", tmp_path / "second")
    assert {one.group for one in adapters.tensors.values()} == {"adapters"}
    assert {n for n, one in adapters.tensors.items() if one.moved} == {
        name for name in adapters.tensors if "lora_B" in name
    }
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = difference(tmp_path / "base", tmp_path / "merged")
    assert {n for n, one in merged.tensors.items() if one.moved} == {
        f"model.layers.{n}.self_attn.q_proj.weight" for n in range(2)
    }
    assert not merged.added
    assert not merged.removed


def test_what_is_no_number_is_the_same_as_itself_only(tmp_path):
    nan, inf = float("nan"), float("inf")
    one = saved({"a": torch.tensor([nan, nan, inf, 1.0])}, tmp_path / "a.safetensors")
    other = saved({"a": torch.tensor([nan, 2.0, inf, 1.0])}, tmp_path / "b.safetensors")
    assert difference(one, one).same
    found = difference(one, other)
    assert found.tensors["a"].moved == 1 / 4
    json.loads(json.dumps(found.as_dict()), parse_constant=pytest.fail)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "float8_e4m3fn", "float64"])
def test_every_dtype_that_files_have_is_compared(dtype, tmp_path):
    kind = getattr(torch, dtype)
    one = saved({"a": torch.tensor([0.0, 1.0]).to(kind)}, tmp_path / "a.safetensors")
    other = saved({"a": torch.tensor([1.0, 1.0]).to(kind)}, tmp_path / "b.safetensors")
    assert difference(one, other).tensors["a"].moved == 0.5


def test_a_tensor_without_entries_is_the_same(tmp_path):
    one = saved({"a": torch.zeros(0, 3), "b": torch.zeros(())}, tmp_path / "a.safetensors")
    assert difference(one, one).same


# What is no model


def pickled(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")


def torn(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{not json")


def lost_shard(folder: Path) -> None:
    content = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def wrong_shard(folder: Path) -> None:
    lost_shard(folder)
    saved({"b": torch.zeros(1)}, folder / "model-00001-of-00002.safetensors")


def wrong_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "no safetensors file lies in it"),
        (lambda folder: folder.rmdir(), "neither a folder nor a file"),
        (pickled, "pickles (pytorch_model.bin), which are not opened"),
        (torn, "cannot be read as a model"),
        (lost_shard, "cannot be read as a model"),
        (wrong_shard, "lacks a, which its index says it has"),
        (wrong_index, "is no index of shards"),
    ],
    ids=["empty", "missing", "pickled", "torn", "a lost shard", "a wrong shard", "a wrong index"],
)
def test_what_is_no_model_is_refused_with_what_is_wrong(make, words, tmp_path, pair):
    folder = tmp_path / "model"
    folder.mkdir()
    make(folder)
    with pytest.raises(ModelError) as caught:
        difference(pair[0], folder)
    assert caught.value.code == "CP301"
    assert words in caught.value.message


# The command


def test_the_table_fits_80_columns_and_names_every_group_that_is_there(
    models, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    model = models()
    model.save_pretrained(tmp_path / "a")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "b")
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in shown)
    assert [line.split()[0] for line in shown[:8] if line] == [
        *("group", "embeddings", "attention", "mlp", "norms", "head", "all"),
    ]
    assert "tensor (10 of 27)" in "\n".join(shown)
    assert shown[9].startswith("model.layers.0.mlp.up_proj.weight")
    assert shown[-1] == "1 of the 27 tensors of both differ"


def test_long_names_keep_their_ends(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    name = f"{'long.' * 30}weight"
    path = saved({name: torch.ones(1)}, tmp_path / "a.safetensors")
    main(["diff", str(path), str(path)])
    shown = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in shown)
    assert [line for line in shown if line.startswith("...") and "long.weight" in line]


def test_the_same_twice_is_exit_code_1_and_json_says_so_too(pair, capsys):
    before, after = map(str, pair)
    assert main(["diff", before, before]) == 1
    assert "the same: all 3 tensors" in capsys.readouterr().out
    assert main(["diff", before, after, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["same"], found["before"]) == (False, before)
    assert found["groups"]["embeddings"]["moved"] == 0.05
    assert set(found["tensors"]) == set(difference(*pair).tensors)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], "CP107"),
        (["one"], "CP107"),
        (["one", "two", "three"], "CP103"),
        (["one", "two", "--al"], "CP101"),
        (["nowhere", "nowhere"], "CP301"),
    ],
)
def test_what_cannot_be_done_as_asked_is_exit_code_2(words, code, capsys):
    assert main(["diff", *words]) == 2
    assert capsys.readouterr().err.startswith(f"counterpoint: {code} ")


def test_no_model_library_is_needed(pair):
    program = (
        "import sys; sys.modules['transformers'] = sys.modules['peft'] = None\n"
        "from counterpoint.cli.main import main\n"
        f"print(main(['diff', {str(pair[0])!r}, {str(pair[1])!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["0"], done.stderr


def test_the_help_says_what_the_exit_codes_mean(capsys):
    assert main(["diff", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "exit codes:" in shown
    assert "--all" in shown
    assert all(len(line) <= 80 for line in shown.splitlines()[:20])
