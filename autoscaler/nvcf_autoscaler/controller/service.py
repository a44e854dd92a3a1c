"""The gRPC service nvcf.Autoscaler (protocol.md, 1): what a deployment says about scaling, and orders of
another autoscaler. Every replica answers; orders are records, which the leader carries out.
"""

from __future__ import annotations

import hmac
import time
from collections import Counter
from typing import Any, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from grpc.aio import ServicerContext as Context

from nvcf_autoscaler.controller.cache import World
from nvcf_autoscaler.controller.mapping import specifications_of
from nvcf_autoscaler.controller.orders import MOST, Order
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
from nvcf_proto.models.keys import api_key_id, hash_api_key
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc

ATTEMPTS = 5


class Refusal(AutoscalerError):
    """A call that is refused."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


def key_of(token: str | None, keys: KvMirror[ApiKey], now: float) -> ApiKey:
    """The live key that a bearer token is. Raises Refusal."""
    wrong = Refusal(grpc.StatusCode.UNAUTHENTICATED, "an API key is needed: authorization: Bearer KEY")
    if token is None:
        raise wrong
    try:
        record = keys.get(api_key_id(token))
    except InvalidToken:
        raise wrong from None
    # The comparison runs for unknown keys too, so that its time tells nothing.
    expected = record.secret_hash if record is not None else "0" * 64
    if not hmac.compare_digest(expected, hash_api_key(token)) or record is None or not record.is_live(now):
        raise wrong
    return record


def details_of(rule: ScalingRule | None) -> nvcf_pb2.ScalingDetails | None:
    """A rule in its gRPC form."""
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


def answer_of(instances: list[Instance], required: int) -> nvcf_pb2.AutoscalerResponse:
    """How a version stands, of which `required` instances are ordered."""
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
    """Callers are API keys with the scope `service`, or `deploy` of the account the function belongs to."""

    def __init__(self, world: World, orders: KvMirror[Order], keys: KvMirror[ApiKey]) -> None:
        self._world = world
        self._orders = orders
        self._keys = keys

    async def RequestDeploymentConfiguration(  # noqa: N802 # the contract's name
        self,
        request: nvcf_pb2.DeploymentConfigurationRequest,
        context: Context[Any, Any],
    ) -> nvcf_pb2.DeploymentConfigurationResponse:
        """Scaling details by GPU specification id; unset where the policy decides."""
        try:
            _, deployment = self._asked(context, request.functionId, request.functionVersionId)
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
            version, deployment = self._asked(context, request.functionId, request.functionVersionId)
            wanted = request.gpuSpecificationId if request.HasField("gpuSpecificationId") else None
            if wanted is not None and wanted not in specifications_of(deployment):
                raise Refusal(grpc.StatusCode.NOT_FOUND, "the deployment has no such gpuSpecificationId")
            if not 0 <= request.requiredNumberOfInstances <= MOST:
                raise Refusal(
                    grpc.StatusCode.INVALID_ARGUMENT, f"requiredNumberOfInstances: expected 0 to {MOST}"
                )
            await self._order(version.id, wanted, request.requiredNumberOfInstances)
        except Refusal as refusal:
            await _refuse(context, refusal)
        except BrokerError as error:
            await _refuse(context, Refusal(grpc.StatusCode.UNAVAILABLE, str(error)))
        instances = [
            each
            for each in self._world.instances_of(version.id)
            if wanted is None or each.specification_id == wanted
        ]
        return answer_of(instances, request.requiredNumberOfInstances)

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

    def _asked(
        self, context: Context[Any, Any], function_id: str, version_id: str
    ) -> tuple[FunctionVersion, Deployment]:
        key = key_of(_bearer(context), self._keys, time.time())
        try:
            function_id = parse_id(function_id, "functionId")
            version_id = parse_id(version_id, "functionVersionId")
        except InvalidId as error:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None
        version = self._world.versions.get(version_id)
        mine = version is not None and key.nca_id == version.nca_id and key.allows(Scope.DEPLOY)
        if not (key.allows(Scope.SERVICE) or mine) or not key.covers(function_id):
            raise Refusal(
                grpc.StatusCode.PERMISSION_DENIED, "the key may not scale this function (service, deploy)"
            )
        deployment = self._world.deployments.get(version_id)
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
