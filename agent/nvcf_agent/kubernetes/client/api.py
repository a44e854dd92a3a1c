"""Calls to the Kubernetes API server, with objects as it has them: plain JSON.

Every call has a deadline and raises `ApiError`. Nothing is tried again here.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

import msgspec

from nvcf_agent.kubernetes.client.connection import CALL_SECONDS, JSON, Connection
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import POD, Kind

Object = dict[str, Any]

FIELD_MANAGER = "nvcf-agent"
PAGE = 500
# A watch ends at the server by then; silence for longer than that and the slack is a lost connection.
WATCH_SECONDS = 60.0
WATCH_SLACK_SECONDS = 10.0

_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_MISSING = "NotFound"


@dataclass(frozen=True)
class Listed:
    """Objects of one kind, and the version of the whole list, from which a watch goes on."""

    items: list[Object]
    version: str


@dataclass(frozen=True)
class Seen:
    """What a watch tells. `change` is ADDED, MODIFIED, DELETED or BOOKMARK."""

    change: str
    object: Object


class Api:
    """Reads and writes objects. The namespace of a written object is that in its metadata.

    It changes something only while `leads` returns true.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.leads: Callable[[], bool] = lambda: True

    @classmethod
    async def open(cls, kubeconfig: str | None = None) -> Self:
        """Return the API of a kubeconfig, else of the agent's own cluster. Raises `AgentError`."""
        return cls(await Connection.open(kubeconfig))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object | None:
        """Return an object, or None if there is none."""
        try:
            return await self.read(kind.path(namespace, name))
        except ApiError as error:
            if _is_absent(error):
                return None
            raise

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: str | None = None,
        fields: str | None = None,
    ) -> Listed:
        """Return all objects that have these labels and fields. It reads pages, all of one moment."""
        wanted = {"labelSelector": labels} if labels else {}
        wanted |= {"fieldSelector": fields} if fields else {}
        items: list[Object] = []
        page: dict[str, str] = {"limit": str(PAGE)}
        while True:
            try:
                body = await self._connection.call("GET", kind.path(namespace), wanted | page)
            except ApiError as error:
                if error.status != HTTPStatus.GONE or not page:
                    raise
                # The moment of the pages is forgotten. One answer with all has no such trouble.
                items, page = [], {}
                continue
            answer = _object(body)
            for each in answer["items"]:
                # The items of a list do not say what they are.
                items.append({"apiVersion": kind.api_version, "kind": kind.kind} | each)
            metadata = answer["metadata"]
            if not metadata.get("continue"):
                return Listed(items, metadata["resourceVersion"])
            page = {"limit": str(PAGE), "continue": metadata["continue"]}

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: str | None = None,
        version: str,
        seconds: float = WATCH_SECONDS,
        slack: float = WATCH_SLACK_SECONDS,
    ) -> AsyncGenerator[Seen]:
        """Yield the changes after a version until the server ends the watch, after about `seconds`.

        Raises `ApiError`, with status 410 if the version is too old, and with 0 if nothing ends the watch
        in time. To be closed when it is not read to its end.
        """
        query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version}
        query["timeoutSeconds"] = str(max(1, round(seconds)))
        if labels:
            query["labelSelector"] = labels
        stream = self._connection.stream("GET", kind.path(namespace), query, deadline=seconds + slack)
        async with stream as answer:
            async for line in answer.content:
                told = _object(line)
                if told["type"] == "ERROR":
                    status = told["object"]
                    raise ApiError(
                        int(status.get("code") or HTTPStatus.INTERNAL_SERVER_ERROR),
                        str(status.get("reason") or ""),
                        str(status.get("message") or "the watch failed"),
                    )
                yield Seen(told["type"], told["object"])

    async def create(self, kind: Kind, body: Object) -> Object:
        """Create an object. `ApiError.is_conflict` if it exists."""
        path = kind.path(body["metadata"].get("namespace"))
        return _object(await self._change("POST", path, _typed(kind, body)))

    async def apply(self, kind: Kind, body: Object, *, part: str | None = None, force: bool = True) -> Object:
        """Create or change an object so that these fields are so, and those applied before are gone.

        `part` is a subresource, such as `status`. Without `force`, fields of others are a conflict.
        """
        path = kind.path(body["metadata"].get("namespace"), body["metadata"]["name"], part)
        return _object(
            await self._change("PATCH", path, _typed(kind, body), _APPLY, force=str(force).lower())
        )

    async def apply_all(self, objects: Iterable[tuple[Kind, Object]]) -> None:
        """Apply objects that need nothing of each other, at the same time."""
        results = await asyncio.gather(*(self.apply(*each) for each in objects), return_exceptions=True)
        for failure in results:
            if isinstance(failure, BaseException):
                raise failure

    async def patch(
        self, kind: Kind, name: str, namespace: str | None, patch: Object, *, part: str | None = None
    ) -> Object:
        """Change an object by a JSON merge patch. A `resourceVersion` in it that is not the present one is
        a conflict.
        """
        return _object(await self._change("PATCH", kind.path(namespace, name, part), patch, _MERGE))

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str | None = None,
        *,
        grace: float | None = None,
        uid: str | None = None,
    ) -> bool:
        """Ask for the deletion of an object, of this `uid` only if given. Return False if it is not there."""
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if grace is not None:
            options["gracePeriodSeconds"] = round(grace)
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            await self._change("DELETE", kind.path(namespace, name), options)
        except ApiError as error:
            # With a uid, a conflict says that another object has the name now.
            if _is_absent(error) or (error.is_conflict and uid is not None):
                return False
            raise
        return True

    async def logs(self, name: str, namespace: str, container: str, *, lines: int, limit_bytes: int) -> str:
        """Return the last lines of a container's output."""
        query = {"container": container, "tailLines": str(lines), "limitBytes": str(limit_bytes)}
        body = await self._connection.call("GET", POD.path(namespace, name, "log"), query)
        return body.decode(errors="replace")

    async def version(self) -> str:
        """Return the version of Kubernetes, such as v1.35.4."""
        return str((await self.read("/version"))["gitVersion"])

    async def read(self, path: str, *, deadline: float = CALL_SECONDS) -> Object:
        """Return the JSON object at a path that is of no kind, such as `/apis`."""
        return _object(await self._connection.call("GET", path, deadline=deadline))

    async def _change(
        self, method: str, path: str, body: Object, content_type: str = JSON, **query: str
    ) -> bytes:
        if not self.leads():
            raise ApiError(0, "NotLeader", "nothing is changed without the lease")
        manager = {} if method == "DELETE" else {"fieldManager": FIELD_MANAGER}
        return await self._connection.call(method, path, manager | query, body, content_type=content_type)


def _is_absent(error: ApiError) -> bool:
    # The answer to a kind that the server does not know has no reason.
    return error.is_missing and error.reason == _MISSING


def _typed(kind: Kind, body: Object) -> Object:
    return {"apiVersion": kind.api_version, "kind": kind.kind} | body


def _object(body: bytes) -> Object:
    try:
        return msgspec.json.decode(body, type=Object)
    except msgspec.MsgspecError as error:
        raise ApiError(0, "NotJSON", f"the API server's answer is no JSON object: {error}") from error
