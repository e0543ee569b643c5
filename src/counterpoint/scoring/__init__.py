"""Candidates get scores: by a metric, a model, a judge, a function or a process of your own.

Nothing slow is imported before a scorer needs it: a metric of texts needs no torch.

Not here: drawing candidates (``evaluation.sampling``), making pairs of them (``data.scored``).
"""
