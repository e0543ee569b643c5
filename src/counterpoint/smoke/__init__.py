"""The smoke run: a whole run in miniature, before the real one is begun.

    config.json ──twin──▶ a tiny model of the same class ┐
    rows of the run ──rows──▶ a few short pairs ─────────┴─miniature──▶ trained, saved, resumed
                                                             └──checks──▶ Check, a line each

Not here: what is wrong with options or data (``doctor``), and training for its own sake.
"""
