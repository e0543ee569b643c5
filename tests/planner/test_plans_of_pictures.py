"""Plans of models that see: their tower is rehearsed, and patches are counted beside tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from counterpoint.config import CPOConfig
from counterpoint.forward.layouts import LAYOUTS
from counterpoint.forward.seeing import PARTS_THAT_SEE
from counterpoint.models.family import family_of
from counterpoint.models.trainable import freeze_parts, left_by_adapters
from counterpoint.planner import fitting, pictures
from counterpoint.planner.fitting import surely_fits
from counterpoint.planner.plan import Planner
from counterpoint.planner.rehearsal import Way, rehearse
from counterpoint.planner.setting import MemorySetting, changes_of
from counterpoint.planner.shapes import Lengths, Load, Shape
from counterpoint.planner.table import WIDTH, as_table
from counterpoint.planner.weightless import adapted, fake_mode, weightless_twin
from counterpoint.smoke.rows import prepared
from tests.reliability.trials import TORTURE
from tests.vision_on_the_spot import KINDS, ROWS, Made, seen_pairs, seer, vision_encoder

SHAPES = [Shape(60, 12, 9), Shape(40, 7, 8)]
FEW = tuple(KINDS) if TORTURE else ("qwen3_vl",)
"""A kind with as many patches as a picture has; or all."""

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")


def lengths_of(made: Made, rows: Sequence[Any] = ROWS) -> Lengths:
    return Lengths.of(seen_pairs(made, rows), vision_encoder(made))


def made_of_experts(model: Any) -> bool:
    return any("experts" in name for name, _ in model.named_parameters())


def both(made: Made, model: Any, way: Way) -> tuple[Any, Any]:
    """A rehearsal without data, and the same work with data."""
    mode, shown = fake_mode(), lengths_of(made).shown
    assert shown is not None
    if made_of_experts(model):
        model.set_experts_implementation("grouped_mm")  # as a plan does where they are looped over
    rehearsed = rehearse(weightless_twin(model, mode), mode, SHAPES, way, shown)
    return rehearsed, rehearse(model, nullcontext(), SHAPES, way, shown)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        # the experts of this one ask where tokens went, and it has no other way of them
        *((kind, "shared") for kind in KINDS if kind not in ("kimi_k25", "mllama")),
        ("mllama", "padded"),
        *((kind, layout) for kind in FEW for layout in ("padded", "pictures-twice")),
    ],
)
def test_a_rehearsal_of_a_tower_holds_what_the_real_work_holds(kind: str, layout: str) -> None:
    made = seer(kind)
    rehearsed, real = both(made, made[0], Way(layout))
    assert (rehearsed.tokens, rehearsed.patches) == (real.tokens, real.patches)
    assert real.patches > 0
    assert rehearsed.peak.total == pytest.approx(real.peak.total, rel=0.03)
    assert rehearsed.stages[0].total == pytest.approx(real.stages[0].total, rel=0.03)


@pytest.mark.parametrize("kind", FEW)
def test_so_does_one_whose_tower_is_frozen_adapted_or_computed_again(kind: str) -> None:
    held = {}
    for name, way in {
        "whole": Way("shared"),
        "frozen": Way("shared"),
        "adapter": Way("shared"),
        "again": Way("shared", checkpointing={}),
        "all": Way("shared", torch.bfloat16, {"use_reentrant": False}, accumulates=True),
    }.items():
        made = seer(kind)
        model: Any = made[0]
        if name == "frozen":
            freeze_parts(model, PARTS_THAT_SEE)
        if name == "adapter":
            from peft import get_peft_model

            left = left_by_adapters(model.config)
            adapter = LoraConfig(
                task_type="CAUSAL_LM", r=4, target_modules="all-linear", exclude_modules=left
            )
            model = get_peft_model(model, adapter)
        rehearsed, real = both(made, model, way)
        assert rehearsed.peak.total == pytest.approx(real.peak.total, rel=0.03), name
        held[name] = rehearsed.stages[0].activations
    assert max(held["frozen"], held["adapter"], held["again"]) < held["whole"]


@pytest.mark.parametrize("layout", ["shared", "padded", "pictures-twice"])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_say_what_micro_batches_of_the_pairs_cost(kind: str, layout: str) -> None:
    made = seer(kind)
    pairs, lengths = seen_pairs(made), lengths_of(made)
    table = LAYOUTS[layout]
    if kind == "llava_next":  # its patches are of whole tiles, of which some tokens are left out
        cost = lengths.heaviest(len(pairs), layout)
        assert cost == pytest.approx(table.tokens(pairs), rel=0.05)
        return
    assert lengths.heaviest(len(pairs), layout) == table.tokens(pairs)
    assert lengths.heaviest(1, layout) == max(table.tokens([pair]) for pair in pairs)
    patches = (2 if table.looks_again else 1) * sum(
        one.patches for pair in pairs for one in pair.seen
    )
    assert lengths.load(len(pairs), layout).patches == patches
    least, most = sorted(lengths.shares(layout))
    assert least == 0 < most < 1  # some show nothing


def test_lengths_without_a_processor_are_those_of_text() -> None:
    made = seer("llava")
    assert Lengths.of(seen_pairs(made)).shown is None
    assert Lengths.of(seen_pairs(made, [ROWS[1], ROWS[5]]), vision_encoder(made)).shown is None


def planner_of(made: Made, folder: Path, rows: Sequence[Any] = ROWS, **options: Any) -> Planner:
    keywords = {"gradient_checkpointing": False, "use_cpu": True, "bf16": False, **options}
    args = CPOConfig(output_dir=str(folder / "run"), **keywords)
    return Planner(made[0], args, lengths_of(made, rows))


@pytest.mark.parametrize("kind", FEW)
def test_a_plan_of_other_pictures_and_other_texts_is_what_they_hold(
    kind: str, tmp_path: Path
) -> None:
    made = seer(kind)
    planner = planner_of(made, tmp_path)
    demand, shown = planner.demand(planner.setting, accumulates=False), planner.lengths.shown
    assert shown is not None
    mode = fake_mode()
    for shapes in ([Shape(50, 6, 6)] * 6, [Shape(90, 20, 15)] * 4):
        real = rehearse(weightless_twin(made[0], mode), mode, shapes, Way("shared"), shown)
        found = demand.parts(real.tokens, real.patches)
        assert found.total == pytest.approx(real.peak.total, rel=0.1)


def test_patches_and_tokens_each_need_memory_and_a_frozen_tower_needs_less(tmp_path: Path) -> None:
    made = seer("qwen3_vl")
    planner = planner_of(made, tmp_path)
    whole = planner.demand(planner.setting)
    assert whole.peak(500, 200) < min(whole.peak(500, 2000), whole.peak(5000, 200))
    frozen = planner.demand(replace(planner.setting, frozen=PARTS_THAT_SEE))
    assert frozen.peak(500, 2000) < whole.peak(500, 2000)
    assert frozen.holdings.trained < whole.holdings.trained


def test_no_micro_batch_within_the_budget_is_predicted_not_to_fit(tmp_path: Path) -> None:
    planner = planner_of(seer("qwen3_vl"), tmp_path)
    usable = 3 * planner.estimate(2, 0).peak
    budget = planner.budget(usable)
    assert budget > planner.lengths.heaviest(1, "shared")
    least, most = sorted(planner.lengths.shares("shared"))
    demand = planner.demand(planner.setting)

    def peak(cost: int, share: float) -> int:
        patches = round(share * cost)
        return demand.peak(cost - patches, patches)

    for share in np.linspace(least, most, 9):
        assert peak(budget, share) <= usable
    assert max(peak(budget + 1, share) for share in (least, most)) > usable


def test_what_surely_fits_is_predicted_to_fit(tmp_path: Path) -> None:
    made = seer("qwen3_vl")
    planner = planner_of(made, tmp_path)
    load, longest = planner.lengths.load(6, "shared"), sum(planner.lengths.longest("shared"))
    enough = next(
        2**power for power in range(20, 50) if surely_fits(made[0], load.cost, longest, 2**power)
    )
    demand = planner.demand(planner.setting)
    assert demand.peak(*load) - demand.holdings.weights <= enough / 2


def test_a_plan_shows_patches(tmp_path: Path) -> None:
    planner = planner_of(seer("llava"), tmp_path)
    alone = planner.estimate(1, 0)
    assert alone.patches == planner.lengths.load(1, "shared").patches > 0
    plan = planner.plan(2**40, 2**40)
    text = as_table(plan)
    assert "of these, patches of pictures" in text
    assert max(map(len, text.splitlines())) <= WIDTH
    assert plan.as_dict()["asked"]["patches"] > alone.patches


def test_freezing_the_tower_helps_a_model_whose_tower_trains(tmp_path: Path) -> None:
    args = CPOConfig(output_dir=str(tmp_path), use_cpu=True)

    def lines(model: Any) -> list[str]:
        now, possible = MemorySetting("shared"), family_of(model.config).layouts
        changes = changes_of(now, model, args, possible=possible, device="cpu", shards=1)
        return [line for line, _, _ in changes]

    model = seer("llava")[0]
    assert "freeze: [vision]" in lines(model)
    freeze_parts(model, ["vision"])
    assert "freeze: [vision]" not in lines(model)


def test_a_budget_takes_as_much_of_every_kind() -> None:
    load = Load(300, 100)
    assert load.within(200) == Load(150, 50)
    assert load.within(1000) == load


def test_the_tower_of_an_adapted_model_is_as_it_was(tmp_path: Path) -> None:
    made = seer("llava")
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules="all-linear",
        exclude_modules=left_by_adapters(made[0].config),
    )
    names = [n for n, w in adapted(made[0], adapter).named_parameters() if w.requires_grad]
    assert names
    assert all("language_model" in name for name in names)


def test_pairs_of_a_large_set_are_counted_a_part_at_a_time(monkeypatch: Any) -> None:
    made = seer("llava")
    pairs, encoder = seen_pairs(made), vision_encoder(made)
    whole = Lengths.of(prepared(pairs), encoder)
    monkeypatch.setattr(pictures, "AT_ONCE", 2)
    parts = Lengths.of(prepared(pairs), encoder)
    assert whole.shown is not None
    assert parts.shown is not None
    given = Lengths.of(pairs, encoder).shown
    assert given is not None
    assert np.array_equal(whole.shown.patches, given.patches)
    assert np.array_equal(parts.shown.patches, given.patches)


def test_on_a_cpu_what_is_kept_of_pictures_is_no_room_for_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = seer("llava")
    freeze_parts(made[0], PARTS_THAT_SEE)
    pairs, encoder = prepared(seen_pairs(made)), vision_encoder(made)
    monkeypatch.setattr(fitting, "available_memory", lambda device: 10**12)

    def budget(gigabytes: float) -> int | None:
        args = CPOConfig(output_dir=str(tmp_path), use_cpu=True, picture_cache_gb=gigabytes)
        return fitting.fitting_budget(made[0], args, pairs, encoder)

    assert budget(0) is None
    assert budget(1000) == Lengths.of(pairs, encoder).heaviest(1, "shared")
