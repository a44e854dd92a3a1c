"""Runs instances of functions and tasks as pods. Only the API server's state outlives the agent."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.backends.interface import NO_SECRETS, Running, Secrets
from nvcf_agent.errors import StartError, Unsupported
from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import CONFIG_MAP, NAMESPACE, NETWORK_POLICY, POD, SECRET, Kind
from nvcf_agent.kubernetes.names import account_label
from nvcf_agent.kubernetes.pods import names, observe, status
from nvcf_agent.kubernetes.pods.collector import with_secrets
from nvcf_agent.kubernetes.pods.policies import account_policy, account_policy_name, shared_policies
from nvcf_agent.kubernetes.pods.render import GPU_RESOURCE, render
from nvcf_agent.kubernetes.pods.settings import PodSettings
from nvcf_agent.kubernetes.pods.task_end import has_begun, is_task
from nvcf_agent.kubernetes.prefetch import Nodes, Prefetcher
from nvcf_agent.kubernetes.watcher import PodWatcher, main_of
from nvcf_agent.kubernetes.worker_modes import WorkerModes
from nvcf_agent.state.events import Event
from nvcf_proto.icms.messages import CreationMessage
from nvcf_proto.icms.names import Workload
from nvcf_proto.icms.reports import PrefetchImage

_log = logging.getLogger(__name__)

Owner = Callable[[str], Mapping[str, Any] | None]
"""Returns the ICMSRequest of a request id as the API server has it; None without one."""

_SYNC_SECONDS = 60.0
_CREATED_AT_ONCE = 32
# A pod that is not gone this long after its grace period is removed by force: its node does not answer.
_FORCE_SECONDS = 60.0
# A pod that is still starting has no request to finish. The first process of a container ignores SIGTERM
# until it handles it, so such a pod would take up its GPU for the whole grace period.
_STARTING_GRACE = 10.0
# What a function's server gets once its worker has left: the first process of a container ignores SIGTERM,
# and would stay for the rest of the grace period.
_DRAINED_GRACE = 5.0
_CHECK_SECONDS = 2.0
_LAG_SECONDS = 0.5
_LEVEL = "pod-security.kubernetes.io/enforce"
_KINDS = (SECRET, CONFIG_MAP)


class PodBackend:
    """Runs each instance as one pod, with its Secrets and ConfigMaps, in one namespace.

    `owner` finds the ICMSRequest that objects go with. `gpu_resource` returns the name of a node's resource
    for an order. `secrets` brings instances their secrets. `nodes` are those on which images are prefetched.
    `modes` finds out where the worker is, if an order does not say; without it, that is beside the function.
    """

    name = "kubernetes"
    restarts = False

    def __init__(
        self,
        api: Api,
        settings: PodSettings,
        *,
        owner: Owner = lambda _request_id: None,
        gpu_resource: Callable[[CreationMessage], str] = lambda _: GPU_RESOURCE,
        secrets: Secrets = NO_SECRETS,
        watcher: PodWatcher | None = None,
        nodes: Nodes = lambda _type: (),
        modes: WorkerModes | None = None,
    ) -> None:
        self._api = api
        self._settings = settings
        self._namespace = settings.namespace
        self._owner = owner
        self._gpu_resource = gpu_resource
        self._secrets = secrets
        self._modes = modes
        self._watcher = watcher or PodWatcher(api, settings.namespace)
        self._prefetcher = Prefetcher(api, settings, nodes)
        self._members: defaultdict[str, set[str]] = defaultdict(set)
        self._accounts = asyncio.Lock()
        self._creating = asyncio.Semaphore(_CREATED_AT_ONCE)

    async def prepare(self, known: Collection[str]) -> None:
        """Begin to watch pods, and remove what is of no known instance. Raises `StartError`."""
        self._watcher.start()
        self._prefetcher.start()
        await self._read_level()
        try:
            async with asyncio.timeout(_SYNC_SECONDS):
                await self._watcher.synced()
        except TimeoutError:
            raise StartError("the API server did not list the pods of functions in time") from None
        kept = set(known)
        for pod in self._watcher.pods():
            instance, name = names.instance_of(pod), pod["metadata"]["name"]
            if instance is None or instance.instance_id not in kept:
                _log.warning("removing pod %s: its instance is unknown", name)
                if instance is not None:
                    self._watcher.ask(instance.instance_id)
                await self._api.delete(POD, name, self._namespace, grace=0)
                continue
            self._members[pod["metadata"]["labels"][names.ACCOUNT]].add(instance.instance_id)
            await self._secrets.adopt(instance)
        # What instances of one request share names none of them.
        requests = {names.request_of(each) for each in kept}
        for kind in _KINDS:
            await self._remove(
                kind,
                names.OURS,
                lambda found, request: request not in requests or (found is not None and found not in kept),
            )
        if self._settings.network.enabled:
            for policy in shared_policies(self._namespace, self._settings.network):
                await self._api.apply(NETWORK_POLICY, policy)

    async def _read_level(self) -> None:
        """Follow the namespace: where it is "restricted", pods of images that run as root are refused."""
        try:
            found = await self._api.get(NAMESPACE, self._namespace) or {}
        except ApiError as error:
            _log.info("the level of namespace %s is not known: %s", self._namespace, error)
            return
        labels = (found.get("metadata") or {}).get("labels") or {}
        if labels.get(_LEVEL) == "restricted":
            self._settings = replace(self._settings, run_as_non_root=True)

    async def create(self, spec: InstanceSpec) -> Running:
        """Create an instance's objects, its pod last. An existing pod stays as it is."""
        there = self._watcher.pod(spec.instance_id)
        try:
            async with self._creating:
                made = there or await self._create(spec)
            self._prefetcher.ask(spec)
            # Events that came before this call returns are of an instance that the agent does not expect yet.
            return self._running(spec.instance_id, self._watcher.pod(spec.instance_id) or made)
        except ApiError as error:
            found = await self._after_failure(spec.instance_id, error)
            return self._running(spec.instance_id, found)
        except BaseException:
            await self._secrets.end(spec.instance_id)
            raise

    async def _create(self, spec: InstanceSpec) -> Object:
        # A label is about functions: an image that reports for its task itself is ordered as such.
        if self._modes is not None and spec.order.workload is Workload.FUNCTION:
            spec = await self._modes.completed(spec)
        spec = await asyncio.to_thread(with_secrets, spec, self._settings)
        owner, resource = self._owner(spec.order.request_id), self._gpu_resource(spec.order)
        objects = render(spec, self._settings, owner=owner, gpu_resource=resource)
        await self._open_account(account_label(spec.order.nca_id), spec.instance_id)
        await self._api.apply_all(objects.before)
        await self._secrets.begin(spec.instance_of)
        try:
            return await self._api.create(POD, objects.pod)
        except ApiError as error:
            found = await self._known(spec.instance_id) if error.is_conflict else None
            if found is None:
                raise
            return found

    async def _known(self, instance_id: str) -> Object | None:
        return await self._api.get(POD, names.pod_name(instance_id), self._namespace)

    async def _after_failure(self, instance_id: str, error: ApiError) -> Object:
        """Return the pod if it was made after all. Raises `StartError` to try again, else `Unsupported`."""
        if not error.is_final:
            with contextlib.suppress(ApiError):
                found = await self._known(instance_id)
                if found is not None:
                    return found
        await self._secrets.end(instance_id)
        if error.is_final and "exceeded quota" not in str(error):
            raise Unsupported(f"the API server refuses the instance's objects: {error}") from error
        raise StartError(f"the instance's objects cannot be made: {error}") from error

    async def _open_account(self, label: str, instance_id: str) -> None:
        """Let the account's pods reach each other."""
        async with self._accounts:
            first = not self._members[label]
            self._members[label].add(instance_id)
            if first and self._settings.network.enabled:
                await self._api.apply(NETWORK_POLICY, account_policy(label, self._namespace))

    async def _leave_account(self, instance_id: str) -> None:
        async with self._accounts:
            for label, members in list(self._members.items()):
                members.discard(instance_id)
                if not members:
                    if self._settings.network.enabled:
                        await self._api.delete(NETWORK_POLICY, account_policy_name(label), self._namespace)
                    del self._members[label]

    async def delete(self, instance_id: str, grace: float) -> None:
        """Delete an instance's pod, and wait until it is gone."""
        self._watcher.ask(instance_id)
        name, now = names.pod_name(instance_id), asyncio.get_running_loop().time
        pod = self._watcher.pod(instance_id)
        if pod is not None and not (is_task(pod) and has_begun(pod)) and status.is_starting(pod):
            grace = min(grace, _STARTING_GRACE)
        force_at = now() + grace + _FORCE_SECONDS
        # With a grace period of 0 the API server would forget the pod before its node has ended it.
        if not await self._api.delete(POD, name, self._namespace, grace=max(1.0, grace)):
            return
        drained = False
        while not await self._is_gone(instance_id):
            pod = self._watcher.pod(instance_id)
            if not drained and pod is not None and observe.has_drained(pod):
                drained = True
                await self._api.delete(POD, name, self._namespace, grace=min(grace, _DRAINED_GRACE))
            if now() > force_at:
                _log.warning("pod %s is removed by force: its node does not end it", name)
                await self._api.delete(POD, name, self._namespace, grace=0)
                return

    async def _is_gone(self, instance_id: str) -> bool:
        """Wait for a while until a pod is gone, and return whether it is."""
        if not await self._watcher.wait_gone(instance_id, _CHECK_SECONDS):
            return False
        if await self._known(instance_id) is None:
            return True
        # It is too new to have been seen.
        await asyncio.sleep(_LAG_SECONDS)
        return False

    async def held_requests(self, instance_id: str, version_id: str, wall: float) -> tuple[str, ...]:
        """Return none: what a pod held went with it, and comes back after the broker's ack wait."""
        return ()

    async def forget(self, instance_id: str) -> None:
        """Remove an instance's Secrets and ConfigMaps."""
        await self._secrets.end(instance_id)
        wanted = f"{names.OURS},{names.REQUEST}={names.request_of(instance_id)}"
        siblings = {
            instance.instance_id
            for pod in self._watcher.pods()
            if (instance := names.instance_of(pod)) is not None
            and names.request_of(instance.instance_id) == names.request_of(instance_id)
        }
        for kind in _KINDS:
            await self._remove(
                kind, wanted, lambda found, _: found == instance_id or (found is None and not siblings)
            )
        await self._leave_account(instance_id)
        self._watcher.forget(instance_id)

    async def _remove(
        self, kind: Kind, labels: str, unwanted: Callable[[str | None, str | None], bool]
    ) -> None:
        """Remove objects; `unwanted` gets the id of their instance, None for what its request shares, and
        the name of that request.
        """
        for found in (await self._api.list(kind, self._namespace, labels=labels)).items:
            metadata = found["metadata"]
            said = metadata.get("annotations") or {}
            if unwanted(said.get(names.INSTANCE_ID), metadata["labels"].get(names.REQUEST)):
                await self._api.delete(kind, metadata["name"], self._namespace)

    def prefetch(self, images: Iterable[PrefetchImage]) -> None:
        """Have nodes pull images before there are instances."""
        self._prefetcher.ask_for(images)

    async def list(self) -> list[Running]:
        """Return the instances that have pods."""
        pods = ((names.instance_of(pod), pod) for pod in self._watcher.pods())
        return [self._running(instance.instance_id, pod) for instance, pod in pods if instance is not None]

    def watch(self) -> AsyncIterator[Event]:
        """Yield what happens to pods, to one consumer."""
        return self._watcher.events()

    async def close(self, grace: float) -> None:
        """Stop watching. Pods outlive the agent."""
        await self._watcher.close()
        await self._prefetcher.close()

    def _running(self, instance_id: str, pod: Object) -> Running:
        name = pod["metadata"]["name"]
        command = f"kubectl -n {self._namespace} logs {name} -c {main_of(pod)}"
        return Running(instance_id, command, ready=status.is_ready(pod))
