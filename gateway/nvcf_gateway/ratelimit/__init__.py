"""Rate limits of callers, counted over all replicas of the gateway.

`policy` says which limits hold, `counters` and `permits` count, `members` assigns each version to one
replica, `shared` and `messages` connect the replicas, and `limiter` decides about one call.
"""
