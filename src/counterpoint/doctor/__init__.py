"""The doctor: what is wrong with a run before its first step, all of it at once.

    options, tokenizer, model, data, machine ──of_*──▶ Finding ... ──examine──▶ Report

Every check is a function from facts to findings; none trains, none writes, none stops another.

Not here: what rows, options and models mean (their rooms), and the planner's exact memory.
"""
