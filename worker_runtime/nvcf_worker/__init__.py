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
    from nvcf_worker.function.adaptive import Adaptive
    from nvcf_worker.function.app import App
    from nvcf_worker.function.limit import Limit
    from nvcf_worker.function.request import Request, SyncRequest
    from nvcf_worker.function.response import Response
    from nvcf_worker.function.secrets import secrets
    from nvcf_worker.function.typed.binding import Query
    from nvcf_worker.run.batching.continuous_decorator import continuous_batch
    from nvcf_worker.run.batching.decorator import batch
    from nvcf_worker.run.batching.settings import Finished
    from nvcf_worker.serving import serve
    from nvcf_worker.sidecar_command import sidecar
    from nvcf_worker.tasks.context import Task
    from nvcf_worker.tasks.running import task
    from nvcf_worker.telemetry.tokens import tokens

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
    "Adaptive": "function.adaptive",
    "App": "function.app",
    "BadInput": "errors",
    "BatchError": "errors",
    "BodyUnavailable": "errors",
    "Fatal": "errors",
    "Finished": "run.batching.settings",
    "FunctionError": "errors",
    "InvalidInput": "errors",
    "Limit": "function.limit",
    "NotFound": "errors",
    "Query": "function.typed.binding",
    "Request": "function.request",
    "RequestCancelled": "errors",
    "Response": "function.response",
    "RetryLater": "errors",
    "SyncRequest": "function.request",
    "Task": "tasks.context",
    "WorkerError": "errors",
    "batch": "run.batching.decorator",
    "continuous_batch": "run.batching.continuous_decorator",
    "secrets": "function.secrets",
    "serve": "serving",
    "sidecar": "sidecar_command",
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
