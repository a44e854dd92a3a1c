"""The auth callout answers whatever happens."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import Any

import nkeys
import pytest

from nvcf_gateway.access.broker_callout import AuthCallout, read_claims


def claims(**options: str) -> bytes:
    """Return the broker's request about a connection."""
    body = {"nats": {"user_nkey": "U", "server_id": {"id": "S"}, "connect_opts": options}}
    segment = base64.urlsafe_b64encode(json.dumps(body).encode()).rstrip(b"=")
    return b"e." + segment + b".e"


@pytest.mark.parametrize("name", ["nvca-queue-client/6f1d", "worker"])
async def test_an_unforeseen_error_is_a_refusal_with_a_logged_reason(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[bytes] = []

    async def respond(data: bytes) -> None:
        answers.append(data)

    # Attributes that are missing stand for faults of the gateway.
    broken: Any = SimpleNamespace()
    account = nkeys.from_seed(bytearray(nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_ACCOUNT)))
    message: Any = SimpleNamespace(data=claims(name=name, auth_token="eyJwYXlsb2FkIjoieCJ9"), respond=respond)
    await AuthCallout(account, broken, broken, broken, ("local",)).on_request(message)
    (answer,) = answers
    decision = read_claims(answer)["nats"]
    assert decision["error"] == "the gateway failed to decide (AttributeError)"
    assert "jwt" not in decision
    assert "refused for an error" in caplog.text
    assert "Traceback" in caplog.text
