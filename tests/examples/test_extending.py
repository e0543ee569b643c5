"""What is added from outside works everywhere; the tables are the only place to touch."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from math import exp, log1p
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from counterpoint import ConfigError, Constraint, CPOConfig, CPOTrainer, constraints, objectives
from counterpoint.alarms.remedies import Facts, hold_the_chosen
from counterpoint.constraints import KINDS
from counterpoint.doctor.of_objective import of_objective
from counterpoint.doctor.of_unused import Rest, unused
from counterpoint.engine.plain import Plain
from counterpoint.engine.table import ENGINES, engine_for, register_engine
from counterpoint.forward.layouts import LAYOUTS, PADDED, register_layout
from counterpoint.losses.constrained import Seen, denominators, measured
from counterpoint.losses.objective import LossMath, Objective, RewardedPairs
from counterpoint.objectives import LOSSES, Loss
from counterpoint.options.table import options
from counterpoint.records import PairLogps, TokenPair
from counterpoint.report.story import method
from counterpoint.runlog import read_run
from tests.examples.pages import DOCS, blocks
from tests.models_on_the_spot import make_model
from tests.steps import Gradients, distance, random_pairs, train_watched
from tests.tokenizers_on_the_spot import byte_level

EXAMPLE = DOCS.parent / "examples" / "extending.py"
PAGE = DOCS / "extending.md"
TABLES: tuple[dict[str, Any], ...] = (objectives._ROWS, constraints._ROWS, LAYOUTS, ENGINES)


@pytest.fixture(scope="module")
def example() -> Iterator[dict[str, Any]]:
    """The example's names; what it added to the tables is gone afterwards."""
    before = [dict(table) for table in TABLES]
    assert (
        "soft-simper" not in options()["loss_type"].choices
    )  # read before, which must not freeze it
    yield runpy.run_path(str(EXAMPLE))
    for table, rows in zip(TABLES, before, strict=True):
        table.clear()
        table.update(rows)


@pytest.fixture(scope="module")
def trainer(example: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> CPOTrainer:
    """A run of a few steps with all that was added."""
    return example["main"](output_dir=str(tmp_path_factory.mktemp("run")), steps=8)


def lines_of(trainer: CPOTrainer) -> list[dict[str, float]]:
    return [line for line in trainer.state.log_history if "loss" in line]


LOGPS = PairLogps(
    torch.tensor([-4.0, -9.0], dtype=torch.float64, requires_grad=True),
    torch.tensor([-6.0, -8.0], dtype=torch.float64, requires_grad=True),
    torch.tensor([2, 3]),
    torch.tensor([3, 4]),
)


def test_an_added_loss_is_computed_by_its_own_formula(example: dict[str, Any]) -> None:
    objective = Objective("soft-simper", cpo_alpha=0.0)
    terms = objective(LOGPS, torch.zeros(2).double())
    chosen, rejected = (
        (LOGPS.chosen / torch.tensor([2, 3]) / 2).exp(),
        (LOGPS.rejected / torch.tensor([3, 4]) / 2).exp(),
    )
    assert torch.equal(terms.preference, -(chosen - rejected))
    assert torch.equal(terms.chosen_rewards, chosen)  # beta, which it does not read, scales nothing
    (slope,) = torch.autograd.grad(terms.preference[0], LOGPS.chosen)
    assert slope[0].item() == pytest.approx(-chosen[0].item() / 4)
    assert objective.formula() == (
        "loss = mean over pairs of -gap\n"
        "gap  = (r(chosen) - r(rejected))\n"
        "r(y) = exp(mean log p / 2)"
    )


def test_an_added_loss_trains_and_is_named_by_the_report(trainer: CPOTrainer) -> None:
    first, last = lines_of(trainer)[0], lines_of(trainer)[-1]
    assert last["rewards/margins"] > first["rewards/margins"]
    run = read_run(trainer.args.output_dir)
    assert run.facts["objective"].startswith("loss = mean over pairs of -gap + 0.1 * NLL")
    assert method(run) == "softened SimPER"


def test_an_added_loss_is_an_option_with_its_own_refusals(
    example: dict[str, Any], tmp_path: Path
) -> None:
    assert options()["loss_type"].choices == tuple(LOSSES)
    assert "soft-simper" in options()["loss_type"].choices
    for option, value in (("label_smoothing", 0.1), ("simpo_gamma", 1.0), ("alpha", 0.25)):
        with pytest.raises(ConfigError, match=r"CP104.*soft-simper"):
            CPOConfig(output_dir=str(tmp_path), loss_type="soft-simper", **{option: value})
    args = CPOConfig(output_dir=str(tmp_path), loss_type="soft-simper", beta=2.0)
    assert unused(args, Rest(evaluates=False)) == {"beta": "softened SimPER has no beta"}
    assert [one.code for one in of_objective(args, adapted=False)] == ["CW101"]
    assert hold_the_chosen(Facts(8, loss_type="soft-simper", cpo_alpha=0.0)) == "cpo_alpha: 0.05"


def arpo(pairs: RewardedPairs, objective: Objective) -> Tensor:
    """arXiv:2410.03115: the rejected completion counts less, the more it is like the chosen."""
    logps = pairs.logps
    apart = logps.chosen / logps.chosen_tokens - logps.rejected / logps.rejected_tokens
    part = (0.9 * (0.4 * apart.abs()).exp() - 1).clamp(max=1)
    gap = objective.beta * (logps.chosen - part * logps.rejected) - pairs.margin
    return -F.logsigmoid(gap)


def apo_zero(pairs: RewardedPairs, objective: Objective) -> Tensor:
    """arXiv:2408.06266: of both rewards, not of their gap."""
    chosen, rejected = objective.beta * pairs.chosen, objective.beta * pairs.rejected
    return 1 - chosen.sigmoid() + rejected.sigmoid()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # part of rejected: 0.9 e^(0.4 |-2 + 2|) - 1 = -0.1, and 0.9 e^(0.4 |-3 + 2|) - 1
        (arpo, [log1p(exp(-0.1 * (-4 - 0.6))), log1p(exp(-0.1 * (-9 + 8 * (0.9 * exp(0.4) - 1))))]),
        (
            apo_zero,
            [
                1 - 1 / (1 + exp(0.4)) + 1 / (1 + exp(0.6)),
                1 - 1 / (1 + exp(0.9)) + 1 / (1 + exp(0.8)),
            ],
        ),
    ],
)
def test_a_row_holds_a_loss_that_reads_more_than_the_gap(
    loss: Callable[[RewardedPairs, Objective], Tensor],
    expected: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = Loss("read", "Read", math=LossMath(loss, lambda objective: "more"), per_token=False)
    monkeypatch.setitem(objectives._ROWS, "read", row)
    terms = Objective("read", beta=0.1)(LOGPS, torch.zeros(2).double())
    assert terms.preference.tolist() == pytest.approx(expected, rel=1e-12)


def test_an_added_kind_is_measured_over_the_whole_step(example: dict[str, Any]) -> None:
    asked = Constraint("rejected_likelihood", bound=-2.5)
    pairs = [TokenPair([1], [4] * 2, [5] * 3, 0), TokenPair([1], [4] * 3, [5] * 4, 1, weight=0.5)]
    batch = PADDED.collate(pairs)
    objective = Objective()
    terms = objective(LOGPS, batch.margin)
    found = measured(asked, Seen(objective, LOGPS, terms, batch))
    assert found.numerator.tolist() == [-6.0, -4.0]
    assert denominators(asked, objective, batch).tolist() == [3.0, 2.0]


def test_an_added_kind_holds_its_bound(trainer: CPOTrainer) -> None:
    lines = lines_of(trainer)
    for line in lines:
        value, bound = (
            line[f"constraints/rejected_likelihood/{key}"] for key in ("value", "bound")
        )
        assert bound == -2.5
        violation = line["constraints/rejected_likelihood/violation"]
        assert violation == pytest.approx(value + 2.5)
    above = [line["constraints/rejected_likelihood/violation"] > 0 for line in lines]
    multipliers = [line["constraints/rejected_likelihood/multiplier"] for line in lines]
    assert above[0]
    assert multipliers[0] > 0
    assert (
        read_run(trainer.args.output_dir).facts["constraints"][0]["kind"] == "rejected_likelihood"
    )


def test_an_added_kind_is_an_option_with_its_own_refusals(example: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"CP107.*its unit is nats a token of the rejected"):
        Constraint("rejected_likelihood")
    with pytest.raises(ConfigError, match=r"CP104.*give a bound"):
        Constraint("rejected_likelihood", slack=0.1)
    with pytest.raises(ConfigError, match=r"CP104.*belongs to absolute_preference"):
        Constraint("rejected_likelihood", bound=-2.5, margin=1.0)
    assert list(KINDS)[-1] == "rejected_likelihood"


def test_an_added_layout_lays_every_pair_of_a_run(trainer: CPOTrainer) -> None:
    facts = read_run(trainer.args.output_dir).facts
    assert facts["layout"] == "padded-to-8"


def steps_with(folder: Path, **options: Any) -> tuple[Gradients, CPOTrainer]:
    """An epoch of eight pairs in float64: the gradients of its steps, and the trainer."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["<|endoftext|>"], size=384), eos_token="<|endoftext|>"
    )
    return train_watched(make_model("phi").double(), tokenizer, random_pairs(8), folder, **options)


def test_an_added_layout_gives_the_same_step(example: dict[str, Any], tmp_path: Path) -> None:
    (plain,), (other,) = (
        steps_with(tmp_path / layout, layout=layout, per_device_train_batch_size=8)[0]
        for layout in ("padded", "padded-to-8")
    )
    assert distance(plain, other) < 1e-12


def test_an_added_layout_costs_what_it_lays(example: dict[str, Any]) -> None:
    pairs = [TokenPair([1] * 4, [4] * 2, [5] * 7, 0), TokenPair([1], [4] * 3, [5] * 4, 1)]
    batch = LAYOUTS["padded-to-8"].collate(pairs)
    assert batch.input_ids.shape == (4, 16)
    assert batch.cost == batch.input_ids.numel() == 64
    lengths = np.array([[4, 2, 7], [1, 3, 4]])
    assert options()["layout"].choices == ("auto", *LAYOUTS)
    assert LAYOUTS["padded-to-8"].tokens_alone(lengths).tolist() == [32, 16]
    predicted = batch.input_ids.flatten()[batch.target_source]
    assert torch.equal(
        predicted, PADDED.collate(pairs).input_ids.flatten()[PADDED.collate(pairs).target_source]
    )


def test_an_added_engine_runs_where_the_plain_one_would(trainer: CPOTrainer) -> None:
    assert trainer.engine.name == "offloaded"
    assert engine_for(trainer.accelerator).name == "offloaded"


def test_an_added_engine_gives_the_same_step_bit_for_bit(
    example: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = []
    save_on_cpu = torch.autograd.graph.save_on_cpu
    monkeypatch.setattr(
        torch.autograd.graph, "save_on_cpu", lambda: entered.append(1) or save_on_cpu()
    )
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    offloaded, trainer = steps_with(tmp_path / "offloaded", **options)
    assert trainer.engine.name == "offloaded"
    assert len(entered) == 4  # two steps of two micro-batches
    monkeypatch.delitem(ENGINES, "offloaded")
    plain, trainer = steps_with(tmp_path / "plain", **options)
    assert trainer.engine.name == "plain"
    assert [distance(one, other) for one, other in zip(plain, offloaded, strict=True)] == [0, 0]


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="there is a loss called 'simpo' already"):
        objectives.register_loss(LOSSES["simpo"])
    with pytest.raises(ValueError, match="there is a constraint of kind 'bc' already"):
        constraints.register_constraint_kind(KINDS["bc"])
    with pytest.raises(ValueError, match="there is a layout 'padded' already"):
        register_layout(PADDED)
    with pytest.raises(ValueError, match="there is an engine 'plain' already"):
        register_engine(Plain)


def test_the_page_shows_the_example() -> None:
    shown = [text for kind, text in blocks(PAGE.read_text(encoding="utf-8")) if kind == "python"]
    assert len(shown) == len(TABLES)
    source = EXAMPLE.read_text(encoding="utf-8")
    for text in shown:
        imports, added = text.strip().split("\n\n", 1)
        assert added in source
        assert all(line in source for line in imports.splitlines())
