"""What ``counterpoint sample`` takes: its own flags, and those of ``train`` that it reads.

Not here: sampling (``cli.sample``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from counterpoint.endpoint import KEY_ENV, Endpoint
from counterpoint.errors import ConfigError
from counterpoint.options.declared import option
from counterpoint.options.limits import refuse_below, refuse_drawing, refuse_other_than_lines

OF_LOADING = (
    "revision",
    "tokenizer",
    "chat_template",
    "source_lang",
    "target_lang",
    "dtype",
    "attn_implementation",
    "trust_remote_code",
    "allow_pickle",
    "load_in_4bit",
    "load_in_8bit",
    "model_init_kwargs",
    "hub_token",
    "bf16",
    "fp16",
    "use_cpu",
)
"""Options of ``counterpoint train`` that mean the same here."""

OF_ASKING = (
    *("tokenizer", "chat_template", "source_lang", "target_lang"),
    *("dtype", "load_in_4bit", "load_in_8bit", "bf16", "fp16"),
)
"""Those of them on which a model's texts depend, beside its weights."""

ENGINES = ("transformers", "continuous", "endpoint")
"""What writes candidates: padded batches, continuous batches, or a server."""

OF_ENDPOINT = (*("endpoint", "new_address", "api_key_env", "concurrency", "timeout", "retries"),)
"""Flags that only a server has a use for."""

OWN_COLUMNS = ("prompt", "text", "model", "row", "candidate", "tokens", "ended")
"""What each candidate says of itself; no column of the prompts' file can stand in its place."""

_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})")


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """The command's own flags; every field's help is its meaning."""

    prompts: list[str] = option(
        [],
        "Required. Files or a hub id with prompts: rows with prompt (text or messages), also those "
        "of a file of pairs; or a .txt file with one prompt a line.",
    )
    out: str | None = option(
        None, "Required. File to write, .jsonl: a candidate a line. One that is there is resumed."
    )
    k: int = option(4, "Candidates of each prompt from each model, >= 1; also -k.")
    split: str | None = option(None, "Split to read; null: train, or the only one there is.")
    column: str | None = option(None, "Column of the prompt; null: prompt, as train finds it.")
    keep: list[str] = option([], "Columns to copy to each candidate, such as a reference.")
    max_rows: int | None = option(None, "Most prompts, >= 1: the first ones; null: all.")
    chat: bool = option(False, "Put a prompt that is text into the chat template as a user's turn.")
    system_prompt: str | None = option(
        None, "System turn of each prompt that has none of its own; implies chat."
    )
    temperature: float = option(1.0, "Above 0; 0: the likeliest token after token, with k = 1.")
    top_p: float = option(1.0, "Share of probability to sample from, in (0, 1].")
    top_k: int = option(0, "Most tokens to sample from, >= 1; 0: all.")
    max_new_tokens: int = option(256, "Most tokens of a candidate, >= 1.")
    stop: list[str] = option(
        [],
        "Tokens that end a candidate, as the vocabulary spells them, beside those that model, "
        "tokenizer and chat template name. For an endpoint: any texts.",
    )
    seed: int = option(0, "Of the draws, >= 0.")
    batch: int = option(16, "Candidates written at once, >= 1.")
    engine: str = option(
        "transformers",
        "What writes. transformers: padded batches; continuous: transformers' continuous "
        "batching; endpoint: a server that speaks OpenAI's protocol, with MODEL its name there.",
        ENGINES,
    )
    endpoint: str | None = option(
        None, "Address of the server up to its version, as http://127.0.0.1:8000/v1."
    )
    new_address: bool = option(
        False,
        "Resume a file that began at another address: the same model is served at this one. Both "
        "are written down.",
    )
    api_key_env: str = option(
        KEY_ENV, "Environment variable that holds the key; this one may be missing."
    )
    concurrency: int = option(16, "Most requests that are open at once, >= 1.")
    timeout: float = option(300.0, "Most seconds of one try, above 0.")
    retries: int = option(5, "Further tries of a request that may pass, >= 0.")
    shard: str = option("1/1", "I/N: only each Nth prompt, from the Ith on, 1 <= I <= N.")
    overwrite: bool = option(False, "Begin the file anew where it is there already.")

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        refuse_below(self, k=1, max_rows=1, top_k=0, max_new_tokens=1, seed=0, batch=1)
        refuse_below(self, concurrency=1, retries=0)
        refuse_drawing(self.temperature, self.top_p)
        taken = [name for name in self.keep if name in OWN_COLUMNS]
        if taken:
            raise ConfigError("CP104", f"keep={taken[0]}: candidates have a column of that name.")
        self._check_greedy()
        self._check_engine()
        self.part()
        refuse_other_than_lines(self.out)

    @property
    def is_served(self) -> bool:
        """Whether the model is behind an endpoint."""
        return self.engine == "endpoint"

    def part(self) -> tuple[int, int]:
        """Which prompts are written to: each how manieth, and from which on, counted from 0."""
        found = _SHARD.fullmatch(self.shard)
        first, step = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= first <= step:
            raise ConfigError(
                "CP103", f"shard={self.shard} should be I/N, as in 1/4, with I from 1 to N."
            )
        return step, first - 1

    def _check_greedy(self) -> None:
        if self.temperature:
            return
        given = {"top_p": self.top_p != 1, "top_k": self.top_k != 0}
        idle = [name for name, is_given in given.items() if is_given]
        if self.k > 1 or idle:
            what = f"{' and '.join(idle)} would do nothing" if idle else "all candidates are one"
            raise ConfigError(
                "CP104",
                f"temperature=0 takes the likeliest token after token, so that {what}. Set --k 1 "
                "without them, or a temperature above 0.",
            )

    def _check_engine(self) -> None:
        """A flag that does nothing is refused."""
        names = ("batch",) if self.is_served else OF_ENDPOINT
        idle = [name for name in names if getattr(self, name) != _default_of(name)]
        if idle:
            other = "by another engine" if self.is_served else "with --engine endpoint"
            raise ConfigError(
                "CP104",
                f"{idle[0]} would do nothing with engine={self.engine}. Leave it out, or sample "
                f"{other}.",
            )
        if self.is_served and self.endpoint is None:
            raise ConfigError(
                "CP107",
                "endpoint is missing (--endpoint http://127.0.0.1:8000/v1), which engine=endpoint "
                "needs.",
            )
        if self.is_served:
            Endpoint(str(self.endpoint), "", timeout=self.timeout)  # refuses what cannot be meant


def _default_of(name: str) -> Any:
    return SampleOptions.__dataclass_fields__[name].default
