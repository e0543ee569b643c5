"""Candidates of a model that is served elsewhere, behind OpenAI's protocol.

A candidate's seed is sent, but what a server makes of it is the server's: it may write other texts
another time. What it did not give is counted and absent, so that the same command asks for it.

Not here: the requests (``counterpoint.endpoint``), the file (``evaluation.candidate_file``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from counterpoint.cli.prompt_rows import PromptRow
from counterpoint.console.phases import phase
from counterpoint.data.chat import is_prefilled
from counterpoint.endpoint import Endpoint, Question
from counterpoint.errors import DataError
from counterpoint.evaluation.candidate_file import CandidateFile
from counterpoint.evaluation.chance import chance_by
from counterpoint.log import logger
from counterpoint.options.sample_options import SampleOptions
from counterpoint.replies import Reply, ReplyKind
from counterpoint.strict import strict_json

SEEDS = 2**31
"""Every server takes a seed below it."""

PASSED_ON = "chat_template_kwargs"
"""A column that vLLM, SGLang and llama.cpp read as a field of the request."""

CALLS = ("tool_calls", "function_call")
"""Reasons to finish after which an empty text is no text."""


def sample_served(
    name: str, options: SampleOptions, rows: Sequence[PromptRow], file: CandidateFile
) -> Counter[str]:
    """Ask for what a file lacks of one model.

    Args:
        name: as the server calls it.
        options: with ``endpoint``.
        rows: all prompts.
        file: open.

    Returns:
        How many candidates were not given, by reason.

    Raises:
        SetupError: CP529 where the endpoint is of no use.
        DataError: CP202 and CP221 for a prompt that cannot be asked there.
    """
    endpoint = Endpoint(
        str(options.endpoint),
        name,
        options.api_key_env,
        options.timeout,
        options.retries,
        options.concurrency,
    )
    step, first = options.part()
    wanted = [
        (row, n, seed)
        for row, n, seed in _seeds(name, rows, options)
        if row % step == first and (name, row, n) not in file.written
    ]
    if not wanted:
        logger().info("%s: all candidates are there", name)
        return Counter()
    for row in rows:
        _refuse_unaskable(row)
    moves = ("endpoint",) if options.new_address else ()
    file.admit(name, {"engine": "endpoint", "endpoint": options.endpoint}, moves)
    logger().info(
        "%s: asking %s for %s candidates. Each has a seed of its own, but a server may write other "
        "texts another time.",
        *(name, options.endpoint, f"{len(wanted):,}"),
    )
    missing: Counter[str] = Counter()
    with phase("asking for candidates", len(wanted), "candidates") as now:

        def take(number: int, reply: Reply) -> None:
            row, n, _ = wanted[number]
            lacks = _lacking(reply)
            if lacks is None:
                file.append(
                    [rows[row].candidate(name, n, reply.text, reply.tokens, ended=reply.ended)]
                )
            else:
                missing[lacks] += 1
            now.advance()

        endpoint.ask_all((_question(rows[row], seed, options) for row, _, seed in wanted), take)
    return missing


def refuse_missing(missing: Mapping[str, Counter[str]], out: object) -> None:
    """Say what is not there, if anything is.

    Args:
        missing: how many candidates of each model, by reason.
        out: the file.

    Raises:
        DataError: CP249 where some are missing.
    """
    said = [
        f"{sum(counts.values()):,} of {name} ("
        + "; ".join(f"{count:,} times {reason}" for reason, count in counts.most_common(3))
        + ")"
        for name, counts in missing.items()
        if counts
    ]
    if said:
        raise DataError(
            "CP249",
            f"{out} lacks candidates that the endpoint did not give: {', '.join(said)}. Those that "
            "it gave are there; the same command asks for the others again.",
        )


def _seeds(
    name: str, rows: Sequence[PromptRow], options: SampleOptions
) -> Iterator[tuple[int, int, int]]:
    """Row, number and seed of every candidate; equal prompts are numbered."""
    seen: Counter[str] = Counter()
    for row in rows:
        asked = strict_json(row.asked, sort_keys=True, default=str)
        for n in range(options.k):
            chance = chance_by(options.seed, name, asked, seen[asked], n)
            yield row.row, n, chance % SEEDS
        seen[asked] += 1


def _refuse_unaskable(row: PromptRow) -> None:
    beside = sorted({*row.asked} - {"prompt", PASSED_ON})
    if beside:
        raise DataError(
            "CP202",
            f"row {row.row}: {beside[0]} is nothing that an endpoint is told. Leave the column "
            "out, or sample from the model itself.",
        )
    if is_prefilled(row.prompt):
        raise DataError(
            "CP221",
            f"row {row.row}: prompt ends within an assistant's turn, which an endpoint does not "
            "continue. Let it end with a user's turn, or sample from the model itself.",
        )


def _question(row: PromptRow, seed: int, options: SampleOptions) -> Question:
    settings: dict[str, Any] = {
        "max_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": seed,
    }
    if options.top_k:  # no field of OpenAI's own: a server that lacks it says so
        settings["top_k"] = options.top_k
    if options.stop:
        settings["stop"] = list(options.stop)
    if PASSED_ON in row.asked:
        settings[PASSED_ON] = row.asked[PASSED_ON]
    prompt: Any = row.prompt
    return Question(prompt, settings)


def _lacking(reply: Reply) -> str | None:
    """Why there is no candidate; None where there is one.

    A text may be empty if the model ended it so, as with any engine.
    """
    if reply.kind is ReplyKind.TEXT:
        return None
    if reply.kind is ReplyKind.EMPTY:
        by_itself = reply.ended and reply.finish not in CALLS
        return None if by_itself else f"no text (finish_reason {reply.finish})"
    verb = "refused" if reply.kind is ReplyKind.REFUSED else "failed"
    return f"{verb}: {reply.reason}"
