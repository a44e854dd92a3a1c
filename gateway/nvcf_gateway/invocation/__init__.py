"""Invoking functions: enqueue, wait for the response, idempotent execution."""
