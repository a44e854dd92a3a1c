"""`python -m nvcf_gateway.installation`: make the secrets of an installation on Kubernetes, once.

    NAME-signing   signing.pem            signs worker tokens and links
    NAME-sealing   0001.key               seals the secrets of functions
    NAME-broker    *.credentials, callout.seed   logins of the platform's processes at the broker
    NAME-admin     admin.key, bootstrap-keys.json   the first API key, and its hash for the gateways

A Secret that is there stays as it is: lost keys cannot be made again. Only NAME-broker gets entries that a
later release needs.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import ssl
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from nvcf_broker.configuration import BrokerFiles, ensure_credentials
from nvcf_broker.errors import BrokerError
from nvcf_gateway.access.signing_keys import FIRST_KEY_NAME as SIGNING_KEY
from nvcf_gateway.access.signing_keys import create_key
from nvcf_gateway.errors import SetupError
from nvcf_gateway.secrets.keys import FIRST_KEY_NAME as SEALING_KEY
from nvcf_gateway.secrets.keys import create_sealing_key
from nvcf_proto.models.keys import ApiKey, Scope, api_key_id, hash_api_key, new_api_key

BROKER = "broker"
_TOKEN_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_CALL_SECONDS = 15.0

Object = dict[str, Any]


def new_secrets(account: str, now: float) -> dict[str, dict[str, bytes]]:
    """Return the entries of each Secret, newly made. Blocking. Raises SetupError."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        create_key(folder / SIGNING_KEY)
        create_sealing_key(folder / SEALING_KEY)
        files = BrokerFiles(folder / BROKER)
        ensure_credentials(files)
        logins = (files.credentials, files.control, files.system, files.route, files.callout_seed)
        return {
            "signing": {SIGNING_KEY: (folder / SIGNING_KEY).read_bytes()},
            "sealing": {SEALING_KEY: (folder / SEALING_KEY).read_bytes()},
            BROKER: {each.name: each.read_bytes() for each in logins},
            "admin": _admin(account, now),
        }


def _admin(account: str, now: float) -> dict[str, bytes]:
    key = new_api_key()
    record = ApiKey(
        id=api_key_id(key),
        secret_hash=hash_api_key(key),
        nca_id=account,
        scopes=(Scope.ADMIN, Scope.OPERATOR),
        created_at=now,
        description="the installation's first key",
    )
    return {"admin.key": key.encode(), "bootstrap-keys.json": json.dumps([record.to_dict()]).encode()}


def manifests(name: str, namespace: str, secrets: Mapping[str, Mapping[str, bytes]]) -> list[Object]:
    """Return the Secrets as Kubernetes objects."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": {
                "name": f"{name}-{part}",
                "namespace": namespace,
                "labels": {"app.kubernetes.io/name": "nvcf", "app.kubernetes.io/instance": name},
            },
            "data": {key: base64.b64encode(value).decode() for key, value in entries.items()},
        }
        for part, entries in secrets.items()
    ]


def missing(wanted: Object, existing: Object) -> dict[str, str]:
    """Return the entries that an existing Secret lacks and gets."""
    if not str(wanted["metadata"]["name"]).endswith(f"-{BROKER}"):
        return {}
    data = existing.get("data") or {}
    return {key: value for key, value in wanted["data"].items() if key not in data}


async def write(session: aiohttp.ClientSession, url: str, secrets: Sequence[Object]) -> list[str]:
    """Create the Secrets that are not there; return a line about each. Raises SetupError."""
    lines = []
    for wanted in secrets:
        name, namespace = wanted["metadata"]["name"], wanted["metadata"]["namespace"]
        path = f"{url}/api/v1/namespaces/{namespace}/secrets"
        async with session.get(f"{path}/{name}") as response:
            existing = await response.json() if response.status == 200 else None
        if existing is None:
            status = await _send(session, "POST", path, wanted, "application/json")
            lines.append(f"{name}: {'is there' if status == 409 else 'created'}")
        elif added := missing(wanted, existing):
            await _send(session, "PATCH", f"{path}/{name}", {"data": added}, "application/merge-patch+json")
            lines.append(f"{name}: has now {', '.join(added)}")
        else:
            lines.append(f"{name}: is there")
    return lines


async def _send(session: aiohttp.ClientSession, method: str, url: str, body: Object, kind: str) -> int:
    headers = {"Content-Type": kind}
    async with session.request(method, url, data=json.dumps(body), headers=headers) as response:
        if response.status >= 300 and response.status != 409:
            reason = (await response.text())[:500]
            raise SetupError(f"{method} {url}: {response.status} {reason}")
        return response.status


async def write_in_cluster(secrets: Sequence[Object]) -> list[str]:
    """Do as `write` in the cluster that this process runs in. Raises SetupError."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if host is None:
        raise SetupError("this is no pod: use --print and give the result to kubectl create")
    try:
        token = await asyncio.to_thread((_TOKEN_FOLDER / "token").read_text)
        trusted = ssl.create_default_context(cafile=str(_TOKEN_FOLDER / "ca.crt"))
        async with aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {token.strip()}"},
            timeout=aiohttp.ClientTimeout(total=_CALL_SECONDS),
            connector=aiohttp.TCPConnector(ssl=trusted),
        ) as session:
            host = f"[{host}]" if ":" in host else host
            return await write(session, f"https://{host}:{port}", secrets)
    except (OSError, aiohttp.ClientError) as error:
        raise SetupError(f"cannot reach the API server: {error}") from error


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m nvcf_gateway.installation",
        description="Make the secrets of an installation on Kubernetes, unless they are there.",
    )
    add = parser.add_argument
    add("--name", required=True, help="beginning of the Secrets' names")
    add("--namespace", required=True, help="namespace of the Secrets")
    add("--account", default="local", help="account of the first API key")
    add("--print", action="store_true", help="print new ones for kubectl instead of creating them")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse_arguments(arguments)
    try:
        made = manifests(options.name, options.namespace, new_secrets(options.account, time.time()))
        if options.print:
            document = {"apiVersion": "v1", "kind": "List", "items": made}
            sys.stdout.write(json.dumps(document, indent=1) + "\n")
        else:
            sys.stdout.write("\n".join(asyncio.run(write_in_cluster(made))) + "\n")
    except (SetupError, BrokerError, TimeoutError) as error:
        sys.stderr.write(f"installation: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
