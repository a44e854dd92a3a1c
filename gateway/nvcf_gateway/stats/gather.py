"""Figures of all replicas: whoever is asked asks the others, and adds up what comes in time."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from nvcf_broker.connection import describe_error
from nvcf_broker.requests import raise_if_cancelled
from nvcf_gateway.stats.history import History
from nvcf_gateway.stats.view import Figures, InvalidFigures
from nvcf_proto.subjects import FIGURES_SUBJECT

_log = logging.getLogger(__name__)

PATIENCE = 0.5
"""Seconds that other replicas have to answer."""
AT_A_TIME = 50
"""Versions added up before the event loop gets its turn."""


@dataclass(frozen=True)
class Gathered:
    """Figures, and of how many replicas of those that are known."""

    figures: Figures
    replicas: int
    known: int


class Gatherer:
    """One replica's part: answers the others, and asks them."""

    def __init__(
        self, client: Client, gateway_id: str, history: History, members: Callable[[], frozenset[str]]
    ) -> None:
        self._client = client
        self._gateway_id = gateway_id
        self._history = history
        self._members = members

    async def start(self) -> None:
        """Answer other replicas from now on."""
        await self._client.subscribe(FIGURES_SUBJECT, cb=self._asked)

    async def gather(self, versions: Sequence[str]) -> Gathered:
        """Figures of these versions. Replicas that do not answer in time are left out, never waited for."""
        members = self._members()
        figures = await self._own(versions)
        others = members - {self._gateway_id}
        if not others or not self._client.is_connected:
            return Gathered(figures, 1, len(members))
        count = 1
        for answer in await self._ask(versions, len(others)):
            try:
                figures.add(Figures.from_json(answer.data))
                count += 1
            except InvalidFigures as error:
                _log.warning("%s", error)
        return Gathered(figures, count, max(count, len(members)))

    async def _own(self, versions: Sequence[str]) -> Figures:
        now = time.time()
        figures = Figures(since=self._history.since)
        for number, version_id in enumerate(versions, 1):
            figures.take(self._history, version_id, now)
            if number % AT_A_TIME == 0:
                await asyncio.sleep(0)
        return figures

    async def _ask(self, versions: Sequence[str], others: int) -> list[Msg]:
        arrived: asyncio.Queue[Msg] = asyncio.Queue()

        async def take(message: Msg) -> None:
            arrived.put_nowait(message)

        inbox = self._client.new_inbox()
        answers: list[Msg] = []
        try:
            subscription = await self._client.subscribe(inbox, cb=take)
        except (nats.errors.Error, OSError) as error:
            _log.warning("other gateways cannot be asked: %s", describe_error(error))
            return answers
        try:
            question = {"gatewayId": self._gateway_id, "versions": list(versions)}
            await self._client.publish(FIGURES_SUBJECT, json.dumps(question).encode(), reply=inbox)
            raise_if_cancelled()
            async with asyncio.timeout(PATIENCE):
                while len(answers) < others:
                    answers.append(await arrived.get())
        except TimeoutError:
            pass
        except (nats.errors.Error, OSError) as error:
            _log.warning("other gateways cannot be asked: %s", describe_error(error))
        finally:
            await _quietly_unsubscribe(subscription)
        raise_if_cancelled()
        return answers

    async def _asked(self, message: Msg) -> None:
        try:
            question = json.loads(message.data)
            asker, versions = question["gatewayId"], [str(each) for each in question["versions"]]
        except (ValueError, TypeError, KeyError) as error:
            _log.warning("question for figures cannot be read: %s", error)
            return
        if asker != self._gateway_id and message.reply:
            await message.respond((await self._own(versions)).to_json())


async def _quietly_unsubscribe(subscription: Subscription) -> None:
    try:
        await subscription.unsubscribe()
    except (nats.errors.Error, OSError) as error:
        _log.debug("unsubscribe: %s", describe_error(error))
