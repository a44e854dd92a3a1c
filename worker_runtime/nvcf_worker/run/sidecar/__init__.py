"""Serving a user's own HTTP server without a line of code: `nvcf-worker sidecar`."""
