"""Statistics for the dashboard and `nvcf top`: calls of the last minutes, and current queues."""
