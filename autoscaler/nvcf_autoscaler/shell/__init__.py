"""The autoscaler at work: what it sees, who of the replicas acts, and how decisions become messages."""
