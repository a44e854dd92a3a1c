"""gRPC services for workers and other services."""
