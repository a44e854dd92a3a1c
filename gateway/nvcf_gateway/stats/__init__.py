"""What the dashboard and `nvcf top` show: calls of the last minutes, and queues as they are now."""
