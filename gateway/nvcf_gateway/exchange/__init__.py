"""One call between its caller and a worker: its body, its state, its response."""
