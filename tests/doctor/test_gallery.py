"""Broken runs, each found under its own code, and whole again once mended.

Where a finding has a line to paste, that line itself is what mends.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, ByT5Tokenizer

from counterpoint.config import CPOConfig
from counterpoint.data.prepare import prepare
from counterpoint.doctor import of_machine, of_memory, of_unused
from counterpoint.doctor.findings import Finding
from counterpoint.doctor.table import TABLE, severity_of
from counterpoint.planner.plan import Planner
from counterpoint.planner.shapes import Lengths
from tests.cli.test_bad_input import GALLERY as REFUSED_BY_THE_COMMAND
from tests.doctor.patients import (
    Change,
    Patient,
    both,
    chatting,
    healthy,
    options,
    parts,
    pasted,
    rows,
    translating,
)
from tests.templates_on_the_spot import GEMMA, MISTRAL, QWEN3, R1, with_template

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One broken run.

    Args:
        name: what is broken.
        code: under which it is found.
        broken: breaks a whole run.
        mended: mends it again; None: what the finding says to paste.
        whole: the run that is broken.
    """

    name: str
    code: str
    broken: Change
    mended: Change | None = None
    whole: Callable[[str], Patient] = healthy


def lora(**values: Any) -> Change:
    """An adapter."""
    return parts(adapter=peft.LoraConfig(task_type="CAUSAL_LM", r=2, **values))


def model(change: Callable[[Any], Any]) -> Change:
    """A change of the model in place."""

    def changed(patient: Patient) -> Patient:
        made = copy.deepcopy(patient.model)
        with torch.no_grad():
            change(made)
        return replace(patient, model=made)

    return changed


def tokenizer(**values: Any) -> Change:
    """Other attributes of the tokenizer."""

    def changed(patient: Patient) -> Patient:
        made = copy.deepcopy(patient.tokenizer)
        for name, value in values.items():
            setattr(made, name, value)
        return replace(patient, tokenizer=made)

    return changed


def each(count: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    """A change of the first rows."""
    return rows(lambda whole: [change(row) for row in whole[:count]] + whole[count:])


def more(*added: dict[str, Any]) -> Change:
    """Rows at the end."""
    return rows(lambda whole: [*whole, *added])


def started_by(model: Any, token: int | None) -> Any:
    """A model whose configuration names this start of its decoder, and no EOS in its place."""
    model.config.decoder_start_token_id = model.config.eos_token_id = token
    return model


def less(count: int) -> Change:
    """Without the last rows."""
    return rows(lambda whole: whole[: len(whole) - count])


def good_row(**changes: Any) -> dict[str, Any]:
    """A row unlike any other, with changes."""
    return {"prompt": "two million = ", "chosen": "zwei Millionen", "rejected": "zwei"} | changes


def listing(rejected: list[str]) -> Callable[[list[Any]], list[Any]]:
    """One row more, with a list of rejected answers, in a set whose rows list one each."""

    def change(whole: list[Any]) -> list[Any]:
        texts = [row for row in whole if isinstance(row["rejected"], str)]
        listed = [{**row, "rejected": [row["rejected"]]} for row in texts]
        return [*listed, good_row(rejected=rejected)]

    return change


def turned(row: dict[str, Any]) -> dict[str, Any]:
    """The opposite of a row."""
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def zeroed(made: Any) -> None:
    """One matrix of zeros."""
    made.model.layers[0].mlp.up_proj.weight.zero_()


def in_8_bits(patient: Patient) -> Any:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = copy.deepcopy(the_model(patient))
    layer = model.model.layers[0].mlp.up_proj
    codes = bitsandbytes.nn.Linear8bitLt(
        layer.in_features, layer.out_features, bias=False, has_fp16_weights=False
    )
    codes.load_state_dict(layer.state_dict())
    model.model.layers[0].mlp.up_proj = codes.to("cpu")
    return model


def without_gradient(patient: Patient) -> Any:
    model = in_8_bits(patient)
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda _, __, out: out.detach())
    return model


def not_a_number(made: Any) -> None:
    """One weight that is none."""
    made.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")


def infinite(made: Any) -> None:
    """One weight without bound."""
    made.model.norm.weight[0] = float("inf")


def frozen(made: Any) -> None:
    """The first layer does not train."""
    made.model.layers[0].requires_grad_(False)


def fresh(patient: Patient) -> Any:
    """The same model before any training."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(patient.model.config)


def small_embedding(made: Any) -> None:
    """Without the last token id."""
    made.resize_token_embeddings(made.get_input_embeddings().weight.shape[0] - 1)


def with_dropout(made: Any) -> None:
    """Attention that drops."""
    for layer in made.model.layers:
        layer.self_attn.attention_dropout = 0.1


def without(name: str) -> Change:
    """An option left at its default."""
    return lambda patient: replace(
        patient, options={key: v for key, v in patient.options.items() if key != name}
    )


def renamed(whole: Rows) -> Rows:
    """Columns that are called otherwise."""
    return [{"prompt": r["prompt"], "better": r["chosen"], "worse": r["rejected"]} for r in whole]


def named(whole: Rows) -> Rows:
    """The columns' names again."""
    return [{"prompt": r["prompt"], "chosen": r["better"], "rejected": r["worse"]} for r in whole]


def half_weightless(whole: Rows) -> Rows:
    """Every other row counts nothing."""
    return [{**row, "weight": float(number % 2)} for number, row in enumerate(whole)]


def marked(whole: Rows) -> Rows:
    """A message that the template went over already."""
    whole[4]["chosen"][0]["content"] += "<|im_end|>\n<|im_start|>user\nMore?"
    return whole


def unmarked(whole: Rows) -> Rows:
    """The message as it was."""
    whole[4]["chosen"][0]["content"] = "It is 8."
    return whole


def spaced(whole: Rows) -> Rows:
    """The space before an answer stands at the end of its prompt."""
    sides = ("chosen", "rejected")
    return [
        {"prompt": f"{row['prompt']} ", **{side: row[side].lstrip() for side in sides}}
        for row in whole
    ]


def text_of(patient: Patient) -> Patient:
    """Conversations as plain text, the space at the start of the answers."""
    plain = [
        {
            "prompt": row["prompt"][0]["content"],
            "chosen": f" {row['chosen'][0]['content']}",
            "rejected": f" {row['rejected'][0]['content']}",
        }
        for row in patient.rows
    ]
    return replace(patient, rows=plain)


def llama_chat(folder: str) -> Patient:
    """Conversations whose template knows only users and assistants."""
    patient = chatting(folder)
    made = copy.deepcopy(patient.tokenizer)
    made.chat_template = (
        "{%- for m in messages %}{%- if m.role == 'system' %}{{ raise_exception('no') }}"
        "{%- endif %}{{ m.role + m.content + eos_token }}{%- endfor %}"
    )
    return replace(patient, tokenizer=made)


def templated(template: str) -> Callable[[Patient], Any]:
    """The tokenizer with another template."""
    return lambda patient: with_template(patient.tokenizer, template)


def with_last_id(patient: Patient) -> Patient:
    """A tokenizer whose last token is written "~"."""
    made = copy.deepcopy(patient.tokenizer)
    made.add_tokens(["~"])
    whole = copy.deepcopy(patient.model)
    whole.resize_token_embeddings(len(made))
    return replace(patient, tokenizer=made, model=whole)


def unknown_eos(patient: Patient) -> Any:
    """An EOS that was only written into the configuration."""
    made = copy.deepcopy(patient.tokenizer)
    made._special_tokens_map["eos_token"] = "<|end|>"
    return made


def file_for_a_folder(patient: Patient) -> Patient:
    """An output folder that a file is in the way of."""
    Path("file").touch()
    return options(output_dir="file/out")(patient)


def earlier_run(patient: Patient) -> Patient:
    """An output folder that holds a run."""
    Path("out").mkdir()
    Path("out/run.json").touch()
    return patient


def the_chat_tokenizer(patient: Patient) -> Any:
    """The tokenizer of conversations as it was."""
    return chatting("out").tokenizer


def the_tokenizer(patient: Patient) -> Any:
    """The healthy run's."""
    return healthy("out").tokenizer


def the_model(patient: Patient) -> Any:
    """The healthy run's."""
    return healthy("out").model


USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
CIRCLE = [
    good_row(chosen=f"{first} Antwort", rejected=f"{second} Antwort")
    for first, second in (("eine", "zwei"), ("zwei", "drei"), ("drei", "eine"))
]
LONG = "zwei " * 30
SECRET = "AKIA" + "ABCDEFGH" * 2
CHINESE = "我希望大家能花点时间考虑一个问题。"
TWO_BOS = both(
    tokenizer(bos_token="<|im_start|>"),
    parts(tokenizer=lambda p: adding_bos(p.tokenizer)),
)


def adding_bos(made: Any) -> Any:
    """The tokenizer puts its BOS before every text."""
    from tokenizers.processors import TemplateProcessing

    made = copy.deepcopy(made)
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{made.bos_token} $A", special_tokens=[(made.bos_token, made.bos_token_id)]
    )
    return made


def without_eos_at_the_end(patient: Patient) -> Any:
    """A template whose turns end with a plain word."""
    made = copy.deepcopy(patient.tokenizer)
    made.chat_template = made.chat_template.replace("<|im_end|>", " over")
    return made


SHORT = options(max_length=40)
START, END = (options(max_length=40, truncation=part) for part in ("prompt_start", "prompt_end"))
TWO_QUESTIONS = [
    {"prompt": None, "chosen": [USER, ANSWER], "rejected": [{**USER, "content": "Why?"}, ANSWER]}
]
USER_LAST = {"prompt": [USER], "chosen": [USER], "rejected": [ANSWER]}
UNKNOWN_ROLE = {
    "prompt": [{"role": "system", "content": "Be brief."}, USER],
    "chosen": [ANSWER],
    "rejected": [{**ANSWER, "content": "No."}],
}
THOUGHT = {"role": "assistant", "content": "<think>\nWell, well.\n</think>\n\nYes."}
THOUGHTFUL = {"prompt": [USER, THOUGHT, USER], "chosen": [THOUGHT], "rejected": [ANSWER]}
WITH_A_TOOL = {
    "prompt": [USER],
    "chosen": [ANSWER, {"role": "tool", "content": "5"}, ANSWER],
    "rejected": [{**ANSWER, "content": "No."}],
}
WITH_SYSTEM = {
    "prompt": [{"role": "system", "content": "Be as brief as you can be."}, USER],
    "chosen": [ANSWER],
    "rejected": [{**ANSWER, "content": "No."}],
}
REPEATING = (
    "{%- for m in messages %}{{- '<|im_start|>' + messages[0].content + m.content + '<|im_end|>' }}"
    "{%- endfor %}"
)
ONE_TOKEN = {"prompt": "", "chosen": "<|im_end|>", "rejected": "a"}
WITH_TEMPLATE = {"tokenizer": the_chat_tokenizer}
NEW_ROWS = rows(lambda whole: [good_row()])
NO_BOS = tokenizer(bos_token=None)

UNUSED: list[tuple[str, Any, dict[str, Any]]] = [
    ("beta", 0.3, {"loss_type": "repo"}),
    ("nll_reduction", "sequence_sum", {"cpo_alpha": 0.0}),
    ("num_train_epochs", 5.0, {"max_steps": 10}),
    ("per_device_eval_batch_size", 4, {}),
    ("eval_steps", 7, {}),
    ("eval_delay", 2, {}),
    ("save_steps", 7, {"save_strategy": "no"}),
    ("save_total_limit", 2, {"save_strategy": "no"}),
    ("save_only_model", True, {"save_strategy": "no"}),
    ("logging_steps", 7, {"logging_strategy": "epoch"}),
    ("metric_for_best_model", "eval_loss", {}),
    ("gradient_checkpointing_kwargs", {"a": 1}, {"gradient_checkpointing": False}),
    ("checkpointing_share", 0.5, {"gradient_checkpointing": False}),
    ("activation_offload", True, {}),
    ("data_seed", 3, {"train_sampling_strategy": "sequential"}),
    ("remove_unused_columns", False, {}),
    ("generate_during_eval", True, {}),
    ("on_alarm", "stop", {"logging_strategy": "no", "monitor_steps": 0}),
    ("warmup_steps", 5, {"lr_scheduler_type": "constant"}),
    ("cpo_alpha", 0.5, {"loss_type": "alphapo"}),
    ("adam_beta1", 0.8, {"optim": "sgd"}),
    ("adam_beta2", 0.9, {"optim": "sgd"}),
    ("adam_epsilon", 1e-6, {"optim": "sgd"}),
]


def spelled(whole: Rows) -> Rows:
    """Each side as a CSV file of pandas holds messages."""
    turns = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return [
        {name: str([{"role": turns[name], "content": row[name]}]) for name in turns}
        for row in whole
    ]


def read_back(whole: Rows) -> Rows:
    return [{name: ast.literal_eval(text) for name, text in row.items()} for row in whole]


GALLERY = [
    # options
    Case("simpo keeps TRL's alpha", "CW101", options(loss_type="simpo", beta=2.0)),
    Case("repo with an NLL", "CW101", options(loss_type="repo")),
    Case("simper with an NLL", "CW101", options(loss_type="simper")),
    Case("CPO without its NLL", "CW102", options(cpo_alpha=0.0)),
    Case("ORPO without its NLL", "CW102", options(loss_type="orpo", cpo_alpha=0.0)),
    Case("arpo without its NLL", "CW102", options(loss_type="arpo", cpo_alpha=0.0)),
    Case("simpo with DPO's beta", "CW103", options(loss_type="simpo", simpo_gamma=0.05)),
    Case("CPO with SimPO's beta", "CW103", options(beta=10.0)),
    Case("alphapo with DPO's beta", "CW103", options(loss_type="alphapo", alpha=0.1)),
    Case("a margin of five betas", "CW104", options(loss_type="simpo")),
    Case("no margin", "CW104", options(loss_type="simpo", beta=2.0, gamma_beta_ratio=0.0)),
    Case("a rate for adapters on all weights", "CW105", options(learning_rate=1e-4)),
    Case("a rate too high for adapters", "CW105", both(lora(), options(learning_rate=0.01))),
    Case("a rate for all weights on an adapter", "CW106", lora()),
    Case("a rate of nothing", "CW106", options(learning_rate=0.0)),
    Case("a rate too low for all weights", "CW106", options(learning_rate=1e-9)),
    Case("AlphaPO that is SimPO", "CW107", options(loss_type="alphapo", beta=2.0)),
    Case("AlphaPO of sums", "CW108", options(alpha=200.0)),
    Case("AlphaPO without a slope", "CW108", options(loss_type="alphapo", alpha=-900.0)),
    *(
        Case(f"{name} unused", "CW109", options(**{name: value}, **others), without(name))
        for name, value, others in UNUSED
    ),
    # steps
    Case("a step larger than the set", "CW121", options(gradient_accumulation_steps=64)),
    Case(
        "a last step of four",
        "CW122",
        options(per_device_train_batch_size=13, gradient_accumulation_steps=12),
    ),
    Case("all warm-up", "CW123", options(warmup_steps=100)),
    Case("tiny steps", "CW124", options(gradient_accumulation_steps=1, num_train_epochs=20)),
    Case("huge steps", "CW124", options(gradient_accumulation_steps=64, num_train_epochs=20)),
    Case("saving after the end", "CW125", options(save_steps=1000)),
    Case("logging after the end", "CW125", options(logging_steps=50)),
    Case(
        "evaluating after the end",
        "CW125",
        both(options(eval_strategy="steps", eval_steps=100), parts(eval_rows=lambda p: p.rows)),
    ),
    Case(
        "most of an epoch dropped",
        "CW126",
        options(
            per_device_train_batch_size=100,
            gradient_accumulation_steps=1,
            dataloader_drop_last=True,
        ),
    ),
    # data that the trainer refuses
    Case("an empty answer", "CP203", more(good_row(rejected=" "))),
    Case("a picture", "CP219", more(good_row(image="cat.png"))),
    Case("a prompt too long", "CP204", both(more(good_row(prompt="two " * 60)), SHORT)),
    Case(
        *("a source too long", "CP204", both(more(good_row(prompt="two " * 60)), SHORT)),
        whole=translating,
    ),
    Case("equal answers", "CP205", more(good_row(rejected="zwei Millionen"))),
    Case("a null", "CP202", more(good_row(chosen=None))),
    Case("two questions", "CP206", rows(lambda whole: [*whole, *TWO_QUESTIONS]), less(1)),
    Case("the user's last word", "CP207", more(USER_LAST), less(1), chatting),
    Case("no template", "CP208", tokenizer(chat_template=None), parts(**WITH_TEMPLATE), chatting),
    Case("no rows", "CP209", rows(lambda whole: []), both(rows(lambda whole: [good_row()]))),
    Case("nothing but bad rows", "CP209", rows(lambda whole: [good_row(chosen="")]), NEW_ROWS),
    Case("a weight below nothing", "CP212", more(good_row(weight=-1.0)), less(1)),
    Case(
        "a margin without a gap",
        "CP212",
        both(more(good_row(margin=0.2)), options(loss_type="apo_zero")),
        options(loss_type="apo_down"),
    ),
    Case("a list without an answer", "CP233", rows(listing([])), rows(listing(["zwei", "zwo"]))),
    Case("two chosen answers", "CP234", more(good_row(chosen=["zwei Millionen", "zwo"])), less(1)),
    Case("a loss of three", "CP236", options(loss_type="tpo"), options(loss_type="sigmoid")),
    Case("a template that refuses", "CP213", more(UNKNOWN_ROLE), less(1), llama_chat),
    Case(
        "thoughts left out of an answer",
        "CP226",
        both(parts(tokenizer=templated(R1)), more({**THOUGHTFUL, "prompt": [USER]})),
        less(1),
        chatting,
    ),
    Case("no prompt for one token", "CP214", more(ONE_TOKEN), less(1), chatting),
    Case(
        "a language that the tokenizer lacks",
        "CP227",
        more(good_row(target_lang="ger_Latn")),
        less(1),
        translating,
    ),
    Case(
        "a decoder that nobody says how to begin",
        "CP317",
        parts(model=lambda patient: started_by(patient.model, None)),
        parts(model=lambda patient: started_by(patient.model, 2)),
        translating,
    ),
    Case("a column of another name", "CP201", rows(renamed), rows(named)),
    # data worth a word
    Case("only spaces differ", "CW201", more(good_row(rejected="zwei  Millionen")), less(1)),
    Case(
        "only Unicode differs",
        "CW201",
        more(good_row(rejected="\uff5a\uff57\uff45\uff49 Millionen")),
        less(1),
    ),
    Case("a row twice", "CW202", rows(lambda whole: [*whole, whole[3]]), less(1)),
    Case(
        "prompts again",
        "CW203",
        rows(lambda whole: [*whole, *({**row, "chosen": "null"} for row in whole[:20])]),
        less(20),
    ),
    Case("a row and its opposite", "CW204", rows(lambda w: [*w, turned(w[5])]), less(1)),
    Case("a circle", "CW205", more(*CIRCLE), less(1)),
    Case(
        "answers cut short",
        "CW206",
        each(9, lambda row: {**row, "rejected": row["chosen"][:4]}),
        rows(lambda whole: whole[9:]),
    ),
    Case(
        "echoes",
        "CW207",
        each(9, lambda row: {**row, "chosen": row["prompt"] + row["chosen"]}),
        rows(lambda whole: whole[9:]),
    ),
    Case("answers over the budget", "CW208", options(max_length=12, truncation="prompt_start")),
    Case(
        "thoughts of earlier turns",
        "CW216",
        both(parts(tokenizer=templated(QWEN3)), more(THOUGHTFUL)),
        None,
        chatting,
    ),
    Case(
        "a system turn left out",
        "CW216",
        both(parts(tokenizer=templated(MISTRAL)), more(WITH_SYSTEM)),
        less(1),
        chatting,
    ),
    Case(
        "space taken away",
        "CW217",
        both(
            parts(tokenizer=templated(GEMMA)),
            more({**WITH_SYSTEM, "chosen": [{**ANSWER, "content": "Ho "}]}),
        ),
        less(1),
        chatting,
    ),
    Case(
        "a system turn in every turn",
        "CW218",
        both(parts(tokenizer=templated(REPEATING)), more(WITH_SYSTEM)),
        less(1),
        chatting,
    ),
    Case(
        "a question cut away",
        "CW219",
        both(each(3, lambda row: {**row, "prompt": "two " * 60 + row["prompt"]}), START),
    ),
    Case(
        "an end of a question cut away",
        "CW219",
        both(each(3, lambda row: {**row, "prompt": row["prompt"] + " two" * 60}), END),
    ),
    Case(
        "answers equal when cut",
        "CW209",
        both(more(good_row(chosen=f"{LONG}eins", rejected=f"{LONG}drei")), options(max_length=60)),
    ),
    Case(
        "spaces before answers",
        "CW210",
        rows(spaced),
        None,
        lambda folder: text_of(chatting(folder)),
    ),
    Case(
        "longer wins",
        "CW211",
        each(120, lambda row: {**row, "chosen": f"{row['chosen']} und so weiter"}),
        rows(lambda whole: whole[120:]),
    ),
    Case(
        "evaluation on the training set",
        "CW212",
        parts(eval_rows=lambda p: [*copy.deepcopy(p.rows[:10]), good_row(prompt=f"{CHINESE} = ")]),
    ),
    Case(
        "the other language",
        "CW213",
        each(5, lambda row: {**row, "chosen": "sechs und dreizehn tausend", "rejected": CHINESE}),
        rows(lambda whole: whole[5:]),
    ),
    Case("a key", "CW214", more(good_row(chosen=f"the key is {SECRET}")), less(1)),
    Case("a row of no weight", "CW215", rows(half_weightless)),
    Case(
        "a tool's words, trained",
        "CW138",
        both(
            more(WITH_A_TOOL),
            options(train_turns="all"),
        ),
        options(train_turns="assistant"),
        chatting,
    ),
    Case("lists that became text", "CW220", rows(spelled), rows(read_back), chatting),
    Case(
        "answers in another language",
        "CW130",
        each(20, lambda row: {**row, "chosen": "It is nothing that I have ever heard of before."}),
        rows(lambda whole: whole[20:]),
        translating,
    ),
    # tokenizer
    Case("no EOS", "CP302", tokenizer(eos_token=None)),
    Case("no pad token", "CN301", tokenizer(pad_token=None)),
    Case("EOS for padding", "CN302", tokenizer(pad_token="</s>")),
    Case(
        "a BOS that only training has",
        "CW303",
        tokenizer(bos_token="<|endoftext|>"),
        NO_BOS,
        chatting,
    ),
    Case(
        "BOS from template and tokenizer",
        "CW304",
        TWO_BOS,
        parts(tokenizer=the_chat_tokenizer),
        chatting,
    ),
    Case("the template in the messages", "CW305", rows(marked), rows(unmarked), chatting),
    Case(
        "another model's template",
        "CW306",
        each(3, lambda row: {**row, "prompt": f"<|im_start|>user\n{row['prompt']}"}),
        rows(lambda whole: whole[3:]),
    ),
    Case(
        "turns that do not end with EOS",
        "CW307",
        tokenizer(eos_token="<|endoftext|>"),
        None,
        chatting,
    ),
    Case(
        "turns that end with a word",
        "CW307",
        parts(tokenizer=without_eos_at_the_end),
        parts(tokenizer=the_chat_tokenizer),
        chatting,
    ),
    Case("an embedding one short", "CW308", model(small_embedding)),
    Case(
        "an id beyond the embedding",
        "CP303",
        both(model(small_embedding), more(good_row(chosen="zwei ~ Millionen"))),
        whole=lambda folder: with_last_id(healthy(folder)),
    ),
    Case(
        "a slow tokenizer",
        "CW309",
        parts(tokenizer=lambda p: ByT5Tokenizer()),
        parts(tokenizer=the_chat_tokenizer),
        chatting,
    ),
    Case("EOS within answers", "CW310", more(good_row(chosen="zwei</s> Millionen")), less(1)),
    Case(
        "an EOS that no vocabulary has",
        "CW311",
        parts(tokenizer=unknown_eos),
        tokenizer(eos_token="</s>"),
    ),
    Case(
        "no tokenizer at all",
        "CP301",
        parts(tokenizer=SimpleNamespace()),
        parts(tokenizer=the_tokenizer),
    ),
    Case(
        "a processor of images",
        "CP306",
        parts(tokenizer=SimpleNamespace(image_processor=1)),
        parts(tokenizer=the_tokenizer),
    ),
    # model
    Case("no model at all", "CP306", parts(model=SimpleNamespace()), parts(model=the_model)),
    Case("nothing to train", "CP305", model(lambda m: m.requires_grad_(False))),
    Case("a NaN", "CP308", model(not_a_number), parts(model=the_model)),
    Case("an infinite weight", "CP308", model(infinite), parts(model=the_model)),
    Case("a matrix of zeros", "CW321", model(zeroed), parts(model=the_model)),
    Case("an untrained model", "CW322", parts(model=fresh), parts(model=the_model)),
    Case("a frozen layer", "CW323", model(frozen)),
    Case("quantised weights to train", "CP316", parts(model=in_8_bits), parts(model=the_model)),
    Case(
        "a quantised layer that forgets its gradient",
        "CP319",
        both(lora(), parts(model=without_gradient)),
        parts(model=the_model),
    ),
    Case("an adapter for no layer", "CP307", lora(target_modules=["query"]), lora()),
    Case("an adapter by a wrong pattern", "CP307", lora(target_modules=".*query"), lora()),
    Case(
        "an adapter on an adapter",
        "CP307",
        both(lora(), parts(model=lambda p: peft.get_peft_model(p.model, p.adapter))),
        None,
    ),
    Case("an adapter for some layers", "CW324", lora(target_modules=["q_proj", "key"]), lora()),
    Case(
        "a module to save that is none",
        "CW324",
        lora(target_modules=["q_proj"], modules_to_save=["lm_hat"]),
        lora(target_modules=["q_proj"]),
    ),
    Case(
        "bfloat16 that cannot move",
        "CW325",
        model(lambda m: m.bfloat16()),
        model(lambda m: m.float()),
    ),
    Case("dropout", "CW326", both(model(with_dropout), options(disable_dropout=False))),
    Case(
        "dropout of an adapter",
        "CW326",
        both(lora(lora_dropout=0.1), options(disable_dropout=False)),
    ),
    Case("a model that guesses", "CW327", parts(model=fresh), parts(model=the_model)),
    Case(
        "sharing what cannot be shared",
        "CP104",
        both(model(with_dropout), options(disable_dropout=False, layout="shared")),
    ),
    Case(
        "a model without a head",
        "CP304",
        parts(model=lambda p: p.model.model),
        parts(model=the_model),
    ),
    # the machine
    Case("a folder below a file", "CP501", file_for_a_folder, options(output_dir="elsewhere")),
    Case("another run in the folder", "CP504", earlier_run),
]


@pytest.mark.parametrize("case", GALLERY, ids=[case.name for case in GALLERY])
def test_what_is_broken_is_found_and_what_is_mended_is_not(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = case.whole("out")
    assert seen(whole, case.code) is None
    broken = case.broken(whole)
    finding = seen(broken, case.code)
    assert finding is not None
    assert finding.severity == severity_of(case.code)
    mended = (case.mended or pasted(finding))(broken)
    assert seen(mended, case.code) is None


def seen(patient: Patient, code: str) -> Finding | None:
    """The finding of a code at its own severity: a warning of rows that are dropped is no error."""
    report = patient.examined()
    assert [finding for finding in report.findings if finding.code == "CW901"] == []
    found = [f for f in report.findings if (f.code, f.severity) == (code, severity_of(code))]
    return found[0] if found else None


def test_the_doctor_has_nothing_against_a_healthy_run(tmp_path: Path) -> None:
    report = healthy(str(tmp_path / "out")).examined()
    assert report.of_severity("error", "warning") == ()
    assert report.exit_code == 0


# Codes that need another machine, another kind of data, or a broken doctor


def test_a_precision_without_hardware_for_it_is_named(tmp_path: Path) -> None:
    patient = healthy(str(tmp_path / "out"))
    assert seen(patient, "CW501") is None
    finding = seen(options(fp16=True)(patient), "CW501")
    assert finding is not None
    assert seen(pasted(finding)(options(fp16=True)(patient)), "CW501") is None


def test_a_launch_that_no_engine_runs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = healthy(str(tmp_path / "out"))
    assert seen(patient, "CP105") is None
    monkeypatch.setattr(of_machine, "launched_for", lambda kind: "MEGATRON_LM")
    finding = seen(patient, "CP105")
    assert finding is not None
    assert finding.seen == (
        "accelerate is set up for MEGATRON_LM, but a model is trained whole on every rank "
        "(torchrun), or in shards with FSDP2 (torchrun and fsdp)."
    )


def test_a_large_model_on_a_cpu_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = healthy(str(tmp_path / "out"))
    assert seen(patient, "CW502") is None
    monkeypatch.setattr(of_machine, "LARGE", 100_000)
    assert seen(patient, "CW502") is not None


def test_checkpoints_that_do_not_fit_the_disk_are_named_and_fewer_of_them_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = options(save_steps=1, num_train_epochs=5)(healthy(str(tmp_path / "out")))
    weights = sum(weight.numel() for weight in patient.model.parameters())
    # ten checkpoints of weights and two moments, and the model: 10 x 12 + 4 bytes a weight
    monkeypatch.setattr(of_machine, "free_disk", lambda folder: 124 * weights)
    assert seen(patient, "CW503") is None
    monkeypatch.setattr(of_machine, "free_disk", lambda folder: 124 * weights - 1)
    finding = seen(patient, "CW503")
    assert finding is not None
    assert finding.seen.startswith("10 checkpoints of ")
    assert seen(pasted(finding)(patient), "CW503") is None


def test_less_memory_than_the_longest_pair_needs_is_named_with_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = options(gradient_checkpointing=False)(healthy(str(tmp_path / "out")))
    args = CPOConfig(**patient.options)
    pairs = prepare(patient.rows, patient.tokenizer).pairs
    planner = Planner(patient.model, args, Lengths.of(pairs))
    peak = planner.estimate(1, 0).peak
    weights = sum(weight.nbytes for weight in patient.model.parameters())
    monkeypatch.setattr(of_memory, "available_memory", lambda device: peak - weights)
    assert seen(patient, "CW504") is None
    monkeypatch.setattr(of_memory, "available_memory", lambda device: peak - weights - 1)
    finding = seen(patient, "CW504")
    assert finding is not None
    assert finding.fix == "gradient_checkpointing: true"
    assert seen(pasted(finding)(patient), "CW504") is None


def test_without_pairs_the_least_that_any_step_needs_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = replace(healthy(str(tmp_path / "out")), rows=None)
    weights = sum(weight.numel() for weight in patient.model.parameters())
    # gradients and two moments, beside the weights that are there
    monkeypatch.setattr(of_memory, "available_memory", lambda device: 12 * weights)
    assert seen(patient, "CW504") is None
    monkeypatch.setattr(of_memory, "available_memory", lambda device: 12 * weights - 1)
    assert seen(patient, "CW504") is not None
    assert seen(lora()(patient), "CW504") is None


def test_a_long_stream_is_examined_at_its_beginning(tmp_path: Path) -> None:
    patient = healthy(str(tmp_path / "out"))
    rows = [good_row(prompt=f"{n} = ") for n in range(2001)]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    finding = seen(replace(patient, rows=stream), "CN204")
    assert finding is not None
    assert finding.seen == "train: the first 2,000 rows."
    short = datasets.Dataset.from_list(rows[:2000]).to_iterable_dataset()
    assert seen(replace(patient, rows=short), "CN204") is None


def test_refusals_are_counted_on_both_sides(tmp_path: Path) -> None:
    patient = healthy(str(tmp_path / "out"))
    assert seen(patient, "CN203") is None
    refusing = more(good_row(chosen="I'm sorry, but I can't."))(patient)
    finding = seen(refusing, "CN203")
    assert finding is not None
    assert finding.seen.startswith("train: 1 of 161 rows (0.6%) of chosen and 0 of 161 rows")


def test_notes_are_made_of_what_there_is(tmp_path: Path) -> None:
    patient = healthy(str(tmp_path / "out"))
    told = {finding.code for finding in patient.examined().of_severity("note")}
    assert told == {"CN121", "CN201", "CN202", "CN321", "CN322", "CN501"}
    without_parts = replace(patient, rows=None, model=None, tokenizer=None)
    told = {finding.code for finding in without_parts.examined().of_severity("note")}
    assert told == {"CN121", "CN501"}


def test_a_check_that_fails_is_a_finding_and_stops_no_other(tmp_path: Path) -> None:
    def broken(name: str, done: int, total: int | None) -> None:
        raise RuntimeError("no terminal")

    patient = options(loss_type="simpo")(healthy(str(tmp_path / "out")))
    report = patient.examined(progress=broken)
    failed = [finding for finding in report.findings if finding.code == "CW901"]
    assert [finding.seen for finding in failed] == ["look: RuntimeError: no terminal"]
    assert {"CW101", "CN321", "CN501"} <= {finding.code for finding in report.findings}


NOT_IN_THE_GALLERY = {
    *("CN121", "CN130", "CN201", "CN202", "CN203", "CN204", "CN321", "CN322", "CN501"),
    *("CW501", "CW502", "CW503", "CW504", "CW901"),
}
"""Codes with a test of their own, above; that of languages is in test_off_target.py."""

ON_A_COMMAND_LINE = {"CP106", "CP502", "CW127"}
"""Codes that only given options can cause; test_doctor.py and test_old_options.py have them."""

OF_STRANGERS = {"CP216", "CP217", "CP218", "CP311", "CP312", "CP315"}
"""Codes of hostile files; tests/reliability/test_hostile_files.py has them."""

OF_CSV = {"CP223", "CP224"}
"""Codes of cells of CSV files; tests/data/test_csv_columns.py has them."""

OF_GGUF = {"CP530", "CP531", "CP532", "CP533"}
"""Codes of GGUF files; tests/cli/test_gguf.py has them."""

OF_STREAMS = {"CP225"}
"""Codes of how a stream is read; tests/data/test_lanes.py has them."""

ON_RESUMING = {"CW128", "CW129", "CW507"}
"""Codes of checkpoints, adapters and ranks; tests/checkpoint and tests/cli have them."""

OF_RENDERING = {"CP221", "CP222"}
"""Codes of turns and of the machine that renders them; tests/data has them."""


OF_TURNS = {"CP247", "CP248"}
"""Codes of completions of several turns; tests/data/test_turns.py has them."""

OF_PICTURES = {"CP228", "CP229", "CP230", "CP231", "CP232", "CW230", "CW231", "CW234"}
"""Codes of rows about pictures; tests/data/test_pictures.py, test_pictures_prepared.py and
tests/doctor/test_scaled.py."""

OF_SEVERAL_SETS = {"CP237", "CW134"}
"""Codes of runs on several sets; tests/data/test_mixture.py and tests/doctor/test_of_mixture.py."""

OF_REFERENCES = {"CP240", "CP338", "CW240"}
"""Codes of what a loss compares with; test_of_reference.py has them."""

OF_NEW_TOKENS = {"CW246"}
"""Codes of a tokenizer beside an adapter; tests/cli/test_new_tokens.py."""

OF_BLANK_PICTURES = {"CW235"}
"""Codes of a model that judges pairs; tests/cli/test_blank_pictures.py."""


def test_every_code_has_a_run_that_has_it_and_one_that_has_not() -> None:
    here = {case.code for case in GALLERY} | NOT_IN_THE_GALLERY | ON_A_COMMAND_LINE
    here |= OF_PICTURES | OF_BLANK_PICTURES | OF_SEVERAL_SETS | OF_REFERENCES
    here |= OF_NEW_TOKENS
    here |= OF_GGUF | OF_STRANGERS | OF_CSV | OF_STREAMS | ON_RESUMING | OF_RENDERING
    here |= OF_TURNS | OF_PICTURES | OF_BLANK_PICTURES
    here |= OF_STRANGERS | OF_CSV | OF_STREAMS | ON_RESUMING | OF_RENDERING
    here |= {code for _, _, _, code, _ in REFUSED_BY_THE_COMMAND}
    assert here == {code for code in TABLE if code[2] != "4"}  # alarms have tests of their own
    assert len(GALLERY) >= 40


def test_the_gallery_shows_options_that_do_nothing_of_every_kind() -> None:
    """All of them are in tests/house/test_options.py."""
    assert len({name for name, _, _ in UNUSED} & set(of_unused.UNUSED)) >= 20
