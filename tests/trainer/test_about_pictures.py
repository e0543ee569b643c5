"""A run about pictures: the same however it looks, resumed bit for bit, opened by plain tools."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor

from counterpoint import CPOConfig, CPOTrainer, DataError
from counterpoint.data import looked_at
from counterpoint.forward.kept_features import keep_features
from counterpoint.forward.layouts import PADDED, PICTURES_TWICE, SHARED
from counterpoint.models.trainable import freeze_parts
from counterpoint.picture import Picture
from counterpoint.records import PairBatch
from counterpoint.runlog import kept_thumbnail, pictures_in_line, read_run
from counterpoint.step import assembly
from tests.vision_on_the_spot import ROWS, encoded, looks_counted, seer

RAW = [
    {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "images": [{"bytes": encoded(number), "path": None} for number in pictures],
    }
    for pictures, question, chosen, rejected in ROWS
]


def trained(
    folder: Path,
    resume: Path | None = None,
    rows: list[dict[str, Any]] = RAW,
    freeze: tuple[str, ...] = (),
    **options: Any,
) -> CPOTrainer:
    model, processor = seer("llava")
    freeze_parts(model, freeze)
    args = CPOConfig(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-2,
            "save_steps": 2,
            "logging_steps": 1,
            "report_to": "none",
            "max_length": 200,
            **options,
        }
    )
    trainer = CPOTrainer(
        model, args, train_dataset=Dataset.from_list(rows), processing_class=processor
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def weights(trainer: CPOTrainer) -> list[torch.Tensor]:
    return list(trainer.model.state_dict().values())


def test_a_run_resumes_bit_for_bit_and_plain_transformers_open_what_it_saved(
    tmp_path: Path,
) -> None:
    whole = trained(tmp_path / "run")
    assert whole._assembly().layout == SHARED.name
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    again = trained(tmp_path / "run", resume=tmp_path / "run" / "checkpoint-2")
    pairs = zip(weights(whole), weights(again), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    whole.save_model(str(tmp_path / "saved"))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    assert all(map(torch.equal, weights(whole), model.state_dict().values()))
    processor = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert type(processor).__name__ == "LlavaProcessor"


FROZEN = ("vision", "projector")


def shares_kept(trainer: CPOTrainer) -> list[float]:
    return [line["pictures_kept"] for line in trainer.state.log_history if "pictures_kept" in line]


def test_a_frozen_tower_looks_once_at_each_picture_and_a_run_resumes_without_its_features(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {
        "freeze": FROZEN,
        "picture_cache_gb": 0.1,
        "dataloader_num_workers": 0,
    }
    whole = trained(tmp_path / "run", **options)
    shares = shares_kept(whole)
    # the layouts' proof has seen some of the first step's; the second step has none
    assert 0 < shares[0] < 1
    assert shares[1:] == [1.0, 1.0]
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    again = trained(tmp_path / "run", resume=tmp_path / "run" / "checkpoint-2", **options)
    assert all(map(torch.equal, weights(whole), weights(again)))
    little = trained(tmp_path / "little", **options | {"picture_cache_gb": 1e-8})
    assert shares_kept(little) == [0.0] * 3
    assert all(map(torch.equal, weights(whole), weights(little)))
    none = trained(tmp_path / "none", **options | {"picture_cache_gb": 0.0})
    assert shares_kept(none) == []
    for one, other in zip(weights(whole), weights(none), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)
    keep_features(whole.model, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_whose_features_are_at_hand_is_not_decoded_again(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looked_at, "MOST_KEPT", 0)
    decoded: list[str] = []
    own = Picture.load

    def load(picture: Picture) -> Any:
        decoded.append(picture.digest)
        return own(picture)

    monkeypatch.setattr(Picture, "load", load)
    shown = {"max_steps": 6, "save_strategy": "no", "dataloader_num_workers": workers}
    run = trained(tmp_path / "a", freeze=FROZEN, picture_cache_gb=0.1, **shown)
    if not workers:
        # as often as the first epoch shows each, for a step or a proof; the second and third do not
        assert len(set(decoded)) == 4
        first = len(decoded)
        decoded.clear()
        trained(tmp_path / "b", freeze=FROZEN, picture_cache_gb=0.1, **shown | {"max_steps": 2})
        assert len(decoded) == first
    other = trained(tmp_path / "c", freeze=FROZEN, picture_cache_gb=1e-8, **shown)
    assert all(map(torch.equal, weights(run), weights(other)))


def test_each_layout_and_loader_trains_the_same(tmp_path: Path) -> None:
    losses = {
        name: [line["loss"] for line in trainer.state.log_history if "loss" in line]
        for name, trainer in (
            (name, trained(tmp_path / name, save_strategy="no", save_steps=500, **options))
            for name, options in {
                SHARED.name: {"dataloader_num_workers": 1},
                PADDED.name: {"layout": PADDED.name},
                PICTURES_TWICE.name: {"layout": PICTURES_TWICE.name},
            }.items()
        )
    }
    truth = losses.pop(PICTURES_TWICE.name)
    assert len(truth) == 4
    for found in losses.values():
        assert found == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("differs", [False, True])
def test_a_layout_that_was_proved_on_text_is_proved_on_the_first_pictures(
    differs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proved: list[bool] = []
    whole = assembly.layouts_disagree

    def watched(model: Any, head: Any, batch: PairBatch, *more: Any) -> str | None:
        proved.append(any(pair.seen for pair in batch.pairs))
        if proved[-1] and differs:
            return "it was told so"
        return whole(model, head, batch, *more)

    monkeypatch.setattr(assembly, "layouts_disagree", watched)
    text = [row for row in RAW if not row["images"]]
    shown = [row for row in RAW if row["images"]]
    options = {"train_sampling_strategy": "sequential", "max_steps": 3}
    trainer = trained(tmp_path, rows=2 * text + 2 * shown, **options)
    assert proved == [False, True]
    assert trainer._assembly().layout == (PICTURES_TWICE if differs else SHARED).name


def test_an_evaluation_writes_to_prompts_with_their_pictures(tmp_path: Path) -> None:
    model, processor = seer("llava")
    args = CPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        per_device_eval_batch_size=6,
        generate_during_eval=True,
        eval_samples=2,
        eval_sample_tokens=2,
        max_length=200,
    )
    trainer = CPOTrainer(
        model, args, eval_dataset=Dataset.from_list(RAW), processing_class=processor
    )
    with looks_counted(model) as looks:
        trainer.evaluate()
    pictures = {number for shown, *_ in ROWS for number in shown}
    assert len(pictures) in [shape[0] for shape in looks]  # the evaluation itself
    assert any(shape[0] < len(pictures) for shape in looks)  # its samples, and the proof


def test_samples_of_pictures_are_told_apart_and_kept_small(tmp_path: Path) -> None:
    (asked,) = [row for row in RAW if row["prompt"][0]["content"] == "What is this?"]
    # of one size, so that both prompts have the same ids
    like = [{**asked, "images": [{"bytes": encoded(n), "path": None}]} for n in (0, 4)]
    model, processor = seer("llava")
    args = CPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to="none",
        max_steps=1,
        save_strategy="no",
        generate_during_eval=True,
        eval_strategy="steps",
        eval_steps=1,
        eval_samples=2,
        eval_sample_tokens=2,
        max_length=200,
    )
    rows = Dataset.from_list(like)
    CPOTrainer(
        model, args, train_dataset=rows, eval_dataset=rows, processing_class=processor
    ).train()
    samples = read_run(tmp_path).samples
    assert [line["step"] for line in samples] == [0, 0, 1, 1]
    digests = [hashlib.sha256(encoded(n)).hexdigest() for n in (0, 4)]
    assert [pictures_in_line(line) for line in samples] == [(one,) for one in digests] * 2
    found = [kept_thumbnail(tmp_path, line["pictures"][0]) for line in samples]
    assert found[:2] == found[2:]
    assert all(isinstance(one, bytes) for one in found)
    assert found[0] != found[1]
    (told,) = samples[0]["pictures"]
    assert (told["width"], told["height"], told["file"]) == (60, 40, "")


def test_a_tokenizer_alone_never_drops_pictures_without_a_word(tmp_path: Path) -> None:
    model, processor = seer("llava")
    args = CPOConfig(output_dir=str(tmp_path), use_cpu=True)
    rows = Dataset.from_list(RAW)
    with pytest.raises(DataError, match="CP219"):
        CPOTrainer(model, args, train_dataset=rows, processing_class=processor.tokenizer)


def test_samples_are_of_one_question_about_several_pictures(tmp_path: Path) -> None:
    model, processor = seer("llava")
    args = CPOConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", max_length=200)
    row = {**RAW[0], "images": []}
    about = [{**row, "images": [{"bytes": encoded(n), "path": None}]} for n in (0, 1, 0)]
    trainer = CPOTrainer(
        model, args, eval_dataset=Dataset.from_list(about), processing_class=processor
    )
    few = trainer._feed.some(trainer.eval_dataset, 3)
    assert len({pair.pictures[0].digest for pair in few}) == len(few) == 2
    scores = trainer.measure(trainer.eval_dataset).scores()
    assert scores.prompts[0] == scores.prompts[2] != scores.prompts[1]
