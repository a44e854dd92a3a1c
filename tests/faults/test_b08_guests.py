"""B8: on a shared function nobody reads or cancels another account's calls, or learns which ids exist."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from nvcf_proto.ids import new_id
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import Platform, Version, running_platform

pytestmark = pytest.mark.asyncio(loop_scope="module")
Answer = tuple[int, dict[str, Any]]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Broker and two gateways."""
    directory: Path = tmp_path_factory.mktemp("guests")
    async with running_platform(directory, gateways=2) as running:
        yield running


async def asked(
    platform: Platform, method: str, path: str, key: str, gateway: int = 0, **more: str
) -> Answer:
    url = platform.gateways[gateway].url + path
    headers = {
        **platform.authorization(key),
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    async with platform.session.request(
        method, url, headers=headers, data=b"" if method == "POST" else None
    ) as got:
        body = await got.read()
        return got.status, json.loads(body) if body.startswith(b"{") else {}


async def shared(platform: Platform) -> Version:
    version = await platform.deployed_version()
    path = f"/v2/nvcf/functions/{version.function_id}/authorizations"
    await platform.call("PUT", path, {"authorizedParties": [{"ncaId": "account-two"}]})
    return version


async def kept(platform: Platform, version: Version, key: str, **more: str) -> str:
    """Call without a worker; return the id of the request that stays queued."""
    headers = {**platform.authorization(key), "NVCF-POLL-SECONDS": "1", **more}
    async with platform.session.post(platform.gateway.url + version.pexec, headers=headers, data=b"x") as got:
        assert got.status == 202
        return got.headers["nvcf-reqid"]


def without(answer: Answer, *ids: str) -> str:
    text = json.dumps(answer)
    for each in ids:
        text = text.replace(each, "ID")
    return text


async def test_b08_calls_belong_to_the_account_that_made_them(platform: Platform) -> None:
    """Queued, in progress and answered ones; guest against guest, and guest against owner."""
    version = await shared(platform)
    for mine, other in (("admin", "foreign"), ("foreign", "admin")):
        unknown = new_id()
        request_id = await kept(platform, version, mine)

        async def same_as_unknown(
            request_id: str = request_id, key: str = other, unknown: str = unknown
        ) -> None:
            for gateway in (0, 1):
                for method, kind in (("GET", "pexec"), ("GET", "exec"), ("DELETE", "pexec")):
                    answers = [
                        await asked(platform, method, f"/v2/nvcf/{kind}/status/{each}", key, gateway)
                        for each in (request_id, unknown)
                    ]
                    assert answers[0][0] == 404
                    assert without(answers[0], request_id, unknown) == without(
                        answers[1], request_id, unknown
                    )

        await same_as_unknown()
        async with peer_worker(platform, version) as worker:
            work = await worker.pull()
            assert work.request.requestId == request_id
            await same_as_unknown()
            await work.answer(b"secret")
        await same_as_unknown()
        async with platform.session.get(
            platform.gateways[1].url + f"/v2/nvcf/pexec/status/{request_id}",
            headers=platform.authorization(mine),
        ) as response:
            assert (response.status, await response.read()) == (200, b"secret")


async def test_b08_keyed_answers_belong_to_their_account_too(platform: Platform) -> None:
    version = await shared(platform)
    key = {"Idempotency-Key": new_id()}
    async with peer_worker(platform, version) as worker:

        async def call() -> tuple[str, bytes]:
            headers = {**platform.authorization("foreign"), **key}
            async with platform.session.post(
                platform.gateway.url + version.pexec, headers=headers, data=b"x"
            ) as got:
                return got.headers["nvcf-reqid"], await got.read()

        task = asyncio.create_task(call())
        await (await worker.pull()).answer(b"secret")
        request_id, body = await task
        assert body == b"secret"
    assert (await asked(platform, "GET", f"/v2/nvcf/pexec/status/{request_id}", "admin"))[0] == 404
    assert (await asked(platform, "DELETE", f"/v2/nvcf/pexec/status/{request_id}", "admin"))[0] == 404
    assert (await asked(platform, "GET", f"/v2/nvcf/pexec/status/{request_id}", "foreign"))[0] == 200


async def test_b08_functions_of_other_accounts_look_like_none(platform: Platform) -> None:
    version = await platform.deployed_version()
    ids = (version.function_id, version.id, new_id(), new_id())
    for method, path in (
        ("POST", "/v2/nvcf/pexec/functions/{f}"),
        ("POST", "/v2/nvcf/pexec/functions/{f}/versions/{v}"),
        ("POST", "/v2/nvcf/exec/functions/{f}/versions/{v}"),
        ("GET", "/v2/nvcf/functions/{f}"),
        ("DELETE", "/v2/nvcf/functions/{f}"),
        ("GET", "/v2/nvcf/functions/{f}/versions"),
        ("GET", "/v2/nvcf/functions/{f}/versions/{v}"),
        ("DELETE", "/v2/nvcf/functions/{f}/versions/{v}"),
        ("GET", "/v2/nvcf/functions/{f}/authorizations"),
        ("GET", "/v2/nvcf/deployments/functions/{f}/versions/{v}"),
        ("DELETE", "/v2/nvcf/deployments/functions/{f}/versions/{v}"),
        ("GET", "/v2/nvcf/functions/{f}/versions/{v}/events"),
    ):
        one = await asked(platform, method, path.format(f=ids[0], v=ids[1]), "foreign")
        two = await asked(platform, method, path.format(f=ids[2], v=ids[3]), "foreign")
        three = await asked(platform, method, path.format(f=ids[0], v=ids[3]), "foreign")
        assert one[0] in (404, 405), (method, path, one)
        assert without(one, *ids) == without(two, *ids) == without(three, *ids), (method, path)
    for function in (version.function_id, new_id()):
        assert (await asked(platform, "GET", "/x", "foreign", function=function))[0] == 404
