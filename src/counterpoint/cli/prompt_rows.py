"""Prompts that candidates are drawn to: rows of any shape that ``train`` reads, or lines of text.

Not here: token ids (``data.encoder``), the draws (``sample``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.data.candidates import CARRIED
from counterpoint.data.chat import is_prefilled
from counterpoint.data.csv_sets import lists_of_csv
from counterpoint.data.encoder import Encoder
from counterpoint.data.formats import to_preference_row, to_prompt
from counterpoint.data.plain import plain
from counterpoint.data.sources import load, pick_split
from counterpoint.errors import DataError, first_line
from counterpoint.evaluation.generation import Prompt
from counterpoint.log import logger
from counterpoint.options.sample_options import SampleOptions
from counterpoint.preference_row import PreferenceRow, Text

_SOURCES = ("prompt", "conversations", "instruction", "messages")
"""Columns that hold a prompt of its own."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt as a candidate's row has it.

    Args:
        row: its number, from 0.
        prompt: text or messages, the system turn among them.
        asked: cells that it is encoded from, by column.
        kept: cells that are copied to each candidate.
    """

    row: int
    prompt: Text
    asked: Mapping[str, Any]
    kept: Mapping[str, Any] = field(default_factory=dict)

    def encoded(self, encoder: Encoder[Any]) -> Prompt:
        """Its token ids.

        Args:
            encoder: of a model.

        Raises:
            DataError: CP2xx for what that model cannot be asked.
        """
        ids = encoder.prompt_ids(to_prompt(encoder.named(self.asked, self.row), self.row))
        end = len(ids) - encoder.start_tokens
        if not end:
            raise DataError(
                "CP202", f"row {self.row}: the prompt has no token; a model is asked something."
            )
        return Prompt(tuple(ids[:end]), start=tuple(ids[end:]))

    def candidate(
        self, model: str, number: int, text: str, tokens: int | None, *, ended: bool
    ) -> dict[str, Any]:
        """A candidate's row.

        Args:
            model: its name.
            number: of the candidate among those of this prompt, from 0.
            text: of the candidate.
            tokens: that it has; None where nobody counts them.
            ended: whether the model ended it.
        """
        return {
            "prompt": self.prompt,
            "text": text,
            "model": model,
            "row": self.row,
            "candidate": number,
            "tokens": tokens,
            "ended": ended,
            **self.kept,
        }


def read_prompt_rows(options: SampleOptions) -> list[PromptRow]:
    """All prompts that are asked for.

    Args:
        options: of the command.

    Raises:
        DataError: CP201 and CP202 for rows without a usable prompt, CP209 where there is none,
            CP210 and CP211 for files, CP219 for prompts about pictures.
    """
    found, own = [], 0
    for number, raw in enumerate(_raw_rows(options)):
        if options.max_rows is not None and number >= options.max_rows:
            break
        read, cells = _read(raw, number, options)
        prompt = read.prompt
        system = isinstance(prompt, list) and prompt[0]["role"] == "system"
        own += system and options.system_prompt is not None
        if options.chat or options.system_prompt is not None:
            prompt = _as_chat(prompt, options.system_prompt, number)
        kept = {name: _cell(raw, name, number) for name in options.keep}
        asked = {**cells, "prompt": prompt}
        found.append(PromptRow(number, prompt, asked, {**cells, **kept}))
    if not found:
        raise DataError(
            "CP209", f"{' '.join(options.prompts)} holds no prompt; a model is asked something."
        )
    if own:
        logger().info("%s prompts have a system turn of their own, which stays", f"{own:,}")
    return found


def _raw_rows(options: SampleOptions) -> Any:
    sources = options.prompts
    lines = [one for one in sources if Path(one).suffix.lower() == ".txt"]
    if lines and len(lines) < len(sources):
        raise DataError(
            "CP210", f"{lines[0]} is text and the other files are rows; give one kind at a time."
        )
    if lines:
        return [{"prompt": line} for path in lines for line in _lines(Path(path).expanduser())]
    one: str | Sequence[str] = sources[0] if len(sources) == 1 else sources
    return lists_of_csv(pick_split(load(one, split=options.split)))


def _lines(path: Path) -> list[str]:
    """Lines that hold something; a prompt of several lines is a row of another kind of file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError("CP211", f"{path}: there is no such file.") from error
    except (OSError, ValueError) as error:
        raise DataError("CP210", f"{path} cannot be read: {first_line(error)}") from error
    return [line for line in text.split("\n") if line.strip()]


def _read(
    raw: Mapping[str, Any], number: int, options: SampleOptions
) -> tuple[PreferenceRow, dict[str, Any]]:
    if options.column is not None:
        beside = {name: raw[name] for name in (*CARRIED, "system") if name in raw}
        raw = {**beside, "prompt": _cell(raw, options.column, number)}
    elif not any(raw.get(name) for name in _SOURCES) and "chosen" in raw and "prompt" not in raw:
        read = to_preference_row(raw, number)  # a prompt that both completions begin with
        return read, _carried(raw)
    elif not any(name in raw for name in _SOURCES):
        columns = ", ".join(map(str, raw)) or "none"
        raise DataError(
            "CP201",
            f"row {number} has no column prompt; it has {columns}. Name the one with --column.",
        )
    prompt = raw.get("prompt")
    if "prompt" in raw and (not isinstance(prompt, str | list) or not _filled(prompt)):
        raise DataError(
            "CP202",
            f"row {number}: prompt is {str(prompt)[:40]!r}; expected a text or a list of messages.",
        )
    # completions, and a table's other columns, say nothing of what is asked
    shown = {name: cell for name, cell in raw.items() if name not in ("chosen", "rejected")}
    if isinstance(prompt, str) and isinstance(raw.get("system"), str):
        # as the row would be trained on
        shown["prompt"] = [{"role": "user", "content": prompt}]
    try:
        return to_prompt(shown, number), _carried(raw)
    except DataError as error:
        if error.code != "CP219":
            raise
        raise DataError(
            "CP219",
            f"row {number} shows a picture or plays a sound; candidates are drawn to text alone. "
            "Leave such rows out; counterpoint evaluate --prompts writes about pictures.",
        ) from error


def _filled(prompt: str | list[Any]) -> bool:
    return bool(prompt.strip() if isinstance(prompt, str) else prompt)


def _carried(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {name: plain(raw[name]) for name in CARRIED if raw.get(name) is not None}


def _as_chat(prompt: Text, system: str | None, number: int) -> Text:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if system is None or messages[0]["role"] == "system":
        return messages
    if is_prefilled(messages) and len(messages) == 1:
        raise DataError(
            "CP202", f"row {number}: prompt is an assistant's turn alone, with nothing to answer."
        )
    return [{"role": "system", "content": system}, *messages]


def _cell(raw: Mapping[str, Any], name: str, number: int) -> Any:
    if name not in raw:
        columns = ", ".join(map(str, raw)) or "none"
        raise DataError("CP201", f"row {number} has no column {name}; it has {columns}.")
    return plain(raw[name])
