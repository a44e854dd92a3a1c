"""The two streams and the clusters' consumers, made and repaired (protocol.md, section 6.2).

An agent may create its consumers, too, but does not do it again after they were lost. And only where each
cluster has its own consumer does the broker refuse one that would take the messages of another cluster.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from nvcf_broker.errors import BrokerError, JetStreamError
from nvcf_broker.jetstream import JetStream, Requester
from nvcf_gateway.errors import SetupError
from nvcf_proto.compute import event_stream_config
from nvcf_proto.icms.names import STREAM_SUBJECTS, cluster_consumer, consumer_config, stream_config

_log = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
"""Least time between two looks at a cluster's consumers."""
EARLIER_STREAMS = ("nvca_create", "nvca_terminate")
"""[ext] Streams of earlier releases, with messages that no agent understands any more."""


class ClusterQueues:
    """Streams and consumers in the broker account of the control plane."""

    def __init__(
        self, requests: Requester, replicas: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._jetstream = JetStream(requests)
        self._replicas = replicas
        self._clock = clock
        self._checked: dict[str, float] = {}

    async def start(self) -> None:
        """Create missing streams, and delete those of earlier releases. Raises SetupError."""
        try:
            for name in EARLIER_STREAMS:
                if await self._jetstream.delete_stream(name):
                    _log.warning("stream %s is deleted: update the agents, too", name)
            await self.ensure_streams()
        except BrokerError as error:
            raise SetupError(str(error)) from error

    async def ensure_streams(self) -> None:
        """Create the streams where they are missing. Raises BrokerError."""
        for name in STREAM_SUBJECTS:
            if await self._jetstream.ensure_stream(stream_config(name, self._replicas)):
                self.forget()
        # What agents report becomes events for users.
        await self._jetstream.ensure_stream(event_stream_config(self._replicas))

    def forget(self) -> None:
        """Look at all consumers again at the next opportunity, for example after the broker was away."""
        self._checked.clear()

    async def check(self, cluster_id: str) -> None:
        """Make sure that a cluster has its consumers, unless that was done just now. Raises BrokerError."""
        now = self._clock()
        checked = self._checked.get(cluster_id)
        if checked is not None and now - checked < CHECK_SECONDS:
            return
        for stream in STREAM_SUBJECTS:
            if await self._jetstream.consumer_info(stream, cluster_consumer(stream, cluster_id)) is None:
                await self.ensure_streams()
                await self._create(stream, cluster_id)
        self._checked[cluster_id] = now

    async def create(self, cluster_id: str) -> None:
        """Create a cluster's consumers, or give them their settings back. Raises BrokerError."""
        for stream in STREAM_SUBJECTS:
            await self._create(stream, cluster_id)

    async def _create(self, stream: str, cluster_id: str) -> None:
        config = consumer_config(stream, cluster_id)
        try:
            await self._jetstream.create_consumer(stream, config)
        except JetStreamError as error:
            # What an agent has made of it cannot be changed back, so it begins anew. Its messages stay.
            _log.warning("consumer of cluster %s is made anew: %s", cluster_id, error)
            await self._jetstream.delete_consumer(stream, cluster_consumer(stream, cluster_id))
            await self._jetstream.create_consumer(stream, config)

    async def create_all(self, cluster_ids: Iterable[str]) -> None:
        """Create the consumers of all clusters. Raises BrokerError."""
        for cluster_id in cluster_ids:
            await self.create(cluster_id)

    async def delete(self, cluster_id: str) -> None:
        """Delete the consumers of a cluster and the messages that wait for it. Raises BrokerError."""
        self._checked.pop(cluster_id, None)
        for stream in STREAM_SUBJECTS:
            await self._jetstream.delete_consumer(stream, cluster_consumer(stream, cluster_id))
            await self._jetstream.purge(stream, consumer_config(stream, cluster_id)["filter_subjects"][0])
