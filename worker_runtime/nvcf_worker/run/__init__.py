"""Running handlers: on the loop, in threads, in processes, in batches, within limits."""
