"""``counterpoint tokens`` shows what ``train`` would train, to people, to machines, in colour."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from counterpoint.cli import tokens as module
from counterpoint.cli.tokens import TokensOptions
from counterpoint.data.row_tokens import Piece, RowTokens, ShownPicture
from counterpoint.data.token_view import BAR, CUT_SHOWN, _picture, draw_tokens
from counterpoint.data.vision import PictureReader
from counterpoint.forward.sights import SIGHTS
from counterpoint.options.declared import declared
from counterpoint.picture import Picture
from counterpoint.wrap import columns
from tests.cli.conftest import PAIRS, Command, tree, write_pairs
from tests.vision_on_the_spot import encoded, seer

BASE = ["tokens", "--model", "model", "--dataset", "pairs.jsonl"]
ESCAPE = re.compile(r"\x1b\[[\d;]*m")


def piece(text: str, **changes: Any) -> Piece:
    """A token of a completion."""
    values = {"id": 1, "token": text, "special": False, "loss": True, "cut": False, **changes}
    return Piece(text=text, **values)


def context(text: str) -> Piece:
    """A token of a prompt."""
    return piece(text, loss=False)


ROW = RowTokens(
    row=17,
    prompt=(piece("<s>", special=True, loss=False), context("Hi"), context("\n")),
    chosen=(piece(" a"), piece(""), piece("鱼"), piece("</s>", special=True)),
    rejected=(piece(" b"), piece(" c", loss=False, cut=True)),
)


# The drawing


def test_marks_say_without_colour_what_each_token_is() -> None:
    assert draw_tokens(ROW, name="pairs.jsonl").splitlines() == [
        "row 17 of pairs.jsonl",
        "",
        "prompt: 3 tokens, none with loss",
        ". [<s>]│Hi│\\n│",
        "",
        "chosen: 4 tokens, 4 with loss",
        "+  a│·│鱼│[</s>]│",
        "",
        "rejected: 1 token, 1 with loss; 1 token cut off",
        "-  b│",
        "x  c│",
    ]


def test_colour_changes_no_character() -> None:
    colored = draw_tokens(ROW, name="pairs.jsonl", color=True)
    assert colored != draw_tokens(ROW, name="pairs.jsonl")
    assert ESCAPE.sub("", colored) == draw_tokens(ROW, name="pairs.jsonl")


def test_roles_have_colours_of_their_own() -> None:
    lines = draw_tokens(ROW, name="p", color=True).splitlines()
    inks = {line[0]: set(ESCAPE.findall(line)) for line in lines if line[:1] in (*".+-x",)}
    plain = {mark: found - {"\x1b[0m", "\x1b[36m"} for mark, found in inks.items()}
    assert [len(found) for found in plain.values()] == [1, 1, 1, 1]
    assert len(set.union(*plain.values())) == 4


@pytest.mark.parametrize("width", [40, 80])
def test_no_line_is_wider_than_the_terminal_and_no_token_is_lost(width: int) -> None:
    words = ["国会由众议院", " word", "e\u0301", " ", "", "x" * 200]
    long = tuple(context(words[n % len(words)]) for n in range(300))
    drawn = draw_tokens(RowTokens(0, long, (piece("a"),), (piece("b"),)), name="p", width=width)
    assert max(map(columns, drawn.splitlines())) <= width
    shown = [line[2:] for line in drawn.splitlines() if line.startswith(". ")]
    text = "".join(shown).replace(BAR, "").replace("·", "")
    assert text == "".join(one.text for one in long)


def test_the_middle_of_a_long_cut_is_counted_instead_of_shown() -> None:
    cut = tuple(piece(f" {n}", loss=False, cut=True) for n in range(1000))
    drawn = draw_tokens(RowTokens(0, (context("p"),), (piece("a"), *cut), (piece("b"),)), name="p")
    assert f"│... {1000 - 2 * CUT_SHOWN} more ...│" in re.sub(r"\nx ", "", drawn)
    assert drawn.count("│") == 1 + 1 + 2 * CUT_SHOWN + 1 + 1


def test_data_cannot_command_the_terminal() -> None:
    evil = RowTokens(0, (context("\x1b[2J\r\u202e"),), (piece("a"),), (piece("b"),))
    drawn = draw_tokens(evil, name="p")
    assert "\\x1b[2J\\r\\u202e│" in drawn
    assert all(line.isprintable() for line in drawn.splitlines())


def test_what_is_unusual_about_a_row_is_said_above_it() -> None:
    odd = RowTokens(0, ROW.prompt, ROW.chosen, ROW.rejected, 2, True, 0.5, 1.0)
    assert draw_tokens(odd, name="p").splitlines()[1:4] == [
        "  the boundary leaves 2 tokens of the prompt's end to the completions",
        "  cutting made the completions equal: the row teaches nothing",
        "  weight 0.5, margin 1",
    ]


def shown(start: int, tokens: int, file: str, width: int = 640) -> ShownPicture:
    """A picture at a place of the prompt."""
    return ShownPicture(start, tokens, width, 480, file, "images[0]", "0" * 64)


SEEING = RowTokens(
    row=0,
    prompt=(context("See "), *[context("<image>")] * 256, context("and"), *[context("#")] * 3),
    chosen=(piece("a"),),
    rejected=(piece("b"),),
    pictures=(shown(1, 256, "cat.png"), shown(258, 3, "")),
)


def test_the_tokens_of_a_picture_are_one_entry_with_its_name_and_size() -> None:
    assert draw_tokens(SEEING, name="p").splitlines()[2:7] == [
        "prompt: 261 tokens, none with loss",
        ". See │",
        ". [picture 1: cat.png, 640 x 480 pixels, 256 tokens]│",
        ". and│",
        ". [picture 2: bytes, 640 x 480 pixels, 3 tokens]│",
    ]
    colored = draw_tokens(SEEING, name="p", color=True)
    assert ESCAPE.sub("", colored) == draw_tokens(SEEING, name="p")
    assert "\x1b[36m[picture 1" in colored


def test_a_picture_s_name_commands_no_terminal_and_breaks_no_line() -> None:
    names = ("\x1b[2J" + "页" * 200 + ".png", "x" * 99 + ".jpg")
    row = RowTokens(
        0, SEEING.prompt, SEEING.chosen, SEEING.rejected, pictures=(shown(1, 256, names[0]),)
    )
    (line,) = [line for line in draw_tokens(row, name="p").splitlines() if "picture" in line]
    assert columns(line) <= 80
    assert line.startswith(". [picture 1: \\x1b[2J页")
    assert line.endswith("页页.png, 640 x 480 pixels, 256 tokens]│")
    for width in (20, 40):
        drawn = draw_tokens(
            RowTokens(0, row.prompt, row.chosen, row.rejected, pictures=(shown(1, 9, names[1]),)),
            name="p",
            width=width,
        )
        assert max(columns(line) for line in drawn.splitlines() if line[:1] == ".") <= width
    largest = replace(shown(0, 16_384, "n" * 99), width=8_192, height=8_192)
    many = (*SEEING.pictures[:1] * 9, largest)
    assert max(columns(f". {_picture(n, one)}│") for n, one in enumerate(many)) <= 80


# The command


def test_pictures_of_a_row_are_folded_for_people_and_placed_for_machines(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, processor = seer("llava")
    model.config.save_pretrained("model")
    processor.save_pretrained("model")
    question = [{"role": "user", "content": "Read."}]
    for name, number in (("one.png", 0), ("two.png", 2)):
        (tmp_path / name).write_bytes(encoded(number))
    sides = {
        side: [{"role": "assistant", "content": text}]
        for side, text in (("chosen", "a"), ("rejected", "b"))
    }
    row = {"prompt": question, "images": ["one.png", "two.png"], **sides}
    Path("pairs.jsonl").write_text(json.dumps(row) + "\n")
    loaded = PictureReader(processor, model.config, SIGHTS["llava"])
    monkeypatch.setattr(Picture, "load", None)  # nothing is decoded
    said = command(*BASE).out
    found = json.loads(command(*BASE, "--json").out)
    assert [one["file"] for one in found["pictures"]] == ["one.png", "two.png"]
    for one, number in zip(found["pictures"], (0, 2), strict=True):
        span = found["prompt"][one["start"] : one["start"] + one["tokens"]]
        text = loaded.in_words(Picture.of(encoded(number), 0, "images"))
        assert "".join(token["text"] for token in span) == text
        size = f"{one['width']} x {one['height']} pixels"
        assert f"{one['file']}, {size}, {one['tokens']} tokens]" in said
    assert found["pictures"][0]["width"] == 60
    assert "<image>" not in said


def test_rows_are_shown_in_the_order_asked_for_and_nothing_is_written(
    workshop: Path, command: Command
) -> None:
    before = tree(workshop)
    said = command(*BASE, "--row", "7", "0")
    assert (said.code, said.err, tree(workshop)) == (0, "", before)
    assert re.findall(r"^row (\d+) of pairs.jsonl$", said.out, re.M) == ["7", "0"]
    assert "[<|endoftext|>]│" in said.out
    assert said.out.splitlines()[-1].startswith(". context   + - carries loss")
    assert max(map(columns, said.out.splitlines())) <= 80
    assert "\x1b" not in said.out


def test_json_is_a_line_a_row_with_every_token(workshop: Path, command: Command) -> None:
    said = command(*BASE, "--json", "--row", "3", "4")
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [(row["data"], row["row"]) for row in rows] == [("pairs.jsonl", 3), ("pairs.jsonl", 4)]
    for row in rows:
        pair = PAIRS[row["row"]]
        assert "".join(one["text"] for one in row["chosen"]) == f"{pair['chosen']}<|endoftext|>"
        assert "".join(one["text"] for one in row["prompt"]) == f"<|endoftext|>{pair['prompt']}"
        assert all(one["loss"] for one in row["chosen"] + row["rejected"])


def test_options_of_train_count_from_file_and_flags(workshop: Path, command: Command) -> None:
    Path("run.yaml").write_text("model: model\ndataset: pairs.jsonl\nmax_completion_length: 2\n")
    cut = command("tokens", "run.yaml", "--row", "1")
    assert "2 with loss; 5 tokens cut off" in cut.out
    assert "cut off" not in command(*BASE, "--row", "1").out.replace("x cut off", "")
    longer = command("tokens", "run.yaml", "--row", "1", "--max_completion_length", "3")
    assert "3 with loss; 4 tokens cut off" in longer.out


def test_neither_weights_nor_a_model_are_needed(workshop: Path, command: Command) -> None:
    (workshop / "model" / "model.safetensors").unlink()
    (workshop / "model" / "config.json").unlink()
    assert command(*BASE).code == 0
    said = command("tokens", "--tokenizer", "model", "--dataset", "pairs.jsonl")
    assert (said.code, said.out.splitlines()[0]) == (0, "row 0 of pairs.jsonl")


def test_a_stream_is_read_up_to_the_row_and_no_further(workshop: Path, command: Command) -> None:
    with (workshop / "pairs.jsonl").open("a") as file:
        file.write("{broken")
    eager = command(*BASE, "--row", "5")
    assert eager.err.startswith("counterpoint: CP210 pairs.jsonl, line 13: not JSON")
    stream = command(*BASE, "--streaming", "--row", "11", "5")
    assert re.findall(r"^row (\d+) of", stream.out, re.M) == ["11", "5"]
    write_pairs(workshop / "pairs.jsonl", list(PAIRS))
    assert stream.out == command(*BASE, "--row", "11", "5").out
    said = command(*BASE, "--streaming", "--row", "12")
    assert said.err == ("counterpoint: CP103 row=12 should be below 12: pairs.jsonl has 12 rows.\n")


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ([*BASE, "--row", "12"], "CP103 row=12 should be below 12: pairs.jsonl has 12 rows."),
        ([*BASE, "--row", "-1"], "CP103 row=[-1] should be numbers from 0."),
        ([*BASE, "--row", "x"], 'CP103 --row="x" should be a list of whole numbers.'),
        ([*BASE, "--row"], "CP103 --row needs a value"),
        ([*BASE, "--color", "red"], 'CP102 --color="red" is not one of auto, always, never.'),
        ([*BASE, "--rows", "1"], "CP101 --rows is no option"),
        ([*BASE, "--dataset", "bad.jsonl"], "CP203 bad.jsonl, row 0, field chosen: is blank"),
        ([*BASE, "--dataset", "odd.jsonl"], "CP201 odd.jsonl has no column chosen"),
        ([*BASE, "--max_length", "4"], "CP204 pairs.jsonl, row 0: the prompt takes"),
        (["tokens", "--dataset", "pairs.jsonl"], "CP107 model"),
        (["tokens", "missing.yaml"], "CP106 there is no file missing.yaml"),
        ([*BASE, "--tokenizer", "nowhere/at/all"], "CP301 "),
    ],
)
def test_what_is_wrong_is_one_coded_line(
    workshop: Path, command: Command, words: list[str], start: str
) -> None:
    write_pairs(workshop / "bad.jsonl", [{**PAIRS[0], "chosen": " "}])
    write_pairs(workshop / "odd.jsonl", [{"prompt": "p", "candidates": []}])
    if "bad.jsonl" in words or "odd.jsonl" in words:
        words = [word for word in words if word != "pairs.jsonl"]
        words.pop(words.index("--dataset"))
    said = command(*words)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"counterpoint: {start}")
    assert said.err.count("\n") == 1


class Terminal(io.StringIO):
    """Standard output that says it is a terminal."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        """It is."""
        return True


@pytest.mark.parametrize(
    ("words", "environment", "colored"),
    [
        ([], {}, True),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"NO_COLOR": ""}, True),
        ([], {"TERM": "dumb"}, False),
        (["--color", "never"], {}, False),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
    ],
)
def test_colour_is_for_terminals_that_want_it(
    workshop: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    environment: dict[str, str],
    colored: bool,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert command(*BASE, *words).code == 0
    assert ("\x1b[" in terminal.getvalue()) == colored


def test_a_terminal_without_unicode_gets_escapes_instead_of_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    module._write(draw_tokens(ROW, name="p"))
    sys.stdout.flush()
    assert b"+  a|~|\\u9c7c|[</s>]|" in raw.getvalue()


def test_the_help_names_its_options_and_keeps_to_the_width(command: Command) -> None:
    said = command("tokens", "--help")
    assert (said.code, said.err) == (0, "")
    text = module.COMMAND.help(width=72)
    for name in declared(TokensOptions):
        assert text.count(f"\n  --{name}  (") == 1
    assert max(map(len, text.splitlines())) <= 80


def test_the_width_is_that_of_the_terminal(
    workshop: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert shutil.get_terminal_size().columns == 40
    drawn = [line for line in command(*BASE).out.splitlines() if line[:2] in (". ", "+ ", "- ")]
    assert max(map(columns, drawn[:-1])) <= 40
