"""Requests, responses and errors as payloads of frames."""

from __future__ import annotations

import contextlib
import pickle
import traceback
from collections.abc import Mapping
from typing import NamedTuple

from nvcf_worker.errors import Fatal, FunctionError, HandlerFailed, RequestCancelled, RetryLater
from nvcf_worker.function.request import Asset
from nvcf_worker.function.response import HeaderPairs
from nvcf_worker.process.logs import users_frames

KNOWN = (FunctionError, RetryLater, Fatal, RequestCancelled)
"""Errors that have a meaning for the worker. They keep their type on the way to it."""


class FilePlaces(NamedTuple):
    """Where the worker keeps a request's files: base directories, and the assets that were downloaded."""

    asset_base: str
    output_base: str
    assets: Mapping[str, Asset]
    carries_files: bool


class PackedRequest(NamedTuple):
    """A request on its way to a child. `body` is None if the child has to ask for it.

    It is a plain tuple with plain members, because those are pickled in a few microseconds.
    """

    message: bytes
    attempt: int
    received_at: float
    region: str
    trace: Mapping[str, str] | None
    method: str
    target: str
    sent: HeaderPairs | None
    body: bytes | None
    function_id: str
    version_id: str
    headers: HeaderPairs
    files: FilePlaces | None

    def pack(self) -> bytes:
        """Return the payload."""
        files = None if self.files is None else tuple(self.files)
        return pickle.dumps((*self[:-1], files), pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def unpack(payload: bytes) -> PackedRequest:
        """Read a payload."""
        *parts, files = pickle.loads(payload)  # noqa: S301 - from our own worker
        return PackedRequest._make((*parts, None if files is None else FilePlaces(*files)))


class PackedResponse(NamedTuple):
    """A complete response, or the start of a streamed one. `length` of the whole body is None if unknown."""

    status: int
    headers: HeaderPairs
    body: bytes
    length: int | None = None

    def pack(self) -> bytes:
        """Return the payload."""
        return pickle.dumps(tuple(self), pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def unpack(payload: bytes) -> PackedResponse:
        """Read a payload."""
        return PackedResponse(*pickle.loads(payload))  # noqa: S301 - from our own child


class ChildTraceback(Exception):
    """Carries the text of a traceback from a child to the worker's log."""

    def __str__(self) -> str:
        return f"in the child process:\n{self.args[0]}"


def pack_error(error: BaseException) -> bytes:
    """Return an error as a payload: errors in KNOWN with their type, others as text."""
    trace = "".join(traceback.format_exception(type(error), error, users_frames(error.__traceback__)))
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, KNOWN):
        # Not pickled as exceptions usually are, because that calls __init__ with `args`, which may not fit.
        # The user's class or a member may be one that cannot be pickled; the text can.
        with contextlib.suppress(Exception):
            parts = pickle.dumps((type(error), error.args, vars(error), text, trace))
            pickle.loads(parts)  # noqa: S301 - made on the line before
            return parts
    return pickle.dumps((None, (), {}, text, trace))


def unpack_error(payload: bytes) -> BaseException:
    """Return the error of a payload; HandlerFailed with text and traceback if its type is not in KNOWN."""
    try:
        kind, arguments, members, text, trace = pickle.loads(payload)  # noqa: S301 - from our own child
    except Exception as problem:  # noqa: BLE001 - a class that only the child can import
        return HandlerFailed(f"the handler raised an error that cannot be unpickled: {problem}")
    if kind is None:
        error: BaseException = HandlerFailed(text)
        error.__cause__ = ChildTraceback(trace)
        return error
    error = kind.__new__(kind)
    error.args = arguments
    error.__dict__.update(members)
    return error
