"""A device plugin that offers fake GPUs to a real kubelet.

usage: python -m tests.kubernetes.cluster.device_plugin FOLDER COUNT RESOURCE
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

PROTO = "tests/kubernetes/cluster/deviceplugin.proto"
VERSION = "v1beta1"
DEVICES = "NVIDIA_VISIBLE_DEVICES"
"""Variable of a container with the identifiers of its GPUs."""


def serve(folder: Path, count: int, resource: str) -> None:
    """Register with the kubelet of a folder, and serve until killed."""
    messages, services = grpc.protos_and_services(PROTO)

    class Plugin(services.DevicePluginServicer):  # type: ignore[misc, name-defined]
        def GetDevicePluginOptions(self, request: Any, context: Any) -> Any:  # noqa: N802
            return messages.DevicePluginOptions()

        def ListAndWatch(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
            devices = [messages.Device(ID=f"GPU-{index}", health="Healthy") for index in range(count)]
            yield messages.ListAndWatchResponse(devices=devices)
            ended = threading.Event()
            if context.add_callback(ended.set):
                ended.wait()

        def Allocate(self, request: Any, context: Any) -> Any:  # noqa: N802
            answers = [
                messages.ContainerAllocateResponse(envs={DEVICES: ",".join(each.devices_ids)})
                for each in request.container_requests
            ]
            return messages.AllocateResponse(container_responses=answers)

    name = f"{resource.replace('/', '-')}.sock"
    server = grpc.server(ThreadPoolExecutor(4))
    services.add_DevicePluginServicer_to_server(Plugin(), server)
    server.add_insecure_port(f"unix://{folder / name}")
    server.start()
    with grpc.insecure_channel(f"unix://{folder / 'kubelet.sock'}") as channel:
        options = messages.DevicePluginOptions()
        request = messages.RegisterRequest(
            version=VERSION, endpoint=name, resource_name=resource, options=options
        )
        services.RegistrationStub(channel).Register(request, timeout=30.0)
    server.wait_for_termination()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
