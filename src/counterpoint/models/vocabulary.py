"""Rows for tokens that a model does not have: its embedding and its head, made larger.

A new row is the mean of those that there were, the same on every machine: a resumed run, and
whoever opens an adapter, must find what the run began with. With an adapter the rows of new tokens
train beside it (PEFT's ``trainable_token_indices``), and nothing else of the embedding does.

Not here: which tokens a tokenizer has (``loading``), adapters on their base (``adapters``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.errors import ModelError
from counterpoint.log import quiet_calls
from counterpoint.model_seams import class_of
from counterpoint.models.described import ADAPTER_FILE, MOST_HEADER, read_object
from counterpoint.tensor_parts import is_plain

AT_ONCE = 4096
"""Rows that are added up at a time, in float64."""

_OWN_TOKENS = "Use its own tokenizer, or tokens of it that your texts do not use."
_RESIZE = (
    "Resize the model that it was made of (model.resize_token_embeddings) and save it, or use its "
    "own tokenizer."
)

_EMBEDS = re.compile("embed|shared|wte|lm_head")
"""Parts of the names that families give embeddings and heads."""


def grow_embeddings(model: Any, rows: int) -> int:
    """Give a model a row for each token, where it has fewer.

    Args:
        model: of transformers, without an adapter; weights on the ``meta`` device get shapes alone.
        rows: that the embedding should have at least.

    Returns:
        How many rows were added.

    Raises:
        ModelError: CP341 for embeddings that cannot be made larger.
    """
    before = _embeddings(model)
    had = before[0].weight.shape[0]
    if rows <= had:
        return 0
    _check_growable(model, before)
    with quiet_calls(), _tied_as_they_are(model):
        model.resize_token_embeddings(rows, mean_resizing=False)
    grown = {id(one.weight): one for one in _embeddings(model)}  # a tied head is the embedding
    with torch.no_grad():
        for module in grown.values():
            if module.weight.is_meta:
                continue
            module.weight[had:] = _mean(module.weight[:had])
            bias = getattr(module, "bias", None)
            if isinstance(bias, Tensor):
                bias[had:] = bias[:had].double().mean().to(bias.dtype)
    return int(rows - had)


def check_rows(model: Any, rows: int) -> None:
    """Refuse a model whose embedding and head cannot both have a row for each token.

    Args:
        model: of transformers, without an adapter; weights may be on the ``meta`` device.
        rows: of the highest new token, and those below it.

    Raises:
        ModelError: CP341.
    """
    found = _embeddings(model)
    if any(one.weight.shape[0] < rows for one in found):
        _check_growable(model, found)


def check_tied(model: Any) -> None:
    """Refuse a model whose files hold a head of its own where its configuration has none.

    An adapter is described by the configuration, before there are weights; PEFT goes by it, too.

    Args:
        model: loaded, without an adapter.

    Raises:
        ModelError: CP341.
    """
    found = _embeddings(model)
    same = found[0].weight is found[-1].weight
    if same or found[-1].weight.is_meta or not hasattr(model, "get_expanded_tied_weights_keys"):
        return
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    name = next(name for name, module in model.named_modules() if module is found[-1])
    if f"{name}.weight" in {*tied, *tied.values()}:
        how = f"has a weight of its own as {name}, which its configuration ties to its embedding"
        _refuse(
            model,
            how,
            "Name embed_tokens and lm_head in lora_modules_to_save, or leave lora_r out.",
        )


def with_rows(config: Any, rows: int) -> Any:
    """A model's configuration with a row for each token.

    Args:
        config: of the model; changed where it names fewer.
        rows: that the embedding should have at least.
    """
    text = config.get_text_config()
    text.vocab_size = max(int(text.vocab_size), rows)
    return config


def embedding_names(model: nn.Module) -> list[str]:
    """Names of the modules that have a row for each token: the embedding, and a head of its own.

    Args:
        model: of transformers, without an adapter.
    """
    found = _embeddings(model)
    tied = len(found) > 1 and (
        found[0].weight is found[1].weight or _ties(model, found[1])  # not yet, on the meta device
    )
    wanted = {id(one) for one in (found[:1] if tied else found)}
    return [name for name, module in model.named_modules() if id(module) in wanted]


def covered(model: Any, names: Iterable[str], asked: Iterable[str]) -> list[str]:
    """Names of modules that an option names by their ends, or all that are read in their place.

    Args:
        model: of transformers, without an adapter.
        names: of modules.
        asked: what the option holds.
    """
    wanted = tuple(asked)

    def named(name: str) -> bool:
        return any(name == one or name.endswith(f".{one}") for one in wanted)

    return [one for one in names if named(one) or _all(named, read_instead(model, one))]


def read_instead(model: Any, name: str) -> list[str]:
    """Modules with the weight of an embedding that is not read itself; none where it is.

    Encoder and decoder of transformers read embeddings of their own, which share its weight.

    Args:
        model: of transformers, without an adapter.
        name: of an embedding or a head.
    """
    own = model.get_submodule(name)
    if not getattr(model.config, "is_encoder_decoder", False) or own is not _embeddings(model)[0]:
        return []
    every, found = [*model.named_modules(remove_duplicate=False)], []
    for part in (model.get_encoder(), model.get_decoder()):
        # by its place: an adapter goes to one, even where all of them hold the same module
        place, reading = next(n for n, one in every if one is part), part.get_input_embeddings()
        found += [n for n, one in every if one is reading and n.startswith(f"{place}.")]
    return [] if name in found else found


def rows_of_adapter(folder: Path) -> int:
    """How many rows the embedding under an adapter must have, as its files say; 0: nothing of it.

    Args:
        folder: of the adapter.
    """
    named = read_object(folder / ADAPTER_FILE).get("trainable_token_indices")
    lists = named.values() if isinstance(named, Mapping) else [named]
    ids = [one for some in lists if isinstance(some, list) for one in some]
    wanted = [one + 1 for one in ids if isinstance(one, int)]
    return max([0, *wanted, *(rows for _, rows in _rows_in_file(folder))])


def brings_rows(folder: Path) -> bool:
    """Whether an adapter's file holds the embedding that it lies on, as PEFT saves resized ones.

    Args:
        folder: of the adapter.
    """
    named = read_object(folder / ADAPTER_FILE).get("modules_to_save")
    own = tuple(f".{one}.weight" for one in (named if isinstance(named, list) else ()))
    # of a layer that trains whole its new weight alone is the adapter's
    return any(
        not name.endswith((".modules_to_save.weight", *own)) for name, _ in _rows_in_file(folder)
    )


def new_ids(tokenizer: Any, own: Mapping[str, int] | None, rows: int, *, named: str) -> list[int]:
    """Ids of the tokens that a model was not trained on.

    Args:
        tokenizer: of the run.
        own: tokens and ids of the model's own tokenizer; None where it is the run's, or has none.
        rows: of the model's embedding.
        named: the tokenizer, in a message.

    Raises:
        ModelError: CP342 for a tokenizer that has other ids for the model's own tokens.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    known = own or {}
    for token in sorted(vocabulary.keys() & known.keys(), key=vocabulary.__getitem__):
        if vocabulary[token] != known[token]:
            raise ModelError(
                "CP342",
                f"{named} does not add to the model's own tokenizer: {token!r} is token "
                f"{known[token]} there and {vocabulary[token]} here, so that every row would mean "
                "another text. Add tokens to the model's own (tokenizer.add_tokens), and leave "
                "its others as they are.",
            )
    added = {one for token, one in vocabulary.items() if own is not None and token not in known}
    return sorted(added | {one for one in vocabulary.values() if one >= rows})


def is_embedding(name: str) -> bool:
    """Whether a name of a module, or of a weight of it, is that of an embedding or head.

    Args:
        name: as families give them.
    """
    return _EMBEDS.search(name) is not None


def _all(holds: Callable[[str], bool], names: Sequence[str]) -> bool:
    """Whether there are any, and it holds of each."""
    return bool(names) and all(map(holds, names))


def _embeddings(model: Any) -> list[Any]:
    read, written = model.get_input_embeddings(), model.get_output_embeddings()
    return [read] if written is None or written is read else [read, written]


@contextmanager
def _tied_as_they_are(model: Any) -> Iterator[None]:
    """While open, to tie a model's weights leaves apart what is apart.

    A resizing ties again, by the configuration. Files may hold a head of its own in spite of it (T5
    1.1), which would become the embedding.
    """
    tied = getattr(model, "all_tied_weights_keys", None)
    if not isinstance(tied, Mapping):
        yield
        return
    weights = dict(model.named_parameters(remove_duplicate=False))
    model.all_tied_weights_keys = {
        one: other
        for one, other in tied.items()
        # without weights nothing is tied yet
        if weights.get(one) is weights.get(other) or weights[other].is_meta
    }
    model.tie_weights = partial(model.tie_weights, recompute_mapping=False)
    try:
        yield
    finally:
        del model.tie_weights


def _ties(model: Any, head: Any) -> bool:
    """Whether a head is its model's embedding once weights are there; before, nothing is tied."""
    tied = getattr(model, "all_tied_weights_keys", None)
    if not isinstance(tied, Mapping):
        return bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    # some classes cannot tie, whatever their configuration says
    name = next(name for name, module in model.named_modules() if module is head)
    return f"{name}.weight" in {*tied, *tied.values()}


def _check_growable(model: Any, found: Sequence[Any]) -> None:
    """Raise CP341 for the first fact that forbids rows for new tokens."""
    read, written = (int(one.weight.shape[0]) for one in (found[0], found[-1]))
    if not getattr(model.config, "share_encoder_decoder_embeddings", True):
        _refuse(model, "reads one vocabulary and writes another", _RESIZE)
    if not all(_is_growable(one.weight) for one in found):
        how = "holds embedding or head quantised, or as something else than a matrix"
        _refuse(model, how, _RESIZE)
    if read != written:
        _refuse(model, f"reads {read:,} tokens and writes {written:,}", _OWN_TOKENS)
    if getattr(model.config.get_text_config(), "hidden_size_per_layer_input", 0):
        _refuse(model, "reads each token in every layer, from a second embedding", _OWN_TOKENS)


def _refuse(model: Any, why: str, way: str) -> None:
    name = class_of(model).__name__
    text = f"{name} {why}, so that no row can be added for a new token. {way}"
    raise ModelError("CP341", text)


def _is_growable(weight: Tensor) -> bool:
    return weight.dim() == 2 and weight.is_floating_point() and is_plain(weight)


def _mean(rows: Tensor) -> Tensor:
    """The mean of rows, ``[width]``; of float64 sums, whose order does not show in 32 bits."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for first in range(0, rows.shape[0], AT_ONCE):
        total += rows[first : first + AT_ONCE].double().sum(0)
    return (total / rows.shape[0]).to(rows.dtype)


def _rows_in_file(folder: Path) -> Iterator[tuple[str, int]]:
    """Names and rows of the embeddings and heads that an adapter's file holds."""
    try:
        with (folder / "adapter_model.safetensors").open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, MOST_HEADER)))
        shapes = {name: one["shape"] for name, one in header.items() if name != "__metadata__"}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return  # whoever opens it says what is wrong
    for name, shape in shapes.items():
        of_tokens = is_embedding(name) and len(shape) == 2
        if of_tokens and name.endswith(".weight") and "lora_" not in name:
            yield name, int(shape[0])
        elif of_tokens and "lora_embedding_A" in name:
            yield name, int(shape[1])
