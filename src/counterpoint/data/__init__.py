"""Room 1: from raw preference rows to batches of token ids."""
