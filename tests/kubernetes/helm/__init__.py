"""Helm functions against a real API server, with the real helm and pods that kwok plays."""
