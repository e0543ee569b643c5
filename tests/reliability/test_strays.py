"""What a checkpoint's manifest does not list is refused by its name, and never loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from counterpoint import CPOConfig, ModelError, SetupError
from counterpoint.checkpoint.folder import last_good, tidy
from counterpoint.checkpoint.manifest import MANIFEST, seal, verify
from counterpoint.checkpoint.weights import BESIDE, load_weights
from counterpoint.models.loading import load_config
from tests.models_on_the_spot import make_model
from tests.reliability.scenarios import SCENARIOS, trainer_of

ADAPTED = SCENARIOS["dropout in an adapter"]


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of an adapter."""
    folder = tmp_path_factory.mktemp("strays") / "run"
    trainer_of(ADAPTED, folder, max_steps=2).train()
    return folder


@pytest.fixture
def run(a_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(a_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def last(run: Path) -> Path:
    return run / "checkpoint-2"


def weights(path: Path, model: torch.nn.Module) -> None:
    """A frozen weight of the base, all zeros, in a file."""
    name, found = next(
        (n, p) for n, p in model.named_parameters() if "embed_tokens" in n and not p.requires_grad
    )
    save_file({name: torch.zeros_like(found)}, path)


def test_a_stray_file_of_weights_reaches_no_weight_and_is_named(run: Path, last: Path) -> None:
    trainer = trainer_of(ADAPTED, run, max_steps=3)
    weights(last / BESIDE, trainer.model)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    with pytest.raises(SetupError, match=rf"CP521 .*checkpoint-2 .*: {BESIDE}\. .*move that out"):
        trainer.train(resume_from_checkpoint=str(last))
    assert all(torch.equal(before[n], p) for n, p in trainer.model.named_parameters())


def test_nothing_is_opened_that_was_not_listed_even_where_it_lies_there(last: Path) -> None:
    """The second lock on the same door: between verifying and loading a file may appear."""
    listed = verify(last).files
    model = trainer_of(ADAPTED, last.parent, max_steps=3).model
    weights(last / BESIDE, model)
    load_weights(model, last, listed)
    embedding = next(p for n, p in model.named_parameters() if "embed_tokens" in n)
    assert embedding.abs().max() > 0


def folder_with(name: str) -> Callable[[Path], None]:
    def make(last: Path) -> None:
        (last / name).mkdir()
        (last / name / "adapter_model.safetensors").write_bytes(b"x")

    return make


def link_to(name: str, target: str) -> Callable[[Path], None]:
    return lambda last: (last / name).symlink_to(target)


STRAYS: dict[str, Callable[[Path], None]] = {
    "beside.safetensors": lambda last: (last / BESIDE).write_bytes(b"x"),
    "model.safetensors": lambda last: (last / "model.safetensors").write_bytes(b"x"),
    "model.safetensors.index.json": lambda last: (last / "model.safetensors.index.json").write_text(
        "{}"
    ),
    "optimizer.bin": lambda last: (last / "optimizer.bin").write_bytes(b"x"),
    "modeling.py": lambda last: (last / "modeling.py").write_text("raise SystemExit"),
    "custom_generate/": folder_with("custom_generate"),
    "other/": folder_with("other"),
    ".hidden": lambda last: (last / ".hidden").write_text("x"),
    "rank-1.json": lambda last: (last / "rank-1.json").write_text("{}"),
    "notes.txt": lambda last: (last / "notes.txt").write_text("x"),
    "linked.safetensors": link_to("linked.safetensors", "/dev/zero"),
    "linked": link_to("linked", "/"),
    "nowhere": link_to("nowhere", "/no/such/place"),
}


@pytest.mark.parametrize("name", STRAYS)
def test_whatever_is_not_listed_is_refused_by_its_name(run: Path, last: Path, name: str) -> None:
    STRAYS[name](last)
    with pytest.raises(SetupError) as caught:
        verify(last, step=2)
    assert caught.value.code == "CP521"
    assert f"does not list: {name}." in caught.value.message
    # the steps since the one before it are not thrown away for a file that can be moved
    with pytest.raises(SetupError, match="CP521"):
        last_good(run)


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store",
        "._model.safetensors",
        "Thumbs.db",
        "desktop.ini",
        ".nfs000000000012ab",
        ".optimizer.json.swp",
        "config.json~",
        ".gitattributes",
        ".cache/huggingface/download/model.safetensors.metadata",
        ".ipynb_checkpoints/config-checkpoint.json",
        ".git/config",
    ],
)
def test_what_systems_and_editors_drop_is_let_lie(last: Path, name: str) -> None:
    (last / name).parent.mkdir(parents=True, exist_ok=True)
    (last / name).write_text("x")
    assert name not in verify(last, step=2).files


def test_a_stray_file_in_a_folder_of_the_checkpoint_is_found(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "adapter_model.safetensors").write_bytes(b"x")
    seal(tmp_path, step=1, resumable=True, fingerprint={})
    verify(tmp_path)
    (tmp_path / "second" / "adapter_config.json").write_text("{}")
    with pytest.raises(SetupError, match=r"CP521 .*: second/adapter_config\.json\."):
        verify(tmp_path)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_listed_file_that_has_become_a_link_out_of_the_folder_is_refused(
    last: Path, tmp_path: Path, kind: str
) -> None:
    shutil.move(last / "optimizer.safetensors", tmp_path / "elsewhere")
    if kind == "folder":
        (last / "optimizer.safetensors").mkdir()
        said = "is no file any more"
    else:
        (last / "optimizer.safetensors").symlink_to(tmp_path / "elsewhere")
        said = "leads out of the checkpoint"
    with pytest.raises(SetupError, match=rf"CP512 .*optimizer\.safetensors {said}"):
        verify(last)


def test_a_checkpoint_in_the_hubs_cache_is_made_of_links_and_whole(
    last: Path, tmp_path: Path
) -> None:
    home = tmp_path / "models--a--b"
    (home / "snapshots" / "1").mkdir(parents=True)
    (home / "blobs").mkdir()
    there = home / "snapshots" / "1" / "checkpoint-2"
    there.mkdir()
    for path in last.iterdir():
        shutil.copy(path, home / "blobs" / path.name)
        (there / path.name).symlink_to(home / "blobs" / path.name)
    assert verify(there, step=2) == verify(last, step=2)


def test_an_index_cannot_name_a_shard_that_the_checkpoint_does_not_list(tmp_path: Path) -> None:
    make_model("qwen2").save_pretrained(tmp_path, max_shard_size="50KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], "../model.safetensors")
    index.write_text(json.dumps(content))
    listed = seal(tmp_path, step=1, resumable=True, fingerprint={}).files
    with pytest.raises(SetupError, match=r"CP521 .*names \.\./model\.safetensors"):
        load_weights(make_model("qwen2"), tmp_path, listed)


@pytest.mark.parametrize("name", ["C:evil", "a\\..\\..\\b", "../a", "/etc/a", "a\0b"])
def test_a_manifest_cannot_list_what_lies_elsewhere(last: Path, name: str) -> None:
    content = json.loads((last / MANIFEST).read_text())
    from counterpoint.checkpoint import manifest

    del content["sha256"]
    content["files"][name] = {"size": 1, "sha256": "0"}
    content["sha256"] = manifest._own_digest(content)
    (last / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(SetupError, match=r"CP512 .*lies outside"):
        verify(last)


def test_a_half_written_checkpoint_with_more_than_it_lists_gets_no_name(run: Path, last: Path):
    (last / "more.bin").write_bytes(b"x")
    last.rename(run / ".checkpoint-2.part")
    tidy(run)
    assert sorted(path.name for path in run.glob("*checkpoint*")) == ["checkpoint-1"]


def test_the_best_model_is_not_loaded_from_a_folder_with_a_stray_file(tmp_path: Path) -> None:
    best = {**SCENARIOS["the best model"], "max_steps": 2}

    def disturb(trainer: object) -> None:
        for folder in (tmp_path / "run").glob("checkpoint-*"):
            (folder / "adapter_config.json").write_text("{}")

    trainer = trainer_of(best, tmp_path / "run")
    whole = trainer._load_best_model
    trainer._load_best_model = lambda: (disturb(trainer), whole())[1]  # type: ignore[method-assign]
    with pytest.raises(SetupError, match=r"CP521 .*adapter_config\.json"):
        trainer.train()


# Folders of models


def config_of(folder: Path) -> None:
    load_config(str(folder), CPOConfig(output_dir="out", use_cpu=True))


def test_a_checkpoint_taken_for_a_model_is_held_to_its_list(tmp_path: Path) -> None:
    trainer_of({}, tmp_path / "run", max_steps=1).train()
    folder = tmp_path / "run" / "checkpoint-1"
    config_of(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(SetupError, match=r"CP521 .*index\.json"):
        config_of(folder)


def test_two_sets_of_weights_in_a_models_folder_are_refused(tmp_path: Path) -> None:
    model = make_model("qwen2")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    config_of(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"CP301 .*holds two sets of weights"):
        config_of(tmp_path)


def test_a_final_model_is_the_only_one_in_its_folder(tmp_path: Path) -> None:
    """Loaders prefer a file of one piece, whoever left it there."""
    trainer = trainer_of({}, tmp_path / "run", max_steps=1)
    trainer.train()
    (tmp_path / "run" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b"}}')
    trainer.save_model()
    assert not (tmp_path / "run" / "model.safetensors.index.json").exists()
    config_of(tmp_path / "run")
