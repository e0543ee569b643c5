"""How good a model is: statistics over pairs, with intervals, and of the texts it writes.

    PairScores --preferences--> accuracies, margins, likelihoods     (numpy alone)
    prompts --generation--> Completions --texts, references--> lengths, repetition, BLEU, chrF

Not here: the forward pass that gives scores (``step.evaluation_pass``), and which prompts a
run writes to (``samples``).
"""
