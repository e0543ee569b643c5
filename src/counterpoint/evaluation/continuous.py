"""Candidates by transformers' continuous batching: a text that ends makes room for the next one.

1. Each request draws by a generator of its own, as in padded batches (``sampling``): the texts are
   the same but for what rounding changes.
2. Before the first text, the log-probabilities of a few tokens are compared with those of one plain
   pass. A model that writes otherwise here is refused: paged attention knows fewer kinds.
3. Its thread does not inherit autocast, which is therefore put around the model's own forward. Its
   cache has the precision of the weights: an autocast to another one is refused.
4. No CUDA graphs and no second batch in flight: a graph would replay the first draw.

Not here: padded batches (``sampling``), servers (``cli.sample_served``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
)

from counterpoint import ranks
from counterpoint.console.phases import phase
from counterpoint.errors import ModelError, first_line
from counterpoint.evaluation.generation import (
    TRIED,
    BatchWriter,
    Decoding,
    Prompt,
    as_completion,
)
from counterpoint.evaluation.room import room_behind
from counterpoint.evaluation.rounded_otherwise import computed_in, is_beyond_rounding
from counterpoint.evaluation.sampling import (
    Draw,
    Sampling,
    candidate_chance,
    only_the_winners,
    warpers,
)
from counterpoint.evaluation.texts import Completion
from counterpoint.evaluation.untouched import untouched
from counterpoint.model_seams import under_adapter
from counterpoint.tensor_parts import device_of_products

PAGE = 256
"""Tokens of a page of the cache; transformers' own default."""

MOST_AT_ONCE = 512
"""Tokens of a pass, at least: a longer prompt is read in parts."""

PATIENCE = 1.0
"""Seconds between looks whether the thread that writes still lives."""


def draw_continuously(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    draws: Sequence[Draw],
    how: Sampling,
    is_written: Callable[[Draw], bool],
    take: Callable[[Sequence[tuple[Draw, Completion]]], None],
) -> None:
    """Write texts, each handed over as it ends; arguments as for ``sampling.draw_candidates``.

    Args:
        model: a causal language model, plain or PEFT-wrapped.
        tokenizer: with EOS and pad token.
        draws: all of the sampling.
        how: they are drawn; ``batch`` is the most texts that are written at once.
        is_written: whether there is that text already.
        take: given each text as it is done.

    Raises:
        ModelError: CP344 for a model that does not write so.
        DataError: CP204 for a prompt that fills the model's positions.
    """
    wanted = {str(n): one for n, one in enumerate(draws) if not is_written(one)}
    if not wanted:
        return
    longest = max(how.longest, *(len(one.prompt.ids) for one in draws))
    limit = room_behind(longest, model, how.most_tokens)
    writer = BatchWriter(
        model, tokenizer, Decoding(limit, batch=how.batch), limit, False, how.stops
    )
    paged = _Paged(model, writer, limit, longest, how.batch)
    kind = "sampled" if how.temperature else "greedy"
    with untouched(model), phase("drawing candidates", len(wanted), "candidates") as now:
        paged.prove([one.prompt for one in draws])
        asked = {name: (one.prompt, one.chance) for name, one in wanted.items()}
        for name, ids in paged.written(asked, how if how.temperature else None):
            text = as_completion(tokenizer, wanted[name].prompt, ids, kind, writer.ends)
            take([(wanted[name], text)])
            now.advance()


def complete_continuously(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    *,
    together: bool = False,
) -> list[Completion]:
    """What a model writes to each prompt, in their order; arguments as for ``generation.complete``.

    Greedy texts are those of padded batches but for rounding. Sampled ones are drawn by a chance of
    their own, which follows from seed and prompt, and not from a batch's.

    Args:
        model: a causal language model, plain or PEFT-wrapped.
        tokenizer: with EOS and pad token.
        prompts: any number.
        decoding: how to write; without beams.
        together: whether ranks meet in every pass through the model, which refuses it.

    Raises:
        ModelError: CP344 for a model or prompts that are not written to so.
        DataError: CP204 for a prompt that fills the model's positions.
    """
    if together:
        raise _unfit("each process holds a part of it")
    if any(prompt.seen for prompt in prompts):
        raise _unfit("its prompts show pictures")
    how = Sampling(
        decoding.most_tokens,
        decoding.temperature,
        decoding.top_p,
        batch=decoding.batch,
        longest=max((len(prompt.ids) for prompt in prompts), default=0),
    )
    before: Counter[tuple[int, ...]] = Counter()
    draws = []
    for place, prompt in enumerate(prompts):
        chance = candidate_chance(decoding.seed, "", prompt, before[prompt.ids], 0)
        draws.append(Draw(place, 0, prompt, chance))
        before[prompt.ids] += 1
    written: dict[int, Completion] = {}
    draw_continuously(
        model,
        tokenizer,
        draws[ranks.rank() :: ranks.count()],
        how,
        lambda one: False,
        lambda done: written.update((one.row, text) for one, text in done),
    )
    every = {place: text for part in ranks.gathered(written) for place, text in part.items()}
    return [every[place] for place in range(len(prompts))]


class _Paged:
    """A model that writes by continuous batching."""

    def __init__(
        self, model: Any, writer: BatchWriter, limit: int, longest: int, batch: int
    ) -> None:
        self._model, self._writer, self._batch = under_adapter(model), writer, batch
        self._limit = limit
        self._pages = batch * (math.ceil((longest + limit) / PAGE) + 1)
        if not hasattr(self._model, "init_continuous_batching") or model.config.is_encoder_decoder:
            raise _unfit("it is no causal language model of transformers'")
        weights, computed = self._model.dtype, computed_in(self._model)
        if computed != weights:
            raise _unfit(
                f"its weights are in {_plain(weights)} and it computes in {_plain(computed)}, "
                f"which that cache does not take (--dtype {_plain(computed)} loads them so)"
            )

    def prove(self, prompts: Sequence[Prompt]) -> None:
        """Compare it with one plain pass over what it writes, on three prompts.

        Args:
            prompts: at least one.

        Raises:
            ModelError: CP344 where it differs by more than rounding.
        """
        order = sorted(prompts, key=lambda prompt: len(prompt.ids))
        tried = {str(n): (order[place], 0) for n, place in enumerate((0, len(order) // 2, -1))}
        said = list(self._said(tried, None, min(TRIED, self._limit), with_logps=True))
        texts = [(tried[name][0], ids, sum(logps) / len(logps)) for name, ids, logps in said]
        plain = [self._writer.mean_logp(prompt, ids) for prompt, ids, _ in texts]

        def by_rounding() -> list[float]:
            return [
                abs(self._writer.mean_logp(prompt, ids) - before)
                for (prompt, ids, _), before in zip(texts, plain, strict=True)
            ]

        differences = [
            abs(logp - before) for (_, _, logp), before in zip(texts, plain, strict=True)
        ]
        precision = computed_in(self._model)
        if is_beyond_rounding(differences, by_rounding, self._model, precision):
            raise _unfit(
                f"log-probabilities differ from those of a plain pass by {max(differences):.2g}"
            )

    def written(
        self, asked: dict[str, tuple[Prompt, int]], how: Sampling | None
    ) -> Iterator[tuple[str, list[int]]]:
        """Tokens of each text, with the one that ends it, in the order in which they end.

        Args:
            asked: prompt and chance of each, by name.
            how: they are drawn; None: the likeliest tokens.
        """
        for name, ids, _ in self._said(asked, how, self._limit):
            yield name, ids

    def _said(
        self,
        asked: dict[str, tuple[Prompt, int]],
        how: Sampling | None,
        most: int,
        with_logps: bool = False,
    ) -> Iterator[tuple[str, list[int], list[float]]]:
        with self._running(how, with_logps) as manager:
            for name, (prompt, chance) in asked.items():
                drawn = {} if how is None else {_Races.NAME: chance}
                manager.add_request(
                    list(prompt.ids),
                    request_id=name,
                    max_new_tokens=most,
                    eos_token_id=self._writer.ends,
                    **drawn,
                )
            left = len(asked)
            while left:
                result = manager.get_result(timeout=PATIENCE)
                if result is None:
                    if not manager.is_running():
                        raise _unfit("its thread has ended")
                    continue
                if result.error is not None:
                    raise _unfit(first_line(RuntimeError(result.error)))
                left -= 1
                yield result.request_id, result.generated_tokens, result.logprobs

    @contextmanager
    def _running(self, how: Sampling | None, with_logps: bool) -> Iterator[Any]:
        """A manager whose thread runs, and has ended when this is left."""
        with _computing_as_here(self._model):
            try:
                manager = self._model.init_continuous_batching(
                    generation_config=GenerationConfig(
                        max_new_tokens=self._limit,
                        do_sample=False,
                        eos_token_id=self._writer.ends,
                        pad_token_id=self._writer.pad,
                    ),
                    continuous_batching_config=ContinuousBatchingConfig(
                        page_size=PAGE,
                        num_blocks=self._pages,
                        max_batch_tokens=max(MOST_AT_ONCE, self._batch),
                        max_requests_per_batch=self._batch,
                        use_async_batching=False,
                        use_cuda_graph=False,
                        auto_switch_to_flash=False,  # what computes is the caller's to say
                        per_request_processors=True,
                        return_logprobs=with_logps,
                    ),
                )
            except (ValueError, NotImplementedError, AttributeError) as error:
                raise _unfit(first_line(error)) from error
            if how is not None:
                chooses = manager.logit_processor
                chooses.logits_processor.extend([*warpers(how), _Races()])
                chooses.tensors_required += 1
                chooses.supported_keys[_Races.NAME] = int
                chooses.do_processing = True
            manager.start()
            done = False
            try:
                yield manager
                done = True
            finally:
                manager.stop(block=True, hard_stop=not done)
                manager.destroy()


class _Races(ContinuousBatchingLogitsProcessor):
    """Leaves one token of each request, drawn by the request's own chance."""

    NAME = "chance"
    supported_kwargs: dict[str, type] = {NAME: int}  # noqa: RUF012 - as theirs declare it
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._chances: list[tuple[str, int]] = []
        self._generators: dict[str, torch.Generator] = {}

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Chances have 63 bits, and do not travel in this tensor."""
        int32_tensor.fill_(0)

    def prepare_tensor_args(self, requests_with_new_token: Any) -> Tensor:
        """Remember whose logits come next; called before each pass, in the thread that calls it."""
        states = [one.state for one in requests_with_new_token]
        self._chances = [
            (one.request_id, one.logit_processor_kwargs.get(self.NAME, 0)) for one in states
        ]
        return torch.zeros(len(states), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """One token a row; a request that was evicted has kept its generator."""
        for name, chance in self._chances:
            if name not in self._generators:
                self._generators[name] = torch.Generator(scores.device).manual_seed(chance)
        return only_the_winners(scores, [self._generators[name] for name, _ in self._chances])


@contextmanager
def _computing_as_here(model: Any) -> Iterator[None]:
    """Within it the model's forward has this thread's autocast, whichever thread calls it."""
    device = device_of_products(model).type
    if not torch.is_autocast_enabled(device):
        with nullcontext():
            yield
        return
    own = model.__dict__.get("forward")
    model.forward = torch.autocast(device, torch.get_autocast_dtype(device))(model.forward)
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _unfit(why: str) -> ModelError:
    return ModelError(
        "CP344",
        "transformers' continuous batching does not write with this model: "
        f"{why.rstrip('.')}. Take --engine transformers.",
    )
