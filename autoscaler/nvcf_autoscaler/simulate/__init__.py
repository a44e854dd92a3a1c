"""Discrete-event simulation of scaling policies over arrival traces: `nvcf-simulate`."""
