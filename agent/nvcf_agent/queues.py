"""How many requests still wait for, or are held by, the workers of a version."""

import json
import logging
from typing import Protocol

import nats.errors
from nats.aio.client import Client

from nvcf_proto.subjects import request_subjects

_log = logging.getLogger(__name__)

_ASK_TIMEOUT_SECONDS = 2.0


class Queues(Protocol):
    """Where requests wait."""

    async def unfinished(self, version_id: str) -> int | None:
        """Requests of a version that nobody has acknowledged; None if that cannot be told now."""
        ...


class StreamQueues:
    """Counts the messages of the version's request streams of all regions.

    A work-queue stream keeps a message until it is acknowledged (protocol.md section 2), so this includes
    what workers hold.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def unfinished(self, version_id: str) -> int | None:
        question = json.dumps({"subject": request_subjects("*", version_id)}).encode()
        try:
            answer = await self._client.request("$JS.API.STREAM.LIST", question, timeout=_ASK_TIMEOUT_SECONDS)
            streams = json.loads(answer.data).get("streams") or []
            return sum(int(stream["state"]["messages"]) for stream in streams)
        except (nats.errors.Error, TimeoutError, OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("cannot see how many requests wait for version %s: %s", version_id, error)
            return None
