"""What a run needs in memory, before it begins; and what to do where that is too much.

Nothing is written down about any architecture. The model's own code runs once, forward and
backward, on tensors that have shapes and no data (``rehearsal``), and every tensor is counted from
its birth to its death (``ledger``). Twice, with few and with more tokens: in between and beyond
memory grows along straight lines (``demand``), and all that is asked of the planner, a budget, a
table of splits, a list of remedies, is read off those lines (``plan``).

Not here: memory inside of kernels, fragmentation, and what libraries keep for themselves; a share
of the memory is left for them (``machine``).
"""
