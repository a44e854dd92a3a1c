"""HTTP plumbing: routing, CORS, TLS, responses, disconnects."""
