"""Other tools' files into ours: whose one is, what it asks for, and a run's file that says it."""
