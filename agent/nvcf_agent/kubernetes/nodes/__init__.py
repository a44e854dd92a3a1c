"""What the cluster's nodes offer: GPUs by their labels or by configuration, instance types, and what fits."""
