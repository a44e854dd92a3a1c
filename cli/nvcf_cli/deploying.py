"""`nvcf deploy`: from a file to instances that answer."""

import asyncio
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nvcf_cli.api import Api, ApiProblem, Json, objects
from nvcf_cli.catalog import Found, find_function
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.images import Artifact
from nvcf_cli.places import no_place, usual_type
from nvcf_cli.scale import Scale
from nvcf_cli.snapshot import decision_text
from nvcf_cli.telemetry import chosen, reference
from nvcf_proto.models import NAME_PATTERN

POLL_SECONDS = 0.2
# What an agent puts before the reason of an instance that waits for something outside the function.
WAITING = "waiting: "
# Told until the autoscaler says why there is none.
NO_INSTANCE = "waiting for an instance"
# Failures of a place, not of the function: the platform tries others.
_ELSEWHERE = ("capacity", "lost", "unhealthy", "unacknowledged", "maintenance", "admission")


@dataclass(frozen=True)
class DeployRequest:
    """What is to be deployed, checked and with absolute paths: a file, an image or a chart."""

    name: str
    file: Path | None = None
    handler: str | None = None
    python: Path = Path(sys.executable)
    environment: dict[str, str] = field(default_factory=dict)
    scale: Scale = field(default_factory=Scale)
    telemetry: tuple[str, ...] = ()
    artifact: Artifact | None = None
    secrets: tuple[Json, ...] = field(default=(), repr=False)
    inference_url: str | None = None

    def version(self, telemetries: Json | None = None) -> Json:
        """Return the body of the management API's creation call."""
        more: Json = {"telemetries": telemetries} if telemetries else {}
        if self.secrets:
            more["secrets"] = list(self.secrets)
        if self.inference_url is not None:
            more["inferenceUrl"] = self.inference_url
        if self.artifact is not None:
            return {"name": self.name, **more, **self.artifact.members()}
        if self.file is None:
            raise UsageError("there is nothing to deploy: give a file or --image")
        return {
            "name": self.name,
            **more,
            "process": {
                "python": str(self.python),
                "file": str(self.file),
                "handler": self.handler,
                "workingDirectory": str(self.file if self.file.is_dir() else self.file.parent),
                "environment": self.environment,
            },
        }


def split_target(target: str) -> tuple[str, str | None]:
    """Split `FILE:NAME`; without a Python name after the last colon all of it is the file."""
    file, colon, name = target.rpartition(":")
    return (file, name) if colon and file and name.isidentifier() else (target, None)


def name_from_file(file: Path) -> str:
    """Return a function's name made from its file's, or its folder's for a file called `function`."""
    stem = file.parent.name if file.stem in ("function", "main", "app", "__main__") else file.stem
    name = re.sub(r"[^a-zA-Z0-9_.-]", "-", stem).lstrip("_.-")[:128]
    return name or "function"


def parse_environment(pairs: Iterable[str]) -> dict[str, str]:
    """Read `K=V` texts; `K` alone takes the value from this process. Raises `UsageError`."""
    environment = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UsageError(f"--env {pair}: NAME=VALUE expected")
        if not separator:
            if name not in os.environ:
                raise UsageError(f"--env {name}: there is no such variable here, give NAME=VALUE")
            value = os.environ[name]
        environment[name] = value
    return environment


def find_python(python: str | None) -> Path:
    """Return the function's interpreter: the given one, else this one. Raises `UsageError`."""
    if python is None:
        return Path(sys.executable)
    found = shutil.which(python)
    if found is None:
        raise UsageError(f"--python {python}: there is no such program")
    # Not resolved: a virtual environment's interpreter is a link, and its place is what matters.
    return Path(found).absolute()


def find_file(text: str) -> Path:
    """Return the function's file. Raises `UsageError` if there is none."""
    path = Path(text).expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"there is no file {text}")
    return path


def find_model_repository(text: str, models: Sequence[str]) -> tuple[Path, str]:
    """Return a model repository's folder, and the path of the first model's inference.

    models: `NAME[:VERSION]`; none: all in the folder. Raises `UsageError`.
    """
    path = Path(text).expanduser().resolve()
    found = sorted(each.name for each in path.iterdir() if each.is_dir()) if path.is_dir() else []
    if not found:
        raise UsageError(f"{text} is no model repository: a folder with a folder for each model expected")
    wanted = [each.partition(":")[0] for each in models]
    for each in wanted:
        if each not in found:
            raise UsageError(f"--model {each}: {text} has {', '.join(found)}")
    return path, f"/v2/models/{(wanted or found)[0]}/infer"


def check_name(name: str, option: str = "--name") -> str:
    """Return the name. Raises `UsageError`, which names `option`, for one that the platform refuses."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(f"{option} {name}: letters, digits, '_', '.' and '-' only, a letter or digit first")
    return name


@dataclass(frozen=True)
class Progress:
    """How far the instances of a version are. `failure` is set once one of them died."""

    ready: int
    text: str
    failure: str | None = None
    log_path: str | None = None


def progress_of(instances: list[Json], wanted: int) -> Progress:
    """Read the instance records of a version that is being deployed."""
    ready = sum(each.get("state") == "RUNNING" for each in instances)
    waiting = None
    for each in instances:
        reason = str(each.get("reason") or "")
        category, text = split_reason(reason) if each.get("state") == "FAILED" else ("", reason)
        if not reason or each.get("state") not in ("FAILED", "STARTING", "PENDING"):
            continue
        if category in _ELSEWHERE or each.get("state") == "PENDING" or reason.startswith(WAITING):
            waiting = text.removeprefix(WAITING).split("\n")[0]
            continue
        # A dead process is started again at once: its record says STARTING, and still carries the reason.
        return Progress(ready, "failed", text, each.get("logPath"))
    if ready < wanted and waiting is not None:
        return Progress(ready, f"waiting: {waiting}")
    if not instances:
        return Progress(0, NO_INSTANCE)
    return Progress(ready, f"starting ({ready} of {wanted} ready)" if wanted > 1 else "starting")


def split_reason(reason: str) -> tuple[str, str]:
    """Split a failed instance's reason, `CATEGORY: text`; without a category the first part is empty."""
    category, separator, text = reason.partition(": ")
    plain = category.replace("-", "")
    return (category, text) if separator and plain.isalpha() and plain.islower() else ("", reason)


@dataclass(frozen=True)
class Deployed:
    """The outcome: ids, seconds until ready (None if not waited for), number of old versions ended.

    `missing` are secrets that the version before has and this one has not. `warning`: why no call would be
    answered now.
    """

    name: str
    function_id: str
    version_id: str
    seconds: float | None
    replaced: int
    missing: tuple[str, ...] = ()
    warning: str | None = None


class DeployFailed(CliError):
    """An instance died before it was ready; `words` are its last lines."""

    def __init__(self, text: str, words: list[str]) -> None:
        super().__init__(text)
        self.words = words


async def deploy(
    api: Api, request: DeployRequest, *, wait: bool, timeout: float, show: Callable[[str], None]
) -> Deployed:
    """Make a version, deploy it, wait until it serves, then end the function's earlier versions.

    If it does not come up it is taken back, and what served before goes on serving. Raises `CliError`.
    """
    began = time.monotonic()
    known = find_function(await api.functions(), request.name)
    telemetries = reference(chosen(await api.telemetries(), request.telemetry)) if request.telemetry else None
    version = await api.create_version(request.version(telemetries), known.id if known else None)
    function_id, version_id = str(version["id"]), str(version["versionId"])
    show("deploying")
    scale, groups = request.scale, await _groups(api)
    if scale.instance_type is None:
        scale = replace(scale, instance_type=usual_type(scale, groups, is_image=request.file is None))
    await api.deploy(function_id, version_id, scale.deployment())
    seconds = None
    if wait and request.scale.minimum:
        try:
            await _wait_ready(api, version_id, request.scale.minimum, timeout, show)
        except DeployFailed:
            await _take_back(api, function_id, version_id)
            raise
        seconds = time.monotonic() - began
    replaced = 0
    for old in known.deployed if known else ():
        show("ending the version before")
        replaced += await api.undeploy(function_id, str(old["versionId"]))
    missing = missing_secrets(known, request)
    warning = None if seconds is not None else no_place(scale, groups)
    return Deployed(request.name, function_id, version_id, seconds, replaced, missing, warning)


async def _groups(api: Api) -> list[Json] | None:
    try:
        return list(objects(await api.call("GET", "/v2/nvcf/clusterGroups"), "clusterGroups"))
    except ApiProblem:
        # A key that deploys need not be one that lists.
        return None


def missing_secrets(known: Found | None, request: DeployRequest) -> tuple[str, ...]:
    """Return the secrets of the version before that the new one is not given. Pure."""
    before = known.newest.get("secrets") if known else None
    given = {each["name"] for each in request.secrets}
    return tuple(sorted(set(before or ()) - given))


async def _wait_ready(
    api: Api, version_id: str, wanted: int, timeout: float, show: Callable[[str], None]
) -> None:
    text = "waiting"
    try:
        async with asyncio.timeout(timeout):
            while True:
                progress = progress_of(await api.instances(version_id), wanted)
                if progress.ready >= wanted:
                    return
                text = progress.text
                if text == NO_INSTANCE:
                    decisions = await api.events(version_id, kind="scaling", limit=1)
                    why = [decision_text(each)[1].partition("\n")[0] for each in decisions]
                    if not why:
                        # Nobody has decided anything about it: perhaps nobody does.
                        why = [str(each.get("detail")) for each in await api.troubles()]
                    text = f"waiting: {why[0]}" if why and why[0] else text
                if progress.failure is not None:
                    how, *words = progress.failure.split("\n")
                    log = f"; its log: {progress.log_path}" if progress.log_path else ""
                    raise DeployFailed(f"the function does not start: {how}{log}", words)
                show(text)
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise CliError(
            f"not ready after {timeout:g} s ({text}): see nvcf scaling, nvcf instances and nvcf logs"
        ) from None


async def _take_back(api: Api, function_id: str, version_id: str) -> None:
    await api.undeploy(function_id, version_id)
    try:
        await api.delete_version(function_id, version_id)
    except ApiProblem:
        # It stays listed as inactive. The user needs to see the first failure, not this one.
        return
