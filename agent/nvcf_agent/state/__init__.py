"""State of the agent's instances and the decisions about it."""
