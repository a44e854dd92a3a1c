"""NVIDIA's worker behind our gateway: it does as its sources say, and is served.

See protocol.md, sections 1 to 5 and 8.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import grpc.aio
import pytest
import pytest_asyncio

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from tests.support.peers.nvcf_attach import Function, Reply, Seen
from tests.support.peers.nvcf_worker import NvcfWorker, nvcf_worker
from tests.support.platform.gateways import Platform, Version, eventually, running_platform

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """One gateway that lets workers of other makes in."""
    directory: Path = tmp_path_factory.mktemp("nvcf")
    async with running_platform(directory, flags=("--wide-inbox", "--ack-wait", "4")) as running:
        yield running


@contextlib.asynccontextmanager
async def served(
    platform: Platform, function: Function, *, keep: bool = False, slots: int = 1
) -> AsyncIterator[tuple[Version, NvcfWorker]]:
    """A version and its worker, which at the end has neither failed nor touched what it may not."""
    version = await platform.deployed_version(inferenceUrl="/run", keep_queued=keep)
    async with nvcf_worker(platform, version, function, slots=slots) as worker:
        yield version, worker
        assert worker.errors == []


async def call(
    platform: Platform, path: str, data: object = b"hello", *, method: str = "POST", **headers: str
) -> tuple[aiohttp.ClientResponse, bytes]:
    sent = {**platform.authorization(), **{name.replace("_", "-"): value for name, value in headers.items()}}
    async with platform.session.request(
        method, platform.gateway.url + path, data=data, headers=sent, allow_redirects=False
    ) as response:
        return response, await response.read()


async def echo(seen: Seen) -> Reply:
    return Reply(
        200, {"Content-Type": "text/plain", "X-Path": seen.path}, seen.method.encode() + b" " + seen.body
    )


async def test_it_starts_and_serves_without_a_permission_violation(platform: Platform) -> None:
    async with served(platform, echo) as (version, worker):
        response, body = await call(platform, version.pexec)
        assert (response.status, body, response.headers["x-path"]) == (200, b"POST hello", "/run")
        assert response.headers["nvcf-status"] == "fulfilled"
        assert (worker.connects, worker.provisioned, worker.failures) == (1, [], [])
    await platform.queue_is_empty(version)


async def test_what_the_function_sees(platform: Platform) -> None:
    seen: list[Seen] = []

    async def keep(request: Seen) -> Reply:
        seen.append(request)
        return Reply()

    async with served(platform, keep) as (version, _):
        await call(
            platform,
            version.pexec,
            X_Mine="1",
            NVCF_INVOCATION_REGION="elsewhere",
            NVCF_REQID="forged",
            NVCF_POLL_SECONDS="9",
        )
        await call(platform, "/a/b?c=d", method="PUT", function_id=version.function_id)
        wrapped = {"requestBody": [1], "requestHeader": {"pollDurationSeconds": 5}}
        await call(
            platform, version.exec, json.dumps(wrapped).encode(), X_Mine="1", Accept="text/event-stream"
        )
    pexec, passed, execed = seen
    assert pexec.headers["nvcf-invocation-region"] == "local", (
        "the region of the gateway, whatever a caller says"
    )
    assert pexec.headers["x-mine"] == "1"
    assert pexec.headers["nvcf-reqid"] != "forged"
    assert pexec.headers["content-length"] == "5", "else the function gets its body in chunks"
    assert 7 <= int(pexec.headers["nvcf-poll-seconds"]) <= 9
    assert "authorization" not in pexec.headers
    assert (passed.method, passed.path) == ("PUT", "/a/b?c=d")
    assert passed.headers["function-id"] == version.function_id
    assert passed.headers["nvcf-feature-disable-worker-compatibility"] == "true"
    assert passed.headers["nvcf-invocation-region"] == "local"
    assert json.loads(execed.body) == [1]
    assert execed.headers["content-type"] == "application/json"
    assert "x-mine" not in execed.headers, "the headers of an exec call describe the wrapper"
    assert "accept" not in execed.headers
    assert execed.poll_seconds == 5


@pytest.mark.parametrize("size", [0, 32 * 1024, 32 * 1024 + 1, 3_000_000])
@pytest.mark.parametrize("full", ["false", "true"])
async def test_bodies_of_all_sizes_arrive(platform: Platform, size: int, full: str) -> None:
    async def measure(seen: Seen) -> Reply:
        return Reply(200, {"X-Method": seen.method}, str(len(seen.body)).encode())

    async with served(platform, measure) as (version, worker):
        sent = {"nvcf-feature-enable-only-stream-full-request": full}
        response, body = await call(platform, version.pexec, b"x" * size, **sent)
        assert worker.failures == [], (response.status, body)
        assert (response.status, body, response.headers["x-method"]) == (200, str(size).encode(), "POST")


async def test_a_body_without_a_length(platform: Platform) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"y" * 20_000

    async with served(platform, echo) as (version, worker):
        response, body = await call(platform, version.pexec, chunks())
        assert (response.status, len(body)) == (200, 80_005)
        assert worker.failures == []


async def test_streamed_answers_and_reused_connections(platform: Platform) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(3):
            yield f"data: {number}\n\n".encode()

    async def stream(seen: Seen) -> Reply:
        return Reply(200, {"Content-Type": "text/event-stream"}, chunks=parts())

    async with served(platform, stream) as (version, worker):
        for _ in range(3):
            response, body = await call(platform, version.pexec, Accept="text/event-stream")
            assert (response.status, body) == (200, b"data: 0\n\ndata: 1\n\ndata: 2\n\n")
            assert "content-length" not in response.headers
        assert worker.http.opened == 1, "the connection of one answer serves the next"


async def test_errors_of_the_function_come_as_problems(platform: Platform) -> None:
    async def fail(seen: Seen) -> Reply:
        return Reply(422, {"Content-Type": "application/json"}, b'{"error": "no such model"}')

    async with served(platform, fail) as (version, _):
        response, body = await call(platform, version.pexec)
        assert (response.status, response.headers["content-type"]) == (422, "application/problem+json")
        assert json.loads(body)["detail"] == "no such model"
        assert response.headers["nvcf-status"] == "errored"


async def test_a_202_at_the_poll_time_then_polls(platform: Platform) -> None:
    release = asyncio.Event()

    async def slow(seen: Seen) -> Reply:
        await release.wait()
        return Reply(200, {}, b"at last")

    async with served(platform, slow) as (version, worker):
        response, body = await call(platform, version.pexec, NVCF_POLL_SECONDS="1")
        assert (response.status, body) == (202, b"")
        assert response.headers["nvcf-status"] == "in-progress"
        assert response.headers["content-length"] == "0"
        status = "/v2/nvcf/pexec/status/" + response.headers["nvcf-reqid"]
        again, _ = await call(platform, status, None, method="GET", NVCF_POLL_SECONDS="1")
        assert (again.status, again.headers["nvcf-status"]) == (202, "in-progress")
        release.set()
        done, body = await call(platform, status, None, method="GET", NVCF_POLL_SECONDS="5")
        assert (done.status, body, done.headers["nvcf-status"]) == (200, b"at last", "fulfilled")
        gone, _ = await call(platform, status, None, method="GET")
        assert gone.status == 404
        assert worker.failures == []
    await platform.queue_is_empty(version)


async def test_a_caller_that_leaves_in_the_middle_of_a_poll_loses_nothing(platform: Platform) -> None:
    release = asyncio.Event()

    async def slow(seen: Seen) -> Reply:
        await release.wait()
        return Reply(200, {}, b"kept")

    async with served(platform, slow) as (version, worker):
        response, _ = await call(platform, version.pexec, NVCF_POLL_SECONDS="1")
        status = "/v2/nvcf/pexec/status/" + response.headers["nvcf-reqid"]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await call(platform, status, None, method="GET", NVCF_POLL_SECONDS="30")
        release.set()
        await platform.queue_is_empty(version)
        done, body = await call(platform, status, None, method="GET", NVCF_POLL_SECONDS="5")
        assert (done.status, body) == (200, b"kept")
        assert worker.failures == []


async def test_a_caller_that_leaves_reaches_the_worker(platform: Platform) -> None:
    started = asyncio.Event()

    async def endless(seen: Seen) -> Reply:
        started.set()
        await asyncio.sleep(60)
        return Reply()

    async with served(platform, endless) as (version, worker):
        task = asyncio.create_task(call(platform, version.pexec))
        await started.wait()
        task.cancel()
        await eventually(lambda: len(worker.cancelled) == 1, "the cancellation arrives")
        await eventually(lambda: worker.slots == 1, "its slot is free")
    await platform.queue_is_empty(version)


async def test_a_time_out_reaches_the_worker(platform: Platform) -> None:
    async def endless(seen: Seen) -> Reply:
        await asyncio.sleep(60)
        return Reply()

    async with served(platform, endless) as (version, worker):
        response, body = await call(
            platform, "/x", method="POST", function_id=version.function_id, NVCF_POLL_SECONDS="1"
        )
        assert (response.status, body) == (504, b"")
        assert response.headers["nvcf-status"] == "errored"
        assert response.headers["access-control-expose-headers"] == "nvcf-reqid"
        timed_out = [response.headers["nvcf-reqid"]]
        await eventually(lambda: worker.cancelled == timed_out, "the cancellation arrives")


async def test_signs_of_life_keep_a_request_from_being_delivered_again(platform: Platform) -> None:
    runs = 0

    async def slow(seen: Seen) -> Reply:
        nonlocal runs
        runs += 1
        await asyncio.sleep(7)
        return Reply(200, {}, b"once")

    async with served(platform, slow, slots=2) as (version, worker):
        worker.keepalive = 0.5
        response, body = await call(platform, version.pexec)
        assert (response.status, body, runs) == (200, b"once", 1)


async def test_a_kept_request_that_is_taken_late_is_answered(platform: Platform) -> None:
    """Told the caller's poll time, that worker would fail it: its time would be over on arrival."""

    async def quick(seen: Seen) -> Reply:
        return Reply(200, {}, b"late but here")

    version = await platform.deployed_version(keep_queued=True)
    response, _ = await call(platform, version.pexec, NVCF_POLL_SECONDS="1")
    assert (response.status, response.headers["nvcf-status"]) == (202, "pending-evaluation")
    await asyncio.sleep(2)
    async with nvcf_worker(platform, version, quick) as worker:
        status = "/v2/nvcf/pexec/status/" + response.headers["nvcf-reqid"]
        done, body = await call(platform, status, None, method="GET", NVCF_POLL_SECONDS="20")
        assert (done.status, body, worker.failures) == (200, b"late but here", [])


async def test_a_kept_request_in_work_needs_no_polls_to_stay_alive(platform: Platform) -> None:
    release = asyncio.Event()

    async def slow(seen: Seen) -> Reply:
        await release.wait()
        return Reply(200, {}, b"without a poll")

    async with served(platform, slow, keep=True) as (version, worker):
        response, _ = await call(platform, version.pexec, NVCF_POLL_SECONDS="1")
        assert (response.status, response.headers["nvcf-status"]) == (202, "in-progress")
        release.set()
        await platform.queue_is_empty(version)
        status = "/v2/nvcf/pexec/status/" + response.headers["nvcf-reqid"]
        done, body = await call(platform, status, None, method="GET", NVCF_POLL_SECONDS="5")
        assert (done.status, body, worker.failures) == (200, b"without a poll", [])


async def test_large_results_by_upload_and_302(platform: Platform) -> None:
    """Below 20 MiB the zip is put to the request's link, and the answer points to the download link."""
    from tests.support.peers.nvcf_worker import fetched

    upload: list[str] = []
    async with served(platform, echo) as (version, worker):

        async def large(seen: Seen) -> Reply:
            assert (await fetched(upload[-1], "PUT", b"PK zip"))[0] == 200
            async with grpc.aio.insecure_channel(platform.gateway.grpc) as channel:
                stub: nvcf_pb2_grpc.WorkerAsyncStub = nvcf_pb2_grpc.WorkerStub(channel)
                answer = await stub.RequestLargeResponseDownloadCredentials(
                    nvcf_pb2.LargeResponseDownloadCredentialsRequest(
                        functionId=version.function_id,
                        functionVersionId=version.id,
                        requestId=seen.headers["nvcf-reqid"],
                        ncaId=seen.headers["nvcf-ncaid"],
                    ),
                    **worker._bearer(),
                )
            return Reply(302, {"Location": answer.largeResponseDownloadUrl})

        handle = worker._serve

        async def noted(request: nvcf_pb2.WorkerInvokeFunctionRequest) -> None:
            upload.append(request.largeResponseUrl)
            await handle(request)

        worker._serve, worker.function = noted, large  # type: ignore[method-assign]
        response, _ = await call(platform, version.pexec)
        assert response.status == 302
        assert await fetched(response.headers["location"]) == (200, b"PK zip")
        wrapped, body = await call(platform, version.exec, b'{"requestBody": 1}')
        assert wrapped.status == 200
        assert json.loads(body)["responseReference"].startswith(platform.gateway.url)


async def test_calls_that_only_that_worker_makes(platform: Platform) -> None:
    """Artifacts (none), and signed statements that are no worker tokens."""
    async with served(platform, echo) as (version, worker):
        ids = {"functionId": version.function_id, "functionVersionId": version.id}
        async with grpc.aio.insecure_channel(platform.gateway.grpc) as channel:
            stub: nvcf_pb2_grpc.WorkerAsyncStub = nvcf_pb2_grpc.WorkerStub(channel)
            options = worker._bearer()
            files = [file async for file in stub.StreamArtifacts(nvcf_pb2.ArtifactsRequest(), **options)]
            assert files == []
            assert not (await stub.RequestArtifacts(nvcf_pb2.ArtifactsRequest(), **options)).artifacts
            secret = await stub.RequestSecretCredentials(nvcf_pb2.SecretCredentialsRequest(**ids), **options)
            instance = await stub.RequestInstanceCredentials(
                nvcf_pb2.InstanceCredentialsRequest(instanceId=worker.instance, ips=["127.0.0.1"], **ids),
                **options,
            )
            tokens = [
                worker.metadata_token,
                secret.secretCredentialsToken,
                instance.instanceCredentialsToken,
            ]
            assert all(token.count(".") == 2 for token in tokens)
            for token in tokens:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.ConnectOnce(
                        nvcf_pb2.WorkerConnect(instanceId=worker.instance, **ids),
                        metadata=(("authorization", f"Bearer {token}"),),
                    )
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.MultipartLargeUploadCredentials(
                    nvcf_pb2.MultipartLargeUploadCredentialsRequest(requestId=new_id(), **ids), **options
                )
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_the_grpc_port_says_that_it_serves(platform: Platform) -> None:
    """What an invocation service asks before it calls itself healthy."""
    async with grpc.aio.insecure_channel(platform.gateway.grpc) as channel:
        check: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/grpc.health.v1.Health/Check"
        )
        assert await check(b"", timeout=5) == b"\x08\x01"
        watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            "/grpc.health.v1.Health/Watch"
        )
        watching = watch(b"", timeout=5)
        assert await watching.read() == b"\x08\x01"
        watching.cancel()
