"""Process isolation: handlers in child processes, so that a crash affects only the requests of one child."""
