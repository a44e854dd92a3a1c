"""One JetStream key-value bucket on the wire: made if missing, guarded writes, single reads."""

import contextlib

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import api

from nvcf_broker.connection import describe_error
from nvcf_broker.errors import BrokerError, BrokerUnavailableError, KeyExistsError, RevisionConflictError
from nvcf_broker.records import Update, parse_update, valid_key

REQUEST_SECONDS = 5.0
# A deletion leaves a marker so that followers learn of it; a resync finds what a follower missed after that.
MARKER_LIFE = "1h"
_WRONG_LAST_SEQUENCE = (10071, 10164)
_STREAM_NAME_IN_USE = 10058


class Bucket:
    """A bucket's stream. Writes return what a follower of the bucket will see of them."""

    def __init__(self, client: Client, name: str, *, replicas: int = 1) -> None:
        self.name = name
        self.stream = f"KV_{name}"
        self.prefix = f"$KV.{name}."
        self._js = client.jetstream(timeout=REQUEST_SECONDS)
        self._replicas = replicas

    async def ensure(self) -> api.StreamInfo:
        """Make the bucket if it is missing (file storage, one value a key). Raises errors of `nats`."""
        with contextlib.suppress(nats.js.errors.NotFoundError):
            return await self._js.stream_info(self.stream)
        config = api.KeyValueConfig(
            bucket=self.name, history=1, storage=api.StorageType.FILE, replicas=self._replicas, direct=True
        )
        try:
            await self._js.create_key_value(config)
        except nats.js.errors.APIError as error:
            # Another process made it in between.
            if error.err_code != _STREAM_NAME_IN_USE:
                raise
        return await self._js.stream_info(self.stream)

    async def follow(self, deliver_subject: str, heartbeat: float) -> api.ConsumerInfo:
        """Send every key's last message, then all new ones, to a subject. Raises errors of `nats`."""
        config = api.ConsumerConfig(
            deliver_subject=deliver_subject,
            filter_subject=f"{self.prefix}>",
            deliver_policy=api.DeliverPolicy.LAST_PER_SUBJECT,
            ack_policy=api.AckPolicy.NONE,
            max_deliver=1,
            mem_storage=True,
            num_replicas=1,
            idle_heartbeat=heartbeat,
            flow_control=True,
            inactive_threshold=60.0,
        )
        return await self._js.add_consumer(self.stream, config)

    async def put(self, key: str, data: bytes, revision: int | None = None) -> Update:
        """Write, if `revision` is given only when that is the latest (0: none yet). Raises `BrokerError`."""
        return Update(key, data, await self._publish(key, data, {}, revision))

    async def create(self, key: str, data: bytes) -> Update:
        """Write where nothing is, or only the marker of a deletion. Raises `KeyExistsError`."""
        try:
            return await self.put(key, data, 0)
        except RevisionConflictError:
            last = await self._last_message(key)
        if last is not None and last.deleted:
            with contextlib.suppress(RevisionConflictError):
                return await self.put(key, data, last.revision)
        raise KeyExistsError(f"{key} exists already in {self.name}")

    async def delete(self, key: str, revision: int | None = None) -> Update:
        """Leave a marker that expires. Raises `BrokerError`."""
        headers = {"KV-Operation": "DEL", "Nats-TTL": MARKER_LIFE}
        return Update(key, None, await self._publish(key, b"", headers, revision))

    async def _publish(self, key: str, data: bytes, headers: dict[str, str], revision: int | None) -> int:
        if not valid_key(key):
            raise BrokerError(f"{key!r} cannot be a key in {self.name}")
        if revision is not None:
            headers = headers | {api.Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(revision)}
        try:
            ack = await self._js.publish(
                self.prefix + key, data, timeout=REQUEST_SECONDS, headers=headers or None
            )
        except nats.js.errors.APIError as error:
            if error.err_code in _WRONG_LAST_SEQUENCE:
                raise RevisionConflictError(f"{key} in {self.name} was changed meanwhile") from error
            raise BrokerError(f"cannot write {key} to {self.name}: {error.description}") from error
        except (nats.errors.Error, TimeoutError) as error:
            raise BrokerUnavailableError(
                f"cannot write {key} to {self.name}: {describe_error(error)}"
            ) from error
        return ack.seq

    async def _last_message(self, key: str) -> Update | None:
        try:
            message = await self._js.get_last_msg(self.stream, self.prefix + key)
        except nats.js.errors.NotFoundError:
            return None
        except (nats.errors.Error, TimeoutError) as error:
            raise BrokerUnavailableError(
                f"cannot read {key} of {self.name}: {describe_error(error)}"
            ) from error
        return parse_update(key, message.data or b"", message.headers, message.seq or 0)
