"""LLM engines with an OpenAI-compatible HTTP server, behind the worker."""
