"""Tests against a real API server, real pods, and many fake nodes. `make test-kubernetes` runs them."""
