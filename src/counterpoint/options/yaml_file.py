"""Read a YAML configuration file into settings that remember their lines.

1. No object is ever built from a tag: the file is parsed to nodes and read as text.
2. A key given twice is an error, at any depth; YAML itself keeps the last one silently.

Not here: whether an option of that name exists (``table``) and what type it has (``coerce``).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

import yaml

from counterpoint.errors import ConfigError
from counterpoint.options.given import Given, Scalar, Setting

MOST_NODES = 10_000
"""Values in one file. Aliases can write a billion values in ten lines."""

DEEPEST = 20
"""Lists and mappings inside each other."""

MOST_BYTES = 2**20
"""Of one file; a run's options take a few thousand."""

_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}"
    for kind in ("null", "bool", "int", "float", "str", "timestamp", "value", "seq", "map")
)


def read_config(path: str) -> list[Setting]:
    """The settings of a YAML file, in its order.

    Args:
        path: a file in UTF-8 whose top level is a mapping from option to value.

    Raises:
        ConfigError: CP106 where the file cannot be read as that, with the line.
    """
    return settings_of(read_option_file(path), path)


def settings_of(text: str, path: str) -> list[Setting]:
    """The settings of a YAML text, in its order.

    Args:
        text: whose top level is a mapping from option to value.
        path: of its file; messages name it.

    Raises:
        ConfigError: CP106 where the text cannot be read as that, with the line.
    """
    root, reader = _mapping_of(text, path)
    return [_setting(reader, *entry) for entry in reader.entries(root, hyphens=True)]


def read_sections(
    path: str, names: Collection[str]
) -> tuple[list[Setting], dict[str, list[Setting]]]:
    """The settings of a YAML file some of whose entries are mappings of settings.

    Args:
        path: a file in UTF-8 whose top level is a mapping.
        names: entries that are such mappings, if they are there.

    Returns:
        All other settings, and those of each mapping by its name; each knows its own line.

    Raises:
        ConfigError: CP106 where the file cannot be read as that, with the line.
    """
    root, reader = _mapping_of(read_option_file(path), path)
    top, sections = list[Setting](), dict[str, list[Setting]]()
    for key, at, value in reader.entries(root, hyphens=True):
        name = key.replace("-", "_")
        if name not in names:
            top.append(_setting(reader, key, at, value))
        elif isinstance(value, yaml.MappingNode):
            own = reader.entries(value, hyphens=True)
            sections[name] = [_setting(reader, *entry, within=f"{name}.") for entry in own]
        elif value.value == "" and isinstance(value, yaml.ScalarNode):
            sections[name] = []
        else:
            raise ConfigError(
                "CP106",
                f"{reader.name} line {_line(at)}: {key} should be lines of 'option: value'.",
            )
    return top, sections


def _mapping_of(text: str, path: str) -> tuple[yaml.MappingNode, _Reader]:
    name = Path(path).name
    root = _compose(text, name)
    if root is None:
        raise ConfigError("CP106", f"{path} is empty; it should hold lines such as 'beta: 0.1'.")
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise ConfigError(
            "CP106", f"{path} is {kind} at its top level; it should be lines of 'option: value'."
        )
    return root, _Reader(name)


def _setting(
    reader: _Reader, key: str, at: yaml.Node, value: yaml.Node, *, within: str = ""
) -> Setting:
    return Setting(
        key.replace("-", "_"),
        reader.read(value),
        f"{reader.name} line {_line(at)}: {within}{key}",
        tuple(f"{reader.name} line {_line(item)}: {within}{key}" for item in _items(value)),
    )


def parse_flow(text: str, where: str) -> Given:
    """A list or mapping written into one flag, as JSON or YAML writes it.

    Args:
        text: for example ``{"attn_implementation": "sdpa"}`` or ``[q_proj, v_proj]``.
        where: what a message calls it.

    Raises:
        ConfigError: CP103 where the text is neither.
    """
    try:
        node = _compose(text, where)
        if node is None:
            return Scalar(text)
        return _Reader(where).read(node)
    except ConfigError as error:
        raise ConfigError(
            "CP103", f"{where} should be a JSON list or object: {error.message}"
        ) from error


def read_option_file(path: str) -> str:
    """A file of the user's as text.

    Raises:
        ConfigError: CP106 where there is none, or it is not UTF-8.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(
                "CP106",
                f"{path} is larger than {MOST_BYTES // 2**20} MiB; is it a file of options?",
            )
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except ConfigError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(
            "CP106", f"there is no file {path}. Flags begin with --, as in --model gpt2."
        ) from error
    except IsADirectoryError as error:
        raise ConfigError("CP106", f"{path} is a folder; a YAML file was expected.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            "CP106", f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError("CP106", f"{path} cannot be read: {error}.") from error


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Counting)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        problem = error.problem or error.context
        raise ConfigError("CP106", f"{name}{line} is not YAML: {problem}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else "nested too deeply"
        raise ConfigError("CP106", f"{name} is not YAML: {reason}.") from error


class _Counting(yaml.SafeLoader):
    """Stops at more nodes, or deeper ones, than a file may hold, before all of it is parsed."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.nodes = self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.nodes += 1
        self.depth += 1
        if self.nodes > 2 * MOST_NODES or self.depth > 2 * DEEPEST:  # keys are nodes too
            raise yaml.YAMLError(f"more than {MOST_NODES:,} values, or {DEEPEST} inside each other")
        try:
            found: yaml.Node | None = super().compose_node(parent, index)
        finally:
            self.depth -= 1
        return found


class _Reader:
    """Turns nodes into what is given, counting them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes = 0

    def read(self, node: yaml.Node, depth: int = 0) -> Given:
        """The node's value; CP106 for tags and for more values than a file may hold."""
        self.nodes += 1
        if depth > DEEPEST:
            self._refuse(node, f"values are nested more than {DEEPEST} deep")
        if self.nodes > MOST_NODES:
            self._refuse(node, f"the file holds more than {MOST_NODES:,} values")
        if node.tag not in _PLAIN_TAGS:
            self._refuse(node, f"the tag {node.tag!r} is not allowed; write plain values")
        if isinstance(node, yaml.MappingNode):
            return {key: self.read(value, depth + 1) for key, _, value in self.entries(node)}
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, depth + 1) for item in node.value]
        return Scalar(node.value, quoted=getattr(node, "style", None) is not None)

    def entries(
        self, node: yaml.MappingNode, hyphens: bool = False
    ) -> list[tuple[str, yaml.ScalarNode, Any]]:
        """Key, its node and the value's node of each entry; CP106 for a key given twice."""
        seen: dict[str, int] = {}
        entries = []
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._refuse(key, "a key should be a word")
            name = key.value.replace("-", "_") if hyphens else key.value
            if name in seen:
                self._refuse(key, f"{key.value!r} is given twice, first on line {seen[name]}")
            seen[name] = _line(key)
            entries.append((key.value, key, value))
        return entries

    def _refuse(self, node: yaml.Node, reason: str) -> NoReturn:
        raise ConfigError("CP106", f"{self.name} line {_line(node)}: {reason}.")


def _items(node: yaml.Node) -> list[yaml.Node]:
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
