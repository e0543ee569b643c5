"""A loop: rounds of sampling, scoring, pairing, training and evaluating, in one folder.

``stages`` says what a recipe asks for, each a call of the command of that name. ``digests`` knows
again what goes into a stage, ``ledger`` remembers it, ``running`` does what is left, ``figures``
counts what came of each round, ``page`` shows it.

Not here: the command and its file (``cli.loop``), and what a stage does.
"""
