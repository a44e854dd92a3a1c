"""A blocking client of the API server for the test cluster itself, with a deadline on each call."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
CALL_SECONDS = 30.0
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class ApiProblem(Exception):
    """The API server refused a call."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text}")
        self.status = status


class Client:
    """Calls with the certificate or the token of a kubeconfig file, or with another token."""

    def __init__(self, kubeconfig: Path, token: str | None = None) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"] if token is None else {"token": token}
        self.server: str = cluster["server"]
        self._headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        self._tls = ssl.create_default_context(
            cadata=_text(cluster, "certificate-authority", kubeconfig.parent)
        )
        if "client-certificate-data" in user or "client-certificate" in user:
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
                file.write(_text(user, "client-certificate", kubeconfig.parent) + "\n")
                file.write(_text(user, "client-key", kubeconfig.parent))
                file.flush()
                self._tls.load_cert_chain(file.name)

    def call(
        self, method: str, path: str, body: object = None, content_type: str = "application/json"
    ) -> Any:
        """Send a call, and return the decoded answer. Raises `ApiProblem` if refused, OSError if lost."""
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers if data is None else {**self._headers, "Content-Type": content_type}
        request = urllib.request.Request(self.server + path, data, headers, method=method)  # noqa: S310
        deadline = time.monotonic() + CALL_SECONDS
        while True:
            try:
                with urllib.request.urlopen(request, context=self._tls, timeout=CALL_SECONDS) as answer:  # noqa: S310
                    text, form = answer.read(), answer.headers.get_content_type()
                    break
            except urllib.error.HTTPError as error:
                # A kind that was just defined answers so for a moment.
                if error.code == HTTPStatus.TOO_MANY_REQUESTS and time.monotonic() < deadline:
                    time.sleep(0.2)
                    continue
                raise ApiProblem(error.code, error.read().decode(errors="replace")[:2000]) from error
        return json.loads(text) if form == "application/json" else text.decode(errors="replace")

    def get(self, path: str) -> Any:
        """Return what is at a path."""
        return self.call("GET", path)

    def find(self, path: str) -> Any:
        """Return what is at a path, or None if nothing is."""
        try:
            return self.get(path)
        except ApiProblem as problem:
            if problem.status == 404:
                return None
            raise

    def create(self, path: str, body: Object) -> Any:
        """Create an object in the collection at a path."""
        return self.call("POST", path, body)

    def patch(self, path: str, body: Object) -> Any:
        """Change an object by a JSON merge patch."""
        return self.call("PATCH", path, body, MERGE_PATCH)

    def apply(self, path: str, body: Object, manager: str, *, force: bool = False) -> Any:
        """Apply an object on the server's side, as `manager`."""
        query = f"?fieldManager={manager}&force={str(force).lower()}"
        return self.call("PATCH", path + query, body, APPLY_PATCH)

    def delete(self, path: str) -> bool:
        """Ask for the deletion of an object. Return False if it was not there."""
        try:
            self.call("DELETE", path)
        except ApiProblem as problem:
            if problem.status == 404:
                return False
            raise
        return True

    def delete_now(self, pod: Object) -> bool:
        """Delete a pod without grace. Return False if it was not there."""
        about = pod["metadata"]
        return self.delete(
            f"/api/v1/namespaces/{about['namespace']}/pods/{about['name']}?gracePeriodSeconds=0"
        )

    def ready(self) -> bool:
        """Return whether the API server can be reached and says that it is ready."""
        try:
            return bool(self.get("/readyz") == "ok")
        except (ApiProblem, OSError):
            return False


def _named(entries: list[Object], name: str) -> Object:
    return next(entry for entry in entries if entry["name"] == name)


def _text(entry: Object, key: str, folder: Path) -> str:
    """Return what a kubeconfig file has in it, or in a file that it names."""
    if f"{key}-data" in entry:
        return base64.b64decode(entry[f"{key}-data"]).decode()
    return (folder / str(entry[key])).read_text()
