"""The monitor: whether the parameters of a run move, and how two saved models differ.

    weights, gradients ──sample, checksum──▶ Look ──Judge──▶ Alarm
    two folders ──weight_files──▶ tensors ──difference──▶ Difference

A look costs one pass over the gradients, one over what is frozen, and one read from the device.
``callback`` takes them while a run goes on; it needs transformers, ``difference`` does not.

Not here: the loss and what else a run logs (``metrics``), how looks are drawn (``report``).
"""
