"""Speed and memory, measured against real processes. Figures, not tests: `python -m tests.bench`."""
