"""Files of other tools that begin with an adapter: which of both runs here they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from counterpoint.migrate.draft import Translation
from counterpoint.migrate.translation import translation_of

LLAMA_FACTORY = """\
stage: dpo
pref_loss: simpo
model_name_or_path: owner/base
adapter_name_or_path: saves/sft
lora_rank: 16
lora_alpha: 32
"""
AXOLOTL = """\
base_model: owner/base
rl: simpo
adapter: lora
lora_model_dir: outputs/sft
lora_r: 8
lora_alpha: 16
"""


def translated(folder: Path, text: str, **more: Any) -> Translation:
    (folder / "foreign.yaml").write_text(text)
    return translation_of(
        str(folder / "foreign.yaml"), dataset=["pairs.jsonl"], **{"model": None, **more}
    )


def options(made: Translation) -> dict[str, Any]:
    return {line.name: line.value for line in made.lines}


@pytest.mark.parametrize(
    ("text", "adapter"), [(LLAMA_FACTORY, "saves/sft"), (AXOLOTL, "outputs/sft")]
)
def test_an_adapter_is_trained_on_with_its_own_settings(
    tmp_path: Path, text: str, adapter: str
) -> None:
    made = translated(tmp_path, text)
    found = options(made)
    assert found["model"] == adapter
    assert not [name for name in found if name.startswith(("lora_", "create_"))]
    assert any("owner/base is not written" in note for note in made.notes)
    assert sum("keeps its own settings" in one for one in made.left) == 2


def test_a_new_one_is_put_on_top_where_the_tool_does(tmp_path: Path) -> None:
    found = options(translated(tmp_path, f"{LLAMA_FACTORY}create_new_adapter: true\n"))
    assert (found["model"], found["create_new_adapter"]) == ("saves/sft", True)
    assert (found["lora_r"], found["lora_alpha"]) == (16, 32)


def test_several_adapters_are_said_and_not_guessed(tmp_path: Path) -> None:
    made = translated(tmp_path, LLAMA_FACTORY.replace("saves/sft", "saves/sft, saves/more"))
    assert options(made)["model"] == "owner/base"
    assert any("a run begins with one adapter" in one for one in made.left)


def test_another_model_on_the_command_line_takes_the_place_of_both(tmp_path: Path) -> None:
    text = f"{LLAMA_FACTORY}create_new_adapter: true\n"
    found = options(translated(tmp_path, text, model="owner/other"))
    assert found["model"] == "owner/other"
    assert "create_new_adapter" not in found


def test_adapters_of_experts_keep_their_weights(tmp_path: Path) -> None:
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    text = AXOLOTL.replace("lora_model_dir: outputs/sft", f"lora_target_parameters: {names}")
    assert options(translated(tmp_path, text))["lora_target_parameters"] == names
    swift = f"rlhf_type: simpo\nmodel: owner/base\ntarget_parameters: {names}\nlora_dropout: 0\n"
    assert options(translated(tmp_path, swift))["lora_target_parameters"] == names


def test_rows_for_new_tokens_are_asked_for_by_the_same_name(tmp_path: Path) -> None:
    assert options(translated(tmp_path, f"{LLAMA_FACTORY}resize_vocab: true\n"))["resize_vocab"]
