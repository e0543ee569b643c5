"""The command: ``counterpoint train``, ``doctor`` and ``quickstart``.

    words typed, lines of YAML ──given──▶ settings ──coerce──▶ RunOptions + CPOConfig
                                              ──load──▶ model, tokenizer ──train──▶ CPOTrainer

Not here: anything that decides what a number is. The command reads, refuses, loads and hands
over; a script that imports ``counterpoint`` reaches the same trainer without it.
"""
