"""What services of other makes ask over gRPC: may this caller invoke, and how often (sections 1 and 4).

Callers are services: API keys with the scope `service`, or `admin` of the account that the function
belongs to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from grpc.aio import ServicerContext as Context

from nvcf_gateway.access.authorization import Authenticator, Authorizer, Caller, read_bearer
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.routing import Target
from nvcf_gateway.ratelimit.limiter import RateLimiter
from nvcf_gateway.registry import Registry
from nvcf_gateway.rpc.refusals import bearer, refuse
from nvcf_proto.errors import InvalidId
from nvcf_proto.ids import parse_id
from nvcf_proto.models import FunctionType, FunctionVersion, Scope
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc, ratelimiter_pb2, ratelimiter_pb2_grpc

_TYPES = {
    FunctionType.DEFAULT: nvcf_pb2.ProxyAuthResponse.DEFAULT,
    FunctionType.STREAMING: nvcf_pb2.ProxyAuthResponse.STREAMING,
    FunctionType.LLM: nvcf_pb2.ProxyAuthResponse.LLM,
}


class Desk:
    """Decisions of the services below. All raise HttpProblem."""

    def __init__(self, authenticator: Authenticator, authorizer: Authorizer, registry: Registry) -> None:
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._registry = registry

    def service(self, context: Context[Any, Any]) -> Caller:
        """The service that asks."""
        token = bearer(context)
        if token is None:
            raise HttpProblem(401, "metadata authorization: Bearer <token> is missing")
        caller = self._authenticator.identify(token)
        if not (caller.key.allows(Scope.SERVICE) or caller.key.allows(Scope.ADMIN)):
            raise HttpProblem(403, "the API key lacks the scope 'service' or 'admin'")
        return caller

    def versions(
        self, service: Caller, token: str, function_id: str, version_id: str | None, owner: str | None = None
    ) -> tuple[Caller, list[FunctionVersion]]:
        """Whose token it is, and the versions it may invoke."""
        target = Target(_id(function_id, "functionId"), _optional_id(version_id, "functionVersionId"))
        self._within_reach(service, target.function_id)
        function = self._registry.functions.get(target.function_id)
        if owner and function is not None and function.nca_id != owner:
            raise HttpProblem(404, f"account {owner[:128]} has no function {target.function_id}")
        if not token:
            raise HttpProblem(401, "clientAuthorizationToken is missing")
        # Some send the header's whole value, some only the token.
        caller = self._authenticator.identify(read_bearer(token) if " " in token.strip() else token.strip())
        return caller, self._authorizer.versions(caller, target)

    def version(self, service: Caller, function_id: str, version_id: str) -> FunctionVersion:
        """A version by its ids."""
        function_id, version_id = _id(function_id, "functionId"), _id(version_id, "functionVersionId")
        self._within_reach(service, function_id)
        version = self._registry.versions.get(version_id)
        if version is None or version.function_id != function_id:
            raise HttpProblem(404, f"function {function_id} has no version {version_id}")
        return version

    def _within_reach(self, service: Caller, function_id: str) -> None:
        if service.key.allows(Scope.SERVICE):
            return
        service.require_function(function_id)
        function = self._registry.functions.get(function_id)
        if function is not None and function.nca_id != service.nca_id:
            raise HttpProblem(403, "the function belongs to another account: that takes the scope 'service'")


class InvocationService(nvcf_pb2_grpc.InvocationServicer):
    """Invocation.AuthClientInvocation, asked by an invocation service."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def AuthClientInvocation(  # noqa: N802 # the contract's name
        self, request: nvcf_pb2.ClientInvokeRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.ClientInvokeResponse:
        """Who the client is, and which versions it may invoke."""
        async with _refusing(context):
            caller, versions = self._desk.versions(
                self._desk.service(context),
                request.clientAuthorizationToken,
                request.functionId,
                _given(request, "functionVersionId"),
                _given(request, "targetNcaId"),
            )
        found = [
            nvcf_pb2.ClientInvokeResponse.FunctionVersion(
                functionVersionId=version.id,
                defaultInvocationPath=version.inference_url,
                hasRateLimit=version.rate_limit is not None,
                syncCheck=version.rate_limit is not None and version.rate_limit.sync_check,
            )
            for version in versions
        ]
        return nvcf_pb2.ClientInvokeResponse(
            functionId=versions[0].function_id,
            functionVersions=found,
            clientAuthSubject=caller.subject,
            clientNcaId=caller.nca_id,
        )


class ProxyService(nvcf_pb2_grpc.ProxyServicer):
    """Proxy.AuthStatefulWork, asked by a proxy of stateful sessions."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def AuthStatefulWork(  # noqa: N802 # the contract's name
        self, request: nvcf_pb2.ProxyAuthRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.ProxyAuthResponse:
        """Who the client is, and which versions it may have a session with."""
        async with _refusing(context):
            caller, versions = self._desk.versions(
                self._desk.service(context),
                request.clientAuthorizationToken,
                request.functionId,
                _given(request, "functionVersionId"),
            )
        found = [
            nvcf_pb2.ProxyAuthResponse.FunctionVersion(
                functionVersionId=version.id,
                type=_TYPES[version.function_type],
                hasRateLimit=version.rate_limit is not None,
                syncCheck=version.rate_limit is not None and version.rate_limit.sync_check,
            )
            for version in versions
        ]
        return nvcf_pb2.ProxyAuthResponse(
            functionId=versions[0].function_id,
            functionVersions=found,
            clientAuthSubject=caller.subject,
            clientNcaId=caller.nca_id,
        )


class RateLimitPolicyService(nvcf_pb2_grpc.RateLimitServicer):
    """RateLimit.RateLimitPolicy, asked by a rate limiter of another make."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def RateLimitPolicy(  # noqa: N802 # the contract's name
        self, request: nvcf_pb2.RateLimitPolicyRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.RateLimitPolicyResponse:
        """A version's policy; NOT_FOUND when it has none."""
        async with _refusing(context):
            version = self._desk.version(
                self._desk.service(context), request.functionId, request.functionVersionId
            )
            policy = version.rate_limit
            if policy is None:
                raise HttpProblem(404, f"version {version.id} has no rate limit")
        config = nvcf_pb2.RateLimitPolicyResponse.Config(
            rate=policy.rate,
            excludedNcaIds=policy.excluded,
            perNcaIdConfigs=[
                nvcf_pb2.RateLimitPolicyResponse.PerNcaIdConfig(ncaId=account, rate=rate)
                for account, rate in policy.account_rates
            ],
            perUserRate=policy.user_rate,
        )
        return nvcf_pb2.RateLimitPolicyResponse(config=config)


class RateLimitService(ratelimiter_pb2_grpc.RateLimitServiceServicer):
    """RateLimitService.RateLimit: the same limiter as for our own callers, as a service."""

    def __init__(self, desk: Desk, limiter: RateLimiter) -> None:
        self._desk = desk
        self._limiter = limiter

    async def RateLimit(  # noqa: N802 # the contract's name
        self, request: ratelimiter_pb2.RateLimitRequest, context: Context[Any, Any]
    ) -> ratelimiter_pb2.RateLimitResponse:
        """Count one call; a version without a policy allows all, and so does one that is not there."""
        async with _refusing(context):
            service = self._desk.service(context)
            if not request.ncaId:
                raise HttpProblem(400, "ncaId is missing")
            try:
                policy = self._desk.version(service, request.functionId, request.functionVersionId).rate_limit
            except HttpProblem as problem:
                # Whether it exists is for others to say, who can answer the caller in their own words.
                if problem.status != 404:
                    raise
                policy = None
        result = ratelimiter_pb2.RateLimitResponse.ALLOW
        if policy is not None:
            version_id = parse_id(request.functionVersionId, "functionVersionId")
            grant = await self._limiter.check(policy, version_id, request.ncaId, request.clientAuthSubject)
            if not grant.granted:
                result = ratelimiter_pb2.RateLimitResponse.DISALLOW
        return ratelimiter_pb2.RateLimitResponse(result=result)


def add_services(
    server: Any,
    authenticator: Authenticator,
    authorizer: Authorizer,
    registry: Registry,
    limiter: RateLimiter,
) -> None:
    """Add all of them to a gRPC server."""
    desk = Desk(authenticator, authorizer, registry)
    nvcf_pb2_grpc.add_InvocationServicer_to_server(InvocationService(desk), server)
    nvcf_pb2_grpc.add_ProxyServicer_to_server(ProxyService(desk), server)
    nvcf_pb2_grpc.add_RateLimitServicer_to_server(RateLimitPolicyService(desk), server)
    ratelimiter_pb2_grpc.add_RateLimitServiceServicer_to_server(RateLimitService(desk, limiter), server)


@asynccontextmanager
async def _refusing(context: Context[Any, Any]) -> AsyncIterator[None]:
    try:
        yield
    except HttpProblem as problem:
        await refuse(context, problem)


def _given(request: Any, field: str) -> str | None:
    return str(getattr(request, field)) if request.HasField(field) else None


def _id(text: str, name: str) -> str:
    try:
        return parse_id(text, name)
    except InvalidId as error:
        raise HttpProblem(400, str(error)) from None


def _optional_id(text: str | None, name: str) -> str | None:
    # An empty text is how some clients say "not given".
    return _id(text, name) if text else None
