"""The built-in page: its files, and the tickets and sessions it reads with."""
