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
    from nvcf_worker.batching.continuous_decorator import continuous_batch
    from nvcf_worker.batching.decorator import batch
    from nvcf_worker.batching.streams import Finished
    from nvcf_worker.errors import (
        BadInput,
        BatchError,
        BodyUnavailable,
        Fatal,
        FunctionError,
        InvalidInput,
        NotFound,
        RequestCancelled,
        RetryLater,
        WorkerError,
    )
    from nvcf_worker.limits.adaptive import Adaptive
    from nvcf_worker.limits.limit import Limit
    from nvcf_worker.proxy.command import sidecar
    from nvcf_worker.request import Request, SyncRequest
    from nvcf_worker.response import Response
    from nvcf_worker.routes import App
    from nvcf_worker.secret_files import secrets
    from nvcf_worker.serving import serve
    from nvcf_worker.tasks.context import Task
    from nvcf_worker.tasks.running import task
    from nvcf_worker.telemetry.tokens import tokens
    from nvcf_worker.typed.binding import Query

__all__ = [
    "Adaptive",
    "App",
    "BadInput",
    "BatchError",
    "BodyUnavailable",
    "Fatal",
    "Finished",
    "FunctionError",
    "InvalidInput",
    "Limit",
    "NotFound",
    "Query",
    "Request",
    "RequestCancelled",
    "Response",
    "RetryLater",
    "SyncRequest",
    "Task",
    "WorkerError",
    "batch",
    "continuous_batch",
    "secrets",
    "serve",
    "sidecar",
    "task",
    "tokens",
]

_HOME = {
    "Adaptive": "limits.adaptive",
    "App": "routes",
    "BadInput": "errors",
    "BatchError": "errors",
    "BodyUnavailable": "errors",
    "Fatal": "errors",
    "Finished": "batching.streams",
    "FunctionError": "errors",
    "InvalidInput": "errors",
    "Limit": "limits.limit",
    "NotFound": "errors",
    "Query": "typed.binding",
    "Request": "request",
    "RequestCancelled": "errors",
    "Response": "response",
    "RetryLater": "errors",
    "SyncRequest": "request",
    "Task": "tasks.context",
    "WorkerError": "errors",
    "batch": "batching.decorator",
    "continuous_batch": "batching.continuous_decorator",
    "secrets": "secret_files",
    "serve": "serving",
    "sidecar": "proxy.command",
    "task": "tasks.running",
    "tokens": "telemetry.tokens",
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
