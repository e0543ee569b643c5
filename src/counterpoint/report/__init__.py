"""The report of a run: one HTML file that opens anywhere, made from what the run wrote.

    run directory ──read_run──▶ Run ──story, curves, movement──▶ charts and words ──page──▶ HTML

Read ``run_report`` first. The same parts make the comparison of several runs (``comparison``), the
page that follows a run (``watching``) and the model's card (``card``).

Not here: computing anything about a model. This room knows no torch, no transformers and no
datasets; it reads what is on the disk.
"""
