"""A saved folder through llama.cpp's own converter: every tensor of the file is the run's.

The converter is no package. The variable LLAMA_CPP names a folder of llama.cpp; docs/gguf.md says
where one comes from.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from counterpoint import CPOConfig
from counterpoint.models.loading import load_model
from tests.cli.conftest import PAIRS, Command, write_pairs
from tests.models_on_the_spot import make_model

CONVERTER = Path(os.environ.get("LLAMA_CPP") or ".") / "convert_hf_to_gguf.py"
TRAIN = ("train", "--model", "tiny", "--dataset", "pairs.jsonl", "--output_dir", "run")
FEW = ("--max_steps", "2", "--per_device_train_batch_size", "2", "--learning_rate", "1e-2")

pytestmark = pytest.mark.skipif(
    not CONVERTER.is_file(), reason="LLAMA_CPP names no folder of llama.cpp (docs/gguf.md)"
)


def as_llama_cpp_turns(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries or keys in the order of its rotation: halves of a head become neighbours."""
    halves = weight.view(heads, 2, -1, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def test_a_run_becomes_the_gguf_file_that_holds_its_weights_and_vocabulary(
    llama_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_model("llama", vocab_size=len(llama_tokenizer))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained("tiny")
    llama_tokenizer.save_pretrained("tiny")
    write_pairs(tmp_path / "pairs.jsonl", PAIRS)
    said = command(*TRAIN, *FEW)
    assert said.code == 0, said.err
    words = ["run", "--outfile", "run.gguf", "--outtype", "f16"]
    subprocess.run([sys.executable, str(CONVERTER), *words], check=True, capture_output=True)

    saved = load_file("run/model.safetensors")
    assert any(not torch.equal(saved[name], before[name]) for name in saved)
    file = gguf.GGUFReader("run.gguf")
    filed = {one.name: np.array(one.data).reshape(one.shape[::-1]) for one in file.tensors}
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    turned = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    seen = set()
    for name, value in saved.items():
        called = names.get_name(name, try_suffixes=(".weight", ".bias"))
        heads = next((count for part, count in turned.items() if part in name), None)
        wanted = value.float() if heads is None else as_llama_cpp_turns(value.float(), heads)
        wanted = wanted if value.dim() == 1 else wanted.half()
        assert torch.equal(torch.tensor(filed[called]), wanted), name
        seen.add(called)
    assert seen == set(filed)
    field = file.fields["tokenizer.ggml.tokens"]
    tokens = [bytes(field.parts[place]).decode() for place in field.data]
    ours = AutoTokenizer.from_pretrained("run")
    assert tokens == ours.convert_ids_to_tokens(range(len(ours)))

    again = load_model("run.gguf", CPOConfig(output_dir="out", report_to="none", use_cpu=True))
    for name, value in again.state_dict().items():
        same = saved[name].float() if value.dim() == 1 else saved[name].half().float()
        assert torch.equal(value.float(), same), name
