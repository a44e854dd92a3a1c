"""Handlers without a platform: `nvcf-worker run`, and the ground that `nvcf_worker.testing` stands on."""
