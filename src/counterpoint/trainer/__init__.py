"""Where the rooms meet: data, forward and losses become a trainer."""
