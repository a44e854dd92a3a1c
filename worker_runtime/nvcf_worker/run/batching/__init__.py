"""Several requests in one call of the function: dynamic batches, and continuous batches for generators."""
