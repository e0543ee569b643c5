"""What a model's ``config.json`` may ask for, before anything is built from it.

A configuration is a stranger's text. 300,000 layers take hours to build and to refuse, a width of a
billion takes the machine's memory, and an attention by the name of ``somebody/kernel`` is code of
the hub. So its numbers are held against what any model has (``MOST_LAYERS``, ...) and against its
own weight files, which a model cannot be much larger than; its names against transformers' own. An
adapter's configuration is looked at alike.

Numbers are known by the names that transformers' families give them, at any depth. No false alarm
is wanted: a product counts from ``ALWAYS`` parameters on, and a byte may hold ``PER_BYTE`` of them.

Not here: whether the model can be trained (``loading``), and code that transformers itself asks
about (``auto_map``).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import cached_file

from counterpoint.errors import ModelError

ADAPTER_FILE = "adapter_config.json"

MOST_BYTES = 2**24
"""Of a configuration's file."""

MOST_LAYERS = 1024
"""The deepest language models that were published have some hundreds."""

PER_BYTE = 8
"""Parameters that a byte of a weight file may hold: those of one bit."""

ALWAYS = 2**28
"""Parameters that are never too many, whatever the files hold: a gigabyte in float32."""

MOST_HEADER = 2**27
"""Bytes of a safetensors file's own description."""

_MOST_SQUARE = 2**14
_SQUARES = ("gpt_neo", "gpt_bigcode", "imagegpt", "openai-gpt", "clvp")
"""Kinds that keep a mask of positions by positions in every layer."""

_BUILT_IN = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
_MEGATRON = "megatron.core"


@dataclass(frozen=True, slots=True)
class Kind:
    """Numbers of one kind.

    Args:
        what: they count, in a message.
        names: under which a configuration has them.
        most: that any model may have.
    """

    what: str
    names: re.Pattern[str]
    most: int


def _kind(what: str, names: str, most: int) -> Kind:
    return Kind(what, re.compile(names), most)


_OF = r"(?:\w+_)?"
LAYERS = _kind(
    "layers", rf"{_OF}(?:num|n)_{_OF}(?:layers?|blocks)|(?:en|de)coder_layers|depth", MOST_LAYERS
)
WIDTH = _kind(
    "numbers a token",
    rf"{_OF}(?:hidden_size|d_model|n_embd|embed_dim|emb_dim|embedding_dim|embedding_size|"
    r"word_embed_proj_dim|model_dim)|dim",
    2**18,
)
VOCABULARY = _kind("tokens", rf"{_OF}vocab_size", 2**25)
HEADS = _kind("heads", rf"{_OF}(?:num|n)_{_OF}heads?|{_OF}attention_heads", 2**16)
EXPERTS = _kind("experts", rf"{_OF}(?:num|n)_{_OF}experts", 2**16)
INNER = _kind(
    "inner numbers",
    rf"{_OF}(?:intermediate_size|ffn_(?:hidden_)?(?:size|dim)|d_ff|dff|n_inner|mlp_dim|dim_ff|"
    r"d_inner|feed_forward_size|intermediate_size_mlp|lru_width)",
    2**22,
)
HEAD_WIDTH = _kind("numbers a head", rf"{_OF}(?:head_dim|d_head|d_kv|dim_head|head_size)", 2**16)
POSITIONS = _kind(
    "positions",
    rf"{_OF}(?:position_embeddings|positions|n_ctx|max_seq_len|seq_length|context_length)",
    2**27,
)
LABELS = _kind("labels", "num_labels", 2**20)
OTHERS = _kind("of them", rf"{_OF}(?:size|dim|rank|width|channels|multiplier|expand)", 2**25)

KINDS = (LAYERS, VOCABULARY, WIDTH, HEADS, EXPERTS, INNER, HEAD_WIDTH, POSITIONS, LABELS, OTHERS)
"""Every kind; a name belongs to the first that knows it."""


@dataclass(frozen=True, slots=True)
class WeightsFound:
    """What a model's files hold.

    Args:
        bytes: of them all.
        tensors: named in them; None where one of them cannot be read as safetensors.
    """

    bytes: int
    tensors: int | None


def read_described(source: str, folder: Path | None, revision: str = "main") -> Mapping[str, Any]:
    """A model's ``config.json`` as it is written; nothing is built.

    Args:
        source: hub id or folder.
        folder: where it is one.
        revision: of a hub id.

    Returns:
        Empty where there is none, or none that can be read: transformers says why.

    Raises:
        ModelError: CP315 for one too large or nested too deeply.
    """
    if folder is None:
        try:
            found = cached_file(source, "config.json", revision=revision)
        except Exception:  # of the network, of the hub: whoever loads it says which
            return {}
    else:
        found = str(folder / "config.json")
    return {} if found is None else read_object(Path(found))


def read_object(path: Path) -> Mapping[str, Any]:
    """A file that should hold a JSON object; empty where it does not.

    Args:
        path: of the file.

    Raises:
        ModelError: CP315 for one too large or nested too deeply.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError:
        return {}
    if len(content) > MOST_BYTES:
        raise ModelError("CP315", f"{path} is larger than {MOST_BYTES // 2**20} MiB.")
    try:
        described = json.loads(content)
    except RecursionError as error:
        raise ModelError("CP315", f"{path} is nested too deeply to be read.") from error
    except ValueError:
        return {}
    return described if isinstance(described, dict) else {}


def weights_of(folder: Path) -> WeightsFound | None:
    """What the weight files in a folder hold; None where there are none.

    Args:
        folder: of a model or an adapter.
    """
    # those that are loaded, by their usual names; else whichever there are
    found = [path for path in folder.glob("*.safetensors") if path.is_file()]
    whole = [path for path in found if "model" in path.name] or found
    if whole:
        counts = [_tensors(path) for path in whole]
        known = [count for count in counts if count is not None]
        return WeightsFound(sum(map(_size, whole)), sum(known) if known == counts else None)
    pickled = [path for ending in ("bin", "pt", "pth") for path in folder.glob(f"*.{ending}")]
    return WeightsFound(sum(map(_size, pickled)), None) if pickled else None


def refuse_unbounded(
    described: Mapping[str, Any], source: str, weights: WeightsFound | None
) -> None:
    """Refuse a configuration that asks for more than any model has, or than its files hold.

    Args:
        described: the configuration.
        source: hub id or folder, for messages.
        weights: of the model; None where they are not known, or not wanted.

    Raises:
        ModelError: CP315.
    """
    for part in _parts(described):
        numbers = [one for name, value in part.items() for one in _counted(name, value, source)]
        square = str(part.get("model_type", described.get("model_type"))) in _SQUARES
        for name, kind, number in numbers:
            most = min(kind.most, _MOST_SQUARE) if square and kind is POSITIONS else kind.most
            if number > most:
                raise _asks(source, name, number, f"{kind.what}; no model has more than {most:,}")
        if weights is not None:
            _hold_against(numbers, source, weights)


def refuse_code(described: Mapping[str, Any], source: str, *, trusted: bool) -> None:
    """Refuse a configuration that names code to fetch and run.

    Args:
        described: the configuration.
        source: hub id or folder, for messages.
        trusted: ``trust_remote_code``.

    Raises:
        ModelError: CP311.
    """
    if trusted:
        return
    for part in _parts(described):
        for name, value in part.items():
            if name.endswith(("implementation", "implementation_internal")):
                refuse_foreign(name, value, source)
            elif name in ("kernel_config", "use_kernels", "kernel_mapping") and value:
                raise _is_code(source, name, value)


def refuse_foreign(name: str, value: Any, source: str) -> None:
    """Refuse an implementation that is none of transformers' own.

    Args:
        name: "attn_implementation", or that of experts or anything else.
        value: its name, or names by part of the model; None for transformers' choice.
        source: who asks for it.

    Raises:
        ModelError: CP311.
    """
    own = {*_BUILT_IN, *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    for one in value.values() if isinstance(value, Mapping) else [value]:
        foreign = isinstance(one, str) and (
            one.removeprefix("paged|") not in own if "attn" in name else not one.isidentifier()
        )
        if foreign or not isinstance(one, str | None):
            raise _is_code(source, name, one)


def check_adapter(folder: Path, *, trusted: bool) -> None:
    """Refuse an adapter's configuration for what a model's is refused for.

    Args:
        folder: of the adapter.
        trusted: ``trust_remote_code``.

    Raises:
        ModelError: CP311, CP315.
    """
    described = read_object(folder / ADAPTER_FILE)
    core, mapping = described.get("megatron_core"), described.get("auto_mapping")
    library = mapping.get("parent_library") if isinstance(mapping, Mapping) else None
    if not trusted:
        if described.get("megatron_config") or core not in (None, _MEGATRON):
            raise _is_code(str(folder), "megatron_core", core)
        if library is not None and str(library).partition(".")[0] not in ("transformers", "peft"):
            raise _is_code(str(folder), "auto_mapping", library)
    weights = weights_of(folder)
    ranks = {"r": described.get("r"), **_mapping(described.get("rank_pattern"))}
    for name, rank in ranks.items():
        if isinstance(rank, int) and weights and rank > max(ALWAYS >> 12, PER_BYTE * weights.bytes):
            raise _asks(str(folder), name, rank, f"ranks; its files have {weights.bytes:,} bytes")
    layers = _replicated(described.get("layer_replication"))
    if layers > MOST_LAYERS:
        most = f"layers; no model has more than {MOST_LAYERS:,}"
        raise _asks(str(folder), "layer_replication", layers, most)


Number = tuple[str, Kind, int]
"""A name, what is counted under it, and how many."""


def _parts(described: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A configuration and those inside it, at any depth."""
    waiting: list[Any] = [described]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _counted(name: str, value: Any, source: str) -> Iterator[Number]:
    kind = next((kind for kind in KINDS if kind.names.fullmatch(name)), None)
    if kind is None:
        return
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, float) and one.is_integer():
            one = int(one)
        if isinstance(one, int) and not isinstance(one, bool):
            yield name, kind, one
        elif kind in (LAYERS, WIDTH, VOCABULARY) and one is not None:
            shown = json.dumps(one)[:60]
            raise ModelError(
                "CP315",
                f"config.json of {source}: {name}={shown} should be a whole number of {kind.what}.",
            )


def _hold_against(numbers: list[Number], source: str, weights: WeightsFound) -> None:
    """Refuse what the weight files have no room for."""
    layers = max((number for _, kind, number in numbers if kind is LAYERS), default=1)
    width = min((number for _, kind, number in numbers if kind is WIDTH and number > 0), default=1)
    for name, kind, number in numbers:
        if kind is LAYERS and weights.tensors is not None and number > weights.tensors:
            raise _asks(
                source, name, number, f"layers; its weight files hold {weights.tensors:,} tensors"
            )
        repeated = layers if kind in (WIDTH, INNER, EXPERTS, HEADS, HEAD_WIDTH, LAYERS) else 1
        times = 1 if kind is LAYERS else number
        # a table of positions is often computed and not stored
        room = max(ALWAYS * (4 if kind is POSITIONS else 1), PER_BYTE * weights.bytes)
        if times * repeated * width > room:
            raise _asks(
                source,
                name,
                number,
                f"{kind.what}, and so for {times * repeated * width:,} parameters at least; its "
                f"weight files have {weights.bytes:,} bytes",
            )


def _replicated(ranges: Any) -> int:
    """How many layers an adapter makes of its base's, from ranges of them."""
    pairs = [one for one in ranges if isinstance(one, list)] if isinstance(ranges, list) else []
    ends = [one for one in pairs if len(one) == 2 and all(isinstance(end, int) for end in one)]
    return sum(end - begin for begin, end in ends)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _tensors(path: Path) -> int | None:
    """How many tensors a file of safetensors names; None where it is none."""
    header = header_of(path)
    return None if header is None else len(header)


def header_of(path: Path) -> Mapping[str, Any] | None:
    """What a file of safetensors says of itself: tensors by name; None where it is none.

    Args:
        path: of the file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MOST_HEADER, os.fstat(file.fileno()).st_size):
                return None
            header = json.loads(file.read(length))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def _asks(source: str, name: str, number: int, what: str) -> ModelError:
    return ModelError(
        "CP315",
        f"the configuration of {source} asks for {name}={number:,} {what}. Compare it with the "
        "page of the model; a file that was damaged or made up asks for anything.",
    )


def _is_code(source: str, name: str, value: Any) -> ModelError:
    return ModelError(
        "CP311",
        f"{source} asks for {name}={json.dumps(value, default=str)[:80]}, which is none of "
        "transformers' own: it would be code of the hub, which would run here with all your "
        "rights. Take eager, sdpa or another of transformers' own, or set trust_remote_code "
        "(--trust_remote_code) if you have read it.",
    )
