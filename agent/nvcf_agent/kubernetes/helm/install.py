"""Apply the objects of a MiniService, and remove them."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import NAMESPACE, POD, SECRET
from nvcf_agent.kubernetes.helm import records
from nvcf_agent.kubernetes.helm.chart import artifact_secret, pull_secrets
from nvcf_agent.kubernetes.helm.errors import ChartError
from nvcf_agent.kubernetes.helm.kinds import WORKLOADS, Kinds, Ref
from nvcf_agent.kubernetes.helm.names import MINI_SERVICE_LABEL, UTILS
from nvcf_agent.kubernetes.helm.namespace import namespace_object, objects_before
from nvcf_agent.kubernetes.helm.records import Rendered
from nvcf_agent.kubernetes.helm.settings import HelmSettings
from nvcf_agent.kubernetes.helm.worker import worker_objects
from nvcf_agent.kubernetes.pods.names import labels as pod_labels
from nvcf_agent.kubernetes.pods.settings import PodSettings
from nvcf_proto.charts.objects import label_of, member, name_of, text

_log = logging.getLogger(__name__)

_APPLIED_AT_ONCE = 8
# What the API server says to an agent that has its rights in the namespace only since a moment ago.
_NO_RIGHT = 'User "'
_POD_SECONDS = 30.0


class ObjectRefused(ChartError):
    """The API server refuses an object of the chart for good."""


@dataclass(frozen=True)
class Left:
    """What is left of a MiniService that is removed; an empty `text` for nothing."""

    text: str = ""
    pods: bool = False


class Installer:
    """Makes a MiniService's namespace and what is in it. All calls may be repeated."""

    def __init__(self, api: Api, settings: HelmSettings, pods: PodSettings) -> None:
        self._api = api
        self._settings = settings
        self._pods = pods
        self.kinds = Kinds(settings.extra_kinds)

    async def secret(self, name: str) -> Any:
        """Return the record in a Secret of the agent's namespace; None if there is none."""
        found = await self._api.get(SECRET, name, self._pods.namespace)
        return None if found is None else records.unpacked(found)

    async def keep(self, name: str, mini_service: str, record: Any) -> None:
        """Store a record in a Secret of the agent's namespace."""
        await self._api.apply(SECRET, records.secret(name, self._pods.namespace, mini_service, record))

    async def drop(self, *names: str) -> None:
        """Remove Secrets of the agent's namespace."""
        for name in names:
            await self._api.delete(SECRET, name, self._pods.namespace)

    async def prepare(
        self, spec: InstanceSpec, namespace: str, mini_service: str, objects: Sequence[Object]
    ) -> Object:
        """Make the namespace with what comes before the chart, and the worker's pod. Return the pod.

        Raises `ApiError` and `ObjectRefused`.
        """
        await self._make_namespace(spec, namespace, mini_service)
        pulls = pull_secrets(spec, namespace, mini_service, objects)
        worker = worker_objects(spec, self._pods, namespace, mini_service)
        before = objects_before(
            namespace,
            mini_service,
            self._settings,
            self._pods.network,
            gpus=spec.order.requested_gpu_count,
            pull_secrets=[name_of(body) for _, body in pulls],
            files=spec.telemetry.files,
        )
        artifacts = artifact_secret(spec, namespace, mini_service)
        for kind, body in (*before, *pulls, *artifacts, *worker.before):
            try:
                await self._api.apply(kind, body)
            except ApiError as error:
                raise self._problem(body, error) from error
        there = await self._api.get(POD, UTILS, namespace)
        # A pod cannot be changed: the one that is there is the right one, since the order does not change.
        return there if there is not None else await self._create(worker.pod)

    async def _create(self, pod: Object) -> Object:
        try:
            return await self._api.create(POD, pod)
        except ApiError as error:
            raise self._problem(pod, error) from error

    async def _make_namespace(self, spec: InstanceSpec, namespace: str, mini_service: str) -> None:
        there = await self._api.get(NAMESPACE, namespace)
        if there is None:
            labels = {"nca-id": pod_labels(spec, self._pods)["nca-id"]}
            restricted = not self._settings.policy.is_unrestricted
            body = namespace_object(namespace, mini_service, labels, restricted=restricted)
            there = await self._api.create(NAMESPACE, body)
        if not is_ours(there, mini_service):
            raise ObjectRefused(
                f"the namespace {namespace} exists and is not of {mini_service}: remove or rename it"
            )

    async def apply(self, objects: Iterable[Object]) -> None:
        """Apply a chart's objects, kind by kind. Raises `ObjectRefused` and `ApiError`."""
        ordered: dict[int, list[Object]] = {}
        for each in objects:
            ordered.setdefault(self.kinds.rank(each), []).append(each)
        for rank in sorted(ordered):
            slots = asyncio.Semaphore(_APPLIED_AT_ONCE)
            results = await asyncio.gather(
                *(self._apply(each, slots) for each in ordered[rank]), return_exceptions=True
            )
            if errors := [each for each in results if isinstance(each, BaseException)]:
                raise next((each for each in errors if isinstance(each, ObjectRefused)), errors[0])

    async def _apply(self, obj: Object, slots: asyncio.Semaphore) -> None:
        kind, _ = self.kinds.ref(obj)
        async with slots:
            try:
                await self._api.apply(kind, obj)
            except ApiError as error:
                raise self._problem(obj, error) from error

    def _problem(self, obj: Object, error: ApiError) -> ApiError | ObjectRefused:
        """Return an error that names the object, if another try would not help."""
        lacks_right = error.status == HTTPStatus.FORBIDDEN and _NO_RIGHT in str(error)
        if error.is_missing:
            return ObjectRefused(
                f"{label_of(obj)}: the cluster does not know this kind; its operator adds it"
            )
        if error.is_final and not lacks_right:
            return ObjectRefused(f"{label_of(obj)}: the API server refuses it: {error}")
        return error

    async def prune(self, before: Rendered, after: Rendered, namespace: str) -> None:
        """Remove the objects that the new values do not have any more."""
        kept = {self.kinds.ref(each) for each in after.objects}
        for each in before.objects:
            kind, name = self.kinds.ref(each)
            if (kind, name) not in kept:
                await self._api.delete(kind, name, namespace)

    async def live(self, rendered: Rendered, namespace: str, mini_service: str) -> dict[Ref, Object]:
        """Return the objects of a chart that exist."""
        wanted = f"{MINI_SERVICE_LABEL}={mini_service}"
        found: dict[Ref, Object] = {}
        for kind in dict.fromkeys(self.kinds.ref(each)[0] for each in rendered.objects):
            listed = await self._api.list(kind, namespace, labels=wanted)
            found |= {(kind, name_of(each)): each for each in listed.items}
        return found

    async def remove_contents(self, namespace: str, mini_service: str, age: float, grace: float) -> Left:
        """Go on with the removal of a namespace that is removed since `age` seconds.

        The worker ends first, within `grace` seconds, while the chart still serves its requests. Return what
        is left.
        """
        there = await self._api.get(NAMESPACE, namespace)
        if there is None or not is_ours(there, mini_service):
            return Left()
        pods = (await self._api.list(POD, namespace)).items
        worker = next((each for each in pods if name_of(each) == UTILS), None)
        if worker is not None:
            await self._end(worker, namespace, age, grace)
            return Left("the worker finishes its requests", pods=True)
        going = "deletionTimestamp" in there["metadata"]
        if not going:
            # The agent's rights end with the namespace, so pods with a long grace period end before.
            await self._remove_workloads(namespace, mini_service)
        for each in pods:
            await self._end(each, namespace, age - grace, _POD_SECONDS)
        if pods:
            return Left(f'{len(pods)} pods end, "{name_of(pods[0])}" among them', pods=True)
        if not going:
            await self._api.delete(NAMESPACE, namespace, uid=there["metadata"]["uid"])
        return Left(f"the namespace {namespace} ends{_what_hangs(there)}")

    async def _remove_workloads(self, namespace: str, mini_service: str) -> None:
        for kind in (*WORKLOADS, *self._settings.extra_kinds):
            try:
                listed = await self._api.list(kind, namespace, labels=f"{MINI_SERVICE_LABEL}={mini_service}")
            except ApiError as error:
                if error.status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
                    # An agent that died before it had its rights here has made none.
                    continue
                raise
            for each in listed.items:
                if "deletionTimestamp" not in each["metadata"]:
                    await self._api.delete(kind, name_of(each), namespace)

    async def _end(self, pod: Object, namespace: str, age: float, grace: float) -> None:
        late = age > grace + _POD_SECONDS
        given = member(pod, "metadata", "deletionGracePeriodSeconds")
        if "deletionTimestamp" not in pod["metadata"] or (given or 0) > grace or late:
            if late:
                _log.warning(
                    "pod %s/%s is removed by force: its node does not end it", namespace, name_of(pod)
                )
            await self._api.delete(POD, name_of(pod), namespace, grace=0 if late else grace)


def is_ours(namespace: Object, mini_service: str) -> bool:
    """Return whether a namespace was made for a MiniService. No other one is ever touched. Pure."""
    return text(member(namespace, "metadata", "labels", MINI_SERVICE_LABEL)) == mini_service


def _what_hangs(namespace: Object) -> str:
    """Return what keeps a namespace from going: resources and finalizers by name."""
    found = [
        str(each.get("message"))
        for each in member(namespace, "status", "conditions") or ()
        if each.get("status") == "True" and each.get("message")
    ]
    return f": {'; '.join(found)}" if found else ""
