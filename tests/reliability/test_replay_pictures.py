"""A step about pictures is done again bit for bit, without the data and without the processor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.llava.modeling_llava import LlavaModel

from counterpoint import ConfigError, CPOConfig, CPOTrainer, ModelError, NonFiniteError
from counterpoint.data.vision import PictureReader
from counterpoint.forward.head import find_head
from counterpoint.forward.layouts import LAYOUTS, PADDED, PICTURES_TWICE, SHARED, Layout
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.records import TokenPair
from counterpoint.step.replay import recorder
from counterpoint.step.replay.file import _check, read_replay
from counterpoint.step.replay.pictures import (
    bytes_of_pictures,
    check_seen_by,
    pairs_with_pictures,
    pictures_as_tensors,
    pictures_fit,
)
from counterpoint.step.replay.recompute import _watched_layers
from tests.cli.conftest import Command, command
from tests.reliability.test_replay import metadata_of
from tests.reliability.test_replay_constraints import Recorded
from tests.reliability.trials import TORTURE
from tests.trainer.test_about_pictures import RAW
from tests.vision_on_the_spot import KINDS, ROWS, encoded, seen_pairs, seer

__all__ = ["command"]

OPTIONS: dict[str, Any] = {
    "use_cpu": True,
    "per_device_train_batch_size": 3,
    "train_sampling_strategy": "sequential",
    "save_strategy": "no",
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "disable_tqdm": True,
    "max_length": 200,
}


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("llava", "shared"),
        ("idefics3", "shared"),
        ("paddleocr_vl", "padded"),
        ("gemma3", "pictures-twice"),
    ],
)
def test_a_step_about_pictures_is_replayed_to_the_same_loss_bit_for_bit(
    kind: str, layout: str, tmp_path: Path
) -> None:
    model, processor = seer(kind)
    recorded = Recorded(tmp_path)
    args = CPOConfig(
        output_dir=str(tmp_path / "run"),
        layout=layout,
        gradient_accumulation_steps=2,
        max_steps=2,
        **OPTIONS,
    )
    trainer = CPOTrainer(
        model,
        args,
        train_dataset=Dataset.from_list(RAW),
        processing_class=processor,
        callbacks=[recorded],
    )
    recorded.trainer = trainer
    step = trainer.training_step

    def watched(*facts: Any) -> Tensor:
        recorded.losses.append(step(*facts))
        return recorded.losses[-1]

    trainer.training_step = watched  # type: ignore[method-assign]
    trainer.train()
    losses = [float(loss) for loss in recorded.losses if loss != 0]
    assert [float(loss) for loss in recorded.again] == losses
    assert len(losses) == 2
    (kept, _) = recorded.replays
    assert kept.settings.layout == layout
    shown = [len(pair.seen) for batch in kept.micro_batches for pair in batch]
    assert sorted(shown) == sorted(len(row["images"]) for row in RAW)
    # each picture once, though two rows show one of them
    names = [name for name in load_file(tmp_path / "step.safetensors") if "pixel_values" in name]
    assert len(names) == len({number for numbers, *_ in ROWS for number in numbers}) == 4


@pytest.fixture
def about_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small model of whose head one value is not finite, and rows with files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("counterpoint.step.finite.UpdateGuard.check_start", lambda *_, **__: None)
    model, processor = seer("llava")
    with torch.no_grad():
        model.lm_head.weight[300, 1] = float("nan")
    for part in (model, processor):
        part.save_pretrained("model")
    rows = []
    for number, row in enumerate(RAW):
        names = [f"pictures/{number}-{place}.png" for place in range(len(row["images"]))]
        for name, picture in zip(names, ROWS[number][0], strict=True):
            Path("pictures").mkdir(exist_ok=True)
            Path(name).write_bytes(encoded(picture))
        rows.append({**row, "images": names})
    Path("pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path


TRAIN = "train --model model --dataset pairs.jsonl --output_dir out --max_steps 2 --doctor off"


def test_what_a_frozen_tower_was_to_keep_is_looked_at_alone_again(
    about_pictures: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a step that is not finite proves no layout
    monkeypatch.setattr("counterpoint.step.assembly.layouts_disagree", lambda *_, **__: None)
    frozen = "--use_cpu true --save_strategy no --freeze vision projector --picture_cache_gb 0.1"
    assert command(*TRAIN.split(), *frozen.split()).code == 2
    assert read_replay(Path("out/replay-1.safetensors")).settings.pictures_alone
    looks: list[int] = []
    own = LlavaModel.get_image_features

    def counted(self: Any, pixel_values: Tensor, *args: Any, **named: Any) -> Any:
        looks.append(len(pixel_values))
        return own(self, pixel_values, *args, **named)

    monkeypatch.setattr(LlavaModel, "get_image_features", counted)
    found = json.loads(command("replay", "out/replay-1.safetensors", "--json").out)
    assert found["now"] == found["then"]
    assert set(looks) == {1}


def test_the_command_does_it_again_when_the_pictures_are_gone(
    about_pictures: Path, command: Command
) -> None:
    answer = command(*TRAIN.split(), "--use_cpu", "true", "--save_strategy", "no")
    assert answer.code == 2
    assert "counterpoint replay out/replay-1.safetensors shows what broke first" in answer.err
    shutil.rmtree("pictures")
    Path("pairs.jsonl").unlink()
    found = json.loads(command("replay", "out/replay-1.safetensors", "--json").out)
    assert found["then"]
    assert found["now"] == found["then"]
    assert found["now"][0]["name"] == "lm_head.weight"


def test_a_model_that_sees_otherwise_is_refused(about_pictures: Path, command: Command) -> None:
    command(*TRAIN.split(), "--use_cpu", "true", "--save_strategy", "no")
    model, processor = seer("idefics3")
    for part in (model, processor):
        part.save_pretrained("other")
    said = command("replay", "out/replay-1.safetensors", "--model", "other").err
    assert said.startswith("counterpoint: CP334 the model cannot be given the pictures of the step")
    assert said.count("\n") == 1


def test_a_text_model_and_pixels_of_another_shape_are_refused(models: Any) -> None:
    made = seer("llava")
    pairs = seen_pairs(made)
    with pytest.raises(ModelError, match=r"^CP334 the step's pairs show pictures, and Qwen2For"):
        check_seen_by(models("qwen2"), pairs)
    check_seen_by(models("qwen2"), [replace(pair, seen=()) for pair in pairs])
    check_seen_by(made[0], pairs)
    made[0].config.image_token_id = 5
    said = r"^CP334 row 0: its pictures take 16 tokens, and for this LlavaFor\w+ 0 tokens of the"
    with pytest.raises(ModelError, match=said):
        check_seen_by(made[0], pairs)
    said = "CP334 the model cannot be given the pictures"
    with pytest.raises(ModelError, match=said), pictures_fit([pairs]):
        torch.zeros(2) @ torch.zeros(3)
    with pytest.raises(RuntimeError), pictures_fit([[replace(pairs[0], seen=())]]):
        torch.zeros(2) @ torch.zeros(3)


def stopped(folder: Path) -> str:
    model, processor = seer("llava")
    args = CPOConfig(output_dir=str(folder), max_steps=1, gradient_accumulation_steps=2, **OPTIONS)
    trainer = CPOTrainer(
        model, args, train_dataset=Dataset.from_list(RAW), processing_class=processor
    )
    with pytest.raises(NonFiniteError) as caught:
        trainer.train()
    return caught.value.message


@pytest.fixture
def spoilt_pixel(monkeypatch: pytest.MonkeyPatch) -> str:
    """The digest of the second picture of row 2, of which one pixel is not finite."""
    whole = PictureReader._looked
    digest = seen_pairs(seer("llava"))[2].seen[1].digest

    def spoilt(self: PictureReader, picture: Any) -> Any:
        seen = whole(self, picture)
        if seen.digest == digest:
            seen.inputs["pixel_values"][..., 0, 3, 3] = float("inf")
        return seen

    monkeypatch.setattr(PictureReader, "_looked", spoilt)
    return digest


def test_a_pixel_that_is_not_finite_is_named_with_its_row(
    spoilt_pixel: str, tmp_path: Path
) -> None:
    stopped(tmp_path)
    found = read_replay(tmp_path / "replay-1.safetensors")
    pixels, layer = (
        next(one for one in found.culprits if one.term == term) for term in ("pixels", "layer")
    )
    assert (pixels.name, pixels.row, pixels.part, pixels.token) == ("pixel_values", 2, "picture", 1)
    assert (pixels.value, pixels.count) == ("inf", 1)
    assert "vision_tower" in layer.name
    assert (layer.row, layer.part, layer.token) == (2, "picture", 1)
    kept = {one.digest for batch in found.micro_batches for pair in batch for one in pair.seen}
    assert spoilt_pixel in kept


def test_a_step_with_more_pictures_than_a_file_holds_is_not_kept_and_says_so(
    spoilt_pixel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "MOST_BYTES", 2**13)
    said = stopped(tmp_path)
    assert "It is not kept: its pictures take 0 MiB, and such a file holds 0." in said
    assert [*tmp_path.glob("replay-*")] == []


UNLIKE = ("llava", "llava_next", "idefics3", "qwen2_5_vl", "qwen3_5", "kimi_k25", "gemma4")
"""Kinds whose towers are given pictures in different ways."""


@pytest.mark.parametrize("layout", [SHARED, PICTURES_TWICE], ids=lambda layout: layout.name)
@pytest.mark.parametrize("kind", KINDS if TORTURE else UNLIKE)
def test_a_layer_of_the_tower_names_the_picture(kind: str, layout: Layout) -> None:
    made = seer(kind)
    model, pairs = made[0], seen_pairs(made)
    if layout.why_not(model) is not None:  # layers of linear attention
        assert layout is SHARED
        layout = PADDED
    for row, number in ((0, 0), (2, 1), (3, 0)):
        seen = pairs[row].seen[number]
        inputs = {name: tensor.clone() for name, tensor in seen.inputs.items()}
        inputs["pixel_values"].view(-1)[-1] = float("nan")
        broken = replace(seen, inputs=inputs)
        shown = [
            replace(pair, seen=[broken if s.digest == seen.digest else s for s in pair.seen])
            for pair in pairs
        ]
        batch = layout.collate(shown)
        with layout.running(model), _watched_layers(model, batch) as layers, torch.no_grad():
            pair_forward(model, find_head(model), batch)
        (one,) = layers
        assert (one.row, one.part, one.token) == (row, "picture", number)


# The file


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_every_kind_are_read_as_they_were_written(kind: str) -> None:
    pairs = seen_pairs(seer(kind))
    tensors, described = pictures_as_tensors(pairs)
    assert bytes_of_pictures(pairs) == sum(
        one.nbytes for name, one in tensors.items() if name.startswith("picture/")
    )
    bare = [replace(pair, seen=()) for pair in pairs]
    again = pairs_with_pictures(bare, tensors, json.loads(json.dumps(described)), _check)
    for pair, other in zip(pairs, again, strict=True):
        assert replace(other, seen=()) == replace(pair, seen=())
        for one, two in zip(pair.seen, other.seen, strict=True):
            assert (one.digest, one.tokens, one.patches) == (two.digest, two.tokens, two.patches)
            assert one.inputs.keys() == two.inputs.keys()
            assert all(torch.equal(one.inputs[name], two.inputs[name]) for name in one.inputs)


@pytest.fixture(scope="module")
def kept_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as patch:
        whole = PictureReader._looked

        def spoilt(self: PictureReader, picture: Any) -> Any:
            seen = whole(self, picture)
            seen.inputs["pixel_values"][..., 0, 3, 3] = float("inf")
            return seen

        patch.setattr(PictureReader, "_looked", spoilt)
        stopped(folder)
    return folder / "replay-1.safetensors"


@pytest.fixture
def kept(kept_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(kept_once, tmp_path))


def changed(path: Path, tensors: dict[str, Any], told: Callable[[Any], Any] | None) -> None:
    """Write a file with other tensors and another word on its pictures."""
    whole, described = load_file(path), metadata_of(path)
    for name, change in tensors.items():
        whole[name] = change(whole[name]).contiguous()
    if told is not None:
        told(described["pictures"])
    save_file(whole, path, metadata={"counterpoint_replay": json.dumps(described)})


SPOILT: dict[str, Any] = {
    "a picture that is not there": {"shown": lambda shown: shown + 9},
    "a picture before the first": {"shown": lambda shown: shown - 1},
    "shown by other pairs": {"shows": lambda shows: shows[:-1]},
    "shown more often": {"shows": lambda shows: shows + 1},
    "shown less than never": {"shows": lambda shows: shows * -1},
    "numbers of another type": {"shown": lambda shown: shown.double()},
    "no pixels": {"picture/0/pixel_values": lambda pixels: pixels[:0]},
    "pixels without an axis": {"picture/0/pixel_values": lambda pixels: pixels.sum()},
    "pixels of fewer axes": {"picture/0/pixel_values": lambda pixels: pixels[0]},
    "pixels as texts": {"picture/0/pixel_values": lambda pixels: pixels.to(torch.int8)},
    "a negative pixel number": {
        "picture/0/pixel_values": lambda pixels: -2 - pixels.isnan().long()
    },
    "a size without end": {"picture/0/pixel_values": lambda pixels: pixels.isnan().long() + 2**20},
}
FORGED: dict[str, Callable[[Any], Any]] = {
    "no digest": lambda told: told[0].update(digest="../../x"),
    "no tokens": lambda told: told[0].update(tokens=0),
    "more tokens than the prompt has": lambda told: told[0].update(tokens=150),
    "tokens as a word": lambda told: told[0].update(tokens="16"),
    "patches as a truth": lambda told: told[0].update(patches=True),
    "other entries": lambda told: told[0].update(path="/etc/passwd"),
    "a keyword that is none of a picture": lambda told: told[0]["inputs"].append("input_ids"),
    "a keyword that is no name": lambda told: told[0]["inputs"].append("a b"),
    "a keyword that is not there": lambda told: told[0]["inputs"].append("image_sizes"),
    "no keyword": lambda told: told[0].update(inputs=[]),
    "a word as picture": lambda told: told.append("picture"),
    "no pictures": lambda told: told.clear(),
}


@pytest.mark.parametrize("name", [*SPOILT, *FORGED])
def test_pictures_that_are_not_as_they_should_be_are_refused(kept: Path, name: str) -> None:
    assert read_replay(kept).micro_batches
    changed(kept, SPOILT.get(name, {}), FORGED.get(name))
    with pytest.raises(ConfigError, match=r"CP110 .*is no replay file, or a broken one: "):
        read_replay(kept)


def test_pictures_that_grow_beside_each_other_are_refused(kept: Path) -> None:
    wide = torch.zeros(1, 3, 2**9, 1), torch.zeros(1, 3, 1, 2**20)
    changed(
        kept,
        {f"picture/{n}/pixel_values": lambda _, n=n: wide[n] for n in range(2)},
        None,
    )
    with pytest.raises(ConfigError, match="its pictures do not fit beside each other"):
        read_replay(kept)


def test_a_file_of_the_format_before_is_read_without_pictures(kept: Path) -> None:
    whole, described = load_file(kept), metadata_of(kept)
    of_pictures = [name for name in whole if name.startswith(("picture/", "shown", "shows"))]
    older = {name: tensor for name, tensor in whole.items() if name not in of_pictures}
    del described["pictures"]
    described["format"] = 3
    save_file(older, kept, metadata={"counterpoint_replay": json.dumps(described)})
    found = read_replay(kept)
    pairs: list[TokenPair] = [pair for batch in found.micro_batches for pair in batch]
    assert pairs
    assert not any(pair.seen for pair in pairs)
    assert found.settings.layout in LAYOUTS
