"""Whether the simulator says what a running platform does. A measurement: `make agreement` runs it."""
