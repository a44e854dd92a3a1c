"""`helm` as a child process: renders a chart, and nothing else.

The agent renders with `helm template` and applies the checked objects itself, as NVIDIA's agent does. It does
not run `helm install` with a post-renderer, because

- a post-renderer is a program that helm calls in the middle of its work: what it refuses leaves a failed
  release behind, and its reasons come back as text between helm's own;
- a killed `helm install` leaves a pending release that blocks the next one. Objects that are applied one by
  one can be applied again at any time, so a killed agent just goes on;
- helm then needs neither rights nor an address of the API server.

The price is that hooks do not run. Each call has folders of its own, none of the agent's variables, a
deadline, and bounds for its output and memory.
"""

import asyncio
import json
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvcf_agent.errors import AgentError
from nvcf_agent.kubernetes.helm.errors import ChartError, ChartUnavailable
from nvcf_broker.errors import ProcessError
from nvcf_broker.process import describe_exit, signal_group, spawn, stop_process, wait_exit

PROGRAM_VARIABLE = "NVCF_HELM"
SECONDS = 60.0
GRACE_SECONDS = 1.0
MOST_OUTPUT = 8 * 2**20
_MOST_ERRORS = 64 * 2**10
_MOST_SHOWN = 2000
# Go reserves more address space than it uses.
_MOST_MEMORY = 2 * 2**30
_MAJOR = 4


@dataclass(frozen=True)
class Release:
    """What a chart is rendered for: `.Release`, `.Capabilities`, and its values."""

    name: str
    namespace: str
    values: Mapping[str, Any]
    kube_version: str = ""
    api_versions: Sequence[str] = ()


@dataclass(frozen=True)
class Helm:
    """The program helm 4. `seconds` is the deadline of a call."""

    program: str
    seconds: float = SECONDS

    @classmethod
    def find(cls) -> "Helm | None":
        """Return helm from NVCF_HELM or PATH; None if there is none."""
        found = os.environ.get(PROGRAM_VARIABLE) or shutil.which("helm")
        return cls(found) if found else None

    async def check(self) -> None:
        """Raise `AgentError` if it cannot be run, or is another version than helm 4."""
        version = (await self._run(["version", "--template", "{{.Version}}"])).strip()
        if not version.startswith(f"v{_MAJOR}."):
            raise AgentError(f"{self.program} is helm {version}; version {_MAJOR} is needed")

    async def template(self, chart: bytes, release: Release) -> str:
        """Render a chart, given as its `.tgz`. Raises `ChartError` and `ChartUnavailable`."""
        options = ["--namespace", release.namespace, "--values", "values.json", "--skip-tests"]
        if release.kube_version:
            options += ["--kube-version", release.kube_version]
        if release.api_versions:
            options += ["--api-versions", ",".join(release.api_versions)]
        files = {"chart.tgz": chart, "values.json": json.dumps(release.values).encode()}
        return await self._run(["template", release.name, "chart.tgz", *options], files)

    async def _run(self, arguments: Sequence[str], files: Mapping[str, bytes] | None = None) -> str:
        home = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="nvcf-helm-"))
        try:
            for name, content in (files or {}).items():
                await asyncio.to_thread((home / name).write_bytes, content)
            return await self._output_of(arguments, home)
        except OSError as error:
            raise ChartUnavailable(f"cannot prepare a folder for helm: {error}") from error
        finally:
            await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)

    async def _output_of(self, arguments: Sequence[str], home: Path) -> str:
        try:
            process = await spawn(
                [self.program, *arguments],
                env=_environment(home),
                cwd=home,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except ProcessError as error:
            raise ChartUnavailable(str(error)) from error
        try:
            _limit_memory(process.pid)
            async with asyncio.timeout(self.seconds):
                output, errors = await asyncio.gather(
                    _read(process, process.stdout, MOST_OUTPUT), _read(process, process.stderr, _MOST_ERRORS)
                )
                code = await wait_exit(process)
        except TimeoutError:
            raise ChartError(
                f"helm {arguments[0]} took longer than {self.seconds:g} s: make the chart simpler"
            ) from None
        finally:
            await stop_process(process, GRACE_SECONDS)
        if len(output) > MOST_OUTPUT:
            raise ChartError(f"the chart renders more than {MOST_OUTPUT // 2**20} MiB: make it smaller")
        if code != 0:
            text = _explained(errors.decode(errors="replace"), home)
            raise ChartError(text or f"helm {arguments[0]}: {describe_exit(code)}")
        return output.decode(errors="replace")


def _environment(home: Path) -> dict[str, str]:
    own = {f"HELM_{name}_HOME": str(home / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
    return {
        "HOME": str(home),
        "TMPDIR": str(home),
        "HELM_PLUGINS": str(home / "plugins"),
        "KUBECONFIG": os.devnull,
        "GOMEMLIMIT": str(_MOST_MEMORY // 4),
        **own,
    }


def _limit_memory(pid: int) -> None:
    try:
        resource.prlimit(pid, resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    except (AttributeError, OSError):
        # Not on this system, or it has ended already: its exit code says the rest.
        return


async def _read(process: asyncio.subprocess.Process, stream: asyncio.StreamReader | None, most: int) -> bytes:
    """Return all of a stream. A process that writes more than `most` bytes is killed."""
    found = bytearray()
    while stream is not None and (chunk := await stream.read(65_536)):
        found += chunk
        if len(found) > most:
            signal_group(process.pid, signal.SIGKILL)
            break
    return bytes(found)


def _explained(errors: str, home: Path) -> str:
    """Return helm's own reason, without the folder of the call."""
    if "fatal error: out of memory" in errors:
        return f"the chart needs more than {_MOST_MEMORY // 2**30} GiB to render: make it simpler"
    lines = [line for line in errors.splitlines() if line.strip() and not line.startswith("Use --debug")]
    first = next((number for number, line in enumerate(lines) if line.startswith("Error:")), 0)
    return "\n".join(lines[first:]).replace(f"{home}/", "").removeprefix("Error: ")[:_MOST_SHOWN]
