"""The page of pictures names the kinds that are trained, and its example runs on a small one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from runpy import run_path

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from counterpoint.forward.layouts import SHARED
from counterpoint.forward.sights import SIGHTS
from tests.examples.pages import DOCS, generated
from tests.vision_on_the_spot import ROWS, encoded, seer

EXAMPLE = Path(__file__).parents[2] / "examples" / "vision_pairs.py"


@pytest.mark.parametrize("page", ["vision.md", "vision.zh-CN.md"])
def test_the_page_s_table_has_every_kind_and_no_other(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    for block in generated(text).values():  # the other table, which the code writes
        text = text.replace(block, "")
    table = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert sorted(kind for cell in table for kind in re.findall(r"`(\w+)`", cell)) == sorted(SIGHTS)


def test_the_example_trains_and_saves_what_plain_transformers_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for part in seer("llava"):
        part.save_pretrained(tmp_path / "model")
    lines = []
    for number, (pictures, question, chosen, rejected) in enumerate(ROWS * 2):
        names = [f"{number}-{place}.png" for place in range(len(pictures))]
        for name, picture in zip(names, pictures, strict=True):
            (tmp_path / name).write_bytes(encoded(picture))
        answers = {
            side: [{"role": "assistant", "content": text}]
            for side, text in (("chosen", chosen), ("rejected", rejected))
        }
        asked = [{"role": "user", "content": question}]
        lines.append(json.dumps({"prompt": asked, "images": names, **answers}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    trainer = run_path(str(EXAMPLE))["main"](
        str(tmp_path / "pairs.jsonl"),
        str(tmp_path / "model"),
        str(tmp_path / "run"),
        use_cpu=True,
        report_to="none",
    )
    assert trainer._assembly().layout == SHARED.name
    trained = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    assert trained
    assert all("language_model" in name for name in trained)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    model.load_adapter(str(tmp_path / "run"))
    processor = AutoProcessor.from_pretrained(tmp_path / "run")
    assert type(processor).__name__ == "LlavaProcessor"
