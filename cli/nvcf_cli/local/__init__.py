"""The platform on this machine: its data folder, its processes, and what `nvcf up` runs."""
