"""The card says what made the weights, to people and to the hub, and nothing of the machine."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import ModelCardData

from counterpoint._version import __version__
from counterpoint.objectives import LOSSES
from counterpoint.report.about import About
from counterpoint.report.card import CARD, may_write, model_card
from counterpoint.report.recipe import hub_id
from counterpoint.runlog import Run, read_run
from tests.report.runs import facts, write_run

ABOUT = About(name="first", base="example/Llama-3-8B", datasets=("example/pairs",))


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(write_run(tmp_path_factory.mktemp("card") / "first", steps=40, looks=0))


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_hub_reads_its_front_matter(short_run: Run) -> None:
    card = ModelCard(model_card(short_run, ABOUT))
    assert isinstance(card.data, ModelCardData)
    assert card.data.base_model == "example/Llama-3-8B"
    assert card.data.library_name == "transformers"
    assert card.data.datasets == ["example/pairs"]
    assert card.data.tags == ["counterpoint", "preference-optimization", "cpo", "simpo"]


def test_an_adapter_says_that_it_is_one(short_run: Run) -> None:
    found = front_matter(model_card(short_run, About("first", "example/base", adapter=True)))
    assert (found["library_name"], found["base_model_relation"]) == ("peft", "adapter")


def test_it_holds_objective_results_data_versions_and_the_paper(short_run: Run) -> None:
    card = model_card(short_run, ABOUT)
    assert short_run.facts["objective"] in card
    last = short_run.metrics[-1]["eval_harmless_rewards/accuracies"]
    assert f"{last:.4g}" in card
    assert "helpful at step 40, harmless at step 40" in card
    assert "| train | 61,135 | 61,082 | 53 | 44,356,726 | 55,995 | 5f0c2a9be41d77e0 |" in card
    assert "eprint = {2405.14734}" in card
    assert short_run.facts["versions"]["python"] in card
    assert "None was raised" in card


def test_alarms_are_owned_up_to(short_run: Run) -> None:
    raised = ({"code": "CW101", "step": 9, "since": 4}, {"code": "CW101", "step": 12, "since": 12})
    run = Run(short_run.folder, short_run.facts, short_run.metrics, raised, (), ())
    assert re.search(r"`CW101` .*: from step 4, raised 2 times", model_card(run, ABOUT))


def described(tmp_path: Path, **changes: Any) -> Run:
    return Run(tmp_path, facts(**changes), (), (), (), ())


def recipe_of(run: Run, about: About = ABOUT) -> str:
    text = re.search(r"```(?:yaml|python)\n(.*?)```", model_card(run, about), re.DOTALL)
    assert text
    return text[1]


def test_what_it_takes_to_make_a_run_of_the_command_again_is_its_own_file(tmp_path: Path) -> None:
    given = {
        "model": "example/Llama-3-8B",
        "dataset": ["/data/alice/pairs.jsonl", "example/pairs:train"],
        "eval_dataset": {"easy": "~/easy.jsonl"},
        "eval_strategy": "steps",
        "lora_r": 8,
        "constraints": [{"kind": "safety", "name": "kept", "data": "/data/alice/kept.jsonl"}],
        "model_init_kwargs": {"cache_dir": "/data/alice"},
        "output_dir": "/data/alice/out",
        "resume": "auto",
    }
    run = described(tmp_path, given=given)
    assert yaml.safe_load(recipe_of(run)) == {
        "model": "example/Llama-3-8B",
        "dataset": ["pairs.jsonl", "example/pairs:train"],
        "eval_dataset": {"easy": "easy.jsonl"},
        "eval_strategy": "steps",
        "lora_r": 8,
        "constraints": [{"kind": "safety", "name": "kept", "data": "kept.jsonl"}],
    }
    card = model_card(run, ABOUT)
    assert "Left out, for they hold paths: model_init_kwargs." in card
    assert "alice" not in card


def test_a_folder_that_looks_like_an_id_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    run = described(tmp_path, given={"model": "runs/first", "dataset": ["acme/pairs"]})
    assert yaml.safe_load(recipe_of(run)) == {"model": "first", "dataset": ["acme/pairs"]}


def test_a_run_made_in_python_is_made_again_in_python(short_run: Run) -> None:
    script = recipe_of(short_run)
    compile(script, "card", "exec")
    for words in ("model='example/Llama-3-8B'", "load_dataset('example/pairs'", "beta=2.0,"):
        assert words in script
    assert "eval_dataset=load_dataset('json', data_files='EVAL.jsonl', split='train')" in script
    card = model_card(short_run, About("first"))
    assert "the model was made in memory, and MODEL stands for it; a tokenizer, callbacks" in card


def test_no_folder_of_the_machine_gets_in(tmp_path: Path) -> None:
    options = {
        "output_dir": "/data/alice/out",
        "beta": 2.0,
        "loss_type": "simpo",
        "model_init_kwargs": {"cache_dir": "/data/alice/cache"},
        "adapter": "~/alice/adapter",
        "other": "alice\\files",
    }
    run = Run(tmp_path, facts(options=options, changed=list(options)), (), (), (), ())
    card = model_card(run, About("first", "/data/alice/base"))
    assert "alice" not in card
    assert "`base`" in card
    assert "base_model" not in front_matter(card)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("example/model", "example/model"),
        ("/data/model", ""),
        ("./model", ""),
        ("~/model", ""),
        ("a/b/c", ""),
        ("C:\\model", ""),
        ("model", ""),
    ],
)
def test_an_id_of_the_hub_is_told_from_a_folder(name: str, found: str) -> None:
    assert hub_id(name) == found


def test_text_of_a_run_is_no_markdown(tmp_path: Path) -> None:
    name = "x](http://evil) | <script>`"
    data = {name: {"rows": 1, "kept": 1}}
    card = model_card(Run(tmp_path, facts(data=data), (), (), (), ()), About(name))
    assert "<script>" not in card
    assert "x](" not in card


def test_weights_that_nothing_is_known_of_have_a_card_too(tmp_path: Path) -> None:
    card = model_card(Run(tmp_path, {}, (), (), (), ()), About("first"))
    assert front_matter(card)["library_name"] == "transformers"
    assert "# first" in card


def test_only_a_card_of_ours_is_written_over(tmp_path: Path, short_run: Run) -> None:
    path = tmp_path / CARD
    assert may_write(path)
    path.write_text("my own words")
    assert not may_write(path)
    path.write_text(model_card(short_run, ABOUT))
    assert may_write(path)
    path.write_bytes(b"\xff\xfe")
    assert not may_write(path)


def test_every_loss_has_a_method_and_a_paper() -> None:
    assert all(row.method and row.paper for row in LOSSES.values())


def test_it_says_how_the_package_was_installed_and_names_no_index(short_run: Run) -> None:
    environment = {**short_run.facts["environment"], "installed": "from a wheel, a-1.whl"}
    facts = {**short_run.facts, "environment": environment}
    assert f"with Counterpoint {__version__}, installed from a wheel, a-1.whl." in model_card(
        replace(short_run, facts=facts), ABOUT
    )
    assert f"with Counterpoint {__version__}.\n" in model_card(short_run, ABOUT)
