"""Serve functions from a durable queue.

    from nvcf_worker import serve

    def handler(request):
        return {"hello": request.json()["name"]}

    serve(handler)

Nothing heavy is imported before `serve` runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvcf_worker.errors import BadInput, BodyUnavailable, FunctionError, RequestCancelled, WorkerError
    from nvcf_worker.request import Request, SyncRequest
    from nvcf_worker.response import Response
    from nvcf_worker.serving import serve

__all__ = [
    "BadInput",
    "BodyUnavailable",
    "FunctionError",
    "Request",
    "RequestCancelled",
    "Response",
    "SyncRequest",
    "WorkerError",
    "serve",
]

_HOME = {
    "BadInput": "errors",
    "BodyUnavailable": "errors",
    "FunctionError": "errors",
    "Request": "request",
    "RequestCancelled": "errors",
    "Response": "response",
    "SyncRequest": "request",
    "WorkerError": "errors",
    "serve": "serving",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
