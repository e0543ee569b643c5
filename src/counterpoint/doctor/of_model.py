"""Checks of a model: its weights, what of them trains, and what it says of a few pairs.

Weights are looked at where they are, nothing is changed, and no gradient is taken.

Not here: loading (``models.loading``), the head's and the layout's own proofs on the run's
first pairs (``forward``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from counterpoint.config import CPOConfig
from counterpoint.doctor.findings import Finding, find, from_error
from counterpoint.doctor.of_objective import of_reward
from counterpoint.doctor.survey import TokenFacts
from counterpoint.errors import ConfigError, ModelError
from counterpoint.forward.alone import logits_alone
from counterpoint.forward.dropout import dropout_rates
from counterpoint.forward.layout_choice import first_choice, not_possible
from counterpoint.forward.layouts import AUTO
from counterpoint.forward.modes import in_evaluation_mode
from counterpoint.forward.rows import carries_loss
from counterpoint.model_seams import attention_of
from counterpoint.models.family import family_of, why_not_trained
from counterpoint.models.preparing import embedding_rows
from counterpoint.models.quantized import prepare_quantized, products_in, quantized_layers
from counterpoint.planner.machine import show_bytes
from counterpoint.records import TokenPair
from counterpoint.rounding import held_share
from counterpoint.tensor_parts import entries_of, floating_parts, is_plain, tensor_bytes

MOST_HELD = 0.1
"""Share of weights that may be unable to move without a word."""

PROBE_PAIRS, PROBE_TOKENS = 4, 512
"""Pairs that the model is asked about, and tokens of both their sequences in all."""

FEWEST_TOKENS = 128
"""Tokens below which an answer says nothing, so that the model is not asked at all."""

PROBE_WORK = 1e12
"""Parameters times tokens that a check may cost: some ten seconds on two cores."""

SAMPLED = 2**20
"""Weights of a tensor that tell its spread and its share of unmovable weights."""

GUESSING = 0.9
"""Share of ln(vocabulary) from which an NLL is that of guessing."""

FRESH = 0.03
"""How far, relatively, a matrix's spread may be from its initial one to look untrained."""


def of_model(
    model: Any, args: CPOConfig, *, peft_config: Any = None, tokens: TokenFacts | None = None
) -> Iterator[Finding]:
    """What of a model would not train, or not be worth it.

    Args:
        model: a causal language model, before an adapter is put on.
        args: the run's options.
        peft_config: the adapter that will be; None to train the model as it is.
        tokens: of the training set; None if there are none to ask the model about.
    """
    refusal = why_not_trained(model)
    if refusal:
        yield find("CP306", refusal)
        return
    broken = []
    for finding in [*_weights(model), *_head(model)]:
        broken += [finding.code] if finding.code in ("CP304", "CP308") else []
        yield finding
    yield from _quantized(model, args, peft_config)
    yield from _training(model, args, peft_config)
    yield from _dropout(model, args, peft_config)
    yield from _layout(model, args)
    if tokens is not None:
        yield from _ids(model, tokens)
        if not broken:
            yield from _said(model, args, tokens)


# Weights


def _weights(model: nn.Module) -> Iterator[Finding]:
    broken, flat = [], []
    for name, weight in model.named_parameters():
        parts = list(floating_parts(weight))
        if not all(map(_is_finite, parts)):
            broken.append(name)
        # an adapter's second half starts at zero, biases at zero and norms at one
        elif parts and is_plain(weight) and weight.dim() > 1 and "lora_" not in name:
            flat += [name] if _is_constant(parts[0]) else []
    if broken:
        yield find(
            "CP308",
            f"{_listed(broken)}: NaN or infinite.",
            fix="from_pretrained(..., dtype='float32')  # of the original weights",
        )
    if flat:
        yield find("CW321", f"{_listed(flat)}: a single value throughout.")
    if not broken and _is_fresh(model):
        yield find(
            "CW322",
            "all matrices are spread as the configuration's initializer_range says, and all norms "
            "are 1.",
        )


def _is_finite(weight: Tensor) -> bool:
    # a sum is finite only if its terms are; it may overflow by itself, which the second look tells
    return bool(weight.sum(dtype=torch.float32).isfinite()) or bool(weight.isfinite().all())


def _is_constant(weight: Tensor) -> bool:
    flat = weight.flatten()
    same = len(flat) > 1 and bool((flat[:SAMPLED] == flat[0]).all())
    return same and bool((flat == flat[0]).all())


def _sample(weight: Tensor) -> Tensor:
    """At most ``SAMPLED`` of a tensor's weights, evenly spread."""
    flat = weight.detach().flatten()
    return flat[:: max(1, math.ceil(len(flat) / SAMPLED))]


def _is_fresh(model: nn.Module) -> bool:
    spread = getattr(model.config, "initializer_range", None)
    if not isinstance(spread, float) or not spread:
        return False
    matrices = 0
    for name, weight in model.named_parameters():
        if weight.is_meta or "lora_" in name or not weight.is_floating_point():
            continue
        if not is_plain(weight):  # quantized: nobody does that to what has not been trained
            return False
        if weight.dim() == 1 and "norm" in name and name.endswith("weight"):
            # Gemma's norms multiply by 1 + weight
            if not bool((weight == weight[0]).all()):
                return False
        elif weight.dim() == 2 and weight.numel() >= 256:
            matrices += 1
            # a spread of n draws is known to 1 / sqrt(2n); an unused row of zeros is not a draw
            drawn = _sample(weight).float()
            close = max(FRESH, 4 / math.sqrt(2 * len(drawn)))
            if abs(float(drawn.std()) / spread - 1) > close:
                return False
    return matrices > 1


def _head(model: nn.Module) -> Iterator[Finding]:
    try:
        family_of(model.config).find_head(model)
    except ModelError as error:
        yield from_error(error)


# What trains


def _quantized(model: nn.Module, args: CPOConfig, peft_config: Any) -> Iterator[Finding]:
    has_adapter = peft_config is not None or hasattr(model, "peft_config")
    try:
        prepare_quantized(model, args, adapted=has_adapter)
    except (ConfigError, ModelError) as error:
        yield from_error(error)


def _training(model: nn.Module, args: CPOConfig, peft_config: Any) -> Iterator[Finding]:
    if peft_config is not None:
        yield from _adapter(model, peft_config)
        return
    names = dict(model.named_parameters())
    frozen = [name for name, weight in names.items() if not weight.requires_grad]
    trained = [weight for weight in names.values() if weight.requires_grad]
    if not trained:
        yield find(
            "CP305",
            f"none of {len(names):,} parameters requires a gradient.",
            fix="model.requires_grad_(True)",
        )
        return
    if frozen and getattr(model, "peft_config", None) is None:
        count = sum(names[name].numel() for name in frozen)
        share = count / max(1, sum(weight.numel() for weight in names.values()))
        yield find(
            "CW323",
            f"{share:.1%} of the weights are frozen: {_listed(frozen)}.",
            fix="model.requires_grad_(True)",
        )
    if getattr(args, "stochastic_rounding", False) or args.learning_rate == 0:
        return
    half = [w for w in trained if w.dtype in (torch.bfloat16, torch.float16) and not w.is_meta]
    stuck = sum(held_share([_sample(w)], args.learning_rate) * w.numel() for w in half)
    share = stuck / sum(weight.numel() for weight in trained)
    if share > MOST_HELD:
        kinds = sorted({str(weight.dtype).removeprefix("torch.") for weight in half})
        yield find(
            "CW325",
            f"{share:.1%} of the weights under training ({', '.join(kinds)}) are unchanged by a "
            f"step of {args.learning_rate:g}.",
            fix="dtype: float32",
        )


def _adapter(model: nn.Module, peft_config: Any) -> Iterator[Finding]:
    wanted = getattr(peft_config, "target_modules", None)
    names = [name for name, _ in model.named_modules() if name]
    if getattr(model, "peft_config", None) is not None:
        yield find(
            "CP307", "the model has an adapter already.", fix="model = model.merge_and_unload()"
        )
    elif wanted and wanted != "all-linear":
        yield from _targets(wanted, names)
    for module in getattr(peft_config, "modules_to_save", None) or ():
        if not _matched(module, names):
            yield find("CW324", f"modules_to_save: {module} matches nothing.")


def _targets(wanted: Any, names: Sequence[str]) -> Iterator[Finding]:
    fix = "lora_target_modules: all-linear"
    if isinstance(wanted, str):
        if not any(_full_match(wanted, name) for name in names):
            yield find("CP307", f"target_modules {wanted!r} matches no layer.", fix=fix)
        return
    unmatched = sorted(target for target in wanted if not _matched(target, names))
    if not unmatched:
        return
    if len(unmatched) == len(wanted):
        yield find("CP307", f"no layer matches target_modules {', '.join(unmatched)}.", fix=fix)
    else:
        yield find("CW324", f"target_modules: {', '.join(unmatched)} match no layer.", fix=fix)


def _matched(target: str, names: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in names)


def _full_match(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error:
        return False


def _dropout(model: nn.Module, args: CPOConfig, peft_config: Any) -> Iterator[Finding]:
    if args.disable_dropout:
        return
    rates = {
        (name or "the model") if key == "p" else f"{name}.{key}": getattr(module, key)
        # modules of their own first, of several that drop as much the first is named
        for name, module, key in sorted(dropout_rates(model), key=lambda place: place[2] != "p")
    }
    if getattr(peft_config, "lora_dropout", 0.0):
        rates["the adapter"] = peft_config.lora_dropout
    if rates:
        worst = max(rates, key=lambda name: rates[name])
        yield find(
            "CW326",
            f"{len(rates)} places, up to {rates[worst]:g} in {worst}.",
            fix="disable_dropout: true",
        )


def _layout(model: nn.Module, args: CPOConfig) -> Iterator[Finding]:
    # the trainer turns dropout off, if it does, before it asks
    stays = not args.disable_dropout
    possible = family_of(model.config).layouts
    first, reason = first_choice(model, args.layout, dropout_stays=stays, possible=possible)
    layout = f"{first.name}, if it agrees with {possible[-1].name} on the first pairs"
    if args.layout == AUTO and first.is_timed(args.device.type):
        layout += " and takes no longer"
    if reason is not None:
        layout = f"{first.name}: {reason}"
    if args.layout not in (AUTO, first.name):
        yield find("CP104", not_possible(args.layout, reason), fix=f"layout: {AUTO}")
    attention = attention_of(model)
    weights = sum(entries_of(weight) for weight in model.parameters())
    yield find(
        "CN321",
        f"{type(model).__name__}, {weights:,} weights{_of_quantized(model)}; attention "
        f"{attention}; layout {layout}.",
    )


def _of_quantized(model: nn.Module) -> str:
    """How many layers are quantised, and what they take and multiply in; "" where none is."""
    layers = [layer for _, layer in quantized_layers(model)]
    if not layers:
        return ""
    size = sum(tensor_bytes(weight) for layer in layers for weight in layer.parameters())
    dtypes = {str(products_in(layer)).removeprefix("torch.") for layer in layers}
    return (
        f", {len(layers)} layers of them quantised to {show_bytes(size)}, products in "
        f"{' and '.join(sorted(dtypes))}"
    )


# What it says


def _ids(model: Any, tokens: TokenFacts) -> Iterator[Finding]:
    for highest, row, embedding in _beyond(model, tokens):
        yield find(
            "CP303",
            f"token id {highest:,} is used, but the embedding has {embedding:,} rows.",
            rows=[row],
            fix="model.resize_token_embeddings(len(tokenizer))",
        )
        return


def _beyond(model: Any, tokens: TokenFacts) -> Iterator[tuple[int, int, int]]:
    """Ids that an embedding does not have, their rows, and how many it has; the highest first."""
    known = embedding_rows(model)
    if known is None:
        return
    for part, (highest, row) in sorted(tokens.highest.items(), key=lambda one: -one[1][0]):
        # a prompt ends with what the decoder begins with
        embedding = max(known) if part == "prompt" else known.written
        if highest >= embedding:
            yield highest, row, embedding


@dataclass(frozen=True, slots=True)
class Said:
    """What a model says of a few completions.

    Args:
        nll: nats a token, over all of them.
        vocabulary: entries of a logit row.
    """

    nll: float
    vocabulary: int


def _said(model: Any, args: CPOConfig, tokens: TokenFacts) -> Iterator[Finding]:
    longest = int(max(tokens.chosen.max(), tokens.rejected.max()))
    if any(_beyond(model, tokens)):
        return
    said = ask(model, tokens.pairs)
    if said is None:
        yield find("CN322", "not asked: the model is too large to be run for a check.")
        return
    guessing = math.log(said.vocabulary)
    yield find(
        "CN322",
        f"NLL {said.nll:.3f} nats a token over a few completions; guessing gives {guessing:.3f}.",
    )
    if not said.nll < GUESSING * guessing:
        yield find(
            "CW327",
            f"NLL {said.nll:.3f} nats a token; guessing among {said.vocabulary:,} tokens gives "
            f"{guessing:.3f}.",
        )
    yield from of_reward(args, nll=said.nll, longest=longest)


def ask(model: Any, pairs: Sequence[TokenPair]) -> Said | None:
    """The NLL of a few completions, cut where they are long.

    Args:
        model: left as it was.
        pairs: a few.

    Returns:
        None if there is nothing to ask, or asking would take long.
    """
    weights = sum(weight.numel() for weight in model.parameters())
    budget = min(PROBE_TOKENS, int(PROBE_WORK / max(1, weights)))
    device = next(model.parameters()).device
    if not pairs or device.type == "meta" or budget < FEWEST_TOKENS:
        return None
    each = budget // (2 * min(len(pairs), PROBE_PAIRS))
    total, count, vocabulary = 0.0, 0, 2
    with in_evaluation_mode(model), torch.no_grad():
        for pair in pairs[:PROBE_PAIRS]:
            for completion, given in zip(pair.completions[:2], pair.givens[:2], strict=True):
                # at least half of what may be read is for the completion
                before = list(pair.prompt)[-max(1, each - len(completion), each // 2) :]
                some = completion[: max(1, max(2, each) - len(before))]
                logits, ids = logits_alone(model, replace(pair, prompt=before), some)
                kept = torch.from_numpy(carries_loss(len(completion), given))
                kept = kept[: len(some)][-len(ids) :].to(device)
                if not len(ids) or not bool(kept.any()):
                    continue
                logps = logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
                total -= float(logps[kept].sum())
                count += int(kept.sum())
                vocabulary = logits.shape[-1]
    return Said(total / count, vocabulary) if count > 0 else None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
