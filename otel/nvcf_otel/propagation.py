"""OTEL_PROPAGATORS: the headers by which callers and functions pass a trace on (W3C, B3).

Between the platform's own processes a trace is always W3C Trace Context.
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ and
https://github.com/openzipkin/b3-propagation
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

VARIABLE = "OTEL_PROPAGATORS"
TRACE_CONTEXT, BAGGAGE, B3, B3_MULTI, NONE = "tracecontext", "baggage", "b3", "b3multi", "none"
KNOWN = (TRACE_CONTEXT, BAGGAGE, B3, B3_MULTI, NONE)
DEFAULT = (TRACE_CONTEXT, BAGGAGE)

_HEADERS = {
    TRACE_CONTEXT: ("traceparent", "tracestate"),
    BAGGAGE: ("baggage",),
    B3: ("b3",),
    B3_MULTI: ("x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-b3-parentspanid", "x-b3-flags"),
}
_ZERO = re.compile("0*")
_TRACE_ID = re.compile("(?:[0-9a-f]{16}){1,2}")
_SPAN_ID = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class Propagators:
    """The formats in use, in order: of several traces the last one counts. `problem` is what was left out."""

    names: tuple[str, ...] = DEFAULT
    problem: str | None = None

    @property
    def is_default(self) -> bool:
        """Return whether headers of W3C alone are in use, which need no translation."""
        return self.names == DEFAULT

    @property
    def headers(self) -> frozenset[str]:
        """Return the names of all headers that say which trace a call belongs to."""
        return frozenset(
            header for name in self.names if name != BAGGAGE for header in _HEADERS[name]
        )  # fmt: skip

    def extract(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return a caller's trace and baggage as W3C headers."""
        sent = {name.lower(): value for name, value in headers.items()}
        found: dict[str, str] = {}
        for name in self.names:
            if name in DEFAULT:
                kept = {header: sent[header] for header in _HEADERS[name] if header in sent}
                if "traceparent" in kept or name == BAGGAGE:
                    found.update(kept)
            elif (parent := _from_b3(sent)) is not None:
                found.pop("tracestate", None)
                found["traceparent"] = parent
        return found

    def inject(self, context: Mapping[str, str]) -> dict[str, str]:
        """Return the headers in use for a trace and baggage that are given as W3C headers."""
        found: dict[str, str] = {}
        for name in self.names:
            if name in DEFAULT:
                found |= {header: context[header] for header in _HEADERS[name] if header in context}
            elif "traceparent" in context:
                _, trace_id, span_id, flags = context["traceparent"].split("-")[:4]
                sampled = str(int(flags, 16) & 1)
                if name == B3:
                    found["b3"] = f"{trace_id}-{span_id}-{sampled}"
                else:
                    found |= dict(zip(_HEADERS[B3_MULTI], (trace_id, span_id, sampled), strict=False))
        return found


def _from_b3(sent: Mapping[str, str]) -> str | None:
    """Return the traceparent of B3 headers, the single header first; None without a valid trace."""
    trace_id, span_id, sampled, *_ = [*sent.get("b3", "").split("-"), "", "", ""]
    if not _is_id(_TRACE_ID, trace_id) or not _is_id(_SPAN_ID, span_id):
        trace_id, span_id = sent.get("x-b3-traceid", ""), sent.get("x-b3-spanid", "")
        sampled = "d" if sent.get("x-b3-flags") == "1" else sent.get("x-b3-sampled", "")
        if not _is_id(_TRACE_ID, trace_id) or not _is_id(_SPAN_ID, span_id):
            return None
    flags = "01" if sampled.lower() in ("1", "d", "true") else "00"
    return f"00-{trace_id.lower():0>32}-{span_id.lower()}-{flags}"


def _is_id(form: re.Pattern[str], text: str) -> bool:
    return form.fullmatch(text.lower()) is not None and _ZERO.fullmatch(text) is None


def propagators_from(environ: Mapping[str, str]) -> Propagators:
    """Read OTEL_PROPAGATORS."""
    named = [name.strip().lower() for name in environ.get(VARIABLE, "").split(",") if name.strip()]
    if not named:
        return Propagators()
    unknown = [name for name in named if name not in KNOWN]
    problem = None
    if unknown:
        problem = f"{VARIABLE} has {', '.join(map(repr, unknown))}; known are {', '.join(KNOWN)}"
    wanted = () if NONE in named else tuple(dict.fromkeys(name for name in named if name in KNOWN))
    if unknown and not wanted:
        return Propagators(problem=problem)
    return Propagators(DEFAULT if set(wanted) == set(DEFAULT) else wanted, problem)


PROPAGATORS = propagators_from(os.environ)
"""Those of this process."""
W3C_ONLY = PROPAGATORS.is_default
"""Whether headers pass as they are; read for each request."""
