"""An adapter and its base as one model, which opens without PEFT and needs no base beside it.

What both say is compared before anything is written. In float32 the two agree to rounding; where
weights are held in 16 bits the sum of base and adapter is rounded, and how far that moves what
the model says is measured and told. A head that shares its weight with an embedding gets one of its
own where the adapter changes one of them alone.

Not here: the command (``cli.merge``), adapters on their base (``adapters``).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.checkpoint.manifest import files_in
from counterpoint.checkpoint.saving import filled_with_model
from counterpoint.checkpoint.tree import plain_io_errors
from counterpoint.checkpoint.trial_save import generation_config_as_it_is
from counterpoint.config import CPOConfig
from counterpoint.console.bars import without_bars
from counterpoint.console.phases import phase
from counterpoint.data.processors import saved_as
from counterpoint.errors import ModelError, first_line
from counterpoint.forward.pair_forward import pair_forward
from counterpoint.log import quiet_calls
from counterpoint.models.adapters import (
    base_of,
    is_adapter,
    load_adapted,
    read_adapter,
    tokenizer_source,
)
from counterpoint.models.family import family_of
from counterpoint.models.loading import load_config, load_tokenizer
from counterpoint.models.preparing import embedding_rows
from counterpoint.records import TokenPair

AGREES, AGREES_NARROW = 1e-4, 0.5
"""Most nats a token by which a merged model may say something else, in float32 and in 16 bits. Of
the latter rounding makes some hundredths of a nat, and a wrong merge whole ones."""

PROMPT, COMPLETION, PAIRS = 8, 8, 4
"""Tokens of what both are compared on, at random, and how many pairs of it."""


@dataclass(frozen=True, slots=True)
class Merged:
    """A merged model, written.

    Args:
        base: hub id or folder of what the adapter was made for.
        dtype: precision of the merged weights.
        moved: largest difference of a completion's mean log-probability, in nats a token, between
            the adapter on its base and the merged model.
        files: names of what was written.
    """

    base: str
    dtype: str
    moved: float
    files: list[str]


def merge_adapter(source: str, args: CPOConfig, target: Path) -> Merged:
    """Write the one model that an adapter and its base are.

    Args:
        source: the adapter's folder; nothing in it is changed.
        args: ``model_init_kwargs`` say precision; as for ``adapters.load_adapted``.
        target: gets model, configuration and tokenizer, each file whole or not at all.

    Raises:
        ModelError: CP301 for what is no adapter, or cannot be loaded; CP307 for an adapter that
            cannot be merged, or that says something else once it is.
        SetupError: as ``load_adapted``.
        OSError: where the disk refuses.
    """
    _check_mergeable(source, args)
    tokenizer = load_tokenizer(tokenizer_source(source), args)
    model, moved = merged_model(source, args)
    with phase("writing the merged model"), filled_with_model(target) as staged, without_bars():
        with plain_io_errors(), generation_config_as_it_is(model, staged):
            model.save_pretrained(str(staged))
            saved_as(tokenizer).save_pretrained(str(staged))
        files = sorted(files_in(staged))
    return Merged(base_of(source), str(model.dtype).removeprefix("torch."), moved, files)


def merged_model(source: str, args: CPOConfig) -> tuple[Any, float]:
    """The one model that an adapter and its base are, in memory.

    Args:
        source: the adapter's folder.
        args: as for ``merge_adapter``.

    Returns:
        The model, and how far it moved, in nats a token, as in ``Merged``.

    Raises:
        ModelError: CP301 and CP307 as ``merge_adapter``.
        SetupError: as ``load_adapted``.
    """
    _check_mergeable(source, args)
    with phase("loading adapter and base"):
        adapted = load_adapted(source, args).eval()
    device = next(adapted.parameters()).device
    before = _says(adapted, device)
    with phase("merging"):
        model = _merged(adapted, source)
    moved = float((_says(model, device) - before).abs().max())
    if not moved <= (AGREES if model.dtype.itemsize >= torch.float32.itemsize else AGREES_NARROW):
        raise ModelError(
            "CP307",
            f"merged, the model says something else than the adapter {source} on its base: "
            f"{moved:.1e} nats a token. Keep the adapter as it is.",
        )
    return model, moved


def _check_mergeable(source: str, args: CPOConfig) -> None:
    if not is_adapter(source):
        raise ModelError("CP301", f"{source} is no folder of an adapter, so nothing is to merge.")
    base = base_of(source)
    if getattr(load_config(base, args), "quantization_config", None):
        raise ModelError(
            "CP307",
            f"the base {base} is quantised, and a merged weight would be rounded to its few bits. "
            "Merge into the model that it was made of: name that in base_model_name_or_path.",
        )
    if (asked := read_adapter(source, args)).is_prompt_learning:
        kind = asked.peft_type.value
        raise ModelError(
            "CP307", f"{source} is an adapter of kind {kind}, which has no weights to merge."
        )


def _merged(adapted: Any, source: str) -> Any:
    _untie(adapted.get_base_model())
    try:
        # PEFT warns of ties that may go wrong; whether they did is measured
        with quiet_calls(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            # safe: weights that are not finite are an error, and not written
            model = adapted.merge_and_unload(safe_merge=True)
    except (ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise ModelError(
            "CP307", f"the adapter {source} cannot be merged: {first_line(error)}"
        ) from error
    model.config.name_or_path = ""  # whose files no longer hold what the model is
    return model


def _untie(model: Any) -> None:
    """Give the head a weight of its own where an adapter lies on it or on the embedding alone."""
    pair = model.get_input_embeddings(), model.get_output_embeddings()
    read, written = (getattr(module, "base_layer", module) for module in pair)
    if written is None or (read, written) == pair or read.weight is not written.weight:
        return
    written.weight = nn.Parameter(written.weight.detach().clone())
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


@torch.no_grad()
def _says(model: Any, device: torch.device) -> Tensor:
    """Mean log-probabilities of a few completions of random tokens, ``[2 * pairs]``, in nats."""
    family, known = family_of(model.config), embedding_rows(model)
    least = min(known.read, known.written) if known is not None else 2
    generator = torch.Generator().manual_seed(0)
    layout, head = family.layouts[-1], family.find_head(model)
    found = []
    for row in range(PAIRS):
        ids = torch.randint(least, (PROMPT + 2 * COMPLETION,), generator=generator).tolist()
        prompt, chosen = ids[:PROMPT], ids[PROMPT : PROMPT + COMPLETION]
        start = ids[:1] if model.config.is_encoder_decoder else ()
        pair = TokenPair(prompt, chosen, ids[PROMPT + COMPLETION :], row, start=start)
        batch = layout.collate([pair]).to(device)
        with layout.running(model):
            logps = pair_forward(model, head, batch).logps
        found += [logps.chosen, logps.rejected]
    return torch.cat(found).double() / COMPLETION
