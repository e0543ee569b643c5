"""Options of every command: which there are, and how what a user wrote becomes their values."""
