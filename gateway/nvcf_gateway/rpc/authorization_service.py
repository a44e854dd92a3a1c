"""gRPC services for third parties: may a caller invoke, and how often (protocol.md, sections 1.4, 1.5).

The services authenticate with API keys of the scope `service`, or `admin` of the account that owns the
function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc.aio
from grpc.aio import ServicerContext as Context

from nvcf_gateway.access.authorization import Authenticator, Authorizer, Caller, read_bearer
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.routing import Target
from nvcf_gateway.ratelimit.limiter import RateLimiter
from nvcf_gateway.registry import Registry
from nvcf_gateway.rpc.server import bearer, checked_id
from nvcf_proto.models import FunctionType, FunctionVersion, Scope
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc, ratelimiter_pb2, ratelimiter_pb2_grpc

_TYPES = {
    FunctionType.DEFAULT: nvcf_pb2.ProxyAuthResponse.DEFAULT,
    FunctionType.STREAMING: nvcf_pb2.ProxyAuthResponse.STREAMING,
    FunctionType.LLM: nvcf_pb2.ProxyAuthResponse.LLM,
}


@dataclass(frozen=True, slots=True, eq=False)
class AuthorizationService(
    nvcf_pb2_grpc.InvocationServicer,
    nvcf_pb2_grpc.ProxyServicer,
    nvcf_pb2_grpc.RateLimitServicer,
    ratelimiter_pb2_grpc.RateLimitServiceServicer,
):
    """The four services in one object. Handlers raise HttpProblem; the server makes a gRPC status of it."""

    authenticator: Authenticator
    authorizer: Authorizer
    registry: Registry
    limiter: RateLimiter

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve all four."""
        nvcf_pb2_grpc.add_InvocationServicer_to_server(self, server)
        nvcf_pb2_grpc.add_ProxyServicer_to_server(self, server)
        nvcf_pb2_grpc.add_RateLimitServicer_to_server(self, server)
        ratelimiter_pb2_grpc.add_RateLimitServiceServicer_to_server(self, server)

    async def AuthClientInvocation(  # noqa: N802 # the contract's name
        self, request: nvcf_pb2.ClientInvokeRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.ClientInvokeResponse:
        """Return who the client is, and which versions it may invoke. For an invocation service."""
        caller, versions = self._client(self._service(context), request, request.targetNcaId)
        found = [
            nvcf_pb2.ClientInvokeResponse.FunctionVersion(
                functionVersionId=version.id,
                defaultInvocationPath=version.inference_url,
                **_rate_limit_flags(version),
            )
            for version in versions
        ]
        return nvcf_pb2.ClientInvokeResponse(
            functionId=versions[0].function_id,
            functionVersions=found,
            clientAuthSubject=caller.subject,
            clientNcaId=caller.nca_id,
        )

    async def AuthStatefulWork(  # noqa: N802
        self, request: nvcf_pb2.ProxyAuthRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.ProxyAuthResponse:
        """Return who the client is, and which versions it may have a session with. For a session proxy."""
        caller, versions = self._client(self._service(context), request)
        found = [
            nvcf_pb2.ProxyAuthResponse.FunctionVersion(
                functionVersionId=version.id, type=_TYPES[version.function_type], **_rate_limit_flags(version)
            )
            for version in versions
        ]
        return nvcf_pb2.ProxyAuthResponse(
            functionId=versions[0].function_id,
            functionVersions=found,
            clientAuthSubject=caller.subject,
            clientNcaId=caller.nca_id,
        )

    async def RateLimitPolicy(  # noqa: N802
        self, request: nvcf_pb2.RateLimitPolicyRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.RateLimitPolicyResponse:
        """Return the policy of a version, NOT_FOUND when it has none. For a third-party rate limiter."""
        version = self._version(self._service(context), request.functionId, request.functionVersionId)
        policy = version.rate_limit
        if policy is None:
            raise HttpProblem(404, f"version {version.id} has no rate limit")
        config = nvcf_pb2.RateLimitPolicyResponse.Config(
            rate=policy.rate,
            excludedNcaIds=policy.excluded,
            perNcaIdConfigs=[
                nvcf_pb2.RateLimitPolicyResponse.PerNcaIdConfig(ncaId=each.nca_id, rate=each.rate)
                for each in policy.account_rates
            ],
            perUserRate=policy.user_rate,
        )
        return nvcf_pb2.RateLimitPolicyResponse(config=config)

    async def RateLimit(  # noqa: N802
        self, request: ratelimiter_pb2.RateLimitRequest, context: Context[Any, Any]
    ) -> ratelimiter_pb2.RateLimitResponse:
        """Count one call. A version without a policy, or one that does not exist, allows every call."""
        service = self._service(context)
        if not request.ncaId:
            raise HttpProblem(400, "ncaId is missing")
        version: FunctionVersion | None = None
        try:
            version = self._version(service, request.functionId, request.functionVersionId)
        except HttpProblem as problem:
            # The service that asks finds out by itself, and tells its client in its own words.
            if problem.status != 404:
                raise
        result = ratelimiter_pb2.RateLimitResponse.ALLOW
        if version is not None and version.rate_limit is not None:
            grant = await self.limiter.acquire(
                version.rate_limit, version.id, request.ncaId, request.clientAuthSubject
            )
            if not grant.granted:
                result = ratelimiter_pb2.RateLimitResponse.DISALLOW
        return ratelimiter_pb2.RateLimitResponse(result=result)

    def _service(self, context: Context[Any, Any]) -> Caller:
        """Return the service that calls."""
        caller = self.authenticator.identify(bearer(context))
        if not (caller.key.allows(Scope.SERVICE) or caller.key.allows(Scope.ADMIN)):
            raise HttpProblem(403, "the API key lacks the scope 'service' or 'admin'")
        return caller

    def _client(
        self,
        service: Caller,
        request: nvcf_pb2.ClientInvokeRequest | nvcf_pb2.ProxyAuthRequest,
        owner: str = "",
    ) -> tuple[Caller, list[FunctionVersion]]:
        """Return the owner of the client's token, and the versions that the client may invoke."""
        version_id, token = request.functionVersionId, request.clientAuthorizationToken
        # Some clients send an empty version for "not given".
        wanted = checked_id(version_id, "functionVersionId") if version_id else None
        target = Target(checked_id(request.functionId, "functionId"), wanted)
        self._check_reach(service, target.function_id)
        function = self.registry.functions.get(target.function_id)
        if owner and function is not None and function.nca_id != owner:
            raise HttpProblem(404, f"account {owner[:128]} has no function {target.function_id}")
        if not token:
            raise HttpProblem(401, "clientAuthorizationToken is missing")
        # Some send the whole value of the header, some only the token.
        caller = self.authenticator.identify(read_bearer(token) if " " in token.strip() else token.strip())
        return caller, self.authorizer.versions(caller, target)

    def _version(self, service: Caller, function_id: str, version_id: str) -> FunctionVersion:
        function_id = checked_id(function_id, "functionId")
        version_id = checked_id(version_id, "functionVersionId")
        self._check_reach(service, function_id)
        version = self.registry.versions.get(version_id)
        if version is None or version.function_id != function_id:
            raise HttpProblem(404, f"function {function_id} has no version {version_id}")
        return version

    def _check_reach(self, service: Caller, function_id: str) -> None:
        if service.key.allows(Scope.SERVICE):
            return
        function = self.registry.functions.get(function_id)
        if function is None or function.nca_id != service.nca_id:
            raise HttpProblem(404, f"no function {function_id} in this account (others: scope 'service')")
        service.require_function(function_id)


def _rate_limit_flags(version: FunctionVersion) -> Any:
    policy = version.rate_limit
    return {"hasRateLimit": policy is not None, "syncCheck": policy is not None and policy.sync_check}
