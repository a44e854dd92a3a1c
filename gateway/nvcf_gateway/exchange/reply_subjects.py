"""The subjects of inline replies [ext], one subscription for each version.

A worker may publish to the reply subjects of its own version. When the workers of a version flood this
gateway with replies that it has to refuse, it gives up that subscription for a while: then the broker drops
the flood, and the version's responses come by request-attach.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from opentelemetry import metrics

from nvcf_gateway.background import BackgroundTasks
from nvcf_proto.subjects import inline_reply_prefix

_log = logging.getLogger(__name__)

MOST_VERSIONS = 2048
"""Subscriptions at the same time; beyond, the oldest one is given up for a new one."""
MOST_REFUSALS = 500
"""Units of refused replies of one version in a second: more is a flood."""
UNIT_BYTES = 16 * 1024
SHUT_FIRST_SECONDS = 10.0
SHUT_LONGEST_SECONDS = 600.0

_floods = metrics.get_meter("nvcf_gateway").create_counter(
    "nvcf.gateway.reply.floods",
    unit="{flood}",
    description="Times that a version's inline replies were shut out for a while as a flood",
)


@dataclass(slots=True)
class Refusals:
    """Counts the refused replies of one version, and decides what is a flood. Times are monotonic seconds."""

    second: float = 0.0
    units: int = 0
    shut_until: float = 0.0
    shut_seconds: float = 0.0

    def is_flood(self, size: int, now: float) -> bool:
        """Count a refused reply of `size` bytes; return whether the version is to be shut out."""
        if now - self.second >= 1.0:
            self.second, self.units = now, 0
        self.units += 1 + size // UNIT_BYTES
        return self.units > MOST_REFUSALS

    def shut(self, now: float) -> float:
        """Shut the version out: twice as long as the last time, if that is not long ago. Return how long."""
        recent = now - self.shut_until < self.shut_seconds + SHUT_LONGEST_SECONDS
        longer = 2 * self.shut_seconds if recent and self.shut_seconds else SHUT_FIRST_SECONDS
        self.shut_seconds = min(SHUT_LONGEST_SECONDS, longer)
        self.shut_until = now + self.shut_seconds
        return self.shut_seconds


class ReplySubjects:
    """Subscribes to the inline replies of the versions that are called here. `received` takes them."""

    def __init__(
        self,
        client: Client,
        gateway_id: str,
        background: BackgroundTasks,
        received: Callable[[Msg], Awaitable[None]],
    ) -> None:
        self._client = client
        self._gateway_id = gateway_id
        self._background = background
        self._received = received
        self._prefixes: dict[str, str] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._refusals: dict[str, Refusals] = {}

    async def subject(self, version_id: str, token: str) -> str | None:
        """Return where the version's worker may send one inline reply; None while it is shut out."""
        try:
            return self._prefixes[version_id] + token
        except KeyError:
            return await self._opened(version_id, token)

    async def _opened(self, version_id: str, token: str) -> str | None:
        refusals = self._refusals.get(version_id)
        if refusals is not None and time.monotonic() < refusals.shut_until:
            return None
        if len(self._prefixes) >= MOST_VERSIONS:
            self._close(next(iter(self._prefixes)))
        prefix = self._prefixes[version_id] = inline_reply_prefix(version_id, self._gateway_id)
        try:
            # Before the request itself goes out on the same connection.
            subscription = await self._client.subscribe(prefix + "*", cb=self._received)
        except nats.errors.Error:
            # Without a connection the request itself does not go out either.
            self._prefixes.pop(version_id, None)
            return None
        if version_id in self._prefixes:
            self._subscriptions[version_id] = subscription
        else:
            await _unsubscribe(subscription)
        return prefix + token

    def refused(self, message: Msg) -> bool:
        """Count a reply that nobody wants; return whether its worker may be told."""
        version_id = message.subject.split(".")[2]
        if version_id not in self._prefixes:
            return False
        now = time.monotonic()
        refusals = self._refusals.get(version_id)
        if refusals is None:
            if len(self._refusals) >= MOST_VERSIONS:
                del self._refusals[next(iter(self._refusals))]
            refusals = self._refusals[version_id] = Refusals()
        if not refusals.is_flood(len(message.data), now):
            return True
        seconds = refusals.shut(now)
        _floods.add(1)
        _log.warning(
            "workers flood this gateway with replies that it refuses: for %g s their responses come by"
            " request-attach only",
            seconds,
            extra={"version_id": version_id},
        )
        self._close(version_id)
        return False

    def _close(self, version_id: str) -> None:
        del self._prefixes[version_id]
        subscription = self._subscriptions.pop(version_id, None)
        if subscription is not None:
            # Not here: this may be the subscription's own task.
            self._background.spawn(_unsubscribe(subscription), "unsubscribe from inline replies")


async def _unsubscribe(subscription: Subscription) -> None:
    with contextlib.suppress(nats.errors.Error):
        await subscription.unsubscribe()
