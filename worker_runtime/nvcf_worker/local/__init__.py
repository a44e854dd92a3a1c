"""Functions without a platform: `nvcf-worker run`, and the base of `nvcf_worker.testing`."""
