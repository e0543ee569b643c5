"""examples/sample_ray_vllm.py with a stand-in for Ray Data and vLLM: requests, rows, resuming."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.cli.conftest import write_pairs

EXAMPLE = Path(__file__).parents[2] / "examples" / "sample_ray_vllm.py"
PROMPTS: list[dict[str, Any]] = [{"prompt": f"question {n}", "id": n} for n in range(4)]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cluster that writes prompt and seed; ``told`` are its requests, ``most`` its life."""
    found = SimpleNamespace(told=[], most=1000, config=None)

    def build_processor(config: Any, preprocess: Any, postprocess: Any) -> Any:
        found.config = config

        def process(rows: Any) -> Any:
            def answers() -> Any:
                for row in rows:
                    if len(found.told) == found.most:
                        raise RuntimeError("a machine is gone")
                    asked = preprocess(row)
                    found.told.append(asked)
                    what = asked.get("prompt", asked.get("messages"))
                    text = f"{what} {asked['sampling_params']['seed']}"
                    made = {"generated_text": text, "num_generated_tokens": 256 * (row["row"] == 3)}
                    yield postprocess({**asked, **made})

            return SimpleNamespace(iter_rows=answers)

        return process

    llm = ModuleType("ray.data.llm")
    llm.build_processor = build_processor  # type: ignore[attr-defined]
    llm.vLLMEngineProcessorConfig = lambda **options: options  # type: ignore[attr-defined]
    ray = ModuleType("ray")
    ray.data = SimpleNamespace(from_items=list, llm=llm)  # type: ignore[attr-defined]
    for name, module in (("ray", ray), ("ray.data", ray.data), ("ray.data.llm", llm)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)
    write_pairs(Path("p.jsonl"), PROMPTS)
    return found


def drawn(k: int = 2) -> list[dict[str, Any]]:
    runpy.run_path(str(EXAMPLE))["main"]("m", "p.jsonl", "c.jsonl", k)
    return [json.loads(line) for line in Path("c.jsonl").read_text("utf-8").splitlines()]


def test_its_rows_are_those_of_sample_and_a_second_start_asks_for_the_rest(engine: Any) -> None:
    engine.most = 3
    with pytest.raises(RuntimeError, match="a machine is gone"):
        drawn()
    there, engine.most = Path("c.jsonl").read_bytes(), 1000
    found = drawn()
    assert Path("c.jsonl").read_bytes().startswith(there)
    assert len(engine.told) == 8
    assert sorted((one["row"], one["candidate"]) for one in found) == [
        (row, n) for row in range(4) for n in range(2)
    ]
    for one in found:
        assert list(one) == ["prompt", "text", "model", "row", "candidate", "tokens", "ended"]
        assert one["text"].startswith(f"{one['prompt']} ")
        assert one["ended"] == (one["row"] != 3)  # which took all the tokens that it might
    assert len({one["text"] for one in found}) == 8
    assert len(drawn(3)) == 12
    assert len(engine.told) == 12
    assert engine.config["chat_template_stage"] is False


def test_messages_go_through_the_template_and_kinds_are_not_mixed(engine: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    write_pairs(Path("p.jsonl"), [{"prompt": messages}])
    [one] = drawn(1)
    assert one["prompt"] == messages
    assert engine.told[0]["messages"] == messages
    assert engine.config["chat_template_stage"] is True
    write_pairs(Path("p.jsonl"), [{"prompt": messages}, {"prompt": "Hi"}])
    with pytest.raises(SystemExit, match="one kind at a time"):
        drawn(1)
