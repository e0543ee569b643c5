"""Small tokenizers of the kinds that exist, trained in milliseconds, no network.

Session-scoped: a test that changes a tokenizer copies it first.
"""

from __future__ import annotations

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps in the warm sun.",
    "What is the capital of France? The capital of France is Paris.",
    "Human: Could you help me with my homework, please? Assistant: Of course, I can help.",
    "I am sorry, but I cannot help with that. Is there anything else that you would like?",
    "To be or not to be, that is the question; 1 2 3 4 5 6 7 8 9 10.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n",
    "国会由众议院和参议院组成，每两年换届一次。我希望大家能花点时间考虑一个问题。",  # noqa: RUF001
]

CHATML = (
    "{%- if tools %}{{ '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + (message.content or '') }}"
    "{%- if message.tool_calls %}{{ message.tool_calls | tojson }}{%- endif %}"
    "{{- '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)

LLAMA = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}"
    "{%- elif message.role == 'assistant' %}{{ ' ' + message.content + eos_token }}"
    "{%- else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
    "{%- endif %}"
    "{%- endfor %}"
)


def byte_level(special: list[str], size: int = 600) -> Tokenizer:
    """A byte-level BPE as GPT-2's: any text is encodable, spaces join the word after them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def metaspace(special: list[str], size: int = 500) -> Tokenizer:
    """A BPE over whole text with "▁" for spaces and byte fallback, as Llama 2's.

    Trained on words, as SentencePiece does it, so that "▁" only begins tokens.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


@pytest.fixture(scope="session")
def chatml_tokenizer() -> PreTrainedTokenizerFast:
    """As Qwen's: no BOS, ChatML template with a newline after EOS, its own pad token."""
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )


@pytest.fixture(scope="session")
def llama_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: BOS written by the template too, no pad token, no system role."""
    return PreTrainedTokenizerFast(
        tokenizer_object=metaspace(["<unk>", "<s>", "</s>"]),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=LLAMA,
    )


@pytest.fixture(scope="session")
def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """As GPT-2's: BOS and EOS are one token, no pad token, no chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["<|endoftext|>"]),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
    )


@pytest.fixture(scope="session")
def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Characters, and two tokens that reach over a boundary: ": " + letter, and "ab"."""
    pieces = ["<s>", "</s>", *(chr(code) for code in range(32, 127)), "\n", ":a", ": ", ": t", "ab"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[(":", "a"), (":", " "), (": ", "t"), ("a", "b")],
        )
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(
        [AddedToken("<s>", normalized=False), AddedToken("</s>", normalized=False)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<s>")
