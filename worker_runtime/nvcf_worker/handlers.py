"""What kind of handler was given to `serve`."""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nvcf_worker.errors import HandlerError


class Kind(enum.Enum):
    """How a handler is run: on a thread or on the event loop."""

    SYNC = "sync"
    ASYNC = "async"


@dataclass(frozen=True, slots=True)
class Handler:
    """A checked handler. `media_type` is the default Content-Type of its answers."""

    call: Callable[[Any], Any]
    kind: Kind
    media_type: str | None
    name: str


def classify(handler: object, media_type: str | None = None) -> Handler:
    """Check a handler and find out how to run it.

    Plain functions and generators run on threads, coroutine functions and async generators on the
    loop; `functools.partial`, bound methods and instances with `__call__` are looked through.
    Raises HandlerError for anything that cannot be called with one request.
    """
    if isinstance(handler, type):
        raise HandlerError(f"{handler.__name__} is a class; give serve() an instance or a function")
    if not callable(handler):
        raise HandlerError(f"a handler must be callable; got {type(handler).__name__}")
    try:
        inspect.signature(handler).bind(None)
    except TypeError as error:
        raise HandlerError(f"a handler takes one argument, the request: {error}") from error
    except ValueError:  # some built-in callables have no signature to check
        pass
    inner = _unwrap(handler)
    loops = inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)
    name = getattr(inner, "__qualname__", type(handler).__name__)
    return Handler(handler, Kind.ASYNC if loops else Kind.SYNC, media_type, name)


def _unwrap(handler: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(handler, functools.partial):
        handler = handler.func
    if inspect.isfunction(handler) or inspect.ismethod(handler) or inspect.isbuiltin(handler):
        return handler
    return type(handler).__call__
