"""One JetStream key-value bucket: created if missing, with guarded writes and single reads."""

import contextlib
import math

from nvcf_broker.errors import BrokerError, JetStreamError, KeyExistsError, RevisionConflictError
from nvcf_broker.jetstream import NANOSECONDS, ConsumerInfo, JetStream, Requester, StreamInfo
from nvcf_broker.records import Update, parse_update, valid_key
from nvcf_proto.stores import RECORDS

# A deletion leaves a marker, so that a deleted record can be told from one that was lost: longer than the
# tokens of an instance live. A later resync finds deletions that a follower missed.
MARKER_LIFE = "4h"
DUPLICATE_WINDOW_SECONDS = 120
INACTIVE_SECONDS = 60


class Bucket:
    """The stream of a bucket. Writes return the update that the bucket's followers will receive."""

    def __init__(self, requests: Requester, name: str, *, replicas: int = 1) -> None:
        self.name = name
        self.stream = f"KV_{name}"
        self.prefix = f"$KV.{name}."
        self._jetstream = JetStream(requests)
        self._replicas = replicas

    async def ensure(self) -> StreamInfo:
        """Create the bucket if it is missing (file storage, one value for each key). Raises `BrokerError`."""
        found = await self._jetstream.stream_info(self.stream)
        if found is None:
            await self._jetstream.create_stream(
                {
                    "name": self.stream,
                    "subjects": [f"{self.prefix}>"],
                    "storage": "file",
                    "num_replicas": self._replicas,
                    "discard": "new",
                    **RECORDS.bounds(),
                    "duplicate_window": DUPLICATE_WINDOW_SECONDS * NANOSECONDS,
                    "allow_direct": True,
                    "allow_rollup_hdrs": True,
                    "allow_msg_ttl": True,
                    "deny_delete": True,
                }
            )
            found = await self._jetstream.stream_info(self.stream)
        if found is None:
            raise BrokerError(f"the bucket {self.name} is gone again")
        return found

    async def follow(self, deliver_subject: str, heartbeat: float) -> ConsumerInfo:
        """Deliver every key's last message and then all new ones to a subject. Raises `BrokerError`."""
        return await self._jetstream.create_consumer(
            self.stream,
            {
                "deliver_subject": deliver_subject,
                "filter_subject": f"{self.prefix}>",
                "deliver_policy": "last_per_subject",
                "ack_policy": "none",
                "replay_policy": "instant",
                "max_deliver": 1,
                "mem_storage": True,
                "num_replicas": 1,
                "idle_heartbeat": int(heartbeat * NANOSECONDS),
                "flow_control": True,
                "inactive_threshold": INACTIVE_SECONDS * NANOSECONDS,
            },
        )

    async def put(
        self, key: str, data: bytes, revision: int | None = None, *, life: float | None = None
    ) -> Update:
        """Write a value, with `revision` only if that is the latest (0: none yet). Raises `BrokerError`.

        With `life` it goes after so many seconds.
        """
        headers = {} if life is None else {"Nats-TTL": f"{math.ceil(life)}s"}
        return Update(key, data, await self._publish(key, data, headers, revision))

    async def create(self, key: str, data: bytes) -> Update:
        """Write a value where there is none, or only a deletion marker. Raises `KeyExistsError`."""
        try:
            return await self.put(key, data, 0)
        except RevisionConflictError:
            last = await self.last(key)
        if last is not None and last.deleted:
            with contextlib.suppress(RevisionConflictError):
                return await self.put(key, data, last.revision)
        raise KeyExistsError(f"{key} exists already in {self.name}")

    async def delete(self, key: str, revision: int | None = None) -> Update:
        """Write a deletion marker that expires. Raises `BrokerError`."""
        headers = {"KV-Operation": "DEL", "Nats-TTL": MARKER_LIFE}
        return Update(key, None, await self._publish(key, b"", headers, revision))

    async def _publish(self, key: str, data: bytes, headers: dict[str, str], revision: int | None) -> int:
        if not valid_key(key):
            raise BrokerError(f"{key!r} cannot be a key in {self.name}")
        if revision is not None:
            headers = headers | {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        try:
            action = f"cannot write {key} to {self.name}"
            return await self._jetstream.publish(self.prefix + key, data, headers or None, action=action)
        except JetStreamError as error:
            if error.conflict:
                raise RevisionConflictError(f"{key} in {self.name} was changed meanwhile") from error
            raise

    async def last(self, key: str) -> Update | None:
        """Return the newest update of a key, or of all keys that match a pattern with `*` as one part."""
        message = await self._jetstream.message(self.stream, last_by_subj=self.prefix + key)
        if message is None:
            return None
        found = message.subject.removeprefix(self.prefix)
        return parse_update(found, message.data, message.headers, message.sequence)
