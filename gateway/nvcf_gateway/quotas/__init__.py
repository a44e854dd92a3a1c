"""Quotas of accounts: what one account may store and queue, so that others find room."""
