"""The lease of a task's worker: both the worker and the control plane keep to it. Seconds."""

LEASE_SECONDS = 240.0
"""So long the worker of a task that may run again goes on without an answer of the platform."""
LEASE_GRACE_SECONDS = 30.0
"""So long its process may then take to end."""
