"""The worker's own process: loops, children, health, logs, exit reasons."""
