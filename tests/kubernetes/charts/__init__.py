"""The charts: what they render, and what an API server makes of it."""
