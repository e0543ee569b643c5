"""Commands whose loss compares with a reference: which one it is, and where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.models.loading import load_model, load_tokenizer
from counterpoint.options.run_weights import initial_policy_of
from tests.cli.conftest import PAIRS, Command
from tests.models_on_the_spot import make_model

TRAIN = ("--dataset", "pairs.jsonl", "--output_dir", "out", "--max_steps=1", "--use_cpu")
FAST = ("--learning_rate", "0.01", "--doctor=off")
JUDGED = ("--dataset", "pairs.jsonl", "--use_cpu", "--resamples", "50", "--json")


@pytest.fixture
def trained(workshop: Path, command: Command) -> str:
    """A run of DPO whose reference was its initial policy."""
    said = command("train", "--model", "model", "--loss_type", "dpo", *TRAIN, *FAST)
    assert said.code == 0, said.err
    return "out"


def margin(command: Command, *words: str) -> float:
    said = command("evaluate", *words, *JUDGED)
    assert said.code == 0, said.err
    content: Any = json.loads(said.out)
    return float(content["after"]["sets"]["pairs.jsonl"]["measures"]["margin"]["value"])


def by_the_trainer(model: str, reference: str) -> float:
    args = CPOConfig(output_dir="o", use_cpu=True, loss_type="dpo", reference=reference)
    tokenizer = load_tokenizer("model", args)
    trainer = CPOTrainer(load_model(model, args), args, processing_class=tokenizer)
    return float(trainer.evaluate(PAIRS)["eval_rewards/margins"])


def test_a_run_is_judged_against_what_it_began_with(trained: str, command: Command) -> None:
    found = margin(command, trained)
    assert abs(found) > 1e-3
    assert found == pytest.approx(by_the_trainer(trained, "model"), rel=1e-4)
    # flags go before the run
    assert margin(command, trained, "--reference", trained) == pytest.approx(0, abs=1e-5)


def test_beside_another_loss_no_reference_is_taken_from_a_run(
    trained: str, command: Command
) -> None:
    said = command("evaluate", trained, "--loss_type", "hypo", *JUDGED)
    assert said.code == 2
    assert "beside --loss_type none is taken from the run. Give it as" in said.err


def test_a_model_of_no_run_has_no_initial_policy(trained: str, command: Command) -> None:
    said = command("evaluate", "model", "--loss_type", "dpo", *JUDGED)
    assert (said.code, said.out) == (2, "")
    assert "CP107 reference is missing: DPO compares with a reference, and what model" in said.err
    assert margin(command, "model", "--loss_type=dpo", "--reference=model") == pytest.approx(
        0, abs=1e-5
    )


def test_where_a_run_began_has_a_name(workshop: Path) -> None:
    run = workshop / "run"
    run.mkdir()

    def began(request: str | None, model: str | None) -> str | None:
        (run / "run.json").write_text(json.dumps({"model": model}))
        (run / "train.yaml").unlink(missing_ok=True)
        if request is not None:
            (run / "train.yaml").write_text(request)
        return initial_policy_of(str(run))

    assert began(None, "owner/name") == "owner/name"
    assert began(None, None) is None
    # an adapter that was trained on, and the base that it lies on
    assert began("model: adapter\n", "base") == "adapter"
    assert began("model: owner/name\nrevision: abc\n", "owner/name") == "owner/name@abc"
    assert began("model: model\nfrom_scratch: true\n", "model") is None
    assert initial_policy_of("model") is None


def test_a_reference_that_does_not_fit_is_found_by_the_doctor(
    workshop: Path, command: Command
) -> None:
    make_model("t5").save_pretrained("translator")
    words = ("--model", "model", "--loss_type", "dpo", "--reference", "translator", *TRAIN)
    for name in ("doctor", "train"):
        said = command(name, *words)
        assert said.code == 2
        assert "CP338" in said.out + said.err
    assert not (workshop / "out").exists()


def test_what_only_a_reference_gives_a_meaning_is_refused_without_one(
    workshop: Path, command: Command
) -> None:
    for words in (("--reference", "model"), ("--rpo_alpha", "1"), ("--dpop_lambda", "5")):
        said = command("train", "--model", "model", *words, *TRAIN)
        assert said.code == 2
        assert f"CP104 {words[0][2:]}=" in said.err
        assert "would do nothing with loss_type='sigmoid'; it is for dp" in said.err
    said = command("train", "--model", "model", "--loss_type=dpo", "--reference= ", *TRAIN)
    assert "CP103 reference=' ' should be initial, or a model's id or folder" in said.err
