"""Functions that integration tests deploy."""
