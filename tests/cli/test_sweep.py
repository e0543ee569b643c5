"""``counterpoint sweep``: what cannot be meant is refused before anything runs; the rest trains."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("optuna", reason="the extra [sweep] is not installed")

from counterpoint.cli.sweep import USAGE, SweepOptions, _judge
from counterpoint.errors import ConfigError
from counterpoint.objectives import OBJECTIVE_OPTIONS
from counterpoint.options.settings import read_request
from counterpoint.sweep.space import Axis, read_axes
from tests.cli.conftest import Command

RUN = (
    *("--model", "model", "--dataset", "pairs.jsonl", "--eval_share", "0.25"),
    *("--max_steps", "2", "--use_cpu", "--report_to", "none"),
)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), "CP107", "--over is missing"),
        (("--over", "beta=0.1,0.2", "--jobs", "0"), "CP103", "jobs=0"),
        (("--over", "betta=0.1,0.2"), "CP101", "beta"),
        (("--over", "beta=0.1,many"), "CP103", "--beta=many"),
        (("--over", "loss_type=simpo,simpoo"), "CP102", "simpo"),
        (("--over", "beta=1,2", "--metric", "acuracy"), "CP108", "eval_rewards/accuracies"),
        (("--over", "beta=1,2", "--metric", "logps/chosen"), "CP107", "--direction"),
        (("--over", "beta=1,2", "--direction", "minimize"), "CP104", "take the worst"),
        (("--over", "beta=1,2", "--trials", "1"), "CP104", "leaves out"),
        (("--over", "beta=1,2", "--resume", "auto"), "CP104", "resume"),
    ],
)
def test_what_cannot_be_meant_starts_nothing(
    command: Command, workshop: Path, words: tuple[str, ...], code: str, said: str
) -> None:
    done = command("sweep", *RUN, "--out", "s", *words)
    assert done.code == 2
    assert code in done.err
    assert said in " ".join(done.err.split())
    assert not Path("s").exists()


def test_the_settings_of_the_help_are_settings() -> None:
    shown = re.findall(r"^  --over (.+?)(?:  .*)?$", USAGE, re.MULTILINE)
    assert len(shown) == 2
    for words in shown:
        for axis in read_axes(words.split()):
            for end in axis.ends():
                read_request(["--model=m", "--dataset=d", "--use_cpu", f"--{axis.name}={end}"])


@pytest.mark.parametrize("name", [one for one in OBJECTIVE_OPTIONS if one != "reference"])
def test_a_loss_of_another_objective_is_said_to_be_on_another_scale(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SimpleNamespace(
        generate_during_eval=False,
        constrained_by=(),
        use_weighting=False,
        load_best_model_at_end=False,
        metric_for_best_model=None,
    )
    axes = [Axis(name, ("1", "2"))]
    request = SimpleNamespace(config=config, run=SimpleNamespace(eval_dataset=[]))
    _judge(SweepOptions(metric="loss"), request, axes)
    assert f"of other values of {name} is on another scale" in " ".join(
        capsys.readouterr().err.split()
    )
    _judge(SweepOptions(metric="accuracy"), request, axes)
    assert "another scale" not in capsys.readouterr().err


def test_of_named_sets_the_metric_says_which_before_anything_trains(workshop: Path) -> None:
    words = [*RUN[:4], "--use_cpu", "--eval_dataset", "de=pairs.jsonl", "fr=pairs.jsonl"]
    request, axes = read_request(words), [Axis("beta", ("1", "2"))]
    with pytest.raises(ConfigError, match=r"CP108 --metric accuracy is given by no evaluation"):
        _judge(SweepOptions(), request, axes)
    judge = _judge(SweepOptions(metric="fr_rewards/accuracies"), request, axes)
    assert (judge.metric, judge.more_is_better) == ("eval_fr_rewards/accuracies", True)


def test_rows_to_judge_by_are_asked_for(command: Command, workshop: Path) -> None:
    done = command("sweep", *RUN[:4], "--over", "beta=1,2", "--out", "s")
    assert done.code == 2
    assert "CP107 eval_dataset is missing" in " ".join(done.err.split())


def test_without_optuna_it_is_said_how_to_install_it(
    command: Command, workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("counterpoint.sweep.study.find_spec", lambda _: None)
    done = command("sweep", *RUN, "--over", "beta=1,2", "--out", "s")
    assert done.code == 2
    assert "CP502" in done.err
    assert "pip install 'optuna>=" in " ".join(done.err.split())


def test_two_runs_train_and_the_page_shows_both(
    command: Command, workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bokeh", reason="the extra [report] is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    words = ("sweep", *RUN, "--over", "learning_rate=1e-5,1e-3", "--out", "s", "--metric", "loss")
    done = command(*words, "--jobs", "2")
    assert done.code == 0, done.err
    assert "best: trial" in done.out
    assert json.loads(Path("s/sweep.json").read_text())["metric"] == "eval_loss"
    page = Path("s/sweep.html").read_text(encoding="utf-8")
    assert "trial-000" in page
    assert "trial-001" in page
    # the run is train's own: its weights are those that train gives
    alone = command("train", *RUN, "--learning_rate", "1e-3", "--output_dir", "alone")
    assert alone.code == 0, alone.err
    mine = Path("s/trial-001/model.safetensors").read_bytes()
    assert mine == Path("alone/model.safetensors").read_bytes()
    before = Path("s/trial-000/run.json").stat().st_mtime_ns
    again = command(*words)
    assert again.code == 0, again.err
    assert Path("s/trial-000/run.json").stat().st_mtime_ns == before
    other = command(*words, "--beta", "3")
    assert "CP527 s holds a sweep with other values of beta" in " ".join(other.err.split())
