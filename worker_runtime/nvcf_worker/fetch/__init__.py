"""Download of models and resources before a function starts: `nvcf-worker fetch`."""
