"""``counterpoint sample``: several candidates to each prompt, from one model or several.

Every candidate has a chance of its own (``evaluation.sampling``), and a file that is resumed
gets those that it lacks (``evaluation.candidate_file``).

Not here: flags (``options.sample_options``), reading prompts (``prompt_rows``), scores and pairs.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterpoint import ranks
from counterpoint.console.manners import quiet_bars, quiet_replicas
from counterpoint.errors import ConfigError, SetupError
from counterpoint.evaluation.candidate_file import CandidateFile, open_candidates
from counterpoint.log import logger
from counterpoint.options.command import Command
from counterpoint.options.evaluate_options import read_evaluation
from counterpoint.options.limits import refuse_unless_given
from counterpoint.options.sample_options import OF_ASKING, OF_LOADING, SampleOptions
from counterpoint.staged import refuse_unusable
from counterpoint.strict import strict_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from counterpoint.cli.prompt_rows import PromptRow
    from counterpoint.evaluation.sampling import Draw
    from counterpoint.evaluation.texts import Completion
    from counterpoint.options.settings import Request

USAGE = """\
usage: counterpoint sample MODEL [MODEL ...] --prompts FILE --out CANDIDATES.jsonl [-k 8] ...

Draws candidates: k texts to each prompt from each model, a line each, with the
prompt, the text, the model and the row. Scored, they are what counterpoint
pairs reads. MODEL is a hub id, a folder with a model or an adapter, or a GGUF
file; with --engine endpoint, the name of a model that a server has. A
candidate depends on seed, model, prompt and its number alone, so a sampling
that was stopped is resumed by the same command, and a larger k adds candidates.

examples:
  counterpoint sample runs/first --prompts pairs.jsonl -k 8 --out candidates.jsonl
  counterpoint sample runs/first runs/second --prompts prompts.jsonl --out both.jsonl \\
      --temperature 0.8 --top_p 0.95 --system_prompt 'Answer in one sentence.'
  counterpoint sample NAME --engine endpoint --endpoint http://127.0.0.1:8000/v1 \\
      --prompts prompts.jsonl --out served.jsonl

options:
"""

COMMAND = Command(
    "sample",
    USAGE,
    SampleOptions,
    of_train=True,
    closing=f"and of counterpoint train, which explains them: {', '.join(OF_LOADING)}",
)


def sample(words: list[str]) -> None:
    """Draw the candidates that a command line asks for.

    Args:
        words: what follows ``counterpoint sample``.

    Raises:
        CounterpointError: with the code of what cannot be done.
    """
    models, options, others = _read_words(words)
    refuse_loading(options, others)
    out = Path(str(options.out)).expanduser()
    refuse_unusable(out)
    if out.is_dir():
        raise SetupError("CP501", f"{out} cannot be written: it is a folder.")
    _refuse_ranks()
    quiet_bars()
    quiet_replicas()
    with tempfile.TemporaryDirectory(prefix="counterpoint-") as nowhere:
        # what is wrong with any model's options is said before the first is loaded
        requests = {} if options.is_served else _requests(models, others, nowhere)
        from counterpoint.cli.prompt_rows import read_prompt_rows
        from counterpoint.cli.sample_served import refuse_missing, sample_served

        rows = read_prompt_rows(options)
        settings = _settings(options, rows)
        with open_candidates(out, settings, overwrite=options.overwrite) as file:
            missing = {}
            for name in models:
                if options.is_served:
                    missing[name] = sample_served(name, options, rows, file)
                else:
                    _sample_one(name, requests[name], options, rows, file)
            logger().info("%s holds %s candidates", out, f"{len(file.written):,}")
            refuse_missing(missing, out)


def _read_words(words: list[str]) -> tuple[list[str], SampleOptions, list[str]]:
    models = []
    rest = ["--k" if word == "-k" else word for word in words]
    while rest and not rest[0].startswith("-"):
        models.append(rest.pop(0))
    options, others = COMMAND.read(rest)
    refuse_unless_given(
        {
            "the model (counterpoint sample MODEL)": models,
            "prompts (--prompts FILE)": options.prompts,
            "out (--out CANDIDATES.jsonl)": options.out,
        }
    )
    twice = [name for name, count in Counter(models).items() if count > 1]
    if twice:
        raise ConfigError("CP104", f"{twice[0]} is named twice; a larger k draws more of it.")
    return models, options, others


def refuse_loading(options: SampleOptions, others: Sequence[str]) -> None:
    """Refuse options of loading a model where a server has loaded it.

    Args:
        options: of the command.
        others: all other words.

    Raises:
        ConfigError: CP101, with the first.
    """
    if options.is_served and others:
        raise ConfigError(
            "CP101",
            f"{others[0].partition('=')[0]} would do nothing with --engine endpoint: the server "
            "has loaded its model already.",
        )


def _requests(models: Sequence[str], words: list[str], nowhere: str) -> dict[str, Request]:
    return {
        name: read_evaluation(name, words, nowhere, command="sample", takes=OF_LOADING)
        for name in models
    }


def _refuse_ranks() -> None:
    if ranks.launched() > 1:
        raise SetupError(
            "CP503",
            "counterpoint sample runs in one process. Start one a device, each with its own --out "
            "and --shard 1/N, 2/N, ...; the files together are those of one process.",
        )


def _settings(options: SampleOptions, rows: Sequence[PromptRow]) -> dict[str, Any]:
    """By what a candidate is drawn, less its model, in the order in which a difference is said."""
    prompts = hashlib.sha256()
    for row in rows:
        prompts.update(strict_json(row.asked, sort_keys=True, default=str).encode())
    return {
        **{
            name: getattr(options, name)
            for name in (
                *("seed", "temperature", "top_p", "top_k", "max_new_tokens", "stop"),
                *("system_prompt", "chat", "column", "keep", "max_rows"),
            )
        },
        "prompts": f"{len(rows):,} of digest {prompts.hexdigest()[:16]}",
    }


def _sample_one(
    name: str,
    request: Request,
    options: SampleOptions,
    rows: Sequence[PromptRow],
    file: CandidateFile,
) -> None:
    """Draw what a file lacks of one model."""
    way = _way_of_asking(request)
    file.refuse_other_way(name, way)
    step, first = options.part()
    mine = range(first, len(rows), step)
    places = [(name, row, n) for row in mine for n in range(options.k)]
    if all(place in file.written for place in places):
        logger().info("%s: all %s candidates are there", name, f"{len(places):,}")
        return
    from counterpoint.cli.evaluator import evaluating_trainer
    from counterpoint.evaluation.sampling import Sampling
    from counterpoint.models.preparing import encoder_of
    from counterpoint.monitor.checksum import digest_of_weights

    trainer = evaluating_trainer(name, request)
    tokenizer = trainer.processing_class
    # padded batches came first, and their files name no engine
    engine = {} if options.engine == "transformers" else {"engine": options.engine}
    given = {option: value for option, value in way.items() if value is not None}
    file.admit(name, {"weights": digest_of_weights(trainer.model), **engine, **given})
    encoder = encoder_of(trainer.model, tokenizer, request.config)
    prompts = [row.encoded(encoder) for row in rows]
    draws = list(_draws(name, prompts, mine, options))
    how = Sampling(
        options.max_new_tokens,
        options.temperature,
        options.top_p,
        options.top_k,
        options.batch,
        stops_of(tokenizer, options.stop),
        max(len(prompt.start or prompt.ids) for prompt in prompts),
    )
    logger().info(
        "%s: drawing %s candidates of %s prompts", name, f"{len(draws):,}", f"{len(mine):,}"
    )

    def take(done: Sequence[tuple[Draw, Completion]]) -> None:
        file.append(
            rows[one.row].candidate(name, one.candidate, text.text, len(text.ids), ended=text.ended)
            for one, text in done
        )

    with trainer.accelerator.autocast():
        _drawing(options.engine)(
            trainer.model,
            tokenizer,
            draws,
            how,
            lambda one: (name, one.row, one.candidate) in file.written,
            take,
        )


def _way_of_asking(request: Request) -> dict[str, Any]:
    """What texts depend on beside weights and prompts; None for what is not given."""
    found = {name: request.given.get(name) for name in OF_ASKING}
    template = request.run.chat_template
    if template is not None and Path(template).is_file():
        found["chat_template"] = hashlib.sha256(Path(template).read_bytes()).hexdigest()[:16]
    return found


def _drawing(engine: str) -> Callable[..., None]:
    from counterpoint.evaluation.sampling import continuous_batching, draw_candidates

    if engine == "transformers":
        return draw_candidates
    draw: Callable[..., None] = continuous_batching().draw_continuously
    return draw


def _draws(
    model: str, prompts: Sequence[Any], mine: Sequence[int], options: SampleOptions
) -> Iterator[Draw]:
    from counterpoint.evaluation.sampling import Draw, candidate_chance

    seen: Counter[Any] = Counter()
    for row, prompt in enumerate(prompts):
        occurrence = seen[prompt.ids, prompt.start]
        seen[prompt.ids, prompt.start] += 1
        if row not in mine:
            continue
        for n in range(options.k):
            yield Draw(row, n, prompt, candidate_chance(options.seed, model, prompt, occurrence, n))


def stops_of(tokenizer: PreTrainedTokenizerBase, given: Sequence[str]) -> tuple[int, ...]:
    """Tokens that end a text, the one that the chat template ends a turn with among them.

    Args:
        tokenizer: of the model.
        given: tokens as its vocabulary spells them.

    Raises:
        ConfigError: CP103 for one that the vocabulary does not have.
    """
    from counterpoint.data.turn_end import turn_end

    vocabulary = tokenizer.get_vocab()
    unknown = [one for one in given if one not in vocabulary]
    if unknown:
        raise ConfigError(
            "CP103",
            f"stop={unknown[0]} should be a token of the vocabulary, which has none that is "
            "spelled so.",
        )
    end = turn_end(tokenizer)
    ends = [vocabulary[one] for one in given]
    return tuple(ends if end is None else [*ends, end])
