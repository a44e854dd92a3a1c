"""The body of a request: what the queue message carries, then the rest from the gateway on demand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from nvcf_worker.errors import BodyUnavailable, RequestCancelled


class Download(Protocol):
    """An open GET on `request-attach`."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def close(self) -> None:
        """Close the connection; a reader fails from then on."""


Opener = Callable[[], Awaitable[Download]]


class RequestBody:
    """Read once, whole or as a stream. Nothing is fetched before a handler asks for it.

    download: one that has begun already and that `opener` will return; `abort` closes it, read or not.
    `whole` is the complete body if it is here already.
    """

    __slots__ = ("_aborted", "_download", "_inline", "_opener", "_streamed", "whole")

    def __init__(self, inline: bytes, opener: Opener | None, download: Download | None = None) -> None:
        self._inline = inline
        self._opener = opener
        self._download = download
        self.whole: bytes | None = inline if opener is None else None
        self._streamed = False
        self._aborted = False

    async def read(self) -> bytes:
        """Return the complete body. Raises BodyUnavailable when the gateway cannot supply it."""
        if self.whole is None:
            self.whole = b"".join([chunk async for chunk in self.stream()])
        return self.whole

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the body in chunks as they arrive. Raises BodyUnavailable; RuntimeError the second time."""
        if self.whole is not None or self._opener is None:
            if self.whole:
                yield self.whole
            return
        if self._streamed:
            raise RuntimeError("the request body has been streamed already")
        self._streamed = True
        if self._inline:
            yield self._inline
        download = self._download = await self._opener()
        if self._aborted:
            download.close()
        try:
            async for chunk in download:
                yield chunk
        except BodyUnavailable:
            if self._aborted:
                raise RequestCancelled("the request was cancelled while its body was read") from None
            raise
        finally:
            download.close()
            self._download = None

    def abort(self) -> None:
        """Stop a download that is under way: its reader gets RequestCancelled."""
        self._aborted = True
        if self._download is not None:
            self._download.close()
