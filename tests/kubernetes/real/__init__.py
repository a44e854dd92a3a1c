"""The product on a real node: images made from this tree, both charts, functions, faults."""
