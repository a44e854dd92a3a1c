"""How many requests may be in work: fixed limits, limits found from latency, and who waits for them."""
