"""A step that is not finite is kept, and doing it again finds what broke first."""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from counterpoint import ConfigError, NonFiniteError
from counterpoint.data.pair_columns import to_pair
from counterpoint.forward.layouts import PADDED, SHARED
from counterpoint.records import PairBatch, TokenPair
from counterpoint.step.guard import StepGuard
from counterpoint.step.replay import recompute
from counterpoint.step.replay.file import Replay, read_replay, write_replay
from tests.cli.conftest import Command, command, pattern, workshop
from tests.models_on_the_spot import make_model
from tests.steps import random_pairs, train_watched, with_gold

__all__ = ["command", "pattern", "workshop"]


@pytest.fixture(autouse=True)
def _weights_are_lost_after_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are not finite before the first step are CP308; here they come about later."""
    monkeypatch.setattr("counterpoint.step.finite.UpdateGuard.check_start", lambda *_, **__: None)


def stopped(model: Any, tokenizer: Any, pairs: Any, folder: Path, **options: Any) -> str:
    """Train until a step is not finite; the message."""
    with pytest.raises(NonFiniteError) as caught:
        train_watched(
            model, tokenizer, pairs, folder, **{"per_device_train_batch_size": 4, **options}
        )
    return caught.value.message


def poisoned_margin(row: int, count: int = 8) -> Any:
    return random_pairs(count).map(
        lambda one: {"margin": float("nan") if one["row"] == row else 0.0}
    )


# The file


def random_token_pairs(rng: random.Random) -> list[TokenPair]:
    def ids(least: int) -> list[int]:
        return [rng.randrange(5) for _ in range(rng.randint(least, 6))]

    pairs, third = [], rng.random() < 0.5
    for row in range(rng.randint(1, 4)):
        prompt = ids(0)
        least = 1 if prompt else 2
        weight, margin = rng.random(), rng.random()
        gold = ids(least) if third else ()
        pairs.append(TokenPair(prompt, ids(least), ids(least), row, weight, margin, gold=gold))
    return pairs


def same(one: PairBatch, other: PairBatch) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a := getattr(one, name), Tensor) else a == b
        for name in PairBatch.__slots__
        for b in [getattr(other, name)]
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_pairs_of_a_batch_make_the_batch_again(seed: int) -> None:
    pairs = random_token_pairs(random.Random(seed))
    padded, shared = PADDED.collate(pairs), SHARED.collate(pairs)
    assert same(PADDED.collate(padded.pairs), padded)
    assert list(shared.pairs) == pairs


@pytest.fixture(scope="module")
def of_step_two(chatml_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of step 2, of which row 6 has no finite margin."""
    folder = tmp_path_factory.mktemp("replay") / "run"
    stopped(make_model("qwen2"), chatml_tokenizer, poisoned_margin(6), folder)
    return folder / "replay-2.safetensors"


@pytest.fixture
def kept(of_step_two: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copy(of_step_two, tmp_path))


def test_the_file_holds_gold_completions(
    models: Any, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    pairs = with_gold(poisoned_margin(2))
    pairs = pairs.map(lambda row: {"gold_given": [1, 2] if row["row"] == 1 else []})
    pairs = pairs.map(lambda row: {"gold_ids": [*row["gold_ids"], 7, 8, 9]})
    stopped(models("qwen2"), chatml_tokenizer, pairs, tmp_path, loss_type="tpo")
    path = tmp_path / "replay-1.safetensors"
    kept = [pair for batch in read_replay(path).micro_batches for pair in batch]
    assert {pair.row: [*pair.gold] for pair in kept} == {n: pairs[n]["gold_ids"] for n in range(4)}
    assert {pair.row: [*pair.gold_given] for pair in kept} == {0: [], 1: [1, 2], 2: [], 3: []}
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for name, spoilt in (("golds", tensors["golds"] - 1), ("gold", -tensors["gold"] - 1)):
        save_file({**tensors, name: spoilt}, path, metadata=metadata)
        with pytest.raises(ConfigError, match="CP110"):
            read_replay(path)
    save_file({k: v for k, v in tensors.items() if k != "golds"}, path, metadata=metadata)
    with pytest.raises(ConfigError, match=r"CP110.*gold completions"):
        read_replay(path)


def test_the_file_holds_the_micro_batch_whole_and_the_message_names_it(
    models: Any, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    pairs = poisoned_margin(6)
    message = stopped(
        models("qwen2"),
        chatml_tokenizer,
        pairs,
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        loss_type="simpo",
        beta=2.0,
    )
    path = tmp_path / "replay-2.safetensors"
    assert f"counterpoint replay {path} shows what broke first" in message
    found = read_replay(path)
    (batch,) = found.micro_batches
    # nan is not equal to itself
    told = {pair.row: replace(pair, margin=0.0) for pair in batch}
    assert 6 in told
    assert len(told) == 2
    assert told == {row: replace(to_pair(pairs[row]), margin=0.0) for row in told}
    assert (found.step, found.objective.loss_type, found.objective.beta) == (2, "simpo", 2.0)
    assert float(found.totals.weight) == pytest.approx(sum(pairs["weight"][4:8]))
    assert found.settings.micro_batches == 2
    assert path.stat().st_size < 10_000  # most of it the names of parameters


def test_what_is_written_is_read(kept: Path, tmp_path: Path) -> None:
    found = read_replay(kept)
    finite = tuple(
        tuple(replace(pair, margin=0.5) for pair in batch) for batch in found.micro_batches
    )
    found = replace(found, micro_batches=finite, generators=({"cpu": torch.get_rng_state()},))
    found = replace(found, settings=replace(found.settings, dropout=True))
    write_replay(found, tmp_path / "again.safetensors")
    again = read_replay(tmp_path / "again.safetensors")
    assert again.micro_batches == found.micro_batches
    assert (again.objective, again.settings, again.origin) == (
        found.objective,
        found.settings,
        found.origin,
    )
    assert torch.equal(again.generators[0]["cpu"], found.generators[0]["cpu"])


def test_only_the_first_steps_of_a_run_that_skips_are_kept_and_the_log_says_so(
    models: Any, chatml_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = random_pairs(10).map(lambda row: {"margin": float("nan")})
    with caplog.at_level(logging.WARNING, logger="counterpoint"):
        train_watched(
            models("qwen2"),
            chatml_tokenizer,
            pairs,
            tmp_path,
            per_device_train_batch_size=2,
            nonfinite="skip",
        )
    names = sorted(path.name for path in tmp_path.glob("replay-*"))
    assert names == [f"replay-{step}.safetensors" for step in (1, 2, 3)]
    assert caplog.text.count("shows what broke first") == 3
    assert caplog.text.count("It is not kept: 3 steps of this run are.") == 2


def test_a_disk_that_refuses_the_file_does_not_hide_the_verdict(
    models: Any, chatml_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*facts: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("counterpoint.step.replay.recorder.write_replay", full)
    message = stopped(models("qwen2"), chatml_tokenizer, poisoned_margin(6), tmp_path)
    assert "the loss of row 6 is not finite" in message
    assert "could not be written (No space left on device)" in message


def held(**asked: Any) -> dict[str, Any]:
    """A constraint as a file holds it."""
    return {"asked": {"name": "one", **asked}, "multiplier": 1.0, "bound": None}


SPOILT: dict[str, Any] = {
    "negative ids": {"ids": lambda ids: -ids - 1},
    "ids that are missing": {"ids": lambda ids: ids[:-1]},
    "ids of another type": {"ids": lambda ids: ids.double()},
    "a negative length": {"lengths": lambda lengths: lengths * -1},
    "spans of other pairs": {"givens": lambda givens: givens[1:]},
    "spans that are not there": {"givens": lambda givens: givens + 2},
    "no pair": {"rows": lambda rows: rows[:0]},
    "other micro-batches": {"cut": lambda cut: cut + 1},
    "weights of other pairs": {"weight": lambda weight: weight[:-1]},
    "denominators that are none": {"totals": lambda totals: totals[:1]},
}
FORGED: dict[str, Any] = {
    "another format": {"format": 7},
    "no step": {"step": "twelve"},
    "no objective": {"objective": {}},
    "a loss that is none": {"objective": {"loss_type": "sigmoyd"}},
    "a layout that is none": {"settings": {"layout": "diagonal"}},
    "a precision that is an attribute of torch": {"settings": {"autocast": "load"}},
    "culprits that are none": {"culprits": [{"term": "x"}]},
    "sets of other micro-batches": {"sets": []},
    "a set without a name": {"sets": [7]},
    "a constraint of no kind": {"constraints": [held(kind="bcd")]},
    "a constraint with another option": {"constraints": [held(kind="bc", strength=2)]},
    "a multiplier that is none": {"constraints": [{**held(kind="bc"), "multiplier": "high"}]},
    "a constraint without denominator": {"constraints": [held(kind="bc")]},
    "normalized by a word": {"normalized": "yes"},
}


def metadata_of(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        return json.loads(file.metadata()["counterpoint_replay"])


@pytest.mark.parametrize("name", [*SPOILT, *FORGED])
def test_a_file_that_is_not_as_it_should_be_is_refused(kept: Path, name: str) -> None:
    tensors, described = load_file(kept), metadata_of(kept)
    for key, change in SPOILT.get(name, {}).items():
        tensors[key] = change(tensors[key]).contiguous()
    for key, value in FORGED.get(name, {}).items():
        both = isinstance(value, dict) and value
        described[key] = {**described[key], **value} if both else value
    save_file(tensors, kept, metadata={"counterpoint_replay": json.dumps(described)})
    with pytest.raises(ConfigError, match=r"CP110 .*is no replay file, or a broken one: "):
        read_replay(kept)


def test_a_file_with_any_byte_changed_or_cut_is_read_or_refused_but_never_crashes(
    kept: Path,
) -> None:
    whole, rng, refused = kept.read_bytes(), random.Random(0), 0
    for _ in range(300):
        spoilt = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        kept.write_bytes(spoilt[: rng.choice([len(spoilt), rng.randrange(len(spoilt))])])
        try:
            assert isinstance(read_replay(kept), Replay)
        except ConfigError as error:
            assert error.code == "CP110"  # noqa: PT017 - one of many
            refused += 1
    assert refused > 200


# Doing it again


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_the_first_token_that_is_not_finite_is_named(
    models: Any, chatml_tokenizer: Any, tmp_path: Path, layout: str, side: str
) -> None:
    """One token of one completion has no finite embedding, which spoils its row, and no other."""
    model, place = models("qwen2"), 2
    only = 639
    ids = [[9, 8, only, 7, 6, 5] if row == 5 else [9, 8, 7] for row in range(8)]
    pairs = random_pairs(8).remove_columns(f"{side}_ids").add_column(f"{side}_ids", ids)
    with torch.no_grad():
        model.model.embed_tokens.weight[only] = float("inf")
    # in the first step: after an update the weights themselves are looked at
    stopped(model, chatml_tokenizer, pairs, tmp_path, layout=layout, per_device_train_batch_size=8)
    culprits = read_replay(tmp_path / "replay-1.safetensors").culprits
    parameter, layer, token = culprits[:3]
    assert (parameter.term, parameter.name) == ("parameter", "model.embed_tokens.weight")
    assert (parameter.value, parameter.count) == ("inf", 32)
    assert (layer.term, layer.name) == ("layer", "model.embed_tokens")
    assert (layer.row, layer.part, layer.token, layer.token_id) == (5, side, place, only)
    assert (token.term, token.row) == ("log-probability", 5)
    assert token.count >= 3  # the tokens after it, and where masks multiply by 0, those before
    assert side in [one.part for one in culprits if one.term == "reward"]
    assert {one.row for one in culprits} == {None, 5}


def test_a_reward_that_overflows_is_named_though_every_token_is_finite(
    models: Any, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    pairs = random_pairs(4).map(lambda row: {"chosen_ids": row["chosen_ids"] * 40})
    stopped(models("qwen2"), chatml_tokenizer, pairs, tmp_path, alpha=1.0)
    first = read_replay(tmp_path / "replay-1.safetensors").culprits[0]
    assert (first.term, first.part, first.value) == ("reward", "chosen", "-inf")


def test_a_gradient_that_breaks_alone_is_named_with_its_parameter(
    models: Any, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    model = models("qwen2")
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), float("inf")))
    message = stopped(model, chatml_tokenizer, random_pairs(4), tmp_path)
    assert "the gradient is not finite, though every loss is" in message
    (only,) = read_replay(tmp_path / "replay-1.safetensors").culprits
    assert (only.term, only.name) == ("gradient", "model.layers.1.mlp.up_proj.weight")
    assert (only.count, only.total) == (32, 32 * 48)


def test_with_dropout_the_step_is_done_again_with_the_same_dropout(
    models: Any, chatml_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    again: list[Tensor] = []
    watch, terms_of = StepGuard.watch, recompute._of_terms
    monkeypatch.setattr(
        StepGuard, "watch", lambda *facts: seen.append(facts[1].nll.detach()) or watch(*facts)
    )
    monkeypatch.setattr(
        recompute,
        "_of_terms",
        lambda *facts: again.append(facts[0].nll.detach()) or terms_of(*facts),
    )
    model = models("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    options = {"disable_dropout": False, "per_device_train_batch_size": 2}
    stopped(
        model,
        chatml_tokenizer,
        poisoned_margin(6),
        tmp_path,
        gradient_accumulation_steps=4,
        **options,
    )
    found = read_replay(tmp_path / "replay-1.safetensors")
    number = next(n for n, nll in enumerate(seen) if torch.equal(nll, again[0]))
    model.zero_grad()
    device_free = torch.get_rng_state()
    recompute.culprits_of(found, model, _head(model), device="cpu")
    assert torch.equal(again[1], seen[number])
    torch.set_rng_state(device_free)
    recompute.culprits_of(replace(found, generators=()), model, _head(model), device="cpu")
    assert not torch.equal(again[2], seen[number])


def _head(model: Any) -> Any:
    from counterpoint.forward.head import find_head

    return find_head(model)


def test_looking_into_a_skipped_step_changes_nothing_after_it(
    models: Any, chatml_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random generators, gradients and weights are as if nobody had looked."""

    def trained(folder: Path) -> dict[str, Tensor]:
        model = models("gpt2", resid_pdrop=0.3)
        train_watched(
            model,
            chatml_tokenizer,
            poisoned_margin(2),
            folder,
            per_device_train_batch_size=2,
            disable_dropout=False,
            nonfinite="skip",
        )
        return model.state_dict()

    looked = trained(tmp_path / "a")
    monkeypatch.setattr(
        "counterpoint.step.replay.recorder.StepRecorder.keep", lambda *facts, **more: ""
    )
    not_looked = trained(tmp_path / "b")
    assert all(torch.equal(looked[name], not_looked[name]) for name in looked)


# The command


def poison(folder: Path) -> None:
    """A model of whose head one value is not finite."""
    path = folder / "model" / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"][300, 1] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})


TRAIN = "train --model model --dataset pairs.jsonl --output_dir out --max_steps 3 --doctor off"


def test_the_command_says_what_broke_first_in_80_columns(workshop: Path, command: Command) -> None:
    poison(workshop)
    answer = command(*TRAIN.split())
    assert answer.code == 2
    assert "counterpoint replay out/replay-1.safetensors shows what broke first" in answer.err
    answer = command("replay", "out/replay-1.safetensors")
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert re.search(r"^    nan  lm_head\.weight  \(1 of [\d,]+\)$", answer.out, re.MULTILINE)
    assert lines[-1] == "first lm_head.weight: nan"
    assert "the same are not finite now" in answer.out
    assert "the step's own" in answer.out


def test_on_weights_that_are_whole_it_says_that_nothing_is_wrong_there(
    workshop: Path, command: Command
) -> None:
    good = workshop / "good"
    (workshop / "model").rename(good)
    __import__("shutil").copytree(good, workshop / "model")
    poison(workshop)
    command(*TRAIN.split())
    answer = command("replay", "out/replay-1.safetensors", "--model", "good")
    assert answer.code == 1
    assert "Everything is finite on these weights" in answer.out
    assert "nan  lm_head.weight" in answer.out  # what was seen then is in the file
    found = json.loads(command("replay", "out/replay-1.safetensors", "--json").out)
    assert found["now"] == found["then"]
    assert found["now"][0]["name"] == "lm_head.weight"


def test_weights_of_strangers_need_the_switches_here_too(workshop: Path, command: Command) -> None:
    poison(workshop)
    command(*TRAIN.split())
    model = workshop / "model"
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    ask = ("replay", "out/replay-1.safetensors", "--model", "model")
    assert command(*ask).err.startswith("counterpoint: CP310 ")
    assert command(*ask, "--allow_pickle").code == 0
    config = json.loads((model / "config.json").read_text())
    config = {**config, "model_type": "odd", "auto_map": {"AutoConfig": "odd.Odd"}}
    (model / "config.json").write_text(json.dumps(config))
    assert command(*ask, "--allow_pickle").err.startswith("counterpoint: CP311 ")
    trusting = command(*ask, "--allow_pickle", "--trust_remote_code")
    assert "CP301" in trusting.err
    assert "odd.py" in trusting.err  # it was looked for, to be run


def test_a_file_beside_a_replay_turns_no_switch_on(workshop: Path, command: Command) -> None:
    poison(workshop)
    command(*TRAIN.split(), "--save_strategy", "no", "--allow_pickle")
    model = workshop / "model"
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    assert "allow_pickle: true" in Path("out/train.yaml").read_text()
    assert command("replay", "out/replay-1.safetensors").err.startswith("counterpoint: CP310 ")
    assert command("replay", "out/replay-1.safetensors", "--allow_pickle").code == 0


def test_an_adapter_is_replayed_on_the_base_that_it_names(workshop: Path, command: Command) -> None:
    poison(workshop)
    command(*TRAIN.split(), "--lora_r", "2", "--save_strategy", "no")
    found = json.loads(command("replay", "out/replay-1.safetensors", "--json").out)
    assert found["then"] == found["now"]
    assert found["weights"] == "as out/train.yaml says"
    assert found["then"][0]["name"] == "base_model.model.lm_head.weight"


CONSTRAINED = """\
constraints:
  - {kind: kl_drift, bound: 0.0, rate: 50.0, start: 0.5}
"""


def test_a_constrained_step_is_measured_from_the_weights_that_the_run_began_with(
    workshop: Path, command: Command
) -> None:
    """They are not those of the checkpoint that the step is done again on."""
    lines = (workshop / "pairs.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "weight": 1.0} for line in lines]
    rows[-1]["weight"] = 1e308  # times its loss, beyond what a float holds
    (workshop / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (workshop / "run.yaml").write_text(CONSTRAINED)
    words = TRAIN.split()
    answer = command(
        words[0],
        "run.yaml",
        *words[1:],
        *("--save_steps", "1", "--per_device_train_batch_size", "1"),
        *("--train_sampling_strategy", "sequential", "--max_steps", str(len(rows))),
    )
    assert "CP401 step 12: the loss of row 11 is not finite" in answer.err
    (kept,) = Path("out").glob("replay-*.safetensors")
    found = json.loads(command("replay", str(kept), "--json").out)
    assert found["then"]
    assert found["now"] == found["then"]
    assert found["left_out"] == {}
    assert found["weights"].startswith("out/checkpoint-")
    told = command("replay", str(kept), "--model", "model").out
    assert "without constraint kl_drift: the weights that the run began with" in told


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("replay", "CP107", "FILE is missing"),
        ("replay gone.safetensors", "CP110", "gone.safetensors is no replay file"),
        ("replay pairs.jsonl", "CP110", "cannot be opened"),
        ("replay model/model.safetensors", "CP110", "it holds no step"),
        ("replay model --modl x", "CP101", "did you mean --model?"),
    ],
)
def test_what_cannot_be_replayed_is_one_coded_line(
    workshop: Path, command: Command, words: str, code: str, said: str
) -> None:
    answer = command(*words.split())
    assert answer.code == 2
    assert answer.err.startswith(f"counterpoint: {code} ")
    assert said in answer.err
    assert answer.err.count("\n") == 1
