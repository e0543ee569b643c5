"""Which language is spoken, and that nothing that is said in it is missing."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import counterpoint
from counterpoint.doctor.findings import Report, find
from counterpoint.doctor.table import TABLE, TABLE_ZH, error_in_words
from counterpoint.errors import CODES, ConfigError
from counterpoint.language import LANGUAGES, VARIABLE, language_named, phrase, speaking, spoken
from counterpoint.language.texts import FOLDER, error_meanings, meanings, phrases, read_texts
from counterpoint.wrap import columns
from tests.cli.conftest import Command, command, pattern, workshop

__all__ = ["command", "pattern", "workshop"]  # fixtures

SOURCES = sorted(Path(counterpoint.__file__).parent.rglob("*.py"))
PHRASES = phrases()
FIELD = re.compile(r"\{(\w+)\}")


@pytest.fixture(autouse=True)
def no_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, "zh"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": "zh_CN.UTF-8", VARIABLE: "en"}, "en"),
        ({"LANG": "de_DE.UTF-8", VARIABLE: "zh"}, "zh"),
        ({VARIABLE: "zhuang"}, "en"),
    ],
)
def test_what_is_asked_for_comes_before_the_locale_and_english_is_last(
    variables: dict[str, str], language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert spoken() == language
    with speaking("en"):
        assert spoken() == "en"
    assert spoken() == language


def test_a_language_that_is_not_spoken_is_refused() -> None:
    assert {language_named(name) for name in ("zh", "zh-CN", "ZH_cn.UTF-8", "Chinese")} == {"zh"}
    with pytest.raises(ConfigError, match="CP102 --language fr should be one of en, zh"):
        language_named("fr")


def strings(node: ast.AST) -> Iterator[str]:
    for one in ast.walk(node):
        if isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield one.value


def said() -> set[str]:
    """Every text that the code hands to ``phrase`` as it stands."""
    found: set[str] = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            places = {"phrase": node.args[:1], "say_step": node.args[1:3]}.get(node.func.id, [])
            found |= {
                one.value
                for one in places
                if isinstance(one, ast.Constant) and isinstance(one.value, str)
            }
    return found


def test_every_phrase_that_is_said_is_in_the_catalogue() -> None:
    assert said() - set(PHRASES) == set()


def test_every_phrase_of_the_catalogue_is_said_somewhere() -> None:
    written = {
        text for path in SOURCES for text in strings(ast.parse(path.read_text(encoding="utf-8")))
    }
    # a group of weights that lies in an encoder has that before its name
    written |= {f"encoder {text}" for text in written}
    assert set(PHRASES) - written == set()


@pytest.mark.parametrize("english", sorted(PHRASES))
def test_both_languages_of_a_phrase_have_the_same_fields(english: str) -> None:
    assert sorted(FIELD.findall(english)) == sorted(FIELD.findall(PHRASES[english]))
    assert PHRASES[english].strip() != english.strip()


def test_every_code_has_a_remedy_in_chinese() -> None:
    assert set(TABLE_ZH) == set(TABLE)
    assert set(error_meanings()) == set(CODES) - set(TABLE)
    for texts in error_meanings().values():
        assert re.search("[\u4e00-\u9fff]", texts["title"])
        assert re.search("[\u4e00-\u9fff]", texts["do"])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("en/*.toml")), ids=lambda path: path.name)
def test_a_file_of_both_languages_has_the_same_codes_in_the_same_order(path: Path) -> None:
    assert list(read_texts(path)) == list(read_texts(FOLDER / "zh" / path.name))


@pytest.mark.parametrize(
    ("written", "wrong"),
    [
        ("[CW101]\ntitle = 'a'\nwhy = 'b'\n", "[CW101] should have do and title and why, and has"),
        ("[CP101]\nwhy = 'b'\ndo = 'c'\ntitle = 'a'\n", "should have do and why, and has do and"),
        ("[CW101]\ntitle = 'a'\nwhy = ''\ndo = 'c'\n", "[CW101] should hold texts in quotes"),
        ("[CW101]\ntitle = 'a'\nwhy = 1\ndo = 'c'\n", "[CW101] should hold texts in quotes"),
        ("title = 'a'\n", "[title] should hold texts in quotes"),
        ("[CW102]\ntitle = 'a'\nwhy = 'b'\ndo = 'c'\n", "[CW102] is in another file already"),
        ("[CW101\n", "is no TOML file: "),
    ],
)
def test_a_file_of_another_shape_is_refused_with_its_name_and_the_code(
    written: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("counterpoint.language.texts.FOLDER", tmp_path)
    (tmp_path / "en").mkdir()
    good = "[CW102]\ntitle = 'a'\nwhy = 'b'\ndo = 'c'\n"
    (tmp_path / "en" / "doctor-a.toml").write_text(good, encoding="utf-8")
    assert meanings.__wrapped__("en") == {"CW102": {"title": "a", "why": "b", "do": "c"}}
    path = tmp_path / "en" / "doctor-b.toml"
    path.write_text(written, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{path}")) as caught:
        meanings.__wrapped__("en")
    assert wrong in str(caught.value)


def test_no_file_of_texts_is_read_before_one_is_asked_for() -> None:
    program = (
        "import counterpoint.doctor.table as table, counterpoint.report.story\n"
        "from counterpoint.language.texts import meanings\n"
        "before = meanings.cache_info().misses\n"
        "print(before, table.TABLE['CW107'].title, meanings.cache_info().misses)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "0 AlphaPO with alpha 0 is SimPO 1\n", done.stderr


def test_an_error_keeps_its_code_in_front_and_its_message_and_gains_a_remedy() -> None:
    assert error_in_words("CP507", "/x holds no run.") == "CP507 /x holds no run."
    with speaking("zh"):
        told = error_in_words("CP507", "/x holds no run.")
    assert told.startswith("CP507 文件夹里没有运行记录。/x holds no run. ")
    assert told.endswith("怎么办：给出某次运行的 output_dir。")


def test_a_value_with_braces_is_said_as_it_is() -> None:
    with speaking("zh"):
        assert phrase("rows {rows}", rows="{0}, {x}") == "第 {0}, {x} 行"
        assert phrase("nobody has written this {down}") == "nobody has written this {down}"


def test_the_doctor_speaks_chinese_within_the_terminal_and_json_stays_as_it_is() -> None:
    report = Report.of([find("CP203", "3 rows", rows=[1, 2, 3]), find("CW101", "beta=9", fix="x")])
    english = report.as_json()
    with speaking("zh"):
        table = report.as_table(60)
        assert report.as_json() == english
    assert "错误    CP203  回答为空或只有空白" in table
    assert "  现象  3 rows (第 1, 2, 3 行)" in table
    assert table.splitlines()[-1] == "1 个错误，1 个警告，0 个提示"
    assert max(columns(line) for line in table.splitlines()) <= 60


@pytest.mark.parametrize("words", [["--language", "zh"], ["--language=zh_CN"]])
def test_the_flag_stands_anywhere_and_reaches_errors(words: list[str], command: Command) -> None:
    for line in ([*words, "train", "nix.yaml"], ["train", "nix.yaml", *words]):
        answer = command(*line)
        assert answer.code == 2
        assert answer.err.startswith("counterpoint: CP106 配置文件无法读取。")
    answer = command("train", "nix.yaml")
    assert answer.err.startswith("counterpoint: CP106 there is no file")


@pytest.mark.parametrize(
    ("words", "code"), [(["--language"], "CP103"), (["--language", "fr"], "CP102")]
)
def test_a_language_that_cannot_be_meant_is_an_error_with_a_code(
    words: list[str], code: str, command: Command
) -> None:
    answer = command("doctor", *words)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"counterpoint: {code} ")


def test_json_for_machines_is_the_same_in_both_languages(command: Command) -> None:
    first, second = (command("doctor", "--json", *more) for more in ([], ["--language", "zh"]))
    assert json.loads(first.out) == json.loads(second.out)
    assert set(LANGUAGES.values()) == {"en", "zh"}
