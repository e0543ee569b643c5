"""Both notebooks run as they are committed, offline, and show what their texts say."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bokeh", reason="the extra [report] is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("quickstart", "from_trl")

INSPECTED = ("CPOTrainer", "CPOConfig", "show", "pairs_from_scored")
ASKS = "import counterpoint\n" + "\n".join(
    f"print(get_ipython().object_inspect_text('counterpoint.{name}'))" for name in INSPECTED
)
"""What a notebook shows for ``counterpoint.NAME?``, before anything else is loaded."""


def cells_of(name: str) -> list[dict[str, Any]]:
    return list(json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"])


def test_every_notebook_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_committed_without_outputs(name: str) -> None:
    content = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert set(content["metadata"]) == {"kernelspec", "language_info"}
    for cell in content["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("name", NAMES)
def test_what_a_notebook_links_to_is_there(name: str) -> None:
    text = "".join("".join(cell["source"]) for cell in cells_of(name))
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert links
    assert [link for link in links if not (EXAMPLES / link).exists()] == []


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The outputs of each notebook, a list for each cell; both in one kernel, which saves seconds.

    That each imports what it uses is for the linter to say, which reads notebooks too.
    """
    folder = tmp_path_factory.mktemp("notebooks")
    notebooks = {
        name: nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4).cells for name in NAMES
    }
    asks = nbformat.v4.new_code_cell(ASKS)
    whole = nbformat.v4.new_notebook(
        cells=[asks, *(one for all_ in notebooks.values() for one in all_)]
    )
    client = nbclient.NotebookClient(
        whole, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env={**os.environ, "IPYTHONDIR": str(folder / "ipython")})
    outputs = {
        name: [output for cell in cells for output in cell.get("outputs", [])]
        for name, cells in notebooks.items()
    }
    return {"asks": asks.outputs, **outputs}


def printed(outputs: list[dict[str, Any]]) -> str:
    return "".join(one["text"] for one in outputs if one.get("name") == "stdout")


def tables(outputs: list[dict[str, Any]]) -> list[str]:
    return [html for one in outputs if (html := one.get("data", {}).get("text/html"))]


@pytest.mark.slow
def test_a_question_mark_finds_the_docstring(executed: dict[str, Any]) -> None:
    text = printed(executed["asks"])
    for first in (
        "Trains a language model on preference pairs",
        "Options of a CPO run: TRL's names",
        "Show the report of a run below the cell of a notebook.",
        "Make preference pairs of scored candidates.",
    ):
        assert first in text


@pytest.mark.slow
def test_the_quickstart_learns_and_shows_its_tables_and_its_report(
    executed: dict[str, Any],
) -> None:
    outputs = executed["quickstart"]
    told = re.search(r"right: (\d+) of 40 before, (\d+) after", printed(outputs))
    assert told
    before, after = map(int, told.groups())
    assert before <= 2
    assert after >= 20
    findings, run, report = (
        next(html for html in tables(outputs) if sign in html)
        for sign in ("CN121", "rewards/margins", "<iframe")
    )
    assert "0 errors" in findings
    assert "finished, step 15" in run
    assert "Content-Security-Policy" in report
    assert "sandbox=" in report


@pytest.mark.slow
def test_the_other_shows_one_step_for_every_cut_and_coded_errors(
    executed: dict[str, Any],
) -> None:
    text = printed(executed["from_trl"])
    steps = re.findall(r"loss (\S+)  gradient norm (\S+)", text)
    assert len(steps) == 3
    for column in zip(*steps, strict=True):
        first, *others = map(float, column)
        assert others == [pytest.approx(first, rel=1e-5)] * 2
    assert re.findall(r"^CP\d+", text, re.MULTILINE) == ["CP101", "CP101", "CP101", "CP203"]
