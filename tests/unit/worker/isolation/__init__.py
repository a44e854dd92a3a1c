"""Child processes: the decisions."""
