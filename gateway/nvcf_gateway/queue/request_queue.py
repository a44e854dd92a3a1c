"""The durable queue: streams made on first use, requests published, removed and cancelled (section 2)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Callable
from typing import Any, Literal

import nats.errors
from nats.aio.msg import Msg

from nvcf_broker.connection import BrokerClient, describe_error
from nvcf_broker.requests import BrokerRequests
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import NotStored, QueueError, QueueFull
from nvcf_gateway.http.durations import publish_delay
from nvcf_gateway.queue.placement import placement_tag
from nvcf_proto import streams, subjects

_log = logging.getLogger(__name__)

API_TIMEOUT = 5.0
_STREAM_NAME_IN_USE = 10058

PublishFailure = Literal["stored", "full", "retry"]


def classify_publish_error(description: str) -> PublishFailure:
    """What a refused publish means.

    The same subject already stored is a repeated publish and counts as success; a full stream is the
    caller's 429; anything else is tried again. Source of the texts: nats-server's stream store errors.
    """
    text = description.lower()
    if "maximum messages per subject exceeded" in text:
        return "stored"
    if "maximum messages exceeded" in text or "maximum bytes exceeded" in text:
        return "full"
    return "retry"


class RequestQueue:
    """One region's request streams, as seen by this replica."""

    def __init__(
        self,
        client: BrokerClient,
        requests: BrokerRequests,
        config: GatewayConfig,
        depth: Callable[[str], int] = lambda version_id: streams.MAX_QUEUED_REQUESTS,
    ) -> None:
        self._depth = depth
        self._client = client
        self._requests = requests
        self._config = config
        self._ensured: set[tuple[str, str]] = set()
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        # Not for secrets: it only spreads retries in time.
        self._random = random.Random()  # noqa: S311

    @property
    def region(self) -> str:
        """The gateway's own region."""
        return self._config.region

    async def ensure(self, version_id: str, region: str | None = None, *, again: bool = False) -> None:
        """Create the version's stream and consumer where they are missing. Raises QueueError."""
        region = region or self.region
        key = (region, version_id)
        if key in self._ensured and not again:
            return
        async with self._locks.setdefault(key, asyncio.Lock()):
            await self._create_stream(region, version_id)
            await self._create_consumer(region, version_id)
            self._ensured.add(key)

    async def _create_stream(self, region: str, version_id: str) -> None:
        config = streams.request_stream_config(
            region,
            version_id,
            replicas=self._config.replicas,
            max_queued=self._depth(version_id),
            placement_tag=placement_tag(self._client, self._config, region),
        )
        error = await self._api(f"STREAM.CREATE.{config['name']}", config)
        if error is None:
            return
        if error.get("err_code") != _STREAM_NAME_IN_USE:
            raise QueueError(f"cannot create stream {config['name']}: {error.get('description')}")
        await self._set_depth(str(config["name"]), int(config["max_msgs"]))

    async def _set_depth(self, stream: str, depth: int) -> None:
        """Bring a stream that was made with other settings to the wanted depth; the rest is its maker's."""
        found = (await self._answer(f"STREAM.INFO.{stream}", {})).get("config", {})
        if found.get("max_msgs") == depth:
            return
        error = await self._api(f"STREAM.UPDATE.{stream}", {**found, "max_msgs": depth})
        if error is not None:
            raise QueueError(f"cannot change stream {stream}: {error.get('description')}")

    async def _create_consumer(self, region: str, version_id: str) -> None:
        stream = subjects.request_stream(region, version_id)
        config = streams.request_consumer_config(
            region, version_id, ack_wait_seconds=self._config.ack_wait, max_deliver=self._max_deliver()
        )
        error = await self._api(
            f"CONSUMER.DURABLE.CREATE.{stream}.{config['durable_name']}",
            {"stream_name": stream, "config": config},
        )
        if error is not None:
            raise QueueError(f"cannot create consumer {config['durable_name']}: {error.get('description')}")

    def _max_deliver(self) -> int:
        # Workers of other makes give back what two regions send for one slot, which counts as a delivery.
        given_back = self._config.wide_inbox and len(self._config.regions) > 1
        return streams.DEFAULT_MAX_DELIVER * (10 if given_back else 1)

    async def delete(self, version_id: str) -> None:
        """Delete the version's streams in all regions, queued requests included. Raises QueueError."""
        for region in self._config.regions:
            self._ensured.discard((region, version_id))
            error = await self._api(f"STREAM.DELETE.{subjects.request_stream(region, version_id)}", {})
            if error is not None and error.get("code") != 404:
                raise QueueError(f"cannot delete the queue: {error.get('description')}")

    async def publish(
        self,
        version_id: str,
        request_id: str,
        payload: bytes,
        headers: dict[str, str],
        *,
        deadline: float | None = None,
        answered: Callable[[], bool] = lambda: False,
    ) -> int | None:
        """Store a request and return its stream sequence, or None if it was stored before.

        `answered` tells whether a worker has answered it: then only the acknowledgement was lost, and
        storing it again would run it again. At `deadline` (loop time) no further attempt is made. Raises
        QueueFull; NotStored if the broker has refused each attempt; QueueError if one may have succeeded.
        """
        attempt = 0
        failure: type[QueueError] = NotStored
        cause: Exception | None = None
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    before, failure = failure, QueueError
                    try:
                        return await self._publish_once(version_id, request_id, payload, headers)
                    except QueueFull:
                        raise
                    except NotStored as error:
                        failure, cause = before, error
                    except (QueueError, nats.errors.Error, TimeoutError) as error:
                        cause = error
                    attempt += 1
                    delay = publish_delay(attempt, self._random.random())
                    if delay is None:
                        text = f"the queue did not take the request: {describe_error(cause)}"
                        raise failure(text) from cause
                    _log.warning(
                        "publish failed, trying again in %.1f s: %s", delay, describe_error(cause),
                        extra={"request_id": request_id},
                    )  # fmt: skip
                    await asyncio.sleep(delay)
                    if answered():
                        return None
        except TimeoutError:
            raise failure("the queue did not take the request within the poll time") from cause

    async def _publish_once(
        self, version_id: str, request_id: str, payload: bytes, headers: dict[str, str]
    ) -> int | None:
        subject = subjects.request_subject(self.region, version_id, request_id)
        # The second time round no stream has listened: somebody deleted it behind our back.
        for again in (False, True):
            try:
                await self.ensure(version_id, again=again)
            except QueueError as error:
                raise NotStored(str(error)) from error
            with contextlib.suppress(nats.errors.NoRespondersError):
                return _stored_sequence(
                    await self._requests.request(subject, payload, timeout=API_TIMEOUT, headers=headers)
                )
        raise NotStored("no stream of the broker takes requests of this version")

    async def place(
        self, version_id: str, request_id: str, region: str
    ) -> Literal["queued", "in work"] | None:
        """Where a request is: waiting, with a worker, or not in the queue at all. Raises QueueError."""
        stream = subjects.request_stream(region, version_id)
        subject = subjects.request_subject(region, version_id, request_id)
        found = await self._known(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
        if found is None:
            return None
        consumer = subjects.request_consumer(region, version_id)
        info = await self._known(f"CONSUMER.INFO.{stream}.{consumer}", {}) or {}
        delivered = int(info.get("delivered", {}).get("stream_seq", 0))
        return "in work" if int(found["message"]["seq"]) <= delivered else "queued"

    async def remove(
        self, version_id: str, request_id: str, sequence: int | None, region: str | None = None
    ) -> None:
        """Take a request out of the queue, waiting or in flight. Raises QueueError."""
        region = region or self.region
        stream = subjects.request_stream(region, version_id)
        if sequence is not None:
            error = await self._api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence, "no_erase": True})
        else:
            subject = subjects.request_subject(region, version_id, request_id)
            error = await self._api(f"STREAM.PURGE.{stream}", {"filter": subject})
        # Gone already is what was wanted.
        if error is not None and error.get("code") not in (400, 404, 500):
            raise QueueError(f"cannot remove the request: {error.get('description')}")

    async def stored(self, version_id: str, sequence: int, region: str) -> dict[str, Any] | None:
        """One message as STREAM.MSG.GET gives it; None when it is not there (any more). Raises QueueError."""
        stream = subjects.request_stream(region, version_id)
        found = (await self._answer(f"STREAM.MSG.GET.{stream}", {"seq": sequence})).get("message")
        return found if isinstance(found, dict) else None

    async def stuck(self, version_id: str) -> int | None:
        """Sequence of a message of the own region that is kept and never delivered again. Raises QueueError.

        Such a message has been delivered and is not awaited by the consumer any more, and yet it is there: an
        acknowledged one would be removed, which may take a moment in a cluster.
        """
        stream = subjects.request_stream(self.region, version_id)
        state = (await self._answer(f"STREAM.INFO.{stream}", {})).get("state", {})
        if not state.get("messages"):
            return None
        consumer = subjects.request_consumer(self.region, version_id)
        info = await self._answer(f"CONSUMER.INFO.{stream}.{consumer}", {})
        if "error" in info:
            return None
        done_with = "ack_floor" if info.get("num_ack_pending") else "delivered"
        first = int(state["first_seq"])
        return first if first <= int(info.get(done_with, {}).get("stream_seq", 0)) else None

    async def cancel(self, version_id: str, request_id: str) -> None:
        """Tell all workers of the version that nobody waits for the request."""
        await self._client.publish(subjects.cancel_subject(version_id), request_id.encode())

    async def _api(self, name: str, body: dict[str, Any]) -> dict[str, Any] | None:
        error_body = (await self._answer(name, body)).get("error")
        return error_body if isinstance(error_body, dict) else None

    async def _known(self, name: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """What the broker knows; None for what is not there, QueueError when it cannot say."""
        answer = await self._answer(name, body)
        error = answer.get("error")
        if error is None:
            return answer
        if error.get("code") == 404:
            return None
        raise QueueError(f"the broker cannot say where the request is: {error.get('description')}")

    async def _answer(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = await self._requests.request(
                f"{subjects.API_PREFIX}.{name}", json.dumps(body).encode(), timeout=API_TIMEOUT
            )
        except (nats.errors.Error, TimeoutError) as error:
            raise QueueError(f"the broker did not answer: {describe_error(error)}") from error
        value = json.loads(answer.data)
        return value if isinstance(value, dict) else {}


def _stored_sequence(answer: Msg) -> int | None:
    acknowledgement = json.loads(answer.data)
    error = acknowledgement.get("error")
    if error is None:
        return int(acknowledgement["seq"])
    description = str(error.get("description", ""))
    match classify_publish_error(description):
        case "stored":
            return None
        case "full":
            raise QueueFull("the queue of this version is full")
        case _:
            raise NotStored(description)
