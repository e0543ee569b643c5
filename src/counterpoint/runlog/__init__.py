"""The run directory: what a run writes about itself, and where.

    run.json         what was trained: objective, options, data, environment, how it ended; written
                     at the start and whenever something of it changes, whole or not at all
    metrics.jsonl    every log line
    alarms.jsonl     every alarm that was raised
    movement.jsonl   how far each parameter has moved, now and then
    samples.jsonl    texts that the model wrote
    _thumbnails/     small pictures of their prompts, for a report

The streams are appended to as things happen, one JSON object a line, and can be read meanwhile.
Where training begins anew or resumes from a checkpoint a *mark* says so, and ``read_run`` leaves
out what it overrides: a step that was done twice is read once.

Not here: weights and checkpoints (the trainer writes them into the same folder), and anything
secret (``masking``).
"""

from __future__ import annotations

from counterpoint.runlog.nouns import (
    ALARMS,
    CONSTRAINTS,
    METRICS,
    MOVEMENT,
    REPORT_FILE,
    REQUEST_FILE,
    RUN_FILE,
    SAMPLES,
    STREAMS,
    Alarm,
    Run,
    constraint_metric,
    constraint_metrics,
    stream_file,
)
from counterpoint.runlog.reading import course_of, read_run
from counterpoint.runlog.thumbnails import clear_thumbnails, kept_thumbnail, pictures_in_line
from counterpoint.runlog.writing import RunLog, check_writable, versions

__all__ = [
    "ALARMS",
    "CONSTRAINTS",
    "METRICS",
    "MOVEMENT",
    "REPORT_FILE",
    "REQUEST_FILE",
    "RUN_FILE",
    "SAMPLES",
    "STREAMS",
    "Alarm",
    "Run",
    "RunLog",
    "check_writable",
    "clear_thumbnails",
    "constraint_metric",
    "constraint_metrics",
    "course_of",
    "kept_thumbnail",
    "pictures_in_line",
    "read_run",
    "stream_file",
    "versions",
]
