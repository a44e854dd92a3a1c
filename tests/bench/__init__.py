"""Speed and memory, measured against real processes. Measurements, not tests: `python -m tests.bench`."""
