"""`nvcf cluster register`, `list`, `show`, `cordon`, `drain`, `uncordon`, `rotate`, `delete`."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.access import Access, DataOption, JsonOption, KeyFileOption, UrlOption
from nvcf_cli.api import Api, ApiProblem, Json, objects
from nvcf_cli.clusters import (
    cluster_state,
    find_cluster,
    joined,
    name_of,
    pools_text,
    types_text,
)
from nvcf_cli.registering import attributes, next_steps, read_key_set, registration, show_key
from nvcf_cli.screen import age, cell, console, print_json, print_table, shortened

app = typer.Typer(
    help="GPU clusters: registering them, and what they do.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ClusterArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The cluster's name or id.", show_default=False)
]
KeyOutOption = Annotated[
    Path | None,
    typer.Option(
        "--key-out",
        metavar="FILE",
        help="Write the agent's key to this file instead of the terminal.",
        show_default=False,
    ),
]


@app.command()
def register(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A name, once in an account.", show_default=False)
    ],
    region: Annotated[str, typer.Option(metavar="NAME", help="Region of its functions' queues.")] = "local",
    group: Annotated[
        str | None, typer.Option(metavar="NAME", help="Cluster group.", show_default=False)
    ] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", show_default=False)] = None,
    cloud_provider: Annotated[
        str, typer.Option(metavar="NAME", help="ON-PREM, AWS, AZURE, GCP, OCI, NCP, DGX-CLOUD, GFN or GDN.")
    ] = "ON-PREM",
    account: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="Account whose functions may run there; repeatable. [default: all, or without the scope "
            "operator your own]",
        ),
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What deployments can ask for; repeatable."),
    ] = None,
    jwks: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Key set of the cluster's service account tokens; its agent then needs no key.",
            show_default=False,
        ),
    ] = None,
    issuer: Annotated[
        str | None, typer.Option(metavar="URL", help="Issuer of these tokens.", show_default=False)
    ] = None,
    key_out: KeyOutOption = None,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register a GPU cluster, and print how to start its agent. The agent's key is shown this once.

    \b
    Examples:
      nvcf cluster register lab
      nvcf cluster register lab --group onprem --key-out lab.key
      nvcf cluster register prod --jwks keys.json --issuer https://kubernetes.default.svc.cluster.local
    """
    body = registration(
        {
            "clusterName": name,
            "region": region,
            "clusterGroupName": group,
            "clusterDescription": description,
            "cloudProvider": cloud_provider,
            "authorizedNCAIds": account,
            "attributes": attributes(attribute or ()),
            "jwks": read_key_set(jwks),
            "oidcIssuer": issuer,
        }
    )
    access = Access(data, url, key_file)

    async def work(api: Api) -> tuple[str, Json]:
        return api.url, await api.call("POST", await api.account_path("/clusters"), body)

    address, answer = access.run(work)
    show_key(answer, key_out, name, next_steps(answer, address, access.installation, key_out), as_json)


@app.command("list")
def list_clusters(
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List clusters, and what is free in them.

    A cluster is registered until its agent has come, and silent when its agent has not reported for a
    while: it gets no new instances then.

    \b
    Examples:
      nvcf cluster list
      nvcf clusters --json          (the same)
    """
    found = Access(data, url, key_file).run(all_clusters)
    if as_json:
        print_json(found)
        return
    now = time.time()
    rows = [
        (
            shortened(name_of(each), 32),
            cluster_state(each, now),
            cell(each, "region"),
            cell(each, "clusterGroup") or cell(each, "clusterGroupName"),
            cell(each, "backend"),
            pools_text(each),
        )
        for each in found
    ]
    empty = "no clusters: nvcf cluster register NAME makes one"
    print_table(("CLUSTER", "STATE", "REGION", "GROUP", "BACKEND", "FREE"), rows, empty)


async def all_clusters(api: Api) -> list[Json]:
    """Return all clusters that the key may see, with what was registered where it may see that."""
    live = await api.clusters()
    try:
        answer = await api.call("GET", await api.account_path("/clusters"))
    except ApiProblem as problem:
        # The key cannot administer, or the platform has no such route.
        if problem.status not in (403, 404):
            raise
        return joined((), live)
    return joined(objects(answer, "clusters"), live)


@app.command()
def show(
    name: ClusterArgument,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a cluster: ids, state, what is free, and the instance types that deployments can name.

    \b
    Examples:
      nvcf cluster show lab
      nvcf cluster show lab --json
    """

    async def work(api: Api) -> tuple[Json, list[Json]]:
        found = find_cluster(await all_clusters(api), name)
        instances = [each for each in await api.instances() if each.get("clusterId") == found["clusterId"]]
        return found, instances

    found, instances = Access(data, url, key_file).run(work)
    if as_json:
        print_json(found)
        return
    running = sum(each.get("state") == "RUNNING" for each in instances)
    heartbeat = found.get("heartbeatAt")
    facts = {
        "state": cluster_state(found, time.time()),
        "id": cell(found, "clusterId"),
        "account": cell(found, "ncaId"),
        "region": cell(found, "region"),
        "group": cell(found, "clusterGroup") or cell(found, "clusterGroupName"),
        "backend": cell(found, "backend"),
        "agent": cell(found, "agentVersion"),
        "heartbeat": f"{_ago(heartbeat)} ago" if heartbeat else "none yet",
        "accounts": ", ".join(map(str, found.get("authorizedNCAIds") or found.get("authorizedNcaIds") or ())),
        "attributes": ", ".join(f"{key}={value}" for key, value in (found.get("attributes") or {}).items()),
        "free": pools_text(found),
        "instances": f"{running} running of yours",
    }
    out = console()
    out.print(Text(name_of(found), style="bold"))
    for label, text in facts.items():
        if text:
            out.print(Text(f"  {label:<11}{text}"))
    for line in types_text(found):
        out.print(Text(f"  type       {line}"))


@app.command()
def cordon(
    name: ClusterArgument,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a cluster no new instances; those that run stay.

    \b
    Examples:
      nvcf cluster cordon lab
    """
    _act(Access(data, url, key_file), name, "cordon", "gets no new instances: nvcf cluster uncordon", as_json)


@app.command()
def drain(
    name: ClusterArgument,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Empty a cluster: no new instances, and those that run are replaced elsewhere and end.

    \b
    Examples:
      nvcf cluster drain lab
    """
    _act(Access(data, url, key_file), name, "drain", "is being emptied: nvcf cluster show", as_json)


@app.command()
def uncordon(
    name: ClusterArgument,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a cordoned or drained cluster take instances again.

    \b
    Examples:
      nvcf cluster uncordon lab
    """
    _act(Access(data, url, key_file), name, "uncordon", "takes instances again", as_json)


@app.command()
def rotate(
    name: ClusterArgument,
    key_out: KeyOutOption = None,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new key for a cluster's agent. The old one works 10 more minutes.

    The agent reads its key file again by itself: replace the file's content.

    \b
    Examples:
      nvcf cluster rotate lab --key-out lab.key
    """

    async def work(api: Api) -> Json:
        return await api.call("POST", await _path(api, name, "/rotate"))

    answer = Access(data, url, key_file).run(work)
    show_key(answer, key_out, name, None, as_json)


@app.command()
def delete(
    name: ClusterArgument,
    force: Annotated[bool, typer.Option("--force", "-f", help="Do not ask.")] = False,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a cluster: its agent ends all instances at its next heartbeat and falls silent.

    \b
    Examples:
      nvcf cluster drain lab      (first, so that requests finish)
      nvcf cluster delete lab
    """
    if not force and not as_json:
        typer.confirm(f"end all instances of the cluster {name} and forget it?", abort=True)

    async def work(api: Api) -> Json:
        return await api.call("DELETE", await _path(api, name))

    answer = Access(data, url, key_file).run(work)
    if as_json:
        print_json(answer)
    else:
        console().print(Text(f"{name}: deleted"))


def _act(access: Access, name: str, action: str, text: str, as_json: bool) -> None:
    async def work(api: Api) -> Json:
        return await api.call("POST", await _path(api, name, f"/{action}"))

    answer = access.run(work)
    if as_json:
        print_json(answer)
    else:
        command = f" {name}" if "nvcf " in text else ""
        console().print(Text(f"{name}: {text}{command}"))


async def _path(api: Api, name: str, action: str = "") -> str:
    found = find_cluster(await all_clusters(api), name)
    return await api.account_path(f"/clusters/{found['clusterId']}{action}")


def _ago(moment: object) -> str:
    if isinstance(moment, int | float):
        moment = datetime.fromtimestamp(moment, UTC).isoformat()
    return age(moment)
