"""Tests with a real Triton Inference Server, installed from PyPI into a folder of its own: `installed`."""
