"""Policies to compare: ours, and others written from their public descriptions."""
