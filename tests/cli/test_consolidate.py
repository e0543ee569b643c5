"""``counterpoint consolidate``: a whole model of a checkpoint, or a reason why there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from counterpoint.checkpoint.manifest import seal
from counterpoint.checkpoint.saving import write_model
from counterpoint.checkpoint.sharded import write_shards
from counterpoint.checkpoint.tree import write_tree
from tests.cli.conftest import Command
from tests.models_on_the_spot import make_model


@pytest.fixture
def run(tmp_path: Path, gpt2_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A run with a checkpoint that was written whole, and a later one by shard."""
    folder = tmp_path / "run"
    for step, by_shard in ((1, False), (2, True)):
        place = folder / f"checkpoint-{step}"
        place.mkdir(parents=True)
        model = make_model("qwen2", vocab_size=len(gpt2_tokenizer), seed=step)
        if by_shard:
            write_shards(place, model, {"groups": [], "state": {}})
        write_model(place, model, gpt2_tokenizer, {"seed": 3}, weights=not by_shard)
        write_tree(place, "run_state", {"streams": 1})
        write_tree(place, "rank-0", {"random": torch.ones(3)})
        seal(place, step=step, resumable=True, fingerprint={})
    return folder


WHOLE = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training_args.json",
}


def same(folder: Path, seed: int, words: int) -> bool:
    """Whether plain transformers opens a folder as the model of a seed."""
    found = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    expected = make_model("qwen2", vocab_size=words, seed=seed).state_dict()
    return all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_newest_checkpoint_of_a_run_becomes_a_whole_model(
    command: Command, run: Path, gpt2_tokenizer: PreTrainedTokenizerFast
):
    said = command("consolidate", run)
    assert said.code == 0, said.err
    target = run / "consolidated-2"
    assert {path.name for path in target.iterdir()} <= WHOLE
    assert same(target, 2, len(gpt2_tokenizer))
    assert len(AutoTokenizer.from_pretrained(target)) == len(gpt2_tokenizer)
    size = sum(path.stat().st_size for path in target.iterdir())
    assert f"consolidated-2: the model after step 2, {size:,} bytes" in said.out + said.err


def test_an_older_checkpoint_that_was_written_whole_is_copied_without_the_runs_state(
    command: Command, run: Path, tmp_path: Path, gpt2_tokenizer: PreTrainedTokenizerFast
):
    target = tmp_path / "model"
    said = command("consolidate", run / "checkpoint-1", "--to", target, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert set(found["files"]) == {path.name for path in target.iterdir()} <= WHOLE
    assert found["to"] == str(target)
    assert same(target, 1, len(gpt2_tokenizer))


def test_nothing_is_overwritten_without_being_asked(command: Command, run: Path, tmp_path: Path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text("mine")
    said = command("consolidate", run, "--to", target)
    assert said.code == 2
    assert said.err.startswith("counterpoint: CP506 ")
    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert (target / "config.json").read_text() == "mine"
    assert command("consolidate", run, "--to", target, "--overwrite").code == 0
    assert "model.safetensors" in {path.name for path in target.iterdir()}
    # an index is read before the file that was just written, and an adapter put on the model
    (target / "model.safetensors.index.json").write_text("{}")
    assert command("consolidate", run, "--to", target, "--overwrite").code == 0
    assert not (target / "model.safetensors.index.json").exists()
    (target / "adapter_config.json").write_text("{}")
    mixed = command("consolidate", run, "--to", target, "--overwrite")
    assert f"CP506 {target} holds adapter_config.json, by which" in mixed.err
    (tmp_path / "file").write_text("")
    assert command("consolidate", run, "--to", tmp_path / "file").err.startswith(
        "counterpoint: CP501 "
    )
    inside = command("consolidate", run, "--to", run / "checkpoint-2" / "model")
    assert inside.err.startswith("counterpoint: CP104 ")


def test_a_damaged_checkpoint_is_named_and_no_earlier_one_taken_for_it(command: Command, run: Path):
    part = run / "checkpoint-2" / "model" / "shard-00001-model-00001-of-00001.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    for path in (run, run / "checkpoint-2"):
        said = command("consolidate", path)
        assert said.code == 2
        assert said.err.startswith("counterpoint: CP512 ")
        assert "checkpoint-2" in said.err
        assert part.name in said.err
    assert not (run / "consolidated-2").exists()


@pytest.mark.parametrize(
    ("words", "code"), [([], "CP107"), (["a", "b"], "CP103"), (["nowhere"], "CP507")]
)
def test_words_that_name_no_checkpoint_are_refused(
    command: Command, words: list[str], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    said = command("consolidate", *words)
    assert (said.code, said.err.split()[1]) == (2, code)


def test_memory_stays_that_of_a_tensor(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from counterpoint.checkpoint import consolidate as whole
    from counterpoint.checkpoint.shards import ShardReader

    alive, most = 0, 0
    original = ShardReader.whole

    def counted(self: ShardReader, name: str) -> torch.Tensor:
        nonlocal alive, most
        import weakref

        found = original(self, name)
        alive += 1
        most = max(most, alive)

        def gone() -> None:
            nonlocal alive
            alive -= 1

        weakref.finalize(found, gone)
        return found

    monkeypatch.setattr(ShardReader, "whole", counted)
    checkpoint, manifest = whole.find_whole(run)
    whole.consolidate(checkpoint, manifest.files, tmp_path / "model")
    assert len(load_file(tmp_path / "model" / "model.safetensors")) > 20
    assert most <= 2  # the one that is written, and the next
