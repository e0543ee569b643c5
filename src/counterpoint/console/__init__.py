"""What a terminal shows: a line for an error, how far a long job is, and a training as it goes."""
