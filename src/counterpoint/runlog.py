"""The run directory: what a run writes about itself, and where.

    run.json         what was trained: objective, options, data, environment, how it ended; written
                     at the start and whenever something of it changes, whole or not at all
    metrics.jsonl    every log line
    alarms.jsonl     every alarm that was raised
    movement.jsonl   how far each parameter has moved, now and then
    samples.jsonl    texts that the model wrote

The streams are appended to as things happen, one JSON object a line, and can be read meanwhile.
Where training begins anew or goes on from a checkpoint a *mark* says so, and ``read_run`` leaves
out what it overrides: a step that was done twice is read once.

A disk that is full does not end a training. What cannot be written is kept, one warning says so,
and the next line that can be written brings it along; at the end a warning counts what is lost.

Not here: weights and checkpoints (the trainer writes them into the same folder), and anything
secret (``masking``).
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from counterpoint._version import __version__
from counterpoint.errors import CounterpointError, SetupError
from counterpoint.language import phrase
from counterpoint.log_lines import LogHandler
from counterpoint.masking import Mask, MaskingFilter
from counterpoint.notebook import rows_shown, shown
from counterpoint.run_schema import check_facts, check_line
from counterpoint.staged import lies_within, make_folder, refuse_unusable, staged
from counterpoint.strict import NUMBERS, is_odd, spelt

RUN_FILE = "run.json"
REQUEST_FILE = "train.yaml"
"""The options a run was given, in its folder: ``counterpoint train`` takes it as it is."""

REPORT_FILE = "report.html"
"""The page about a run, in its folder, unless another name is asked for."""

METRICS, ALARMS, MOVEMENT, SAMPLES = STREAMS = ("metrics", "alarms", "movement", "samples")
"""The streams of a run; each is a file of that name, ending in .jsonl."""

CONSTRAINTS = "constraints/"
"""How the metrics of constraints begin: ``constraints/NAME/KEY``."""

MARK, BEGUN, RESUMED = "mark", "begun", "resumed"
"""The key that a mark has and no other line, and its two values."""

_BLOCK = 2**16

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "peft")


NOT_FINITE = "not_finite"
"""Where a line keeps its numbers that JSON cannot hold: name -> nan, inf or -inf, as words."""

MOST_BYTES = 2**26
"""Of ``run.json``; a run's own takes some thousands."""

_MASKING = MaskingFilter()


def logger() -> logging.Logger:
    """The logger of what a run says to people; shows INFO on stderr unless set up otherwise."""
    log = logging.getLogger("counterpoint")
    if not log.handlers and not logging.getLogger().handlers:
        handler = LogHandler()
        handler.addFilter(_MASKING)  # a logger's filter does not see what its children say
        log.addHandler(handler)
    log.addFilter(_MASKING)
    if log.level == logging.NOTSET:
        # of several ranks one speaks; all of them warn
        first = os.environ.get("RANK", "0") == "0"
        log.setLevel(logging.INFO if first else logging.WARNING)
    return log


def check_writable(folder: str | Path) -> None:
    """Refuse a folder that could not be written, without creating it.

    Args:
        folder: where the run would write; need not exist.

    Raises:
        SetupError: CP501, naming the part of the path that is in the way.
    """
    refuse_unusable(Path(folder))
    path = Path(folder).absolute()
    try:
        existing = next(p for p in (path, *path.parents) if os.path.lexists(p))
        if not existing.is_dir():
            what = "a file" if existing.exists() else "a link to nothing"
            raise SetupError("CP501", f"{path} cannot be a folder: {existing} is {what}.")
        # asking for permission is not enough: it is granted to root on read-only file systems
        probe = existing / f".counterpoint-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SetupError(
            "CP501",
            f"{path} cannot be written: {error.strerror or error}. Choose another folder.",
        ) from error


def versions() -> dict[str, str]:
    """Versions of Python, Counterpoint and the libraries that compute."""
    found = {"python": platform.python_version(), "counterpoint": __version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def constraint_metric(name: str, key: str) -> str:
    """What a log line calls a number of a constraint.

    Args:
        name: of the constraint, without a slash.
        key: value, bound, violation, smoothed, multiplier, feasible or at_cap.
    """
    return f"{CONSTRAINTS}{name}/{key}"


def constraint_metrics(line: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, float]]:
    """The numbers of each constraint in a log line, by name and key, in the line's order.

    Args:
        line: of the stream ``METRICS``.
        prefix: before their names, such as "eval_".
    """
    found: dict[str, dict[str, float]] = {}
    for metric, number in line.items():
        if metric.startswith(prefix + CONSTRAINTS):
            name, _, key = metric.removeprefix(prefix + CONSTRAINTS).partition("/")
            found.setdefault(name, {})[key] = float(number)
    return found


def stream_file(folder: str | Path, stream: str) -> Path:
    """Where a stream of a run lies.

    Args:
        folder: the run directory.
        stream: one of ``STREAMS``.
    """
    return Path(folder) / f"{stream}.jsonl"


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that goes wrong while a run goes on.

    Args:
        code: a key of the doctor's table, CW4xx.
        step: optimizer step at which it was seen.
        since: optimizer step at which it began, <= step.
        seen: what was seen, with values.
        fix: a line of configuration to paste; "" where there is none.
    """

    code: str
    step: int
    since: int
    seen: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """A run directory, as far as it is written.

    Args:
        folder: where it was read.
        facts: of ``run.json``; empty where there is none.
        metrics: log lines, in the order they were written, each with its "step" and "time".
        alarms: what was raised.
        movement: looks at the parameters.
        samples: texts that the model wrote.
    """

    folder: Path
    facts: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    alarms: tuple[Mapping[str, Any], ...]
    movement: tuple[Mapping[str, Any], ...]
    samples: tuple[Mapping[str, Any], ...]

    def _repr_html_(self) -> str:
        """How the run went, in a notebook: facts, first and last numbers, alarms."""
        columns = ("code", "step", "since", "seen")
        alarms = [[alarm.get(column) for column in columns] for alarm in self.alarms]
        return shown(
            f"{phrase('run')} {self.folder}",
            rows_shown(("", "of the run"), _told_of(self), label="facts"),
            rows_shown(("metric", "first", "last"), _ends_of(self.metrics), label="metrics"),
            rows_shown(columns, alarms, label="alarms"),
        )


def read_run(folder: str | Path, streams: Collection[str] = STREAMS) -> Run:
    """Read a run directory, also while it is written.

    Args:
        folder: the run directory.
        streams: those of ``STREAMS`` to read; the others are left empty.

    Returns:
        Each step once, as it was done last.

    Raises:
        SetupError: CP507 where there is no run, or its ``run.json`` or a line cannot be read or
            holds what no run writes (``run_schema``).
    """
    path = Path(folder)
    facts = _facts(path)
    found: dict[str, tuple[Mapping[str, Any], ...]] = dict.fromkeys(STREAMS, ())
    for stream in streams:
        found[stream] = tuple(_that_count(_lines(stream_file(path, stream))))
    return Run(path, facts, **found)


def _told_of(run: Run) -> Iterator[tuple[str, str]]:
    facts, ended = run.facts, run.facts.get("ended") or {}
    model = facts.get("model")
    steps = [line["step"] for line in run.metrics if "step" in line]
    name = model.get("name") if isinstance(model, Mapping) else model
    yield phrase("model"), str(name or phrase("unknown"))
    yield phrase("objective"), str(facts.get("objective") or phrase("unknown"))
    state, step = ended.get("state", "no end yet"), ended.get("step", max(steps, default=0))
    yield phrase("state"), phrase("{state}, step {step}", state=phrase(str(state)), step=step)
    if ended.get("error"):
        yield phrase("error"), json.dumps(ended["error"])
    yield phrase("log lines"), ", ".join(f"{len(getattr(run, one)):,} {one}" for one in STREAMS)


def _ends_of(lines: tuple[Mapping[str, Any], ...]) -> Iterator[tuple[str, Any, Any]]:
    """The first and the last value of each metric, in the order in which they were first logged."""
    ends: dict[str, tuple[Any, Any]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "time", "epoch"):
                ends[name] = (ends.get(name, (value,))[0], value)
    return ((name, *both) for name, both in ends.items())


def _facts(folder: Path) -> Mapping[str, Any]:
    """The content of ``run.json``."""
    try:
        _refuse_foreign(folder / RUN_FILE, folder)
        with (folder / RUN_FILE).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES // 2**20} MiB")
        return check_facts(json.loads(content.decode("utf-8")))
    except (OSError, ValueError, RuntimeError) as error:
        raise SetupError(
            "CP507", f"{folder} holds no run: its {RUN_FILE} cannot be read ({error})."
        ) from error


def _refuse_foreign(path: Path, folder: Path) -> None:
    """Refuse what is no file of the run's own; what is not there is nobody's.

    Raises:
        ValueError: for a folder, a pipe, a device, and a link that leads out of the run.
    """
    if os.path.lexists(path):
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        if not lies_within(folder.resolve(), path.resolve()):
            raise ValueError("it leads out of the run's folder")


Placed = tuple[int, Mapping[str, Any]]
"""A line of a stream, and the byte at which it begins."""


def _lines(path: Path) -> Iterator[Placed]:
    """The whole lines of a stream; one that is being written is left for the next time."""
    try:
        _refuse_foreign(path, path.parent)
    except (ValueError, RuntimeError) as error:  # a link to itself
        raise SetupError("CP507", f"{path} is no part of a run: {error}.") from error
    if not path.is_file():
        return
    begin = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.endswith(b"\n"):
                try:
                    found = _with_not_finite(json.loads(line.decode("utf-8")))
                    yield begin, check_line(path.stem, found, MARK)
                except (ValueError, RecursionError) as error:
                    raise SetupError(
                        "CP507", f"{path} line {number} is no line of a run ({error})."
                    ) from error
            begin += len(line)


def _that_count(lines: Iterator[Placed]) -> Iterator[Mapping[str, Any]]:
    """The lines of a stream without its marks and what they override."""
    kept: list[Placed] = []
    for begin, line in lines:
        if MARK in line:
            kept = [(at, one) for at, one in kept if _still_counts(at, one, line)]
        else:
            kept.append((begin, line))
    return (line for _, line in kept)


def _still_counts(begin: int, line: Mapping[str, Any], mark: Mapping[str, Any]) -> bool:
    """Whether a line counts after a later mark."""
    if mark[MARK] == BEGUN:
        return bool(begin >= mark.get("from", 0))
    if "to" in mark:
        return bool(begin < mark["to"])
    return bool(line.get("step", 0) <= mark.get("step", 0))


class RunLog:
    """Writes a run's own files; one writer a run, the main process.

    Args:
        folder: the run directory; created with the first file.
        writes: False for the other ranks, whose calls do nothing.
    """

    def __init__(self, folder: str | Path, *, writes: bool = True) -> None:
        """Look at what an earlier run left in the folder; nothing is written yet."""
        self.folder, self.writes = Path(folder), writes
        self._earlier = course_of(self.folder)
        self._from = self._whole_sizes()
        self._ends = dict(self._from)  # where this log has left each stream
        self._course: dict[str, Any] = {
            "started": None,
            "resumed": [],
            "steps": None,
            "ended": None,
        }
        self._facts: Mapping[str, Any] = {}
        self._described = self._warned = False
        self._held: list[tuple[str, str]] = []
        self._mended: set[str] = set()
        self._resumed_at: int | None = None

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Write ``run.json`` with the facts, the course of the run, versions and command line.

        Args:
            facts: JSON-ready; secrets are left out at any depth.

        Raises:
            OSError: where it cannot be written the first time; later a warning says so.
        """
        self._facts = facts
        self._write_facts()

    @property
    def described(self) -> bool:
        """Whether ``run.json`` is of the training that this log is of."""
        return self._described

    def append(self, stream: str, entry: Mapping[str, Any] | Alarm) -> None:
        """Append one line to a stream, with the "time" in seconds since 1970.

        What cannot be written is kept for the next call.

        Args:
            stream: one of ``STREAMS``.
            entry: JSON-ready, with its "step".
        """
        self._resumed_at = None
        self._hold(stream, asdict(entry) if isinstance(entry, Alarm) else entry)
        self._write_held()

    # ---- the course of a run ----

    def begun(self) -> None:
        """Training begins at step 0: what an earlier one left in the streams counts no more."""
        if self._resumed_at == 0:  # it is known already
            return
        now = self._whole_sizes()
        for stream, own in self._from.items():
            # another trainer may have written here since
            begin = own if now[stream] == self._ends[stream] else now[stream]
            if begin:
                self._mark(stream, {MARK: BEGUN, "step": 0, "from": begin})
        self._go_on({"started": _now(), "resumed": [], "steps": None, "ended": None})

    def resumed(self, step: int, lengths: Mapping[str, int] | None = None) -> None:
        """Training goes on from a checkpoint: what was written beyond it counts no more.

        Args:
            step: optimizer step of the checkpoint, at least 0; saying it twice marks it once.
            lengths: of the streams when the checkpoint was written, from ``lengths``. Of a stream
                that is not in it lines of later steps count no more.
        """
        if step == self._resumed_at:
            return
        now = _now()
        known = lengths or {}
        for stream in STREAMS:
            to = {"to": known[stream]} if stream in known else {}
            self._mark(stream, {MARK: RESUMED, "step": step, **to})
        so_far = self._course if self._course["started"] is not None else self._earlier
        resumes = [*so_far.get("resumed", []), {"step": step, "time": now}]
        course = {"started": so_far.get("started", now), "resumed": resumes}
        self._go_on({**course, "steps": None, "ended": None})
        self._resumed_at = step

    def planned(self, steps: int) -> None:
        """The running training is one of so many optimizer steps, those before it included."""
        if self._course["steps"] != steps:
            self._go_on({**self._course, "steps": steps})

    def lengths(self) -> dict[str, int]:
        """Bytes of each stream as it stands, brought to the disk: what a checkpoint remembers."""
        self._write_held()
        for stream in STREAMS:
            path = stream_file(self.folder, stream)
            if path.is_file():
                with path.open("r+b") as file:
                    os.fsync(file.fileno())
        return self._whole_sizes()

    def ended(self, state: str, step: int, error: BaseException | None = None) -> None:
        """Training is over; ``run.json`` says how.

        Args:
            state: "finished", "stopped" before its last step, "interrupted" or "failed".
            step: optimizer steps that were done.
            error: what ended it, if anything did.
        """
        end = {"state": state, "step": step, "time": _now()}
        told = {} if error is None else {"error": _told(error)}
        self._go_on({**self._course, "ended": end | told})
        self._from = self._whole_sizes()  # whatever comes now belongs to the next training
        if self._held:
            logger().warning(
                "%d lines of the run's log could not be written and are lost: %s",
                len(self._held),
                self.folder,
            )

    def _go_on(self, course: dict[str, Any]) -> None:
        self._course = course
        self._write_held()
        if self._described:
            self._write_facts()

    # ---- writing ----

    def _whole_sizes(self) -> dict[str, int]:
        return {stream: _whole_size(stream_file(self.folder, stream)) for stream in STREAMS}

    def _write_facts(self) -> None:
        if not self.writes:
            return
        mask = Mask()
        content = {
            **mask.of({**self._facts, **self._course}),
            "versions": versions(),
            "command": mask.words(sys.argv),
        }
        try:
            with staged(self.folder / RUN_FILE) as file:
                file.write(f"{_json(content, mask, indent=2)}\n".encode())
        except OSError as error:
            if not self._described:
                raise
            self._warn(error)
        self._described = True

    def _mark(self, stream: str, mark: Mapping[str, Any]) -> None:
        """Hold a mark, where there is something that it could override."""
        held = any(name == stream for name, _ in self._held)
        if held or _whole_size(stream_file(self.folder, stream)):
            self._hold(stream, mark)

    def _hold(self, stream: str, content: Mapping[str, Any]) -> None:
        if self.writes:
            mask = Mask()
            self._held.append((stream, _json({**mask.of(content), "time": _now()}, mask)))

    def _write_held(self) -> None:
        """Write what is held, as far as the disk lets it."""
        try:
            while self._held:
                stream, line = self._held[0]
                make_folder(self.folder)
                path = stream_file(self.folder, stream)
                if stream not in self._mended:
                    _mend(path)
                    self._mended.add(stream)
                self._ends[stream] = _append(path, f"{line}\n".encode())
                del self._held[0]
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            logger().warning(
                "%s cannot be written: %s. Training goes on; the lines of its log are kept in "
                "memory and written as soon as that is possible.",
                self.folder,
                error.strerror or error,
            )
        self._warned = True


def _now() -> float:
    return round(time.time(), 3)


def _whole_size(path: Path) -> int:
    """Bytes of a stream's whole lines; what a killed process left of its last one is not one."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            begin = max(0, end - _BLOCK)
            file.seek(begin)
            found = file.read(end - begin).rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
    return 0


def course_of(folder: Path) -> Mapping[str, Any]:
    """When a run was started and where it was taken up again, as its ``run.json`` says.

    Args:
        folder: of a run; where its ``run.json`` cannot be read nothing is known.
    """
    try:
        found = _facts(folder)
    except SetupError:
        return {}
    return {name: found[name] for name in ("started", "resumed") if found.get(name)}


def _told(error: BaseException) -> dict[str, str | None]:
    """The code of an error, if it has one, and one line for people."""
    if isinstance(error, CounterpointError):
        return {"code": error.code, "seen": " ".join(error.message.split())}
    line = next(iter(str(error).strip().splitlines()), "")
    name = type(error).__name__
    return {"code": None, "seen": f"{name}: {line}" if line else name}


def _json(content: Mapping[str, Any], mask: Mask, indent: int | None = None) -> str:
    def plain(value: Any) -> Any:
        """A number of some library as a number, anything else as text."""
        number = value.item() if hasattr(value, "item") else None
        if isinstance(number, float) and not math.isfinite(number):
            return str(number)
        return number if isinstance(number, bool | int | float) else mask.text(str(value))

    return json.dumps(_strict(content), indent=indent, default=plain, allow_nan=False)


def _strict(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: such numbers stand apart, by name, as words.

    Deeper down a word takes the number's own place.
    """
    odd = {name: str(value) for name, value in content.items() if is_odd(value)}
    kept = {name: spelt(value) for name, value in content.items() if name not in odd}
    return {**kept, NOT_FINITE: odd} if odd else kept


def _with_not_finite(line: Any) -> Any:
    """A line with the numbers that ``_strict`` set apart back in it."""
    if not isinstance(line, dict) or not isinstance(line.get(NOT_FINITE), dict):
        return line
    odd = {name: NUMBERS.get(str(word), word) for name, word in line[NOT_FINITE].items()}
    return {name: value for name, value in line.items() if name != NOT_FINITE} | odd


def _append(path: Path, line: bytes) -> int:
    """Append a whole line or nothing; where the file then ends."""
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise
    return end + len(line)


def _mend(path: Path) -> None:
    """Cut off what is no whole line."""
    if path.is_file() and path.stat().st_size > _whole_size(path):
        os.truncate(path, _whole_size(path))
