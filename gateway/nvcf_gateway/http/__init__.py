"""HTTP plumbing: routing, TLS, responses, CORS, connections that go wrong."""
