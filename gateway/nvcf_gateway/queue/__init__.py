"""Request queues: streams, messages, demand, region placement."""
