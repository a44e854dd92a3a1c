"""nvcf.Autoscaler over gRPC: a third-party autoscaler sends orders, ours executes them."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from tests.support.platform.compute_plane import running_plane
from tests.support.platform.gateways import control_flags
from tests.support.platform.processes import python, start
from tests.support.waiting import eventually

UP = {"factor": 2.0, "threshold": 80, "stickiness": {"size": 60, "threshold": 30.5}}
DOWN = {"factor": 0.5, "threshold": 20}


async def test_orders_and_configuration(tmp_path: Path) -> None:
    async with running_plane(tmp_path, autoscalers=0) as plane:
        await plane.start_agent()
        broker, keys = plane.platform.broker, plane.platform.keys
        command = python(
            "-m", "nvcf_autoscaler", "--nats", broker.url,
            "--nats-credentials", str(broker.credentials_file), *control_flags(broker),
            "--grpc", "127.0.0.1:0",
        )  # fmt: skip
        child = await start(command, log=tmp_path / "autoscaler.log")
        plane.platform.children.append(child)
        plane.autoscalers.append(child)
        address = json.loads(await child.first_line())["grpc"]
        version = await plane.deploy({"minInstances": 0, "maxInstances": 3})
        ids = {"functionId": version.function_id, "functionVersionId": version.id}

        async with grpc.aio.insecure_channel(address) as channel:
            stub = nvcf_pb2_grpc.AutoscalerStub(channel)
            mine = (("authorization", f"Bearer {keys['admin']}"),)
            await plane.until(lambda: bool(plane.words()), "the deployment has been seen")

            async def order(count: int) -> nvcf_pb2.AutoscalerResponse:
                request = nvcf_pb2.AutoscalerRequest(requiredNumberOfInstances=count, **ids)
                return await stub.AutoscaleFunction(request, metadata=mine, timeout=10)

            assert (await order(2)).scalingStatus == "SCALING_UP"
            await plane.until(lambda: len(plane.running(version)) == 2, "two instances as ordered")
            assert (await order(2)).activeInstances == 2
            await order(50)
            await plane.until(lambda: len(plane.running(version)) == 3, "as many as the deployment allows")
            await order(0)
            await plane.until(lambda: not plane.live(version), "none as ordered")

            asked = nvcf_pb2.DeploymentConfigurationRequest(**ids)
            scaling = {"scaleUpDetails": UP, "scaleDownDetails": DOWN}
            await plane.redeploy(version, {"minInstances": 0, "maxInstances": 3}, scaling=scaling)

            async def details_of() -> nvcf_pb2.AutoscalingConfiguration:
                response = await stub.RequestDeploymentConfiguration(asked, metadata=mine, timeout=10)
                (details,) = response.configs.values()
                return details

            async def changed() -> bool:
                return (await details_of()).HasField("scaleUpDetails")

            await eventually(changed, "the changed deployment is known")
            details = await details_of()
            assert (details.scaleUpDetails.factor, details.scaleDownDetails.threshold) == (2.0, 20)
            assert details.scaleUpDetails.stickiness.threshold.ToTimedelta().total_seconds() == 30.5

            for key, wanted, code in (
                (None, ids, grpc.StatusCode.UNAUTHENTICATED),
                ("nvcf-000000000000-" + "A" * 43, ids, grpc.StatusCode.UNAUTHENTICATED),
                (keys["invoke"], ids, grpc.StatusCode.PERMISSION_DENIED),
                (keys["foreign"], ids, grpc.StatusCode.PERMISSION_DENIED),
                (keys["admin"], {**ids, "functionId": new_id()}, grpc.StatusCode.NOT_FOUND),
                (keys["admin"], {**ids, "functionId": "x"}, grpc.StatusCode.INVALID_ARGUMENT),
            ):
                metadata = () if key is None else (("authorization", f"Bearer {key}"),)
                request = nvcf_pb2.AutoscalerRequest(requiredNumberOfInstances=1, **wanted)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.AutoscaleFunction(request, metadata=metadata, timeout=10)
                assert refused.value.code() is code
