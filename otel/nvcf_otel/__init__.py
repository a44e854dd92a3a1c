"""What every process says about itself: logs now, metrics and traces with the observability work."""
