"""Law 4, the first half: a checkpoint is whole or not used, and what is wrong with it is named."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from counterpoint import SetupError
from counterpoint.checkpoint.folder import (
    begin,
    checkpoints,
    finished,
    last_good,
    publish,
    rotate,
    staging,
    tidy,
)
from counterpoint.checkpoint.manifest import MANIFEST, read_manifest, seal, verify
from tests.reliability.scenarios import trainer_of


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of a run."""
    folder = tmp_path_factory.mktemp("reliability") / "run"
    trainer_of({}, folder, max_steps=3).train()
    return folder


@pytest.fixture
def run(a_run: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(a_run, tmp_path / "run")
    return tmp_path / "run"


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    """One bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def delete(file: Path) -> None:
    file.unlink()


def swap(file: Path) -> None:
    """The file of the same name of the checkpoint before."""
    other = file.parent.with_name("checkpoint-2") / file.name
    if other.read_bytes() == file.read_bytes():
        pytest.skip("it is the same in both")
    shutil.copy(other, file)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut short": truncate,
    "emptied": empty,
    "one bit flipped": flip,
    "deleted": delete,
    "swapped with another step's": swap,
}

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "optimizer.json",
    "optimizer.safetensors",
    "rank-0.json",
    "rank-0.safetensors",
    "run_state.json",
    "run_state.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "trainer_state.json",
    "training_args.json",
)


def test_a_checkpoint_consists_of_these_files_and_none_is_a_pickle(a_run: Path):
    manifest = verify(a_run / "checkpoint-3", step=3)
    assert sorted(manifest.files) == sorted(FILES)
    there = {path.name for path in (a_run / "checkpoint-3").iterdir()}
    assert there == {*FILES, MANIFEST}
    assert {Path(name).suffix for name in there} == {".json", ".safetensors"}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_every_damage_to_every_file_is_found_and_named(run: Path, name: str, damage: str):
    DAMAGES[damage](run / "checkpoint-3" / name)
    with pytest.raises(SetupError, match=r"CP51[12] ") as caught:
        verify(run / "checkpoint-3", step=3)
    assert name in str(caught.value)
    found = last_good(run)
    assert found is not None
    assert found[0] == run / "checkpoint-2"


def test_a_checkpoint_under_another_steps_name_is_found_out(run: Path):
    shutil.rmtree(run / "checkpoint-3")
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-3")
    with pytest.raises(SetupError, match=r"CP512 .*manifest\.json is that of step 2"):
        verify(run / "checkpoint-3", step=3)


def test_every_damaged_file_of_one_checkpoint_is_named(run: Path):
    flip(run / "checkpoint-3" / "model.safetensors")
    delete(run / "checkpoint-3" / "rank-0.json")
    with pytest.raises(SetupError) as caught:
        verify(run / "checkpoint-3")
    assert "model.safetensors has changed; rank-0.json is missing" in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.json", "rank-0.safetensors"])
def test_a_damaged_checkpoint_is_passed_over_with_a_word_on_why(
    run: Path, name: str, caplog: pytest.LogCaptureFixture
):
    flip(run / "checkpoint-3" / name)
    trainer = trainer_of({}, run, drawn=9, max_steps=3)
    steps = []
    trainer.add_callback(_Steps(steps))
    with caplog.at_level(logging.WARNING, "counterpoint"):
        trainer.train(resume_from_checkpoint="auto")
    assert steps == [3]
    assert f"not used: {run / 'checkpoint-3'} is damaged: {name} has changed." in caplog.text
    assert f"The last good checkpoint is {run / 'checkpoint-2'}." in caplog.text
    verify(run / "checkpoint-3", step=3)  # done again


def test_where_no_checkpoint_is_good_nothing_is_begun(run: Path):
    for path in checkpoints(run):
        flip(path / "model.safetensors")
    with pytest.raises(SetupError, match=r"CP512 .*has no good checkpoint.*checkpoint-1 is dam"):
        trainer_of({}, run).train(resume_from_checkpoint="auto")


@pytest.mark.parametrize("damage", [flip, delete])
def test_a_named_checkpoint_that_is_damaged_is_refused_before_anything_is_loaded(
    run: Path, damage: Callable[[Path], None]
):
    damage(run / "checkpoint-3" / "optimizer.safetensors")
    trainer = trainer_of({}, run, drawn=9)
    before = {n: t.clone() for n, t in trainer.model.state_dict().items()}
    written = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(SetupError, match=r"CP512 .*optimizer\.safetensors"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-3"))
    assert [n for n, t in trainer.model.state_dict().items() if not torch.equal(t, before[n])] == []
    assert trainer.optimizer is None
    assert (run / "metrics.jsonl").read_bytes() == written


def test_a_checkpoint_of_transformers_is_none(run: Path):
    delete(run / "checkpoint-3" / MANIFEST)
    with pytest.raises(SetupError, match=r"CP511 .*has no manifest\.json"):
        trainer_of({}, run).train(resume_from_checkpoint=str(run / "checkpoint-3"))


def test_a_format_of_the_future_is_left_to_its_release(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("counterpoint.checkpoint.manifest.FORMAT", 99)
    seal(run / "checkpoint-3", step=3, resumable=True, fingerprint={})
    monkeypatch.undo()
    with pytest.raises(SetupError, match=r"CP514 .*has format 99, but this release reads format"):
        read_manifest(run / "checkpoint-3")


def test_a_manifest_cannot_name_a_file_outside_its_folder(tmp_path: Path):
    (tmp_path / "checkpoint-1").mkdir()
    seal(tmp_path / "checkpoint-1", step=1, resumable=True, fingerprint={})
    path = tmp_path / "checkpoint-1" / MANIFEST
    content = json.loads(path.read_text())
    for name in ("../secret", "/etc/passwd", ""):
        from counterpoint.checkpoint.manifest import _own_digest

        content.pop("sha256", None)
        content["files"] = {name: {"size": 0, "sha256": ""}}
        content["sha256"] = _own_digest(content)
        path.write_text(json.dumps(content))
        with pytest.raises(SetupError, match=r"CP512 .*lies outside the checkpoint"):
            read_manifest(path.parent)


# Folders


def checkpoint(run: Path, step: int, text: str = "weights") -> Path:
    """A checkpoint of one file."""
    target = run / f"checkpoint-{step}"
    begin(target)
    (staging(target) / "model").write_text(f"{text} {step}")
    seal(staging(target), step=step, resumable=True, fingerprint={})
    publish(target)
    return target


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def test_what_is_not_finished_is_no_checkpoint(tmp_path: Path):
    begin(tmp_path / "checkpoint-1")
    (staging(tmp_path / "checkpoint-1") / "model").write_text("half")
    assert checkpoints(tmp_path) == finished(tmp_path) == []
    tidy(tmp_path)
    assert names(tmp_path) == []


def test_a_whole_checkpoint_that_lacks_its_name_gets_it(tmp_path: Path):
    target = checkpoint(tmp_path, 1)
    target.rename(staging(target))
    tidy(tmp_path)
    assert names(tmp_path) == ["checkpoint-1"]
    verify(target, step=1)


def test_a_damaged_one_without_a_name_does_not(tmp_path: Path):
    target = checkpoint(tmp_path, 1)
    target.rename(staging(target))
    truncate(staging(target) / "model")
    tidy(tmp_path)
    assert names(tmp_path) == []


def test_a_checkpoint_takes_the_place_of_one_of_its_step(tmp_path: Path):
    checkpoint(tmp_path, 1, "old")
    checkpoint(tmp_path, 1, "new")
    assert names(tmp_path) == ["checkpoint-1"]
    assert (tmp_path / "checkpoint-1" / "model").read_text() == "new 1"


def test_steps_are_ordered_as_numbers(tmp_path: Path):
    for step in (2, 10, 9):
        checkpoint(tmp_path, step)
    assert [path.name for path in checkpoints(tmp_path)] == [
        "checkpoint-2",
        "checkpoint-9",
        "checkpoint-10",
    ]


@pytest.mark.parametrize(
    ("limit", "keep", "left"),
    [
        (None, (), [1, 2, 3, 4]),
        (0, (), [1, 2, 3, 4]),
        (9, (), [1, 2, 3, 4]),
        (2, (), [3, 4]),
        (1, (), [4]),
        (2, (1,), [1, 4]),
        (1, (2,), [2, 4]),
        (3, (1,), [1, 3, 4]),
    ],
)
def test_the_oldest_go_but_never_the_newest_nor_the_best(
    tmp_path: Path, limit: int | None, keep: tuple[int, ...], left: list[int]
):
    for step in (1, 2, 3, 4):
        checkpoint(tmp_path, step)
    newest = tmp_path / "checkpoint-4"
    rotate(newest, limit, keep=[tmp_path / f"checkpoint-{step}" for step in keep])
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left]


def test_what_was_just_written_stays_though_others_have_later_steps(tmp_path: Path):
    """A run that was begun anew in its folder, or gone on with from before a damaged one."""
    for step in (1, 9, 8, 2):
        checkpoint(tmp_path, step)
    flip(tmp_path / "checkpoint-9" / "model")
    rotate(tmp_path / "checkpoint-2", 2)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_nothing_goes_while_the_newest_is_not_known_to_be_whole(tmp_path: Path):
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)
    flip(tmp_path / "checkpoint-3" / "model")
    with pytest.raises(SetupError, match="CP512"):
        rotate(tmp_path / "checkpoint-3", 1)
    assert len(checkpoints(tmp_path)) == 3


class _Steps:
    """Which steps were done."""

    def __new__(cls, steps: list[int]):
        from transformers import TrainerCallback

        class Steps(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs) -> None:
                steps.append(state.global_step)

        return Steps()
