"""Access to the Kubernetes API server: calls with deadlines, watches that notice silence, a leader lease."""
