"""What the gateway tells about its requests: figures of all, spans of those whose trace is sampled."""
