"""What a model is: its family, its loading, what trains of it, and in which precision.

    name ──described──▶ bounds kept ──loading, adapters──▶ weights ──preparing──▶ ready to train

Not here: the forward pass (``forward``), what a step makes of it (``step``).
"""
