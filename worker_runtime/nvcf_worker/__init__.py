"""Serve functions from a durable queue.

    from nvcf_worker import serve

    def handler(request):
        return {"hello": request.json()["name"]}

    serve(handler)

Nothing heavy is imported before `serve` runs.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvcf_worker.errors import (
        BadInput,
        Fatal,
        FunctionError,
        HTTPError,
        InvalidInput,
        NotFound,
        RequestCancelled,
        RetryLater,
    )
    from nvcf_worker.function.adaptive import Adaptive
    from nvcf_worker.function.app import App
    from nvcf_worker.function.headers import Headers
    from nvcf_worker.function.limit import Limit
    from nvcf_worker.function.request import Asset, Caller, Request, SyncRequest
    from nvcf_worker.function.response import Response
    from nvcf_worker.function.secrets import secret, secrets
    from nvcf_worker.function.typed.binding import Query
    from nvcf_worker.llm_command import llm_engine
    from nvcf_worker.run.batching.continuous_decorator import continuous_batch
    from nvcf_worker.run.batching.decorator import batch
    from nvcf_worker.run.batching.settings import Finished
    from nvcf_worker.serving import serve
    from nvcf_worker.sidecar_command import sidecar
    from nvcf_worker.tasks.context import Task
    from nvcf_worker.tasks.running import task
    from nvcf_worker.telemetry.tokens import tokens
    from nvcf_worker.testing.client import TestClient
    from nvcf_worker.triton_command import triton_server

__all__ = [
    "Adaptive",
    "App",
    "Asset",
    "BadInput",
    "Caller",
    "Fatal",
    "Finished",
    "FunctionError",
    "HTTPError",
    "Headers",
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
    "TestClient",
    "batch",
    "continuous_batch",
    "llm_engine",
    "secret",
    "secrets",
    "serve",
    "sidecar",
    "task",
    "tokens",
    "triton_server",
]

_HOME = {
    "Adaptive": "function.adaptive",
    "App": "function.app",
    "Asset": "function.request",
    "BadInput": "errors",
    "Caller": "function.request",
    "Fatal": "errors",
    "Finished": "run.batching.settings",
    "FunctionError": "errors",
    "HTTPError": "errors",
    "Headers": "function.headers",
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
    "TestClient": "testing.client",
    "batch": "run.batching.decorator",
    "continuous_batch": "run.batching.continuous_decorator",
    "llm_engine": "llm_command",
    "secret": "function.secrets",
    "secrets": "function.secrets",
    "serve": "serving",
    "sidecar": "sidecar_command",
    "task": "tasks.running",
    "tokens": "telemetry.tokens",
    "triton_server": "triton_command",
}

_DEPRECATED = frozenset(("BatchError", "BodyUnavailable", "WorkerError"))
"""Names of an earlier release; they are in nvcf_worker.errors."""


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if name in _DEPRECATED:
        warnings.warn(
            f"import {name} from nvcf_worker.errors; the next release of nvcf_worker exports it no more",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(import_module(f"{__name__}.errors"), name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
