"""Auth callout: the broker asks whether a worker or an agent may connect, and what it may access.

See protocol.md, sections 6.2 and 8.

The form of the claims is that of NATS auth callout (ADR-26). Requests and responses are JWTs signed with
Ed25519 nkeys, header `{"typ": "JWT", "alg": "ed25519-nkey"}`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nkeys
from nats.aio.client import Client
from nats.aio.msg import Msg

from nvcf_gateway.access.agent_identity import AgentAccess, AgentRefused
from nvcf_gateway.access.worker_access import PUBLISHES_TOO_MUCH, WorkerAccess
from nvcf_gateway.access.worker_connections import WORKER_ACCOUNT, connection_name
from nvcf_gateway.access.worker_tokens import InvalidWorkerToken
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.errors import GatewayError, SetupError
from nvcf_gateway.registry import Registry
from nvcf_proto.errors import InvalidToken
from nvcf_proto.icms.names import (
    AGENT_BROKER_ACCOUNT,
    AGENT_CONNECTION_PREFIX,
    PRIVATE_AGENT_ACCOUNT,
    agent_permissions,
    decode_agent_token,
)
from nvcf_proto.ids import new_id
from nvcf_proto.subjects import AUTH_CALLOUT_SUBJECT, Permissions, worker_permissions
from nvcf_proto.tokens import decode_broker_token

_log = logging.getLogger(__name__)

QUEUE_GROUP = "nvcf-gateways"
# Where this gateway cannot end connections, each ends after this time, and the token is checked again.
UNWATCHED_CONNECTION_SECONDS = 1800.0
# An agent's connection ends after this time, and it connects again with a fresh token.
AGENT_CONNECTION_SECONDS = 3600.0
_JWT_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}


class _Refused(GatewayError):
    """The connection is not allowed."""


def load_account_seed(path: Path) -> nkeys.KeyPair:
    """Read the account nkey that signs responses. Raises SetupError."""
    try:
        return nkeys.from_seed(bytearray(path.read_bytes().strip()))
    except OSError as error:
        raise SetupError(f"cannot read the callout seed {path}: {error.strerror}") from error
    except (nkeys.NkeysError, ValueError) as error:
        raise SetupError(f"the callout seed {path} is not an nkey seed") from error


def _segment(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).rstrip(b"=").decode()


def sign(claims: dict[str, Any], account: nkeys.KeyPair) -> str:
    """Return the claims as a JWT signed with an nkey."""
    signed = f"{_segment(_JWT_HEADER)}.{_segment(claims)}"
    signature = base64.urlsafe_b64encode(account.sign(signed.encode())).rstrip(b"=").decode()
    return f"{signed}.{signature}"


def read_claims(token: bytes) -> dict[str, Any]:
    """Return the claims of a JWT from the broker, unverified. Raises ValueError, TypeError and IndexError."""
    segment = token.split(b".")[1]
    claims = json.loads(base64.urlsafe_b64decode(segment + b"=" * (-len(segment) % 4)))
    if not isinstance(claims, dict):
        raise TypeError("the claims are not a JSON object")
    return claims


@dataclass(frozen=True)
class _Grant:
    """What a connection gets: its broker account, its name, its rights, and when it is closed."""

    account: str
    name: str
    permissions: Permissions
    expires_at: float


def user_claims(user_nkey: str, issuer: str, grant: _Grant, now: float) -> dict[str, Any]:
    """Return the claims of the user JWT: the permissions of the connection and when it is closed."""
    return {
        "jti": new_id(),
        "iat": int(now),
        "exp": int(grant.expires_at),
        "iss": issuer,
        "sub": user_nkey,
        "aud": grant.account,
        "name": grant.name,
        "nats": {
            "pub": {"allow": list(grant.permissions.publish)},
            "sub": {"allow": list(grant.permissions.subscribe)},
            "resp": {"max": 1, "ttl": 60_000_000_000},
            "subs": -1,
            "data": -1,
            "payload": -1,
            "type": "user",
            "version": 2,
        },
    }


class AuthCallout:
    """Handles the broker's requests about connecting workers and agents."""

    def __init__(
        self,
        account: nkeys.KeyPair,
        registry: Registry,
        access: WorkerAccess,
        agents: AgentAccess,
        regions: tuple[str, ...],
        *,
        wide_inbox: bool = False,
        watched: bool = False,
    ) -> None:
        self._account = account
        self._issuer = account.public_key.decode()
        self._registry = registry
        self._access = access
        self._agents = agents
        self._regions = regions
        self._wide_inbox = wide_inbox
        self._longest = float("inf") if watched else UNWATCHED_CONNECTION_SECONDS

    async def on_request(self, message: Msg) -> None:
        """Respond to one request. Without a response, as for an unreadable request, the broker refuses."""
        try:
            request = read_claims(message.data)["nats"]
            user_nkey, server = str(request["user_nkey"]), str(request["server_id"]["id"])
            options = dict(request["connect_opts"])
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            _log.warning("auth callout: the request cannot be read: %s", error)
            return
        now = time.time()
        decision: dict[str, Any] = {"type": "authorization_response", "version": 2}
        try:
            name, token = str(options.get("name") or ""), str(options.get("auth_token") or "")
            agent = name.startswith(AGENT_CONNECTION_PREFIX)
            grant = self._agent(name, token, now) if agent else self._worker(token, now)
            user = user_claims(user_nkey, self._issuer, grant, now)
            decision["jwt"] = sign(user, self._account)
        except _Refused as refusal:
            _log.warning("broker connection refused: %s", refusal, extra={"client": options.get("name")})
            decision["error"] = str(refusal)
        except Exception as error:  # noqa: BLE001 # without an answer the broker waits, and nobody knows why
            _log.exception("broker connection refused for an error", extra={"client": options.get("name")})
            decision["error"] = f"the gateway failed to decide ({type(error).__name__})"
        response = {
            "jti": new_id(),
            "iat": int(now),
            "iss": self._issuer,
            "sub": user_nkey,
            "aud": server,
            "nats": decision,
        }
        await message.respond(sign(response, self._account).encode())

    def _worker(self, broker_token: str, now: float) -> _Grant:
        try:
            claims = self._access.verify(decode_broker_token(broker_token), now)
        except (InvalidToken, InvalidWorkerToken) as error:
            raise _Refused(str(error)) from None
        if not self._access.may_connect(claims):
            raise _Refused(PUBLISHES_TOO_MUCH)
        if self._registry.versions.get(claims.version_id) is None:
            raise _Refused(f"there is no version {claims.version_id}")
        permissions = worker_permissions(
            self._regions, claims.version_id, claims.instance_id, wide_inbox=self._wide_inbox
        )
        end = min(claims.expires_at, now + self._longest)
        return _Grant(WORKER_ACCOUNT, connection_name(claims), permissions, end)

    def _agent(self, name: str, broker_token: str, now: float) -> _Grant:
        try:
            token = decode_agent_token(name, broker_token)
            agent = self._agents.verify(token.cluster_id, token.credential)
        except (InvalidToken, AgentRefused) as error:
            raise _Refused(str(error)) from None
        if agent.cluster.evicted:
            raise _Refused(f"cluster {agent.cluster.id} was deleted")
        permissions = agent_permissions(agent.cluster.id, own_inbox=token.own_inbox)
        end = min(agent.expires_at or float("inf"), now + AGENT_CONNECTION_SECONDS)
        account = PRIVATE_AGENT_ACCOUNT if token.own_inbox else AGENT_BROKER_ACCOUNT
        return _Grant(account, agent.connection_name, permissions, end)


async def answer_callouts(
    client: Client, config: GatewayConfig, access: WorkerAccess, agents: AgentAccess
) -> None:
    """Answer the broker's requests if the gateway has the seed for it. Raises SetupError."""
    if config.callout_seed is None:
        return
    callout = AuthCallout(
        await asyncio.to_thread(load_account_seed, config.callout_seed),
        access.registry,
        access,
        agents,
        config.regions,
        wide_inbox=config.wide_inbox,
        watched=config.nats_system_credentials is not None,
    )
    await client.subscribe(AUTH_CALLOUT_SUBJECT, queue=QUEUE_GROUP, cb=callout.on_request)
