"""Serve a function with a Triton Inference Server (`nvcf-worker triton`)."""
