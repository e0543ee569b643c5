"""``counterpoint sample``: candidates in a file that can be gone on with."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from counterpoint.cli.prompt_rows import PromptRow
from counterpoint.data.turn_end import turn_end
from counterpoint.errors import ConfigError, DataError, SetupError
from counterpoint.evaluation.candidate_file import open_candidates, settings_path
from counterpoint.options.sample_options import OWN_COLUMNS, SampleOptions
from tests.cli.conftest import PAIRS, Command, write_pairs
from tests.models_on_the_spot import make_model
from tests.tokenizers_on_the_spot import CHATML

FEW = ("--max_new_tokens", "6", "--use_cpu")
OUT = ("--out", "c.jsonl")


def rows(path: str | Path = "c.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def texts(path: str | Path = "c.jsonl") -> dict[tuple[str, int, int], str]:
    found = {(one["model"], one["row"], one["candidate"]): one["text"] for one in rows(path)}
    assert len(found) == len(rows(path))
    return found


@pytest.fixture
def chat(workshop: Path, chatml_tokenizer: PreTrainedTokenizerFast) -> str:
    """A model with a chat template whose end of turn its files do not name."""
    make_model("qwen2", vocab_size=len(chatml_tokenizer)).save_pretrained("chat")
    chatml_tokenizer.save_pretrained("chat")
    return "chat"


def sampled(command: Command, *words: str) -> list[dict[str, Any]]:
    said = command("sample", "model", "--prompts", "pairs.jsonl", *OUT, *FEW, *words)
    assert said.code == 0, said.err
    return rows()


def test_each_prompt_of_a_file_of_pairs_gets_k_candidates(workshop: Path, command: Command):
    found = sampled(command, "-k", "3", "--keep", "chosen")
    assert len(found) == 3 * len(PAIRS)
    for one in found:
        assert one["prompt"] == PAIRS[one["row"]]["prompt"]
        assert one["chosen"] == PAIRS[one["row"]]["chosen"]
        assert one["tokens"] <= 6
        assert one["model"] == "model"
    assert len(set(texts().values())) > 20


def test_they_are_what_pairs_reads_once_they_are_scored(workshop: Path, command: Command):
    found = sampled(command, "-k", "4")
    scored = [{**one, "score": len(one["text"])} for one in found if one["text"].strip()]
    write_pairs(Path("scored.jsonl"), scored)
    said = command("pairs", "scored.jsonl", "--out", "made.jsonl")
    assert said.code == 0, said.err
    made = rows("made.jsonl")
    assert {one["prompt"] for one in made} <= {pair["prompt"] for pair in PAIRS}
    assert made
    train = ("--model", "model", "--dataset", "made.jsonl", "--max_steps", "1", "--use_cpu")
    assert command("train", *train, "--output_dir", "trained").code == 0


@pytest.mark.parametrize("change", [["--batch", "5"], ["--batch", "1"], ["--batch", "64"]])
def test_the_batch_changes_no_text(workshop: Path, command: Command, change: list[str]):
    sampled(command, "-k", "3")
    before = texts()
    sampled(command, "-k", "3", *change, "--overwrite")
    assert texts() == before


def test_shards_together_are_the_whole(workshop: Path, command: Command):
    sampled(command, "-k", "2")
    whole, parts = texts(), {}
    for shard in ("1/3", "2/3", "3/3"):
        out = f"{shard[0]}.jsonl"
        words = ("--prompts", "pairs.jsonl", "--out", out, *FEW, "--k", "2", "--shard", shard)
        assert command("sample", "model", *words).code == 0
        assert len(texts(out)) == 2 * 4
        parts |= texts(out)
    assert parts == whole


def test_a_larger_k_and_another_model_add_candidates(workshop: Path, command: Command):
    sampled(command, "-k", "2")
    before = texts()
    shutil.copytree("model", "other")
    said = command("sample", "model", "other", "--prompts", "pairs.jsonl", *OUT, *FEW, "--k", "3")
    assert said.code == 0, said.err
    after = texts()
    assert {place: text for place, text in after.items() if place in before} == before
    assert {model for model, _, _ in after} == {"model", "other"}
    assert len(after) == 2 * 3 * len(PAIRS)
    # the same weights by another name draw with chances of their own
    one, other = ([after[name, row, 0] for row in range(12)] for name in ("model", "other"))
    assert one != other


def test_equal_prompts_get_unlike_candidates(workshop: Path, command: Command):
    write_pairs(Path("same.jsonl"), [{"prompt": "Say something."}] * 3)
    said = command("sample", "model", "--prompts", "same.jsonl", *OUT, *FEW, "--k", "2")
    assert said.code == 0, said.err
    assert len(set(texts().values())) >= 5


def test_cut_anywhere_it_goes_on_to_the_same_file(workshop: Path, command: Command):
    """At any byte of the file, as a kill or a full disk leaves it."""
    words = ("-k", "2", "--batch", "4", "--max_rows", "5")
    sampled(command, *words)
    whole = Path("c.jsonl").read_bytes()
    for cut in sorted(random.Random(0).sample(range(1, len(whole)), 6)):
        Path("c.jsonl").write_bytes(whole[:cut])
        sampled(command, *words)
        assert Path("c.jsonl").read_bytes() == whole, cut
    said = command("sample", "model", "--prompts", "pairs.jsonl", *OUT, *FEW, *words)
    assert said.code == 0
    assert Path("c.jsonl").read_bytes() == whole  # nothing to do


def test_killed_for_good_it_goes_on(workshop: Path, command: Command):
    words = ["sample", "model", "--prompts", "pairs.jsonl", *OUT, *FEW, "--batch", "2", "--k", "3"]
    program = (
        "import os, signal, counterpoint.evaluation.candidate_file as f\n"
        "plain, times = f.CandidateFile.append, []\n"
        "def append(self, rows):\n"
        "    rows = list(rows)\n"
        "    times.append(1)\n"
        "    if len(times) == 4:\n"
        '        self._file.write(b\'{"prompt": "torn\'); self._file.flush()\n'
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    plain(self, rows)\n"
        "f.CandidateFile.append = append\n"
        f"from counterpoint.cli.main import main; main({words!r})\n"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    torn = Path("c.jsonl").read_bytes()
    assert torn.endswith(b'"torn')
    assert torn.count(b"\n") == 6
    assert command(*words).code == 0
    gone_on = Path("c.jsonl").read_bytes()
    assert command(*words, "--overwrite").code == 0
    assert Path("c.jsonl").read_bytes() == gone_on


def test_an_adapter_samples_on_its_base(workshop: Path, command: Command):
    base = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    adapted = peft.get_peft_model(
        base, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 1)
    adapted.save_pretrained("lora")
    words = ("--prompts", "pairs.jsonl", *OUT, *FEW, "--k", "1", "--max_rows", "3")
    assert command("sample", "lora", *words).code == 0
    assert len(rows()) == 3


# Prompts


def test_messages_a_system_turn_and_the_end_of_the_turn(chat: str, command: Command):
    tokenizer = AutoTokenizer.from_pretrained("chat")
    assert turn_end(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    own = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "Who are you?"}]
    write_pairs(
        Path("p.jsonl"),
        [{"prompt": own}, {"prompt": [{"role": "user", "content": "And I?"}]}],
    )
    words = ("--prompts", "p.jsonl", *OUT, *FEW, "--k", "1", "--system_prompt", "Be brief.")
    said = command("sample", "chat", *words)
    assert said.code == 0, said.err
    by_row = {one["row"]: one["prompt"] for one in rows()}
    assert by_row[0] == own
    assert by_row[1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "And I?"},
    ]


def test_text_is_put_into_the_template_where_that_is_asked_for(chat: str, command: Command):
    Path("p.txt").write_text("Who are you?\n\nAnd I?\n", encoding="utf-8")
    for words, wanted in (
        ((), ["Who are you?", "And I?"]),
        (
            ("--chat", "--overwrite"),
            [[{"role": "user", "content": text}] for text in ("Who are you?", "And I?")],
        ),
    ):
        said = command("sample", "chat", "--prompts", "p.txt", *OUT, *FEW, "--k", "1", *words)
        assert said.code == 0, said.err
        assert [one["prompt"] for one in sorted(rows(), key=lambda one: one["row"])] == wanted


def test_other_shapes_that_train_reads(chat: str, command: Command):
    shapes = [
        {"instruction": "Name a colour.", "input": ""},
        {"conversations": [{"from": "human", "value": "Name a colour."}]},
        {"prompt": "Name a colour.", "system": "Be brief."},
        {
            "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A"}],
            "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "B"}],
        },
    ]
    for number, shape in enumerate(shapes):
        write_pairs(Path("p.jsonl"), [shape])
        said = command("sample", "chat", "--prompts", "p.jsonl", "--out", f"{number}.jsonl", *FEW)
        assert said.code == 0, said.err
        (prompt, *_) = [one["prompt"] for one in rows(f"{number}.jsonl")]
        assert prompt[-1]["role"] == "user"


def test_a_column_of_another_name(workshop: Path, command: Command):
    write_pairs(Path("p.jsonl"), [{"source": "Why?", "n": float("nan")}])
    words = ("--prompts", "p.jsonl", *OUT, *FEW, "--column", "source", "--keep", "n")
    said = command("sample", "model", *words)
    assert said.code == 0, said.err
    assert rows()[0]["prompt"] == "Why?"


def test_no_template_writes_no_end_of_turn(gpt2_tokenizer: Any, chatml_tokenizer: Any) -> None:
    assert turn_end(gpt2_tokenizer) is None
    assert chatml_tokenizer.chat_template == CHATML
    assert turn_end(chatml_tokenizer) is not None


# What is refused


def prompts_of(content: list[Any]) -> None:
    Path("p.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in content))


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ([{"text": "Hello"}], "CP201 row 0 has no column prompt; it has text"),
        ([{"prompt": "a"}, {"prompt": None}], "CP202 row 1"),
        ([{"prompt": " "}], "CP202 row 0"),
        ([{"prompt": 3}], "CP202 row 0"),
        ([{"prompt": []}], "CP202 row 0"),
        ([{"prompt": [{"role": "user"}]}], "CP2"),
        ([{"prompt": [{"role": "user", "content": "a"}]}], "CP208 row 0"),  # no template
        ([], "CP2"),
        (["Hello"], "CP210"),
        ([{"prompt": "a", "image": "x.png"}], "CP219 row 0 shows a picture"),
    ],
)
def test_prompts_that_nobody_can_be_asked(
    workshop: Path, command: Command, content: list[Any], wrong: str
):
    prompts_of(content)
    said = command("sample", "model", "--prompts", "p.jsonl", *OUT, *FEW)
    assert said.code == 2, said.err
    assert wrong in said.err


def test_what_a_candidate_says_of_itself_cannot_be_kept_from_the_prompts() -> None:
    own = PromptRow(0, "p", {"prompt": "p"}).candidate("m", 0, "t", 1, ended=True)
    assert set(own) == set(OWN_COLUMNS)
    for name in own:
        with pytest.raises(ConfigError, match=f"CP104 keep={name}: candidates have a column"):
            SampleOptions(keep=["reference", name])


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--k", "0"], "CP103 k=0"),
        (["--batch", "0"], "CP103 batch=0"),
        (["--max_new_tokens", "0"], "CP103 max_new_tokens=0"),
        (["--temperature", "-1"], "CP103 temperature=-1"),
        (["--temperature", "nan"], "CP103 --temperature"),
        (["--temperature", "0"], "CP104 temperature=0"),
        (["--temperature", "0", "--k", "1", "--top_p", "0.5"], "CP104 temperature=0"),
        (["--top_p", "0"], "CP103 top_p=0"),
        (["--shard", "0/2"], "CP103 shard=0/2"),
        (["--shard", "x"], "CP103 shard=x"),
        (["--stop", "no such token"], "CP103 stop=no such token"),
        (["--keep", "gone"], "CP201 row 0 has no column gone"),
        (["--keep", "text"], "CP104 keep=text: candidates have a column of that name"),
        (["--column", "gone"], "CP201 row 0 has no column gone"),
        (["--prompts", "gone.jsonl"], "CP211"),
        (["--out", "c.csv"], "CP103 out=c.csv"),
        (["--out", "model"], "CP103 out=model"),
        (["--learning_rate", "1"], "CP101 --learning_rate is no option of counterpoint sample"),
        (["--chat"], "CP208"),
    ],
)
def test_what_cannot_be_meant(workshop: Path, command: Command, words: list[str], wrong: str):
    usual = ("--prompts", "pairs.jsonl") if "--prompts" not in words else ()
    said = command("sample", "model", *usual, *OUT, *FEW, *words)
    assert said.code == 2, said.err
    assert wrong in said.err


def test_what_is_missing_is_said_at_once(workshop: Path, command: Command):
    said = command("sample")
    assert "CP107 the model" in said.err
    assert "and out (--out CANDIDATES.jsonl) are missing" in said.err
    assert (
        "CP104 model is named twice"
        in command("sample", "model", "model", "--prompts", "pairs.jsonl", *OUT).err
    )


def test_several_processes_are_told_of_shards(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = command("sample", "model", "--prompts", "pairs.jsonl", *OUT, *FEW)
    assert "CP503 counterpoint sample runs in one process" in said.err


def test_a_file_of_another_sampling_is_left_alone(workshop: Path, command: Command):
    sampled(command, "-k", "1")
    before = Path("c.jsonl").read_bytes()
    words = ("sample", "model", "--prompts", "pairs.jsonl", *OUT, *FEW, "--k", "1")
    for change, wrong in (
        (["--seed", "1"], "with seed=0, and now it is 1"),
        (["--temperature", "0.5"], "with temperature=1.0"),
        (["--max_rows", "3"], "with max_rows=null"),
    ):
        said = command(*words, *change)
        assert "CP534 c.jsonl" in said.err
        assert wrong in said.err
    model = AutoModelForCausalLM.from_pretrained("model")
    with torch.no_grad():  # a single entry of all of them
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 0.5
    model.save_pretrained("model")
    said = command(*words[:-1], "2")
    assert "with model, weights=" in said.err
    assert Path("c.jsonl").read_bytes() == before
    settings_path(Path("c.jsonl")).unlink()
    assert "CP506 c.jsonl is there already" in command(*words).err
    assert command(*words, "--overwrite").code == 0


def test_what_was_asked_otherwise_is_refused_though_nothing_is_left_to_draw(
    workshop: Path, command: Command
):
    Path("t.jinja").write_text(CHATML, encoding="utf-8")
    words = ["sample", "model", "--prompts", "pairs.jsonl", *OUT, *FEW, "--max_rows", "2"]
    words += ["--k", "1", "--chat", "--chat_template", "t.jinja", "--dtype", "float32"]
    assert command(*words).code == 0
    before = Path("c.jsonl").read_bytes()
    assert command(*words).code == 0
    said = command(*words[:-1], "bfloat16")
    assert 'with model, dtype="float32", and now it is "bfloat16"' in said.err
    assert 'dtype="float32", and now it is null' in command(*words[:-2]).err
    Path("t.jinja").write_text(f"{CHATML}{{# another #}}", encoding="utf-8")
    said = command(*words)
    assert (said.code, "CP534 c.jsonl" in said.err) == (2, True)
    assert "with model, chat_template=" in said.err
    assert Path("c.jsonl").read_bytes() == before


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    taken = pytest.raises(SetupError, match="CP535 another")
    with open_candidates(path, {"seed": 0}), taken, open_candidates(path, {"seed": 0}):
        pass
    with open_candidates(path, {"seed": 0}) as file:
        file.append([{"model": "m", "row": 0, "candidate": 0, "text": "\u2028 ü"}])
    with open_candidates(path, {"seed": 0}) as file:
        assert file.written == {("m", 0, 0)}


def test_a_line_that_is_no_candidate_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    with open_candidates(path, {"seed": 0}):
        path.write_text('{"model": "m", "row": 0, "candidate": 0}\n{"half": 1}\n{"torn')
    broken = pytest.raises(DataError, match=r"CP210 .*c.jsonl, line 2")
    with broken, open_candidates(path, {"seed": 0}):
        pass


def test_lines_are_on_the_disk_before_they_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr("os.fsync", lambda handle: flushed.append(os.fstat(handle).st_size))
    with open_candidates(tmp_path / "c.jsonl", {"seed": 0}) as file:
        flushed.clear()
        file.append([{"model": "m", "row": 0, "candidate": n} for n in range(2)])
        assert flushed == [(tmp_path / "c.jsonl").stat().st_size]
        assert file.written == {("m", 0, 0), ("m", 0, 1)}
