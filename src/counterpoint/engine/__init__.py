"""Where a run computes: what a process holds of the model, and where processes meet.

``face`` says what a step, the monitor and a checkpoint ask of an engine, ``table`` which engines
there are and which one runs. ``stops`` gives a code to what libraries say when another rank is gone
(``lost_rank``) or memory runs out (``memory``).
"""

NOT_SUPPORTED = (
    "a model is trained whole on every rank (torchrun), or in shards with FSDP2 (torchrun and fsdp)"
)
"""What is said of any other way to split a model over ranks."""

FSDP_1 = (
    "version 1 of FSDP has flat parameters in which no weight can be watched or saved by its name; "
    "set version 2: --fsdp_version 2 of accelerate launch, fsdp_version: 2 in its configuration, "
    "or version: 2 in fsdp_config"
)
"""Why the older FSDP is refused, and what to set."""

DEEPSPEED = (
    "accelerate steps DeepSpeed's optimizer within the backward, so that nothing could stand "
    "between a step that is not finite and the weights, and a step would be a micro-batch; use "
    "fsdp, which shards as ZeRO-3 does, or DDP, both through torchrun"
)
"""Why DeepSpeed is refused, and what to use."""
