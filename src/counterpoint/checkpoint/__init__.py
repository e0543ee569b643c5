"""Checkpoints that are whole or not there, and hold all that a run needs to go on exactly.

    folder        where they lie: written beside their place, renamed when whole, rotated
    manifest      what says that one is whole: size and SHA-256 of every file
    lock          one run a folder
    adapted       what an adapter is, and what it lies on
    fingerprint   whether a checkpoint is of this experiment
    tree          nested state as JSON and safetensors; no pickle
    weights, optimizer, randomness    what a run's state is made of

Not here: when a checkpoint is written or gone on from (``trainer.resumable``).
"""
