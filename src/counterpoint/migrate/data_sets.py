"""Data sets as TRL, Axolotl and scripts name them, as the options that name them here.

Not here: LLaMA-Factory's, which are names in a list of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from counterpoint.migrate.draft import Draft
from counterpoint.options.given import as_python

BUILDERS = ("json", "csv", "parquet", "text", "arrow")
"""Names that load_dataset takes for a kind of file."""

_FIELDS = {
    "field_prompt": "prompt",
    "field_messages": "prompt",
    "field_chosen": "chosen",
    "field_rejected": "rejected",
}
"""Axolotl's settings that say what a set calls our columns."""

_READ = ("path", "name", "split", "data_files", "ds_type")
_PART = ("shards", "shards_idx", "preprocess_shards")
_WHICH = ("data_dir", "revision")
"""What says that a set is another than its path alone would be."""
_OF_ROWS = (
    "rows are read by their columns (docs/data.md lists the shapes); counterpoint tokens shows "
    "what is trained"
)
_OF_HUB = (
    "a set of the hub is read whole, as it is today; download what is meant, and give its files as "
    "dataset"
)
_OF_PARTS = (
    "all rows are trained on, and prepared in parts; rows, or max_rows, takes the first ones"
)
OF_NUMBERS = (
    "eval_share is a share of the rows, above 0 and below 1; divide what is written here by how "
    "many there are"
)
OF_DRAWING = (
    "sets are not drawn by chance: list them in datasets, each with a weight, which is its "
    "probability times the rows of all sets, divided by its own"
)
SHUFFLED = "rows are shuffled anew each epoch, by data_seed or seed"
_OF_STREAMS = "a stream has no held-out share; give an eval_dataset"
_OF_BOTH = "there is an eval_dataset beside it, and each says what to evaluate on"


@dataclass(frozen=True, slots=True)
class Source:
    """One data set.

    Args:
        path: files, or one folder or hub id.
        name: of its configuration on the hub.
        split: of it; None where none is named.
        columns: where it keeps what is called otherwise here: ours -> its own.
        weight: how often its rows come in an epoch.
    """

    path: tuple[str, ...]
    name: str | None = None
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    weight: float = 1.0

    def as_listed(self) -> dict[str, Any]:
        """The data set as one of several."""
        named: dict[str, Any] = {
            "weight": None if self.weight == 1 else self.weight,
            "subset": self.name,
            "split": self.split if self.split != "train" else None,
            "columns": dict(self.columns),
        }
        path = self.path[0] if len(self.path) == 1 else list(self.path)
        return {"path": path, **{key: value for key, value in named.items() if value}}

    @property
    def is_files(self) -> bool:
        """Whether the path is of files by their endings."""
        return all(_is_file(path) for path in self.path)


def source_of(
    path: str, name: str | None = None, files: Any = None, split: str | None = None
) -> Source | None:
    """The data set that load_dataset's arguments name; None where they are not plain.

    Args:
        path: its first argument.
        name: of a configuration.
        files: data_files: a path, several, or such by split.
        split: to load.
    """
    if isinstance(files, dict):
        files, split = files.get(split or "train"), None
    if isinstance(files, str):
        files = [files]
    if files is None:
        return None if path in BUILDERS else Source((path,), name, split)
    if not isinstance(files, list | tuple) or not all(isinstance(one, str) for one in files):
        return None
    return Source(tuple(files)) if path in BUILDERS else None


def add_sources(draft: Draft, sources: Sequence[Source], option: str, where: str) -> None:
    """Write data sets as an option.

    Several to train on become ``datasets``, unless all are files; so does one with columns or a
    weight. Of a stream, and of what is evaluated on, there are files, or one of the hub: the first.

    Args:
        draft: to write on.
        sources: at least one.
        option: dataset or eval_dataset.
        where: what a message calls them.
    """
    first = sources[0]
    several = len(sources) > 1 and not all(one.is_files for one in sources)
    own = any(one.columns or one.weight != 1 for one in sources)
    if option == "dataset" and (several or own) and draft.peek("streaming") is not True:
        draft.put("datasets", [one.as_listed() for one in sources])
        return
    if own:
        draft.left.append(
            f"{where}: columns and weights of sets: they have a place in datasets alone, which is "
            "of what is trained on, and no stream; rename the columns in the files."
        )
    paths = list(first.path)
    for other in sources[1:]:
        if first.is_files and other.is_files:
            paths += other.path
        else:
            draft.left.append(
                f"{where}: {' '.join(other.path)}: a run reads files, or one data set of the hub; "
                "save the others as files to use all of them."
            )
    if first.name and not first.is_files:
        paths = [f"{first.path[0]}:{first.name}:{first.split or 'train'}"]
    elif first.split and first.split != "train" and not first.is_files:
        draft.put(f"{option}_split", first.split)
    draft.put(option, paths[0] if len(paths) == 1 else paths)


def add_list(draft: Draft, name: str, option: str) -> None:
    """Write a list of data sets, each a mapping with a path, as an option.

    Args:
        draft: that may have it.
        name: what the other tool calls it.
        option: dataset or eval_dataset.
    """
    setting = draft.take(name)
    if setting is None:
        return
    found = []
    entries = as_python(setting.given)
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        where = f"{setting.where}[{number}]"
        which = [
            f"{key}={entry[key]}" for key in _WHICH if isinstance(entry, dict) and entry.get(key)
        ]
        if which:
            draft.left.append(f"{where}: {', '.join(which)}: {_OF_HUB}.")
            continue
        source = _of_entry(entry)
        if source is None:
            draft.left.append(f"{where}: it names no file and no data set of the hub.")
            continue
        found.append(source)
        others = set(entry).difference(_PART, _FIELDS)
        for names, reason in ((_PART, _OF_PARTS), (others, _OF_ROWS)):
            extra = [f"{key}={entry[key]}" for key in entry if key in names and _says(key, entry)]
            if extra:
                draft.left.append(f"{where}: {', '.join(extra)}: {reason}.")
    if found:
        add_sources(draft, found, option, setting.where)


def add_share(draft: Draft, name: str) -> None:
    """Write the share of the rows that another tool holds out.

    Args:
        draft: that may have it.
        name: what the other tool calls it.
    """
    setting = draft.take(name)
    if setting is None:
        return
    share = as_python(setting.given)
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if number and share == 0:
        return
    if not number or not 0 < share < 1:
        draft.leave(setting, OF_NUMBERS)
    elif draft.peek("streaming") is True:
        draft.leave(setting, _OF_STREAMS)
    elif "eval_dataset" in draft.lines:
        draft.leave(setting, _OF_BOTH)
    else:
        draft.put("eval_share", share, f"was {name}; whole prompts are held out")


def _of_entry(entry: Any) -> Source | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        return None
    split = entry.get("split")
    source = source_of(entry["path"], entry.get("name"), entry.get("data_files"), split)
    return None if source is None else replace(source, columns=_columns_of(entry))


def _columns_of(entry: dict[str, Any]) -> dict[str, str]:
    """Columns that Axolotl names in a set, or in its own type of rows, where they are not ours."""
    kind = entry.get("type")
    named = {**entry, **(kind if isinstance(kind, dict) else {})}
    found = {ours: named[theirs] for theirs, ours in _FIELDS.items() if named.get(theirs)}
    usual = ("messages",)  # which is looked for by itself
    return {
        ours: column
        for ours, column in found.items()
        if isinstance(column, str) and column not in (ours, *usual)
    }


def _says(key: str, entry: dict[str, Any]) -> bool:
    return key not in _READ and entry[key] not in (None, False, "", [], {})


def _is_file(path: str) -> bool:
    plain = path.removesuffix(".gz").removesuffix(".bz2").removesuffix(".xz")
    return plain.endswith((".jsonl", ".json", ".csv", ".tsv", ".parquet"))
