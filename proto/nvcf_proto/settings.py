"""Numbers that the contract fixes. Seconds and bytes unless a name says otherwise."""

from __future__ import annotations

# Worker and broker (protocol.md, section 2).
IN_PROGRESS_INTERVAL = 10.0
IN_PROGRESS_MAX_FAILURES = 10
PULL_IDLE_HEARTBEAT = 5.0
PULL_MAX_WAIT = 300.0
NATS_PING_INTERVAL = 10
NATS_CONNECT_TIMEOUT = 5
NATS_MAX_RECONNECT_WAIT = 15.0
LAME_DUCK_MAX_DELAY = 10.0

# Worker tokens (protocol.md, section 5.2).
CONNECT_START_TIMEOUT = 300.0
CONNECT_REFRESH_MIN = 20 * 60.0
CONNECT_REFRESH_MAX = 30 * 60.0
CONNECT_REFRESH_LIFE_SHARE = 0.9
WORKER_TOKEN_LIFE = 3 * 3600.0

# Bodies (protocol.md, sections 3 and 4).
MAX_INLINE_BODY = 32 * 1024
MAX_DIRECT_RESPONSE = 5 * 1024 * 1024
ATTACH_HEAD_TIMEOUT = 5.0
ATTACH_PATH = "/v2/nvcf/worker/request-attach"
MAX_RESPONSE_HEADERS = 64
MAX_RESPONSE_HEAD_BYTES = 417_792
MAX_CALLER_HEAD_BYTES = 64 * 1024
"""Largest head of a response that is passed on to a caller: most clients and proxies take less."""

# Poll time (protocol.md, section 4.3).
POLL_SECONDS_MIN = 1
POLL_SECONDS_MAX = 3600
POLL_SECONDS_DEFAULT = 60
POLL_SECONDS_EVENT_STREAM = 1200
GATEWAY_EXTRA_WAIT = 2.0
CALL_MAX_SECONDS = 3605.0
PUBLISH_ATTEMPTS = 5
PUBLISH_FIRST_DELAY = 1.0

# Stateful sessions (protocol.md, section 7).
TUNNEL_PATH = "/v1/proxy"
SESSION_LINK_TIMEOUT = 30.0
SESSION_RECONNECT_WAIT = 30.0
SESSION_REGISTER_INTERVAL = 20 * 60.0
TUNNEL_DIAL_ATTEMPTS = 5
TUNNEL_DIAL_FIRST_DELAY = 0.01

# Health (protocol.md, section 5.3).
HEALTH_PORT = 8080
HEALTH_LIVE_PATH = "/v1/health/live"
HEALTH_READY_PATH = "/v1/health/ready"
DRAINED_PATH = "/v1/health/drained"
"""[ext] Answers when a worker that was asked to end has no more requests."""
INFERENCE_READY_TIMEOUT = 30 * 60.0
