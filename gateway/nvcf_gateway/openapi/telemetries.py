"""Routes of telemetry endpoints."""

from __future__ import annotations

from typing import Any

from nvcf_gateway.openapi.parts import KEYED, NOTHING, Operation, json_answer, operation_of
from nvcf_gateway.openapi.schemas import TEXT, TIME, UUID, Schema, many, one_of, ref, thing
from nvcf_proto.models import TelemetryAuth, TelemetryProtocol, TelemetryProvider, TelemetryType
from nvcf_proto.models.telemetries import (
    MAX_HEADERS,
    MAX_PATTERN_LENGTH,
    MAX_PATTERNS,
    PLAIN_PATTERN,
    SECRET_KEY_PATTERN,
    TELEMETRY_NAME_PATTERN,
)

_NAME: Schema = {"type": "string", "pattern": f"^{TELEMETRY_NAME_PATTERN}$"}
_ADDRESS: Schema = {
    "type": "string",
    "maxLength": 2048,
    "pattern": "^[\\x21-\\x23\\x25-\\x7e]+$",
    "description": "Its address; for DATADOG the site, such as datadoghq.com.",
}


def _map(pattern: str, description: str) -> Schema:
    return {
        "type": "object",
        "maxProperties": MAX_HEADERS,
        "additionalProperties": {"type": "string", "pattern": f"^{pattern}$"},
        "description": description,
    }


_SECRET = thing(
    {"name": _NAME},
    "name",
    closed=True,
    description="The name under which the credentials lie in files on the clusters; never their values.",
)
_CONFIGURATION = thing(
    {
        "auth": {**one_of(TelemetryAuth), "description": "For providers that leave it open."},
        "headers": _map(PLAIN_PATTERN, "Plain values by header name."),
        "secretHeaders": _map(SECRET_KEY_PATTERN, "Keys of the secret by header name."),
        "privateCa": {
            "type": "boolean",
            "description": "Whether the secret has the CA's certificate, caFile.",
        },
        "allowMetrics": many(
            {"type": "string", "minLength": 1, "maxLength": MAX_PATTERN_LENGTH},
            maxItems=MAX_PATTERNS,
            description="Regular expressions (RE2): only the platform's metrics and these are sent.",
        ),
        "sampledPercent": {
            "type": "number",
            "minimum": 0,
            "maximum": 100,
            "description": "Share of the traces that is kept besides those with errors and slow ones.",
        },
        "slowSeconds": {"type": "number", "minimum": 0.001, "maximum": 3600},
    },
    closed=True,
)
_FIELDS: dict[str, Schema] = {
    "endpoint": _ADDRESS,
    "protocol": one_of(TelemetryProtocol),
    "provider": one_of(TelemetryProvider),
    "types": many(one_of(TelemetryType), minItems=1),
    "secret": _SECRET,
    "configuration": _CONFIGURATION,
}
_NEEDED = ("endpoint", "protocol", "provider", "types")

TELEMETRY_SCHEMAS: dict[str, Schema] = {
    "TelemetryCreation": thing({"name": _NAME, **_FIELDS}, *_NEEDED, closed=True),
    "TelemetryChange": thing(_FIELDS, *_NEEDED, closed=True),
    "Telemetry": thing(
        {
            "telemetryId": UUID,
            "name": _NAME,
            "ncaId": TEXT,
            **_FIELDS,
            "createdAt": TIME,
            "secretFiles": many(TEXT, description="Files that must lie in the agents' folder of secrets."),
        },
        "telemetryId",
        "name",
        "ncaId",
        *_NEEDED,
        "createdAt",
    ),
    "TelemetryAnswer": thing({"telemetry": ref("Telemetry")}, "telemetry"),
    "TelemetryList": thing({"telemetries": many(ref("Telemetry"))}, "telemetries"),
    "Telemetries": thing(
        {"logsTelemetryId": UUID, "metricsTelemetryId": UUID, "tracesTelemetryId": UUID},
        closed=True,
        description="Where the version's logs, metrics and traces go.",
    ),
}


def telemetries() -> dict[str, dict[str, Operation]]:
    """Telemetry endpoints of an account."""
    one, found = json_answer(ref("TelemetryAnswer")), (*KEYED, 404)

    def make(name: str, summary: str, answers: Any, problems: tuple[int, ...], **more: Any) -> Operation:
        return operation_of(name, summary, answers, problems, tag="telemetries", **more)

    return {
        "/v2/nvcf/telemetries": {
            "post": make(
                "createTelemetry",
                "A new telemetry endpoint of the account.",
                {200: one},
                (*KEYED, 413, 409),
                body=ref("TelemetryCreation"),
            ),
            "get": make(
                "listTelemetries",
                "The account's telemetry endpoints.",
                {200: json_answer(ref("TelemetryList"))},
                KEYED,
            ),
        },
        "/v2/nvcf/telemetries/{telemetry_id}": {
            "get": make("getTelemetry", "One telemetry endpoint.", {200: one}, found),
            "put": make(
                "changeTelemetry",
                "Change all of it but its name; instances that start from then on use it.",
                {200: one},
                (*found, 413, 409),
                body=ref("TelemetryChange"),
            ),
            "delete": make(
                "deleteTelemetry",
                "Delete a telemetry endpoint that no version uses.",
                {204: NOTHING},
                (*found, 409),
            ),
        },
    }
