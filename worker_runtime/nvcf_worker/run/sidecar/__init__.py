"""Sidecar mode: serve a function with the user's own HTTP server (`nvcf-worker sidecar`)."""
