"""Which of Triton's HTTP calls a function's callers may not make. No I/O."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import unquote

_ADMINISTRATION = re.compile(r"/v2(/models/[^/]+(/versions/[^/]+)?)?/(trace|logging)(/|$)", re.IGNORECASE)
_SHARED_MEMORY = re.compile(r"/v2/(system|cuda)sharedmemory(/|$)", re.IGNORECASE)
_REPOSITORY = re.compile(r"/v2/repository(/|$)", re.IGNORECASE)


def refusal(method: str, target: str, *, model_control: bool) -> str | None:
    """Return why a call is refused, or None if it is passed on.

    The path is read as generously as possible: however it is written, it is recognised.
    """
    if method in ("GET", "HEAD"):
        return None
    path = posixpath.normpath("/" + unquote(target.partition("?")[0]).lstrip("/"))
    if _REPOSITORY.match(path) and not model_control:
        return "Callers may not use the model repository (nvcf-worker triton --allow-model-control)."
    if _SHARED_MEMORY.match(path):
        return "Callers may not use shared memory: they are on another machine."
    if _ADMINISTRATION.match(path):
        return "Callers may not change the settings of the server."
    return None
