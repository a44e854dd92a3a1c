"""Follows the pods of instances: what they are, what is wrong with them, and when they are gone."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from nvcf_agent.kubernetes.client.api import WATCH_SECONDS, WATCH_SLACK_SECONDS, Api, Object
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.informer import Informer
from nvcf_agent.kubernetes.client.kinds import EVENT, POD
from nvcf_agent.kubernetes.event_queue import EventQueue
from nvcf_agent.kubernetes.pods import milestones, names, observe, status, texts
from nvcf_agent.kubernetes.pods.containers import INFERENCE, TASK, UTILS
from nvcf_agent.kubernetes.pods.observe import Limits, Memory
from nvcf_agent.kubernetes.pods.task_end import TaskEnd, end_of_gone_task, end_of_task, is_task
from nvcf_agent.state.events import Ended, Event, Observed, Progress, Ready, Unready

_log = logging.getLogger(__name__)

# Limits are checked this often; a change of a pod is looked at when it comes.
_PASS_SECONDS = 5.0
# While the API server is away, time passes, and what is known of pods gets old: then nothing is given up.
_STALE_SECONDS = WATCH_SECONDS + 2 * WATCH_SLACK_SECONDS
_EXPLAIN_SECONDS = 10.0
_EXPLAINED_AT_ONCE = 8


@dataclass
class _Known:
    """What was seen and said of one pod."""

    memory: Memory = field(default_factory=Memory)
    passed: dict[str, float] = field(default_factory=dict)
    ready: bool | None = None
    why: str = ""
    observed: Observed | None = None
    failed: bool = False


class PodWatcher:
    """Turns changes of the instances' pods into events. Times are Unix seconds."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        limits: Limits | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._limits = limits or Limits()
        self._wall = wall
        self._informer = Informer(
            api, POD, namespace=namespace, labels=names.OURS, on_change=self._changed, trim=status.trim
        )
        self._known: dict[str, _Known] = {}
        self._asked: set[str] = set()
        self._gone: dict[str, asyncio.Event] = {}
        self._changes: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._events = EventQueue()

    def start(self) -> None:
        """Begin to follow pods."""
        if not self._events.has_tasks:
            self._events.start(self._informer.run(), "pods")
            self._events.start(self._judge(), "judging pods")

    async def close(self) -> None:
        """Stop following."""
        await self._events.close()

    async def synced(self) -> None:
        """Wait until all pods are known."""
        await self._informer.synced.wait()

    def events(self) -> AsyncIterator[Event]:
        """Yield all events, to one consumer. Raises what ended the following of pods."""
        return self._events.read()

    def pods(self) -> list[Object]:
        """Return all pods of instances."""
        return list(self._informer.objects.values())

    def pod(self, instance_id: str) -> Object | None:
        """Return the pod of an instance."""
        return self._informer.objects.get((self._namespace, names.pod_name(instance_id)))

    def ask(self, instance_id: str) -> None:
        """Note that the agent ends an instance: its end is no failure."""
        self._asked.add(instance_id)

    def forget(self, instance_id: str) -> None:
        """Forget an instance whose pod is gone."""
        self._asked.discard(instance_id)
        self._known.pop(instance_id, None)

    async def wait_gone(self, instance_id: str, seconds: float) -> bool:
        """Wait until an instance has no pod, at most so long. Return whether it has none."""
        if self.pod(instance_id) is None:
            return True
        gone = self._gone.setdefault(instance_id, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await gone.wait()
        return self.pod(instance_id) is None

    def _changed(self, old: Object | None, new: Object | None) -> None:
        pod = new or old
        instance = names.instance_of(pod) if pod is not None else None
        if pod is None or instance is None:
            return
        instance_id = instance.instance_id
        if new is not None:
            self._changes[instance_id] = None
            self._wake.set()
            return
        gone = self._gone.pop(instance_id, None)
        if gone is not None:
            gone.set()
        if instance_id not in self._asked:
            end = end_of_gone_task(pod) if is_task(pod) else TaskEnd(failure=observe.end_of(pod))
            self._events.put(_ended(instance_id, end, pod))

    async def _judge(self) -> None:
        """Look at changed pods at once, and now and then at those that are not ready."""
        next_pass = 0.0
        while True:
            loop_time = asyncio.get_running_loop().time()
            changed = list(self._changes)
            self._changes.clear()
            self._wake.clear()
            if loop_time >= next_pass and loop_time - self._informer.heard_at < _STALE_SECONDS:
                next_pass = loop_time + _PASS_SECONDS
                changed += [each for each, known in self._known.items() if not known.ready]
            failed = [found for each in dict.fromkeys(changed) if (found := self._look(each)) is not None]
            for start in range(0, len(failed), _EXPLAINED_AT_ONCE):
                async with asyncio.TaskGroup() as group:
                    for pod, instance_id, end in failed[start:][:_EXPLAINED_AT_ONCE]:
                        group.create_task(self._report(pod, instance_id, end))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PASS_SECONDS):
                    await self._wake.wait()

    def _look(self, instance_id: str) -> tuple[Object, str, TaskEnd] | None:
        """Say what is new about a pod. Return it with its end if it has ended, or is to be given up."""
        pod, now = self.pod(instance_id), self._wall()
        if pod is None:
            return None
        known = self._known.setdefault(instance_id, _Known())
        known.memory = observe.remember(pod, known.memory, now)
        self._say_state(instance_id, pod, known)
        new = milestones.added(known.passed, milestones.milestones(pod, worker_of(pod)), now)
        known.passed |= new
        for name, at in new.items():
            self._events.put(Progress(instance_id, name, at))
        self._say_readiness(instance_id, pod, known)
        if known.failed or instance_id in self._asked:
            return None
        end = self._end_of(pod, known, now)
        if end is None:
            return None
        known.failed = True
        return pod, instance_id, end

    def _end_of(self, pod: Object, known: _Known, now: float) -> TaskEnd | None:
        if is_task(pod):
            end = end_of_task(pod, now)
            if end is not None:
                return end
        failure = observe.failure_of(pod, known.memory, now, self._limits)
        return None if failure is None else TaskEnd(failure=failure)

    def _say_state(self, instance_id: str, pod: Object, known: _Known) -> None:
        addresses = status.addresses(pod)
        why = texts.why_restarted((pod,))
        seen = Observed(instance_id, status.node_of(pod), addresses, status.restarts(pod), why)
        if seen != known.observed:
            known.observed = seen
            self._events.put(seen)

    def _say_readiness(self, instance_id: str, pod: Object, known: _Known) -> None:
        ready = status.is_ready(pod)
        why = "" if ready else observe.why_not_ready(pod)
        if (ready, why) == (known.ready, known.why):
            return
        known.ready, known.why = ready, why
        self._events.put(Ready(instance_id) if ready else Unready(instance_id, why))

    async def _report(self, pod: Object, instance_id: str, end: TaskEnd) -> None:
        if end.failure is None:
            self._events.put(_ended(instance_id, end, pod, gone=False))
            return
        name, events, logs = pod["metadata"]["name"], [], {}
        try:
            async with asyncio.timeout(_EXPLAIN_SECONDS):
                events = (await self._api.list(EVENT, self._namespace, fields=_of(name))).items
                for each in status.containers(pod):
                    if each.running_since is not None and not each.ready:
                        logs[each.name] = await self._api.logs(
                            name,
                            self._namespace,
                            each.name,
                            lines=texts.LOG_LINES,
                            limit_bytes=texts.LOG_BYTES,
                        )
        except (ApiError, TimeoutError) as error:
            _log.info("pod %s fails without its events or output: %s", name, error)
        self._events.put(_ended(instance_id, end, pod, events, logs, gone=False))


def worker_of(pod: Object) -> str:
    """Return the name of the container with the worker."""
    found = [each["name"] for each in pod["spec"]["containers"]]
    return UTILS if UTILS in found else main_of(pod)


def main_of(pod: Object) -> str:
    """Return the name of the container with the function or task."""
    return TASK if is_task(pod) else INFERENCE


def _ended(
    instance_id: str,
    end: TaskEnd,
    pod: Object,
    events: Iterable[Object] = (),
    logs: Mapping[str, str] | None = None,
    *,
    gone: bool = True,
) -> Ended:
    failure = end.failure
    if failure is None:
        return Ended(instance_id, "", final=True, gone=gone, exit_code=end.exit_code, runs=end.runs)
    text = texts.described(failure, pod, events, logs)
    return Ended(instance_id, text, failure.category, failure.cause, True, gone, end.exit_code, end.runs)


def _of(pod_name: str) -> str:
    return f"involvedObject.kind=Pod,involvedObject.name={pod_name}"
