"""What a run writes to a few prompts of its evaluation sets, before training and on the way.

The prompts are the same each time, and so are the seeds, so that only the weights make a
difference. The chosen completion stands as the reference.

Not here: how texts are written and counted (``generation``, ``texts``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from counterpoint.config import CPOConfig
from counterpoint.data.vocabularies import text_of
from counterpoint.evaluation.generation import Decoding, Prompt, complete
from counterpoint.evaluation.texts import Completion, statistics
from counterpoint.records import TokenPair


def decodings(args: CPOConfig) -> list[Decoding]:
    """How a run's samples are written: greedily or by beams, and at a temperature sampled too.

    Args:
        args: the run's options.
    """
    most, batch = args.eval_sample_tokens, args.eval_batch_size
    ways = [Decoding(most, batch=batch, beams=args.generation_num_beams)]
    if args.eval_sample_temperature > 0:
        ways.append(Decoding(most, args.eval_sample_temperature, seed=args.seed, batch=batch))
    return ways


def prompts_of(pairs: Sequence[TokenPair], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts of pairs, each with the chosen completion as reference.

    Args:
        pairs: any number.
        tokenizer: that made them.
    """
    return [
        Prompt(
            tuple(pair.prompt),
            text_of(tokenizer, pair.chosen),
            tuple(pair.start),
            tuple(pair.seen),
            pair.pictures,
        )
        for pair in pairs
    ]


def sample(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[TokenPair],
    ways: Sequence[Decoding],
    *,
    together: bool = False,
) -> list[Completion]:
    """What a model writes to the prompts of pairs, in each of several ways.

    Args:
        model: unwrapped from distributed training.
        tokenizer: with EOS and pad token.
        pairs: any number.
        ways: how to write.
        together: as for ``complete``.
    """
    prompts = prompts_of(pairs, tokenizer)
    return [
        one for way in ways for one in complete(model, tokenizer, prompts, way, together=together)
    ]


def sample_metrics(completions: Sequence[Completion]) -> Mapping[str, float]:
    """Statistics of samples by the names of a log line: ``samples/*``, and ``samples/sampled_*``.

    Args:
        completions: of one set.
    """
    kinds = {"": False, "sampled_": True}
    parts = {
        prefix: [one for one in completions if one.sampled == sampled]
        for prefix, sampled in kinds.items()
    }
    return {
        f"samples/{prefix}{name}": value
        for prefix, part in parts.items()
        if part
        for name, value in statistics(part).items()
    }
