"""Each difference between TRL's CPO and Counterpoint as a measurement of both in one run."""
