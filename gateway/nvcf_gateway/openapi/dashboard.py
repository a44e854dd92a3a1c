"""Routes of the built-in page and of the metrics that it shows."""

from __future__ import annotations

from functools import partial
from typing import Any

from nvcf_gateway.openapi.parts import KEYED, Operation, operation_of
from nvcf_gateway.openapi.schemas import NAME, TEXT, TIME, UUID, Schema, list_of, object_of

_NUMBER: Schema = {"type": "number", "minimum": 0}
_COUNT: Schema = {"type": "integer", "minimum": 0}


def _or_null(schema: Schema, **more: Any) -> Schema:
    return {"anyOf": [schema, {"type": "null"}], **more}


_RATES: dict[str, Schema] = {
    "waiting": {**_COUNT, "description": "Calls whose callers wait."},
    "arrivalsPerSecond": _NUMBER,
    "answersPerSecond": _NUMBER,
    "failuresPerSecond": {
        **_NUMBER,
        "description": "Responses with status 5xx, and calls without a response.",
    },
    "latency": _or_null(
        object_of({"p50": _NUMBER, "p90": _NUMBER, "p99": _NUMBER}, "p50", "p90", "p99"),
        description="Seconds until the whole response was there; null without responses.",
    ),
}
DASHBOARD_SCHEMAS: dict[str, Schema] = {
    "Figures": object_of(
        {
            "at": TIME,
            "since": {**TIME, "description": "Before that not all gateways have counted."},
            "gateways": object_of({"answered": _COUNT, "known": _COUNT}, "answered", "known"),
            "windowSeconds": _COUNT,
            "stepSeconds": _COUNT,
            "versions": list_of(
                object_of(
                    {
                        "functionVersionId": UUID,
                        "functionId": UUID,
                        "functionName": NAME,
                        **_RATES,
                        "queue": _or_null(
                            object_of(
                                {"queued": _COUNT, "inFlight": _COUNT, "oldestSeconds": _or_null(_NUMBER)},
                                "queued",
                                "inFlight",
                                "oldestSeconds",
                            ),
                            description="Null when the broker did not answer in time.",
                        ),
                    },
                    "functionVersionId",
                    "functionId",
                    "functionName",
                    "queue",
                    *_RATES,
                )
            ),
            "series": list_of(
                object_of({"at": {**_COUNT, "description": "Unix time in seconds."}, **_RATES}, "at", *_RATES)
            ),
        },
        "at",
        "since",
        "gateways",
        "windowSeconds",
        "stepSeconds",
        "versions",
        "series",
    ),
    "Ticket": object_of({"ticket": TEXT, "expiresAt": TIME, "ncaId": TEXT}, "ticket", "expiresAt", "ncaId"),
    "Session": object_of(
        {"session": TEXT, "expiresAt": TIME, "ncaId": TEXT}, "session", "expiresAt", "ncaId"
    ),
}


def dashboard() -> dict[str, dict[str, Operation]]:
    """Return the routes of metrics, of the page's files, and of its tickets and sessions."""
    make = partial(operation_of, tag="dashboard")

    page = {"description": "The page.", "content": {"text/html": {"schema": {}}}}
    file = {"description": "A file of the page.", "content": {"*/*": {"schema": {}}}}
    same = {"description": "As the browser has it."}
    base = "/v2/nvcf/dashboard"
    return {
        "/v2/nvcf/figures": {
            "get": make(
                "readFigures",
                "How the account's deployed versions are doing: queues, rates and latencies.",
                "Figures",
                KEYED,
                parameters=({"name": "functionVersionId", "in": "query", "schema": UUID},),
            )
        },
        f"{base}/tickets": {
            "post": make(
                "makeTicket", "A ticket that opens the dashboard, good for two minutes.", "Ticket", KEYED
            )
        },
        f"{base}/sessions": {
            "post": make(
                "openSession",
                "With a ticket or a key: a session that reads for twelve hours, as the key may read.",
                "Session",
                KEYED,
            )
        },
        "/dashboard": {
            "get": make(
                "findPage", "To the page.", {308: {"description": "To /dashboard/."}}, (400,), security=False
            )
        },
        "/dashboard/": {
            "get": make("page", "The built-in page.", {200: page, 304: same}, (400,), security=False)
        },
        "/dashboard/{file}": {
            "get": make("pageFile", "Its files.", {200: file, 304: same}, (400, 404), security=False)
        },
    }
