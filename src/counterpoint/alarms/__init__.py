"""The alarms of a run under way: what its log lines, evaluations and samples give away.

    log line, evaluation ──watch──▶ Curve ... ──of_curves──▶ Alarm
    samples              ──────────of_samples─────────────▶ Alarm

Plain numbers in, alarms out: neither torch nor a model is needed, but by ``effect``, which ends a
run on all ranks at once. Thresholds are derived where they are written down, and docs/alarms.md
lists them.

Not here: what a code means (``doctor``), and what can only be seen in the parameters themselves
(``monitor``).
"""
