"""A conversation: what a person says, what one model or two answer, and which answer is better.

1. A message is answered, or left out with a reason; then the conversation is as it was before.
2. Of two answers the preferred one stays in the conversation, for both models, so that what they
   are asked next is the same. Without a preference the first one stays.
3. Two answers that are alike, or of which one is blank, are no pair: there is nothing to prefer.

Not here: models (``chat``, ``evaluation.speaker``), the terminal (``console.person``), files
(``evaluation.talk_files``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from counterpoint.cli.prompt_rows import PromptRow
from counterpoint.console.manners import complain
from counterpoint.console.person import Person, stoppable
from counterpoint.doctor.table import error_in_words
from counterpoint.errors import CounterpointError, DataError
from counterpoint.evaluation.sampling import candidate_chance
from counterpoint.evaluation.speaker import Speaker
from counterpoint.evaluation.talk_files import TalkFiles
from counterpoint.evaluation.texts import Completion
from counterpoint.preference_row import Text

ASKED = "you> "
JUDGED = "better: 1 or 2, s to skip> "
FIRST, SECOND, SKIP = "1", "2", "s"


@dataclass(slots=True)
class Conversation:
    """What was said, and the prompt that is made of it.

    Args:
        system: text of a system turn, or None.
        as_text: whether the model has no chat template: then a prompt is the message as text.
        alone: whether each message is a prompt by itself; what was said before is not shown.
        turns: messages that were answered, each with its answer.
    """

    system: str | None = None
    as_text: bool = False
    alone: bool = False
    turns: list[tuple[str, str]] = field(default_factory=list)

    def prompt(self, message: str) -> Text:
        """What a model is asked.

        Args:
            message: the newest one.
        """
        if self.as_text:
            return message
        said = [] if self.system is None else [{"role": "system", "content": self.system}]
        for asked, answer in [] if self.alone else self.turns:
            said.append({"role": "user", "content": asked})
            said.append({"role": "assistant", "content": answer})
        return [*said, {"role": "user", "content": message}]

    def completion(self, text: str) -> Text:
        """An answer as a row has it.

        Args:
            text: of the answer.
        """
        return text if self.as_text else [{"role": "assistant", "content": text}]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model said to one prompt.

    Args:
        model: its name.
        said: the text.
    """

    model: str
    said: Completion


@dataclass(slots=True)
class _Asked:
    """A message that is being answered, perhaps several times.

    Args:
        row: its number in the files.
        message: as it was typed.
        prompt: the conversation with it.
        occurrence: how often that prompt was asked before.
        answers: how many each model has given.
        last: the one that stays.
    """

    row: int
    message: str
    prompt: Text
    occurrence: int
    answers: int = 0
    last: Answer | None = None


class Talk:
    """A chat from its first message to its end.

    Args:
        person: who talks.
        speakers: one model, or two.
        conversation: which is empty.
        files: where all of it is kept; None for nowhere.
        blind: whether two models are mixed, and named only after the choice.
    """

    def __init__(
        self,
        person: Person,
        speakers: Sequence[Speaker],
        conversation: Conversation,
        files: TalkFiles | None = None,
        *,
        blind: bool = False,
    ) -> None:
        self._person, self._speakers, self._conversation = person, speakers, conversation
        self._files, self._blind = files, blind
        self._row = files.next_row if files else 0
        self._before: Counter[str] = Counter()
        self._asked: _Asked | None = None
        self._over = False
        self.preferred: Counter[str] = Counter()
        self.skipped = 0
        self._commands: Mapping[str, tuple[Callable[[], None], str]] = {
            "/again": (self._again, "another answer to the last message; then say which is better"),
            "/undo": (self._undo, "take the last message and its answer back"),
            "/reset": (self._reset, "begin a new conversation"),
            "/help": (self._help, "these lines"),
            "/quit": (self._quit, "end; so do Ctrl-D and Ctrl-C"),
        }

    def run(self) -> None:
        """Talk until the person ends it."""
        while not self._over:
            line = self._person.message(ASKED)
            if line is None:
                return
            name = line.strip()
            if not name:
                continue
            if name.startswith("/") and not name.startswith("//"):
                self._command(name)
            else:
                self._say(line.replace("//", "/", 1) if name.startswith("//") else line)

    # Commands

    def _command(self, name: str) -> None:
        if name not in self._commands:
            self._person.note(
                f"there is no command {_short(name)}; /help lists them, and // begins a message "
                "with /"
            )
            return
        self._commands[name][0]()

    def _help(self) -> None:
        for name, (_, what) in self._commands.items():
            self._person.note(f"{name:<7} {what}")
        self._person.note('"""     begins and ends a message of several lines')

    def _quit(self) -> None:
        self._over = True

    def _reset(self) -> None:
        self._conversation.turns.clear()
        self._asked = None
        self._person.note("a new conversation")

    def _undo(self) -> None:
        if not self._conversation.turns:
            self._person.note("there is nothing to take back")
            return
        message, _ = self._conversation.turns.pop()
        self._asked = None
        kept = "; what was written to the files stays there" if self._files else ""
        self._person.note(f"taken back: {_short(message)}{kept}")

    def _again(self) -> None:
        asked = self._asked
        if asked is None or asked.last is None:
            self._person.note("there is no message yet that could be answered again")
        elif not self._speakers[0].how.temperature:
            self._person.note("at temperature 0 every answer is the same; start with another one")
        else:
            before = asked.last
            self._conversation.turns.pop()
            new = self._answers(asked, shown_before=len(self._speakers) == 1)
            self._settle(asked, [before, *new] if len(self._speakers) == 1 else new, before)

    # A message and its answers

    def _say(self, message: str) -> None:
        prompt = self._conversation.prompt(message)
        key = repr(prompt)
        asked = _Asked(self._row, message, prompt, self._before[key])
        new = self._answers(asked)
        if new:
            self._before[key] += 1
            self._row += 1
            self._asked = asked
            self._settle(asked, new, new[0])

    def _answers(self, asked: _Asked, shown_before: bool = False) -> list[Answer]:
        """One answer of each model, in the order in which they are shown; none where none can be.

        Args:
            asked: the message.
            shown_before: whether the person has one answer already.
        """
        try:
            _check_unicode(asked.message)
            row = PromptRow(asked.row, asked.prompt, {"prompt": asked.prompt})
            # of two models either both answer or neither
            prompts = [row.encoded(speaker.encoder) for speaker in self._speakers]
            for speaker, prompt in zip(self._speakers, prompts, strict=True):
                speaker.room(prompt)
        except CounterpointError as error:
            complain(error_in_words(error.code, error.message))
            return []
        places = list(range(len(self._speakers)))
        if self._blind and self._coin(asked, prompts[0]):
            places.reverse()
        found = []
        for number, place in enumerate(places, 1 + shown_before):
            if shown_before:
                self._person.show(f"[{number}] ({FIRST} is the answer above)\n")
            elif len(places) > 1:
                name = "" if self._blind else f" {self._speakers[place].name}"
                self._person.show(f"[{number}]{name}\n")
            found.append(self._answer(self._speakers[place], prompts[place], asked))
            if self._over:
                break
        asked.answers += 1
        return found

    def _coin(self, asked: _Asked, prompt: Any) -> bool:
        """Whether the base is shown first: half of the time, and the same for the same seed."""
        seed = self._speakers[0].seed
        return bool(candidate_chance(seed, "blind", prompt, asked.occurrence, asked.answers) & 1)

    def _answer(self, speaker: Speaker, prompt: Any, asked: _Asked) -> Answer:
        with stoppable() as stop:
            said = speaker.answer(prompt, asked.occurrence, asked.answers, self._person.show, stop)
        self._person.show("\n")
        if self._files:
            self._files.keep(self._entry(speaker, said, asked))
        if stop.pressed:
            self._person.note("stopped")
        elif not said.ended:
            short = len(said.ids) < speaker.how.most_tokens
            limit = "the model's positions end there" if short else "--max_new_tokens is the limit"
            self._person.note(f"cut after {len(said.ids):,} tokens; {limit}")
        elif not said.text.strip():
            self._person.note("a blank answer")
        self._over = stop.pressed > 1
        return Answer(speaker.name, said)

    def _entry(self, speaker: Speaker, said: Completion, asked: _Asked) -> Mapping[str, Any]:
        return {
            "prompt": asked.prompt,
            "text": said.text,
            "model": speaker.name,
            "row": asked.row,
            "candidate": asked.answers,
            "tokens": len(said.ids),
            "ended": said.ended,
            "temperature": speaker.how.temperature,
            "top_p": speaker.how.top_p,
            "top_k": speaker.how.top_k,
            "seed": speaker.seed,
        }

    def _settle(self, asked: _Asked, answers: Sequence[Answer], otherwise: Answer) -> None:
        """Let the preferred answer stay in the conversation, or else another one."""
        stays = otherwise
        if len(answers) == 2 and not self._over:
            stays = self._judged(asked, *answers) or otherwise
        asked.last = stays
        self._conversation.turns.append((asked.message, stays.said.text))

    def _judged(self, asked: _Asked, one: Answer, other: Answer) -> Answer | None:
        """The better one, kept as a pair; None without a preference."""
        texts = [one.said.text.strip(), other.said.text.strip()]
        if not all(texts) or texts[0] == texts[1]:
            what = "one is blank" if not all(texts) else "they are the same"
            self._person.note(f"no pair: {what}")
            return None
        key = self._person.key(JUDGED, (FIRST, SECOND, SKIP))
        if key is None:
            self._over = True
            return None
        if key == SKIP:
            self.skipped += 1
            return None
        chosen, rejected = (one, other) if key == FIRST else (other, one)
        if self._files:
            self._files.prefer(self._pair(asked, chosen, rejected))
        self.preferred[chosen.model] += 1
        if self._blind:
            self._person.note(f"1 was {one.model}, 2 was {other.model}")
        return chosen

    def _pair(self, asked: _Asked, chosen: Answer, rejected: Answer) -> Mapping[str, Any]:
        return {
            "prompt": asked.prompt,
            "chosen": self._conversation.completion(chosen.said.text),
            "rejected": self._conversation.completion(rejected.said.text),
            "chosen_model": chosen.model,
            "rejected_model": rejected.model,
            "chosen_ended": chosen.said.ended,
            "rejected_ended": rejected.said.ended,
            "blind": self._blind,
            "row": asked.row,
        }


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 50 else f"{line[:47]}..."


def _check_unicode(message: str) -> None:
    try:
        message.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "CP202", "the message holds bytes that are no UTF-8, and was left out. Type it anew."
        ) from error
