"""The part of a model that a tensor belongs to, told by its name.

Names are all that a saved file has, and those of transformers and PEFT say enough. The groups are
for reading, no decision about a single tensor hangs on them, and what is not known is "other".

Not here: which tensors train.
"""

from __future__ import annotations

import re

EMBEDDINGS, ATTENTION, MLP, NORMS, HEAD, ADAPTERS, OTHER = (
    "embeddings",
    "attention",
    "mlp",
    "norms",
    "head",
    "adapters",
    "other",
)
CROSS_ATTENTION = "cross-attention"
"""Of a decoder that looks at what an encoder says."""

ENCODER = "encoder"
"""Stands before the group of what lies in the encoder that a decoder looks at; the plain names are
then the decoder's."""

GROUPS = (
    EMBEDDINGS,
    *(f"{ENCODER} {group}" for group in (EMBEDDINGS, ATTENTION, MLP, NORMS, OTHER)),
    ATTENTION,
    CROSS_ATTENTION,
    MLP,
    NORMS,
    HEAD,
    ADAPTERS,
    OTHER,
)
"""Every group, in the order of tables."""

# what PEFT puts before the names of its parameters, whatever the method
_ADAPTER = re.compile(
    r"(?:^|\.)(?=(?:adamss|beft|boft|c3a|deft|delora|fourierft|frod|glora|gralora|hada|hira|hra|ia3"
    r"|lily|ln_tuning|lokr|lora|miss|oft|osf|peanut|poly|psoft|pvera_lambda|randlora|road|shadow"
    r"|shira|supertuning|tinylora|trainable_tokens|unilora|vblora|vera_lambda|waveft|adaption"
    r"|prompt_encoder)(?:_|\.))"
)
_PARTS = (  # the first that fits: a norm may lie in attention, attention in an expert never
    (NORMS, re.compile(r"norm|(?:^|[._])ln(?:[._]|\d|$)")),
    (HEAD, re.compile(r"(?:^|\.)(?:lm_head|embed_out|output_projection)\.")),
    (EMBEDDINGS, re.compile(r"embed|(?:^|\.)(?:w[tp]e|shared)\.")),
    (CROSS_ATTENTION, re.compile(r"(?:^|[._])(?:encoder_attn|cross_attn)|EncDecAttention")),
    (ATTENTION, re.compile(r"attn|[aA]ttention")),
    (MLP, re.compile(r"mlp|ffn|feed_forward|expert|moe|(?:^|\.)fc\d|DenseReluDense")),
)
# as BART's and T5's lie beside a decoder; a decoder whose layers BERT calls encoder.layer has none
_IN_ENCODER = re.compile(r"(?:^|(?:^|\.)model\.)encoder\.(?!layer\.)")
_EXPERT = re.compile(r"(\.experts?\.)\d+(?=\.|$)")


def group_of(name: str) -> str:
    """The group of a tensor, one of ``GROUPS``.

    Args:
        name: as ``named_parameters`` or a safetensors file has it.
    """
    if _ADAPTER.search(name):
        return ADAPTERS
    group = next((group for group, pattern in _PARTS if pattern.search(name)), OTHER)
    return f"{ENCODER} {group}" if in_encoder(name) else group


def in_encoder(name: str) -> bool:
    """Whether a tensor lies in an encoder that a decoder looks at."""
    return bool(_IN_ENCODER.search(name))


def adapted_module(name: str) -> str | None:
    """The module that an adapter's tensor is for; None for a tensor of no adapter."""
    found = _ADAPTER.search(name)
    return (name[: found.start()] or name) if found else None


def expert_family(name: str) -> str | None:
    """What the same tensor or module of all experts is called; None for that of no expert."""
    family, count = _EXPERT.subn(r"\1*", name)
    return family if count else None
