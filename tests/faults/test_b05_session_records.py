"""B5: one worker's session records neither push out nor replace the record of another account's session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from nvcf_broker.connection import connect_broker
from nvcf_broker.requests import ReplyInbox
from nvcf_broker.server import LocalBroker
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.sessions.session_records import SessionLookup, SessionRecord
from nvcf_proto.budget import LEAST_BUDGET
from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.subjects import session_lookup_subject

VICTIM, ATTACKER = new_id(), new_id()


class Scene:
    """A session of the victim, which its worker has recorded too."""

    def __init__(self, lookup: SessionLookup, requests: ReplyInbox) -> None:
        self.lookup, self.requests, self.session = lookup, requests, new_id()

    async def worker_writes(self, version_id: str, request_id: str, data: bytes) -> None:
        subject = session_lookup_subject("local", version_id, request_id)
        await self.requests.request(subject, data, timeout=10)

    async def flood(self) -> None:
        """Write more than the workers' stream holds."""
        for _ in range(1500):
            await self.worker_writes(ATTACKER, new_id(), b"x" * 3000)

    async def found(self) -> str | None:
        record = await self.lookup.find(self.session)
        return None if record is None else record.version_id


def record(version_id: str) -> bytes:
    return nvcf_pb2.StatefulSessionTracking(
        functionId=new_id(), functionVersionId=version_id, invokerNcaId="account"
    ).SerializeToString()


@pytest_asyncio.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with LocalBroker(tmp_path / "broker", data_max=LEAST_BUDGET) as broker:
        client = await connect_broker(broker.url, broker.credentials_file, name="test")
        try:
            requests = ReplyInbox(client)
            await requests.start()
            config = GatewayConfig(
                ("", 0), ("", 0), broker.url, tmp_path / "key", data_max=LEAST_BUDGET // 4 * 3
            )
            lookup = SessionLookup(client, requests, config)
            await lookup.ensure()
            made = Scene(lookup, requests)
            await lookup.remember(new_id(), VICTIM, "account", made.session)
            await made.worker_writes(VICTIM, made.session, record(VICTIM))
            yield made
        finally:
            await client.close()


async def test_b5_a_flood_of_records_leaves_other_sessions_known(scene: Scene) -> None:
    await scene.flood()
    assert await scene.found() == VICTIM


async def test_b5_a_record_of_another_version_does_not_replace_a_sessions_own(scene: Scene) -> None:
    await scene.worker_writes(ATTACKER, scene.session, record(ATTACKER))
    assert await scene.found() == VICTIM
    await scene.worker_writes(ATTACKER, scene.session, b"")
    assert await scene.found() == VICTIM


async def test_b5_the_worker_of_a_session_ends_it(scene: Scene) -> None:
    await scene.worker_writes(VICTIM, scene.session, b"")
    assert await scene.found() is None


async def test_b5_a_session_of_another_gateways_proxy_is_found_by_its_workers_record(scene: Scene) -> None:
    scene.session = new_id()
    await scene.worker_writes(VICTIM, scene.session, record(VICTIM))
    assert await scene.found() == VICTIM
    await scene.lookup.forget(await _some(scene), scene.session)
    assert await scene.found() is None


async def _some(scene: Scene) -> SessionRecord:
    found = await scene.lookup.find(scene.session)
    assert found is not None
    return found
