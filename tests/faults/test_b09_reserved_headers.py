"""B9: a name that only the platform sets is reserved in every form that servers cannot tell from it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nvcf_gateway.queue.message import forwarded_headers
from nvcf_gateway.sessions.routing import read_call
from nvcf_proto.headers import WORKER_SET, folded
from nvcf_proto.ids import new_id
from nvcf_worker.function.headers import function_headers
from tests.support.peers.worker import peer_worker
from tests.support.platform.gateways import running_platform

FORMS = ("NVCF_SUB", "nvcf.sub", "Nvcf-Sub", "NVCF_NCAID", "nvcf~ncaid", "NVCF_Function-ID", "nvcf+reqid")


@pytest.mark.parametrize("name", sorted(WORKER_SET))
def test_b09_no_form_of_a_reserved_name_passes(name: str) -> None:
    """At the gateway, at the worker, and in the metadata of sessions."""
    forms = [name.replace("-", sign) for sign in "-_.~+"] + [name.upper().replace("-", "_")]
    sent = [(form, "forged") for form in forms] + [("x_own", "kept"), ("x.own", "kept")]
    at_worker = function_headers(
        sent, [], request_id="q", subject="s", nca_id="n", max_response_bytes=1, seconds_left=5
    )
    # By this very name a caller returns to its session.
    routed = [pair for pair in sent if pair[0].lower() != "nvcf-reqid"]
    in_session = read_call([*routed, ("function-id", new_id())], "").headers
    for seen in (forwarded_headers(sent, 5, "local", pass_through=True), at_worker, in_session):
        assert "forged" not in [value for _, value in seen]
        assert [value for _, value in seen].count("kept") == 2


def test_b09_hop_by_hop_names_fold_too() -> None:
    sent = [(name, "x") for name in ("Transfer_Encoding", "Proxy_Authorization", "keep_alive", "TE")]
    assert [name for name, _ in forwarded_headers(sent, 5, "local", pass_through=True)] == [
        "NVCF-POLL-SECONDS", "NVCF-INVOCATION-REGION", "nvcf-feature-disable-worker-compatibility",
    ]  # fmt: skip


async def test_b09_a_caller_cannot_claim_to_be_somebody(tmp_path: Path) -> None:
    """The message in the queue, which workers of any make get, has no forged name."""
    async with running_platform(tmp_path) as platform:
        version = await platform.deployed_version()
        async with peer_worker(platform, version) as worker:
            forged = dict.fromkeys(FORMS, "admin@victim")
            sent = {**platform.authorization(), **forged, "nvcf_poll_seconds": "99", "x_own": "kept"}
            url = platform.gateway.url + version.pexec

            async def post() -> int:
                async with platform.session.post(url, headers=sent, data=b"x") as response:
                    return response.status

            task = asyncio.create_task(post())
            work = await worker.pull()
            seen = [(pair.key, pair.value) for pair in work.request.requestHeaders]
            assert "admin@victim" not in [value for _, value in seen]
            assert ("x_own", "kept") in seen
            assert [value for name, value in seen if folded(name) == "nvcf-poll-seconds"] == ["60"]
            await work.answer()
            assert await task == 200
