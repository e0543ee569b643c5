"""The page of loops does what it says, on the quickstart's task in the place of what it names."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import yaml

from counterpoint.cli.main import main
from counterpoint.loop import running
from counterpoint.loop.stages import Stage
from counterpoint.quickstart.task import german, prompt
from counterpoint.quickstart.translate import load_base
from counterpoint.runlog import read_run
from tests.examples.pages import DOCS

PAGE = (DOCS / "loop.md").read_text(encoding="utf-8")
SHOWN = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
RECIPES = [recipe for recipe in SHOWN if "train" in recipe]
NAMES = ["the loop", "SimPO", "ALMA"]

SCORER = """
from counterpoint.quickstart.task import english, flaws_in

NUMBERS = {f"{english(number)} = ": number for number in range(1000)}

def flaws(rows):
    found = [flaws_in(NUMBERS[row["prompt"]], row["text"]) for row in rows]
    return [-5.0 if one is None else -float(len(one)) for one in found]
"""
PROCESS = """
import json, sys
for line in sys.stdin:
    row = json.loads(line)
    print(-len(row["text"].split()), flush=True)
"""


class InThis:
    """A stage in this very process, as ``running.Started`` has it."""

    def __init__(self, stage: Stage, log: BinaryIO, held: BinaryIO) -> None:
        self.words = list(stage.words)

    def wait(self) -> int:
        return main(self.words)

    def terminate(self) -> None: ...


def smaller(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe of the page with the quickstart's model, few texts and few steps."""
    found: dict[str, Any] = json.loads(json.dumps(recipe))
    found |= {"model": "base", "prompts": "prompts.jsonl", "rounds": min(2, recipe["rounds"])}
    if "beside" in recipe:
        found["beside"] = ["other"]
    found["sample"] |= {"k": min(3, recipe["sample"]["k"]), "max_new_tokens": 24, "use_cpu": True}
    found["sample"].pop("chat", None)  # this model has no chat template
    if "reward" in str(recipe["score"]):
        found["score"]["with"] = "scorer:flaws"
    if "weight" in recipe["score"]:
        commands = [one.partition("=")[0] for one in recipe["score"]["with"]]
        found["score"]["with"] = [f"{name}=command:python process.py" for name in commands]
    found["train"] |= {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_length": 64,
        "use_cpu": True,
    }
    found["train"].pop("num_train_epochs", None)
    if "evaluate" in recipe:
        found["evaluate"] |= {"max_new_tokens": 24, "use_cpu": True}
    return found


@pytest.fixture
def own_scorer() -> Iterator[None]:
    """The page's module is imported afresh, whatever another test has called so."""
    sys.modules.pop("scorer", None)
    yield
    sys.modules.pop("scorer", None)


@pytest.mark.usefixtures("own_scorer")
@pytest.mark.parametrize(("name", "recipe"), list(zip(NAMES, RECIPES, strict=True)), ids=NAMES)
def test_each_recipe_ends_with_a_model_of_its_last_round(
    name: str, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "start_stage", InThis)
    for folder in ("base", *(["other"] if "beside" in recipe else [])):
        for part in load_base():
            part.save_pretrained(folder)
    Path("scorer.py").write_text(SCORER)
    Path("process.py").write_text(PROCESS)
    numbers = {"prompts.jsonl": (342, 957, 721, 468, 589, 231), "held-out.jsonl": (463, 791)}
    for file, several in numbers.items():
        rows = [{"prompt": prompt(n), "reference": german(n)} for n in several]
        Path(file).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    small = smaller(recipe)
    Path("loop.yaml").write_text(yaml.safe_dump(small))
    assert main(["loop", "loop.yaml", "--out", "out"]) == 0
    last = Path(f"out/round-{small['rounds']}")
    run = read_run(last / "run")
    assert run.facts["ended"]["state"] == "finished"
    names = ("beta", "cpo_alpha", "learning_rate")
    objective = {key: float(recipe["train"][key]) for key in names}  # PyYAML has 1e-6 as text
    assert {key: run.facts["options"][key] for key in objective} == objective
    lines = (last / "scored.jsonl").read_text(encoding="utf-8").splitlines()
    models = {json.loads(line)["model"] for line in lines}
    assert models == ({"base", "other"} if name == "ALMA" else models)
    assert len(lines) == 6 * small["sample"]["k"] * len(models)
    assert (last / "run" / "adapter_config.json").exists() == ("lora_r" in recipe["train"])
    if "held_out" in recipe:
        assert (last / "held-out-scored.jsonl").is_file()
        assert json.loads((last / "evaluation.json").read_text())["after"]["texts"]["prompts"]
