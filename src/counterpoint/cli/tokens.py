"""``counterpoint tokens``: rows of a run's data as they would be trained, token by token.

It takes the options of ``train`` and needs data and a tokenizer, but no weights.

Not here: which token is what (``data.row_tokens``), how it is drawn (``data.token_view``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from counterpoint.console.manners import importing, quiet_bars, shown, terminal_width
from counterpoint.data.token_view import BAR, LEGEND, PART_OF_CHARACTER, draw_tokens
from counterpoint.errors import ConfigError, DataError, ModelError
from counterpoint.options.command import Command
from counterpoint.options.declared import option
from counterpoint.strict import strict_json
from counterpoint.visible import visible

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from counterpoint.config import CPOConfig
    from counterpoint.options.settings import Request

USAGE = """\
usage: counterpoint tokens [CONFIG.yaml] [--row N ...] [--option value ...]

Shows rows of the data set as they are trained: prompt, chosen and rejected as
tokens, special tokens, the boundary, what was cut and what carries loss. Takes
the options of counterpoint train; needs data and a tokenizer, no weights.

examples:
  counterpoint tokens run.yaml --row 17
  counterpoint tokens --tokenizer Qwen/Qwen2.5-0.5B --dataset pairs.jsonl

options beside those of train:
"""


@dataclass(frozen=True, slots=True)
class TokensOptions:
    """What the command takes beside ``train``'s options; every field's help is its meaning."""

    row: list[int] = option([0], "Rows to show, numbered from 0 as in every message.")
    json: bool = option(False, "One JSON object a row and line instead of a drawing.")
    color: str = option(
        "auto",
        "Colour by role. auto: on a terminal, unless NO_COLOR is set.",
        ("auto", "always", "never"),
    )

    def __post_init__(self) -> None:
        """Refuse rows that no data set has."""
        below = [row for row in self.row if row < 0]
        if below or not self.row:
            raise ConfigError("CP103", f"row={below or self.row} should be numbers from 0.")


COMMAND = Command("tokens", USAGE, TokensOptions, of_train=True)


def tokens(words: list[str]) -> None:
    """Show the rows that a command line asks for.

    Args:
        words: what follows ``counterpoint tokens``.

    Raises:
        CounterpointError: with the code of what cannot be done, a refused row's own included.
    """
    options, others = COMMAND.read(words)
    # slow to import, and so after what the words alone can tell
    with importing():
        from counterpoint.options.settings import read_values, request_of

    given = read_values(others)
    if given.get("tokenizer") and not given.get("model"):
        given["model"] = given["tokenizer"]  # the model is not looked at
    _show(request_of(given), options)


def _show(request: Request, options: TokensOptions) -> None:
    from counterpoint.cli.continued import base_named
    from counterpoint.cli.hub import hub_or_cache
    from counterpoint.cli.own_data import shown_name, shown_rows
    from counterpoint.cli.parts import (
        hide_token,
        hub_names,
        load_own_tokenizer,
        merge_model_options,
    )
    from counterpoint.data import formats
    from counterpoint.data.csv_sets import lists_of_csv
    from counterpoint.data.mixture import Mixture, joined_rows
    from counterpoint.data.options import PrepareOptions
    from counterpoint.data.picture_files import folder_of
    from counterpoint.data.row_tokens import tokens_of_row
    from counterpoint.data.several import one_rejected_a_row
    from counterpoint.models.preparing import encoder_of, prepare_tokenizer

    quiet_bars()
    run, config = request.run, request.config
    hide_token(config)
    with hub_or_cache(hub_names(run)):
        merge_model_options(run, config)
        tokenizer = prepare_tokenizer(load_own_tokenizer(run, config))
        # a tokenizer alone is taken for a decoder's
        described = _described(base_named(run), config)
        found = shown_rows(run, config)
    limits, encoder = PrepareOptions.of(config).limits, encoder_of(described, tokenizer, config)
    name, width = shown(shown_name(run)), terminal_width()
    whole, folder = joined_rows(found), folder_of(joined_rows(found))
    rows = one_rejected_a_row(lists_of_csv(whole, name))
    if rows.column_names is not None:
        formats.check_columns(rows.column_names, name=name)
    for raw, row in _picked(rows, options.row, name):
        named, own = found.set_of(row) if isinstance(found, Mixture) else (name, row)
        apart = "" if (named, own) == (name, row) else f", row {own} of {shown(named)}"
        try:
            drawn = tokens_of_row(raw, row, encoder, limits, folder=folder)
        except DataError as error:
            raise DataError(error.code, f"{name}{apart}, {error.message}") from error
        if options.json:
            of = {"set": shown(named), "row_of_set": own} if isinstance(found, Mixture) else {}
            _write(visible(_as_json({"data": name, **of, **drawn.as_dict()})))
        else:
            color = _colored(options.color)
            _write(f"{draw_tokens(drawn, name=f'{name}{apart}', width=width, color=color)}\n")
    if not options.json:
        _write(LEGEND)


def _as_json(told: dict[str, Any]) -> str:
    return strict_json(told, ensure_ascii=False)


def _described(source: str, config: CPOConfig) -> Any:
    """The configuration of a model, which says how its rows are read; None where there is none.

    Raises:
        ModelError: CP306 for a kind that is not trained.
    """
    from counterpoint.models.loading import load_config

    try:
        return load_config(source, config, from_scratch=True)
    except ModelError as error:
        if error.code == "CP306":  # of which nobody knows how its rows are read
            raise
        return None  # rows are shown without a model, too, as a decoder reads them


def _picked(
    rows: Dataset | IterableDataset, wanted: list[int], name: str
) -> Iterator[tuple[Any, int]]:
    """The wanted rows in the wanted order; a stream is read up to the last of them."""
    if hasattr(rows, "__len__"):
        _check_rows(wanted, len(rows), name)
        yield from ((rows[row], row) for row in wanted)
        return
    last, found, seen = max(wanted), {}, 0
    for row, raw in enumerate(rows):
        seen = row + 1
        if row in wanted:
            found[row] = raw
        if row == last:
            break
    _check_rows(wanted, seen, name)
    yield from ((found[row], row) for row in wanted)


def _check_rows(wanted: list[int], length: int, name: str) -> None:
    beyond = [row for row in wanted if row >= length]
    if beyond:
        raise ConfigError(
            "CP103", f"row={beyond[0]} should be below {length:,}: {name} has {length:,} rows."
        )


def _colored(color: str) -> bool:
    if color != "auto":
        return color == "always"
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain


def _write(text: str) -> None:
    """A line on standard output, whatever characters it can show."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.replace(BAR, "|").replace(PART_OF_CHARACTER, "~")
        text = plain.encode(encoding, errors="backslashreplace").decode(encoding)
    sys.stdout.write(f"{text}\n")
