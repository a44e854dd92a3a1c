"""A broker like NVIDIA's: an auth callout accepts workers, with the same permissions.

Written from the facts of their sources: the token of a worker's CONNECT is unpadded base64url of JSON, the
user it becomes may touch the subjects below and no others, and its inboxes are `_INBOX.>`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import time
import uuid
from pathlib import Path
from typing import Any

import nats
import nkeys
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.support.platform.nats_server import NatsServer

SERVICE = "service:secret"
CALLOUT = "callout:secret"


def worker_subjects(version_id: str) -> list[str]:
    """Return the permissions of a worker of a version."""
    return [
        f"rq.*.{version_id}.>",
        f"stateful_session.lookup.*.{version_id}.>",
        "stateful_session.reconnect.>",
        f"llsrq.*.{version_id}.>",
        f"nvcf.cancel.{version_id}",
        "$JS.API.STREAM.INFO.*",
        "rq_polling.*",
        "$JS.API.STREAM.PURGE.*",
        "$JS.API.CONSUMER.INFO.>",
        "$JS.API.CONSUMER.MSG.NEXT.*.*",
        "$JS.ACK.>",
        "_INBOX.>",
    ]


class CalloutBroker(NatsServer):
    """A server whose account needs the callout or the nkey `worker_seed`."""

    account = "Worker"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.issuer = _key_pair(nkeys.PREFIX_BYTE_ACCOUNT)
        self.worker_seed = _seed(nkeys.PREFIX_BYTE_USER).decode()
        self.worker_key = nkeys.from_seed(self.worker_seed.encode()).public_key.decode()

    @property
    def service_url(self) -> str:
        """Return the URL for services, which have all permissions."""
        return f"nats://{SERVICE}@127.0.0.1:{self.port}"

    @property
    def callout_url(self) -> str:
        """Return the URL for the responder of the callout."""
        return f"nats://{CALLOUT}@127.0.0.1:{self.port}"

    def config(self) -> dict[str, object]:
        """Return a configuration with two accounts and the callout."""
        service, callout = SERVICE.split(":"), CALLOUT.split(":")
        return {
            **super().config(),
            "accounts": {
                self.account: {
                    "jetstream": "enabled",
                    "users": [{"user": service[0], "password": service[1]}, {"nkey": self.worker_key}],
                },
                "AUTH": {"users": [{"user": callout[0], "password": callout[1]}]},
            },
            "authorization": {
                "auth_callout": {
                    "issuer": self.issuer.public_key.decode(),
                    "account": "AUTH",
                    "auth_users": [service[0], callout[0], self.worker_key],
                }
            },
        }

    def violations(self) -> set[str]:
        """Return the subjects that the server refused, from its log."""
        text = (self.directory / "nats.log").read_text()
        return set(re.findall(r'(?:Publish|Subscription) Violation.*?Subject "([^"]+)"', text))


class Callout:
    """Responds to the server's callouts. `tokens` are those of workers of `version_id`."""

    def __init__(self, broker: CalloutBroker, version_id: str, tokens: set[str]) -> None:
        self._broker = broker
        self._version_id = version_id
        self._tokens = tokens
        self.presented: list[str] = []
        self._connection: Client

    async def start(self) -> None:
        """Start responding."""
        self._connection = await nats.connect(
            self._broker.callout_url,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.1,
            error_cb=ignore_error,
        )
        await self._connection.subscribe("$SYS.REQ.USER.AUTH", cb=self._answer)
        await self._connection.flush()

    async def stop(self) -> None:
        """Stop responding."""
        await self._connection.close()

    async def _answer(self, message: Msg) -> None:
        asked = claims_of(message.data.decode())["nats"]
        user, server = asked["user_nkey"], asked["server_id"]["id"]
        answer: dict[str, Any] = {"type": "authorization_response", "version": 2}
        try:
            worker_token = self._worker_token(asked["connect_opts"].get("auth_token", ""))
        except (ValueError, KeyError, TypeError) as error:
            answer["error"] = str(error)
        else:
            self.presented.append(worker_token)
            answer["jwt"] = self._user(user)
        claims = {**self._common(), "sub": user, "aud": server, "nats": answer}
        await message.respond(signed(claims, self._broker.issuer).encode())

    def _worker_token(self, token: str) -> str:
        if "=" in token:
            raise ValueError("padded")
        members = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if set(members) != {"account", "pluginName", "payload"}:
            raise ValueError("other members")
        if (members["account"], members["pluginName"]) != ("Worker", "webhook"):
            raise ValueError("another plug-in")
        if members["payload"] not in self._tokens:
            raise ValueError("invalid token")
        return str(members["payload"])

    def _user(self, key: str) -> str:
        allowed = {"allow": worker_subjects(self._version_id)}
        rights = {"pub": allowed, "sub": allowed, "resp": {"max": 1, "ttl": 0}}
        unlimited = {"subs": -1, "data": -1, "payload": -1}
        claims = {
            **self._common(),
            "sub": key,
            "aud": "Worker",
            "name": f"worker-{self._version_id}",
            "nats": {**rights, **unlimited, "type": "user", "version": 2},
        }
        return signed(claims, self._broker.issuer)

    def _common(self) -> dict[str, Any]:
        issuer = self._broker.issuer.public_key.decode()
        return {"jti": uuid.uuid4().hex, "iat": int(time.time()), "iss": issuer}


def _seed(prefix: int) -> bytes:
    return bytes(nkeys.encode_seed(os.urandom(32), prefix))


def _key_pair(prefix: int) -> Any:
    return nkeys.from_seed(_seed(prefix))


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(claims: dict[str, Any], pair: Any) -> str:
    head = _encoded(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
    text = f"{head}.{_encoded(json.dumps(claims).encode())}"
    return f"{text}.{_encoded(pair.sign(text.encode()))}"


def claims_of(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return claims


async def ignore_error(_: Exception) -> None:
    await asyncio.sleep(0)
