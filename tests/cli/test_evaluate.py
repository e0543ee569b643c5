"""``counterpoint evaluate``: the numbers of the trainer, as tables and as JSON."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.cli.main import main
from counterpoint.data.encoder import TextEncoder
from counterpoint.models.loading import load_model, load_tokenizer
from tests.cli.conftest import PAIRS, Command, Said, tree, write_pairs
from tests.models_on_the_spot import make_model

SMALL = ("--use_cpu", "--resamples", "50")


def found(said: Said) -> dict[str, Any]:
    """The JSON that was said."""
    assert said.code == 0, said.err
    content: dict[str, Any] = json.loads(said.out)
    return content


def measured(content: dict[str, Any], who: str = "after", name: str = "pairs.jsonl") -> Any:
    return content[who]["sets"][name]["measures"]


@pytest.fixture
def other(workshop: Path) -> str:
    """Another model with the same tokenizer."""
    model = AutoModelForCausalLM.from_pretrained("model")
    make_model("qwen2", seed=5, vocab_size=model.config.vocab_size).save_pretrained("other")
    load_tokenizer("model", CPOConfig(output_dir="o", use_cpu=True)).save_pretrained("other")
    return "other"


def test_the_numbers_are_those_of_the_trainer(workshop: Path, command: Command):
    content = found(
        command("evaluate", "model", "--dataset", "pairs.jsonl", "--beta", "0.7", "--json", *SMALL)
    )
    args = CPOConfig(output_dir="o", use_cpu=True, beta=0.7)
    trainer = CPOTrainer(
        load_model("model", args),
        args,
        processing_class=load_tokenizer("model", args),
    )
    expected = trainer.evaluate(PAIRS)
    one = content["after"]["sets"]["pairs.jsonl"]
    assert one["pairs"] == len(PAIRS)
    assert one["loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    for ours, theirs in {
        "accuracy": "rewards/accuracies",
        "margin": "rewards/margins",
        "chosen_reward": "rewards/chosen",
        "chosen_nll_per_token": "nll_loss",
    }.items():
        assert one["measures"][ours]["value"] == pytest.approx(expected[f"eval_{theirs}"], rel=1e-5)


def test_named_sets_have_numbers_of_their_own(workshop: Path, command: Command):
    write_pairs(workshop / "few.jsonl", PAIRS[:3])
    words = ("--dataset", "all=pairs.jsonl", "few=few.jsonl", "--json", *SMALL)
    content = found(command("evaluate", "model", *words))
    assert [s["pairs"] for s in content["after"]["sets"].values()] == [12, 3]
    apart = ("--dataset", "all=pairs.jsonl", "--dataset=few=few.jsonl", "--json", *SMALL)
    assert found(command("evaluate", "model", *apart))["after"] == content["after"]


def test_a_model_of_a_run_is_judged_by_the_runs_objective(
    workshop: Path, command: Command, caplog: pytest.LogCaptureFixture
):
    train = ("--model", "model", "--dataset", "pairs.jsonl", "--output_dir", "out", "--max_steps=1")
    simpo = ("--loss_type", "simpo", "--beta", "2.0", "--simpo_gamma", "1.5", "--max_length", "60")
    assert command("train", *train, *simpo, "--use_cpu").code == 0
    said = command("evaluate", "out", "--dataset", "pairs.jsonl", *SMALL)
    assert said.code == 0, said.err
    assert said.out.startswith("loss = mean over pairs of -log sigmoid(gap) + 1 * NLL\n")
    assert "gap  = 2 * (r(chosen) - r(rejected)) - 1.5\nr(y) = mean log p\n" in said.out
    assert "those of the run of out" in caplog.text
    override = command("evaluate", "out", "--dataset", "pairs.jsonl", "--loss_type=hinge", *SMALL)
    assert "max(0, 1 - gap)" in override.out
    assert "gap  = 0.1 * (r(chosen) - r(rejected))\nr(y) = sum log p" in override.out


def test_before_and_after_are_compared_pair_by_pair(workshop: Path, command: Command, other: str):
    words = ("--dataset", "pairs.jsonl", "--json", *SMALL)
    content = found(command("evaluate", other, "--base", "model", *words))
    before, after = measured(content, "before"), measured(content)
    change = content["changes"]["pairs.jsonl"]["differences"]["margin"]
    assert change["value"] == pytest.approx(after["margin"]["value"] - before["margin"]["value"])
    assert change["low"] < change["value"] < change["high"]
    assert measured(found(command("evaluate", "model", *words))) == before


def test_an_adapter_is_evaluated_on_its_base(workshop: Path, command: Command):
    base = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    adapted = peft.get_peft_model(base, config)
    words = ("--dataset", "pairs.jsonl", "--json", *SMALL)
    adapted.save_pretrained("fresh")
    plain = measured(found(command("evaluate", "model", *words)))
    assert measured(found(command("evaluate", "fresh", *words))) == plain
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 1)
    adapted.save_pretrained("trained")
    adapted.merge_and_unload().save_pretrained("merged")
    load_tokenizer("model", CPOConfig(output_dir="o", use_cpu=True)).save_pretrained("merged")
    trained = measured(found(command("evaluate", "trained", *words)))
    merged = measured(found(command("evaluate", "merged", *words)))
    assert trained["margin"]["value"] == pytest.approx(merged["margin"]["value"], rel=1e-4)
    assert trained["margin"]["value"] != plain["margin"]["value"]


def test_texts_are_written_scored_and_kept(workshop: Path, command: Command, other: str):
    words = ("--dataset", "pairs.jsonl", "--generate", "4", "--max_new_tokens", "5")
    sampled = ("--temperature", "0.8", "--seed", "3", "--out", "kept")
    said = command("evaluate", other, "--base", "model", *words, *sampled, *SMALL)
    assert said.code == 0, said.err
    assert max(map(len, said.out.splitlines())) <= 80
    content = json.loads(Path("kept/evaluation.json").read_text())
    texts = content["after"]["texts"]["pairs.jsonl"]
    assert set(texts) == {"greedy", "sampled"}
    assert 0 < texts["greedy"]["length"] <= 5
    assert {"bleu", "chrf", "exact_match", "distinct_2"} <= set(texts["sampled"])
    assert "version:" in content["signatures"]["bleu"]
    lines = [json.loads(x) for x in Path("kept/completions.jsonl").read_text().splitlines()]
    assert [(x["model"], x["kind"]) for x in lines] == [
        (who, kind) for who in ("model", other) for kind in ("greedy", "sampled") for _ in range(4)
    ]
    assert {x["reference"] for x in lines} <= {row["chosen"] for row in PAIRS}
    beams = command("evaluate", other, *words, "--num_beams", "2", "--json", *SMALL)
    assert set(found(beams)["after"]["texts"]["pairs.jsonl"]) == {"beams"}
    again = command("evaluate", other, *words, "--out", "kept", *SMALL)
    assert (again.code, again.err[:21]) == (2, "counterpoint: CP506 k")
    assert command("evaluate", other, *words, "--out", "kept", "--overwrite", *SMALL).code == 0


def test_any_text_can_be_said_on_any_terminal(workshop: Path, monkeypatch: pytest.MonkeyPatch):
    write_pairs(workshop / "prompts.jsonl", [{"prompt": "Größe?", "reference": "长"}])
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    words = ["--prompts", "prompts.jsonl", "--max_new_tokens", "2", "--use_cpu"]
    assert main(["evaluate", "model", *words]) == 0
    terminal.seek(0)
    assert "Gr\\xf6\\xdfe?" in terminal.read()


def test_prompts_of_a_file_need_no_pairs(workshop: Path, command: Command):
    rows: list[dict[str, object]] = [{"prompt": "What is 3?", "reference": "3"}, {"prompt": "Hm?"}]
    write_pairs(workshop / "prompts.jsonl", rows)
    words = ("--prompts", "prompts.jsonl", "--max_new_tokens", "3", "--json", "--use_cpu")
    content = found(command("evaluate", "model", *words))
    assert content["after"]["sets"] == {}
    assert content["after"]["texts"]["prompts"]["greedy"]["exact_match"] == 0
    assert "chrf" in content["after"]["texts"]["prompts"]["greedy"]


def test_without_sacrebleu_its_scores_are_left_out_with_a_word_unless_asked_for(
    workshop: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr("counterpoint.evaluation.references.find_spec", lambda name: None)
    words = ("--dataset", "pairs.jsonl", "--generate", "2", "--max_new_tokens", "2", *SMALL)
    said = command("evaluate", "model", *words)
    assert said.code == 0
    assert "BLEU and chrF are left out" in caplog.text
    assert "exact match" in said.out
    assert "chrF" not in said.out
    asked = command("evaluate", "model", *words, "--metrics", "chrf")
    assert asked.code == 2
    assert re.match(r"counterpoint: CP502 .*-m pip install 'sacrebleu>=2\.4'", asked.err)


def test_nothing_is_left_of_an_evaluation_without_out(workshop: Path, command: Command):
    before = tree(workshop)
    assert command("evaluate", "model", "--dataset", "pairs.jsonl", *SMALL).code == 0
    assert tree(workshop) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "CP107 the model is missing"),
        (("--dataset", "pairs.jsonl"), "CP107 the model is missing"),
        (("model",), "CP107 dataset"),
        (("model", "pairs.jsonl"), "CP101 'pairs.jsonl' belongs to no flag"),
        (("model", "--dataset", "pairs.jsonl", "--learning_rate=1"), "CP101 --learning_rate"),
        (("model", "--dataset", "pairs.jsonl", "--generat=1"), "CP101 --generat"),
        (("model", "--dataset", "none.jsonl"), "CP211"),
        (("nothing/here/at/all", "--dataset", "pairs.jsonl"), "CP301"),
        (("model", "--dataset", "pairs.jsonl", "--generate=-1"), "CP103 generate=-1"),
        (("model", "--dataset", "pairs.jsonl", "--metrics", "bleu"), "CP104 metrics would"),
        (("model", "--dataset", "pairs.jsonl", "--temperature=1"), "CP104 temperature would"),
        (("model", "--dataset", "pairs.jsonl", "--top_p=0.5"), "CP104 top_p=0.5"),
        (("model", "--prompts", "pairs.jsonl", "--metrics=rouge"), "CP102"),
        (("model", "--dataset", "pairs.jsonl", "--beta=0"), "CP103 beta=0"),
    ],
)
def test_what_cannot_be_meant_is_said_by_code(workshop, command: Command, words, message: str):
    said = command("evaluate", *words)
    assert said.code == 2
    assert said.err.splitlines()[-1].startswith(f"counterpoint: {message}")
    assert said.out == ""


def test_a_turn_that_a_prompt_begins_is_continued(workshop: Path):
    from transformers import AutoTokenizer

    from counterpoint.cli.evaluate import _read_prompts

    tokenizer = AutoTokenizer.from_pretrained(workshop / "model")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    user, begun = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It is"}
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "It is"}]
    rows = [{"prompt": [user]}, {"prompt": [user, begun]}, {"prompt": shared}]
    write_pairs(workshop / "prompts.jsonl", rows)
    read = _read_prompts([str(workshop / "prompts.jsonl")], TextEncoder(tokenizer))
    texts = [tokenizer.decode(prompt.ids, skip_special_tokens=True) for prompt in read]
    assert texts == ["user: Hi;assistant: ", *["user: Hi;assistant: It is"] * 2]


def test_tools_system_and_arguments_of_a_prompt_reach_the_template(workshop: Path):
    from transformers import AutoTokenizer

    from counterpoint.cli.evaluate import _read_prompts

    tokenizer = AutoTokenizer.from_pretrained(workshop / "model")
    tokenizer.chat_template = (
        "{{ mood }} {{ tools[0].name }} {% for m in messages %}{{ m.content }};{% endfor %}"
    )
    row = {
        "system": "Be brief.",
        "prompt": [{"role": "user", "content": "Hi"}],
        "tools": [{"name": "f"}],
        "chat_template_kwargs": {"mood": "calm"},
    }
    write_pairs(workshop / "prompts.jsonl", [row])
    (read,) = _read_prompts([str(workshop / "prompts.jsonl")], TextEncoder(tokenizer))
    assert tokenizer.decode(read.ids, skip_special_tokens=True) == "calm f Be brief.;Hi;"


def test_prompts_that_are_none_are_named_by_row(workshop: Path, command: Command):
    write_pairs(workshop / "prompts.jsonl", [{"prompt": "a"}, {"prompt": None}])
    said = command("evaluate", "model", "--prompts", "prompts.jsonl", "--use_cpu")
    assert "CP202 prompts.jsonl, row 1: prompt is 'None'" in said.err


def test_the_engine_that_writes_changes_no_greedy_text(workshop: Path, command: Command):
    texts = {}
    for engine in ("transformers", "continuous"):
        words = ("--generate", "6", "--max_new_tokens", "8", "--engine", engine, "--out", engine)
        said = command("evaluate", "model", "--dataset", "pairs.jsonl", *words, *SMALL)
        if engine == "continuous" and "CP502" in said.err:
            pytest.skip("this transformers has no continuous batching that can be given a chance")
        assert said.code == 0, said.err
        texts[engine] = Path(engine, "completions.jsonl").read_text()
    assert texts["continuous"] == texts["transformers"] != ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--engine", "continuous"), "CP104 engine would do nothing: no text is written"),
        (
            ("--engine", "continuous", "--generate", "2", "--num_beams", "2"),
            "CP104 num_beams=2 would do nothing with engine=continuous, which has no beams.",
        ),
        (("--engine", "endpoint"), 'CP102 --engine="endpoint" is not one of transformers'),
    ],
)
def test_an_engine_that_would_do_nothing_is_refused(
    workshop: Path, command: Command, words: tuple[str, ...], said: str
):
    done = command("evaluate", "model", "--dataset", "pairs.jsonl", *words, *SMALL)
    assert done.code == 2
    assert said in " ".join(done.err.split())
