"""What a loop has done: ``loop.json``, with what went into each stage and what came out of it.

A stage is done if its words, its inputs and its outputs are what they were. Where words or inputs
differ, or an output is missing, it is done again; an output that was changed by hand is refused,
since doing the stage again would lose the change.

Not here: what the stages are (``stages``), doing them (``running``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.errors import SetupError
from counterpoint.loop.digests import source_digest
from counterpoint.loop.stages import RUN, Stage
from counterpoint.runlog import RUN_FILE
from counterpoint.staged import staged
from counterpoint.strict import strict_json

LEDGER_FILE = "loop.json"
FORMAT = 1
"""Of a stage's files: a release that writes them otherwise counts it up, and stages are redone."""

BEGUN, ENDED = "begun", "done"


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What is known of a stage.

    Args:
        state: ``BEGUN`` or ``ENDED``.
        words: its command.
        inputs: digest of each source that it reads.
        outputs: digest of each output, by its path in the loop's folder; once it has ended.
    """

    state: str
    words: Sequence[str]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str] = field(default_factory=dict)


class LoopLedger:
    """The stages of a folder, as they are known.

    Args:
        folder: of the loop; made by the first entry.

    Raises:
        SetupError: CP538 for a folder that holds something else, or a ledger that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = _read_ledger(folder)

    @property
    def ended(self) -> set[str]:
        """Keys of the stages that have ended and were not begun again."""
        return {name for name, one in self.entries.items() if one.state == ENDED}

    def why(self, stage: Stage) -> str | None:
        """Why a stage has to be done; None where it is done already.

        Args:
            stage: whose inputs are there.

        Raises:
            SetupError: CP538 for an output that was changed since.
        """
        entry = self.entries.get(stage.key)
        if entry is None:
            return "it was not done yet"
        changed = _difference(entry, stage)
        if changed:
            return changed
        if entry.state == BEGUN:
            return "it was interrupted"
        missing = [path for path in stage.writes if not path.exists()]
        if missing:
            return f"{missing[0]} is missing"
        edited = [
            path
            for path in stage.writes
            if source_digest(str(path)) != entry.outputs.get(self._name(path))
        ]
        if edited:
            raise SetupError(
                "CP538",
                f"{edited[0]} was changed since the loop wrote it. Move it away to have it written "
                "again; a file of your own belongs into a folder of your own.",
            )
        return None

    def begin(self, stage: Stage) -> None:
        """Note down that a stage begins; what it does not complete of an earlier one is removed."""
        entry = self.entries.get(stage.key)
        resumed = entry is not None and entry.state == BEGUN and not _difference(entry, stage)
        if not (resumed and stage.resumes and _is_begun(stage)):
            if self.entries.pop(stage.key, None):
                self._write()  # killed while files go, it is no stage that was done
            _remove(stage)
        self.entries[stage.key] = StageRecord(BEGUN, stage.words, _inputs(stage))
        self._write()

    def end(self, stage: Stage) -> None:
        """Note down that a stage is done, with what came out."""
        outputs = {self._name(path): source_digest(str(path)) for path in stage.writes}
        begun = self.entries[stage.key]
        self.entries[stage.key] = StageRecord(ENDED, begun.words, begun.inputs, outputs)
        self._write()

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _write(self) -> None:
        stages = {
            name: {
                "state": one.state,
                "command": list(one.words),
                "inputs": dict(one.inputs),
                "outputs": dict(one.outputs),
            }
            for name, one in sorted(self.entries.items())
        }
        text = strict_json({"format": FORMAT, "stages": stages}, ensure_ascii=False, indent=1)
        with staged(self.folder / LEDGER_FILE) as file:
            file.write(f"{text}\n".encode())


def _inputs(stage: Stage) -> dict[str, str]:
    return {source: source_digest(source) for source in stage.reads}


def _difference(entry: StageRecord, stage: Stage) -> str:
    """What of a stage is not as it was when it was done, in words; "" where all is."""
    words, earlier = stage.known_by(stage.words), stage.known_by(entry.words)
    new = [word for word in words if word not in earlier]
    gone = [word for word in earlier if word not in words]
    if new or gone or words != earlier:
        now = f"now {new[0]}" if new else "now without it"
        before = f"it was {gone[0]}" if gone else "it was without"
        return f"{before}, {now}"
    unlike = [name for name, one in _inputs(stage).items() if entry.inputs.get(name) != one]
    return f"{unlike[0]} has changed" if unlike else ""


def _is_begun(stage: Stage) -> bool:
    """Whether there is something to resume; a run's folder without a run stands in its way."""
    runs = [path for path in (*stage.writes, *stage.beside) if path.name == RUN]
    return all((path / RUN_FILE).is_file() for path in runs)


def _remove(stage: Stage) -> None:
    for path in (*stage.writes, *stage.beside):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _read_ledger(folder: Path) -> dict[str, StageRecord]:
    path = folder / LEDGER_FILE
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            return {}
        return {
            name: StageRecord(one["state"], one["command"], one["inputs"], one["outputs"])
            for name, one in content["stages"].items()
        }
    except FileNotFoundError:
        others = [one.name for one in folder.iterdir()] if folder.is_dir() else []
        others = [name for name in others if not name.startswith(".")]
        if others:
            raise SetupError(
                "CP538", f"{folder} holds {others[0]}, and no loop. Choose another one with --out."
            ) from None
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError("CP538", f"{path} cannot be read ({error}).") from error
