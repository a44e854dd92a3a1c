"""The built-in dashboard: its static files, and the tickets and sessions that give it read access."""
