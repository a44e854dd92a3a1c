"""Requests, answers and errors as payloads of frames."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Mapping
from typing import NamedTuple

from nvcf_worker.errors import Fatal, FunctionError, HandlerFailed, RequestCancelled, RetryLater
from nvcf_worker.function.request import Asset
from nvcf_worker.function.response import HeaderPairs

KNOWN = (FunctionError, RetryLater, Fatal, RequestCancelled)
"""Errors that mean something to the worker and cross over as they are."""


class FilePlaces(NamedTuple):
    """Where the worker keeps a request's files: bases of the directories, and the assets that are there."""

    asset_base: str
    output_base: str
    assets: Mapping[str, Asset]
    carries_files: bool


class Start(NamedTuple):
    """A request on its way to a child. `body` is None when the child has to ask for it.

    A plain tuple and plain parts, which pickle in a few microseconds.
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
        """As a payload."""
        files = None if self.files is None else tuple(self.files)
        return pickle.dumps((*self[:-1], files), pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def unpack(payload: bytes) -> Start:
        """From a payload."""
        *parts, files = pickle.loads(payload)  # noqa: S301 - from our own worker
        return Start._make((*parts, None if files is None else FilePlaces(*files)))


class Answer(NamedTuple):
    """A complete answer, or the beginning of a streamed one; `length` of the whole body where it is known."""

    status: int
    headers: HeaderPairs
    body: bytes
    length: int | None = None

    def pack(self) -> bytes:
        """As a payload."""
        return pickle.dumps(tuple(self), pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def unpack(payload: bytes) -> Answer:
        """From a payload."""
        return Answer(*pickle.loads(payload))  # noqa: S301 - from our own child


class ChildTraceback(Exception):
    """Carries the text of a traceback from a child into the worker's log."""

    def __str__(self) -> str:
        return f"in the child process:\n{self.args[0]}"


def pack_error(error: BaseException) -> bytes:
    """An error as a payload: those that the worker knows as they are, others as text."""
    trace = "".join(traceback.format_exception(error))
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, KNOWN):
        # Not pickled as exceptions are, which would call __init__ with `args`: subclasses may want others.
        try:
            parts = pickle.dumps((type(error), error.args, vars(error), text, trace))
            pickle.loads(parts)  # noqa: S301 - made on the line before
        except Exception:  # noqa: BLE001 - a user's class or argument that cannot cross; the text can
            return pickle.dumps((None, (), {}, text, trace))
        return parts
    return pickle.dumps((None, (), {}, text, trace))


def unpack_error(payload: bytes) -> BaseException:
    """The error of a payload; HandlerFailed, with its text and traceback, where only the child knows it."""
    try:
        kind, arguments, members, text, trace = pickle.loads(payload)  # noqa: S301 - from our own child
    except Exception as problem:  # noqa: BLE001 - a class that only the child knows
        return HandlerFailed(f"the handler raised an error that cannot be told: {problem}")
    if kind is None:
        error: BaseException = HandlerFailed(text)
        error.__cause__ = ChildTraceback(trace)
        return error
    error = kind.__new__(kind)
    error.args = arguments
    error.__dict__.update(members)
    return error
