"""Claims of idempotency keys with a real broker: releasing a claim never releases a newer one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from nvcf_broker.connection import connect_broker
from nvcf_broker.requests import ReplyInbox
from nvcf_broker.server import LocalBroker
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.results.idempotency_keys import Fingerprint, IdempotencyKeys

PRINT = Fingerprint("print", "body")

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def claims(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[IdempotencyKeys]:
    directory: Path = tmp_path_factory.mktemp("claims")
    async with LocalBroker(directory) as broker:
        client = await connect_broker(broker.url, broker.credentials_file, name="test")
        requests = ReplyInbox(client)
        await requests.start()
        config = GatewayConfig(("127.0.0.1", 0), ("127.0.0.1", 0), broker.url, directory / "signing.pem")
        made = IdempotencyKeys(requests, config)
        await made.ensure()
        yield made
        await client.close()


async def test_a_claim_is_given_up_only_as_far_as_it_was_seen(claims: IdempotencyKeys) -> None:
    of = ("account", "function", "version")
    first = await claims.claim(*of, "key", PRINT)
    follower = await claims.claim(*of, "key", PRINT)
    assert (first.first, follower.first) == (True, False)
    assert follower.request_id == first.request_id
    await claims.release(follower)
    newer = await claims.claim(*of, "key", PRINT)
    assert newer.first, "the key is free again"
    # Calls that waited for the first claim release it later. The newer claim must survive that.
    await claims.release(follower)
    await claims.release(first)
    known = await claims.claim(*of, "key", PRINT)
    assert (known.first, known.request_id) == (False, newer.request_id)
    await claims.release(newer)
    assert (await claims.claim(*of, "key", PRINT)).first


async def test_releasing_one_key_keeps_the_others(claims: IdempotencyKeys) -> None:
    of = ("account", "function", "version")
    one, two = await claims.claim(*of, "one", PRINT), await claims.claim(*of, "two", PRINT)
    await claims.release(one)
    assert not (await claims.claim(*of, "two", PRINT)).first
    with pytest.raises(HttpProblem) as refused:
        await claims.claim(*of, "two", Fingerprint("print", "another body"))
    assert refused.value.status == 422
    assert two.first
