"""The gateway: callers on one side, the durable queue and the workers on the other."""
