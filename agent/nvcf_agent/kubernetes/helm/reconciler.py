"""Bring one MiniService a step further: read, decide (miniservice.py), apply, write its status."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.backends.interface import NO_SECRETS, Secrets
from nvcf_agent.errors import StartError
from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import MINI_SERVICE, POD
from nvcf_agent.kubernetes.crds.mini_service import MiniServicePhase, MiniServiceStatus
from nvcf_agent.kubernetes.helm import miniservice as phases
from nvcf_agent.kubernetes.helm import names, records
from nvcf_agent.kubernetes.helm.chart import WRONG_CHART, ChartRenderer, is_by_worker, parse_chart
from nvcf_agent.kubernetes.helm.errors import ChartPullError, ChartUnavailable
from nvcf_agent.kubernetes.helm.health import View, health_of, remember_all
from nvcf_agent.kubernetes.helm.install import Installer, ObjectRefused
from nvcf_agent.kubernetes.helm.miniservice import Reason
from nvcf_agent.kubernetes.helm.records import Rendered
from nvcf_agent.kubernetes.helm.settings import HelmSettings
from nvcf_agent.kubernetes.pods import status as pod_status
from nvcf_agent.kubernetes.pods.observe import Memory, failure_of, why_not_ready
from nvcf_proto.charts.objects import member, name_of

_log = logging.getLogger(__name__)

DEFAULT_GRACE_SECONDS = 120.0


@dataclass(eq=False)
class Reconciler:
    """Works on one MiniService at a time, by what the API server has: any call may be the first one."""

    api: Api
    installer: Installer
    renderer: ChartRenderer
    settings: HelmSettings
    secrets: Secrets = NO_SECRETS
    wall: Callable[[], float] = time.time
    _following: set[str] = field(default_factory=set)
    _rendered: dict[str, Rendered] = field(default_factory=dict)
    _memories: dict[str, dict[str, Memory]] = field(default_factory=dict)

    async def advance(self, obj: Object, pods: Sequence[Object]) -> Object:
        """Take a step with a MiniService that is not being deleted; return it as it is then.

        `pods` are those with its label. Raises `ApiError`: nothing is lost, and it can be called again.
        """
        before = MiniServiceStatus.from_dict(obj.get("status") or {})
        after = await self._next(obj, before, pods)
        return obj if after == before else await self._write(obj, after)

    async def _next(
        self, obj: Object, status: MiniServiceStatus, pods: Sequence[Object]
    ) -> MiniServiceStatus:
        if phases.is_over(status):
            return status
        if status.phase is MiniServicePhase.NEW:
            return phases.moved(status, MiniServicePhase.INSTALLING, self.wall())
        if not phases.is_installed(status):
            return await self._install(obj, status)
        if status.observed_generation != obj["metadata"]["generation"]:
            status = await self._update(obj, status)
        return await self._look(obj, status, pods)

    async def _write(self, obj: Object, status: MiniServiceStatus) -> Object:
        metadata = {"resourceVersion": obj["metadata"]["resourceVersion"]}
        patch = {"metadata": metadata, "status": status.to_dict()}
        if status.phase != member(obj, "status", "phase"):
            _log.info("MiniService %s: %s", name_of(obj), status.phase)
        return await self.api.patch(MINI_SERVICE, name_of(obj), None, patch, part="status")

    async def _install(self, obj: Object, status: MiniServiceStatus) -> MiniServiceStatus:
        name, namespace, now = name_of(obj), obj["spec"]["namespace"], self.wall()
        try:
            spec = await self._spec(name)
            rendered = await self._kept(name)
            if rendered is None or rendered.generation != obj["metadata"]["generation"]:
                rendered = await self._render(obj, spec)
                # Stored first, so that an agent that takes over installs the same objects.
                await self._keep(name, rendered)
            worker = await self.installer.prepare(spec, namespace, name, rendered.objects)
            if name not in self._following:
                await self.secrets.begin(spec.instance_of)
                self._following.add(name)
            initialized = pod_status.condition(worker, "Initialized")
            if worker["spec"].get("initContainers") and (initialized is None or not initialized.holds):
                return self._before_worker(name, worker, status)
            await self.installer.apply(rendered.objects)
            self._rendered[name] = rendered
            return phases.installed(status, rendered, now)
        except ObjectRefused as error:
            return phases.refused(status, Reason.OBJECTS_FAILED, str(error), now)
        except WRONG_CHART as error:
            return phases.refused(status, Reason.INVALID, str(error), now)
        except ChartPullError as error:
            # The control plane orders another instance after a while: until then none takes up a GPU.
            return phases.refused(status, Reason.CHART_UNAVAILABLE, str(error), now)
        except (ChartUnavailable, StartError, ApiError) as error:
            if phases.since(status, now) > self.settings.install:
                text = f"not installed after {self.settings.install / 60:g} min: {error}"
                return phases.refused(status, Reason.INSTALL_ERROR, text, now)
            if isinstance(error, ApiError):
                raise
            return phases.noted(status, phases.INSTALL, None, Reason.CHART_UNAVAILABLE, str(error), now)

    def _before_worker(self, name: str, worker: Object, status: MiniServiceStatus) -> MiniServiceStatus:
        now = self.wall()
        memories = self._remember(name, [worker])
        found = failure_of(worker, memories[worker["metadata"]["uid"]], now, self.settings.limits)
        if found is not None:
            return phases.failed(status, Reason.DEGRADED_WORKER, found, now)
        message = f"the worker: {why_not_ready(worker)}"
        return phases.noted(status, phases.WORKERS, False, Reason.WAITING, message, now)

    async def _spec(self, name: str) -> InstanceSpec:
        record = await self.installer.secret(name)
        return records.spec_of(record)

    async def _kept(self, name: str) -> Rendered | None:
        record = await self.installer.secret(names.rendered_secret(name))
        return None if record is None else records.rendered_of(record)

    async def _keep(self, name: str, rendered: Rendered) -> None:
        await self.installer.keep(names.rendered_secret(name), name, records.rendered_record(rendered))

    async def _render(self, obj: Object, spec: InstanceSpec) -> Rendered:
        """Render with the values in the MiniService: those of the order until somebody changes them."""
        values = member(obj, "spec", "helmChartConfig", "values") or {}
        chart = parse_chart(spec.order).with_values(values)
        objects, notes = await self.renderer.render(spec, chart, obj["spec"]["namespace"], name_of(obj))
        return Rendered(tuple(objects), obj["metadata"]["generation"], notes)

    async def _update(self, obj: Object, status: MiniServiceStatus) -> MiniServiceStatus:
        """Install new values. If they cannot be installed, what was there before stays."""
        name, generation, now = name_of(obj), obj["metadata"]["generation"], self.wall()
        before = await self._installed(name)
        try:
            rendered = await self._render(obj, await self._spec(name))
            await self.installer.apply(rendered.objects)
            await self._keep(name, rendered)
        except ObjectRefused as error:
            # Some of the new objects may be there already.
            await self.installer.apply(before.objects)
            return phases.update_refused(status, Reason.OBJECTS_FAILED, str(error), generation, now)
        except WRONG_CHART as error:
            return phases.update_refused(status, Reason.INVALID, str(error), generation, now)
        except ChartUnavailable as error:
            return phases.noted(status, phases.INSTALL, None, Reason.CHART_UNAVAILABLE, str(error), now)
        await self.installer.prune(before, rendered, obj["spec"]["namespace"])
        self._rendered[name] = rendered
        return phases.installed(status, rendered, now)

    async def _installed(self, name: str) -> Rendered:
        found = self._rendered.get(name) or await self._kept(name)
        # Without its Secret nothing is known of the chart: then only pods count.
        self._rendered[name] = found = found or Rendered((), 0)
        return found

    async def _look(
        self, obj: Object, status: MiniServiceStatus, pods: Sequence[Object]
    ) -> MiniServiceStatus:
        name, now = name_of(obj), self.wall()
        if name not in self._following:
            # An earlier agent has installed it.
            record = await self.installer.secret(name)
            if record is not None:
                await self.secrets.adopt(records.spec_of(record).instance_of)
            self._following.add(name)
        rendered = await self._installed(name)
        by_worker = is_by_worker(rendered.objects)
        live = {} if by_worker else await self.installer.live(rendered, obj["spec"]["namespace"], name)
        worker = next((each for each in pods if name_of(each) == names.UTILS), None)
        if worker is None:
            # A copy of the pods may be late, and this would be the instance's end.
            worker = await self.api.get(POD, names.UTILS, obj["spec"]["namespace"])
        view = View(
            [self.installer.kinds.ref(each) for each in rendered.objects],
            live,
            [each for each in pods if name_of(each) != names.UTILS],
            worker,
            self._remember(name, [*pods, *([worker] if worker is not None else [])]),
            status.phase is not MiniServicePhase.INSTALLED,
            by_worker,
        )
        return phases.observed(status, health_of(view, now, self.settings.limits), now, self.settings.pending)

    def _remember(self, name: str, pods: Sequence[Object]) -> dict[str, Memory]:
        found = remember_all(pods, self._memories.get(name, {}), self.wall())
        self._memories[name] = found
        return found

    async def remove(self, obj: Object) -> tuple[Object | None, bool]:
        """Go on with a deletion. Return the MiniService, None when it is gone, and whether pods are left."""
        metadata, now, name = obj["metadata"], self.wall(), name_of(obj)
        age = now - (pod_status.seconds(metadata["deletionTimestamp"]) or now)
        grace = grace_of(obj)
        left = await self.installer.remove_contents(obj["spec"]["namespace"], name, age, grace)
        if left.text:
            if age > grace + self.settings.cleanup:
                status = MiniServiceStatus.from_dict(obj.get("status") or {})
                after = phases.noted(status, phases.CLEANUP, False, Reason.STUCK, left.text, now)
                obj = obj if after == status else await self._write(obj, after)
            return obj, left.pods
        await self.installer.drop(name, names.rendered_secret(name))
        self._rendered.pop(name, None)
        self._memories.pop(name, None)
        self._following.discard(name)
        kept = [each for each in metadata.get("finalizers", ()) if each != names.FINALIZER]
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": kept}}
        await self.api.patch(MINI_SERVICE, name, None, patch)
        return None, False


def grace_of(obj: Object) -> float:
    """Return the seconds that a deleted MiniService's requests get to finish. Pure."""
    said = (obj["metadata"].get("annotations") or {}).get(names.GRACE, "")
    return float(said) if said.isascii() and said.isdigit() else DEFAULT_GRACE_SECONDS
