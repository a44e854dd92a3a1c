"""Errors on the wire: `application/problem+json` (RFC 9457) with the contract's type URNs.

See protocol.md, section 3.5.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from nvcf_proto.errors import ContractError

Source = Literal["nvcf-worker-service", "inference-service", "inference-connection", "nv-boot"]

_NOT_KEBAB = re.compile(r"[^a-z0-9]+")


def kebab(title: str) -> str:
    """Return `Too Many Deliveries` as `too-many-deliveries`."""
    return _NOT_KEBAB.sub("-", title.lower()).strip("-")


def reason_phrase(status: int) -> str:
    """Return the standard reason of an HTTP status, or `Error` for one that has none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


@dataclass(frozen=True)
class Problem:
    """One problem document. `extra` members are added as they are (RFC 9457 section 3.2)."""

    title: str
    status: int
    detail: str | None = None
    source: str = "nvcf-worker-service"
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """`urn:SOURCE:problem-details:TITLE-IN-KEBAB`."""
        return f"urn:{self.source}:problem-details:{kebab(self.title)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the document's members, `detail` only when there is one."""
        members: dict[str, Any] = {"type": self.type, "title": self.title, "status": self.status}
        if self.detail is not None:
            members["detail"] = self.detail
        return {**self.extra, **members}

    def to_json(self) -> bytes:
        """Return the document as UTF-8 JSON."""
        # Half of a surrogate pair, as JSON from outside may have it, stays the escape that it was.
        return json.dumps(self.to_dict(), ensure_ascii=False).encode(errors="backslashreplace")


def problem_for(status: int, detail: str | None = None, *, source: str = "nvcf-worker-service") -> Problem:
    """Return a problem titled with the status' standard reason."""
    return Problem(reason_phrase(status), status, detail, source)


def parse_problem(body: bytes) -> Problem:
    """Read a problem document. Raises ContractError when it is none."""
    try:
        members = json.loads(body)
        urn = str(members["type"]).split(":")
        source = urn[1] if len(urn) > 2 and urn[0] == "urn" else "about"
        known = {"type", "title", "status", "detail"}
        return Problem(
            title=str(members["title"]),
            status=int(members["status"]),
            detail=None if members.get("detail") is None else str(members["detail"]),
            source=source,
            extra={key: value for key, value in members.items() if key not in known},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ContractError(f"not a problem document: {error}") from error
