"""A reference is asked once, before the first step, and is not there any more when steps begin."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from counterpoint import (
    ConfigError,
    CPOConfig,
    CPOTrainer,
    DataError,
    ModelError,
    NonFiniteError,
)
from counterpoint.data.pair_columns import to_pair
from counterpoint.data.referenced import ReferenceTables
from counterpoint.models.reference import reference_named
from counterpoint.pair_facts import NO_FACTS
from counterpoint.step import references
from counterpoint.step.reader import PairReader
from counterpoint.step.replay.file import read_replay
from tests.invariance.ranks import as_stream
from tests.models_on_the_spot import make_model
from tests.reference.naive import completion_logps
from tests.steps import distance, random_pairs, train_watched
from tests.trainer.test_about_pictures import RAW
from tests.vision_on_the_spot import seer


def trainer_of(
    tokenizer: Any,
    folder: Path,
    *,
    model: Any = None,
    pairs: Any = None,
    callbacks: Any = None,
    peft_config: Any = None,
    evaluated: Any = None,
    **options: Any,
) -> CPOTrainer:
    return CPOTrainer(
        model=make_model("qwen2") if model is None else model,
        args=CPOConfig(
            output_dir=str(folder),
            **{
                "loss_type": "dpo",
                "per_device_train_batch_size": 4,
                "per_device_eval_batch_size": 3,
                "num_train_epochs": 1,
                "learning_rate": 1e-2,
                "logging_steps": 1,
                "save_strategy": "no",
                "gradient_checkpointing": False,
                "disable_tqdm": True,
                "use_cpu": True,
                **options,
            },
        ),
        train_dataset=random_pairs(8) if pairs is None else pairs,
        eval_dataset=evaluated,
        processing_class=tokenizer,
        callbacks=callbacks,
        peft_config=peft_config,
    )


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that is not the one trained."""
    folder = tmp_path_factory.mktemp("another")
    make_model("qwen2", seed=4).save_pretrained(folder)
    return folder


def table_of(trainer: CPOTrainer, pairs: Any) -> np.ndarray:
    known = trainer._feed.references
    return np.array(known.tables[known.digest(pairs)])


def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs were run through a reference, each time that a set of them was."""
    seen: list[int] = []
    once = references._table

    def counted(reader: Any, size: int, keyed: Any) -> Any:
        seen.append(len(keyed))
        return once(reader, size, keyed)

    monkeypatch.setattr(references, "_table", counted)
    return seen


def passes(model: torch.nn.Module) -> list[int]:
    """Grows with each call of a model's embedding."""
    calls: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))  # type: ignore[operator]
    return calls


@pytest.mark.parametrize("named", [False, True])
def test_each_pair_has_what_the_reference_gives_it(
    named: bool, another: Path, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    pairs, evaluated = random_pairs(8), random_pairs(5, seed=2)
    wanted = {"reference": str(another)} if named else {}
    trainer = trainer_of(
        chatml_tokenizer,
        tmp_path,
        pairs=pairs,
        evaluated=evaluated,
        model=make_model("qwen2").double(),
        eval_strategy="epoch",
        **wanted,
    )
    trainer.train()
    reference = make_model("qwen2", seed=4 if named else 0).double().requires_grad_(False)
    for rows in (pairs, evaluated):
        truth = [
            [
                float(completion_logps(reference, row["prompt_ids"], row[f"{side}_ids"]).sum())
                for side in ("chosen", "rejected")
            ]
            for row in rows
        ]
        # RMSNorm is computed in float32, whatever the weights
        assert table_of(trainer, rows) == pytest.approx(np.array(truth), rel=1e-6)


def test_a_second_start_asks_nothing(
    another: Path, chatml_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = asked(monkeypatch)
    loaded: list[str] = []
    once = references.load_reference

    def load(args: Any, *facts: Any) -> Any:
        loaded.append(args.reference)
        return once(args, *facts)

    monkeypatch.setattr(references, "load_reference", load)
    for wanted in ({}, {"reference": str(another)}):
        found = []
        for start in range(2):
            model = make_model("qwen2")
            calls = passes(model)
            trainer = trainer_of(chatml_tokenizer, tmp_path / f"{start}", model=model, **wanted)
            trainer.train()
            found.append(([line["loss"] for line in trainer.state.log_history[:-1]], len(calls)))
        assert found[0][0] == found[1][0]
        if not wanted:  # three windows of 3, 3 and 2 pairs less
            assert found[0][1] - found[1][1] == 3
    assert seen == [8, 8]
    assert loaded == [str(another)]


@pytest.mark.parametrize("named", [False, True])
def test_a_reference_is_asked_for_sums_alone(
    named: bool,
    another: Path,
    chatml_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outputs: list[Any] = []
    once, found = references._table, PairReader.forward

    def asking(reader: Any, size: int, keyed: Any) -> Any:
        def forward(self: Any, model: Any, batch: Any) -> Any:
            outputs.append(found(self, model, batch))
            return outputs[-1]

        with monkeypatch.context() as patch:
            patch.setattr(PairReader, "forward", forward)
            return once(reader, size, keyed)

    monkeypatch.setattr(references, "_table", asking)
    trainer = trainer_of(
        chatml_tokenizer,
        tmp_path,
        use_weighting=True,
        constraints=[{"kind": "kl_drift", "bound": 0.1}],
        **({"reference": str(another)} if named else {}),
    )
    trainer.train()
    assert len(outputs) == 3
    assert [one.logps.facts for one in outputs] == [NO_FACTS] * 3
    assert [one.logps.drift for one in outputs] == [None] * 3
    assert trainer.state.log_history[0]["policy_weights"] < 1  # which training asks for


def test_other_weights_pairs_or_precision_are_asked_anew(
    chatml_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = asked(monkeypatch)
    for number, changed in enumerate(
        (
            {},
            {"model": make_model("qwen2", seed=1)},
            {"pairs": random_pairs(8, seed=1)},
            {"bf16": True},
            {"layout": "padded"},
            {"ld_alpha": 0.5},
            {"ld_alpha": 0.25},
            {},
        )
    ):
        trainer_of(chatml_tokenizer, tmp_path / f"{number}", **changed).train()
    assert seen == [8] * 7


def test_a_damaged_table_is_made_anew(
    chatml_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = asked(monkeypatch)
    cache = tmp_path / "cache"
    monkeypatch.setenv("COUNTERPOINT_CACHE", str(cache))
    tables = []
    for number in range(3):
        trainer = trainer_of(chatml_tokenizer, tmp_path / f"{number}")
        trainer.train()
        tables.append(table_of(trainer, trainer.train_dataset))
        (file,) = cache.glob("reference-*.npy")
        if number == 0:
            file.write_bytes(file.read_bytes()[:-8])
    assert seen == [8, 8]
    assert np.array_equal(tables[0], tables[1])
    assert np.array_equal(tables[0], tables[2])


class Looks(TrainerCallback):
    """Whether a model is still there when steps begin."""

    def __init__(self) -> None:
        self.models: list[weakref.ref[Any]] = []
        self.there: list[bool] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gc.collect()
        self.there += [model() is not None for model in self.models]


def test_no_step_has_the_reference_in_memory(
    another: Path, chatml_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, once = Looks(), references.load_reference

    def load(*facts: Any) -> Any:
        model = once(*facts)
        looks.models += [weakref.ref(model), *map(weakref.ref, model.parameters())]
        return model

    monkeypatch.setattr(references, "load_reference", load)
    trainer_of(chatml_tokenizer, tmp_path, reference=str(another), callbacks=[looks]).train()
    assert len(looks.models) > 10
    assert looks.there == [False] * 2 * len(looks.models)


def test_a_run_that_compares_with_nothing_asks_nothing(
    chatml_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = asked(monkeypatch)
    trainer = trainer_of(chatml_tokenizer, tmp_path, loss_type="sigmoid")
    trainer.train()
    assert seen == []
    assert trainer.state_dict()["references"] is None


def test_the_first_loss_of_dpo_is_log_two_and_training_lowers_it(
    chatml_tokenizer: Any, tmp_path: Path
) -> None:
    pairs = random_pairs(8, weighted=False)
    trainer = trainer_of(
        chatml_tokenizer, tmp_path, pairs=pairs, num_train_epochs=3, per_device_train_batch_size=8
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[0] == pytest.approx(0.6931471805599453, rel=1e-5)
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("adapter", ["new", "trained on"])
def test_with_an_adapter_the_reference_is_the_model_as_the_run_begins(
    adapter: str, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    import peft

    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    base = make_model("qwen2")
    model, reference = base, make_model("qwen2")
    if adapter == "trained on":
        model = peft.get_peft_model(base, config)
        torch.manual_seed(3)
        for weight in model.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.3)
        reference = model
    pairs = random_pairs(6)
    with torch.no_grad():
        truth = [
            float(completion_logps(reference, row["prompt_ids"], row["chosen_ids"]).sum())
            for row in pairs
        ]
    trainer = trainer_of(
        chatml_tokenizer,
        tmp_path,
        model=model,
        pairs=pairs,
        peft_config=None if adapter == "trained on" else config,
    )
    trainer.train()
    assert table_of(trainer, pairs)[:, 0] == pytest.approx(np.array(truth), rel=1e-5)


def test_sets_of_the_trainer_are_compared_whenever_they_are_evaluated(
    another: Path, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    evaluated, later = random_pairs(5, seed=2), random_pairs(4, seed=3)
    trainer = trainer_of(chatml_tokenizer, tmp_path / "initial", evaluated=evaluated)
    assert trainer.evaluate()["eval_rewards/margins"] == pytest.approx(0, abs=1e-5)
    trainer.train()
    assert trainer.evaluate()["eval_rewards/margins"] != pytest.approx(0, abs=1e-5)
    with pytest.raises(ModelError, match=r"^CP337 .*has not seen 1 of the sets"):
        trainer.evaluate(later)
    # a model that is named can be asked at any time
    named = trainer_of(chatml_tokenizer, tmp_path / "named", reference=str(another))
    named.train()
    assert np.isfinite(named.evaluate(later)["eval_loss"])


def test_training_again_compares_with_the_model_as_it_is_then(
    chatml_tokenizer: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(chatml_tokenizer, tmp_path)
    tables = []
    for _ in range(2):
        trainer.train()
        tables.append(table_of(trainer, trainer.train_dataset))
    assert not np.allclose(tables[0], tables[1])


@pytest.mark.parametrize("named", [False, True])
def test_a_resumed_run_has_the_tables_of_its_checkpoint(
    named: bool,
    another: Path,
    chatml_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = {"save_strategy": "steps", "save_steps": 1}
    run |= {"reference": str(another)} if named else {}
    first = trainer_of(chatml_tokenizer, tmp_path, **run)
    first.train()
    # the cache is gone, and the model that would be asked is another
    monkeypatch.setenv("COUNTERPOINT_CACHE", "off")
    seen = asked(monkeypatch)
    again = trainer_of(chatml_tokenizer, tmp_path, model=make_model("qwen2", seed=9), **run)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert seen == []
    mine, theirs = (one.model.state_dict() for one in (first, again))
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert np.array_equal(
        table_of(first, first.train_dataset), table_of(again, again.train_dataset)
    )


def test_a_run_of_another_loss_is_not_resumed_without_its_reference(
    another: Path, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    trainer_of(chatml_tokenizer, tmp_path, loss_type="sigmoid", **saving).train()
    last = str(tmp_path / "checkpoint-1")
    anyway = {"resume_anyway": True, **saving}
    with pytest.raises(ModelError, match=r"^CP337 "):
        trainer_of(chatml_tokenizer, tmp_path, **anyway).train(resume_from_checkpoint=last)
    trainer_of(chatml_tokenizer, tmp_path, reference=str(another), **anyway).train(
        resume_from_checkpoint=last
    )


def test_a_table_of_other_sums_is_not_resumed_with(
    another: Path, chatml_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = {"save_strategy": "steps", "save_steps": 1, "reference": str(another)}
    first = trainer_of(chatml_tokenizer, tmp_path, ld_alpha=0.5, **run)
    first.train()
    last, seen = str(tmp_path / "checkpoint-1"), asked(monkeypatch)
    monkeypatch.setenv("COUNTERPOINT_CACHE", "off")
    with pytest.raises(Exception, match=r"CP513 .*ld_alpha was 0.5 and is 0.25"):
        trainer_of(chatml_tokenizer, tmp_path, ld_alpha=0.25, **run).train(
            resume_from_checkpoint=last
        )
    again = trainer_of(chatml_tokenizer, tmp_path, ld_alpha=0.25, resume_anyway=True, **run)
    again.train(resume_from_checkpoint=last)
    assert seen == [8]
    tables = [table_of(one, one.train_dataset) for one in (first, again)]
    pairs = first.train_dataset
    longer = [len(row["chosen_ids"]) > len(row["rejected_ids"]) for row in pairs]
    # only what is longer has tokens that weigh otherwise
    assert (tables[0][:, 0] > tables[1][:, 0]).tolist() == [False] * 8
    assert (tables[0][:, 0] < tables[1][:, 0]).tolist() == longer


def test_another_reference_is_another_experiment(
    another: Path, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    trainer_of(chatml_tokenizer, tmp_path, **saving).train()
    with pytest.raises(Exception, match=r"CP513 .*reference was initial and is "):
        trainer_of(chatml_tokenizer, tmp_path, reference=str(another), **saving).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-1")
        )


@pytest.mark.parametrize(
    ("kind", "dtype", "limit"),
    # the kernel of experts that a model is loaded with has no float64
    [("nllb", torch.float64, 1e-12), ("qwen3_moe", torch.float32, 1e-6)],
)
def test_other_families_are_compared_too(
    kind: str, dtype: torch.dtype, limit: float, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    make_model(kind, seed=4).to(dtype).save_pretrained(tmp_path / "another")
    pictures = []
    for size in (8, 2):
        steps, trainer = train_watched(
            make_model(kind).to(dtype),
            chatml_tokenizer,
            random_pairs(8),
            tmp_path / "run",
            loss_type="dpo",
            reference=str(tmp_path / "another"),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
        )
        pictures += steps
    assert distance(*pictures) <= limit
    assert trainer.state.log_history[0]["rewards/margins"] != pytest.approx(0, abs=1e-3)


def test_each_pair_of_a_list_is_compared_and_the_row_counts_once(
    another: Path, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"Say {n}:", "chosen": f" {n}.", "rejected": [" no", " never", " nothing"][:n]}
        for n in (1, 2, 3)
    ]
    apart = [
        {**row, "rejected": one, "weight": 1 / len(row["rejected"])}
        for row in rows
        for one in row["rejected"]
    ]
    found = []
    for name, data in (("lists", rows), ("apart", apart)):
        steps, trainer = train_watched(
            make_model("qwen2").double(),
            chatml_tokenizer,
            Dataset.from_list(data),
            tmp_path / name,
            loss_type="dpo",
            reference=str(another),
            per_device_train_batch_size=6,
        )
        found.append((steps[0], trainer))
    (of_lists, trainer), (of_pairs, _) = found
    assert distance(of_lists, of_pairs) == 0
    table, reference = (
        table_of(trainer, trainer.train_dataset),
        make_model("qwen2", seed=4).double().requires_grad_(False),
    )
    truth = [
        [
            float(completion_logps(reference, pair["prompt_ids"], pair[f"{side}_ids"]).sum())
            for side in ("chosen", "rejected")
        ]
        for pair in trainer.train_dataset
    ]
    # RMSNorm is computed in float32, whatever the weights
    assert table == pytest.approx(np.array(truth), rel=1e-6)
    assert len({*table[:, 1]}) == 6
    assert len({*table[3:, 0]}) == 1  # the chosen of one row, compared once with each
    weights = [pair["weight"] for pair in trainer.train_dataset]
    assert weights == pytest.approx([1, 1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3], rel=1e-15)


def test_pairs_about_pictures_are_compared_too(tmp_path: Path) -> None:
    model, tokenizer = seer("llava")
    rows = Dataset.from_list([RAW[row] for row in (0, 2, 3, 4, 0, 2, 1, 5)])
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.mul_(0.9)
    reference.save_pretrained(tmp_path / "another")
    pictures = []
    for size in (8, 2):
        steps, trainer = train_watched(
            copy.deepcopy(model).double(),
            tokenizer,
            rows,
            tmp_path / "run",
            loss_type="dpo",
            reference=str(tmp_path / "another"),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
        )
        pictures += steps
    assert distance(*pictures) <= 1e-12
    assert trainer.state.log_history[0]["rewards/margins"] != pytest.approx(0, abs=1e-6)


def test_a_reference_may_be_a_path_or_nothing(tmp_path: Path) -> None:
    def named(wanted: Any) -> str:
        return CPOConfig(
            output_dir=str(tmp_path), use_cpu=True, loss_type="dpo", reference=wanted
        ).reference

    assert named(None) == "initial"
    assert named(tmp_path) == str(tmp_path)
    assert reference_named("owner/name@abc") == ("owner/name", "abc")
    (tmp_path / "a@b").mkdir()
    (tmp_path / "a@b" / "tiny.gguf").touch()
    for there in (tmp_path / "a@b", tmp_path / "a@b" / "tiny.gguf"):
        assert reference_named(str(there)) == (str(there), None)


# What is refused


def test_a_stream_is_refused(chatml_tokenizer: Any, tmp_path: Path) -> None:
    texts = [{"prompt": "Say it.", "chosen": f" It is {n}.", "rejected": " No."} for n in range(4)]
    with pytest.raises(DataError, match=r"^CP240 train is streamed"):
        trainer_of(
            chatml_tokenizer,
            tmp_path,
            pairs=Dataset.from_list(texts).to_iterable_dataset(),
            max_steps=1,
        )
    tables = ReferenceTables("initial", lambda pairs: "digest")
    with pytest.raises(DataError, match=r"^CP240 "):
        tables.missing([as_stream(random_pairs(4))])


@pytest.mark.parametrize(
    ("kind", "vocabulary", "seen"),
    [
        ("t5", None, "one of them has an encoder"),
        ("qwen2", "swapped", "has another vocabulary than the run's model: "),
        ("qwen2", "foreign", r"it knows \d+ of its \d+ tokens"),
    ],
)
def test_a_reference_that_reads_otherwise_is_refused(
    kind: str, vocabulary: str | None, seen: str, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "another"
    make_model(kind).save_pretrained(folder)
    if vocabulary is not None:
        own = chatml_tokenizer.get_vocab()
        words = {token: len(own) - 1 - number for token, number in own.items()}
        if vocabulary == "foreign":
            words = {f"word {number}": number for number in range(50)}
        (end, *_) = words
        PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel(words, unk_token=end)), eos_token=end
        ).save_pretrained(folder)
    with pytest.raises(ModelError, match=rf"^CP338 reference={folder} .*{seen}"):
        trainer_of(chatml_tokenizer, tmp_path / "run", reference=str(folder))


def test_a_reference_with_fewer_tokens_is_refused(chatml_tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "another"
    make_model("qwen2", vocab_size=100).save_pretrained(folder)
    trainer = trainer_of(chatml_tokenizer, tmp_path / "run", reference=str(folder))
    with pytest.raises(ModelError, match=r"^CP338 .*CP303 row \d+ has token id \d+"):
        trainer.train()


def test_a_log_probability_that_is_not_finite_is_refused(
    chatml_tokenizer: Any, tmp_path: Path
) -> None:
    folder, model = tmp_path / "another", make_model("qwen2", seed=4)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(3e38)
    model.save_pretrained(folder)
    pairs = random_pairs(8).map(lambda row: {"row": 10 + row["row"]})
    trainer = trainer_of(chatml_tokenizer, tmp_path / "run", pairs=pairs, reference=str(folder))
    with pytest.raises(ModelError, match=r"^CP339 .* of the chosen completion of row 10 .*8 pairs"):
        trainer.train()


@pytest.mark.parametrize("loss_type", ["apo_zero", "nca_pair"])
def test_a_margin_is_refused_where_there_is_no_gap_to_take_it_off(
    loss_type: str, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    pairs = random_pairs(8, weighted=False)
    pairs = pairs.map(lambda row: {"margin": 0.2 if row["row"] == 5 else 0.0})
    trainer = trainer_of(chatml_tokenizer, tmp_path, pairs=pairs, loss_type=loss_type)
    refused = r"^CP212 row 5, field margin: is 0\.2; .*has no gap .*choose one of dpo, .*apo_down"
    with pytest.raises(DataError, match=refused):
        trainer.train()
    assert trainer.state.global_step == 0
    with pytest.raises(ConfigError, match=r"^CP104 label_smoothing=0\.1 would do nothing"):
        CPOConfig(output_dir=str(tmp_path), loss_type=loss_type, label_smoothing=0.1)


def test_a_reference_that_is_not_there_is_refused_before_anything_is_written(
    chatml_tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"^CP301 .*nowhere"):
        trainer_of(chatml_tokenizer, tmp_path / "run", reference=str(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_a_table_is_looked_up_once_for_each_set(tmp_path: Path) -> None:
    digested: list[int] = []
    pairs = random_pairs(3)
    tables = ReferenceTables("initial", lambda found: digested.append(len(found)) or "digest")
    assert list(tables.missing([pairs, pairs])) == ["digest"]
    tables.tables["digest"] = np.arange(6.0).reshape(3, 2)
    assert tables.missing([pairs]) == {}
    keyed = tables.keyed(pairs, to_pair)
    assert [pair.reference for pair in keyed.__getitems__([2, ~0])] == [(4.0, 5.0), (0.0, 1.0)]
    assert keyed[~0].row == -1
    assert digested == [3]


def test_a_step_that_is_not_finite_is_kept_with_what_the_reference_said(
    another: Path, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    pairs = random_pairs(8).map(lambda row: {"margin": np.nan if row["row"] == 6 else 0.0})
    trainer = trainer_of(
        chatml_tokenizer, tmp_path / "run", pairs=pairs, reference=str(another), beta=0.3
    )
    with pytest.raises(NonFiniteError, match=r"^CP401 .* row 6 "):
        trainer.train()
    (path,) = (tmp_path / "run").glob("replay-*.safetensors")
    (batch,) = read_replay(path).micro_batches
    table = table_of(trainer, pairs)
    assert {pair.row: pair.reference for pair in batch} == {
        pair.row: tuple(table[pair.row]) for pair in batch
    }
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors["reference"]
    save_file(tensors, tmp_path / "without.safetensors", metadata)
    with pytest.raises(ConfigError, match=r"^CP110 .* it lacks what the reference gave its pairs"):
        read_replay(tmp_path / "without.safetensors")
