"""Where a run runs and where its code came from, for its record.

    environment   machine, system and Python; gathers the other two
    commit        of the working folder, from git's own files
    installed     how this copy of Counterpoint was installed

Not here: versions of packages (``runlog``), how much memory is left (``planner``).
"""
