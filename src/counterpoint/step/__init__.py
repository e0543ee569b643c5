"""One optimizer step: from the pairs of a step to one gradient, torch without transformers."""
