"""``counterpoint train`` trains: the same as the library, repeatable from what it wrote."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import load_dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.alarms.watch import Watch
from counterpoint.cli.train import CPOTrainer as Used
from counterpoint.invocation import command as called
from counterpoint.models.loading import load_model, load_tokenizer, random_model
from counterpoint.models.weights import WeightsPolicy
from counterpoint.runlog import Alarm, read_run
from tests.cli.conftest import PAIRS, Command, tree, write_pairs

RUN: dict[str, Any] = {
    "model": "model",
    "dataset": "pairs.jsonl",
    "output_dir": "out",
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "learning_rate": 0.001,
    "max_length": 64,
    "logging_steps": 1,
    "use_cpu": True,
}


def write_run(**changes: Any) -> str:
    """A configuration file in the current folder."""
    values = {name: value for name, value in {**RUN, **changes}.items() if value is not ...}
    Path("run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return "run.yaml"


def weights(folder: str) -> dict[str, Tensor]:
    """A model's weights by name."""
    return load_file(Path(folder) / "model.safetensors")


def log(folder: str = "out") -> list[dict[str, Any]]:
    """The log lines of a run, those of a step done twice as it was done last."""
    return [dict(line) for line in read_run(folder).metrics]


SAID_LAST = [
    "model in out, its run in run.json and metrics.jsonl there",
    f"to look at it: {called()} report out",
]


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_a_model_is_trained_saved_and_loads_again(workshop: Path, command: Command) -> None:
    said = command("train", write_run())
    assert said.code == 0, said.err
    assert said.out.splitlines()[-2:] == SAID_LAST
    before, after = weights("model"), weights("out")
    unmoved = [name for name in after if torch.equal(before[name], after[name])]
    assert unmoved == []
    assert AutoModelForCausalLM.from_pretrained("out").dtype == torch.float32
    assert AutoTokenizer.from_pretrained("out").eos_token == "<|endoftext|>"
    assert [line["step"] for line in log() if "loss" in line] == [1, 2, 3]


def test_the_command_trains_what_the_library_trains(workshop: Path, command: Command) -> None:
    assert command("train", write_run(loss_type="simpo", beta=2.0)).code == 0
    options = {k: v for k, v in RUN.items() if k not in ("model", "dataset", "output_dir")}
    trainer = CPOTrainer(
        model="model",
        args=CPOConfig(output_dir="by_hand", loss_type="simpo", beta=2.0, **options),
        train_dataset=load_dataset("json", data_files="pairs.jsonl", split="train"),
        processing_class=AutoTokenizer.from_pretrained("model"),
    )
    trainer.train()
    trainer.save_model()
    assert same(weights("out"), weights("by_hand"))


def test_an_alarm_ends_the_command_with_its_code_and_a_checkpoint_to_go_on_from(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarm = Alarm("CW425", 2, 2, "a loss of 9.")
    spiked = lambda self, entry: (alarm,) if entry["step"] == 2 else ()  # noqa: E731
    monkeypatch.setattr(Watch, "observe", spiked)
    path = write_run(on_alarm="stop")
    said = command("train", path)
    assert said.code == 2
    assert "CP402 stopped after step 2 by CW425, a spike in the loss: a loss of 9." in said.err
    assert Path("out/checkpoint-2/trainer_state.json").is_file()
    assert not Path("out/model.safetensors").exists()
    again = command("train", path, "--resume_from_checkpoint", "latest")
    assert again.code == 0, again.err  # the alarm was heard before the checkpoint
    assert [line["step"] for line in log() if "loss" in line] == [1, 2, 3]


def test_a_run_is_repeated_from_the_options_it_wrote(workshop: Path, command: Command) -> None:
    path = write_run(model="bare", from_scratch=True)
    assert command("train", path, "--beta", "0.3", "--seed", "7").code == 0
    assert command("train", "out/train.yaml", "--output_dir", "again").code == 0
    assert same(weights("out"), weights("again"))
    assert yaml.safe_load(Path("out/train.yaml").read_text())["beta"] == 0.3


def test_the_token_of_the_hub_is_written_nowhere(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")  # set anew by the command, taken back after the test
    assert command("train", write_run(hub_token="hf_canary")).code == 0
    for path in Path("out").rglob("*"):
        if path.is_file():
            assert b"hf_canary" not in path.read_bytes(), path


def test_an_adapter_is_trained_and_the_base_model_is_not(workshop: Path, command: Command) -> None:
    said = command("train", write_run(lora_r=4, lora_target_modules=["q_proj", "v_proj"]))
    assert said.code == 0, said.err
    saved = json.loads(Path("out/adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["lora_dropout"]) == (4, 8, 0.0)
    assert sorted(saved["target_modules"]) == ["q_proj", "v_proj"]
    adapter = load_file("out/adapter_model.safetensors")
    assert all("lora_" in name for name in adapter)
    assert all(part.abs().sum() > 0 for name, part in adapter.items() if "lora_B" in name)
    assert "model.safetensors" not in tree(Path("out"))


def test_an_evaluation_set_without_a_strategy_is_used_once_at_the_end(
    workshop: Path, command: Command
) -> None:
    said = command("train", write_run(eval_dataset="pairs.jsonl"))
    assert "evaluating once, at the end, since eval_strategy is no" in said.out
    assert [line["step"] for line in log() if "eval_loss" in line] == [3]


def test_named_evaluation_sets_have_metrics_of_their_own(workshop: Path, command: Command) -> None:
    write_pairs(workshop / "few.jsonl", list(PAIRS[:3]))
    words = ["--eval_dataset", "all=pairs.jsonl", "few=few.jsonl", "--eval_strategy", "epoch"]
    assert command("train", write_run(), *words).code == 0
    evaluated = {key for line in log() for key in line if key.endswith("_loss")}
    assert {"eval_all_loss", "eval_few_loss"} <= evaluated
    by_mapping = write_run(output_dir="two", eval_dataset={"all": "pairs.jsonl"}, max_steps=1)
    assert command("train", by_mapping, "--do_eval").code == 0
    assert any("eval_all_loss" in line for line in log("two"))


SAFETY = {"kind": "safety", "bound": 0.1, "start": 0.5, "data": "few.jsonl"}


def test_a_constraint_reads_the_set_that_it_names(workshop: Path, command: Command) -> None:
    write_pairs(workshop / "few.jsonl", list(PAIRS[:3]))
    assert command("train", write_run(constraints=[SAFETY])).code == 0
    assert read_run("out").facts["data"]["safety"]["kept"] == 3
    assert [line["constraints/safety/bound"] for line in log() if "loss" in line] == [0.1] * 3


@pytest.mark.parametrize("doctor", [True, False])
def test_a_constraint_whose_set_is_not_there_is_refused_before_anything_is_written(
    doctor: bool, workshop: Path, command: Command
) -> None:
    said = command("train", write_run(constraints=[SAFETY], doctor=doctor))
    assert said.code != 0
    assert "CP211" in said.err
    assert "few.jsonl" in said.err
    assert not Path("out").exists()


def test_the_doctor_looks_at_the_rows_of_a_constraint(workshop: Path, command: Command) -> None:
    same_twice = {**PAIRS[0], "rejected": PAIRS[0]["chosen"]}
    write_pairs(workshop / "few.jsonl", [*PAIRS[:3], same_twice])
    said = command("doctor", write_run(constraints=[SAFETY]))
    assert "safety: 1 of 4 rows" in said.out + said.err
    assert "CP205" in said.out + said.err


def test_several_files_are_one_data_set(workshop: Path, command: Command) -> None:
    write_pairs(workshop / "a.jsonl", list(PAIRS[:5]))
    write_pairs(workshop / "b.jsonl", list(PAIRS[5:]))
    assert command("train", write_run()).code == 0
    assert command("train", write_run(dataset=["a.jsonl", "b.jsonl"], output_dir="two")).code == 0
    assert same(weights("out"), weights("two"))


def test_a_stream_trains(workshop: Path, command: Command) -> None:
    said = command("train", write_run(streaming=True))
    assert said.code == 0, said.err
    assert [line["step"] for line in log() if "loss" in line] == [1, 2, 3]


def test_an_interrupted_run_says_what_is_saved_and_goes_on_from_there(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Used.train

    def interrupted(self: Any, **keywords: Any) -> None:
        whole(self, **keywords)
        raise KeyboardInterrupt

    path = write_run(save_steps=2, lr_scheduler_type="constant")
    with monkeypatch.context() as patch:
        patch.setattr(Used, "train", interrupted)
        said = command("train", path)
    assert said.code == 130
    assert said.err.endswith(
        "\ncounterpoint: interrupted. The last checkpoint is out/checkpoint-3; resume with "
        "--resume auto.\n"
    )
    assert (
        command("train", path, "--resume_from_checkpoint", "latest", "--max_steps", "5").code == 0
    )
    assert [line["step"] for line in log() if "loss" in line] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
    ids=["the system", "safetensors", "torch"],
)
def test_a_full_disk_is_called_one_and_the_last_complete_checkpoint_named(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(self: Any, **keywords: Any) -> None:
        raise error

    assert command("train", write_run(save_steps=1)).code == 0
    Path("out/checkpoint-3/manifest.json").unlink()  # as if the disk had been full there
    monkeypatch.setattr(Used, "train", full)
    said = command("train", "run.yaml", "--doctor", "off", "--resume_from_checkpoint", "latest")
    assert (said.code, said.err.count("\n")) == (1, 1)
    assert "out cannot be written on: no room on its disk (" in said.err
    assert "The last checkpoint is out/checkpoint-2; resume" in said.err


def test_a_checkpoint_that_was_not_saved_to_its_end_is_not_gone_on_from(
    workshop: Path, command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_run(save_steps=1)
    assert command("train", path).code == 0
    Path("out/checkpoint-3/manifest.json").unlink()
    assert command("train", path, "--resume_from_checkpoint", "latest").code == 0
    assert "not used: out/checkpoint-3 has no manifest.json" in caplog.text
    assert [line["step"] for line in log() if "loss" in line] == [1, 2, 3]


def test_auto_begins_goes_on_and_ends_with_one_command_line(
    workshop: Path, command: Command
) -> None:
    path = write_run(save_steps=1, lr_scheduler_type="constant")
    assert command("train", path, "--resume", "auto", "--max_steps", "2").code == 0
    assert command("train", path, "--resume", "auto").code == 0
    assert [line["step"] for line in log() if "loss" in line] == [1, 2, 3]
    assert command("train", path, "--resume=auto").code == 0  # done already
    assert [line["step"] for line in log() if "loss" in line] == [1, 2, 3]


def test_auto_does_not_begin_among_files_of_others(workshop: Path, command: Command) -> None:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("mine")
    said = command("train", write_run(), "--resume", "auto")
    assert said.code == 2
    assert "CP504 out holds files (notes.txt) already" in said.err


def test_auto_begins_anew_after_a_run_that_saved_nothing(workshop: Path, command: Command) -> None:
    path = write_run(save_strategy="no")
    for _ in range(2):
        assert command("train", path, "--resume", "auto").code == 0
    assert [line["step"] for line in log() if "loss" in line] == [1, 2, 3]


def test_two_words_for_going_on_contradict_each_other(workshop: Path, command: Command) -> None:
    words = ["--resume", "auto", "--resume_from_checkpoint", "latest"]
    said = command("train", write_run(), *words)
    assert (said.code, "CP104 resume and resume_from_checkpoint" in said.err) == (2, True)


def test_another_experiment_is_refused_unless_it_is_meant(workshop: Path, command: Command) -> None:
    assert command("train", write_run(save_steps=1)).code == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    path = write_run(save_steps=1, beta=0.3, max_steps=4)
    said = command("train", path, "--resume", "auto")
    assert said.code == 2
    assert before == {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    assert (
        "CP513 out/checkpoint-3 is of a different experiment: beta was 0.1 and is 0.3" in said.err
    )
    assert command("train", path, "--resume", "auto", "--resume-anyway").code == 0


def test_a_disk_that_fills_up_while_saving_is_one_line(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("counterpoint.checkpoint.saving.begin", full)
    said = command("train", write_run(save_steps=1), "--doctor", "off")
    assert said.code == 1
    last = said.err.splitlines()[-1]
    assert last == (
        "counterpoint: CP515 out/checkpoint-1 could not be saved: No space left on device. There "
        "is none before it."
    )


def test_overwriting_a_run_leaves_nothing_of_the_old_one(workshop: Path, command: Command) -> None:
    assert command("train", write_run(save_steps=1)).code == 0
    Path("out/notes.txt").write_text("mine")
    assert command("train", write_run(max_steps=1), "--overwrite_output_dir").code == 0
    assert sorted(path.name for path in Path("out").glob("checkpoint-*")) == ["checkpoint-1"]
    assert [line["step"] for line in log() if "loss" in line] == [1]
    assert Path("out/notes.txt").read_text() == "mine"


def test_a_failed_start_leaves_the_old_run_alone(workshop: Path, command: Command) -> None:
    assert command("train", write_run()).code == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    Path("pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": ""}\n')
    assert command("train", write_run(), "--overwrite_output_dir").code == 2
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before


def test_a_chat_template_from_a_file_makes_conversations_trainable(
    workshop: Path, command: Command
) -> None:
    turn = [{"role": "user", "content": "Hi"}]
    rows = [
        {
            "prompt": turn,
            "chosen": [{"role": "assistant", "content": "Good day."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        }
    ]
    write_pairs(workshop / "pairs.jsonl", rows * 1)
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    (workshop / "chat.jinja").write_text(template)
    said = command("train", write_run(chat_template="chat.jinja", max_steps=1))
    assert said.code == 0, said.err
    assert AutoTokenizer.from_pretrained("out").chat_template == template


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_loaded(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("counterpoint.trainer.trackers.find_spec", lambda module: None)
    said = command("train", write_run(model="nowhere", report_to="wandb", doctor=False))
    assert said.code == 2
    assert "CP502 report_to=wandb " in said.err
    assert said.err.endswith("pip install wandb\n")
    assert not Path("out").exists()


def test_nothing_of_the_libraries_reaches_the_terminal(workshop: Path) -> None:
    write_run(model="bare", from_scratch=True, gradient_checkpointing=True, doctor=False)
    done = subprocess.run(
        [sys.executable, "-m", "counterpoint", "train", "run.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if not line.startswith("{")]
    assert said == SAID_LAST
    chatter = re.compile(r"warn|deprecat|transformers|it/s|%\||site-packages", re.IGNORECASE)
    assert [line for line in done.stderr.splitlines() if chatter.search(line)] == []
    assert "gap  = 0.1 * (r(chosen) - r(rejected))" in done.stderr


def test_random_weights_are_a_function_of_the_seed(workshop: Path) -> None:
    config = AutoModelForCausalLM.from_pretrained("model").config

    def first(seed: int) -> Tensor:
        args = CPOConfig(output_dir="o", seed=seed, use_cpu=True)
        return next(random_model("bare", args, config).parameters()).detach()

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


@pytest.mark.parametrize(
    ("adapted", "keywords", "dtype"),
    [
        (False, None, torch.float32),
        (True, None, torch.bfloat16),
        (False, {"dtype": "auto"}, torch.bfloat16),
        (True, {"torch_dtype": "float32"}, torch.float32),
    ],
)
def test_weights_that_train_are_float32_and_frozen_ones_stay_as_they_are(
    workshop: Path, adapted: bool, keywords: dict[str, Any] | None, dtype: torch.dtype
) -> None:
    path = "model/model.safetensors"
    halves = {name: value.bfloat16() for name, value in load_file(path).items()}
    save_file(halves, path, metadata={"format": "pt"})
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    args = CPOConfig(output_dir="o", model_init_kwargs=keywords, use_cpu=True)
    assert load_model("model", args, WeightsPolicy.of(args, adapter=adapted)).dtype == dtype


def test_a_tokenizer_may_come_from_elsewhere(workshop: Path, command: Command) -> None:
    shutil.move("model/tokenizer.json", "t.json")
    (workshop / "words").mkdir()
    shutil.move("t.json", "words/tokenizer.json")
    shutil.move("model/tokenizer_config.json", "words/tokenizer_config.json")
    args = CPOConfig(output_dir="o", use_cpu=True)
    assert load_tokenizer("words", args, of_model=False).eos_token == "<|endoftext|>"
    assert command("train", write_run(tokenizer="words")).code == 0


def test_processes_launched_on_cpus_train_one_model_without_being_told(workshop: Path) -> None:
    path = write_run(use_cpu=..., max_steps=1, per_device_train_batch_size=2)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *words, "-m", "counterpoint", "train", path],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("out/run.json").read_text())["step_pairs"] == 4
    assert [line["step"] for line in log()] == [1, 1]  # the step and the summary, once each


def test_an_occupied_folder_is_refused_before_anything_is_loaded(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr("counterpoint.cli.train.load_parts", lambda *_: loaded.append("parts"))
    (workshop / "out").mkdir()
    (workshop / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    said = command("train", write_run())
    assert (said.code, loaded) == (2, [])
    assert said.err.startswith("counterpoint: CP504 out holds files (notes.txt) already")
    assert said.err.count("\n") == 1


def test_warnings_are_a_line_each_and_the_last_line_is_the_doctors_command(
    workshop: Path, command: Command
) -> None:
    said = command("train", write_run(), "--loss_type", "simpo")
    told = [line for line in said.err.splitlines() if re.match(r"CW\d{3}  ", line)]
    assert len(told) > 0
    last = next(line for line in said.err.splitlines() if "; in full: " in line)
    assert last.startswith(f"0 errors, {len(told)} warning")
    words = last.partition("; in full: ")[2]
    assert words.startswith(f"{called()} doctor ")
    assert command(*words.removeprefix(f"{called()} ").split()).code in (1, 2)
