"""``counterpoint chat``: talk with a model, or with two, and say which answer is better.

Not here: flags (``options.chat_options``), the conversation (``talk``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from counterpoint import ranks
from counterpoint.console.manners import quiet_bars
from counterpoint.errors import ConfigError, DataError, SetupError
from counterpoint.log import logger
from counterpoint.options.chat_options import ChatOptions
from counterpoint.options.command import Command
from counterpoint.options.evaluate_options import read_evaluation
from counterpoint.options.sample_options import OF_LOADING
from counterpoint.staged import refuse_unusable

if TYPE_CHECKING:
    from counterpoint.cli.talk import Conversation, Talk
    from counterpoint.evaluation.speaker import Speaker
    from counterpoint.evaluation.talk_files import TalkFiles
    from counterpoint.options.settings import Request

USAGE = """\
usage: counterpoint chat MODEL [--base BASE] [--out PAIRS.jsonl] [--option value ...]

Talks with a model through its chat template, token by token; a model without
one is given each message by itself, as plain text. MODEL is a hub id, a folder with a model or
an adapter, or a GGUF file. With --base two models answer, one below the other,
and a key says which is better: a row of PAIRS.jsonl, which counterpoint train
reads. With one model /again draws another answer to compare. Ctrl-C stops an
answer; Ctrl-D ends the chat. Messages may come from a pipe, a line each.

examples:
  counterpoint chat runs/first
  counterpoint chat runs/first --base Qwen/Qwen2.5-0.5B --blind --out judged.jsonl
  echo 'What is 3 and 3?' | counterpoint chat runs/first --temperature 0

options:
"""

COMMAND = Command(
    "chat",
    USAGE,
    ChatOptions,
    of_train=True,
    closing=f"and of counterpoint train, which explains them: {', '.join(OF_LOADING)}",
)


def chat(words: list[str]) -> None:
    """Hold the chat that a command line asks for.

    Args:
        words: what follows ``counterpoint chat``.

    Raises:
        CounterpointError: with the code of what cannot be done.
    """
    if not words or words[0].startswith("-"):
        raise ConfigError("CP107", "the model is missing; write counterpoint chat MODEL.")
    name, *rest = words
    options, others = COMMAND.read(rest)
    if options.base == name:
        raise ConfigError(
            "CP104",
            f"base={name} is the model itself. Leave it out; /again draws another answer of it.",
        )
    if ranks.launched() > 1:
        raise SetupError("CP503", "counterpoint chat runs in one process.")
    out = None if options.out is None else Path(options.out).expanduser()
    if out is not None:
        refuse_unusable(out)
        if out.is_dir():
            raise SetupError("CP501", f"{out} cannot be written: it is a folder.")
    quiet_bars()
    with tempfile.TemporaryDirectory(prefix="counterpoint-") as nowhere:
        # what is wrong with either model's options is said before the first is loaded
        asked = {name: read_evaluation(name, others, nowhere, command="chat", takes=OF_LOADING)}
        if options.base is not None:
            asked[options.base] = read_evaluation(
                name, others, nowhere, base=options.base, command="chat", takes=OF_LOADING
            )
        with _kept(out) as files:
            speakers = _speakers(asked, options, files)
            _hold(speakers, options, files, out)


@contextmanager
def _kept(out: Path | None) -> Iterator[TalkFiles | None]:
    from counterpoint.evaluation.talk_files import open_talk

    if out is None:
        yield None
        return
    with open_talk(out) as files:
        yield files


def _speakers(
    asked: dict[str, Request], options: ChatOptions, files: TalkFiles | None
) -> list[Speaker]:
    """All models, loaded; the first one says whether there is a chat template."""
    from counterpoint.cli.evaluator import evaluating_trainer
    from counterpoint.cli.sample import stops_of
    from counterpoint.evaluation.sampling import Sampling
    from counterpoint.evaluation.speaker import Speaker
    from counterpoint.models.preparing import encoder_of
    from counterpoint.monitor.checksum import digest_of_weights

    found: list[Speaker] = []
    for name, request in asked.items():
        trainer = evaluating_trainer(name, request)
        tokenizer = trainer.processing_class
        if found:
            _share_template(found[0], name, tokenizer)
        if files is not None:
            files.admit(name, digest_of_weights(trainer.model))
        how = Sampling(
            options.max_new_tokens,
            options.temperature,
            options.top_p,
            options.top_k,
            1,
            stops_of(tokenizer, options.stop),
        )
        encoder = encoder_of(trainer.model, tokenizer, request.config)
        found.append(
            Speaker(
                name,
                trainer.model,
                tokenizer,
                encoder,
                how,
                options.seed,
                trainer.accelerator.autocast,
            )
        )
    return found


def _share_template(first: Speaker, name: str, tokenizer: object) -> None:
    """Two models are asked the same; where one has a template alone, the first one's way counts."""
    own, others = getattr(tokenizer, "chat_template", None), first.tokenizer.chat_template
    if others and not own:
        logger().warning("%s has no chat template: it is given that of %s", name, first.name)
        tokenizer.chat_template = others  # type: ignore[attr-defined]


def _conversation(speakers: Sequence[Speaker], options: ChatOptions) -> Conversation:
    from counterpoint.cli.talk import Conversation

    first = speakers[0]
    encodes = {bool(one.model.config.is_encoder_decoder) for one in speakers}
    if len(encodes) > 1:
        raise ConfigError(
            "CP104",
            f"{speakers[0].name} and {speakers[1].name} are asked in different ways: one of them "
            "is an encoder-decoder, which reads a source. Compare models of one kind.",
        )
    as_text = not first.tokenizer.chat_template
    if as_text and options.system_prompt is not None:
        raise DataError(
            "CP208",
            f"system_prompt is a turn of a conversation, and {first.name} has no chat template. "
            "Leave it out, or name a template with --chat_template.",
        )
    if as_text:
        logger().info(
            "%s has no chat template: each message is given as plain text, by itself", first.name
        )
    elif True in encodes:
        logger().info("%s reads a source: each message is given by itself", first.name)
    return Conversation(options.system_prompt, as_text, as_text or True in encodes)


def _hold(
    speakers: Sequence[Speaker], options: ChatOptions, files: TalkFiles | None, out: Path | None
) -> None:
    from counterpoint.cli.talk import Talk
    from counterpoint.console.person import Person

    person = Person()
    talk = Talk(person, speakers, _conversation(speakers, options), files, blind=options.blind)
    if person.by_hand:
        person.note("/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends the chat")
    try:
        talk.run()
    finally:
        _tally(talk, options, files, out)


def _tally(talk: Talk, options: ChatOptions, files: TalkFiles | None, out: Path | None) -> None:
    from counterpoint.evaluation.talk_files import said_path

    judged = [f"{name} {count:,}" for name, count in sorted(talk.preferred.items())]
    if options.base is not None and (judged or talk.skipped):
        logger().info(
            "preferred: %s; skipped: %s", ", ".join(judged) or "none", f"{talk.skipped:,}"
        )
    if files is not None and out is not None:
        logger().info(
            "%s pairs added to %s, %s answers to %s",
            f"{files.pairs:,}",
            out,
            f"{files.answers:,}",
            said_path(out),
        )
