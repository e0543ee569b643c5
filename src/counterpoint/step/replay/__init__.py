"""A step that was not finite: kept, read again, done again."""
