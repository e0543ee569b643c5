"""A configuration file is read as text, with its lines; what is no such file says where."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint import ConfigError
from counterpoint.options.given import Scalar, as_python
from counterpoint.options.settings import read_values
from counterpoint.options.yaml_file import parse_flow, read_config


def write(folder: Path, text: str | bytes) -> str:
    path = folder / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_settings_come_in_the_order_of_the_file_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "# first\nbeta: 0.1\n\nlora-r: 8 # rank\ndataset:\n  - a\n  - b\n")
    read = read_config(path)
    assert [(s.name, as_python(s.given), s.where) for s in read] == [
        ("beta", 0.1, "run.yaml line 2: beta"),
        ("lora_r", 8, "run.yaml line 4: lora-r"),
        ("dataset", ["a", "b"], "run.yaml line 5: dataset"),
    ]


def test_an_anchor_is_what_it_stands_for(tmp_path: Path) -> None:
    path = write(tmp_path, "model: &m some/model\ntokenizer: *m\n")
    assert read_config(path)[1].given == Scalar("some/model")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, b"\xef\xbb\xbfbeta: 1\n"))[0].name == "beta"


def test_json_is_a_configuration_too(tmp_path: Path) -> None:
    read = read_config(write(tmp_path, '{"beta": 1e-1, "dataset": ["a"]}'))
    assert {s.name: as_python(s.given) for s in read} == {"beta": 0.1, "dataset": ["a"]}


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcde", "bcdef", strict=True)
)

UNREADABLE: list[tuple[str, str | bytes, str]] = [
    ("empty", "", "is empty"),
    ("only comments", "# nothing\n", "is empty"),
    ("a list", "- beta: 1\n", "is a list at its top level"),
    ("a word", "beta\n", "is a single value at its top level"),
    ("a tab", "beta: 1\n\tgamma: 2\n", "line 2 is not YAML"),
    ("an open quote", 'beta: "1\n', "is not YAML"),
    ("an open bracket", "dataset: [a, b\nbeta: 1\n", "is not YAML"),
    ("a missing colon", "beta: 1\ngamma 2\nalpha: 3\n", "line 3 is not YAML"),
    ("two documents", "beta: 1\n---\nbeta: 2\n", "line 2 is not YAML"),
    ("an unknown anchor", "beta: *nowhere\n", "line 1 is not YAML"),
    (
        "a key twice",
        "beta: 1\nalpha: 0\nbeta: 2\n",
        "line 3: 'beta' is given twice, first on line 1",
    ),
    (
        "a key in two spellings",
        "max_length: 1\nmax-length: 2\n",
        "line 2: 'max-length' is given tw",
    ),
    ("a key twice inside", "model_init_kwargs:\n  a: 1\n  a: 2\n", "line 3: 'a' is given twice"),
    ("a key that is a list", "? [a]\n: 1\n", "a key should be a word"),
    ("a Python object", "beta: !!python/object/apply:os.getcwd []\n", "line 1: the tag"),
    ("a Python name", "beta: !!python/name:os.system\n", "line 1: the tag"),
    ("its own tag", "beta: !thing 1\n", "line 1: the tag '!thing' is not allowed"),
    ("a billion laughs", LAUGHS, "the file holds more than 10,000 values"),
    ("itself inside", "a: &a [*a]\n", "nested more than 20 deep"),
    ("too deep", "a: " + "[" * 3000, "is not YAML"),
    ("latin-1", "run_name: \xe9t\xe9\n".encode("latin-1"), "is not UTF-8 text (byte 10)"),
    ("a control character", b"beta: \x00\n", "is not YAML"),
    ("a zip", b"PK\x03\x04\x14\x00\x00\x00", "not"),
]


@pytest.mark.parametrize(
    ("text", "said"), [row[1:] for row in UNREADABLE], ids=[r[0] for r in UNREADABLE]
)
def test_what_is_no_configuration_says_where_it_breaks(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    with pytest.raises(ConfigError, match=r"^CP106 ") as caught:
        read_config(write(tmp_path, text))
    assert said in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("second", "code", "said"),
    [
        ("{kind: bc, bounds: 1}", "CP101", "a constraint has no 'bounds'. Did you mean bound?"),
        ("{kind: bx, bound: 1}", "CP102", "constraint"),
        ("{kind: bc, bound: low}", "CP103", "constraint bc: bound='low' should be"),
        ("{bound: 1}", "CP107", "a constraint needs a kind"),
        ("{kind: length, bound: 1, slack: 1}", "CP104", "are two ways to give one bound"),
    ],
)
def test_a_wrong_constraint_is_named_with_its_line(
    second: str, code: str, said: str, tmp_path: Path
) -> None:
    listed = f"- kind: bc\n  bound: 1\n- {second}\n"
    with pytest.raises(ConfigError) as raised:
        read_values([write(tmp_path, f"beta: 1\nconstraints:\n{listed}")])
    assert raised.value.code == code
    assert raised.value.message.startswith("run.yaml line 5: constraints: ")
    assert said in raised.value.message
    with pytest.raises(ConfigError, match=f"^{code} --constraints: "):
        read_values(["--constraints", f"[{second}]"])


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="CP106 there is no file"):
        read_config(str(tmp_path / "run.yaml"))
    with pytest.raises(ConfigError, match=r"CP106 .* is a folder"):
        read_config(str(tmp_path))


def code_of_reading(path: str) -> str:
    try:
        for setting in read_config(path):
            as_python(setting.given)
    except ConfigError as error:
        return error.code
    return "read"


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_is_either_settings_or_a_coded_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = write(tmp_path_factory.getbasetemp(), text.encode("utf-8", "surrogatepass"))
    assert code_of_reading(path) in ("read", "CP106")


def test_a_flow_in_a_flag_that_does_not_close_is_a_wrong_value() -> None:
    with pytest.raises(ConfigError, match="CP103 --x should be a JSON list or object"):
        parse_flow('{"a": 1', "--x")
