"""How many requests of a version wait and are in work, over all regions, straight from JetStream."""

from __future__ import annotations

import json
from dataclasses import dataclass

import nats.errors

from nvcf_broker.connection import describe_error
from nvcf_broker.errors import BrokerUnavailableError
from nvcf_broker.requests import BrokerRequests
from nvcf_proto import subjects

TIMEOUT = 3.0


@dataclass(frozen=True)
class QueueState:
    """`stored` counts all requests ever queued, which outlives any gateway's counters."""

    queued: int = 0
    in_flight: int = 0
    stored: int = 0


async def read_queue(requests: BrokerRequests, regions: tuple[str, ...], version_id: str) -> QueueState:
    """The version's queues added up; a missing one is empty. Raises BrokerUnavailableError."""
    queued = in_flight = stored = 0
    for region in regions:
        stream = subjects.request_stream(region, version_id)
        consumer = subjects.request_consumer(region, version_id)
        try:
            answer = await requests.request(
                subjects.consumer_info_subject(stream, consumer), b"", timeout=TIMEOUT
            )
        except (nats.errors.Error, TimeoutError) as error:
            raise BrokerUnavailableError(f"queue of {version_id}: {describe_error(error)}") from error
        info = json.loads(answer.data)
        if "error" in info:
            continue
        queued += int(info.get("num_pending", 0))
        in_flight += int(info.get("num_ack_pending", 0))
        stored += int(info.get("delivered", {}).get("stream_seq", 0)) + int(info.get("num_pending", 0))
    return QueueState(queued, in_flight, stored)
