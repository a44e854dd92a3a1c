"""Finds out by an image's label whether it has the worker in it, where the function's record does not say."""

import asyncio
import json
import logging
import time
import weakref
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.errors import AgentError
from nvcf_agent.kubernetes.helm.fetch import Fetcher
from nvcf_agent.kubernetes.pods.launch import Auths, auths_for, parse_launch, registry_of
from nvcf_proto.charts.source import Source
from nvcf_proto.models.containers import WorkerMode

_log = logging.getLogger(__name__)

LABEL = "com.nvidia.nvcf.worker-mode"
LOOK_SECONDS = 5.0
"""A registry that does not answer by then holds no start up any longer."""
# A tag may move, and a registry may come back.
_KNOWN_SECONDS = 600.0
# Somebody may mend a login or a registry, and every start without an answer takes LOOK_SECONDS.
_UNREAD_SECONDS = 30.0
_MOST_KNOWN = 1000
_DOCKER_HUB = "docker.io"
_DOCKER_HUB_API = "registry-1.docker.io"

_Image = tuple[str, str]
Say = Callable[[InstanceSpec, str], None]
"""Tells people of an instance's function something."""


@dataclass(eq=False)
class WorkerModes:
    """Reads labels from registries. What an account's image says is kept for some minutes."""

    fetcher: Fetcher
    say: Say = lambda _spec, _text: None
    clock: Callable[[], float] = time.monotonic
    # By account and image: what one account cannot read, another one may.
    _known: dict[_Image, tuple[float, WorkerMode]] = field(default_factory=dict)
    _locks: MutableMapping[_Image, asyncio.Lock] = field(default_factory=weakref.WeakValueDictionary)

    def __post_init__(self) -> None:
        settings = self.fetcher.settings
        self.fetcher = Fetcher(replace(settings, seconds=min(settings.seconds, LOOK_SECONDS)))

    async def completed(self, spec: InstanceSpec) -> InstanceSpec:
        """Return an instance's specification with a mode. Raises `Unsupported` for an order without image."""
        order = spec.order
        if order.launch_specification.worker_mode is not None:
            return spec
        launch = parse_launch(order)
        mode = await self._mode(spec, launch.image, launch.logins)
        completed = order.launch_specification.replace(worker_mode=mode)
        return replace(spec, order=order.replace(launch_specification=completed))

    async def _mode(self, spec: InstanceSpec, image: str, logins: tuple[Auths, ...]) -> WorkerMode:
        key = spec.order.nca_id, image
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            known = self._known.get(key)
            if known is not None and self.clock() < known[0]:
                return known[1]
            mode, problem = WorkerMode.SIDECAR, ""
            try:
                config = await self.fetcher.image_config(image_source(image), basic_logins(image, logins))
                mode = mode_of(config)
            except AgentError as error:
                problem = str(error)
            if problem:
                text = f"image {image} counts as one without a worker: its label cannot be read: {problem}"
                _log.warning("%s", text)
                self.say(spec, text)
            self._known.pop(key, None)
            self._known[key] = self.clock() + (_UNREAD_SECONDS if problem else _KNOWN_SECONDS), mode
            while len(self._known) > _MOST_KNOWN:
                del self._known[next(iter(self._known))]
            return mode


def mode_of(config: bytes) -> WorkerMode:
    """Return the mode that an image's configuration says; without the label it is a sidecar's. Pure."""
    try:
        labels = json.loads(config)["config"]["Labels"]
        return WorkerMode(labels[LABEL])
    except (ValueError, KeyError, TypeError, RecursionError):
        return WorkerMode.SIDECAR


def image_source(image: str) -> Source:
    """Return where an image is. Pure."""
    host, name = registry_of(image), image
    if host != _DOCKER_HUB or image.partition("/")[0].lower() in (_DOCKER_HUB, "index.docker.io"):
        name = image.partition("/")[2]
    name, at, digest = name.partition("@")
    head, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    repository = head + slash + last
    if host == _DOCKER_HUB:
        host = _DOCKER_HUB_API
        repository = repository if "/" in repository else f"library/{repository}"
    return Source(image, host, repository, digest if at else tag or "latest", what="image")


def basic_logins(image: str, logins: tuple[Auths, ...]) -> Mapping[str, str]:
    """Return base64 of `user:password` by host, of the image's registry only. Pure."""
    host = image_source(image).host
    found = {}
    for each in logins:
        for login in auths_for(each, [registry_of(image)]).values():
            if isinstance(login, dict) and login.get("auth"):
                found[host] = str(login["auth"])
    return found
