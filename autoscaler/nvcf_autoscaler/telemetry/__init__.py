"""What the leading autoscaler tells: queues, instances, GPU time and its own decisions."""
