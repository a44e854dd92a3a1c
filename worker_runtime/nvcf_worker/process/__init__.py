"""The worker's own process: child processes, companions, health, logs, exit reasons, durations."""
