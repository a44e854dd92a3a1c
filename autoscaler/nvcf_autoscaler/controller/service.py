"""The gRPC service nvcf.Autoscaler: a deployment's scaling settings, and orders of another autoscaler.

Every replica serves it. Orders are records, which the leader carries out.
"""

from __future__ import annotations

import hmac
import time
from collections import Counter
from typing import Any, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from grpc.aio import ServicerContext as Context

from nvcf_autoscaler.controller.cache import Cache
from nvcf_autoscaler.controller.orders import MAX_INSTANCES, Order
from nvcf_autoscaler.errors import AutoscalerError
from nvcf_broker.errors import BrokerError, KeyExistsError, RevisionConflictError
from nvcf_broker.kv import KvMirror
from nvcf_proto.errors import InvalidId, InvalidToken
from nvcf_proto.ids import parse_id
from nvcf_proto.models import (
    ApiKey,
    Deployment,
    FunctionVersion,
    Instance,
    InstanceState,
    ScalingRule,
    Scope,
)
from nvcf_proto.models.deployments import specifications_of
from nvcf_proto.models.keys import api_key_id, hash_api_key
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc

ATTEMPTS = 5


class Refusal(AutoscalerError):
    """A call is refused."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def key_of(token: str | None, keys: KvMirror[ApiKey], now: float) -> ApiKey:
    """Return the live API key of a bearer token. Raises Refusal."""
    wrong = Refusal(grpc.StatusCode.UNAUTHENTICATED, "an API key is needed: authorization: Bearer KEY")
    if token is None:
        raise wrong
    try:
        record = keys.get(api_key_id(token))
    except InvalidToken:
        raise wrong from None
    # Unknown keys are compared too, so that the time reveals nothing.
    expected = record.secret_hash if record is not None else "0" * 64
    if not hmac.compare_digest(expected, hash_api_key(token)) or record is None or not record.is_live(now):
        raise wrong
    return record


def details_of(rule: ScalingRule | None) -> nvcf_pb2.ScalingDetails | None:
    """Return a rule as a gRPC message."""
    if rule is None:
        return None
    details = nvcf_pb2.ScalingDetails(metric=rule.metric, factor=rule.factor, threshold=rule.threshold)
    if rule.stickiness is not None:
        details.stickiness.size.CopyFrom(_duration(rule.stickiness.size))
        details.stickiness.threshold.CopyFrom(_duration(rule.stickiness.threshold))
    return details


def _duration(seconds: float) -> Duration:
    whole = int(seconds)
    return Duration(seconds=whole, nanos=round((seconds - whole) * 1e9))


def response_of(instances: list[Instance], required: int) -> nvcf_pb2.AutoscalerResponse:
    """Return the state of a version of which `required` instances are ordered."""
    states = Counter(
        InstanceState.TERMINATING
        if each.draining_since is not None and each.state is not InstanceState.COMPLETED
        else each.state
        for each in instances
    )
    up = sum(
        states[state] for state in (InstanceState.RUNNING, InstanceState.STARTING, InstanceState.PENDING)
    )
    running = states[InstanceState.RUNNING]
    return nvcf_pb2.AutoscalerResponse(
        activeInstances=running,
        pendingInstances=states[InstanceState.PENDING],
        allocatingInstances=states[InstanceState.STARTING],
        terminatingInstances=states[InstanceState.TERMINATING],
        functionStatus="ACTIVE" if running else "DEPLOYING",
        scalingStatus="SCALING_UP" if up < required else "SCALING_DOWN" if up > required else "STEADY",
    )


class AutoscalerService(nvcf_pb2_grpc.AutoscalerServicer):
    """Serves API keys with the scope `service`, or `deploy` of the account that the function belongs to."""

    def __init__(self, cache: Cache, orders: KvMirror[Order], keys: KvMirror[ApiKey]) -> None:
        self._cache = cache
        self._orders = orders
        self._keys = keys

    async def RequestDeploymentConfiguration(  # noqa: N802 # the contract's name
        self,
        request: nvcf_pb2.DeploymentConfigurationRequest,
        context: Context[Any, Any],
    ) -> nvcf_pb2.DeploymentConfigurationResponse:
        """Return scaling details by GPU specification id, unset where the policy decides."""
        try:
            _, deployment = self._authorise(context, request.functionId, request.functionVersionId)
        except Refusal as refusal:
            await _refuse(context, refusal)
        scaling = deployment.scaling
        configuration = nvcf_pb2.AutoscalingConfiguration(
            scaleUpDetails=details_of(scaling.scale_up if scaling else None),
            scaleDownDetails=details_of(scaling.scale_down if scaling else None),
        )
        configs = dict.fromkeys(specifications_of(deployment), configuration)
        return nvcf_pb2.DeploymentConfigurationResponse(configs=configs)

    async def AutoscaleFunction(  # noqa: N802 # the contract's name
        self, request: nvcf_pb2.AutoscalerRequest, context: Context[Any, Any]
    ) -> nvcf_pb2.AutoscalerResponse:
        """Order a number of instances, within the deployment's bounds."""
        try:
            version, deployment = self._authorise(context, request.functionId, request.functionVersionId)
            wanted = request.gpuSpecificationId if request.HasField("gpuSpecificationId") else None
            if wanted is not None and wanted not in specifications_of(deployment):
                raise Refusal(grpc.StatusCode.NOT_FOUND, "the deployment has no such gpuSpecificationId")
            if not 0 <= request.requiredNumberOfInstances <= MAX_INSTANCES:
                raise Refusal(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"requiredNumberOfInstances: expected 0 to {MAX_INSTANCES}",
                )
            await self._order(version.id, wanted, request.requiredNumberOfInstances)
        except Refusal as refusal:
            await _refuse(context, refusal)
        except BrokerError as error:
            await _refuse(context, Refusal(grpc.StatusCode.UNAVAILABLE, str(error)))
        instances = [
            each
            for each in self._cache.instances_of(version.id)
            if wanted is None or each.specification_id == wanted
        ]
        return response_of(instances, request.requiredNumberOfInstances)

    async def _order(self, version_id: str, specification_id: str | None, count: int) -> None:
        now = time.time()
        for _ in range(ATTEMPTS):
            entry = self._orders.entry(version_id)
            try:
                if entry is None:
                    order = Order(version_id, now).ordering(now, specification_id, count)
                    await self._orders.create(version_id, order)
                else:
                    order = entry.value.ordering(now, specification_id, count)
                    await self._orders.update(version_id, order, entry.revision)
            except (KeyExistsError, RevisionConflictError):
                await self._orders.wait_change(0.5)
            else:
                return
        raise Refusal(grpc.StatusCode.ABORTED, "the orders are being changed by others: try again")

    def _authorise(
        self, context: Context[Any, Any], function_id: str, version_id: str
    ) -> tuple[FunctionVersion, Deployment]:
        key = key_of(_bearer(context), self._keys, time.time())
        try:
            function_id = parse_id(function_id, "functionId")
            version_id = parse_id(version_id, "functionVersionId")
        except InvalidId as error:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        version = self._cache.versions.get(version_id)
        mine = version is not None and key.nca_id == version.nca_id and key.allows(Scope.DEPLOY)
        if not (key.allows(Scope.SERVICE) or mine) or not key.covers(function_id):
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED, "the key may not scale this function (service, deploy)"
            )
        deployment = self._cache.deployments.get(version_id)
        if version is None or version.function_id != function_id or deployment is None:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"version {version_id} is not deployed")
        return version, deployment


def _bearer(context: Context[Any, Any]) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            if scheme.lower() == "bearer" and token.strip():
                return token.strip()
    return None


async def _refuse(context: Context[Any, Any], refusal: Refusal) -> NoReturn:
    await context.abort(refusal.code, str(refusal))
    raise AssertionError("abort always raises")
