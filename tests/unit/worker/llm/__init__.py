"""Decisions around LLM engines."""
