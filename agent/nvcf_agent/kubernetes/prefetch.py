"""Pulls a function's image on all nodes that can run it, so that later instances do not wait for it.

One pod a node asks for the image and for a program that does not exist: the image is pulled, and nothing of
it runs. The pod is removed then.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.errors import AgentError
from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.kinds import POD, SECRET
from nvcf_agent.kubernetes.names import COMPONENT, MANAGED_BY, MANAGER, object_name
from nvcf_agent.kubernetes.pods import status
from nvcf_agent.kubernetes.pods.launch import (
    IMAGE_LOGINS,
    Auths,
    account_logins,
    auths_for,
    parse_launch,
    registry_of,
)
from nvcf_agent.kubernetes.pods.names import PREFETCH
from nvcf_agent.kubernetes.pods.render import login_members
from nvcf_agent.kubernetes.pods.settings import GPU_TOLERATION, PodSettings
from nvcf_proto.icms.reports import PrefetchImage

_log = logging.getLogger(__name__)

Nodes = Callable[[str], Iterable[str]]
"""Returns the names of the nodes for the value of an instance type."""

SELECTOR = f"{MANAGED_BY}={MANAGER},{COMPONENT}={PREFETCH}"
_LABELS = {MANAGED_BY: MANAGER, COMPONENT: PREFETCH}
NOWHERE = "/nvcf-prefetch-runs-nothing"
AT_ONCE = 4
MOST_WAITING = 100
# An image is not asked for again within this time.
_AGAIN_SECONDS = 3600.0
_LONGEST_SECONDS = 1800.0
_LOOK_SECONDS = 1.0
_FAILED = frozenset(("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ImageInspectError"))


@dataclass(frozen=True)
class Wanted:
    """An image, the value of the instance type whose nodes are to have it, and logins of its account."""

    image: str
    instance_type_value: str
    logins: tuple[Auths, ...] = ()


@dataclass(eq=False)
class Prefetcher:
    """Pulls images, AT_ONCE nodes at a time."""

    api: Api
    settings: PodSettings
    nodes: Nodes
    clock: Callable[[], float] = time.monotonic
    _asked: dict[tuple[str, str], float] = field(default_factory=dict)
    _waiting: asyncio.Queue[Wanted] = field(default_factory=lambda: asyncio.Queue(MOST_WAITING))
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to pull what is asked for."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="prefetch")

    async def close(self) -> None:
        """Stop. Pods that pull are removed by the next agent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    def ask(self, spec: InstanceSpec) -> None:
        """Have the image of an instance pulled, if its deployment asks for that and it was not just now."""
        if spec.order.launch_specification.prefetch:
            launch = parse_launch(spec.order)
            self._ask(Wanted(launch.image, spec.order.instance_type_value, launch.logins))

    def ask_for(self, images: Iterable[PrefetchImage]) -> None:
        """Have images pulled that the control plane names, if that was not just now. Raises InvalidRecord."""
        for each in images:
            logins = account_logins(each.credentials, IMAGE_LOGINS)
            self._ask(Wanted(each.container_image, each.instance_type_value, logins))

    def _ask(self, wanted: Wanted) -> None:
        key, now = (wanted.image, wanted.instance_type_value), self.clock()
        self._asked = {each: at for each, at in self._asked.items() if now - at < _AGAIN_SECONDS}
        if key in self._asked or self._waiting.full():
            return
        self._asked[key] = now
        self._waiting.put_nowait(wanted)

    async def _run(self) -> None:
        while True:
            try:
                await self._clear()
                break
            except AgentError as error:
                _log.warning("prefetching waits: %s", error)
                await asyncio.sleep(_LOOK_SECONDS)
        while True:
            wanted = await self._waiting.get()
            try:
                await self._everywhere(wanted)
            except Exception as error:  # noqa: BLE001 - one image's fault must not end the others'
                known = isinstance(error, AgentError)
                text = "the image %s is not prefetched: %s"
                _log.warning(text, wanted.image, error, exc_info=None if known else error)

    async def _clear(self) -> None:
        """Remove what an earlier agent has left."""
        for kind in (POD, SECRET):
            for each in (await self.api.list(kind, self.settings.namespace, labels=SELECTOR)).items:
                await self.api.delete(kind, each["metadata"]["name"], self.settings.namespace, grace=0)

    async def _everywhere(self, wanted: Wanted) -> None:
        image, namespace = wanted.image, self.settings.namespace
        name = object_name(PREFETCH, hashlib.sha256(image.encode()).hexdigest()[:16])
        auths = {
            host: login
            for each in wanted.logins
            for host, login in auths_for(each, [registry_of(image)]).items()
        }
        if auths:
            await self.api.apply(SECRET, SECRET.new(name, namespace, _LABELS, **login_members(auths)))
        gate, began = asyncio.Semaphore(AT_ONCE), self.clock()
        pulls = [name] if auths else []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._on_node(gate, image, node, name, pulls))
                    for node in self.nodes(wanted.instance_type_value)
                ]
        finally:
            with contextlib.suppress(AgentError):
                await self.api.delete(SECRET, name, namespace)
        done = sum(task.result() for task in tasks)
        seconds = self.clock() - began
        _log.info("image %s is on %d of %d nodes after %.0f s", image, done, len(tasks), seconds)

    async def _on_node(
        self, gate: asyncio.Semaphore, image: str, node: str, name: str, pulls: list[str]
    ) -> bool:
        """Pull an image on one node; return whether it is there."""
        async with gate:
            body = prefetch_pod(object_name(name, node), image, node, self.settings, pulls)
            pod = body["metadata"]["name"]
            try:
                await self.api.apply(POD, body)
                async with asyncio.timeout(_LONGEST_SECONDS):
                    return await self._outcome(pod)
            except (AgentError, TimeoutError) as error:
                _log.warning("image %s is not prefetched on node %s: %s", image, node, error)
                return False
            finally:
                with contextlib.suppress(AgentError):
                    await self.api.delete(POD, pod, self.settings.namespace, grace=0)

    async def _outcome(self, pod: str) -> bool:
        """Look at a pod until its image is there or cannot be pulled."""
        while True:
            found = outcome(await self.api.get(POD, pod, self.settings.namespace))
            if found is not None:
                return found
            await asyncio.sleep(_LOOK_SECONDS)


def prefetch_pod(
    name: str, image: str, node: str, settings: PodSettings, pull_secrets: Iterable[str]
) -> Object:
    """Return the pod that has an image pulled on one node. Pure."""
    secrets = [*pull_secrets, *settings.pull_secrets]
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    terms = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    container: dict[str, Any] = {
        "name": PREFETCH,
        "image": image,
        "imagePullPolicy": settings.pull_policy,
        "command": [NOWHERE],
        "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
        },
    }
    spec = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": round(_LONGEST_SECONDS),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "tolerations": [GPU_TOLERATION, *map(dict, settings.tolerations)],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}},
        "containers": [container],
        **({"imagePullSecrets": [{"name": each} for each in secrets]} if secrets else {}),
    }
    return POD.new(name, settings.namespace, _LABELS, spec=spec)


def outcome(pod: Object | None) -> bool | None:
    """Return whether a pod's image has been pulled; None while that is open. Pure."""
    if pod is None:
        return False
    (container,) = status.containers(pod)
    if container.waiting in _FAILED:
        return False
    # That it cannot be started, or may not run as root, is found out after the pull.
    over = container.terminated is not None or container.running_since is not None
    if over or container.waiting.endswith("Error"):
        return True
    return False if (pod.get("status") or {}).get("phase") == "Failed" else None
