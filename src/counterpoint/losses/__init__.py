"""Room 3: log-probabilities to a number. Knows torch and the records, nothing else."""
