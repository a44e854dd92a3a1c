"""JetStream's API as this platform uses it: streams, consumers, single messages, one error type.

The library's own client is not used for this: it parses every reply into objects with dozens of fields, and
its `request` may lose a cancellation (see `nvcf_broker.requests`). Settings are the API's own JSON, durations
in nanoseconds. Source: nats-server, `$JS.API` (ADR-1, ADR-31).
"""

import base64
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import msgspec
import nats.errors
from nats.aio.msg import Msg

from nvcf_broker.connection import describe_error
from nvcf_broker.errors import BrokerError, BrokerUnavailableError, JetStreamError, NoListenerError
from nvcf_proto.budget import size_text
from nvcf_proto.subjects import API_PREFIX

_log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 5.0
NANOSECONDS = 1_000_000_000
_MISSING = 404
# Settings of a stream that follow the configuration of whoever uses it.
_BOUNDS = ("max_msgs", "max_bytes", "max_age", "max_msg_size", "max_msgs_per_subject", "discard")


class Requester(Protocol):
    """Publishes and waits for one reply: `ReplyInbox`, or a `nats` client."""

    async def request(
        self, subject: str, payload: bytes, *, timeout: float, headers: dict[str, str] | None = None
    ) -> Msg:
        """Return the reply. Raises TimeoutError and errors of `nats`."""


@dataclass(frozen=True)
class StreamInfo:
    """State of a stream. `first_time` is when its first message was stored (RFC 3339), `size` is in bytes."""

    config: dict[str, Any]
    created: str
    messages: int
    size: int
    first_sequence: int
    last_sequence: int
    first_time: str
    subjects: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The stream's name."""
        return str(self.config["name"])


@dataclass(frozen=True)
class ConsumerInfo:
    """State of a consumer.

    `pending` messages are not delivered yet, `ack_pending` ones not acknowledged yet. `delivered` is the
    stream sequence of the newest delivered message; all up to `ack_floor` are acknowledged. `deliveries` is
    the number of deliveries.
    """

    name: str
    pending: int
    ack_pending: int
    delivered: int
    ack_floor: int
    deliveries: int = 0


@dataclass(frozen=True)
class AccountInfo:
    """Bytes that a broker account stores on files, and may store at most (None: no limit)."""

    stored: int
    limit: int | None


@dataclass(frozen=True)
class StoredMessage:
    """One message of a stream. `stored_at` is Unix time."""

    subject: str
    sequence: int
    data: bytes
    headers: dict[str, str]
    stored_at: float = 0.0


class JetStream:
    """Calls to JetStream.

    Every call raises JetStreamError when JetStream refuses, NoListenerError when nobody listens, and
    BrokerUnavailableError when no answer comes within `timeout` seconds: then its effect is unknown.
    """

    def __init__(self, requests: Requester, timeout: float = TIMEOUT_SECONDS) -> None:
        self._requests = requests
        self._timeout = timeout

    async def ensure_stream(self, config: Mapping[str, Any]) -> bool:
        """Create a stream if it is missing, else change its bounds where they differ. Return if it is new.

        A stream that is there is used, also when the broker refuses the change: it checks whether there is
        room for a bound before it looks whether the stream exists.
        """
        name = config["name"]
        found = await self.stream_info(name)
        if found is None:
            return await self.create_stream(config)
        wanted = {key: config[key] for key in _BOUNDS if key in config}
        if any(found.config.get(key) != value for key, value in wanted.items()):
            try:
                await self.update_stream({**found.config, **wanted})
            except JetStreamError as error:
                _log.warning("the bounds of stream %s stay as they are: %s", name, error)
        return False

    async def account_info(self) -> AccountInfo:
        """Return what the broker account stores and may store."""
        found = await self._call("INFO", {}, "cannot read the broker account")
        limit = int(found.get("limits", {}).get("max_storage", -1))
        return AccountInfo(int(found.get("storage", 0)), limit if limit > 0 else None)

    async def create_stream(self, config: Mapping[str, Any]) -> bool:
        """Create a stream. Return False when there is one of that name, whatever its settings are."""
        name = config["name"]
        try:
            await self._call(f"STREAM.CREATE.{name}", config, f"cannot create stream {name}")
        except JetStreamError as error:
            if error.no_room:
                raise await self._no_room(config, error) from error
            if not error.exists:
                raise
            return False
        return True

    async def _no_room(self, config: Mapping[str, Any], error: JetStreamError) -> BrokerError:
        account = await self.account_info()
        most = "no limit" if account.limit is None else f"a limit of {size_text(account.limit)}"
        wanted = size_text(max(0, int(config.get("max_bytes", 0))))
        return BrokerError(
            f"{error}: it may hold {wanted}, and the broker account has {most}: "
            "give the broker more disk, or the gateway a smaller --data-max"
        )

    async def update_stream(self, config: Mapping[str, Any]) -> None:
        """Change the settings of a stream."""
        name = config["name"]
        await self._call(f"STREAM.UPDATE.{name}", config, f"cannot change stream {name}")

    async def delete_stream(self, name: str) -> bool:
        """Delete a stream with its messages. Return False when there is none."""
        return await self._find(f"STREAM.DELETE.{name}", {}, f"cannot delete stream {name}") is not None

    async def stream_info(self, name: str, **query: Any) -> StreamInfo | None:
        """Return the state of a stream, None when it is missing.

        `subjects_filter` asks for the number of messages of each subject too.
        """
        found = await self._find(f"STREAM.INFO.{name}", query, f"cannot read stream {name}")
        if found is None:
            return None
        return _stream(found)

    async def streams(self, subject: str) -> list[StreamInfo]:
        """Return the states of all streams that take messages within `subject`."""
        found: list[StreamInfo] = []
        while True:
            query = {"subject": subject, "offset": len(found)}
            page = await self._call("STREAM.LIST", query, "cannot list the streams")
            found += [_stream(each) for each in page.get("streams") or []]
            if not page.get("streams") or len(found) >= int(page.get("total", 0)):
                return found

    async def create_consumer(self, stream: str, config: Mapping[str, Any]) -> ConsumerInfo:
        """Create a consumer, durable if it has a `durable_name`; an existing one takes the new settings."""
        name = config.get("durable_name")
        call = f"CONSUMER.DURABLE.CREATE.{stream}.{name}" if name else f"CONSUMER.CREATE.{stream}"
        body = {"stream_name": stream, "config": config}
        return _consumer(await self._call(call, body, f"cannot create consumer {name or ''} of {stream}"))

    async def consumer_info(self, stream: str, consumer: str) -> ConsumerInfo | None:
        """Return the state of a consumer, None when it or its stream is missing."""
        found = await self._find(f"CONSUMER.INFO.{stream}.{consumer}", {}, f"cannot read consumer {consumer}")
        return None if found is None else _consumer(found)

    async def delete_consumer(self, stream: str, consumer: str) -> bool:
        """Delete a consumer; the messages stay. Return False when there is none."""
        action = f"cannot delete consumer {consumer}"
        return await self._find(f"CONSUMER.DELETE.{stream}.{consumer}", {}, action) is not None

    async def purge(self, stream: str, subject: str, *, before: int | None = None) -> None:
        """Remove the messages of a subject; with `before` only those of a lower sequence."""
        query: dict[str, Any] = {"filter": subject}
        if before is not None:
            query["seq"] = before
        await self._call(f"STREAM.PURGE.{stream}", query, f"cannot purge {subject} of stream {stream}")

    async def delete_message(self, stream: str, sequence: int) -> None:
        """Remove one message without overwriting its bytes on disk."""
        query = {"seq": sequence, "no_erase": True}
        await self._call(
            f"STREAM.MSG.DELETE.{stream}", query, f"cannot delete message {sequence} of {stream}"
        )

    async def message(self, stream: str, **query: Any) -> StoredMessage | None:
        """Return one message, None when it or its stream is missing.

        `query` is `seq`, or `last_by_subj` (wildcards are allowed). The stream's leader replies.
        """
        action = f"cannot read stream {stream}"
        found = await self._find(f"STREAM.MSG.GET.{stream}", query, action)
        return None if found is None else _stored(found["message"])

    async def direct_get(self, stream: str, **query: Any) -> Msg | None:
        """Return one message from any replica of the stream, None when there is none.

        `query` is `last_by_subj`, or `seq` with `next_by_subj`.
        """
        action = f"cannot read stream {stream}"
        message = await self._request(f"{API_PREFIX}.DIRECT.GET.{stream}", json.dumps(query).encode(), action)
        headers = message.headers or {}
        status = headers.get("Status")
        if status is None:
            return message
        if status == str(_MISSING):
            return None
        reply = {"code": int(status), "description": headers.get("Description", "")}
        raise JetStreamError(action, reply)

    async def publish(
        self,
        subject: str,
        payload: bytes,
        headers: dict[str, str] | None = None,
        *,
        action: str = "cannot store the message",
        timeout: float | None = None,
    ) -> int:
        """Store a message. Return its stream sequence. `action` begins the text of an error.

        `timeout` shortens the wait for the answer.
        """
        reply = await self._request(subject, payload, action, headers, timeout)
        return int(_checked(reply, action)["seq"])

    async def _find(self, name: str, body: Mapping[str, Any], action: str) -> dict[str, Any] | None:
        try:
            return await self._call(name, body, action)
        except JetStreamError as error:
            if error.code != _MISSING:
                raise
            return None

    async def _call(self, name: str, body: Mapping[str, Any], action: str) -> dict[str, Any]:
        return _checked(
            await self._request(f"{API_PREFIX}.{name}", json.dumps(body).encode(), action), action
        )

    async def _request(
        self,
        subject: str,
        payload: bytes,
        action: str,
        headers: dict[str, str] | None = None,
        timeout: float | None = None,
    ) -> Msg:
        seconds = self._timeout if timeout is None or timeout > self._timeout else timeout
        try:
            return await self._requests.request(subject, payload, timeout=seconds, headers=headers)
        except nats.errors.NoRespondersError as error:
            raise NoListenerError(f"{action}: nobody listens on {subject}") from error
        except (nats.errors.Error, OSError, TimeoutError) as error:
            reason = describe_error(error)
            raise BrokerUnavailableError(f"{action}: the broker did not answer ({reason})") from error


def _checked(reply: Msg, action: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(reply.data)
    except ValueError as error:
        raise BrokerUnavailableError(f"{action}: the broker's answer is no JSON") from error
    if not isinstance(value, dict):
        raise BrokerUnavailableError(f"{action}: the broker's answer is no JSON object")
    if value.get("error"):
        raise JetStreamError(action, value["error"])
    return value


def _stored(message: Mapping[str, Any]) -> StoredMessage:
    block = base64.b64decode(message.get("hdrs") or "").decode(errors="replace")
    pairs = (line.partition(":") for line in block.split("\r\n")[1:])
    return StoredMessage(
        subject=str(message.get("subject", "")),
        sequence=int(message["seq"]),
        data=base64.b64decode(message.get("data") or ""),
        headers={name: value.strip() for name, colon, value in pairs if colon},
        stored_at=datetime.fromisoformat(message["time"]).timestamp() if "time" in message else 0.0,
    )


def _stream(value: Mapping[str, Any]) -> StreamInfo:
    state = value["state"]
    return StreamInfo(
        config=value["config"],
        created=str(value.get("created", "")),
        messages=int(state["messages"]),
        size=int(state["bytes"]),
        first_sequence=int(state["first_seq"]),
        last_sequence=int(state["last_seq"]),
        first_time=str(state.get("first_ts", "")),
        subjects=state.get("subjects") or {},
    )


def _consumer(value: Mapping[str, Any]) -> ConsumerInfo:
    return ConsumerInfo(
        name=str(value.get("name", "")),
        pending=int(value.get("num_pending", 0)),
        ack_pending=int(value.get("num_ack_pending", 0)),
        delivered=int(value.get("delivered", {}).get("stream_seq", 0)),
        ack_floor=int(value.get("ack_floor", {}).get("stream_seq", 0)),
        deliveries=int(value.get("delivered", {}).get("consumer_seq", 0)),
    )
