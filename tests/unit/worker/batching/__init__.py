"""Dynamic and continuous batching."""
