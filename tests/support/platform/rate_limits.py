"""Versions with rate limits, and a client of the rate limiter service."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from nvcf_proto.pb import ratelimiter_pb2, ratelimiter_pb2_grpc
from tests.support.platform.gateways import Gateway, Platform, Version
from tests.support.waiting import eventually

ALLOW = ratelimiter_pb2.RateLimitResponse.ALLOW


def path_of(version: Version) -> str:
    return f"/v2/nvcf/functions/{version.function_id}/versions/{version.id}/rate-limit"


async def limited(platform: Platform, version: Version | None = None, **policy: Any) -> Version:
    """Deploy a version with a policy, and wait until every gateway knows it."""
    version = version or await platform.deployed_version()
    await platform.call("PUT", path_of(version), policy)

    async def known() -> bool:
        statuses = [await status_of(platform, gateway, version) for gateway in platform.gateways]
        return all(status == 200 for status in statuses)

    await eventually(known, "every gateway knows the policy")
    return version


async def status_of(platform: Platform, gateway: Gateway, version: Version) -> int:
    headers = platform.authorization()
    async with platform.session.get(gateway.url + path_of(version), headers=headers) as response:
        return response.status


@contextlib.asynccontextmanager
async def limiter(gateway: Gateway, platform: Platform, key: str = "admin") -> AsyncIterator[Any]:
    """Yield a function that calls the gateway's rate limiter as another service does."""
    metadata = (("authorization", platform.authorization(key)["Authorization"]),)
    async with grpc.aio.insecure_channel(gateway.grpc) as channel:
        stub: ratelimiter_pb2_grpc.RateLimitServiceAsyncStub
        stub = ratelimiter_pb2_grpc.RateLimitServiceStub(channel)

        async def ask(version: Version, account: str = "a", subject: str = "") -> bool:
            request = ratelimiter_pb2.RateLimitRequest(
                ncaId=account,
                functionId=version.function_id,
                functionVersionId=version.id,
                clientAuthSubject=subject,
            )
            response = await stub.RateLimit(request, metadata=metadata, timeout=20)
            return response.result == ALLOW

        yield ask
