"""Where a run computes: what a process holds of the model, and where processes meet.

``face`` says what a step, the monitor and a checkpoint ask of an engine, ``table`` which engines
there are and which one runs. ``lost_rank`` names what libraries say when another rank is gone.
"""

NOT_SUPPORTED = "sharded engines are not supported yet; use DDP through torchrun"
