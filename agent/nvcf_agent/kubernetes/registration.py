"""`python -m nvcf_agent.kubernetes.registration`: register this cluster once, for the chart nvcf-agent.

The Secret that it writes holds `clusterId` and `key`, with which the agent proves who it is. A later run
brings what the control plane knows of the cluster up to date, and makes a new key only if there is none.
"""

import argparse
import asyncio
import base64
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from nvcf_agent.errors import AgentError, ControlPlaneError
from nvcf_agent.icms.identity import Identity
from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import SECRET

CALL_SECONDS = 30.0
CLUSTER_ID = "clusterId"
KEY = "key"

Members = dict[str, Any]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m nvcf_agent.kubernetes.registration",
        description="Register this cluster with the control plane, and store its id and key in a Secret.",
    )
    add = parser.add_argument
    add("--icms", required=True, metavar="URL", help="the control plane's HTTP address, that of a gateway")
    add("--admin-key", required=True, type=Path, metavar="FILE", help="API key with the scope admin")
    add("--name", required=True, help="name of the cluster, once in an account")
    add("--secret", required=True, metavar="NAME", help="the Secret to write")
    add("--namespace", required=True, help="its namespace")
    add("--region", default="local", help="region of its functions' queues")
    add("--group", default="", help="cluster group")
    add("--description", default="")
    add("--cloud-provider", default="ON-PREM", metavar="NAME")
    add("--account", action="append", default=[], metavar="ID", help="whose functions may run there")
    add("--attribute", action="append", default=[], metavar="NAME=VALUE", help="what deployments can ask for")
    return parser.parse_args(arguments)


def registration(options: argparse.Namespace) -> Members:
    """Return the body of the registration. Raises `AgentError`."""
    attributes = {}
    for text in options.attribute:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise AgentError(f"--attribute {text}: NAME=VALUE expected")
        attributes[name] = value
    return {
        "clusterName": options.name,
        "region": options.region,
        "clusterGroupName": options.group,
        "clusterDescription": options.description,
        "cloudProvider": options.cloud_provider,
        # Without accounts the control plane decides: all of them where the key has the scope operator.
        **({"authorizedNCAIds": options.account} if options.account else {}),
        "attributes": attributes,
    }


class Administration:
    """The administrator's routes of the control plane, for clusters of the key's account."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"}

    async def call(self, method: str, path: str, body: Members | None = None) -> Members:
        """Return the JSON of a 200. Raises `ControlPlaneError`."""
        what = f"{method} {self._url}{path}"
        try:
            async with self._session.request(
                method, self._url + path, json=body, headers=self._headers
            ) as answer:
                if answer.status != 200:
                    raise ControlPlaneError(
                        f"{what}: {answer.status} {(await answer.text())[:500]}", answer.status
                    )
                found: Members = await answer.json()
                return found
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ControlPlaneError(f"{what}: {error or type(error).__name__}") from error

    async def clusters(self) -> str:
        """Return the path of the account's clusters."""
        account = str((await self.call("GET", "/v2/nvcf/quotas")).get("account", ""))
        return f"/v1/accounts/{quote(account, safe='')}/clusters"


async def register(control_plane: Administration, body: Members, known: Mapping[str, str]) -> dict[str, str]:
    """Return the cluster's id and key; `known` are those of an earlier run. Raises `ControlPlaneError`."""
    path = await control_plane.clusters()
    change = {name: value for name, value in body.items() if name != "clusterName"}
    if known.get(CLUSTER_ID) and known.get(KEY):
        try:
            await control_plane.call("PUT", f"{path}/{quote(known[CLUSTER_ID], safe='')}", change)
            return dict(known)
        except ControlPlaneError as error:
            if error.status != 404:
                raise
            # It was deleted there: its key is void, and its id is not used again.
    made = await control_plane.call("POST", f"{path}?ifExists=return", body)
    cluster_id, key = str(made[CLUSTER_ID]), made.get("clusterKey")
    if key is None:
        await control_plane.call("PUT", f"{path}/{cluster_id}", change)
        key = (await control_plane.call("POST", f"{path}/{cluster_id}/rotate"))["clusterKey"]
    return {CLUSTER_ID: cluster_id, KEY: str(key)}


async def run(options: argparse.Namespace) -> str:
    """Register, write the Secret, and return the cluster's id. Raises `AgentError` and `ApiError`."""
    body = registration(options)
    admin_key = await Identity(options.admin_key).current()
    timeout = aiohttp.ClientTimeout(total=CALL_SECONDS)
    async with await Api.open() as api, aiohttp.ClientSession(timeout=timeout) as session:
        stored = await api.get(SECRET, options.secret, options.namespace)
        data = (stored or {}).get("data") or {}
        known = {name: base64.b64decode(data[name]).decode() for name in (CLUSTER_ID, KEY) if name in data}
        found = await register(Administration(session, options.icms, admin_key), body, known)
        if found != known:
            data = {name: base64.b64encode(value.encode()).decode() for name, value in found.items()}
            labels = {"app.kubernetes.io/name": "nvcf-agent"}
            await api.apply(SECRET, SECRET.new(options.secret, options.namespace, labels, data=data))
        return found[CLUSTER_ID]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse_arguments(arguments)
    try:
        cluster_id = asyncio.run(run(options))
    except (AgentError, ApiError) as error:
        sys.stderr.write(f"registration: {error}\n")
        return 1
    sys.stdout.write(f"{options.name} is registered as {cluster_id}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
