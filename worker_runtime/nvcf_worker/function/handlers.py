"""Checks a handler that was given to `serve`, and how to run it."""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from nvcf_worker.errors import HandlerError
from nvcf_worker.function.loading import Loading, of_class, of_instance
from nvcf_worker.function.typed.binding import bound, plan_of

if TYPE_CHECKING:
    from nvcf_worker.function.limit import Limit


class Kind(enum.Enum):
    """How a handler is run: on a thread or on the event loop."""

    SYNC = "sync"
    ASYNC = "async"


class Router(Protocol):
    """Chooses between the handlers of several routes."""

    def match(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """Return a request's handler and its path parameters. Raises NotFound and MethodNotAllowed."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A checked handler. `media_type` is the default Content-Type of its responses.

    loading: objects to set up before the first request. router: chooses between several handlers. limit: on
    this handler's own requests in flight. elsewhere: whether it only passes requests to other processes.
    takes_polls: whether polls are passed on to it once it has answered 202.
    """

    call: Callable[[Any], Any]
    kind: Kind
    media_type: str | None
    name: str
    loading: tuple[Loading, ...] = ()
    router: Router | None = None
    limit: Limit | None = None
    elsewhere: bool = False
    takes_polls: bool = False

    def select(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """Return the handler for a request, and its path parameters. Raises NotFound, MethodNotAllowed."""
        return (self, {}) if self.router is None else self.router.match(method, path)


def classify(
    handler: object,
    media_type: str | None = None,
    *,
    path_names: Collection[str] = (),
    from_query: bool = False,
) -> Handler:
    """Check a handler and find out how to run it.

    Plain functions and generators run on threads, coroutine functions and async generators on the
    loop, and so do wrappers around them. `functools.partial`, bound methods and instances with
    `__call__` may be given; of a class one instance is created when the worker starts. `path_names`
    and `from_query` say where a route's typed parameters come from. Raises HandlerError for anything
    that cannot be called with one request.
    """
    as_handler = getattr(handler, "_as_handler", None)
    if as_handler is not None and not isinstance(handler, type):
        made: Handler = as_handler(media_type)
        return made
    if isinstance(handler, type):
        loading: Loading | None = of_class(handler)
        inner = inspect.getattr_static(handler, "__call__")
        if isinstance(inner, staticmethod | classmethod):
            inner = inner.__get__(None, handler)
        name = handler.__name__
    elif callable(handler):
        loading = of_instance(handler)
        inner = _unwrap(handler)
        name = getattr(inner, "__qualname__", type(handler).__name__)
    else:
        raise HandlerError(f"a handler must be callable; got {type(handler).__name__}")
    # Of a class, its instances are called; of anything else all layers count.
    loops = runs_on_loop(inner if isinstance(handler, type) else handler)
    signature = _signature(handler, inner)
    plan = plan_of(_annotated(handler, inner), signature, path_names=path_names, from_query=from_query)
    call: Callable[..., Any] = handler if loading is None else loading
    if plan is not None:
        call = bound(call, plan, loops=loops)
    return Handler(
        call, Kind.ASYNC if loops else Kind.SYNC, media_type, name, () if loading is None else (loading,)
    )


def _signature(handler: Callable[..., Any], inner: Callable[..., Any]) -> inspect.Signature | None:
    try:
        if not isinstance(handler, type):
            return inspect.signature(handler)
        signature = inspect.signature(inner)
    except ValueError:  # some built-in callables have no signature to check
        return None
    if inspect.ismethod(inner) or isinstance(inspect.getattr_static(handler, "__call__"), staticmethod):
        return signature
    # Of a class it is that of its method __call__, without self.
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def is_asgi(candidate: object) -> bool:
    """Return whether this is an ASGI 3 application: three parameters named scope, receive and send.

    Instances such as FastAPI's and Starlette's are recognised; others need `serve(asgi=...)`.
    """
    if isinstance(candidate, type) or not callable(candidate):
        return False
    try:
        parameters = list(inspect.signature(candidate).parameters)
    except (TypeError, ValueError):
        return False
    return parameters == ["scope", "receive", "send"]


def runs_on_loop(function: Callable[..., Any]) -> bool:
    """Return whether a call of the function makes a coroutine or an async generator.

    A wrapper counts as what it wraps: `functools.wraps`, `functools.partial` and decorated `__call__`
    methods are followed down to a function that is async. One that runs the coroutine itself is plain.
    """
    layer: Any = function
    followed: set[int] = set()
    while layer is not None and id(layer) not in followed:
        followed.add(id(layer))
        if (
            getattr(layer, "runs_on_loop", None) is True
            or inspect.iscoroutinefunction(layer)
            or inspect.isasyncgenfunction(layer)
        ):
            return True
        if _runs_coroutines(layer):
            return False
        layer = _next_layer(layer)
    return False


def _runs_coroutines(layer: Any) -> bool:
    """Return whether a function's own code has an event loop run something, as `asyncio.run` does."""
    code = getattr(layer, "__code__", None)
    if code is None:
        return False
    names = set(code.co_names)
    return "run_until_complete" in names or ("run" in names and not names.isdisjoint(("asyncio", "anyio")))


def _next_layer(layer: Any) -> Any:
    if isinstance(layer, functools.partial):
        return layer.func
    wrapped = getattr(layer, "__wrapped__", None)
    if wrapped is None and not inspect.isroutine(layer):
        return type(layer).__call__ if callable(layer) else None
    return wrapped


def _unwrap(handler: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(handler, functools.partial):
        handler = handler.func
    if inspect.isfunction(handler) or inspect.ismethod(handler) or inspect.isbuiltin(handler):
        return handler
    return type(handler).__call__


def _annotated(handler: Callable[..., Any], inner: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function whose annotations describe the signature that `inspect` finds."""
    source = inspect.unwrap(
        handler if hasattr(handler, "__wrapped__") else inner,
        stop=lambda layer: hasattr(layer, "__signature__"),
    )
    return _unwrap(source) if isinstance(source, functools.partial) else source
