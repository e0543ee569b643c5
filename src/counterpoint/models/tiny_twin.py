"""A tiny twin of a model: the same class and vocabulary, few narrow layers, random weights.

1. The twin is made from the model's configuration alone, by what its fields are called: widths
   shrink in proportion, heads to four, experts to four, windows to a few positions. Everything
   else stays, the vocabulary above all, so that the run's own token ids fit. A model that is
   narrow already keeps its widths.
2. Of the layers the first are kept, as many as it takes to have one of every kind.
3. The tower of a model that sees is shrunk likewise, by its own width and layers. What is counted
   in pixels and patches stays, so that the run's own processor fits.
4. A twin is only given out after it was built, was found small, and has run on a few tokens;
   a configuration that cannot be shrunk like this is an error with a code.

Not here: the model itself and its weights (``models.loading``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from counterpoint.config import CPOConfig
from counterpoint.errors import ModelError, kind_and_line
from counterpoint.forward.seeing import PARTS_THAT_SEE, weights_that_see
from counterpoint.forward.sights import sight_of
from counterpoint.models.loading import random_model
from counterpoint.models.preparing import embedding_rows
from counterpoint.models.weights import WeightsPolicy, init_keywords

WIDTH = 64
"""Width of a twin's hidden states."""

HEADS = 4
"""Most attention heads of a twin's layer."""

HEAD = WIDTH // HEADS
ROPE = 8
"""Width of a head, and of the rotated part where it is a part of its own (latent attention)."""

FEW = 16
"""Most of what only has to be there: ranks, states, chunks."""

WINDOW = 32
"""Most positions of a twin's window: so few that its rows are longer."""

EXPERTS, CHOSEN = 4, 2
"""Most experts of a twin's layer, and most of them that a token is sent to."""

MOST_LAYERS = 24
"""Most layers of a twin, where one of every kind would take more."""

LIMIT = 20_000_000
"""Weights outside the vocabulary from which a twin is not tiny."""

SPREAD = WIDTH**-0.5
"""Least standard deviation of a twin's matrices. At the usual 0.02 layers this narrow say next to
nothing, and a wrong mask would be lost in rounding."""

TRIED = 48
"""Tokens that a twin is tried on: more than ``WINDOW``."""

PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "attention_layers")
"""Lists of the kinds of layers that may be computed and no field of their own."""

TOWER = "vision_config"
"""The field of a configuration that describes the tower of a model that sees."""

OF_ITS_WIDTH = ("mm_hidden_size", "projection_hidden_size")  # beside it, as wide as the tower


def tiny_twin(
    source: str, args: CPOConfig, config: PretrainedConfig, policy: WeightsPolicy | None = None
) -> PreTrainedModel:
    """The tiny twin of a model.

    Args:
        source: hub id or folder of the model, for messages.
        args: seed, precision, attention and ``trust_remote_code`` are used.
        config: of the model; not changed.
        policy: how the model's weights are held; None: as in a run that trains all of them.

    Returns:
        On the CPU, random weights, the same ones for the same seed.

    Raises:
        ModelError: CP309 where no twin can be made from the configuration.
    """
    attention = init_keywords(args).get("attn_implementation")
    own = replace(args, model_init_kwargs={"attn_implementation": attention} if attention else {})
    held = WeightsPolicy((policy or WeightsPolicy.of(args)).made(config))
    try:
        small = shrink(config)
        with torch.device("meta"):
            drawn = random_model(source, own, small, held)
        outside = weights_outside_vocabulary(drawn)
        if outside > LIMIT:
            what = f"{outside:,} weights, not counting those of the vocabulary"
            raise _no_twin(source, config, f"it would have {what}")
        model = random_model(source, own, small, held)
        spread(model)
        _try_out(model)
    except ModelError as error:
        if error.code == "CP309":
            raise
        raise _no_twin(source, config, error.message) from error
    except Exception as error:
        raise _no_twin(source, config, kind_and_line(error)) from error
    return model


def _no_twin(source: str, config: PretrainedConfig, reason: str) -> ModelError:
    return ModelError(
        "CP309",
        f"no tiny twin of {source} ({config.model_type}) can be made from its configuration: "
        f"{reason}. counterpoint train --max_steps 2 with an output_dir of its own tries the "
        "model itself.",
    )


def shrink(config: PretrainedConfig) -> PretrainedConfig:
    """A configuration of the same class whose model is tiny.

    Args:
        config: of a model that writes text, one that sees included; not changed.

    Raises:
        Exception: whatever the class says where the fields no longer fit together.
    """
    values = config.to_dict()
    values.pop("quantization_config", None)  # a twin has no weights that anybody quantized
    text = _Shrinker.of(config.get_text_config())
    small = text.fields(values)
    tower = getattr(config, TOWER, None)
    if isinstance(tower, PretrainedConfig):
        sees = _Shrinker.of(tower, text, _looked_at(values))
        small[TOWER] = seen = sees.fields(tower.to_dict())
        small.update({n: sees.in_tower(values[n]) for n in OF_ITS_WIDTH if values.get(n)})
        if "vision_output_dim" in seen:  # its last layer and some others, side by side
            layers = 1 + len(seen["intermediate_layers_indices"])
            seen["vision_output_dim"] = layers * seen["hidden_size"]
    return type(config).from_dict(small)


def _looked_at(values: Mapping[str, Any]) -> int:
    """How many layers a tower must have for what is read of them; 1 where that is the last one."""
    named = values.get("vision_feature_layer")
    numbers = named if isinstance(named, list | tuple) else [named]
    # a number from the end counts the embeddings too
    return max([1, *(n if n > 0 else -n - 1 for n in numbers if isinstance(n, int))])


def weights_outside_vocabulary(model: nn.Module) -> int:
    """Weights of all tensors that do not have a row or column for every token."""
    inner: Any = model
    config = inner.config.get_text_config()
    names = ("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input")
    tokens = {getattr(config, name, None) for name in names} - {None}
    return sum(w.numel() for w in model.parameters() if not tokens & set(w.shape))


def spread(model: nn.Module) -> None:
    """Scale up the matrices of a fresh model that hardly differ from zero.

    What a tower says may go through matrices and gates that are zero, so that the text would see
    nothing: they become random, and half open.
    """
    parts = PARTS_THAT_SEE if sight_of(model.config) is not None else ()
    with torch.no_grad():
        for weight in [one for part in parts for one in weights_that_see(model, part)]:
            if weight.dim() > 1 and not weight.any():
                weight.normal_(0, SPREAD)
        for weight in model.parameters() if parts else ():
            if weight.numel() == 1 and not weight.any():
                weight.fill_(0.5)
        for weight in model.parameters():
            deviation = float(weight.float().std()) if weight.dim() > 1 else 0.0
            if 0 < deviation < SPREAD:
                weight.mul_(SPREAD / deviation)


def _try_out(model: PreTrainedModel) -> None:
    known = embedding_rows(model)
    ids = torch.arange(TRIED)[None] % (min(known) if known else 1)
    beside = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        model.eval()(input_ids=ids, **beside, use_cache=False)
    model.train()


# Fields


@dataclass(frozen=True, slots=True)
class _Shrinker:
    """What the fields of one configuration are measured by.

    Args:
        standard: own name -> transformers' usual name, where they differ.
        width: of the hidden states before.
        heads: attention heads before.
        layers: layers before.
        kept: layers to keep.
        rotated: by what share rotated parts of a head become narrower.
        values: all fields before.
        text: of the model for which a tower sees; None for any other configuration.
    """

    standard: Mapping[str, str]
    width: int
    heads: int
    layers: int
    kept: int
    rotated: float
    values: Mapping[str, Any]
    text: _Shrinker | None = None

    @classmethod
    def of(
        cls, config: PretrainedConfig, text: _Shrinker | None = None, least: int = 1
    ) -> _Shrinker:
        values = config.to_dict()
        standard = {own: usual for usual, own in config.attribute_map.items()}
        usual = {standard.get(own, own): value for own, value in values.items()}
        widths = (*(("embed_dim",) if text else ()), "hidden_size", "d_model", "n_embd")
        width = _first(usual, *widths) or WIDTH
        heads = _first(usual, "num_attention_heads", "n_head", "n_heads", "num_heads") or HEADS
        depth = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
        layers = _first(usual, *depth) or 1
        rope, head = values.get("qk_rope_head_dim"), _first(usual, "head_dim")
        if width <= WIDTH:
            rotated = 1.0
        elif rope:
            rotated = min(ROPE, rope) / rope
        else:
            rotated = (WIDTH // _fewer_heads(heads)) / (head or max(1, width // heads))
        return cls(
            standard=standard,
            width=width,
            heads=heads,
            layers=layers,
            kept=min(layers, max(least, _kept(config, values, layers))),
            rotated=rotated,
            values=values,
            text=text,
        )

    @property
    def rules(self) -> tuple[tuple[str, Rule], ...]:
        """Those that apply."""
        own = OF_COUNTS if self.text is None else (*OF_TOWERS, *OF_COUNTS)
        return (*own, *OF_WIDTHS) if self.width > WIDTH else own

    def fields(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """All fields of a configuration, or of a part of it, made small."""
        small = {name: self.field(name, value) for name, value in values.items()}
        for heads, head in STATE_HEADS:
            if self.width <= WIDTH or (heads == "num_heads" and "expand" not in values):
                continue
            if isinstance(values.get(heads), int) and isinstance(values.get(head), int):
                inner = self.in_width(values[heads] * values[head])
                small[head], small[heads] = HEAD, max(2, inner // HEAD)
                if isinstance(values.get("mamba_d_ssm"), int):
                    small["mamba_d_ssm"] = small[head] * small[heads]
        return small

    def field(self, name: str, value: Any) -> Any:
        """One field made small; what no rule names stays as it is."""
        if name == "per_layer_config" and isinstance(value, dict):
            return {k: self.fields(v) for k, v in value.items() if int(k) < self.kept}
        if isinstance(value, dict):
            return self.fields(value)
        if isinstance(value, list | tuple):
            return self.several(name, list(value))
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            return value
        usual = self.standard.get(name, name)
        rule = next((rule for pattern, rule in self.rules if re.search(pattern, usual)), None)
        return value if rule is None else rule(self, value)

    def several(self, name: str, values: list[Any]) -> list[Any]:
        """A list: of a rotated head's parts, of layers' numbers, or of one entry a layer."""
        if name in ("short_factor", "long_factor"):
            wanted = max(1, round(len(values) * self.rotated))
            return [values[place * len(values) // wanted] for place in range(wanted)]
        if name == "mrope_section":
            return _portions(values, max(1, round(sum(values) * self.rotated)))
        if name == "attention_types":
            return [[kinds, -(-self.kept // len(kinds))] for kinds, _ in values[:1]]
        if len(values) == self.layers:
            return [self.field(name, value) for value in values[: self.kept]]
        if re.search(LAYER_NUMBERS, name) and all(isinstance(value, int) for value in values):
            return [value for value in values if value < self.kept]
        return values

    def in_width(self, value: int) -> int:
        """A width in the same proportion, as a multiple of 8."""
        return max(8, 8 * round(value * WIDTH / self.width / 8))

    def in_text(self, value: int) -> int:
        """A width that is the text's, as the text has it."""
        text = self.text
        return value if text is None or text.width <= WIDTH else text.in_width(value)

    def in_tower(self, value: int) -> int:
        """``hidden_size``: the tower's, unless another field is."""
        if "embed_dim" in self.values:
            return self.in_text(value)
        return self.in_width(value) if self.width > WIDTH else value

    def key_heads(self, value: int) -> int:
        """Heads of keys and values, grouped if they were."""
        return _fewer_heads(value) if value >= self.heads else min(value, 2)

    def groups_kept(self, value: int) -> int:
        """Groups of experts that a token keeps: all of them only if it did before."""
        return min(value, 2) if value == self.values.get("n_group") else 1

    def head_width(self, value: int) -> int:
        """A head's width; in latent attention it stands for one of the head's parts."""
        rope, rest = self.values.get("qk_rope_head_dim"), self.values.get("qk_nope_head_dim")
        if rope and rest:
            parts = min(ROPE, int(rope)), min(HEAD, int(rest))
            if value in (rope, rope + rest):
                return parts[0] if value == rope else sum(parts)
            return min(HEAD, value)
        return WIDTH // _fewer_heads(self.heads)


def _first(values: Mapping[str, Any], *names: str) -> int | None:
    found = (values.get(name) for name in names)
    return next((v for v in found if isinstance(v, int) and not isinstance(v, bool) and v), None)


def _fewer_heads(heads: int) -> int:
    return HEADS if heads >= HEADS else 1 if heads == 1 else 2


def _portions(values: Sequence[int], total: int) -> list[int]:
    """Whole numbers in about the proportion of others, with the given sum."""
    ends = [round(sum(values[: place + 1]) * total / sum(values)) for place in range(len(values))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


# Layers


def _kept(config: PretrainedConfig, values: Mapping[str, Any], layers: int) -> int:
    """The least number of first layers among which is one of every kind."""
    lists = [v for v in values.values() if isinstance(v, list | tuple) and len(v) == layers]
    computed = [getattr(config, name, None) for name in PER_LAYER]
    lists += [v for v in computed if isinstance(v, list | tuple) and len(v) == layers]
    kinds = list(zip(*([repr(entry) for entry in one] for one in lists), strict=True))
    needed = max((kinds.index(kind) + 1 for kind in set(kinds)), default=2)
    for name, value in values.items():
        if isinstance(value, list | tuple):
            if re.search(LAYER_NUMBERS, name) and value and all(isinstance(v, int) for v in value):
                needed = max(needed, min(value) + 1)
        elif isinstance(value, int) and not isinstance(value, bool):
            if re.search(FIRST_LAYERS, name):
                needed = max(needed, value + 1)
            elif re.search(EVERY_LAYERS, name) and not kinds:
                needed = max(needed, value)
    while values.get("per_layer_config") and kinds[needed - 1 :][:1] not in ([], kinds[-1:]):
        needed += 1  # the last layer is of the kind of the model's last one
    if values.get("num_kv_shared_layers"):
        needed *= 2  # the second half takes over the keys of the first
    return min(layers, MOST_LAYERS, max(2, needed))


LAYER_NUMBERS = r"(_layers|layer_ids|_indices|_indexes|_idxs)$"
"""Lists of the numbers of layers."""

FIRST_LAYERS = r"first_k_dense|num_dense_layers|layer_start_index"
"""How many of the first layers are different."""

EVERY_LAYERS = (
    r"_period$|_interval$|every_n_layers$|sparse_step$|layer_step$|_pattern$|layer_group_size$"
)
"""Every how many layers there is a different one."""

STATE_HEADS = (
    ("mamba_n_heads", "mamba_d_head"),
    ("mamba_num_heads", "mamba_head_dim"),
    ("n_mamba_heads", "mamba_headdim"),
    ("num_heads", "head_dim"),
)
"""Fields of state-space layers whose product is a width in proportion to the hidden states."""

Rule = Callable[[_Shrinker, int], int]


def _at_most(most: int) -> Rule:
    return lambda s, value: min(value, most)


OF_COUNTS: tuple[tuple[str, Rule], ...] = (
    (
        r"^(num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(en|de)coder_layers"
        r"|depth)$",
        lambda s, value: max(1, round(value * s.kept / s.layers)),
    ),
    (r"^num_kv_shared_layers$", lambda s, value: s.kept // 2),
    (r"^topk_group$", _Shrinker.groups_kept),
    (r"^n_group$", _at_most(2)),
    (r"shared_experts?$", _at_most(2)),
    (r"experts?_per_tok|moe_(top_?)?k$|top_k_experts|experts_top_k|zero_expert", _at_most(CHOSEN)),
    (r"(num|n)_(local_|routed_)?experts$|expert_num$", _at_most(EXPERTS)),
    (r"window(_size|_len)?$|local_attention$|attention_chunk_size$|index_topk$", _at_most(WINDOW)),
    (r"chunk_size$", _at_most(FEW)),
)
"""Pattern of a field's name -> its new value; the first that fits counts."""

OF_TOWERS: tuple[tuple[str, Rule], ...] = (
    (r"window_size$|image_size$|patch_size$|merge_size$|position", lambda s, value: value),
    (r"^(out|text)_hidden_size$", _Shrinker.in_text),
    (r"^hidden_size$", _Shrinker.in_tower),
)
"""The same for a tower, before the others: what is counted in pixels and patches, and what is as
wide as the text."""

OF_WIDTHS: tuple[tuple[str, Rule], ...] = (
    (r"^qk_rope_head_dim$", _at_most(ROPE)),
    (r"^(qk_nope|v)_head_dim$", _at_most(HEAD)),
    (
        r"^attention_head_dim$",
        lambda s, value: max(8, s.in_width(value * s.heads) // _fewer_heads(s.heads)),
    ),
    (r"^rotary_dim$", lambda s, value: max(2, 2 * round(value * s.rotated / 2))),
    (r"head_dim|headdim|d_head$|dim_head$|head_size$|^kv_channels$", _Shrinker.head_width),
    (r"^query_pre_attn_scalar$", lambda s, value: max(1, round(value * s.rotated))),
    (r"linear_num_key_heads$|indexer_kv_heads$|^n_mamba_heads$", _at_most(2)),
    (r"(key_value|kv)_heads$|^kv_n_heads$|multi_query_group_num", _Shrinker.key_heads),
    (r"heads$|^n_head$|heads_per_layer$", lambda s, value: _fewer_heads(value)),
    (r"^n_groups$|mamba_n_?groups$|^o_groups$", _at_most(2)),
    (r"rank$|state_size$|d_state$", _at_most(FEW)),
    (
        r"hidden_size|^d_model$|^n_embd$|intermediate|ffn_dim$|ffn_hidden|^n_inner$|^dff$|^dim_ff$"
        r"|lru_width|d_ssm|emb(ed)?_dim|embedding_(size|dim)$|embed_proj_dim|feed_forward_size"
        r"|^d_inner$|latent_size",
        _Shrinker.in_width,
    ),
)
"""The same for a model that is wider than ``WIDTH``."""
