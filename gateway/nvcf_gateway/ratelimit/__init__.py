"""Rate limits of function versions: exact within a replica, shared by all of them through the broker.

`policy`, `window`, `book`, `members` and `budget` decide and do no I/O; `shared` talks to the other replicas;
`limiter` is what the doors call.
"""
