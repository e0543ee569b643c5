"""The embedded quickstart: a small translation task, a tiny base model, one run of CPO.

Nothing is imported here, so that the command line stays light; see ``task`` and ``run``.
"""
