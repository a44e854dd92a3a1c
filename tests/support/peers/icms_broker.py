"""A broker as NVIDIA's control plane runs it for agents, written from protocol.md, section 6.2.

One account `APP` with JetStream; agents come in by the auth callout, with the rights of the contract and no
others.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.support.peers.nvcf_broker import CalloutBroker, claims_of, ignore_error, signed

CREATION, TERMINATION = "CreateNvcaFunctionTaskStream", "TerminateNvcaStream"
STREAMS = {CREATION: "Create.NVCA.>", TERMINATION: "Terminate.NVCA.>"}
NAME = "nvca-queue-client/"


def agent_rights(cluster_id: str) -> list[str]:
    """Return the subjects that an agent may publish to."""
    found = []
    for stream in STREAMS:
        consumer = f"{stream}-{cluster_id}"
        found += [
            f"$JS.API.CONSUMER.CREATE.{stream}.{consumer}",
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}",
            f"$JS.ACK.{stream}.{consumer}.>",
            f"$JS.ACK.*.*.{stream}.{consumer}.>",
        ]
    return found


class AgentBroker(CalloutBroker):
    """The server. Services have all rights in the account, agents those of the contract."""

    account = "APP"


@dataclass
class AgentCallout:
    """Answers the server's callouts. `known` says whether an identity is that of a cluster.

    `lifetime` is how many seconds a connection lasts.
    """

    broker: AgentBroker
    known: Callable[[str, str], bool]
    lifetime: float = 3600.0
    accepted: list[tuple[str, str]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _connection: Client | None = None

    async def start(self) -> None:
        """Start answering."""
        self._connection = await nats.connect(
            self.broker.callout_url,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.05,
            error_cb=ignore_error,
        )
        await self._connection.subscribe("$SYS.REQ.USER.AUTH", cb=self._answer)
        await self._connection.flush()

    async def stop(self) -> None:
        """Stop answering."""
        if self._connection is not None:
            await self._connection.close()

    async def _answer(self, message: Msg) -> None:
        asked = claims_of(message.data.decode())["nats"]
        user, server = asked["user_nkey"], asked["server_id"]["id"]
        answer: dict[str, Any] = {"type": "authorization_response", "version": 2}
        try:
            cluster_id, identity = self._login(asked["connect_opts"])
        except (ValueError, KeyError, TypeError) as error:
            self.refused.append(str(error))
            answer["error"] = str(error)
        else:
            self.accepted.append((cluster_id, identity))
            answer["jwt"] = self._user(user, cluster_id)
        claims = {**self._common(), "sub": user, "aud": server, "nats": answer}
        await message.respond(signed(claims, self.broker.issuer).encode())

    def _login(self, options: dict[str, Any]) -> tuple[str, str]:
        name, token = options["name"], options["auth_token"]
        if not name.startswith(NAME) or "=" in token:
            raise ValueError(f"connection name {name!r} or padded token")
        members = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        # Members beyond these three are extensions, which a peer ignores.
        if (members["account"], members["pluginName"]) != ("APP", "oidc"):
            raise ValueError(f"token with {sorted(members)}")
        cluster_id, identity = name.removeprefix(NAME), str(members["payload"])
        if not self.known(cluster_id, identity):
            raise ValueError("unknown identity")
        return cluster_id, identity

    def _user(self, key: str, cluster_id: str) -> str:
        rights = {
            "pub": {"allow": agent_rights(cluster_id)},
            "sub": {"allow": ["_INBOX.>"]},
            "subs": -1,
            "data": -1,
            "payload": -1,
        }
        claims = {
            **self._common(),
            "exp": int(time.time() + self.lifetime),
            "sub": key,
            "aud": "APP",
            "name": cluster_id,
            "nats": {**rights, "type": "user", "version": 2},
        }
        return signed(claims, self.broker.issuer)

    def _common(self) -> dict[str, Any]:
        issuer = self.broker.issuer.public_key.decode()
        return {"jti": uuid.uuid4().hex, "iat": int(time.time()), "iss": issuer}
