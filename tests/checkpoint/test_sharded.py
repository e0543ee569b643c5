"""Checkpoints by shard: whole on any ranks, under any engine, and named where they are damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from counterpoint import SetupError
from counterpoint.checkpoint import consolidate as whole_models
from counterpoint.checkpoint.consolidate import consolidate, find_whole
from counterpoint.checkpoint.fingerprint import model_facts
from counterpoint.checkpoint.manifest import MANIFEST, SHARDS, read_manifest, seal, verify
from counterpoint.checkpoint.optimizer import load_named_state, named_state
from counterpoint.checkpoint.resumption import OPTIMIZER
from counterpoint.checkpoint.saving import write_model
from counterpoint.checkpoint.sharded import load_saved, read_optimizer, write_shards
from counterpoint.checkpoint.together import verify_together
from counterpoint.checkpoint.tree import write_tree
from counterpoint.checkpoint.trial_save import saved_beside, try_saving
from counterpoint.checkpoint.weights import adapter_names, write_beside
from tests.checkpoint.sharded_ranks import CASES, differs, made, optimizer_of, whole
from tests.checkpoint.sharded_runs import IDS as IDS_OF_RUNS
from tests.checkpoint.sharded_runs import QUICK, RUNS, STEPS, base_model
from tests.invariance.test_ranks import launch
from tests.models_on_the_spot import make_model
from tests.ranks_in_threads import as_ranks
from tests.reliability.sharded_kills import compared
from tests.reliability.trials import TORTURE
from tests.trainer.test_every_adapter import config_of

IDS = torch.arange(12).reshape(3, 4)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks have saved, each case by shard."""
    folder = tmp_path_factory.mktemp("sharded")
    for code, output in launch("tests.checkpoint.sharded_ranks", ["save", str(folder)]):
        assert code == 0, output[-3000:]
    return folder


def restored(folder: Path, name: str) -> tuple[Any, torch.optim.Optimizer]:
    """A plain model and its optimizer, as saved by two ranks."""
    place = folder / name / "checkpoint-1"
    listed = verify(place, step=1).files
    model = made(**CASES[name], seed=9)
    optimizer = optimizer_of(model)
    load_saved(model, place, listed)
    load_named_state(optimizer, model, read_optimizer(place, model, listed))
    return model, optimizer


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_one_process_without_shards_resumes_from_those_of_two_ranks(two_ranks: Path, name: str):
    model, optimizer = restored(two_ranks, name)
    assert differs(whole(model, optimizer), torch.load(two_ranks / f"{name}.pt")) == []


@pytest.mark.slow
def test_three_ranks_resume_from_shards_of_two_and_from_whole_checkpoints(two_ranks: Path):
    for name in CASES:
        model, optimizer = restored(two_ranks, name)
        target = two_ranks / name / "whole" / "checkpoint-1"
        target.mkdir(parents=True)
        write_model(target, model, None, {})
        write_beside(target, model)
        write_tree(target, OPTIMIZER, named_state(optimizer, model))
        seal(target, step=1, resumable=True, fingerprint={})
    found = launch("tests.checkpoint.sharded_ranks", ["load", str(two_ranks)], ranks=3)
    for code, output in found:
        assert code == 0, output[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_whole_model_is_what_one_process_would_have_saved(
    two_ranks: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, _ = restored(two_ranks, name)
    plain = tmp_path / "plain"
    plain.mkdir()
    write_model(plain, model, None, {})
    write_beside(plain, model)
    place = two_ranks / name / "checkpoint-1"
    listed = verify(place).files
    names = consolidate(place, listed, tmp_path / "again")
    for folder in (two_ranks / name / "final", tmp_path / "again"):
        assert sorted(path.name for path in folder.iterdir()) == names
        assert set(names) == {path.name for path in plain.iterdir()}
        for file in plain.glob("*.safetensors"):
            saved, expected = load_file(folder / file.name), load_file(file)
            assert saved.keys() == expected.keys()
            assert all(torch.equal(saved[key], expected[key]) for key in expected)
        for file in plain.glob("*.json"):
            assert content(folder / file.name) == content(file)
    # the same in several files
    monkeypatch.setattr(whole_models, "LARGEST", 20_000)
    many = consolidate(place, listed, tmp_path / "many")
    assert ("model.safetensors.index.json" in many) == ("model.safetensors" in names)
    final = two_ranks / name / "final"
    with torch.no_grad():
        expected = model.eval()(input_ids=IDS).logits
        for folder in (final, tmp_path / "many"):
            assert torch.equal(opened(folder, name)(input_ids=IDS).logits, expected)


def content(path: Path) -> dict[str, Any]:
    """What a file of JSON holds; PEFT writes a set in any order."""
    found = json.loads(path.read_text())
    return {k: sorted(v) if k == "target_modules" else v for k, v in found.items()}


def opened(folder: Path, name: str) -> Any:
    """The model that plain transformers or PEFT makes of a folder."""
    if not CASES[name].get("adapter"):
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    base = make_model("qwen2", vocab_size=67)
    beside = load_file(folder / "beside.safetensors")
    short = {key.removeprefix("base_model.model."): value for key, value in beside.items()}
    base.load_state_dict(short, strict=False)
    return PeftModel.from_pretrained(base, folder).eval()


@pytest.mark.slow
def test_no_file_of_a_checkpoint_by_shard_is_a_pickle(two_ranks: Path):
    for name in CASES:
        place = two_ranks / name / "checkpoint-1"
        files = sorted(verify(place).files)
        kinds = {Path(file).suffix for file in files}
        assert kinds <= {".safetensors", ".json", ".md"}
        parts = [file for file in files if "shard-" in file]
        assert {file[: file.index("-model-")] for file in parts} == {
            f"{kind}/shard-0000{rank}" for kind in ("model", "optimizer") for rank in (1, 2)
        }
        for file in parts:
            with safe_open(place / file, framework="pt") as content:
                assert list(content.keys())


def truncated(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: Path, _: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def deleted(path: Path, _: Path) -> None:
    path.unlink()


def swapped(path: Path, other: Path) -> None:
    kept = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(kept)


@pytest.mark.slow
@pytest.mark.parametrize("harm", [truncated, flipped, deleted, swapped])
@pytest.mark.parametrize("name", ["tied", "an adapter"])
def test_each_damaged_file_is_named_before_anything_is_loaded(
    two_ranks: Path, name: str, harm: Callable[[Path, Path], None], tmp_path: Path
):
    original = two_ranks / name / "checkpoint-1"
    files = sorted(read_manifest(original).files)
    assert len([file for file in files if "shard-" in file]) == 4
    for file in files:
        place = tmp_path / "checkpoint-1"
        shutil.copytree(original, place)
        # of a shard, the one of the same tensors that the other rank has written
        other = file.replace("00001-model", "0000X-model").replace("00002-model", "00001-model")
        other = other.replace("0000X-model", "00002-model")
        other = next(one for one in files if one != file) if other == file else other
        harm(place / file, place / other)
        with pytest.raises(SetupError, match=r"^CP512 .* is damaged: ") as raised:
            verify(place, step=1)
        assert file in raised.value.message
        shutil.rmtree(place)


@pytest.mark.slow
@pytest.mark.parametrize("harm", [truncated, flipped, deleted, swapped])
def test_each_damaged_file_of_a_run_is_named_on_every_rank(
    two_ranks: Path, harm: Callable[[Path, Path], None], tmp_path: Path
):
    """Weights, moments, what a rank had alone, what all had, and the lists of what there is."""
    original = two_ranks / QUICK[0] / "whole" / f"checkpoint-{STEPS}"
    files = sorted(read_manifest(original).files)
    states = {"optimizer.json", "rank-0.safetensors", "rank-1.json", "run_state.json", SHARDS}
    assert states <= set(files)
    assert any(file.startswith("optimizer/shard-00001") for file in files)
    for file in files:
        place = tmp_path / original.name
        shutil.copytree(original, place)
        other = file.replace("rank-1.", "rank-X.").replace("rank-0.", "rank-1.")
        other = other.replace("rank-X.", "rank-0.")
        if other == file or (place / other).read_bytes() == (place / file).read_bytes():
            other = next(one for one in files if one != file)
        harm(place / file, place / other)
        said = as_ranks(2, partial(verify_together, place, step=STEPS))
        assert said[0] == said[1]
        assert said[0].startswith("CP512 ")
        assert file in said[0]
        shutil.rmtree(place)


@pytest.mark.slow
def test_shards_with_a_gap_are_not_taken_for_a_tensor(two_ranks: Path, tmp_path: Path):
    place = tmp_path / "checkpoint-1"
    shutil.copytree(two_ranks / "tied" / "checkpoint-1", place)
    (place / "model" / "shard-00002-model-00001-of-00001.safetensors").unlink()
    (place / MANIFEST).unlink()
    listed = seal(place, step=1, resumable=True, fingerprint={}).files
    for work in (
        lambda: load_saved(made(**CASES["tied"]), place, listed),
        lambda: consolidate(place, listed, tmp_path / "whole"),
    ):
        with pytest.raises(SetupError, match=r"^CP524 the shards in .* of the 2,144 entries of "):
            work()
    assert not list(tmp_path.glob("whole/*"))


@pytest.mark.slow
def test_another_model_is_refused_by_the_names_of_its_tensors(two_ranks: Path):
    place = two_ranks / "tied" / "checkpoint-1"
    listed = verify(place).files
    for changes in ({"vocab_size": 70}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}):
        other = made(**{**CASES["tied"], **changes})
        before = [weight.clone() for weight in other.parameters()]
        with pytest.raises(SetupError, match=r"^CP514 .* holds \d+ tensors "):
            load_saved(other, place, listed)
        assert all(map(torch.equal, before, other.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("change", ["{", '{"model": 1}', '{"model": {}, "optimizer": {}}'])
def test_a_list_of_tensors_that_is_none_is_damage(two_ranks: Path, tmp_path: Path, change: str):
    place = tmp_path / "checkpoint-1"
    shutil.copytree(two_ranks / "tied" / "checkpoint-1", place)
    (place / SHARDS).write_text(change)
    with pytest.raises(SetupError, match=r"^CP512 .*shards\.json is damaged"):
        load_saved(made(**CASES["tied"]), place, read_manifest(place).files)


@pytest.mark.slow
def test_a_full_disk_on_one_rank_stops_all_and_leaves_what_was_there(two_ranks: Path):
    said = [(two_ranks / f"full-{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0].startswith("CP515 ")
    assert "No space left on device" in said[0]
    assert [path.name for path in (two_ranks / "full").iterdir()] == ["checkpoint-1"]
    verify(two_ranks / "full" / "checkpoint-1", step=1)


def test_a_file_of_tensors_one_by_one_is_the_file_of_them_all(tmp_path: Path):
    tensors = {
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "wide": torch.randn(2, dtype=torch.float64),
        "scalar": torch.tensor(1.5),
        "none": torch.empty(0, 4),
        "truth": torch.tensor([True, False, True]),
        "turned": torch.randn(4, 3).T,
    }
    groups = [
        whole_models._Group(
            [whole_models.FileEntry(name, tuple(one.shape), one.dtype)],
            lambda n=name: {n: tensors[n]},
        )
        for name, one in tensors.items()
    ]
    whole_models.write_file(tmp_path / "one", *whole_models._in_order(groups))
    expected = {name: one.contiguous() for name, one in tensors.items()}
    save_file(expected, tmp_path / "all", metadata={"format": "pt"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "all").read_bytes()


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "SHIRA", "LORA"])
def test_an_adapter_of_which_peft_computes_a_part_is_refused_before_the_first_step(
    kind: str, tmp_path: Path
):
    model = get_peft_model(make_model("qwen2"), config_of(kind))
    parts = saved_beside(model, None, True)
    with nullcontext() if kind == "LORA" else pytest.raises(SetupError, match=r"^CP523 PEFT comp"):
        try_saving(tmp_path, parts)


def test_names_of_an_adapter_are_found_where_peft_gives_copies():
    model = get_peft_model(make_model("qwen2"), config_of("LORA"))
    expected = adapter_names(model)
    assert len(expected["default"]) == 8
    model._tp_size = 1  # as transformers has it of a model that it loaded in shards
    assert adapter_names(model) == expected


@pytest.mark.parametrize("named", ["CAUSAL_LM", None])
def test_what_lies_beside_the_shards_of_an_adapter_names_the_class_of_its_base(
    named: str | None, tmp_path: Path
):
    base = make_model("qwen2")
    kind = type(base)
    base.__class__ = type(f"FSDP{kind.__name__}", (kind,), {})  # as fully_shard makes it
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type=named)
    model = get_peft_model(base, config)
    assert model_facts(base)["model"] == kind.__name__
    write_model(tmp_path, model, None, {}, weights=False)
    mapping = json.loads((tmp_path / "adapter_config.json").read_text())["auto_mapping"]
    expected = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    assert mapping == (None if named else expected)


def test_what_an_optimizer_keeps_in_a_form_of_its_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from counterpoint.checkpoint import sharded

    model = made(**CASES["tied"])
    name = next(iter(dict(model.named_parameters())))
    monkeypatch.setattr(
        sharded, "is_sharded", lambda tensor: isinstance(tensor, torch.nn.Parameter)
    )
    state = {"groups": [], "state": {name: {"step": torch.tensor(1.0), "codes": torch.ones(9)}}}
    with pytest.raises(SetupError, match=rf"^CP517 the state at state\.{name}\.codes is"):
        write_shards(tmp_path, model, state)


def opened_run(folder: Path, name: str) -> Any:
    """The model that plain transformers or PEFT makes of a run's files."""
    if not RUNS[name].get("adapter"):
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    return PeftModel.from_pretrained(base_model(), folder).eval()


def check_run(folder: Path, name: str) -> None:
    """What a whole run of ranks that share a model has left, resumed, and sent to a hub."""
    whole, seen = folder / "whole", torch.load(folder / "seen.pt")
    last, resumable = f"checkpoint-{STEPS}", not RUNS[name].get("save_only_model")
    whole_weights = not RUNS[name].get("adapter")
    # the best and the last one stay, where one may
    assert seen["best"] == 1
    assert sorted(path.name for path in whole.glob("checkpoint-*")) == ["checkpoint-1", last]
    for place in (whole / "checkpoint-1", whole / last):
        manifest = verify(place)
        assert manifest.resumable == resumable
        written = {Path(file).name[:11] for file in manifest.files if "shard-" in file}
        # of two copies one is written; every rank has all of an adapter that came after sharding
        assert len(written) == (2 if whole_weights or "door" in RUNS[name] else 1)
        assert any(file.startswith("optimizer") for file in manifest.files) == resumable
    # what is saved at the end is the best one, as plain transformers and PEFT open it
    with torch.no_grad():
        assert torch.equal(opened_run(whole, name)(input_ids=IDS_OF_RUNS).logits, seen["logits"])
    for path in (whole, whole / "checkpoint-1"):
        place, manifest = find_whole(path)
        target = folder / f"of {path.name}"
        consolidate(place, manifest.files, target)
        best = path != whole
        for final in target.glob("*model.safetensors"):
            assert (final.read_bytes() == (whole / final.name).read_bytes()) == best
        with torch.no_grad():
            found = opened_run(target, name)(input_ids=IDS_OF_RUNS).logits
        assert torch.equal(found, seen["logits"]) == best
    if resumable:
        assert compared(whole, folder / "again", last=last) == []
    if RUNS[name].get("push_to_hub"):
        check_hub(folder, name, seen["logits"])


def check_hub(folder: Path, name: str, best: torch.Tensor) -> None:
    """A hub was sent a whole model at each save, and the best one at the end."""
    sent = sorted((folder / "hub").iterdir(), key=lambda path: int(path.name))
    resumed = [place for place in sent if any(place.glob("checkpoint-*"))]
    models = [place for place in sent if place not in resumed]
    assert len(models) == STEPS + 1
    for number, place in enumerate(models):
        with torch.no_grad():
            found = opened_run(place, name)(input_ids=IDS_OF_RUNS).logits
        assert torch.equal(found, best) == (number in (0, STEPS))
        assert not any(b"hf_secret" in file.read_bytes() for file in place.rglob("*.*"))
    assert len(resumed) == (STEPS if RUNS[name].get("hub_strategy") == "all_checkpoints" else 0)
    for place in resumed:
        verify(next(place.iterdir()))


@pytest.mark.slow
def test_a_run_in_shards_resumes_keeps_its_best_and_sends_whole_models(two_ranks: Path):
    for name in QUICK:
        check_run(two_ranks / name, name)


@pytest.mark.slow
@pytest.mark.skipif(not TORTURE, reason="takes minutes")
@pytest.mark.parametrize("count", [2, 4])
def test_every_kind_of_run_in_shards_is_saved_and_resumed(tmp_path: Path, count: int):
    names = [name for name in RUNS if RUNS[name].get("replicas", 1) * 2 == count]
    said = launch(
        "tests.checkpoint.sharded_runs", [str(tmp_path), *names], ranks=count, seconds=1800
    )
    for code, output in said:
        assert code == 0, output[-3000:]
    for name in names:
        check_run(tmp_path / name, name)
