"""What a worker tells: figures of all requests, spans of those whose trace is sampled, metering events."""
