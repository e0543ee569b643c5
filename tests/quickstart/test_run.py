"""The quickstart as a whole, shortened: it learns, it says what it does, it can be repeated."""

from __future__ import annotations

import io
import json
import logging
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    AutoTokenizer,
    TrainerControl,
    TrainerState,
)

from counterpoint import CPOConfig, CPOTrainer
from counterpoint.cli.main import main
from counterpoint.console.alone import one_thread, quiet
from counterpoint.errors import SetupError
from counterpoint.models.trainable import freeze_parts
from counterpoint.quickstart.display import WIDTH, Progress
from counterpoint.quickstart.lessons import Lesson, Reading, Translating
from counterpoint.quickstart.read import read_tags
from counterpoint.quickstart.run import (
    STEP_PAIRS,
    QuickstartResult,
    run,
    training_options,
)
from counterpoint.quickstart.run import STEPS as STEPS_OF_A_WHOLE_RUN
from counterpoint.quickstart.supervised import train_supervised
from counterpoint.quickstart.table import (
    Outcome,
    examples,
    judge_readings,
    judge_translations,
    outcome_table,
    reading_examples,
)
from counterpoint.quickstart.tags import held_out_tags
from counterpoint.quickstart.task import english, german, held_out_numbers, preference_pairs
from counterpoint.quickstart.translate import translate
from counterpoint.runlog import read_run
from tests.reliability.trials import TORTURE

STEPS, HELD_OUT = 30, 60
STEPS_OF_TRANSLATOR = 40
STEPS_OF_READER = 40


@dataclass(frozen=True)
class Seen:
    result: QuickstartResult
    text: str
    root: Path


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A shortened run."""
    return told(tmp_path_factory.mktemp("quickstart"), "first", steps=STEPS)


def told(root: Path, folder: str, **options: Any) -> Seen:
    """A run, told as through a pipe."""
    stdout = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout):
        patch.setenv("COUNTERPOINT_CACHE", str(root / "cache"))
        patch.chdir(root)
        result = run(folder, held_out=HELD_OUT, **options)
    return Seen(result, stdout.getvalue(), root)


def test_even_a_short_run_beats_the_base_and_supervised_training_by_far(seen: Seen) -> None:
    result = seen.result
    assert result.base.exact <= 0.05
    assert result.supervised.exact <= 0.20
    assert result.cpo.exact >= result.supervised.exact + 0.30
    assert result.cpo.number >= 0.90


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A shortened run of the encoder-decoder."""
    root = tmp_path_factory.mktemp("translator")
    return told(root, "q", steps=STEPS_OF_TRANSLATOR, encoder_decoder=True)


def goes_beyond_its_references(result: QuickstartResult) -> None:
    assert result.base.exact <= 0.05
    assert result.perfect_chosen <= 0.10
    assert result.supervised.exact <= 0.20
    assert result.cpo.exact >= max(result.supervised.exact, result.perfect_chosen) + 0.50


def test_an_encoder_decoder_goes_beyond_its_references_too(translator: Seen) -> None:
    goes_beyond_its_references(translator.result)
    assert translator.result.encoder_decoder
    assert "encoder-once" in (translator.root / "q" / "cpo" / "run.json").read_text("utf-8")


@pytest.mark.skipif(not TORTURE, reason="three whole runs; set COUNTERPOINT_TORTURE")
@pytest.mark.parametrize("seed", [5, 6, 7])
def test_a_whole_run_of_an_encoder_decoder_does_on_three_seeds(seed: int, tmp_path: Path) -> None:
    result, _ = said_by(tmp_path / "q", seed=seed, encoder_decoder=True)
    goes_beyond_its_references(result)
    assert result.cpo.exact >= 0.80
    assert result.cpo.number >= 0.95


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A shortened run of the model that sees."""
    root = tmp_path_factory.mktemp("reader")
    return told(root, "q", steps=STEPS_OF_READER, vision=True)


def reads_beyond_its_references(result: QuickstartResult, by: float) -> None:
    assert result.vision
    assert result.base.exact <= 0.05
    assert result.perfect_chosen <= 0.10
    assert result.supervised.exact <= 0.20
    best = max(result.supervised.exact, result.perfect_chosen)
    assert result.cpo.exact >= best + by
    assert characters(result.cpo) >= max(map(characters, (result.supervised, result.chosen)))


def characters(outcome: Outcome) -> float:
    assert outcome.characters is not None
    return outcome.characters


def test_a_model_that_sees_goes_beyond_its_references_too(reader: Seen) -> None:
    reads_beyond_its_references(reader.result, by=0.10)
    lines = reader.text.splitlines()
    assert [line[0] for line in lines if re.match(r"\d  \w", line)] == list("12345")
    assert all(len(line) <= WIDTH for line in lines)
    [head] = [line.split() for line in lines if "exact match" in line]
    assert head == ["exact", "match", "characters"]
    of_chosen = re.compile(r"the chosen references themselves +[\d.]+% +[\d.]+%")
    assert any(map(of_chosen.fullmatch, lines))


def test_the_reader_s_run_is_watched_shares_prompts_and_raises_no_alarm(reader: Seen) -> None:
    run_of_reader = read_run(reader.root / reader.result.model)
    assert run_of_reader.alarms == ()
    assert '"shared"' in (reader.root / "q" / "cpo" / "run.json").read_text("utf-8")


@pytest.mark.skipif(not TORTURE, reason="three whole runs; set COUNTERPOINT_TORTURE")
@pytest.mark.parametrize("seed", [5, 6, 7])
def test_a_whole_run_of_a_model_that_sees_does_on_three_seeds(seed: int, tmp_path: Path) -> None:
    result, _ = said_by(tmp_path / "q", seed=seed, vision=True)
    reads_beyond_its_references(result, by=0.40)


@pytest.mark.parametrize(
    "steps",
    [
        6,
        pytest.param(
            STEPS_OF_A_WHOLE_RUN, marks=pytest.mark.skipif(not TORTURE, reason="a whole run")
        ),
    ],
)
def test_with_blank_pictures_nothing_is_learnt(steps: int, tmp_path: Path) -> None:
    """The control: a model that is shown nothing reads nothing, and prefers by chance."""
    lesson = Reading(blank=True)
    model, processor = lesson.load()
    freeze_parts(model, lesson.freeze)
    asked = lesson.held_out(200, seed=0)
    options = training_options(tmp_path, lesson, seed=0, steps=steps)
    rows = lesson.rows(lesson.pairs(steps * STEP_PAIRS, seed=0), tmp_path)
    with one_thread(), quiet(logging.WARNING):
        trainer = CPOTrainer(
            model, CPOConfig(**options), train_dataset=rows, processing_class=processor
        )
        trainer.train()
        held_out = lesson.held_out_rows(asked, 0, tmp_path)
        scores = trainer.evaluate(held_out)
        outcome = lesson.judge(asked, lesson.answers(model, processor, asked))
    assert outcome.exact == outcome.number == 0
    # four standard deviations of fair coins
    assert abs(scores["eval_rewards/accuracies"] - 0.5) < 2 / len(held_out) ** 0.5


def test_the_saved_reader_reads_as_the_table_says(reader: Seen) -> None:
    folder = reader.root / reader.result.model
    model = AutoModelForImageTextToText.from_pretrained(folder)
    tags = held_out_tags(HELD_OUT, seed=0)
    texts = read_tags(model, AutoProcessor.from_pretrained(folder), tags)
    assert judge_readings([tag.code for tag in tags], texts) == reader.result.cpo


def test_the_reader_s_files_serve_evaluate_and_its_tower_is_as_it_was(
    reader: Seen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(reader.root)
    words = ["q/cpo", "--base", "q/base", "--eval_dataset", "q/held-out.jsonl", "--use_cpu=true"]
    assert main(["evaluate", *words, "--generate", "60", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    before, after = (
        found[when]["texts"]["held-out.jsonl"]["greedy"]["exact_match"]
        for when in ("before", "after")
    )
    assert after >= before + 0.1
    # one question about several pictures is several prompts
    rows = len(Path("q/held-out.jsonl").read_text("utf-8").splitlines())
    assert main(["evaluate", *words[:1], *words[3:]]) == 0
    assert f"held-out.jsonl: {rows} pairs of {rows} prompts" in capsys.readouterr().out
    models = [AutoModelForImageTextToText.from_pretrained(f"q/{name}") for name in ("base", "cpo")]
    first, last = (model.state_dict() for model in models)
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved == {name for name in first if "vision_tower" not in name}


def test_the_saved_translator_translates_as_the_table_says(translator: Seen) -> None:
    folder = translator.root / translator.result.model
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    numbers = held_out_numbers(HELD_OUT, seed=0)
    assert (
        judge_translations(numbers, translate(model, tokenizer, numbers)) == translator.result.cpo
    )


def test_the_translator_s_files_serve_train_and_evaluate(
    translator: Seen, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(translator.root)
    given = yaml.safe_load(Path("q/train.yaml").read_text("utf-8"))
    assert (given["source_lang"], given["target_lang"]) == ("en_XX", "de_DE")
    (row, *_), (held_out, *_) = (
        [json.loads(line) for line in Path("q", name).read_text("utf-8").splitlines()]
        for name in ("pairs.jsonl", "held-out.jsonl")
    )
    assert set(row) == {"source", "chosen", "rejected"}
    assert set(held_out) - set(row) == {"reference"}
    words = ["q/cpo", "--base", "q/base", "--eval_dataset", "q/held-out.jsonl", "--use_cpu=true"]
    assert main(["evaluate", *words, "--generate", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    before, after = (
        found[when]["texts"]["held-out.jsonl"]["greedy"]["exact_match"]
        for when in ("before", "after")
    )
    assert after >= before + 0.5


def test_the_saved_model_translates_as_the_table_says(seen: Seen) -> None:
    folder = seen.root / seen.result.model
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    numbers = held_out_numbers(HELD_OUT, seed=0)
    assert judge_translations(numbers, translate(model, tokenizer, numbers)) == seen.result.cpo


def test_the_held_out_pairs_are_of_numbers_that_the_training_has_not_seen(seen: Seen) -> None:
    folder = seen.root / seen.result.folder
    trained, held_out = (
        [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        for name in ("pairs.jsonl", "held-out.jsonl")
    )
    assert 0.5 * HELD_OUT < len(held_out) < HELD_OUT
    assert not {row["prompt"] for row in held_out} & {row["prompt"] for row in trained}
    right = {english(n) + " = ": german(n) for n in held_out_numbers(HELD_OUT, seed=0)}
    assert all(row["reference"] == right[row["prompt"]] for row in held_out)
    assert all(row["chosen"] != row["rejected"] for row in held_out)


def test_what_is_said_has_five_steps_a_table_and_the_next_command(seen: Seen) -> None:
    lines = seen.text.splitlines()
    assert [line[0] for line in lines if re.match(r"\d  \w", line)] == list("12345")
    assert all(len(line) <= WIDTH for line in lines)
    for outcome in (seen.result.base, seen.result.supervised, seen.result.cpo):
        assert f"{outcome.exact:.1%}" in seen.text
    assert f"{seen.result.perfect_chosen:.1%}" in seen.text
    assert "counterpoint train first/train.yaml" in seen.text
    assert "\r" not in seen.text


def test_progress_through_a_pipe_is_a_few_whole_lines(seen: Seen) -> None:
    lines = [line for line in seen.text.splitlines() if f"{STEPS}/{STEPS}" in line]
    assert [line.split()[0] for line in lines] == ["supervised", "CPO"]
    assert "chosen preferred" in lines[1]


def test_the_files_hold_what_was_said(seen: Seen) -> None:
    folder = seen.root / "first"
    found = json.loads((folder / "result.json").read_text("utf-8"))
    assert found["cpo"]["exact"] == seen.result.cpo.exact
    assert found["steps"] == STEPS
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text("utf-8").splitlines()]
    assert rows == [pair.row for pair in preference_pairs(32 * STEPS, seed=0)]
    assert (folder / "cpo" / "run.json").is_file()
    assert (folder / "cpo" / "metrics.jsonl").is_file()


def said_by(*args: Any, **kwargs: Any) -> tuple[QuickstartResult, str]:
    stdout = io.StringIO()
    with redirect_stdout(stdout):
        result = run(*args, **kwargs)
    return result, stdout.getvalue()


@pytest.mark.parametrize("model", [{}, {"encoder_decoder": True}, {"vision": True}])
def test_the_written_configuration_repeats_the_run_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, bool]
) -> None:
    monkeypatch.chdir(tmp_path)
    said_by("q", steps=3, held_out=1, **model)
    assert main(["train", "q/train.yaml", "--output_dir", "again"]) == 0
    first, again = (Path(folder) / "model.safetensors" for folder in ("q/cpo", "again"))
    assert first.read_bytes() == again.read_bytes()


def test_the_next_command_runs_as_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, text = said_by("q", steps=1, held_out=1)
    command = text[text.index("counterpoint train") :].replace("\\\n", " ").split()
    assert main(command[1:]) == 0
    assert Path("q/simpo/model.safetensors").is_file()
    assert yaml.safe_load(Path("q/simpo/train.yaml").read_text("utf-8"))["loss_type"] == "simpo"


def test_a_second_run_of_the_same_seed_finds_the_same_in_a_folder_of_its_own(
    tmp_path: Path,
) -> None:
    first, _ = said_by(tmp_path / "q", seed=5, steps=2, held_out=20)
    second, text = said_by(tmp_path / "q", seed=5, steps=2, held_out=20)
    assert second.folder == tmp_path / "q-2"
    assert "q-2" in text
    assert second.cpo == first.cpo
    weights = [r.model / "model.safetensors" for r in (first, second)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    other, _ = said_by(tmp_path / "q", seed=6, steps=2, held_out=20)
    assert other.folder == tmp_path / "q-3"
    assert (other.folder / "pairs.jsonl").read_bytes() != (
        first.folder / "pairs.jsonl"
    ).read_bytes()


def test_an_empty_folder_is_used_and_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result, _ = said_by(tmp_path / "empty", steps=1, held_out=1)
    assert result.folder == tmp_path / "empty"
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(SetupError, match="CP501"):
        run(tmp_path / "file")
    assert (tmp_path / "file").read_text("utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_the_working_folder_is_used_only_if_it_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SetupError, match="CP504"):
        run(".")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_but_its_own_lines_is_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "q", steps=1, held_out=1)
    shown = capfd.readouterr()
    assert shown.err == ""
    assert "{" not in shown.out


def test_the_number_of_threads_is_as_it_was_afterwards(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        said_by(tmp_path / "q", steps=1, held_out=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def logged_loss(folder: Path) -> float:
    line = (folder / "metrics.jsonl").read_text("utf-8").splitlines()[0]
    return float(json.loads(line)["nll_loss"])


@pytest.mark.parametrize(
    ("lesson", "model"),
    [
        (Translating(), {}),
        (Translating(encoder_decoder=True), {"encoder_decoder": True}),
        (Reading(), {"vision": True}),
    ],
)
def test_supervised_loss_is_the_nll_term_of_cpo(
    tmp_path: Path, lesson: Lesson, model: dict[str, bool]
) -> None:
    result, _ = said_by(tmp_path / "q", steps=1, held_out=1, **model)
    base, reader_of_rows = lesson.load()
    rows = lesson.rows(lesson.pairs(32, seed=0), tmp_path)
    losses: list[float] = []

    class Watch(Progress):
        def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    options = training_options(tmp_path, lesson, seed=0, steps=1)
    train_supervised(base, reader_of_rows, rows, options, Watch("supervised"))
    assert losses == pytest.approx([logged_loss(result.model)], rel=1e-5)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_rewrites_itself() -> None:
    screen, state = Screen(), TrainerState(max_steps=120)
    args: Any = None
    with redirect_stdout(screen):
        progress = Progress("CPO")
        for step in (1, 60, 120):
            state.global_step = step
            progress.on_step_end(args, state, TrainerControl())
        logs = {"loss": 0.25, "rewards/accuracies": 0.9}
        progress.on_log(args, state, TrainerControl(), logs=logs)
        progress.on_train_end(args, state, TrainerControl())
    shown = screen.getvalue()
    assert shown.count("\n") == 1
    assert shown.endswith("\n")
    last = shown.split("\r")[-1]
    assert re.search(r"#{18}  120/120  loss  0\.250  chosen preferred  90%", last)
    assert all(len(part.rstrip("\n")) < WIDTH for part in shown.split("\r"))


def test_a_translation_is_right_flawed_or_of_another_number() -> None:
    texts = [german(742), "siebenhundertvierzigundzwei", german(743), "x" * 200]
    assert judge_translations([742] * 4, texts) == Outcome(exact=0.25, number=0.5)
    lines = examples([742] * 4, {"CPO": texts})
    assert [line.split()[-1] for line in lines[1::2]] == ["right", "flaw", "number", "number"]
    assert all(len(line) <= WIDTH for line in lines)


def test_the_table_names_each_model_with_its_share() -> None:
    lines = outcome_table({"base model": Outcome(0.005, 1.0)}, perfect_chosen=0.074)
    assert re.fullmatch(r"perfect among the chosen references +7\.4%", lines[1])
    assert re.fullmatch(r"base model +0\.5% +100\.0%", lines[2])


def test_a_transcription_is_right_flawed_or_of_another_code() -> None:
    texts = ["SB0 7KZ", "58O 7K2", "SB0 7KA", ""]
    outcome = judge_readings(["SB0 7KZ"] * 4, texts)
    assert (outcome.exact, outcome.number) == (0.25, 0.5)
    assert outcome.characters == pytest.approx((1 + 3 / 7 + 6 / 7 + 0) / 4)
    lines = reading_examples(["SB0 7KZ"] * 4, {"CPO": texts})
    assert [line.split()[-1] for line in lines[1::2]] == ["right", "flaws", "code", "code"]
    assert all(len(line) <= WIDTH for line in lines)
