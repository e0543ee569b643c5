"""Twins of models that see: the tower is cut like the text, what the processor counts is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from counterpoint import CPOConfig
from counterpoint.data.processors import tokenizer_of
from counterpoint.forward.alone import logits_alone
from counterpoint.forward.seeing import PARTS_THAT_SEE, weights_that_see
from counterpoint.models.tiny_twin import TOWER, WIDTH, tiny_twin
from counterpoint.picture import Picture
from counterpoint.smoke import checks, thumbnails
from counterpoint.smoke.miniature import Miniature
from counterpoint.smoke.run import Subject, run_smoke
from counterpoint.smoke.thumbnails import LEAST_SIDE, SIDE, about, looked_at, thumbnail
from tests.pictures_on_the_spot import drawn, packed
from tests.reliability.trials import TORTURE
from tests.vision_on_the_spot import KINDS, ROWS, encoded, seen_pairs, seer, vision_encoder

TRIED_WHOLE = (
    ("llava", "paddleocr_vl", "gemma3", "idefics3", "smolvlm") if TORTURE else ("paddleocr_vl",)
)
"""Kinds whose run is tried whole: the processors of the others cannot be saved here."""

RAW = [
    {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "images": [{"bytes": encoded(number), "path": None} for number in pictures],
    }
    for pictures, question, chosen, rejected in ROWS
]

TEXT = {
    **{"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8},
    **{"head_dim": 32, "global_head_dim": 64},
}
SEES = {
    **{"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "num_heads": 8},
    **{"num_hidden_layers": 5, "depth": 5, "out_hidden_size": 256, "head_dim": 16},
    **{"fullatt_block_indexes": [2, 4], "deepstack_visual_indexes": [1, 3]},
    **{"intermediate_layers_indices": [1, 3], "vision_output_dim": 384, "attention_heads": 8},
}
DEEPER = 3
"""Times as many layers of a text."""


def widened(config: Any) -> Any:
    """The configuration of a model of the same kind that is no twin yet."""
    values = config.to_dict()
    text, tower = values["text_config"], values[TOWER]
    # of latent attention head_dim is the rotated part, and stays
    latent = ("head_dim",) if text.get("qk_rope_head_dim") else ()
    wider = TEXT["head_dim"] // (text.get("head_dim") or text["hidden_size"] // 4)
    text.update({n: value for n, value in TEXT.items() if text.get(n) and n not in latent})
    crossing, depth = text.get("cross_attention_layers") or [], text["num_hidden_layers"]
    text["num_hidden_layers"] *= DEEPER
    if crossing:
        text["cross_attention_layers"] = [n + m * depth for m in range(DEEPER) for n in crossing]
    for name in ("layer_types", "mlp_layer_types"):
        if text.get(name):
            text[name] = text[name] * DEEPER
    if "mrope_section" in (rope := text.get("rope_parameters") or {}):
        rope["mrope_section"] = [wider * part for part in rope["mrope_section"]]
    tower.update({name: value for name, value in SEES.items() if tower.get(name)})
    if latent:
        text["num_key_value_heads"] = text["num_attention_heads"]
    if values.get("projection_hidden_size"):
        values["projection_hidden_size"] = SEES["hidden_size"]
    if tower.get("embed_dim"):  # beside which hidden_size is the text's
        tower.update(embed_dim=SEES["hidden_size"], hidden_size=TEXT["hidden_size"])
    return type(config).from_dict(values)


def kept(config: Any) -> dict[str, Any]:
    """What the processor goes by."""
    ends = ("token_id", "token_index", "image_size", "patch_size", "merge_size", "_per_image")
    both = {**config.to_dict(), **getattr(config, TOWER).to_dict()}
    return {name: value for name, value in both.items() if name.endswith(ends)}


@pytest.fixture
def args(tmp_path: Path) -> CPOConfig:
    """Those of a run about pictures."""
    return CPOConfig(
        output_dir=str(tmp_path / "own"),
        use_cpu=True,
        max_length=200,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("kind", KINDS)
def test_a_twin_that_sees_is_small_in_both_and_takes_the_processor_s_pictures(
    kind: str, args: CPOConfig
) -> None:
    model, processor = seer(kind)
    wide = widened(model.config)
    made = tiny_twin("some/model", args, wide)
    assert type(made) is type(model)
    text, tower = made.config.get_text_config(), getattr(made.config, TOWER)
    assert (text.hidden_size, tower.hidden_size) == (WIDTH, WIDTH)
    assert text.num_hidden_layers < wide.get_text_config().num_hidden_layers
    assert tower.num_hidden_layers < SEES["num_hidden_layers"]
    assert kept(made.config) == kept(wide) != {}
    pair = seen_pairs((made, processor))[0]
    assert pair.seen
    logits_alone(made, pair, pair.chosen)[0].square().sum().backward()
    for part in PARTS_THAT_SEE:
        moved = [weight.grad for weight in weights_that_see(made, part)]
        assert any(grad is not None and bool(grad.any()) for grad in moved)


@pytest.mark.parametrize("layer", [-1, -4, 3, [-2, 4]])
def test_a_tower_keeps_the_layers_that_are_looked_at(layer: Any, args: CPOConfig) -> None:
    model, processor = seer("llava")
    wide = widened(model.config)
    wide.vision_feature_layer = layer
    made = tiny_twin("some/llava", args, wide)
    assert made.config.vision_feature_layer == layer
    pair = seen_pairs((made, processor))[0]
    assert bool(logits_alone(made, pair, pair.chosen)[0].isfinite().all())


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("kind", TRIED_WHOLE)
def test_a_run_about_pictures_is_tried_whole(kind: str, args: CPOConfig) -> None:
    model, processor = seer(kind)
    run = Subject(
        args, "some/model", widened(model.config), tokenizer_of(processor), Dataset.from_list(RAW)
    )
    report = run_smoke(run)
    found = {check.name: check.status for check in report.checks}
    assert found == {**dict.fromkeys(checks.NAMES, "ok"), checks.STAY: "not applicable"}, report
    assert "of the tower" in report.twin
    assert f"6 of the run's rows, cut to a few tokens, pictures to {SIDE} pixels" in report.twin


def test_what_is_frozen_of_a_run_is_frozen_of_its_twin(args: CPOConfig) -> None:
    model, processor = seer("llava")
    adapter = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=r".*language_model.*\.(q|v)_proj"
    )
    run = Subject(
        args,
        "some/llava",
        widened(model.config),
        tokenizer_of(processor),
        Dataset.from_list(RAW),
        peft_config=adapter,
    )
    seen = {check.name: check for check in run_smoke(run).checks}
    assert {check.status for check in seen.values()} == {"ok"}, seen
    assert seen[checks.MOVE].seen == "all 8 tensors that train"


@pytest.mark.parametrize("shows", [True, False])
def test_tensors_of_a_tower_that_nothing_reads_need_not_move(
    shows: bool, args: CPOConfig, tmp_path: Path
) -> None:
    model, processor = seer("llava")  # which reads the last layer but one of two
    twin = tiny_twin("some/llava", args, model.config)
    pairs = [pair for pair in seen_pairs((model, processor)) if shows or not pair.seen]
    mini = Miniature(args, twin, tokenizer_of(processor), None, pairs, tmp_path / "small")
    trained = mini.train("trained")
    tower = [n for n in trained.before if "vision_tower" in n or "projector" in n]
    unread = [n for n in tower if not shows or "layers.1." in n or "post_layernorm" in n]
    assert 0 < len(unread) <= len(tower)
    assert trained.idle == set(unread)
    status, seen = checks.weights_move(trained)
    assert status == "ok", seen
    assert f"no pair has a use for {len(unread)} of the tower" in seen
    moved = replace(trained, idle=frozenset())
    assert checks.weights_move(moved)[0] == "failed"


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_about_other_pictures_is_the_row_about_them(kind: str) -> None:
    made = seer(kind)
    first, other = (
        seen_pairs(made, [(pictures, *ROWS[2][1:])])[0] for pictures in ((1, 3), (0, 2))
    )
    found = about(first, other.pictures, vision_encoder(made))
    assert list(found.prompt) == list(other.prompt)
    assert (found.pictures, found.seen) == (other.pictures, ())


@pytest.mark.parametrize(
    ("size", "small"),
    [((1000, 500), (SIDE, 112)), ((3000, 60), (SIDE, LEAST_SIDE)), ((200, 10), (200, 10))],
)
def test_a_large_picture_becomes_small_and_keeps_its_shape(
    size: tuple[int, int], small: tuple[int, int]
) -> None:
    before = Picture.of(packed(drawn(*size)), 7, "images[1]")
    after = thumbnail(before)
    assert (after.width, after.height) == small == after.load().size
    assert (after.row, after.field) == (7, "images[1]")
    assert (after is before) == (size == small)


def test_pictures_are_left_out_that_would_take_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = seer("llava")
    pairs, encoder = seen_pairs(made), vision_encoder(made)
    assert len(looked_at(pairs, encoder)) == len(pairs)
    monkeypatch.setattr(thumbnails, "MOST_PATCHES", 1)
    found = looked_at(pairs, encoder)
    assert sum(bool(pair.seen) for pair in found) == 2
    assert [pair.row for pair in found if not pair.seen] == [1, 5]
    assert all(
        torch.is_tensor(one) for pair in found for s in pair.seen for one in s.inputs.values()
    )
