"""A run's folder that is damaged, or a stranger's, is refused by its place or read; no bug."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from counterpoint import ConfigError, CounterpointError, ModelError, SetupError
from counterpoint.checkpoint.manifest import MANIFEST, read_manifest, seal
from counterpoint.checkpoint.resumption import OPTIMIZER, SHARED
from counterpoint.checkpoint.state_file import TRAINER_STATE, read_state
from counterpoint.checkpoint.tree import read_tree, write_tree
from counterpoint.data.counts import PrepareCounts
from counterpoint.monitor.weight_files import WeightFiles
from counterpoint.options.evaluate_options import of_run
from counterpoint.report.about import About
from counterpoint.report.card import model_card
from counterpoint.report.comparison import comparison_page
from counterpoint.report.progress import progress_of
from counterpoint.report.run_report import news
from counterpoint.report.runs_table import numbers_of
from counterpoint.report.watching import Watched
from counterpoint.run_schema import DEEPEST, check_facts
from counterpoint.runlog import METRICS, RUN_FILE, STREAMS, RunLog, read_run, stream_file
from counterpoint.step.replay.file import FORMAT, KEY, read_replay
from tests.cli.conftest import Command, command
from tests.reliability.scenarios import trainer_of
from tests.reliability.trials import trials
from tests.report.runs import write_run

__all__ = ["command"]

COUNTS = Counter(prompt=1, chosen=2, rejected=3)
SAID = "drops thoughts of the prompt"
ACCOUNT = PrepareCounts(
    "train",
    rows=9,
    kept=8,
    dropped=Counter(CP203=1),
    examples={"CP203": "CP203 row 3: rejected is empty."},
    **dict.fromkeys(("tokens", "cut_rows", "cut_tokens", "absent_rows"), COUNTS),
    **dict.fromkeys(("boundary_rows", "boundary_tokens", "little_rows", "same_rows"), 1),
    spelled_rows=1,
    listed_rows=1,
    listed_pairs=2,
    lost=Counter({SAID: 1}),
    shown={SAID: "row 1: 'I think' (CW216)"},
    lengths={"prompt": Counter({3: 5, 50: 3}), "chosen": Counter({4: 8}), "rejected": Counter()},
    limits={"max_length": 64},
).as_dict()
"""Of a set in which everything was counted."""
CONSTRAINT = {"name": "nll", "kind": "bc", "bound": 1.0, "slack": None, "cap": 5.0, "rate": 0.1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with everything that one can write."""
    from tests.report.conftest import ALARMS

    folder = tmp_path_factory.mktemp("hostile") / "run"
    write_run(
        folder,
        steps=40,
        layers=1,
        looks=2,
        options={"loss_type": "simpo", "cpo_alpha": 0.05, "run_name": "x", "constraints": None},
        data={"train": ACCOUNT},
        alarms=ALARMS,
        constraints=[{**CONSTRAINT, "update": "dual_ascent", "start": 0.0}],
        versions={"torch": "2"},
        resumed=[{"step": 20, "time": 1.79e9}],
        adapter={"default": {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}},
        base="0f3a-11c2",
        given={"model": "m", "eval_dataset": {"easy": "e.jsonl"}, "beta": 0.1},
    )
    line = {f"constraints/nll/{key}": 0.5 for key in ("value", "bound", "violation", "multiplier")}
    line |= {"loss": 0.7, "rewards/accuracies": 0.5, "train_runtime": 3.5}
    RunLog(folder).append(METRICS, {"step": 41, **line})
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def look_at(folder: Path) -> None:
    """Every reader of a run's folder."""
    found = read_run(folder)
    news(found, "1")  # makes the page, and the columns of its charts
    comparison_page([found, found])
    model_card(found, About("a", "b", adapter=True, datasets=(), tags=(), language="", license=""))
    of_run(str(folder))
    progress_of(found)
    numbers_of(found)


def refusal(folder: Path) -> str:
    """What is said of a folder; "" where it is read."""
    try:
        look_at(folder)
    except SetupError as error:
        return error.message if error.code == "CP507" else f"not CP507, but {error}"
    return ""


# Values

DEEP: Any = []
for _ in range(2 * DEEPEST):
    DEEP = [DEEP]

VALUES: list[Any] = [
    *(None, True, -1, 10**400, 1e308, float("inf"), float("nan"), "\ud800"),
    *([], {}, {"a": {"b": 1}}, [None], DEEP),
]


def places(value: Any, wide: int, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value; of lists the first is enough, below ``wide`` levels the first few."""
    yield before
    if isinstance(value, dict):
        for name, one in list(value.items())[: 40 if len(before) < wide else 2]:
            yield from places(one, wide, (*before, name))
    elif isinstance(value, list) and value:
        yield from places(value[0], wide, (*before, 0))


def put(whole: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    found = copy.deepcopy(whole)
    inner = found
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return found


@pytest.mark.parametrize("file", [RUN_FILE, *(f"{stream}.jsonl" for stream in STREAMS)])
def test_whatever_stands_at_any_place_is_read_or_refused(run: Path, file: str) -> None:
    path, refused = run / file, set()
    kept = path.read_text()
    lines = [kept] if file == RUN_FILE else kept.splitlines()
    known = json.loads(lines[-1])
    # "data", a set's name, what was counted of it: the facts are looked at one level deeper
    every = product(places(known, 3 if file == RUN_FILE else 2), VALUES)
    # a third of them in CI: each place meets other values than the one before it
    for place, value in islice(every, 0, None, trials(3, 1)):
        told = json.dumps(put(known, place, value))
        path.write_text(told if file == RUN_FILE else "\n".join([*lines[:-1], told, ""]))
        try:
            if refusal(run):
                refused.add(place)
        except Exception as error:
            pytest.fail(f"{file}, {place}={str(value)[:30]}: {error!r}")
    assert () in refused
    path.write_text(kept)
    assert not refusal(run)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"started": "yesterday"}, "it.started should be seconds since 1970, not 'yesterday'"),
        ({"started": 1e300}, "it.started"),
        ({"resumed": [{"step": 1.5}]}, "it.resumed[0].step should be a whole number from 0"),
        ({"ended": {"state": ["finished"]}}, "it.ended.state should be text, not a list"),
        ({"options": []}, "it.options should be a mapping, not a list"),
        ({"data": {"train": {"rows": "17"}}}, "it.data.train.rows"),
        ({"data": {"train": {"lengths": {"prompt": {"edges": [None]}}}}}, "edges[0]"),
        ({"constraints": [{}]}, "it.constraints[0] should have a name"),
        ({"environment": DEEP}, f"nested more than {DEEPEST} deep"),
        ({"environment": {"a": 10**400}}, "a number beyond 10 to the 300"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(changes: dict[str, Any], place: str) -> None:
    with pytest.raises(ValueError, match=r"it") as refused:
        check_facts(changes)
    assert place in str(refused.value)


def test_a_bare_nan_of_an_earlier_release_is_read(run: Path) -> None:
    with stream_file(run, METRICS).open("a") as file:
        file.write('{"loss": NaN, "grad_norm": Infinity, "step": 42, "time": 1.79e9}\n')
    assert not refusal(run)
    last = read_run(run).metrics[-1]
    assert (str(last["loss"]), str(last["grad_norm"])) == ("nan", "inf")


# Files


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 16 + b"\n")


def other_encoding(path: Path) -> None:
    path.write_bytes('{"step": 1, "seen": "é"}\n'.encode("latin-1"))


def wide_encoding(path: Path) -> None:
    path.write_bytes('{"step": 1}\n'.encode("utf-16"))


def deep_lists(path: Path) -> None:
    path.write_text("[" * 10_000 + "]" * 10_000 + "\n")


def deep_mappings(path: Path) -> None:
    path.write_text('{"a": ' * 10_000 + "1" + "}" * 10_000 + "\n")


def many_digits(path: Path) -> None:
    path.write_text(f'{{"step": {"9" * 5000}}}\n')


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_out(path: Path) -> None:
    outside = path.parent.parent / f"outside-{path.name}"
    path.rename(outside)
    path.symlink_to(outside)


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


DAMAGES: tuple[Callable[[Path], None], ...] = (
    *(binary, other_encoding, wide_encoding, deep_lists, deep_mappings, many_digits),
    *(folder, pipe, link_out, link_to_itself, device),
)


@pytest.mark.parametrize("file", [RUN_FILE, *(f"{stream}.jsonl" for stream in STREAMS)])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_files_that_are_none_of_a_run_are_refused(
    run: Path, file: str, damage: Callable[[Path], None]
) -> None:
    damage(run / file)
    assert file in refusal(run)
    Watched(run).version()  # asks for what is there, and reads nothing


def test_an_empty_or_cut_run_file_is_refused_and_an_empty_stream_is_not(run: Path) -> None:
    nothing(stream_file(run, METRICS))
    assert not refusal(run)
    content = (run / RUN_FILE).read_bytes()
    for kept in (b"", content[: len(content) // 2], b"null", b"[]", b'"a"', b"1"):
        (run / RUN_FILE).write_bytes(kept)
        assert RUN_FILE in refusal(run)


def test_a_cut_line_at_the_end_waits_and_one_before_it_is_refused(run: Path) -> None:
    path = stream_file(run, METRICS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-1], lines[-1][:9]]))
    assert not refusal(run)
    path.write_bytes(b"".join([*lines[:2], lines[2][:9] + b"\n", *lines[3:]]))
    assert "metrics.jsonl line 3 is no line of a run" in refusal(run)


def test_a_run_that_came_through_the_hubs_cache_is_read(run: Path, tmp_path: Path) -> None:
    home = tmp_path / "models--a--b"
    shot, blobs = home / "snapshots" / "0123", home / "blobs"
    shutil.copytree(run, shot)
    blobs.mkdir()
    (shot / RUN_FILE).rename(blobs / "abc")
    (shot / RUN_FILE).symlink_to(blobs / "abc")
    assert not refusal(shot)


@pytest.mark.parametrize("words", [["report"], ["compare", "whole"], ["evaluate"]])
@pytest.mark.parametrize("damage", [deep_lists, binary, folder, link_out])
def test_the_commands_say_it_in_a_line(
    run: Path, whole: Path, command: Command, words: list[str], damage: Callable[[Path], None]
) -> None:
    damage(run / RUN_FILE)
    first, *others = words
    more = ["--dataset", "none.jsonl"] if first == "evaluate" else []
    said = command(first, str(run), *(str(whole) for _ in others), *more)
    assert said.code == 2
    assert "a bug or a limit" not in said.err
    assert "Traceback" not in said.err
    wanted = "CP" if first == "evaluate" and damage in (folder,) else "CP507"
    assert f"counterpoint: {wanted}" in said.err
    assert said.err.count("\n") == 1


# Checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of a run."""
    folder = tmp_path_factory.mktemp("hostile") / "trained"
    trainer_of({}, folder, max_steps=2).train()
    return folder


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """One of a copy."""
    return Path(shutil.copytree(trained, tmp_path / "trained")) / "checkpoint-1"


def sealed(checkpoint: Path) -> None:
    """Make a manifest that vouches for whatever is there, as one who means harm would."""
    found = read_manifest(checkpoint)
    (checkpoint / MANIFEST).unlink()
    seal(checkpoint, step=found.step, resumable=True, fingerprint=found.fingerprint)


def resume(checkpoint: Path) -> CounterpointError:
    trainer = trainer_of({}, checkpoint.parent, max_steps=2)
    with pytest.raises(CounterpointError) as refused:
        trainer.train(resume_from_checkpoint=str(checkpoint))
    return refused.value


STATES: list[Any] = [
    *("", "[]", "null", "[" * 10_000, "{}", '{"max_steps": 2}', "\x00"),
    {"max_steps": "2"},
    {"max_steps": -1},
    {"global_step": 10**400},
    {"log_history": {"a": 1}},
    {"log_history": [1]},
    {"stateful_callbacks": [1]},
    {"a_field_of_nobody": 1},
    {"best_global_step": "x"},
    {"epoch": []},
    {"trial_params": DEEP},
]


def test_whatever_trainer_state_holds_is_read_or_refused(checkpoint: Path) -> None:
    path = checkpoint / TRAINER_STATE
    known = json.loads(path.read_text())
    for state in STATES:
        path.write_text(state if isinstance(state, str) else json.dumps(known | state))
        with pytest.raises(SetupError, match=r"CP512 .*trainer_state.json is damaged"):
            read_state(path)
    sealed(checkpoint)
    assert resume(checkpoint).code == "CP512"


@pytest.mark.parametrize(
    "tree",
    [
        *("[]", "", "null", "[" * 10_000, '{"__tensor__": "none"}', '{"__float__": "x"}'),
        *('{"__tuple__": 1}', '{"__pairs__": [1]}', "{}", '{"place": 1}'),
    ],
)
def test_whatever_the_runs_state_holds_is_refused(checkpoint: Path, tree: str) -> None:
    (checkpoint / f"{SHARED}.json").write_text(tree)
    sealed(checkpoint)
    refused = resume(checkpoint)
    assert (refused.code, refused.message.split(" is ")[1][:7]) == ("CP512", "damaged")


@pytest.mark.parametrize(
    "changes",
    [
        {"streams": {"metrics": "x"}},
        {"streams": []},
        {"place": {"epoch": "x"}},
        {"callbacks": 1},
        {"own": None},
    ],
    ids=str,
)
def test_types_of_the_runs_state_are_checked(checkpoint: Path, changes: dict[str, Any]) -> None:
    write_tree(checkpoint, SHARED, read_tree(checkpoint, SHARED) | changes)
    sealed(checkpoint)
    assert resume(checkpoint).code == "CP512"


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": 1},
        {"groups": [{}]},
        {"groups": [{"params": [1]}]},
        {"groups": []},
        {"state": []},
        {"state": {"a": 1}},
        {"state": {"a parameter of nobody": {"exp_avg": 1.0}}},
    ],
    ids=str,
)
def test_types_of_the_optimizers_state_are_checked(
    checkpoint: Path, changes: dict[str, Any]
) -> None:
    write_tree(checkpoint, OPTIMIZER, read_tree(checkpoint, OPTIMIZER) | changes)
    sealed(checkpoint)
    assert resume(checkpoint).code in ("CP512", "CP514")


@pytest.mark.parametrize(
    "changes",
    [
        {"random": []},
        {"random": {}},
        {"random": {"python": {"words": torch.zeros(9, dtype=torch.uint8)}}},
        {"random": {"python": {"words": [1, 2]}}},
        {"random": {"numpy": {"kind": "other"}}},
        {"random": {"torch": torch.zeros(3)}},
        {"own": 1},
    ],
    ids=str,
)
def test_types_of_a_ranks_state_are_checked(checkpoint: Path, changes: dict[str, Any]) -> None:
    write_tree(checkpoint, "rank-0", read_tree(checkpoint, "rank-0") | changes)
    sealed(checkpoint)
    assert resume(checkpoint).code == "CP512"


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "1"},
        {"step": -1},
        {"resumable": "yes"},
        {"files": []},
        {"files": {"a": {"size": "1", "sha256": "x"}}},
        {"fingerprint": []},
        {"versions": [1], "format": 99},
        {"more": DEEP},
    ],
    ids=str,
)
def test_a_manifest_with_its_own_digest_right_is_still_checked(
    checkpoint: Path, changes: dict[str, Any]
) -> None:
    from counterpoint.checkpoint.manifest import _own_digest

    content = json.loads((checkpoint / MANIFEST).read_text())
    content.pop("sha256")
    content |= changes
    (checkpoint / MANIFEST).write_text(json.dumps({**content, "sha256": _own_digest(content)}))
    with pytest.raises(SetupError) as refused:
        read_manifest(checkpoint)
    assert refused.value.code in ("CP512", "CP514")


# Models and steps


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize("damage", [nothing, *DAMAGES], ids=lambda damage: damage.__name__)
def test_diff_refuses_what_is_no_model(
    checkpoint: Path, name: str, damage: Callable[[Path], None]
) -> None:
    if damage is link_out or (damage in (folder, pipe, link_to_itself, device) and "index" in name):
        pytest.skip("a model may lie elsewhere; what is no file is no index")
    for other in ("optimizer", SHARED, "rank-0"):
        (checkpoint / f"{other}.safetensors").unlink()
    (checkpoint / name).touch()
    damage(checkpoint / name)
    with pytest.raises(ModelError, match="CP301"):
        WeightFiles(checkpoint)


@pytest.mark.parametrize(
    "told",
    [
        *("", "[]", "null", "{}", "[" * 10_000, '{"format": 1e400}', f'{{"format": {"9" * 5000}}}'),
        json.dumps({"format": FORMAT, "step": 10**400, "seen": {}, "objective": DEEP}),
        json.dumps({"format": FORMAT, "step": 1, "seen": [], "objective": {"beta": 10**400}}),
    ],
    ids=lambda told: told[:20],
)
def test_replay_refuses_what_is_no_step(tmp_path: Path, told: str) -> None:
    path = tmp_path / "replay-1.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={KEY: told})
    with pytest.raises(ConfigError, match="CP110"):
        read_replay(path)


# Strict JSON, both ways


def strictly(text: str) -> Any:
    def refuse(word: str) -> None:
        pytest.fail(f"a bare {word}")

    return json.loads(text, parse_constant=refuse)


def test_every_json_file_of_a_checkpoint_is_strict_and_odd_numbers_come_back(
    tmp_path: Path,
) -> None:
    first: Any = trainer_of({}, tmp_path / "run", max_steps=2)
    begin = first._save_checkpoint

    def with_odd_numbers(model: Any, trial: Any) -> None:
        first.state.best_metric = float("-inf")
        first.state.log_history.append({"loss": float("nan"), "step": first.state.global_step})
        begin(model, trial)

    first._save_checkpoint = with_odd_numbers
    first.train()
    for path in (tmp_path / "run").rglob("*.json*"):
        for line in (
            path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        ):
            strictly(line)
    state = strictly((tmp_path / "run" / "checkpoint-1" / TRAINER_STATE).read_text())
    assert state["best_metric"] == {"not_finite": "-inf"}
    again = trainer_of({}, tmp_path / "run", max_steps=2)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    assert again.state.best_metric == float("-inf")
    assert str(again.state.log_history[1]["loss"]) == "nan"


def test_trees_are_strict_and_the_same_again(tmp_path: Path) -> None:
    tree = {"a": float("nan"), "b": (float("inf"), [-float("inf"), 1.5]), "__float__": "nan"}
    write_tree(tmp_path, "t", tree)
    strictly((tmp_path / "t.json").read_text())
    found = read_tree(tmp_path, "t")
    assert str(found) == str(tree)
    (tmp_path / "t.json").write_text('{"a": NaN, "b": Infinity}')  # of an earlier release
    assert str(read_tree(tmp_path, "t")) == "{'a': nan, 'b': inf}"


def test_a_manifest_is_strict_and_its_odd_numbers_are_the_same_experiment(tmp_path: Path) -> None:
    from counterpoint.checkpoint.fingerprint import differences

    (tmp_path / "a").write_text("a")
    asked = {"max_grad_norm": float("inf"), "odd": float("nan")}
    seal(tmp_path, step=1, resumable=True, fingerprint=asked)
    strictly((tmp_path / MANIFEST).read_text())
    assert differences(read_manifest(tmp_path).fingerprint, asked) == {}
    assert differences(read_manifest(tmp_path).fingerprint, asked | {"max_grad_norm": 1.0})


def test_what_commands_print_as_json_is_strict() -> None:
    from counterpoint.strict import strict_json

    odd = {"a": float("nan"), "b": [(float("inf"),)], "c": {"d": -float("inf")}}
    assert strictly(strict_json(odd)) == {"a": "nan", "b": [["inf"]], "c": {"d": "-inf"}}


LOOSE = {
    *(
        "options/given.py",
        "markup.py",
        "masking.py",
        "report/run_report.py",
        "models/described.py",
    ),
    *("data/cache.py", "data/candidates.py", "data/scored.py", "data/sources.py"),
    *("data/encoder.py", "data/mapped.py", "data/translation.py", "data/vision.py"),
    *("checkpoint/experiment.py", "checkpoint/manifest.py", "doctor/survey.py"),
    "report/columns.py",
    *("quickstart/run.py", "runlog/nouns.py", "checkpoint/adapted.py"),
    *("data/survival.py", "data/said_values.py", "data/switches.py"),
    *("data/human_marks.py", "loop/figures.py", "scoring/of_judge.py"),
}
"""Modules whose ``json.dumps`` is for a message, a page, a key or a digest, or of texts alone."""


def test_whoever_writes_numbers_as_json_writes_them_strictly() -> None:
    source = Path(__file__).parents[2] / "src" / "counterpoint"
    calls = re.compile(r"json\.dumps?\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        for call in calls.findall(path.read_text(encoding="utf-8"))
        if "allow_nan=False" not in call
    }
    assert found <= LOOSE
