"""Law 4, the second half: a run that goes on is the run that was never broken, to the bit."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint import ConfigError, SetupError
from counterpoint.checkpoint.experiment import PLANNED
from counterpoint.checkpoint.folder import FILLED, checkpoints, filled, last_good, step_of, tidy
from counterpoint.checkpoint.manifest import MANIFEST, seal
from counterpoint.runlog import read_run
from counterpoint.trainer.feed import Feed
from counterpoint.trainer.resumable import ResumableTrainer
from tests.reliability.scenarios import SCENARIOS, Counting, differences, lines, summary, trainer_of
from tests.reliability.trials import TORTURE
from tests.steps import random_pairs


def broken_after(run: Path, step: int, folder: Path) -> Path:
    """A copy of a run's folder as a kill after a step leaves it: streams as they were later."""
    shutil.copytree(run, folder)
    for path in checkpoints(folder):
        if (step_of(path) or 0) > step:
            shutil.rmtree(path)
    return folder


def weights(trainer: ResumableTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


EVERY_STEP = ("dropout and a schedule", "experts with dropout", "the best model", "a stream")
"""Scenarios that go on from each of their steps in CI too; the others within and after an epoch."""


@pytest.mark.parametrize("name", SCENARIOS)
def test_going_on_after_any_step_is_as_if_nothing_had_happened(name: str, tmp_path: Path):
    scenario = SCENARIOS[name]
    unlimited = {"save_total_limit": None}
    whole = trainer_of(scenario, tmp_path / "whole", **unlimited)
    result = whole.train()
    saved = checkpoints(tmp_path / "whole")
    assert len(saved) >= 2
    for checkpoint in saved if TORTURE or name in EVERY_STEP else saved[:3][-2:]:
        step = step_of(checkpoint) or 0
        folder = broken_after(tmp_path / "whole", step, tmp_path / f"after-{step}")
        # another model, and every generator elsewhere
        resumed = trainer_of(scenario, folder, drawn=9, **unlimited)
        again = resumed.train(resume_from_checkpoint=True)
        for one in checkpoints(tmp_path / "whole"):
            assert differences(one, folder / one.name) == []
        left, right = weights(whole), weights(resumed)
        assert left.keys() == right.keys()
        assert [n for n in left if not torch.equal(left[n], right[n])] == []
        assert summary(resumed) == summary(whole)
        assert lines(folder) == lines(tmp_path / "whole")
        assert again.training_loss == result.training_loss
        assert again.metrics["train_loss"] == result.metrics["train_loss"]
        shutil.rmtree(folder)


def test_a_loss_scale_is_in_the_checkpoint(tmp_path: Path):
    scenario = SCENARIOS["a loss scaler that grows"]
    trainer_of(scenario, tmp_path / "run", max_steps=2).train()
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "run_state.json").read_text())
    assert state["scaler"]["scale"] == 16.0


def test_stochastic_rounding_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torchao")
    monkeypatch.setattr("counterpoint.models.stochastic_adamw._compiles", lambda device: False)
    scenario = {"dtype": torch.bfloat16, "stochastic_rounding": True}
    trainer_of(scenario, tmp_path / "whole").train()
    for step in (2, 3):
        folder = broken_after(tmp_path / "whole", step, tmp_path / f"after-{step}")
        trainer_of(scenario, folder, drawn=9).train(resume_from_checkpoint="latest")
        last = "checkpoint-6"
        assert differences(tmp_path / "whole" / last, folder / last) == []


def test_a_run_killed_twice_is_still_the_unbroken_one(tmp_path: Path):
    scenario = SCENARIOS["dropout and a schedule"]
    trainer_of(scenario, tmp_path / "whole", save_steps=2).train()
    folder = broken_after(tmp_path / "whole", 2, tmp_path / "again")

    class Killed(Exception):
        pass

    class Killer(Counting):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise Killed

    with pytest.raises(Killed):
        trainer_of(scenario, folder, drawn=5, save_steps=2, callbacks=[Killer]).train(True)
    trainer_of(scenario, folder, drawn=9, save_steps=2).train("auto")
    assert differences(tmp_path / "whole" / "checkpoint-6", folder / "checkpoint-6") == []
    assert lines(folder) == lines(tmp_path / "whole")


def test_a_run_ends_in_the_order_in_which_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Up to 0.4 the order of any set was written out, and checkpoints did not say so."""
    scenario = SCENARIOS["dropout and a schedule"]
    now = Feed.state_dict
    with monkeypatch.context() as before:
        before.setattr(
            Feed, "state_dict", lambda feed: {k: v for k, v in now(feed).items() if k != "order"}
        )
        trainer_of(scenario, tmp_path / "old", save_total_limit=None).train()
    monkeypatch.setattr("counterpoint.data.order.LISTED", 4)
    trainer_of(scenario, tmp_path / "new", save_total_limit=None).train()
    last = "checkpoint-6"
    assert differences(tmp_path / "old" / last, tmp_path / "new" / last) != []
    # what a resumed run has saved resumes likewise
    for run, step, times in (("old", 2, 2), ("new", 3, 1)):
        folder = broken_after(tmp_path / run, step, tmp_path / f"{run} resumed")
        for _ in range(times):
            trainer_of(scenario, folder, drawn=9).train(resume_from_checkpoint=True)
            then, again = (path / last / "model.safetensors" for path in (tmp_path / run, folder))
            assert then.read_bytes() == again.read_bytes()
            shutil.rmtree(folder / last)


def test_a_large_set_resumes_from_a_checkpoint_of_before_digests_were_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scenario = {"lr_scheduler_type": "constant"}
    trainer_of(scenario, tmp_path / "run", max_steps=1).train()
    monkeypatch.setattr("counterpoint.data.pair_digest.ALONE", 4)
    resumed = trainer_of(scenario, tmp_path / "run", max_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert str(resumed.fingerprint()["data train"]).startswith("joined:")
    # and from one that was joined itself
    trainer_of(scenario, tmp_path / "run", max_steps=3).train(resume_from_checkpoint=True)


def test_auto_starts_where_there_is_nothing_to_go_on_from(tmp_path: Path):
    trainer = trainer_of({}, tmp_path / "run", max_steps=1)
    trainer.train(resume_from_checkpoint="auto")
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("wanted", [True, "latest"])
def test_insisting_on_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path, wanted):
    with pytest.raises(ConfigError, match=r"CP103 .*holds no complete checkpoint"):
        trainer_of({}, tmp_path / "run").train(resume_from_checkpoint=wanted)


def test_a_stream_is_gone_on_with_without_encoding_what_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from counterpoint.data import prepare

    scenario = {**SCENARIOS["a stream"], "lr_scheduler_type": "constant"}
    trainer_of(scenario, tmp_path / "whole", max_steps=2).train()
    seen: list[int] = []
    original = prepare.encode_rows

    def watched(batch: Any, rows: Any, **more: Any) -> Any:
        seen.extend(row + more.get("first_row", 0) for row in rows)
        return original(batch, rows, **more)

    monkeypatch.setattr(prepare, "encode_rows", watched)
    resumed = trainer_of(scenario, tmp_path / "whole", max_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert seen == [4]
    assert resumed._feed.counts()["train"].rows == 5


# Another experiment

DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "the objective": ({"loss_type": "hinge"}, "loss_type was sigmoid and is hinge"),
    "its scale": ({"beta": 0.2}, r"beta was 0\.1 and is 0\.2"),
    "the learning rate": ({"learning_rate": 1e-3}, r"learning_rate was 0\.01 and is 0\.001"),
    "the pairs of a step": ({"gradient_accumulation_steps": 2}, "pairs a step was 2 and is 4"),
    "the seed": ({"seed": 1}, "seed was 42 and is 1"),
    "the optimizer": ({"optim": "adafactor"}, "optim was .*ADAMW.* and is .*ADAFACTOR"),
    "the model": ({"kind": "llama"}, "model was Qwen2ForCausalLM and is LlamaForCausalLM"),
    "its size": ({"model": {"intermediate_size": 64}}, "weights was .* and is "),
    "what trains of it": ({"lora_dropout": 0.0}, "model was Qwen2ForCausalLM and is PeftModel"),
}


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reliability") / "run"
    trainer_of({}, folder, max_steps=2).train()
    return folder


@pytest.mark.parametrize("what", DIFFERENT)
def test_another_experiment_is_refused_and_the_difference_named(a_run: Path, what: str):
    changes, said = DIFFERENT[what]
    before = {path: path.read_bytes() for path in a_run.rglob("*") if path.is_file()}
    trainer = trainer_of({}, a_run, **{"max_steps": 3, **changes})
    with pytest.raises(SetupError, match=f"CP513 .*{said}"):
        trainer.train(resume_from_checkpoint=True)
    assert {path: path.read_bytes() for path in a_run.rglob("*") if path.is_file()} == before


def test_other_data_is_another_experiment(a_run: Path):
    trainer = trainer_of({}, a_run, max_steps=3)
    trainer.train_dataset = random_pairs(5, seed=3)
    with pytest.raises(SetupError, match=r"CP513 .*data train was "):
        trainer.train(resume_from_checkpoint=True)


def test_those_who_know_go_on_anyway(a_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = broken_after(a_run, 2, tmp_path / "run")
    trainer = trainer_of({}, folder, max_steps=3, beta=0.2, resume_anyway=True)
    with caplog.at_level(logging.WARNING, "counterpoint"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert "resume_anyway: " in caplog.text
    assert "beta was 0.1 and is 0.2" in caplog.text


def test_a_longer_run_a_rarer_log_and_another_cut_are_the_same_experiment(tmp_path: Path):
    constant = {"lr_scheduler_type": "constant", "warmup_steps": 3}
    trainer_of(constant, tmp_path, max_steps=1).train()
    changes = {"logging_steps": 2, "max_micro_batch_tokens": 20, "save_steps": 4, "warmup_steps": 0}
    trainer = trainer_of(constant, tmp_path, max_steps=2, **changes)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2


def test_a_longer_run_of_a_rate_that_falls_is_another_experiment(a_run: Path):
    """The rate has fallen to 0 at step 2; of four steps it would be half of the first there."""
    said = r"CP513 .*of the learning rate's schedule was 2 and is 4\. .*the model of a new run"
    with pytest.raises(SetupError, match=said):
        trainer_of({}, a_run, max_steps=4).train(resume_from_checkpoint=True)
    with pytest.raises(SetupError, match=r"CP513 .*schedule was 2 and is 9\."):
        trainer_of({}, a_run, num_train_epochs=3).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("pairs", [1, 2, 3])
@pytest.mark.parametrize("more", [{}, {"num_train_epochs": 0.3}, {"max_steps": 7}])
def test_the_steps_of_a_run_are_those_that_transformers_counts(
    pairs: int, more: dict[str, Any], tmp_path: Path
):
    accumulated = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": pairs}
    trainer = trainer_of(accumulated, tmp_path, **more)
    theirs = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert trainer.steps_in_all() == theirs[-1]


@pytest.mark.parametrize("anyway", [False, True])
def test_fewer_steps_than_were_done_are_refused(a_run: Path, anyway: bool):
    trainer = trainer_of({}, a_run, max_steps=1, resume_anyway=anyway)
    with pytest.raises(SetupError, match=r"CP513 .*is after step 2, .* to have 1 in all"):
        trainer.train(resume_from_checkpoint=True)


def test_a_checkpoint_of_an_earlier_release_says_its_steps_and_warm_up_too(
    a_run: Path, tmp_path: Path
):
    folder = broken_after(a_run, 2, tmp_path / "run")
    of_0_4(folder / "checkpoint-2", "warmup_steps", 0)
    trainer_of({}, folder, max_steps=2).train(resume_from_checkpoint=True)
    said = "schedule was 2 and is 3; steps of warm-up was 0 and is 2"
    with pytest.raises(SetupError, match=f"CP513 .*{said}"):
        trainer_of({}, folder, max_steps=3, warmup_steps=0.5).train(resume_from_checkpoint=True)


def of_0_4(checkpoint: Path, name: str, value: Any) -> None:
    """Give a checkpoint the fingerprint of an earlier release: without what was added since."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    facts = {n: v for n, v in manifest["fingerprint"].items() if n not in PLANNED}
    (checkpoint / MANIFEST).unlink()
    seal(checkpoint, step=manifest["step"], resumable=True, fingerprint={**facts, name: value})


def test_the_model_alone_cannot_be_gone_on_from(tmp_path: Path):
    trainer_of({}, tmp_path / "run", max_steps=1, save_only_model=True).train()
    with pytest.raises(SetupError, match=r"CP514 .*the model alone"):
        trainer_of({}, tmp_path / "run", max_steps=2).train(resume_from_checkpoint=True)


def test_a_moved_run_still_knows_its_best_checkpoint(tmp_path: Path):
    scenario = {**SCENARIOS["the best model"], "save_total_limit": None}
    trainer_of(scenario, tmp_path / "run", max_steps=3).train()
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = trainer_of(scenario, tmp_path / "moved", max_steps=3)
    moved.train(resume_from_checkpoint=True)
    best = Path(str(moved.state.best_model_checkpoint))
    assert best.parent == tmp_path / "moved"
    assert best.is_dir()


def test_the_newest_checkpoint_stays_beside_the_best_with_a_limit_of_one(tmp_path: Path):
    scenario = {**SCENARIOS["stopped early"], "save_total_limit": 1}
    trainer = trainer_of(scenario, tmp_path / "run")
    trainer.train()
    assert trainer.state.best_global_step < trainer.state.global_step
    newest = last_good(tmp_path / "run")
    assert newest is not None
    assert step_of(newest[0]) == trainer.state.global_step
    assert trainer.args.save_total_limit == 1


def test_what_a_save_left_when_it_was_killed_is_cleared_away(tmp_path: Path):
    saving = filled(tmp_path)
    (saving.__enter__() / "model.safetensors").write_bytes(b"half")  # and no code runs any more
    assert list(tmp_path.iterdir()) == [tmp_path / FILLED]
    tidy(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_the_last_line_that_was_being_written_is_taken_away(tmp_path: Path):
    trainer_of({}, tmp_path / "run", max_steps=2).train()
    whole = [line["step"] for line in read_run(tmp_path / "run").metrics]
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"loss": 0.3, "st')
    trainer_of({}, tmp_path / "run", max_steps=3, resume_anyway=True).train(
        resume_from_checkpoint=True
    )
    steps = [line["step"] for line in read_run(tmp_path / "run").metrics]
    assert (whole, steps) == ([1, 2, 2], [1, 2, 3, 3])


def test_nothing_is_good_after_a_last_good_that_is_not_there(tmp_path: Path):
    assert last_good(tmp_path) is None
