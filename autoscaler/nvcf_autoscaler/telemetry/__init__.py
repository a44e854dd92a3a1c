"""Metrics of the autoscaler."""
