"""Checkpoints that are whole or not there, and hold all that a run needs to resume exactly.

    folder        where they lie: written beside their place, renamed when whole, rotated
    manifest      what says that one is whole: size and SHA-256 of every file
    together      what ranks do with one together: each hashes what it wrote, or its share
    lock          one run a folder
    shards        what each rank writes of the tensors, and what it reads of them
    sharded       a run's weights and optimizer by shard, and from there under any engine
    consolidate   a whole model of a checkpoint, tensor by tensor
    adapted       what an adapter is, and what it lies on
    fingerprint   whether a checkpoint is of this experiment
    tree          nested state as JSON and safetensors; no pickle
    weights, optimizer, randomness    what a run's state is made of
    state_file    transformers' own account of a run, and what the trees must look like
    experiment    the facts of a run's fingerprint
    bases         which model a run, or an adapter, began with
    resumption    the checkpoint that a run resumes from: found, verified, of the same experiment
    saving        a checkpoint, or a model's folder, written whole
    trial_save    everything but the weights, saved once before the first step
    saved_options the options as transformers pickles them, without secrets

Not here: when a checkpoint is written (``trainer.saving``) or resumed from (``trainer.resumable``).
"""
