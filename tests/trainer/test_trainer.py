"""CPOTrainer as its users meet it: data in, model out, numbers right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from counterpoint import ConfigError, CPOConfig, CPOTrainer, DataError, ModelError, SetupError
from counterpoint.data.options import PrepareOptions
from counterpoint.data.prepare import prepare
from counterpoint.step.evaluation_pass import EvaluationPass
from tests.reference.naive import completion_logps, step_loss
from tests.steps import random_pairs
from tests.translators_on_the_spot import ROWS, translator

TEXT = [
    {"prompt": f"What is {i} and {i}?", "chosen": f" It is {2 * i}.", "rejected": f" Maybe {i}?"}
    for i in range(10)
]


@pytest.fixture
def build(models, chatml_tokenizer, tmp_path: Path):
    """A trainer of small things; options and arguments by keyword."""

    def make(kind: str = "qwen2", model=None, options=None, **arguments) -> CPOTrainer:
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "num_train_epochs": 1,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return CPOTrainer(
            model=models(kind) if model is None else model,
            args=CPOConfig(**{**defaults, **(options or {})}),
            **{
                "processing_class": chatml_tokenizer,
                "train_dataset": Dataset.from_list(TEXT),
                **arguments,
            },
        )

    return make


def test_training_lowers_the_loss_and_moves_every_tensor(build):
    trainer = build(options={"num_train_epochs": 6})
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert not [n for n, p in trainer.model.named_parameters() if torch.equal(p, before[n])]


def test_a_saved_model_says_the_same_under_plain_transformers(build, tmp_path: Path):
    trainer = build()
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    prompt, completion = tokenizer("What is 3 and 3?")["input_ids"], tokenizer(" It")["input_ids"]
    ours = completion_logps(trainer.model.eval(), prompt, completion)
    theirs = completion_logps(loaded.eval(), prompt, completion)
    assert torch.equal(ours, theirs)


def test_an_adapter_trains_alone_and_is_saved_alone(build, tmp_path: Path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    trainer = build(peft_config=config)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if "lora_" in n}
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "saved" / "model.safetensors").exists()


@pytest.mark.parametrize("reentrant", [False, True])
def test_an_adapter_learns_under_checkpointed_activations(build, reentrant: bool):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    trainer = build(
        peft_config=config,
        options={
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
        },
    )
    trainer.train()
    moved = [p for n, p in trainer.model.named_parameters() if "lora_B" in n]
    assert all(p.abs().sum() > 0 for p in moved)


def test_dropout_is_off_also_where_attention_reads_it_from_itself(build, models):
    model = models("qwen2", attention_dropout=0.5)
    trainer = build(model=model)
    assert {m.attention_dropout for m in model.modules() if hasattr(m, "attention_dropout")} == {
        0.0
    }
    kept = build(model=models("gpt2", resid_pdrop=0.3), options={"disable_dropout": False})
    assert 0.3 in {m.p for m in kept.model.modules() if isinstance(m, torch.nn.Dropout)}
    assert trainer.args.disable_dropout


def test_an_evaluation_is_of_the_whole_set_however_it_is_cut(build, models):
    held_out = random_pairs(7, seed=2)
    results = []
    for size in (1, 3, 7):
        trainer = build(
            model=models("qwen2").double(),
            eval_dataset=held_out,
            options={"per_device_eval_batch_size": size},
        )
        metrics = trainer.evaluate()
        results.append({k: v for k, v in metrics.items() if "runtime" not in k and "per_" not in k})
    assert results[1] == pytest.approx(results[0], rel=1e-10)
    assert results[2] == pytest.approx(results[0], rel=1e-10)
    expected = step_loss(models("qwen2").double(), list(held_out), "sigmoid", {"beta": 0.1}, 1.0)
    assert results[0]["eval_loss"] == pytest.approx(expected.item(), rel=1e-12)


def test_what_is_kept_of_each_pair_is_what_the_model_says_of_it(build, models):
    """Against one pair at a time through all logits; whatever the batches are."""
    held_out = random_pairs(7, seed=2)
    model = models("qwen2").double().eval()
    expected = {
        side: [
            completion_logps(model, row["prompt_ids"], row[f"{side}_ids"]).sum().item()
            for row in held_out
        ]
        for side in ("chosen", "rejected")
    }
    for size, layout in ((1, "shared"), (3, "padded"), (7, "shared")):
        options = {"per_device_eval_batch_size": size, "layout": layout, "beta": 0.3}
        scores = build(model=models("qwen2").double(), options=options).measure(held_out).scores()
        assert scores.rows.tolist() == list(range(7))
        for side in ("chosen", "rejected"):
            logps = getattr(scores, f"{side}_logps")
            assert logps.tolist() == pytest.approx(expected[side], rel=1e-10)
            rewards = getattr(scores, f"{side}_rewards")
            assert rewards.tolist() == pytest.approx((0.3 * logps).tolist(), rel=1e-12)
            tokens = [len(ids) for ids in held_out[f"{side}_ids"]]
            assert getattr(scores, f"{side}_tokens").tolist() == tokens


def test_pairs_of_one_prompt_are_known_as_such(build):
    rows = [dict(TEXT[0]), dict(TEXT[1]), {**TEXT[0], "rejected": " Who knows?"}]
    prompts = build().measure(rows).scores().prompts
    assert prompts[0] == prompts[2] != prompts[1]


def test_the_accuracy_of_an_evaluation_has_an_interval_around_it(build):
    metrics = build(eval_dataset=TEXT).evaluate()
    low, high = (metrics[f"eval_rewards/accuracies_{end}"] for end in ("low", "high"))
    assert 0 <= low <= metrics["eval_rewards/accuracies"] <= high <= 1
    assert low < high


def test_no_score_of_a_pair_is_gathered_that_nobody_asked_for(build, monkeypatch):
    asked = []
    monkeypatch.setattr(EvaluationPass, "scores", lambda self: asked.append(self))
    trainer = build(eval_dataset=TEXT)
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_rewards/accuracies_low"] <= metrics["eval_rewards/accuracies_high"]
    assert asked == []
    trainer.measure(TEXT).scores()
    assert len(asked) == 1


def test_a_row_number_is_kept_whole_whatever_the_dtype_of_scores(build):
    """Above 2^24 a float32 does not tell neighbours apart."""
    held_out = random_pairs(2).map(lambda row: {"row": row["row"] + (1 << 24)})
    assert build().measure(held_out).scores().rows.tolist() == [1 << 24, (1 << 24) + 1]


def test_experts_are_balanced_over_a_whole_evaluation_set(build, models):
    losses = []
    for size in (2, 7):
        trainer = build(
            model=models("qwen3_moe").double(),
            eval_dataset=random_pairs(7, seed=2),
            options={"per_device_eval_batch_size": size},
        )
        losses.append(trainer.evaluate()["eval_aux_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


def test_named_sets_keep_their_own_metrics(build):
    sets = {"easy": Dataset.from_list(TEXT[:3]), "hard": Dataset.from_list(TEXT[3:])}
    metrics = build(eval_dataset=sets).evaluate()
    for name in sets:
        assert f"eval_{name}_loss" in metrics
        assert f"eval_{name}_rewards/accuracies" in metrics
    assert metrics["eval_easy_loss"] != metrics["eval_hard_loss"]


def test_raw_rows_can_be_evaluated_at_any_time(build):
    trainer = build()
    from_dataset = trainer.evaluate(Dataset.from_list(TEXT[:4]))
    from_list = trainer.evaluate(TEXT[:4])
    named = trainer.evaluate({"four": TEXT[:4]})
    assert from_list["eval_loss"] == from_dataset["eval_loss"] == named["eval_four_loss"]


def test_compute_metrics_gets_each_pairs_rewards_in_the_order_of_the_rows(build):
    seen = []

    def keep(prediction) -> dict[str, float]:
        seen.append(prediction)
        return {"wins": float(np.mean(prediction.predictions.argmax(1) == prediction.label_ids))}

    trainer = build(
        eval_dataset=TEXT, compute_metrics=keep, options={"per_device_eval_batch_size": 3}
    )
    metrics = trainer.evaluate()
    assert seen[0].predictions.shape == (10, 2)
    assert metrics["eval_wins"] == pytest.approx(metrics["eval_rewards/accuracies"])
    one = trainer.evaluate([TEXT[4]])
    assert seen[0].predictions[4, 0] == pytest.approx(one["eval_rewards/chosen"], rel=1e-5)


def test_a_stream_trains_like_the_same_rows_in_memory(build, models):
    rows = Dataset.from_list(TEXT)
    sequential = {"train_sampling_strategy": "sequential", "max_steps": 5}
    eager = build(train_dataset=rows, options=sequential)
    streamed = build(train_dataset=rows.to_iterable_dataset(), options=sequential)
    for trainer in (eager, streamed):
        trainer.train()
    for one, other in zip(eager.model.parameters(), streamed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_stream_needs_to_be_told_when_to_stop(build):
    rows = Dataset.from_list(TEXT).to_iterable_dataset()
    with pytest.raises(ConfigError, match=r"CP107 .*max_steps"):
        build(train_dataset=rows)


def test_a_streams_dropped_rows_are_counted_in_the_run_log(build, tmp_path: Path):
    def rows():
        yield from TEXT[:4]
        yield {"prompt": "Empty?", "chosen": "", "rejected": "no"}

    build(
        train_dataset=IterableDataset.from_generator(rows),
        options={"max_steps": 2, "invalid_rows": "drop", "per_device_train_batch_size": 4},
    ).train()
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["data"]["train"]["dropped"]["CP203"] >= 1


def test_rows_of_a_stream_are_counted_once_however_often_they_are_read(build, tmp_path: Path):
    rows = Dataset.from_list(TEXT)
    trainer = build(
        train_dataset=rows.to_iterable_dataset(),
        eval_dataset=rows.select(range(4)).to_iterable_dataset(),
        options={"max_steps": 12, "eval_strategy": "steps", "eval_steps": 4},
    )
    trainer.train()
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert {name: counts["rows"] for name, counts in run["data"].items()} == {
        "train": 10,
        "eval": 4,
    }


def test_the_run_directory_tells_what_was_trained(build, tmp_path: Path):
    trainer = build(
        options={"invalid_rows": "drop", "max_length": 14},
        train_dataset=[*TEXT, {"prompt": "Same?", "chosen": " yes", "rejected": " yes"}],
    )
    trainer.train()
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["objective"].startswith("loss = mean over pairs of -log sigmoid(gap) + 1 * NLL")
    assert run["step_pairs"] == 2
    assert run["data"]["train"]["dropped"] == {"CP205": 1}
    assert run["data"]["train"]["cut_tokens"]["chosen"] > 0
    # what is installed need not say which build it is: 2.14.1 of 2.14.1+cu130
    assert torch.__version__.startswith(run["versions"]["torch"])
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]


def test_no_secret_reaches_the_run_directory(build, tmp_path: Path, monkeypatch):
    canary = "hf_CANARYcanaryCANARYcanary"
    monkeypatch.setenv("HF_TOKEN", canary)
    monkeypatch.setattr(
        "sys.argv", ["x", "--hub_token", canary, f"--hub-token={canary}", "--seed=1"]
    )
    trainer = build(options={"hub_token": canary, "save_strategy": "epoch"})
    trainer.train()
    trainer.save_model()
    assert trainer.args.hub_token == canary
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["command"] == ["x", "--hub_token", "***", "--hub-token=***", "--seed=1"]
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or canary.encode() not in path.read_bytes()


def test_nothing_is_written_before_everything_is_sound(build, tmp_path: Path):
    with pytest.raises(DataError):
        build(train_dataset=[{"prompt": "p", "chosen": " a"}])
    assert not (tmp_path / "run").exists()


def test_ids_beyond_the_embedding_are_refused_before_they_crash(build, models):
    with pytest.raises(ModelError, match=r"CP303 .*resize_token_embeddings"):
        build(model=models("qwen2", vocab_size=300))
    streamed = Dataset.from_list(TEXT).to_iterable_dataset()
    small = build(
        model=models("qwen2", vocab_size=300), train_dataset=streamed, options={"max_steps": 1}
    )
    with pytest.raises(ModelError, match=r"CP303 row \d+ has token id"):
        small.train()


def test_a_model_with_nothing_to_train_is_refused(build, models):
    with pytest.raises(ModelError, match="CP305"):
        build(model=models("qwen2").requires_grad_(False))


@pytest.mark.parametrize(
    "options",
    [{"learning_rate": -1e-6}, {"adam_beta1": 1.0}, {"num_train_epochs": 0}, {"beta": True}],
)
def test_numbers_out_of_range_are_refused(build, options):
    with pytest.raises(ConfigError, match="CP103"):
        build(options=options)


def test_no_name_is_too_long_for_an_answer(build, tmp_path: Path):
    with pytest.raises(SetupError, match="CP501"):
        build(options={"output_dir": str(tmp_path / ("x" * 5000))})


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"data_collator": lambda rows: rows}, "CP105"),
        ({"preprocess_logits_for_metrics": lambda x, y: x}, "CP105"),
        ({"processing_class": "gpt2"}, "CP301"),
        ({"peft_config": {"r": 8}}, "CP307"),
        ({"peft_config": peft.LoraConfig(target_modules=["nowhere"])}, "CP307"),
        ({"options": {"model_init_kwargs": {"dtype": "float32"}}}, "CP104"),
        ({"options": {"router_aux_loss_coef": 0.1}}, "CP104"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_code(build, arguments, code):
    with pytest.raises((ConfigError, ModelError), match=code):
        build(**arguments)


def test_a_folder_below_a_file_cannot_be_written(build, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"CP501 .*is a file"):
        build(options={"output_dir": str(tmp_path / "file" / "run")})


def test_a_second_adapter_on_top_is_refused(build, models):
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    adapted = peft.get_peft_model(models("qwen2"), config)
    with pytest.raises(ModelError, match="CP307 the model has an adapter already"):
        build(model=adapted, peft_config=config)


@pytest.mark.parametrize(("streamed", "step"), [(False, 3), (False, 6), (True, 3)])
def test_a_resumed_run_ends_where_an_unbroken_one_does(
    build, models, tmp_path: Path, streamed, step
):
    """Within and across an epoch's end (step 5); ``tests/reliability`` has the other ways."""

    def rows():
        data = Dataset.from_list(TEXT)
        return data.to_iterable_dataset() if streamed else data

    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "logging_steps": 1}
    whole = build(train_dataset=rows(), options=options)
    whole.train()
    resumed = build(model=models("qwen2", seed=9), train_dataset=rows(), options=options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_prepared_pairs_are_taken_as_they_are(build, chatml_tokenizer):
    pairs = prepare(TEXT, chatml_tokenizer, PrepareOptions(), name="train").pairs
    assert build(train_dataset=pairs).train_dataset is pairs


def test_a_model_made_by_model_init_is_prepared_too(build, models, chatml_tokenizer, tmp_path):
    args = CPOConfig(output_dir=str(tmp_path / "run"), use_cpu=True, num_train_epochs=1)
    trainer = CPOTrainer(
        model_init=lambda: models("gpt2", attn_pdrop=0.5),
        args=args,
        train_dataset=TEXT,
        processing_class=chatml_tokenizer,
    )
    trainer.train()
    assert {m.p for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}


def test_a_model_made_by_model_init_trains_as_one_that_is_passed(tmp_path):
    """An encoder-decoder too, whose rows go by its kind; each model is made and held once."""
    made: list[torch.nn.Module] = []

    def make():
        made.append(translator("nllb")[0])
        return made[-1]

    losses = []
    for name, how in {"passed": {"model": make()}, "made": {"model_init": make}}.items():
        languages = {"source_lang": "eng_Latn", "target_lang": "deu_Latn"}
        args = CPOConfig(output_dir=str(tmp_path / name), use_cpu=True, max_steps=2, **languages)
        args.logging_steps = 1
        tokenizer = translator("nllb")[1]
        trainer = CPOTrainer(args=args, train_dataset=ROWS, processing_class=tokenizer, **how)
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]
    assert len(made) == 3  # transformers makes another one to train


def test_bfloat16_autocast_trains_float32_weights(build):
    trainer = build(options={"bf16": True})
    trainer.train()
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert trainer.state.log_history[0]["loss"] == pytest.approx(_loss_of(build()), rel=0.02)


def _loss_of(trainer: CPOTrainer) -> float:
    trainer.train()
    return trainer.state.log_history[0]["loss"]
