"""``counterpoint init``: published settings and other tools' files become files of a run."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from counterpoint.doctor.presets import BY_NAME, PRESETS, Preset
from counterpoint.errors import ConfigError
from counterpoint.migrate import of_axolotl, of_llama_factory, of_ms_swift, of_trl
from counterpoint.migrate.run_file import Line, as_yaml, written
from counterpoint.migrate.translation import translation_of
from counterpoint.objectives import LOSSES
from counterpoint.old_options import OLD_NAMES, renamed
from counterpoint.options.given import as_python
from counterpoint.options.settings import read_request, read_values
from counterpoint.options.table import options
from counterpoint.options.yaml_file import settings_of
from counterpoint.strict import strict_json
from tests.cli.conftest import PAIRS, Command, tree, write_pairs

WHAT = ["--model", "model", "--dataset", "pairs.jsonl"]
NAMES = [preset.name for preset in PRESETS]

OF_TINY_DATA = {
    "CW121",  # fewer pairs than a published step has
    "CW123",  # ORPO's 200 steps of warm-up
    "CW303",  # the tokenizer, which is GPT-2's in small, writes no BOS
    "CW327",  # a model that nobody has trained
}
"""What the doctor may say of twelve pairs and a model made on the spot."""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one."""
    folder = tmp_path / "bench"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def values(text: str) -> dict[str, Any]:
    """What ``train`` reads in a file of this text."""
    Path("read.yaml").write_text(text, encoding="utf-8")
    try:
        return read_values(["read.yaml"])
    finally:
        Path("read.yaml").unlink()


def translated(command: Command, name: str, text: str, *words: str) -> tuple[dict[str, Any], str]:
    """What ``train`` reads in the translation of a file, and what is said of the rest."""
    Path(name).write_text(text, encoding="utf-8")
    said = command("init", "--from", name, *words)
    assert said.code == 0, said.err
    return values(said.out), " ".join(said.err.split())


# Presets


def stated(preset: Preset) -> dict[str, Any]:
    """The options that a preset stands for, but the split of its step."""
    found: dict[str, Any] = {
        "model": "model",
        "dataset": ["pairs.jsonl"],
        "loss_type": preset.loss_type,
        "max_length": preset.max_length,
        "num_train_epochs": preset.epochs,
        "learning_rate": preset.learning_rate,
        "lr_scheduler_type": preset.schedule,
        "warmup_steps": preset.warmup_steps,
    }
    optional = {
        "beta": preset.beta,
        "gamma_beta_ratio": preset.ratio,
        "weight_decay": preset.weight_decay or None,
        "lora_r": preset.lora_r,
        "alpha": preset.alpha or None,
        "cpo_alpha": None if preset.loss_type == "alphapo" else preset.cpo_alpha,
    }
    return found | {name: value for name, value in optional.items() if value is not None}


@pytest.mark.parametrize("name", NAMES)
def test_the_file_of_a_preset_is_read_as_what_the_preset_states(
    bench: Path, command: Command, name: str
) -> None:
    said = command("init", "--preset", name, *WHAT, "--out", "run.yaml")
    assert (said.code, said.out) == (0, "")
    assert said.err == "written to run.yaml; next: counterpoint doctor run.yaml\n"
    assert tree(bench) == ["run.yaml"]
    read, preset = read_values(["run.yaml"]), BY_NAME[name]
    pairs = read.pop("per_device_train_batch_size") * read.pop("gradient_accumulation_steps")
    assert (read, pairs) == (stated(preset), preset.pairs)
    config = read_request(["run.yaml"]).config
    assert config.gamma == (preset.ratio or 0) * (preset.beta or 0)
    assert config.cpo_alpha == preset.cpo_alpha
    lines = Path("run.yaml").read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 96
    assert preset.source.split()[0] in " ".join(lines)


@pytest.mark.parametrize("name", NAMES)
def test_the_doctor_has_nothing_against_a_preset_but_the_tiny_data(
    workshop: Path, command: Command, name: str
) -> None:
    if LOSSES[BY_NAME[name].loss_type].gold:
        write_pairs(Path("pairs.jsonl"), [{**row, "gold": f"{row['chosen']}!"} for row in PAIRS])
    assert command("init", "--preset", name, *WHAT, "--out", "run.yaml").code == 0
    report = json.loads(command("doctor", "run.yaml", "--json").out)
    against = {f["code"]: f["seen"] for f in report["findings"] if f["severity"] != "note"}
    assert report["exit_code"] < 2, against
    assert set(against) <= OF_TINY_DATA, against


@pytest.mark.parametrize("name", ["simpo-llama3-instruct", "cpo-translation"])
def test_the_file_of_a_preset_trains(workshop: Path, command: Command, name: str) -> None:
    assert command("init", "--preset", name, *WHAT, "--out", "run.yaml").code == 0
    said = command("train", "run.yaml", "--output_dir", "out", "--max_steps", "1", "--use_cpu")
    assert said.code == 0, said.err
    config = json.loads(Path("out/run.json").read_text())["options"]
    assert config["beta"] == BY_NAME[name].beta
    assert Path("out/adapter_model.safetensors").exists() == BY_NAME[name].adapter


def test_the_list_names_every_preset_and_where_it_was_published(command: Command) -> None:
    said = command("init", "--list")
    assert (said.code, said.err) == (0, "")
    assert [line for line in said.out.splitlines() if not line.startswith(" ")] == NAMES
    assert all(preset.source.split()[0] in said.out for preset in PRESETS)


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--list"], ["--preset", "orpo", "--model", "m", "--dataset", "d", "--out", "r"]],
)
def test_presets_need_nothing_slow(tmp_path: Path, words: list[str]) -> None:
    program = (
        "import sys; from counterpoint.cli.main import main; "
        f"code = main(['init', *{words!r}]); "
        "print(code, [m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "0 []"


# Writing


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ([], "CP107 preset or from is missing"),
        (["--preset", "orpo"], "CP107 --model and --dataset are missing."),
        (["--preset", "orpo", "--model", "m"], "CP107 --dataset is missing."),
        (["--preset", "simpo-lama3", *WHAT], "CP102 --preset=simpo-lama3 is no preset; did you"),
        (["--preset", "orpo", "--from", "x.yaml", *WHAT], "CP104 --preset and --from both"),
        (["--presets", "orpo"], "CP101 --presets is no option; did you mean --preset?"),
        (["orpo"], "CP101 'orpo' belongs to no flag"),
        (["--preset", "orpo", *WHAT, "--out", "there.yaml"], "CP506 there.yaml is there already"),
        (["--preset", "orpo", *WHAT, "--out", "folder"], "CP501 folder cannot be written: it is"),
        (["--preset", "orpo", *WHAT, "--out", "there.yaml/r.yaml"], "CP501 "),
        (
            ["--from", "there.yaml", "--out", "./there.yaml", "--overwrite"],
            "CP104 there.yaml is the file to read",
        ),
        (["--from", "missing.yaml"], "CP106 there is no file missing.yaml."),
        (["--from", "folder"], "CP106 folder is a folder"),
        (["--from", "bytes.yaml"], "CP106 bytes.yaml is not UTF-8 text"),
        (["--from", "tag.yaml"], "CP106 tag.yaml line 1: the tag"),
        (["--from", "list.yaml"], "CP106 list.yaml is a list at its top level"),
        (["--from", "empty.yaml"], "CP106 empty.yaml is empty"),
        (["--from", "twice.yaml"], "CP106 twice.yaml line 2: 'beta' is given twice"),
        (["--from", "bomb.yaml"], "CP106 bomb.yaml line "),
        (["--from", "nobody.yaml"], "CP106 nobody.yaml has no name that a file of LLaMA-Factory"),
        (["--from", "own.yaml"], "CP106 own.yaml names its model as files of counterpoint train"),
        (["--from", "sft.yaml"], "CP102 stage=sft trains on no preference pairs"),
        (["--from", "grpo.yaml"], "CP102 rl=grpo trains on no preference pairs"),
        (["--from", "broken.py"], "CP106 broken.py line 2 is not Python: "),
        (["--from", "null.py"], "CP106 null.py "),
        (["--from", "deep.py"], "CP106 deep.py "),
        (["--from", "other.py"], "CP106 other.py calls neither CPOConfig nor ORPOConfig"),
        (["--from", "two.py"], "CP106 two.py calls CPOConfig 2 times (lines 1, 2)"),
        (["--from", "none.sh"], "CP106 none.sh holds 0 commands such as 'trl cpo --...'"),
        (["--from", "two.sh"], "CP106 two.sh holds 2 commands"),
        (["--from", "quote.sh"], "CP106 quote.sh is not a shell command"),
    ],
)
def test_what_is_wrong_is_one_coded_line_and_nothing_is_written(
    bench: Path, command: Command, words: list[str], start: str
) -> None:
    (bench / "folder").mkdir()
    (bench / "bytes.yaml").write_bytes(b"beta: \xff")
    aliases = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    for name, text in {
        "there.yaml": "loss_type: simpo",
        "tag.yaml": "beta: !!python/object/apply:os.system ['touch owned']",
        "list.yaml": "- beta",
        "empty.yaml": "# nothing",
        "twice.yaml": "beta: 1\nbeta: 2",
        "bomb.yaml": "\n".join(["a0: &a0 [x, x]", *aliases]),
        "nobody.yaml": "colour: red",
        "own.yaml": "model: m\nloss_type: simpo",
        "sft.yaml": "stage: sft\nfinetuning_type: lora",
        "grpo.yaml": "base_model: m\nrl: grpo",
        "broken.py": "import os\nCPOConfig(beta=",
        "null.py": "CPOConfig()\0",
        "deep.py": "(" * 10_000,
        "other.py": "from trl import GRPOConfig\nGRPOConfig(beta=0.1)",
        "two.py": "CPOConfig(beta=1)\nCPOConfig(beta=2)",
        "none.sh": "echo trl",
        "two.sh": "trl cpo --beta 1\ntrl cpo --beta 2",
        "quote.sh": "trl cpo --beta '1",
    }.items():
        (bench / name).write_text(text, encoding="utf-8")
    before = {name: (bench / name).stat().st_mtime_ns for name in tree(bench)}
    said = command("init", *words)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith(f"counterpoint: {start}")
    assert {name: (bench / name).stat().st_mtime_ns for name in tree(bench)} == before


def test_a_write_that_fails_leaves_the_file_that_was_there(
    bench: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench / "run.yaml").write_text("precious")

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        said = command("init", "--preset", "orpo", *WHAT, "--out", "run.yaml", "--overwrite")
    assert (said.code, "No space left on device" in said.err) == (1, True)
    assert ((bench / "run.yaml").read_text(), tree(bench)) == ("precious", ["run.yaml"])
    assert command("init", "--preset", "orpo", *WHAT, "--out=run.yaml", "--overwrite").code == 0
    assert read_values(["run.yaml"])["loss_type"] == "orpo"


texts = st.text(st.characters(exclude_categories=()), max_size=12)
scalars = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | texts
scalars |= st.floats(allow_nan=False, allow_infinity=False)
words = st.sampled_from(["no", "1e-6", ".inf", "~", "<<", "=", "- a", "a: b", "x # y", "|", "0x1f"])
flat = scalars | words
some = flat | st.lists(flat, max_size=3) | st.dictionaries(texts.filter(bool), flat, max_size=3)
trees = some | st.lists(some, max_size=3) | st.dictionaries(texts.filter(bool), some, max_size=3)


@given(value=trees, why=texts)
def test_a_value_is_read_back_as_it_was_written_and_stays_one_option(value: Any, why: str) -> None:
    text = written([why], [Line("x", value, why), Line("y", 1)], [f"- {why}"])
    x, y = settings_of(text.encode().decode(), "x.yaml")
    assert (x.name, as_python(y.given)) == ("x", 1)
    assert as_python(x.given) == value
    assert as_yaml(value) in text


# Scripts

SCRIPT = """
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.cpo import CPOConfig, CPOTrainer

open("owned", "w").write("executed")
MODEL: str = "model"
RATE = 2e-4
model = AutoModelForCausalLM.from_pretrained(MODEL, torch_dtype=torch.float32)
rows = load_dataset("json", data_files="pairs.jsonl", split="train")
steps = len(rows) // 4
args = CPOConfig(
    output_dir="out",
    loss_type="simpo",
    beta=2.0,
    simpo_gamma=1.0,
    learning_rate=RATE,
    max_steps=steps,
    max_prompt_length=128,
    report_to=[],
    hub_token="hf_secret",
    model_init_kwargs={"attn_implementation": "sdpa", "token": "hf_secret"},
    deepspeed="zero3.json",
    max_length=0,
    gradient_checkpointing=False,
    logging_steps=1,
)
trainer = CPOTrainer(
    model=model,
    args=args,
    train_dataset=rows,
    processing_class=AutoTokenizer.from_pretrained(MODEL),
    peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="SEQ_2_SEQ_LM"),
    callbacks=[print],
)
trainer.train()
"""


def test_a_script_is_read_and_not_run(bench: Path, command: Command) -> None:
    found, said = translated(command, "train.py", SCRIPT)
    assert not Path("owned").exists()
    assert found == {
        "model": "model",
        "dtype": "float32",
        "dataset": ["pairs.jsonl"],
        "lora_r": 4,
        "lora_alpha": 8,  # peft's default
        "lora_target_modules": ["q_proj", "v_proj"],
        "output_dir": "out",
        "loss_type": "simpo",
        "beta": 2.0,
        "simpo_gamma": 1.0,
        "cpo_alpha": 1.0,  # TRL's default
        "learning_rate": 2e-4,
        "gradient_checkpointing": False,
        "logging_steps": 1,
    }
    assert "Mind: - loss_type simpo without cpo_alpha: TRL then adds" in said
    for reason in (
        "train.py line 20: max_steps: it is known only when the script runs.",
        'train.py line 21: max_prompt_length="128": max_length limits prompt + completion',
        "train.py line 23: hub_token (value withheld): a secret has no place in a file",
        'train.py line 24: model_init_kwargs={"attn_implementation": "sdpa", "token": ',
        'train.py line 25: deepspeed="zero3.json": accelerate steps',
        'train.py line 26: max_length="0": it should be a whole number, at least 2',
        "train.py line 36: callbacks: it is an argument of the trainer in Python",
    ):
        assert reason in said
    assert said.count("line ") == 7
    assert "hf_secret" not in said


OF_A_TRANSLATOR = """
from datasets import load_dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from trl.experimental.cpo import CPOConfig, CPOTrainer

trainer = CPOTrainer(
    model=AutoModelForSeq2SeqLM.from_pretrained("model"),
    args=CPOConfig("out", max_length=64, max_completion_length=96),
    train_dataset=load_dataset("json", data_files="pairs.jsonl", split="train"),
    processing_class=AutoTokenizer.from_pretrained("model", src_lang="en_XX", tgt_lang="de_DE"),
)
"""


def test_a_script_of_an_encoder_decoder_keeps_its_languages_and_lengths(
    bench: Path, command: Command
) -> None:
    found, said = translated(command, "train.py", OF_A_TRANSLATOR)
    assert found == {
        "model": "model",
        "dataset": ["pairs.jsonl"],
        "output_dir": "out",
        "max_length": 64,
        "max_completion_length": 96,  # more than a source's: refused without the next
        "is_encoder_decoder": True,
        "source_lang": "en_XX",
        "target_lang": "de_DE",
    }
    assert "Mind: - an encoder-decoder: TRL tokenizes completions as if they were sources" in said
    assert "Not translated" not in said
    # a class of the model's own, and a tokenizer that is told nothing
    text = OF_A_TRANSLATOR.replace(
        "AutoModelForSeq2SeqLM.", "transformers.T5ForConditionalGeneration."
    )
    found, said = translated(
        command, "t5.py", text.replace(', src_lang="en_XX", tgt_lang="de_DE"', "")
    )
    assert found["is_encoder_decoder"] is True
    assert "Tokenizers of many languages need source_lang and target_lang." in said
    found, _ = translated(command, "gpt.py", OF_A_TRANSLATOR.replace("Seq2Seq", "Causal"))
    assert "is_encoder_decoder" not in found


TRANSLATING = """\
model_name_or_path: model
dataset_name: pairs
loss_type: sigmoid
is_encoder_decoder: true
source_lang: en_XX
tgt_lang: de_DE
max_source_length: 64
max_target_length: 96
val_max_target_length: 96
source_prefix: "translate: "
forced_bos_token: de_DE
num_beams: 5
generation_max_length: 32
predict_with_generate: true
eval_strategy: steps
ignore_pad_token_for_loss: true
"""


def test_names_of_translation_s_scripts_are_translated_or_listed(
    bench: Path, command: Command
) -> None:
    found, said = translated(command, "translate.yaml", TRANSLATING)
    expected = {
        "is_encoder_decoder": True,
        "source_lang": "en_XX",
        "target_lang": "de_DE",
        "max_length": 64,
        "max_completion_length": 96,
        "eval_sample_tokens": 32,
        "generate_during_eval": True,
        "generation_num_beams": 5,
    }
    assert {name: found.get(name) for name in expected} == expected
    for name, reason in {
        "val_max_target_length": "max_completion_length limits completions",
        "source_prefix": "put it into the sources, as counterpoint pairs",
        "forced_bos_token": "something else has set target_lang already",
        "ignore_pad_token_for_loss": "padding never reaches the loss",
    }.items():
        assert f": {name}=" in said
        assert reason in said


def test_what_a_script_computes_is_not_guessed(bench: Path, command: Command) -> None:
    script = """
LIMIT = 5
LIMIT += 1
def build(beta):
    return CPOConfig(beta=beta, max_steps=LIMIT, cpo_alpha=1.0 * 2, seed=f"{1}", **extra)
trainer = CPOTrainer(pick(), build(0.1), train_dataset=ds.map(f), peft_config=get())
ds = load_dataset("owner/rows", split="train[:10]")
ds = ds.shuffle()
"""
    found, said = translated(command, "train.py", script)
    assert found == {"dataset": ["owner/rows"], "dataset_split": "train[:10]"}
    for name in ("beta", "max_steps", "cpo_alpha", "seed", "** of CPOConfig"):
        assert f"train.py line 5: {name}: it is known only when the script runs." in said
    assert "train.py line 6: model: it is known only when the script runs; give it with" in said
    assert "train.py line 6: train_dataset: what lies between changes the rows" in said
    assert "train.py line 6: peft_config: it is known only" in said
    assert "model is missing, and the run needs it" in said


def test_a_script_without_arguments_is_what_its_class_does(bench: Path, command: Command) -> None:
    found, said = translated(command, "train.py", "trl.ORPOConfig()", *WHAT)
    assert found == {"model": "model", "dataset": ["pairs.jsonl"], "loss_type": "orpo"}
    assert "TRL takes the NLL over prompt and chosen completion" in said


# Commands

SHELL = """\
#!/bin/bash
# trl cpo --beta 9  (it doesn't count)
trap 'echo
gone' EXIT
export NAME=$(date +%F)
HF_TOKEN=hf_secret accelerate launch --num_processes 2 examples/cpo.py \\
    --model_name_or_path model --dataset_name owner/rows --dataset_config big \\
    --loss_type=simpo --cpo-alpha 0 --gamma 1.5 --beta 2.0 --use_peft --lora_r 8 \\
    --lora_target_modules q_proj v_proj --output_dir runs/$(date +%F) --warmup_ratio 0.1 \\
    --model_init_kwargs '{"token": "hf_secret"}' --eval_strategy steps \\
    --eval_steps 50 --bf16 --nonsense 3 > log.txt 2>&1 && echo done
"""


@pytest.mark.parametrize("through", ["run.sh", "-"])
def test_a_command_is_read_and_not_run(
    bench: Path, command: Command, monkeypatch: pytest.MonkeyPatch, through: str
) -> None:
    if through == "-":
        stdin = SimpleNamespace(buffer=io.BytesIO(SHELL.encode()))
        monkeypatch.setattr(sys, "stdin", stdin)
    else:
        Path(through).write_text(SHELL, encoding="utf-8")
    said = command("init", "--from", through)
    assert said.code == 0, said.err
    assert values(said.out) == {
        "model": "model",
        "dataset": ["owner/rows:big:train"],
        "eval_dataset": ["owner/rows:big:test"],
        "loss_type": "simpo",
        "cpo_alpha": 0.0,
        "simpo_gamma": 1.5,
        "beta": 2.0,
        "lora_r": 8,
        "lora_alpha": 32,  # TRL's default
        "lora_target_modules": ["q_proj", "v_proj"],
        "warmup_steps": 0.1,
        "eval_strategy": "steps",
        "eval_steps": 50,
        "bf16": True,
    }
    name = "standard input" if through == "-" else through
    rest = " ".join(said.err.split())
    assert f"{name}: --output_dir: the shell computes it when the command runs." in rest
    assert f'{name}: --nonsense="3": there is no such option here.' in rest
    assert f"{name}: accelerate: start several processes with torchrun." in rest
    assert rest.count(f"{name}: ") == 4
    assert "hf_secret" not in said.out + said.err
    assert "Mind" not in rest


# Files

TRL = """\
model_name_or_path: model
torch_dtype: float32
dataset_name: owner/rows
dataset_train_split: half
loss_type: sigmoid
simpo_gamma: 1.0
label_smoothing: 0.1
lora_r: 8
max_target_length: 64
padding_free: true
push_to_hub: false
eval_strategy: steps
"""

LLAMA_FACTORY = """\
model_name_or_path: model
trust_remote_code: true
quantization_bit: 4
stage: dpo
do_train: true
finetuning_type: lora
lora_target: q_proj, v_proj
pref_loss: simpo
simpo_gamma: 1.0
dataset: pairs_demo
template: llama3
max_samples: 1000
preprocessing_num_workers: 2
warmup_ratio: 0.1
plot_loss: true
packing: false
dpo_label_smoothing: 0.1
val_size: 0.1
eval_strategy: steps
eval_steps: 500
swanlab_api_key: sk-secret
"""

AXOLOTL = """\
base_model: model
model_type: AutoModelForCausalLM
rl: simpo
rl_beta: 2.0
simpo_gamma: 1.0
load_in_8bit: false
datasets:
  - path: one.jsonl
    ds_type: json
    type: chatml.intel
  - path: json
    data_files: [two.jsonl]
  - path: owner/rows
adapter: lora
lora_r: 32
lora_alpha: 16
lora_target_linear: true
lora_target_modules: [q_proj]
sample_packing: true
optimizer: adamw_torch
learning_rate: 1e-4
bf16: auto
flash_attention: true
wandb_project:
saves_per_epoch: 1
batch_size: 32
"""


def test_a_file_of_trl_keeps_its_meaning(bench: Path, command: Command) -> None:
    found, said = translated(command, "trl.yaml", TRL)
    assert found == {
        "model": "model",
        "dtype": "float32",
        "dataset": ["owner/rows"],
        "dataset_split": "half",
        "eval_dataset": ["owner/rows"],
        "eval_dataset_split": "test",
        "loss_type": "sigmoid",
        "label_smoothing": 0.1,
        "max_completion_length": 64,
        "push_to_hub": False,
        "eval_strategy": "steps",
    }
    assert 'trl.yaml line 8: lora_r="8": without use_peft TRL trains all weights.' in said
    assert 'trl.yaml line 10: padding_free="true": layout and padding never change' in said
    assert "simpo_gamma=1.0: it does nothing with loss_type sigmoid." in said


def test_a_file_of_simpos_repository_trains_simpo(bench: Path, command: Command) -> None:
    text = "model_name_or_path: model\nbeta: 2.5\ngamma_beta_ratio: 0.55\ndataset_mixer: {a/b: 1}"
    found, said = translated(command, "simpo.yaml", text, "--dataset", "pairs.jsonl")
    objective = {"loss_type": "simpo", "beta": 2.5, "gamma_beta_ratio": 0.55, "cpo_alpha": 0.0}
    assert found == {"model": "model", "dataset": ["pairs.jsonl"], **objective}
    assert "dataset_mixer" not in said  # its only set is replaced


def test_a_file_of_llama_factory_keeps_its_meaning(bench: Path, command: Command) -> None:
    found, said = translated(command, "lf.yaml", LLAMA_FACTORY)
    assert found == {
        "model": "model",
        "trust_remote_code": True,
        "loss_type": "simpo",
        "beta": 0.1,  # its default, DPO's
        "simpo_gamma": 1.0,
        "cpo_alpha": 0.0,
        "label_smoothing": 0.1,
        "lora_r": 8,  # its default
        "load_in_4bit": True,
        "lora_target_modules": ["q_proj", "v_proj"],
        "dataset_num_proc": 2,
        "warmup_steps": 0.1,
        "learning_rate": 5e-5,  # its default
        "max_length": 2048,  # its default
        "max_rows": 1000,
        "eval_share": 0.1,
        "eval_strategy": "steps",
        "eval_steps": 500,
    }
    assert "beta=0.1 is of the size that CPO and DPO take" in said
    assert "dataset is missing, and the run needs it" in said
    left = said.partition("Not translated:")[2]
    for name in ("do_train", "dataset", "template", "plot_loss"):
        assert f": {name}=" in left
    assert "packing" not in left  # that is off there, and does not exist here
    assert "sk-secret" not in said


def test_a_file_of_axolotl_keeps_its_meaning(bench: Path, command: Command) -> None:
    found, said = translated(command, "ax.yaml", AXOLOTL)
    assert found == {
        "model": "model",
        "attn_implementation": "flash_attention_2",
        "datasets": [{"path": "one.jsonl"}, {"path": "two.jsonl"}, {"path": "owner/rows"}],
        "lora_r": 32,
        "lora_alpha": 16,
        "loss_type": "simpo",
        "beta": 2.0,
        "simpo_gamma": 1.0,
        "cpo_alpha": 1.0,  # TRL's default, which Axolotl leaves
        "max_length": 512,  # from here on its defaults
        "per_device_train_batch_size": 1,
        "num_train_epochs": 1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "truncation": "drop",
        "learning_rate": 1e-4,
        "optim": "adamw_torch",
        "save_strategy": "epoch",
    }
    assert "Axolotl then adds the NLL of the chosen with weight 1" in said
    left = said.partition("Not translated:")[2]
    for reason in (
        "datasets[0]: type=chatml.intel: rows are read by their columns",
        'sample_packing="true": padding and packing never change a result',
        'batch_size="32": a step',
        'model_type="AutoModelForCausalLM": the model',
    ):
        assert reason in left
    assert left.count("ax.yaml line ") == 4


@pytest.mark.parametrize(
    ("text", "sharded", "reason"),
    [
        (
            "fsdp_version: 2\nfsdp_config: {offload_params: false}",
            "2",
            "layers are found by themselves",
        ),
        ("fsdp: [full_shard]\nfsdp_config: {fsdp_version: 2}", "2", ""),
        ("fsdp_version: 2\nfsdp_config: {activation_checkpointing: true}", "2", ""),
        ("fsdp: [full_shard, auto_wrap]", None, "version 1 of FSDP"),
        ("fsdp_version: 1", None, "version 1 of FSDP"),
        ("deepspeed: zero3.json", None, "accelerate steps DeepSpeed's optimizer"),
    ],
)
def test_a_run_of_axolotl_in_shards_stays_one(
    bench: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    sharded: str | None,
    reason: str,
) -> None:
    # transformers says to accelerate through the environment that there are shards
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    found, said = translated(command, "ax.yaml", f"base_model: m\nrl: simpo\n{text}", *WHAT)
    assert found.get("fsdp") == sharded  # its type is that of a word
    assert found.get("gradient_checkpointing", False) == ("activation_checkpointing" in text)
    assert reason in said.partition("Not translated:")[2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rl: simpo\nbase_model: m\nstreaming_multipack_buffer_size: 9", "padding and packing"),
        (
            "rl: simpo\nbase_model: m\ndatasets: [{path: a/b, shards: 10, shards_idx: 2, type: t}]",
            "datasets[0]: shards=10, shards_idx=2: all rows are trained on",
        ),
        ("stage: dpo\nbuffer_size: 9", "a stream keeps its order"),
        ("stage: dpo\ninterleave_probs: 0.5,0.5", "several files of a stream are read one after"),
    ],
)
def test_a_stream_of_another_tool_is_told_of_its_shards(
    bench: Path, command: Command, text: str, reason: str
) -> None:
    """No other tool has stream_shards: one rank reads there, or shares follow their number."""
    found, said = translated(command, "o.yaml", f"{text}\nstreaming: true", *WHAT)
    assert found["streaming"] is True
    assert "stream_shards" not in found
    mind, _, left = said.partition("Not translated:")
    assert "streaming: every rank reads the whole stream" in mind
    assert reason in left
    _, quiet = translated(command, "o.yaml", text, *WHAT)
    assert "stream_shards" not in quiet


OF_DPO = """\
from trl import DPOConfig, DPOTrainer
from transformers import AutoModelForCausalLM
policy = AutoModelForCausalLM.from_pretrained("owner/sft")
other = AutoModelForCausalLM.from_pretrained("owner/reference")
args = DPOConfig(output_dir="out", beta=0.05, loss_type=["sigmoid", "sft"], loss_weights=[2, 1])
DPOTrainer(policy, other, args, train_dataset=rows)
"""


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("dpo.yaml", "stage: dpo\nmodel_name_or_path: m", {"beta": 0.1}),
        (
            "dpo.yaml",
            "stage: dpo\nref_model: owner/sft\npref_ftx: 0.5\ndpo_label_smoothing: 0.1",
            {"reference": "owner/sft", "rpo_alpha": 0.5, "label_smoothing": 0.1},
        ),
        ("dpo.yaml", "stage: dpo\npref_loss: kto_pair", {}),
        ("dpo.yaml", "loss_type: exo_pair\nprecompute_ref_log_probs: true", {}),
        (
            "dpo.yaml",
            "loss_type: [nca_pair, sft]\nloss_weights: [2.0, 1.0]\nref_model: owner/sft",
            {"loss_type": "nca_pair", "reference": "owner/sft", "rpo_alpha": 0.5},
        ),
        (
            "dpo.sh",
            "swift rlhf --rlhf_type dpo --loss_type apo_down --beta 0.2",
            {"loss_type": "apo_down", "beta": 0.2},
        ),
        ("dpo.yaml", "stage: dpo\npref_loss: ipo", {"loss_type": "dpo_ipo"}),
        ("dpo.yaml", "stage: dpo\npref_loss: hinge", {"loss_type": "dpo_hinge"}),
        ("dpo.yaml", "base_model: m\nrl: ipo", {"loss_type": "dpo_ipo"}),
        (
            "dpo.yaml",
            "loss_type: hinge\nprecompute_ref_log_probs: true\nld_alpha: 0.5\nuse_weighting: true",
            {"loss_type": "dpo_hinge", "ld_alpha": 0.5, "use_weighting": True},
        ),
        (
            "dpo.yaml",
            "base_model: m\nrl: dpo\nrl_beta: 0.2\nrpo_alpha: 1.0\ndpo_label_smoothing: 0.1",
            {"beta": 0.2, "rpo_alpha": 1.0, "label_smoothing": 0.1},
        ),
        ("dpo.yaml", "beta: 0.2\nprecompute_ref_log_probs: true", {"beta": 0.2}),
        ("dpo.sh", "trl dpo --beta 0.2 --loss_type sigmoid", {"beta": 0.2}),
        (
            "dpo.sh",
            "accelerate launch dpo.py --beta 0.2 --loss_type apo_zero",
            {"loss_type": "apo_zero", "beta": 0.2},
        ),
        (
            "dpo.py",
            OF_DPO,
            {"beta": 0.05, "reference": "owner/reference", "rpo_alpha": 0.5},
        ),
        ("dpo.py", "DPOTrainer('m', ref_model=None, args=DPOConfig(beta=0.2))", {"beta": 0.2}),
    ],
)
def test_a_run_of_dpo_is_dpo_here(
    bench: Path, command: Command, name: str, text: str, expected: dict[str, Any]
) -> None:
    found, said = translated(command, name, text, *WHAT)
    expected = dict(expected)
    assert found["loss_type"] == expected.pop("loss_type", "dpo")
    ours = ("beta", "reference", "rpo_alpha", "label_smoothing", "cpo_alpha")
    ours += ("ld_alpha", "use_weighting")
    usual = {"beta": 0.1} if "stage" in text else {}  # LLaMA-Factory's, written out
    assert {n: found[n] for n in ours if n in found} == {**usual, **expected}
    assert "refuses this as it is" not in said
    for unknown in ("kto_pair", "exo_pair"):
        assert (f'="{unknown}": there is no such loss here' in said) == (unknown in text)


OF_KTO = {
    "kto.sh": "trl kto --beta 0.1 --desirable_weight 1.3",
    "here.sh": "# trains\naccelerate launch trl/scripts/kto.py --beta 0.1",
    "swift.sh": "swift rlhf --rlhf_type kto --beta 0.1",
    "kto.yaml": "model_name_or_path: m\nundesirable_weight: 1.3",
    "lf.yaml": "stage: kto\nkto_chosen_weight: 1.3",
    "ax.yaml": "base_model: m\nrl: kto",
    "kto.py": "from trl import KTOConfig\nargs = KTOConfig(beta=0.1)",
}


@pytest.mark.parametrize("name", OF_KTO)
def test_a_run_of_kto_is_told_why_it_is_none_of_pairs_and_what_is(
    bench: Path, command: Command, name: str
) -> None:
    (bench / name).write_text(OF_KTO[name], encoding="utf-8")
    said = command("init", "--from", name, *WHAT)
    assert (said.code, said.out) == (2, "")
    assert "CP102 " in said.err
    assert "a row of KTO is one completion, good or bad" in said.err
    assert "counterpoint pairs FILE --text completion --score label" in said.err
    assert "loss_type apo_zero is KTO's with its baseline at 0" in said.err


def test_rows_of_kto_become_pairs_as_it_is_told(bench: Path, command: Command) -> None:
    rows = [("a", "x", 1), ("a", "y", 0), ("b", "z", 0)]
    lines = [strict_json({"prompt": p, "completion": c, "label": n}) for p, c, n in rows]
    (bench / "kto.jsonl").write_text("\n".join(lines), encoding="utf-8")
    words = ["--out", "made.jsonl", "--text", "completion", "--score", "label"]
    assert command("pairs", "kto.jsonl", *words).code == 0
    (made,) = map(json.loads, (bench / "made.jsonl").read_text(encoding="utf-8").splitlines())
    assert (made["prompt"], made["chosen"], made["rejected"]) == ("a", "x", "y")


OF_TPO: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a file": (
        "tpo.yaml",
        "loss_type: tpo-l\ntpo_alpha: 0.05\ntpo_l_gamma: 1.6\nbeta: 2.0\nlearning_rate: 1e-6",
        {
            **{"loss_type": "tpo_l", "cpo_alpha": 0.05, "simpo_gamma": 1.6},
            **{"beta": 2.0, "learning_rate": 1e-6},
        },
    ),
    "its defaults": (
        "tpo.yaml",
        "loss_type: sigmoid\ntpo_alpha: 1.0",
        {"loss_type": "tpo", "cpo_alpha": 1.0, "beta": 0.01, "learning_rate": 5e-7},
    ),
    "a script": (
        "tpo.py",
        "from trl.experimental.tpo import TPOConfig, TPOTrainer\n"
        "args = TPOConfig(output_dir='out', beta=0.05, tpo_alpha=0.5)\n"
        "TPOTrainer(model='model', args=args, train_dataset='pairs.jsonl').train()\n",
        {"loss_type": "tpo", "cpo_alpha": 0.5, "beta": 0.05, "learning_rate": 5e-7},
    ),
    "another loss": (
        "tpo.yaml",
        "loss_type: hinge\ntpo_alpha: 1.0\ntpo_l_gamma: 0.5",
        {"loss_type": "tpo", "cpo_alpha": 1.0, "beta": 0.01, "learning_rate": 5e-7},
    ),
}


@pytest.mark.parametrize("case", OF_TPO)
def test_a_run_of_tpo_keeps_its_loss(case: str, bench: Path, command: Command) -> None:
    name, text, expected = OF_TPO[case]
    found, said = translated(command, name, text, *WHAT)
    ours = ("loss_type", "cpo_alpha", "simpo_gamma", "beta", "learning_rate")
    assert {name: found[name] for name in ours if name in found} == expected
    assert ("there is no such loss here" in said) == (case == "another loss")
    assert ('tpo_l_gamma="0.5"' in said) == (case == "another loss")


def test_dpo_without_a_reference_is_the_loss_that_needs_none(bench: Path, command: Command) -> None:
    found, _ = translated(command, "a.yaml", "beta: 0.2\nreference_free: true", *WHAT)
    assert (found["loss_type"], found["cpo_alpha"]) == ("sigmoid", 0.0)


def test_what_dpo_has_and_other_losses_do_not_is_left(bench: Path, command: Command) -> None:
    text = "base_model: m\nrl: simpo\nrpo_alpha: 0.5\nrl_beta: 2"
    found, said = translated(command, "a.yaml", text, *WHAT)
    assert "rpo_alpha" not in found
    assert "rpo_alpha=0.5: it does nothing with loss_type simpo" in said


@pytest.mark.parametrize(
    ("text", "cpo_alpha", "beta"),
    [
        ("stage: dpo\npref_loss: orpo\npref_ftx: 0.5", 1.5, 0.1),
        ("stage: dpo\npref_loss: simpo\npref_ftx: 0.5\npref_beta: 2", 0.5, 2.0),
        ("base_model: m\nrl: orpo\norpo_alpha: 0.2", None, 0.2),
        ("base_model: m\nrl: simpo\nrl_beta: 3\ntrl: {beta: 4}\ncpo_alpha: 0", 0.0, 4.0),
    ],
)
def test_weights_of_the_terms_are_carried_over(
    bench: Path, command: Command, text: str, cpo_alpha: float | None, beta: float
) -> None:
    found, _ = translated(command, "a.yaml", text, *WHAT)
    assert (found.get("cpo_alpha"), found["beta"]) == (cpo_alpha, beta)


def test_what_the_command_would_refuse_is_said(bench: Path, command: Command) -> None:
    text = "loss_type: simpo\nbeta: 2\ncpo_alpha: 0\nsimpo_gamma: 1\ngamma_beta_ratio: 0.1"
    _, said = translated(command, "a.yaml", text, *WHAT)
    assert "counterpoint train refuses this as it is: CP104 gamma_beta_ratio=0.1" in said


def test_what_a_file_holds_cannot_become_an_option(bench: Path, command: Command) -> None:
    text = (
        'loss_type: hinge\ncolour: "x\\nmodel: owned\\n\\u2028beta: 9"\noutput_dir: "a\\nbeta: 9"'
    )
    found, said = translated(command, "a.yaml", text, *WHAT)
    assert found == {
        "model": "model",
        "dataset": ["pairs.jsonl"],
        "loss_type": "hinge",
        "output_dir": "a\nbeta: 9",
    }
    assert "colour=" in said


KNOWN = {
    name for tool in (of_trl, of_llama_factory, of_axolotl, of_ms_swift) for name in tool.REASONS
}
KNOWN |= {*options(), *OLD_NAMES, "datasets", "dataset_name", "use_peft", "trl", "pref_ftx"}
KNOWN -= {"model"}
BEGINNINGS = [
    "beta: 1\n",
    "stage: dpo\npref_loss: simpo\n",
    "stage: dpo\nfinetuning_type: full\n",
    "base_model: m\nrl: simpo\n",
    "base_model: m\nrl: orpo\nadapter: qlora\n",
]


OTHER_WORDS = {
    "dataset_name": "dataset",
    "pref_ftx": "po_alpha",  # of cpo, or of DPO's own
    "use_peft": "lora_r",
    "lora_target": "lora_target_modules",
    "additional_target": "lora_modules_to_save",
    "quantization_bit": "load_in_",
    "flash_attn": "attn_implementation",
}
UNSAID = ("null", "~", "no", "0", "off", "false")
"""What says that a thing is off."""


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    beginning=st.sampled_from(BEGINNINGS),
    entries=st.dictionaries(st.sampled_from(sorted(KNOWN)), trees | words, max_size=6),
)
def test_whatever_a_file_holds_is_read_by_train_or_said(
    bench: Path, beginning: str, entries: dict[str, Any]
) -> None:
    given_there = {line.partition(":")[0] for line in beginning.splitlines()}
    kept = {name: value for name, value in entries.items() if name not in given_there}
    lines = [f"{name}: {as_yaml(value)}" for name, value in kept.items()]
    Path("foreign.yaml").write_text(beginning + "\n".join(lines), encoding="utf-8")
    try:
        made = translation_of("foreign.yaml", model="model", dataset=["pairs.jsonl"])
    except ConfigError as error:
        if error.code in ("CP102", "CP106"):
            return
        raise
    text = written([], made.lines, made.remarks())
    assert values(text) == {
        line.name: [line.value] if line.name == "dataset" else line.value for line in made.lines
    }
    others = {**of_trl.NAMES, **of_llama_factory.NAMES, **of_axolotl.NAMES, **OTHER_WORDS}
    for name, value in kept.items():
        if value not in (None, "", [], {}, False) and str(value).lower() not in UNSAID:
            assert any(str(word) in text for word in (name, others.get(name), renamed(name))), name


def test_every_name_that_is_translated_is_an_option() -> None:
    for tool in (of_trl, of_llama_factory, of_axolotl, of_ms_swift):
        assert set(tool.NAMES.values()) <= set(options())
        assert not set(tool.REASONS) & set(tool.NAMES)
        assert all(reason and not reason.endswith(".") for reason in tool.REASONS.values())


@pytest.mark.parametrize(
    ("name", "text"), [("train.py", SCRIPT), ("lf.yaml", LLAMA_FACTORY), ("ax.yaml", AXOLOTL)]
)
def test_the_doctor_finds_no_error_in_a_translation(
    workshop: Path, command: Command, name: str, text: str
) -> None:
    # what this machine has not, and this model: flash attention and weights for a GPU
    text = text.replace("flash_attention: true\n", "")
    Path(name).write_text(text, encoding="utf-8")
    assert command("init", "--from", name, *WHAT, "--out", "run.yaml").code == 0
    report = json.loads(command("doctor", "run.yaml", "--json").out)
    assert report["exit_code"] < 2, report


def test_python_has_what_the_command_writes(bench: Path) -> None:
    Path("ax.yaml").write_text(AXOLOTL, encoding="utf-8")
    made = translation_of("ax.yaml", model="other", dataset=["x.jsonl"])
    lines = {line.name: line.value for line in made.lines}
    assert (made.tool, lines["model"], lines["dataset"]) == (
        "a file of Axolotl",
        "other",
        "x.jsonl",
    )
    assert len(made.notes) == 1
