"""``counterpoint chat``: what is answered, what is kept, and which answer is better."""

from __future__ import annotations

import io
import json
import os
import signal
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from counterpoint.console.person import Person
from counterpoint.errors import DataError, SetupError
from counterpoint.evaluation.candidate_file import open_candidates
from counterpoint.evaluation.talk_files import open_talk, said_path
from counterpoint.quickstart.translate import BASES
from counterpoint.visible import visible
from tests.cli.conftest import PAIRS, Command, Said, write_pairs
from tests.models_on_the_spot import make_model

FEW = ("--max_new_tokens", "6", "--use_cpu")
OUT = ("--out", "talk.jsonl")

Talk = Callable[..., Said]


def rows(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def said() -> list[str]:
    return [one["text"] for one in rows("talk.said.jsonl")]


@pytest.fixture
def chatting(workshop: Path, chatml_tokenizer: PreTrainedTokenizerFast) -> str:
    """Two models with a chat template, ``chat`` and ``other``; no answer of theirs is short."""
    for name, seed in (("chat", 0), ("other", 1)):
        model = make_model("qwen2", vocab_size=len(chatml_tokenizer), seed=seed)
        model.save_pretrained(name)
        chatml_tokenizer.save_pretrained(name)
    return "chat"


@pytest.fixture
def talk(command: Command, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """A chat whose lines come from a pipe."""

    def hold(lines: list[str], *words: str) -> Said:
        typed = io.TextIOWrapper(
            io.BytesIO("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")),
            encoding="utf-8",
        )
        monkeypatch.setattr("sys.stdin", typed)
        return command("chat", *words, *FEW)

    return hold


def pairs_of(lines: list[str], talk: Talk, *words: str) -> list[dict[str, Any]]:
    done = talk(lines, *words, *OUT)
    assert done.code == 0, done.err
    return rows("talk.jsonl")


# What is answered


@pytest.mark.parametrize("model", ["model", "chat"])
@pytest.mark.parametrize(
    "how", [("--temperature", "0"), ("--temperature", "0.9", "--top_p", "0.95", "--seed", "5")]
)
def test_an_answer_is_what_sample_writes_to_the_prompt(
    chatting: str, talk: Talk, command: Command, model: str, how: tuple[str, ...]
):
    """Greedy and drawn, as text and through the template; the conversation is the prompt."""
    asked = ["What is 3 and 3?", "国会 — why?", "And then?"]
    done = talk(asked, model, *how, *OUT)
    assert done.code == 0, done.err
    found = rows("talk.said.jsonl")
    assert found[0]["prompt"] == (
        asked[0] if model == "model" else [{"role": "user", "content": asked[0]}]
    )
    if model == "chat":
        answered = [{"role": "assistant", "content": found[0]["text"]}]
        assert found[1]["prompt"][:2] == [{"role": "user", "content": asked[0]}, *answered]
        assert len(found[2]["prompt"]) == 5
    write_pairs(Path("p.jsonl"), [{"prompt": one["prompt"]} for one in found])
    words = ("--prompts", "p.jsonl", "--out", "c.jsonl", "-k", "1", "--batch", "1")
    assert command("sample", model, *words, *how, *FEW).code == 0
    candidates = {one["row"]: one for one in rows("c.jsonl")}
    assert [candidates[n]["text"] for n in range(3)] == [one["text"] for one in found]
    assert [candidates[n]["ended"] for n in range(3)] == [one["ended"] for one in found]
    assert done.out == "".join(f"{visible(one['text'])}\n" for one in found)


def test_the_same_seed_gives_the_same_chat(chatting: str, talk: Talk):
    lines = ["Hello", "/again", "2", "More", "/reset", "Hello"]
    first = pairs_of(lines, talk, "chat", "--seed", "7")
    answers = said()
    assert len(set(answers)) == 4  # the same question again is another draw
    for path in Path().glob("talk*"):
        path.unlink()
    assert pairs_of(lines, talk, "chat", "--seed", "7") == first
    assert said() == answers
    for path in Path().glob("talk*"):
        path.unlink()
    pairs_of(lines, talk, "chat", "--seed", "8")
    assert said()[0] != answers[0]


def test_an_adapter_answers_on_its_base(chatting: str, talk: Talk):
    base = AutoModelForCausalLM.from_pretrained("chat", dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    adapted = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 1)
    adapted.save_pretrained("lora")
    found = pairs_of(["Hello", "2"], talk, "lora", "--base", "chat", "--temperature", "0")
    assert (found[0]["chosen_model"], found[0]["rejected_model"]) == ("chat", "lora")
    one, other = rows("talk.said.jsonl")
    assert one["text"] != other["text"]


def test_a_gguf_file_and_a_translator_answer_too(
    workshop: Path, talk: Talk, gpt2_tokenizer: PreTrainedTokenizerFast
):
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    from tests.gguf_on_the_spot import write_gguf

    write_gguf(Path("tiny.gguf"), gpt2_tokenizer)
    translator = str(BASES[True])
    for model, asked in (("tiny.gguf", "Hello"), (translator, "seven hundred forty-two")):
        done = talk([asked, asked], model, *OUT)
        assert done.code == 0, done.err
        found = [one for one in rows("talk.said.jsonl") if one["model"] == model]
        assert [one["prompt"] for one in found] == [asked, asked]
    mixed = talk([asked], "tiny.gguf", "--base", translator)
    assert "CP104 tiny.gguf and" in mixed.err


def test_a_system_prompt_begins_each_conversation(chatting: str, talk: Talk):
    pairs_of(["A", "/reset", "B"], talk, "chat", "--system_prompt", "Be brief.")
    system = {"role": "system", "content": "Be brief."}
    prompts = [one["prompt"] for one in rows("talk.said.jsonl")]
    assert prompts == [[system, {"role": "user", "content": text}] for text in "AB"]


def test_without_a_template_each_message_is_text(
    workshop: Path, talk: Talk, caplog: pytest.LogCaptureFixture
):
    assert talk(["A", "B"], "model", *OUT).code == 0
    assert "model has no chat template: each message is given as plain text" in caplog.text
    assert [one["prompt"] for one in rows("talk.said.jsonl")] == ["A", "B"]
    assert "CP208 system_prompt" in talk([], "model", "--system_prompt", "Be brief.").err


def test_two_models_are_asked_in_the_way_of_the_first(
    chatting: str, talk: Talk, caplog: pytest.LogCaptureFixture
):
    """``model`` has no template; the prompt of a pair is one, whoever has answered it."""
    for words in (("chat", "--base", "model"), ("model", "--base", "chat")):
        assert talk(["A"], *words, *OUT).code == 0
    prompts = [one["prompt"] for one in rows("talk.said.jsonl")]
    assert prompts == [*[[{"role": "user", "content": "A"}]] * 2, "A", "A"]
    assert "model has no chat template: it is given that of chat" in caplog.text
    assert "model has no chat template: each message is given as plain text" in caplog.text


# Commands


def test_undo_reset_and_several_lines(chatting: str, talk: Talk):
    lines = ["/undo", "A", "/undo", '"""B', "b", ' b"""', "//C", "/nothing", "/help", "/quit", "D"]
    done = talk(lines, "chat", *OUT)
    assert done.code == 0
    last = [one["prompt"][-1]["content"] for one in rows("talk.said.jsonl")]
    assert last == ["A", "B\nb\n b", "/C"]
    assert [len(one["prompt"]) for one in rows("talk.said.jsonl")] == [1, 1, 3]
    for wanted in ("nothing to take back", "taken back: A", "no command /nothing", "/again"):
        assert wanted in done.err


def test_a_conversation_that_fills_the_positions_is_said_and_the_chat_continues(
    workshop: Path, talk: Talk, chatml_tokenizer: PreTrainedTokenizerFast
):
    config = {"vocab_size": len(chatml_tokenizer), "max_position_embeddings": 64}
    make_model("qwen2", **config).save_pretrained("short")
    chatml_tokenizer.save_pretrained("short")
    long = "The quick brown fox jumps. " * 20
    done = talk(["Hello", long, "Again", *["More"] * 9, "/reset", "Hello"], "short", *OUT)
    assert done.code == 0, done.err
    assert "CP235 the conversation takes" in done.err
    prompts = [one["prompt"] for one in rows("talk.said.jsonl")]
    asked = [one["content"] for one in prompts[1] if one["role"] == "user"]
    assert asked == ["Hello", "Again"]  # the long one was left out, and nothing else
    assert len(prompts[-1]) == 1
    assert done.err.count("CP235") > 1


def test_a_blank_answer_is_said_and_the_conversation_continues(
    chatting: str, talk: Talk, command: Command
):
    model = AutoModelForCausalLM.from_pretrained("chat")
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every logit is the same: the first token wins, which ends
    model.generation_config.eos_token_id = [0]
    model.save_pretrained("silent")
    AutoTokenizer.from_pretrained("chat").save_pretrained("silent")
    words = ("silent", "--base", "chat", "--temperature", "0")
    done = talk(["A", "B"], *words, *OUT)
    assert done.err.count("(a blank answer)") == 2
    assert done.err.count("(no pair: one is blank)") == 2
    last = rows("talk.said.jsonl")[-1]
    assert [one["content"] for one in last["prompt"]] == ["A", "", "B"]


def test_a_message_of_broken_bytes_is_left_out(chatting: str, talk: Talk):
    done = talk(["A\udcff", "B"], "chat", *OUT)
    assert "CP202 the message holds bytes that are no UTF-8" in done.err
    assert [one["prompt"][-1]["content"] for one in rows("talk.said.jsonl")] == ["B"]


def test_what_would_command_the_terminal_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    Person().show("a\x1b[2Jb\u202e\n")
    assert capfd.readouterr().out == "a\\u001b[2Jb\\u202e\n"


def test_ctrl_c_stops_an_answer_and_keeps_it(
    chatting: str, talk: Talk, monkeypatch: pytest.MonkeyPatch
):
    """The first one ends the answer, the second one the chat; what was said by then is kept."""
    plain, times = Person.show, []

    def show(self: Person, piece: str) -> None:
        plain(self, piece)
        times.append(piece)
        if len(times) in presses:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Person, "show", show)
    presses = {2}
    done = talk(["A", "B"], "chat", *OUT)
    assert "(stopped)" in done.err
    assert [one["tokens"] for one in rows("talk.said.jsonl")] == [2, 6]
    assert not rows("talk.said.jsonl")[0]["ended"]
    times.clear()
    presses = {2, 3}
    done = talk(["A", "B"], "chat", *OUT)
    assert done.code == 0
    assert [one["tokens"] for one in rows("talk.said.jsonl")][2:] == [2]


# Pairs


def test_a_choice_makes_a_pair_that_train_and_doctor_take(
    chatting: str, talk: Talk, command: Command
):
    lines = ["Who are you?", "2", "And I?", "1", "More", "s", "Last", "x", "1"]
    found = pairs_of(lines, talk, "chat", "--base", "other")
    assert [(one["chosen_model"], one["rejected_model"]) for one in found] == [
        ("other", "chat"),
        ("chat", "other"),
        ("chat", "other"),
    ]
    by_place = {(one["model"], one["row"]): one for one in rows("talk.said.jsonl")}
    assert len(by_place) == 8
    for pair in found:
        for side in ("chosen", "rejected"):
            one = by_place[pair[f"{side}_model"], pair["row"]]
            assert pair[side] == [{"role": "assistant", "content": one["text"]}]
            assert pair["prompt"] == one["prompt"]
    # both were asked with the preferred answer, and after a skip with the first one
    asked = by_place["chat", 3]["prompt"]
    assert asked == by_place["other", 3]["prompt"]
    kept = [by_place["other", 0], by_place["chat", 1], by_place["chat", 2]]
    assert [one["content"] for one in asked[1::2]] == [one["text"] for one in kept]
    usual = ("--model", "chat", "--dataset", "talk.jsonl", "--output_dir", "run", "--use_cpu")
    report = json.loads(command("doctor", *usual, "--json").out)
    codes = {one["code"] for one in report["findings"]}
    assert not {code for code in codes if code.startswith("CP")}
    assert command("train", *usual, "--max_steps", "1").code == 0
    counts = json.loads(Path("run/run.json").read_text(encoding="utf-8"))["data"]["train"]
    assert (counts["rows"], counts["kept"]) == (3, 3), counts


def test_another_draw_of_one_model_makes_a_pair(workshop: Path, talk: Talk, command: Command):
    lines = ["/again", *(f"{PAIRS[n]['prompt']}\n/again\n2\n/again\n1" for n in range(2))]
    found = pairs_of(lines, talk, "model")
    candidates = [(one["row"], one["candidate"]) for one in rows("talk.said.jsonl")]
    assert candidates == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    texts = said()
    assert [(one["chosen"], one["rejected"]) for one in found] == [
        (texts[1], texts[0]),
        (texts[1], texts[2]),
        (texts[4], texts[3]),
        (texts[4], texts[5]),
    ]
    usual = ("--model", "model", "--dataset", "talk.jsonl", "--output_dir", "run", "--use_cpu")
    assert command("train", *usual, "--max_steps", "1").code == 0
    greedy = talk(["A", "/again"], "model", "--temperature", "0")
    assert "at temperature 0 every answer is the same" in greedy.err


def test_answers_that_are_alike_are_no_pair(chatting: str, talk: Talk):
    Path("same").symlink_to("chat")
    words = ("chat", "--base", "same", "--temperature", "0")
    assert pairs_of(["A", "B"], talk, *words) == []
    assert len(said()) == 4


def test_blind_mixes_and_names_them_after_the_choice_alone(chatting: str, talk: Talk):
    lines = [line for n in range(12) for line in (f"Question {n}", "1", "/reset")]
    words = ("chat", "--base", "other", "--blind")
    done = talk([*lines, "Last", "s"], *words, *OUT)
    assert done.code == 0, done.err
    heads = [line for line in done.out.splitlines() if line in ("[1]", "[2]")]
    assert len(heads) == 26
    assert not any(line.startswith("[") and line not in heads for line in done.out.splitlines())
    found = rows("talk.jsonl")
    assert all(one["blind"] for one in found)
    first = [one["chosen_model"] for one in found]  # always the one that was shown as 1
    assert {"chat", "other"} == set(first)
    named = [f"(1 was {one['chosen_model']}, 2 was {one['rejected_model']})" for one in found]
    assert [line for line in done.err.splitlines() if line.startswith("(1 was")] == named
    for path in Path().glob("talk*"):
        path.unlink()
    assert talk([*lines, "Last", "s"], *words, *OUT).out == done.out


# Files


def test_a_second_chat_adds_and_a_torn_line_is_taken_off(chatting: str, talk: Talk):
    words = ("chat", "--base", "other")
    first = pairs_of(["A", "1"], talk, *words)
    kept = Path("talk.jsonl").read_bytes(), Path("talk.said.jsonl").read_bytes()
    for name in ("talk.jsonl", "talk.said.jsonl"):
        with Path(name).open("ab") as file:
            file.write(b'{"prompt": "torn')
    found = pairs_of(["B", "2"], talk, *words)
    assert found[:1] == first
    assert [one["row"] for one in found] == [0, 1]
    assert [one["row"] for one in rows("talk.said.jsonl")] == [0, 0, 1, 1]
    assert Path("talk.jsonl").read_bytes().startswith(kept[0])
    assert Path("talk.said.jsonl").read_bytes().startswith(kept[1])


def test_cut_anywhere_no_whole_row_is_lost(tmp_path: Path) -> None:
    """At any byte of both files, as a kill or a full disk leaves them."""
    path = tmp_path / "talk.jsonl"
    with open_talk(path) as files:
        for row in range(4):
            files.keep({"model": "m", "row": row, "candidate": 0, "text": "国 \u2028"})
            files.prefer({"prompt": "a", "chosen": "b", "rejected": "会", "row": row})
    whole = [one.read_bytes() for one in (path, said_path(path))]
    random = Random(0)
    for turn in range(41):  # the first cut takes the end of a line alone, and no row
        cuts = [random.randrange(len(one)) if turn else len(one) - 1 for one in whole]
        kept = [content[:cut] for content, cut in zip(whole, cuts, strict=True)]
        path.write_bytes(kept[0])
        said_path(path).write_bytes(kept[1])
        lines = [
            content + b"\n" if content.endswith(b"}") else content[: content.rfind(b"\n") + 1]
            for content in kept
        ]
        with open_talk(path) as files:
            assert files.next_row == lines[1].count(b"\n")
        assert [one.read_bytes() for one in (path, said_path(path))] == lines


def test_the_end_of_input_at_a_question_loses_nothing(chatting: str, talk: Talk):
    assert pairs_of(["A"], talk, "chat", "--base", "other") == []
    assert len(said()) == 2


def test_other_weights_by_the_same_name_are_refused(chatting: str, talk: Talk):
    pairs_of(["A"], talk, "chat")
    before = said()
    model = AutoModelForCausalLM.from_pretrained("chat")
    with torch.no_grad():  # a single entry of all of them
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 0.5
    model.save_pretrained("chat")
    done = talk(["A"], "chat", *OUT)
    assert "CP534 talk.said.jsonl holds answers of other weights" in done.err
    assert "--overwrite" not in done.err
    assert said() == before


def test_files_that_no_chat_has_written_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    with open_candidates(said_path(path), {"seed": 0}):
        said_path(path).write_text('{"model": "m", "row": 0, "candidate": 0}\n')
    with pytest.raises(SetupError, match=r"CP534 .* no chat has written it"), open_talk(path):
        pass
    for one in tmp_path.iterdir():
        one.unlink()
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(SetupError, match="CP506"), open_talk(path):
        pass
    path.unlink()
    taken = pytest.raises(SetupError, match="CP535")
    with open_talk(path), taken, open_talk(path):
        pass
    said_path(path).write_text('{"half": 1}\n')
    wrong = pytest.raises(DataError, match=r"CP210 .*line 1: is no answer of a chat")
    with wrong, open_talk(path):
        pass
    assert said_path(path).name == "talk.said.jsonl"


# A terminal


def test_at_a_terminal_a_key_needs_no_enter(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no choice is asked again; Ctrl-D is the end, and the terminal is as it was."""
    ours, theirs = os.openpty()
    before = termios.tcgetattr(theirs)
    with (
        os.fdopen(theirs, "r", encoding="utf-8", closefd=False) as stdin,
        os.fdopen(theirs, "w", encoding="utf-8", closefd=False) as stdout,
    ):
        monkeypatch.setattr("sys.stdin", stdin)
        monkeypatch.setattr("sys.stdout", stdout)
        person, found = Person(), []
        assert person.by_hand
        for keys in (b"x2", b"S", b"\x04"):
            # typed once the question is there: what was typed before it is not an answer to it
            typist = threading.Thread(target=type_after, args=(ours, b"skip> ", keys))
            typist.start()
            found.append(person.key("better: 1 or 2, s to skip> ", ("1", "2", "s")))
            typist.join(10)
    assert found == ["2", "s", None]
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def type_after(terminal: int, question: bytes, keys: bytes) -> None:
    for key in keys:
        seen = b""
        while question not in seen:
            seen += os.read(terminal, 1024)
        os.write(terminal, bytes([key]))


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ((), "CP107 the model is missing"),
        (("model", "--base", "model"), "CP104 base=model"),
        (("model", "--blind"), "CP104 blind"),
        (("model", "--temperature", "-1"), "CP103 temperature"),
        (("model", "--temperature", "0", "--top_k", "5"), "CP104 top_k"),
        (("model", "--top_p", "0"), "CP103 top_p"),
        (("model", "--max_new_tokens", "0"), "CP103 max_new_tokens"),
        (("model", "--seed", "-1"), "CP103 seed"),
        (("model", "--stop", "no such token"), "CP103 stop"),
        (("model", "--out", "talk.csv"), "CP103 out"),
        (("model", "--learning_rate", "1"), "CP101 --learning_rate"),
        (("nothing/here",), "CP301"),
    ],
)
def test_what_cannot_be_meant(
    workshop: Path, talk: Talk, command: Command, words: tuple[str, ...], wrong: str
):
    done = command("chat", *words)
    assert done.code == 2
    assert wrong in done.err


def test_one_process_talks(workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "CP503 counterpoint chat runs in one process" in command("chat", "model").err
