"""What a model's configuration asks for is bounded, and code that it names stays where it is."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import zeros
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import hub_kernels
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from counterpoint import CPOConfig, ModelError
from counterpoint.models import described
from counterpoint.models.adapters import load_adapted
from counterpoint.models.described import WeightsFound, refuse_code, refuse_unbounded
from counterpoint.models.loading import load_config, load_model, load_tokenizer
from tests.cli.conftest import Command, command, pattern, tree, workshop

__all__ = ["command", "pattern", "tree", "workshop"]


def options(**more: Any) -> CPOConfig:
    return CPOConfig(output_dir="out", use_cpu=True, **more)


@pytest.fixture
def model(workshop: Path) -> Path:
    """A tiny model with its tokenizer."""
    return workshop / "model"


def alter(folder: Path, name: str = "config.json", /, **changes: Any) -> None:
    file = folder / name
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | changes))


@pytest.fixture
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*words: object, **keywords: object) -> None:
        pytest.fail("something was built")

    for kind in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
        monkeypatch.setattr(kind, "from_pretrained", built)


# Numbers


@pytest.mark.parametrize("layers", [1025, 20_000, 300_000, 10**30])
@pytest.mark.parametrize("load", [load_config, load_tokenizer])
@pytest.mark.usefixtures("nothing_is_built")
def test_endless_layers_are_refused_at_once(
    model: Path, layers: int, load: Callable[[str, CPOConfig], object]
) -> None:
    alter(model, num_hidden_layers=layers)
    args, begun = options(), time.process_time()
    with pytest.raises(ModelError, match=rf"CP315 .*num_hidden_layers={layers:,} layers; no model"):
        load(str(model), args)
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 200),  # more than the file has tensors
        ("hidden_size", 10**6),
        ("vocab_size", 10**8),
        ("vocab_size", 2**24),  # times the width, more than the file can hold
        ("intermediate_size", 2**22),
        ("num_attention_heads", 2**20),
        ("num_experts", 2**30),
        ("head_dim", 2**17),
        ("max_position_embeddings", 2**40),
        ("num_labels", 10**9),
        ("sliding_window_size", 10**12),
        ("num_hidden_layers", "20000"),
        ("hidden_size", "x" * 10**6),
        ("vocab_size", {"a": 1}),
        ("num_hidden_layers", float("inf")),
        ("hidden_size", True),
        ("text_config", {"num_hidden_layers": 20_000}),
        ("text_config", {"deeper": [{"n_layer": 20_000}]}),
        ("decoder", {"decoder_layers": 20_000}),
        ("num_nextn_predict_layers", 20_000),
    ],
)
@pytest.mark.usefixtures("nothing_is_built")
def test_more_than_the_weights_or_any_model_hold_is_refused(
    model: Path, name: str, value: object
) -> None:
    alter(model, **{"hidden_size": 64, name: value})
    with pytest.raises(ModelError, match="CP315") as refused:
        load_config(str(model), options())
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    "content",
    [
        "[" * 10**5,
        '{"a": ' * 10**5,
        '{"model_type": "qwen2", "a": "' + " " * 2**24 + '"}',
    ],
    ids=["lists", "mappings", "length"],
)
@pytest.mark.usefixtures("nothing_is_built")
def test_a_configuration_too_deep_or_too_large_is_refused(model: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    with pytest.raises(ModelError, match="CP315"):
        load_config(str(model), options())


def test_without_weights_the_bounds_of_any_model_hold(model: Path) -> None:
    (model / "model.safetensors").unlink()
    alter(model, num_hidden_layers=200, layer_types=None)
    assert load_config(str(model), options(), from_scratch=True).num_hidden_layers == 200
    alter(model, num_hidden_layers=2000)
    with pytest.raises(ModelError, match="CP315"):
        load_config(str(model), options(), from_scratch=True)


def test_the_models_there_are_are_within_the_bounds() -> None:
    """Of every family the default; their names for layers, width and words are known."""
    looked_at, slipped = 0, []
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[kind]()
        except Exception:  # one that needs more than its defaults
            continue
        looked_at += 1
        plain = json.loads(config.to_json_string(use_diff=False))
        refuse_unbounded(plain, kind, None)
        names = type(config).attribute_map
        for name in ("num_hidden_layers", "hidden_size", "vocab_size"):
            own = names.get(name, name)
            if isinstance(plain.get(own), int):
                try:
                    refuse_unbounded(plain | {own: 10**9}, kind, None)
                    slipped.append((kind, own))
                except ModelError:
                    continue
    assert looked_at > 100
    assert slipped == []


@pytest.mark.parametrize(
    ("asked", "bytes_"),
    [
        # layers, width, inner, words, positions: published, in the precision of their files
        ((61, 7168, 18432, 129280, 163840), 689 * 10**9),  # DeepSeek-V3, 8 bits
        ((48, 5120, 16384, 202048, 10485760), 217 * 10**9),  # Llama 4 Scout
        ((126, 16384, 53248, 128256, 131072), 216 * 10**9),  # Llama 3.1 405B, 4 bits
        ((24, 896, 4864, 151936, 1048576), 10**9),  # Qwen2.5-0.5B
        ((2, 16, 11008, 32000, 131072), 10**5),  # a toy with leftovers of its family
    ],
)
def test_published_sizes_fit_their_files(asked: tuple[int, ...], bytes_: int) -> None:
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
    plain = dict(zip((*names, "max_position_embeddings"), asked, strict=True))
    refuse_unbounded(plain, "published", WeightsFound(bytes_, 1000))


@pytest.mark.parametrize("first", ["train", "doctor", "plan", "smoke", "evaluate", "tokens"])
def test_every_command_refuses_it(workshop: Path, command: Command, first: str) -> None:
    alter(workshop / "model", num_hidden_layers=300_000)
    where = ["model"] if first == "evaluate" else ["--model", "model"]
    begun = time.process_time()
    said = command(first, *where, "--dataset", "pairs.jsonl", "--use_cpu", "true")
    assert "CP315" in said.out + said.err
    assert said.code == 2
    assert time.process_time() - begun < 10


# Code


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Whatever transformers would fetch as a kernel; the package that does it seems installed."""
    asked: list[object] = []

    def fetch(*words: object, **keywords: object) -> None:
        asked.append(words)
        raise ImportError("fetched")

    monkeypatch.setattr(hub_kernels, "get_kernel", fetch)
    monkeypatch.setattr(hub_kernels, "load_and_register_attn_kernel", fetch)
    return asked


@pytest.mark.parametrize(
    "asked",
    [
        {"attn_implementation": "somebody/kernel"},
        {"attn_implementation": "kernels-community/flash-attn2"},
        {"attn_implementation": "paged|somebody/kernel@v1:f"},
        {"attn_implementation": "a_name_of_nobody"},
        {"attn_implementation": ["somebody/kernel"]},
        {"_attn_implementation": "somebody/kernel"},
        {"_attn_implementation_internal": "somebody/kernel"},
        {"attn_implementation": {"": "sdpa", "text_config": "somebody/kernel"}},
        {"text_config": {"_attn_implementation": "somebody/kernel"}},
        {"parts": [{"attn_implementation": "somebody/kernel"}]},
        {"experts_implementation": "somebody/kernel"},
        {"_experts_implementation": {"": "somebody/kernel"}},
        {"quantization_config": {"linear_implementation": "somebody/kernel"}},
        {"use_kernels": True},
        {"kernel_config": {"kernel_mapping": {"RMSNorm": "somebody/kernel:RMSNorm"}}},
    ],
    ids=str,
)
@pytest.mark.usefixtures("nothing_is_built")
def test_a_configuration_that_names_code_is_refused(
    model: Path, asked: dict[str, Any], fetched: list[object]
) -> None:
    alter(model, **asked)
    with pytest.raises(ModelError, match=r"CP311 .*none of transformers' own.*trust_remote_code"):
        load_config(str(model), options())
    assert fetched == []


@pytest.mark.usefixtures("nothing_is_built")
def test_a_generation_config_that_names_code_is_refused(model: Path) -> None:
    alter(model, "generation_config.json", attn_implementation="somebody/kernel")
    with pytest.raises(ModelError, match="CP311"):
        load_config(str(model), options())


@pytest.mark.parametrize(
    ("asked", "code"),
    [({"attn_implementation": "somebody/kernel"}, "CP311"), ({"n_layer": 300_000}, "CP315")],
)
@pytest.mark.usefixtures("nothing_is_built")
def test_a_model_of_the_hub_is_looked_at_likewise(
    model: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], code: str
) -> None:
    alter(model, **asked)
    monkeypatch.setattr(described, "cached_file", lambda *words, **more: str(model / "config.json"))
    with pytest.raises(ModelError, match=code):
        load_config("a/model", options())


@pytest.mark.parametrize(
    ("file", "asked"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}),
        ("config.json", {"text_config": {"auto_map": {"AutoConfig": "evil.C"}}}),
        ("config.json", {"quantization_config": {"quant_method": "evil", "modules": ["evil"]}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}),
        ("tokenizer_config.json", {"processor_class": "evil.P", "tokenizer_class": "evil.T"}),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "evil.P"}}),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "evil.P"}}),
        ("generation_config.json", {"custom_generate": "evil", "auto_map": {"a": "evil.G"}}),
    ],
    ids=str,
)
def test_no_file_of_a_model_has_its_code_imported(
    model: Path, monkeypatch: pytest.MonkeyPatch, file: str, asked: dict[str, Any]
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(model / "modules"))
    (model / "custom_generate").mkdir()
    for name in ("evil.py", "custom_generate/generate.py"):
        (model / name).write_text(f"open({str(model / 'it ran')!r}, 'w')")
    alter(model, file, **asked)
    for load in (load_config, load_tokenizer, load_model):
        with contextlib.suppress(ModelError, ValueError):
            load(str(model), options())
    assert not (model / "it ran").exists()
    assert "evil" not in sys.modules


def test_the_same_words_in_options_are_refused(fetched: list[object]) -> None:
    for name in ("attn_implementation", "experts_implementation"):
        with pytest.raises(ModelError, match="CP311 model_init_kwargs"):
            load_config("a/model", options(model_init_kwargs={name: "somebody/kernel"}))
    assert fetched == []


def test_who_trusts_the_code_gets_as_far_as_fetching_it(model: Path, fetched: list[object]) -> None:
    alter(model, attn_implementation="somebody/kernel")
    trusting = options(trust_remote_code=True)
    load_config(str(model), trusting)
    with pytest.raises(Exception, match="CP"):
        load_model(str(model), trusting)
    assert fetched


@pytest.mark.parametrize(
    "asked",
    [
        {"attn_implementation": "eager"},
        {"attn_implementation": None},
        {"_attn_implementation": {"": "sdpa", "vision_config": "flash_attention_2"}},
        {"experts_implementation": "grouped_mm"},
        {"cache_implementation": "hybrid"},
        {"use_kernels": False},
    ],
    ids=str,
)
def test_transformers_own_names_pass(asked: dict[str, Any]) -> None:
    refuse_code(asked, "a model", trusted=False)


# Adapters


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "evil"}, "CP311"),
        ({"megatron_core": "evil"}, "CP311"),
        ({"auto_mapping": {"parent_library": "evil", "base_model_class": "f"}}, "CP311"),
        ({"r": 10**12}, "CP315"),
        ({"rank_pattern": {"q_proj": 10**12}}, "CP315"),
        ({"layer_replication": [[0, 10**9]]}, "CP315"),
        ({"layer_replication": [[0, 600], [0, 600]]}, "CP315"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("nothing_is_built")
def test_an_adapters_configuration_is_held_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], code: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"a": zeros(4)}, folder / "adapter_model.safetensors")
    known = {"base_model_name_or_path": "a/base", "peft_type": "LORA", "r": 4}
    alter(folder, "adapter_config.json", **known | asked)
    with pytest.raises(ModelError, match=code):
        load_adapted(str(folder), options())
    assert "evil" not in sys.modules


def test_weights_are_counted_as_the_files_name_them(tmp_path: Path) -> None:
    save_file({"a": zeros(4), "b": zeros(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"c": zeros(4)}, tmp_path / "model-00002-of-00002.safetensors")
    save_file({"d": zeros(10**4)}, tmp_path / "other.safetensors")
    found = described.weights_of(tmp_path)
    assert found is not None
    assert found.tensors == 3
    assert found.bytes == sum(path.stat().st_size for path in tmp_path.glob("model-*"))
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"\xff" * 100)
    damaged = described.weights_of(tmp_path)
    assert damaged is not None
    assert damaged.tensors is None
