"""Registering the local platform's clusters at its gateway, each with a key for its agent.

`clusters.json` has the ids of those that `nvcf up` registered: {NAME: CLUSTER-ID}.
"""

import json
from collections.abc import Sequence

from nvcf_broker.files import private_directory, write_private
from nvcf_cli.api import Api, ApiProblem, Target
from nvcf_cli.errors import CliError
from nvcf_cli.local.state import Installation


async def register_clusters(
    installation: Installation, target: Target, names: Sequence[str], *, anew: bool = False
) -> dict[str, str]:
    """Return the ids of these clusters; register what is new, delete what is no longer wanted.

    With `anew` all that are known are deleted first, and their instances with them.
    Doing it again changes nothing: names are unique in an account. A cluster whose key is lost gets a new
    one. Raises `CliError`.
    """
    known = _read(installation)
    async with Api(target) as api:
        if anew:
            for cluster_id in known.values():
                await _delete(api, cluster_id)
            known = {}
        ids = {name: await _register(installation, api, name, known.get(name)) for name in names}
        # Before the deletions: a start that fails here begins again.
        _write(installation, {**known, **ids})
        for name in known.keys() - ids.keys():
            await _delete(api, known[name])
    _write(installation, ids)
    return ids


async def _register(installation: Installation, api: Api, name: str, known: str | None) -> str:
    body = {"clusterName": name, "region": "local", "clusterDescription": "made by nvcf up"}
    answer = await api.call("POST", await api.account_path("/clusters?ifExists=return"), body)
    cluster_id = str(answer.get("clusterId") or "")
    if not cluster_id:
        raise CliError(f"the gateway answered the registration of the cluster {name} without an id")
    key = installation.agent_key(name)
    private_directory(key.parent)
    if "clusterKey" not in answer and (cluster_id != known or not key.exists()):
        answer = await api.call("POST", await api.account_path(f"/clusters/{cluster_id}/rotate"))
    if "clusterKey" in answer:
        write_private(key, f"{answer['clusterKey']}\n")
    return cluster_id


async def _delete(api: Api, cluster_id: str) -> None:
    try:
        await api.call("DELETE", await api.account_path(f"/clusters/{cluster_id}"))
    except ApiProblem as problem:
        # Somebody has deleted it already.
        if problem.status != 404:
            raise


def _read(installation: Installation) -> dict[str, str]:
    try:
        document = json.loads(installation.clusters.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(each) for name, each in document.items()} if isinstance(document, dict) else {}


def _write(installation: Installation, ids: dict[str, str]) -> None:
    write_private(installation.clusters, json.dumps(ids, indent=1) + "\n")
