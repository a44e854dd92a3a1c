"""Records of sessions: how to find and reach the worker of an old session.

See protocol.md, section 7.4.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import nats.errors
from google.protobuf.message import DecodeError

from nvcf_broker.connection import BrokerClient, describe_error
from nvcf_broker.errors import BrokerError, BrokerUnavailableError, JetStreamError, NoListenerError
from nvcf_broker.jetstream import JetStream, StoredMessage
from nvcf_broker.requests import ReplyInbox
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.queue.regional_buckets import placement_tag
from nvcf_proto import streams, subjects
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.stores import OWN_SESSIONS, SESSIONS

_log = logging.getLogger(__name__)

_NOT_FOUND = 404


@dataclass(frozen=True)
class SessionRecord:
    """A session that its worker has registered."""

    region: str
    function_id: str
    version_id: str
    nca_id: str


class SessionLookup:
    """Reads the records of workers, and asks workers to connect again."""

    def __init__(self, client: BrokerClient, requests: ReplyInbox, config: GatewayConfig) -> None:
        self._client = client
        self._requests = requests
        self._jetstream = JetStream(requests)
        self._config = config

    async def ensure(self) -> None:
        """Create the stream of this region if it is missing. Raises BrokerError."""
        region = self._config.region
        config = streams.session_lookup_stream_config(
            region,
            replicas=self._config.replicas,
            bounds=SESSIONS.bounds(self._config.data_max, parts=len(self._config.regions)),
            placement_tag=placement_tag(self._client, self._config, region),
        )
        await self._jetstream.ensure_stream(config)
        own = streams.session_stream_config(
            region,
            replicas=self._config.replicas,
            bounds=OWN_SESSIONS.bounds(self._config.data_max, parts=len(self._config.regions)),
            placement_tag=placement_tag(self._client, self._config, region),
        )
        await self._jetstream.ensure_stream(own)

    async def remember(self, function_id: str, version_id: str, nca_id: str, request_id: str) -> None:
        """Write a record of a session that is open, where no worker can replace it or push it out."""
        record = nvcf_pb2.StatefulSessionTracking(
            functionId=function_id, functionVersionId=version_id, invokerNcaId=nca_id
        )
        subject = subjects.session_subject(self._config.region, request_id)
        try:
            await self._jetstream.publish(subject, record.SerializeToString())
        except BrokerError as error:
            _log.warning("session not recorded: %s", error, extra={"request_id": request_id})

    async def find(self, request_id: str) -> SessionRecord | None:
        """Return the record of a session, from this region first. Raises BrokerError."""
        regions = (self._config.region, *(r for r in self._config.regions if r != self._config.region))
        for region in regions:
            found = await self._find_in(region, request_id)
            if found is not None:
                return found
        return None

    async def _find_in(self, region: str, request_id: str) -> SessionRecord | None:
        # The version is unknown here. MSG.GET accepts a wildcard and reaches the stream in any region.
        asked = subjects.session_lookup_subject(region, "*", request_id)
        try:
            own = await self._jetstream.message(
                subjects.session_stream(region), last_by_subj=subjects.session_subject(region, request_id)
            )
            of_worker = await self._jetstream.message(
                subjects.session_lookup_stream(region), last_by_subj=asked
            )
        except (JetStreamError, NoListenerError) as error:
            _log.warning("session lookup in region %s: %s", region, error)
            return None
        known, told = _record(own, region), _record(of_worker, region)
        if known is None or of_worker is None:
            return known or told
        # An empty record ends a session; that of another version's worker says nothing about it.
        ended = told is None and of_worker.subject.split(".")[3:4] == [known.version_id]
        return None if ended else known

    async def forget(self, found: SessionRecord, request_id: str) -> None:
        """Remove a session's record. Raises BrokerError."""
        subject = subjects.session_lookup_subject(found.region, found.version_id, request_id)
        own = subjects.session_subject(found.region, request_id)
        for stream, each in (
            (subjects.session_stream(found.region), own),
            (subjects.session_lookup_stream(found.region), subject),
        ):
            try:
                await self._jetstream.purge(stream, each)
            except JetStreamError as error:
                if error.code != _NOT_FOUND:
                    raise

    async def request_reconnect(
        self, version_id: str, request_id: str, payload: bytes, timeout: float
    ) -> bool:
        """Send a reconnect message; return False when no worker holds the session.

        [ext] First on the subject of the version, the only one that our workers may listen on; then on the
        contract's, for third-party workers. A reply is not required: the tunnel itself is one.
        Raises BrokerError.
        """
        for subject in (
            subjects.version_reconnect_subject(version_id, request_id),
            subjects.reconnect_subject(request_id),
        ):
            try:
                await self._requests.request(subject, payload, timeout=timeout)
            except nats.errors.NoRespondersError:
                continue
            except TimeoutError:
                pass
            except nats.errors.Error as error:
                raise BrokerUnavailableError(
                    f"the broker did not accept the reconnect message: {describe_error(error)}"
                ) from error
            return True
        return False


def _record(message: StoredMessage | None, region: str) -> SessionRecord | None:
    if message is None:
        return None
    try:
        record = nvcf_pb2.StatefulSessionTracking.FromString(message.data)
    except (DecodeError, ValueError) as error:
        _log.warning("session record %s cannot be read: %s", message.subject, error)
        return None
    if not record.functionVersionId:
        return None
    return SessionRecord(region, record.functionId, record.functionVersionId, record.invokerNcaId)
