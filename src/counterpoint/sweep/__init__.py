"""A sweep: one run for each of several settings, and which of them was best.

``space`` reads what is varied, ``study`` asks optuna for the next setting and keeps the results,
``course`` trains each in a process of its own, and ``page`` shows all of them.

Not here: the command (``cli.sweep``), and what a run is: each is ``counterpoint train``.
"""
