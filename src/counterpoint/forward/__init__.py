"""Room 2: a model and a batch of pairs to log-probabilities.

Reads ``PairBatch`` alone and works for plain, PEFT- and DDP-wrapped causal language models.
"""
