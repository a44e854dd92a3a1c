"""What JetStream says of a version's queues, and what it says when it cannot."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nvcf_autoscaler.controller.queues import QueueState, read_queue
from nvcf_broker.errors import BrokerError
from nvcf_broker.requests import ReplyInbox

V = "22222222-2222-4222-8222-222222222222"
THERE = {"num_pending": 3, "num_ack_pending": 2, "delivered": {"stream_seq": 7}}
NO_STREAM = {"error": {"code": 404, "err_code": 10059, "description": "stream not found"}}
UNAVAILABLE = {"error": {"code": 503, "err_code": 10008, "description": "temporarily unavailable"}}


def broker(*answers: dict[str, Any]) -> ReplyInbox:
    """One that gives these answers."""
    left = list(answers)

    async def request(*_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(data=json.dumps(left.pop(0)).encode())

    return cast(ReplyInbox, SimpleNamespace(request=request))


async def test_queues_are_added_up_and_a_missing_one_is_empty() -> None:
    assert await read_queue(broker(THERE, NO_STREAM), ("a", "b"), V) == QueueState(3, 2, 10)


async def test_a_queue_that_cannot_be_read_is_not_an_empty_one() -> None:
    # An empty one would be reason enough to end the instances that work on it.
    with pytest.raises(BrokerError, match="temporarily unavailable"):
        await read_queue(broker(UNAVAILABLE), ("a",), V)
