"""When a call is lost: so many seconds after the last fault. The sum of what its settings allow in a row.

While faults go on there is no such time, because each one may cost any call another round.
"""

from __future__ import annotations

from nvcf_gateway.results.dead_letters import SETTLE_SECONDS, SOON_SECONDS
from nvcf_gateway.results.idempotency_keys import SETTLED_SECONDS
from nvcf_proto.streams import DEFAULT_MAX_DELIVER
from nvcf_worker.exchange.response_delivery import RETRY
from nvcf_worker.queue.puller import EXPIRED_AFTER

CALL_TIMEOUT = 15.0
"""After so many seconds a caller gives up one attempt."""
ACK_WAIT = 6
LONGEST_EXECUTION = 3.0

RESTART = 2.0 + 15.0
"""The supervisor's longest pause, and the start of a gateway or worker on a busy machine."""
ELECTION = 20.0
"""A new leader of a stream; reliability.md states the times that were measured."""
KEY = SETTLED_SECONDS + CALL_TIMEOUT
"""The key of a request that is nowhere is free. One attempt may hang until its end just before."""
DELIVERIES = DEFAULT_MAX_DELIVER * (ACK_WAIT + EXPIRED_AFTER)
"""Each delivery goes to a pull of a dead worker, and waits until it is delivered again."""
DELIVERY_OF_RESPONSE = LONGEST_EXECUTION + RETRY.limit
"""The worker's longest pause before it looks for a gateway again."""
SWEEP = 1.5 * SOON_SECONDS + SETTLE_SECONDS
"""A dead letter that no gateway noticed is found."""

PATIENCE = RESTART + ELECTION + KEY + DELIVERIES + DELIVERY_OF_RESPONSE + SWEEP
