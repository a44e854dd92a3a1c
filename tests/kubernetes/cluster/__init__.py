"""A Kubernetes cluster for tests: real programs, throw-away state, one machine.

`programs` finds or builds the programs, `control_plane` runs an API server with its controllers, `node` adds
a real node with real pods, and `kwok` adds fake nodes. `images` writes container images without a container
tool. `python -m tests.kubernetes.cluster` starts the same by hand.
"""
