"""A model writes: greedy, by beams or sampled, the same wherever it is asked.

1. Prompts are sorted by length and padded under a mask, so that each is continued as if it were
   alone: on the left, but the sources of an encoder on the right. A few models see padding through
   its mask; that is tried on three prompts, and such a model gets batches of one length. What the
   rounding of 16 bits changes is not taken for it (``rounded_otherwise``). One that looks at
   pictures in layers of its own is given one prompt at a time (``forward.crossing``).
2. Which prompts are written to together, and with what seed, depends on the prompts and the
   decoding alone: ranks deal whole batches among themselves, and the texts are those of one rank.
   Where each holds a part of the model, every token is a pass that all ranks must enter: all of
   them write all texts, and go on until the last one has ended.
3. Nothing is left behind: neither mode nor random state nor configuration of the model. A run
   with and one without trains the same weights.
4. What the model's own files say of decoding (penalties, a temperature) is left aside, so that
   greedy means greedy; only their end-of-sequence tokens count, beside the tokenizer's.
5. Beams stand in rows of their own, whose caches change places. That this works is seen from the
   scores of a few texts: as one pass over each, without a cache, finds them. Where it does not, no
   cache is kept; where beams get each other's pictures (GLM's), it writes greedily, and says so.

Not here: what the texts are like (``texts``), which prompts (``evaluation.samples``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from counterpoint import ranks
from counterpoint.console.phases import phase
from counterpoint.data.vocabularies import reader_of_sources, text_of
from counterpoint.engine.fsdp2 import gather_around_parts
from counterpoint.evaluation.room import longest_source, room_behind
from counterpoint.evaluation.rounded_otherwise import (
    ROUNDINGS,
    Said,
    are_two_kinds,
    computed_in,
    differs_by_itself,
    is_beyond_rounding,
    probability_apart,
    rounded_otherwise,
)
from counterpoint.evaluation.texts import Completion
from counterpoint.evaluation.untouched import untouched
from counterpoint.forward.seeing import shown_before, written_to_alone
from counterpoint.log import logger
from counterpoint.picture import Picture, SeenPicture
from counterpoint.tensor_parts import device_of_products

TRIED = 4
"""Tokens after which padding is taken for unseen: some models see it only through their cache."""

TRIED_BY_BEAMS = 8
"""Tokens after which beams have changed places often enough for their caches to be judged."""

TOKENS = "tokens at most"
"""What is counted while texts are written: all of a batch get a token at a time."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to write to.

    Args:
        ids: its tokens, at least one; of an encoder-decoder, the source's.
        reference: what a good completion would be, or None.
        start: tokens that a decoder with an encoder beside it begins with; all prompts of a model
            have as many.
        seen: its pictures, in order, as the tower takes them; pictures: before they are decoded.
    """

    ids: tuple[int, ...]
    reference: str | None = None
    start: tuple[int, ...] = ()
    seen: tuple[SeenPicture, ...] = ()
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, slots=True)
class Decoding:
    """How to write.

    Args:
        most_tokens: of a completion, at least 1.
        temperature: at least 0; 0 is greedy, 1 the model's own distribution.
        top_p: share of probability, in (0, 1], of the likeliest tokens to sample from.
        seed: of the samples, at least 0.
        batch: prompts written to at once, at least 1; with the seed it decides the samples. Beams
            are rows of it.
        beams: texts that are followed at once, at least 1; the likeliest, by the mean of their
            tokens' log-probabilities, is kept. Only where nothing is sampled.
    """

    most_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch: int = 16
    beams: int = 1

    @property
    def kind(self) -> str:
        """Greedy, by beams or sampled."""
        return "sampled" if self.temperature else "beams" if self.beams > 1 else "greedy"


def complete(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    *,
    together: bool = False,
) -> list[Completion]:
    """What a model writes to each prompt, in their order; the same on every rank.

    Args:
        model: a causal language model with ``generate``, plain or PEFT-wrapped, unwrapped from
            distributed training.
        tokenizer: with EOS and pad token.
        prompts: any number.
        decoding: how to write.
        together: whether ranks meet in every pass through the model.

    Raises:
        DataError: CP204 for a prompt that fills the model's positions.
    """
    longest = max((len(prompt.start or prompt.ids) for prompt in prompts), default=0)
    limit = room_behind(longest, model, decoding.most_tokens, source=longest_source(prompts))
    writer = BatchWriter(model, tokenizer, decoding, limit, together)
    written: dict[int, list[int]] = {}
    with untouched(model), phase(f"writing to {len(prompts):,} prompts", unit=TOKENS) as now:
        batches = writer.batches(prompts)
        numbered = list(enumerate(batches))
        mine = numbered if together else numbered[ranks.rank() :: ranks.count()]
        now.total = limit * len(mine)
        for done, (number, places) in enumerate(mine, 1):
            torch.manual_seed(decoding.seed + number)
            new = writer.write([prompts[place] for place in places], now.advance)
            written.update(zip(places, new, strict=True))
            now.advance(limit * done - now.done)  # some end before
    parts = ranks.gathered(written)  # of those who wrote the same, the first one's
    written = {place: new for part in reversed(parts) for place, new in part.items()}
    return [
        as_completion(tokenizer, prompt, written[place], writer.decoding.kind, writer.ends)
        for place, prompt in enumerate(prompts)
    ]


class BatchWriter:
    """A model with what it takes to let it write.

    Args:
        model: as for ``complete``.
        tokenizer: with EOS and pad token.
        decoding: how to write.
        limit: most tokens of a text.
        together: whether ranks meet in every pass through the model.
        stops: tokens that end a text beside those that model and tokenizer name.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        limit: int,
        together: bool,
        stops: Sequence[int] = (),
    ) -> None:
        self.model, self.decoding, self._together = model, decoding, together
        self._computed_in: torch.dtype | None = None
        self.pad = int(tokenizer.pad_token_id)
        self.ends = list(dict.fromkeys([*_ends(model, tokenizer), *stops]))
        self._config = GenerationConfig(
            max_new_tokens=limit,
            do_sample=decoding.temperature > 0,
            temperature=decoding.temperature or 1.0,
            top_p=decoding.top_p,
            top_k=0 if decoding.temperature else 50,  # 50, unused, may stand beside greedy
            num_beams=decoding.beams,
            length_penalty=1.0,
            early_stopping=False,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            use_cache=True,
            eos_token_id=self.ends,
            pad_token_id=self.pad,
        )

    def batches(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Places of the prompts that are written to at once."""
        order = sorted(range(len(prompts)), key=lambda place: (len(prompts[place].ids), place))
        groups = [order]
        tried = [prompts[order[place]] for place in (0, len(order) // 2, -1)] if order else []
        if any(prompt.seen for prompt in prompts):
            tried.append(max(prompts, key=lambda prompt: len(prompt.seen)))
        alone = written_to_alone(self.model)
        apart = alone or self._sees_padding(tried)
        if apart:
            said = "prompt" if alone else "length"
            logger().info("this model sees padding through its mask: one %s a batch", said)
            lengths = groupby(order, key=lambda n: n if alone else len(prompts[n].ids))
            groups = [list(group) for _, group in lengths]
        if self.decoding.beams > 1 and not self._follows_beams(tried, apart):
            logger().info("the cache of this model does not follow its beams: none is kept")
            self._config.use_cache = False
            if any(prompt.seen for prompt in tried) and not self._follows_beams(tried, apart):
                logger().warning("the beams of this model mix up pictures: it writes greedily")
                self.decoding = replace(self.decoding, beams=1)
                self._config.num_beams = 1
        size = max(1, self.decoding.batch // self.decoding.beams)
        return [
            group[start : start + size] for group in groups for start in range(0, len(group), size)
        ]

    def write(
        self,
        prompts: Sequence[Prompt],
        told: Callable[[], None],
        chooses: LogitsProcessorList | None = None,
        watching: StoppingCriteria | None = None,
    ) -> list[list[int]]:
        """New tokens of each prompt, the one that ends them and padding included.

        Args:
            prompts: to be written to at once.
            told: called with each token that all of them have got.
            chooses: sees the logits of each next token before the likeliest is taken.
            watching: sees each token, and may end the texts.
        """
        counting = StoppingCriteriaList([_Counting(told), *([watching] if watching else ())])
        output, given = self._generated(prompts, counting, chooses)
        new: list[list[int]] = output.sequences[:, given:].tolist()
        return new

    def _generated(
        self,
        prompts: Sequence[Prompt],
        watching: StoppingCriteriaList | None = None,
        chooses: LogitsProcessorList | None = None,
        **changes: Any,
    ) -> tuple[Any, int]:
        """What ``generate`` returns, and how many tokens of each of its rows were given.

        Args:
            prompts: to be written to at once.
            watching: called with each token.
            chooses: as for ``write``.
            changes: what the configuration says otherwise.
        """
        inputs, given = self._inputs(prompts)
        config = copy.deepcopy(self._config)
        config.update(return_dict_in_generate=True, **changes)
        if prompts[0].start:
            # without it, or another: one more token would be put before what was given
            config.decoder_start_token_id = [prompt.start[0] for prompt in prompts]
        if self._together:
            gather_around_parts(self.model)
        output = self.model.generate(
            **inputs,
            generation_config=config,
            stopping_criteria=watching,
            logits_processor=chooses,
            synced_gpus=self._together,
        )
        return output, given

    def _sees_padding(self, prompts: Sequence[Prompt]) -> bool:
        """Whether some prompts are followed by something else together than each alone.

        In 16 bits they always are, a little: it counts if rounding alone does not explain it.
        """
        if len({len(prompt.ids) for prompt in prompts}) < 2:
            return False
        found = map(probability_apart, *self._alone_and_together(prompts))
        differs = differs_by_itself(list(found), self._computed_in)
        if differs is not None:
            return differs
        ways: list[tuple[list[Said], list[Said]]] = []
        for seed in range(ROUNDINGS):
            with rounded_otherwise(self.model, seed):
                ways.append(self._alone_and_together(prompts))
        longest = max(len(prompt.ids) for prompt in prompts)
        padded = [n for n, prompt in enumerate(prompts) if len(prompt.ids) < longest]
        return are_two_kinds(
            *([[way[n] for n in padded] for way in one] for one in zip(*ways, strict=True))
        )

    def _alone_and_together(self, prompts: Sequence[Prompt]) -> tuple[list[Said], list[Said]]:
        """What is written to each prompt by itself, and in one batch of all."""
        alone = [self._tried([prompt]) for prompt in prompts]
        together = self._tried(prompts)
        return [(ids[0], said[0]) for ids, said in alone], list(zip(*together, strict=True))

    def _tried(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """The likeliest tokens after each prompt, and the probabilities of every token there."""
        greedy = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "num_beams": 1}
        with self._precision_watched():
            output, given = self._generated(
                prompts, max_new_tokens=TRIED, output_logits=True, **greedy
            )
        probabilities = torch.softmax(torch.stack(output.logits, dim=1).float(), dim=-1)
        return output.sequences[:, given:], probabilities

    def _follows_beams(self, prompts: Sequence[Prompt], apart: bool) -> bool:
        """Whether texts have the scores that one pass over each finds, without cache and padding.

        Args:
            prompts: to try it on.
            apart: whether each of them stands alone.
        """
        most = min(TRIED_BY_BEAMS, int(self._config.max_new_tokens))
        texts: list[tuple[Prompt, list[int], float]] = []
        differences = []
        for few in [[prompt] for prompt in prompts] if apart else [prompts] * bool(prompts):
            with self._precision_watched():
                output, given = self._generated(few, max_new_tokens=most, output_scores=True)
            written = output.sequences[:, given:].tolist()
            for prompt, new, score in zip(few, written, output.sequences_scores, strict=True):
                end = next((n for n, token in enumerate(new, 1) if token in self.ends), len(new))
                texts.append((prompt, new[:end], self.mean_logp(prompt, new[:end])))
                differences.append(abs(float(score) - texts[-1][2]))
        return not is_beyond_rounding(
            differences,
            lambda: [abs(self.mean_logp(prompt, new) - plain) for prompt, new, plain in texts],
            self.model,
            self._computed_in,
        )

    def mean_logp(self, prompt: Prompt, new: Sequence[int]) -> float:
        """Of the tokens that follow a prompt, in nats, from one pass over all of them.

        Args:
            prompt: that they follow.
            new: at least one token.
        """
        inputs, given = self._inputs([prompt], after=len(new) - 1)
        said = torch.tensor([new], device=inputs["input_ids"].device)
        name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
        inputs[name] = torch.cat([inputs[name], said[:, :-1]], dim=1)
        if name == "input_ids":
            inputs["attention_mask"] = torch.ones_like(inputs[name])
        logits: Tensor = self.model(**inputs, use_cache=False).logits
        logps = logits[:, given - 1 :].float().log_softmax(dim=-1)
        return float(logps.gather(2, said[..., None]).mean())

    @contextmanager
    def _precision_watched(self) -> Iterator[None]:
        """Within it the head says what the model computes in.

        Autocast may be switched on within the model's own forward, where nobody outside sees it.
        """

        def look(module: torch.nn.Module, inputs: Any) -> None:
            self._computed_in = computed_in(module)

        head = self.model.get_output_embeddings() or self.model
        handle = head.register_forward_pre_hook(look)
        try:
            yield
        finally:
            handle.remove()

    def _inputs(self, prompts: Sequence[Prompt], after: int = 0) -> tuple[dict[str, Tensor], int]:
        """What ``generate`` is called with, and how many tokens of its output were given."""
        device, width = device_of_products(self.model), max(len(prompt.ids) for prompt in prompts)
        encodes = bool(self.model.config.is_encoder_decoder)
        ids = torch.full((len(prompts), width), self.pad, device=device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            length = len(prompt.ids)
            place = slice(length) if encodes else slice(width - length, width)
            ids[row, place] = torch.tensor(prompt.ids, device=device)
            mask[row, place] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        if not encodes:
            rows = [(prompt.ids, prompt.seen) for prompt in prompts]
            return {**inputs, **shown_before(self.model, rows, width, device, after)}, width
        starts = torch.tensor([prompt.start for prompt in prompts], device=device)
        return {**inputs, "decoder_input_ids": starts}, starts.shape[1]


class _Counting(StoppingCriteria):
    """Counts tokens; stops nothing."""

    def __init__(self, told: Callable[[], None]) -> None:
        self._told = told

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        self._told()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def as_completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    new: list[int],
    kind: str,
    ends: Sequence[int],
) -> Completion:
    """New tokens of a prompt as a text, up to the one that ends it.

    Args:
        tokenizer: of the model.
        prompt: that was written to.
        new: tokens, that one and padding included.
        kind: as ``Completion.kind``.
        ends: tokens that end a text.
    """
    end = next((place for place, token in enumerate(new) if token in ends), None)
    ids = tuple(new[:end])
    return Completion(
        kind=kind,
        prompt=text_of(reader_of_sources(tokenizer), prompt.ids),
        text=text_of(tokenizer, ids),
        reference=prompt.reference,
        ids=ids,
        ended=end is not None,
        pictures=prompt.pictures,
    )


def _ends(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a turn: chat models name several."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return [int(one) for one in dict.fromkeys([tokenizer.eos_token_id, *listed]) if one is not None]
