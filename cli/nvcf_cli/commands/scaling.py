"""`nvcf events`, `scaling`: what happened to functions, and why they have as many instances as they have."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.access import Access, DataOption, JsonOption, KeyFileOption, NameArgument, UrlOption
from nvcf_cli.api import Api, Json
from nvcf_cli.catalog import Found, require_function
from nvcf_cli.clusters import name_of
from nvcf_cli.screen import age, cell, console, print_json, print_table
from nvcf_cli.snapshot import decision_text
from nvcf_proto.models import InstanceState

LimitOption = Annotated[
    int, typer.Option("--limit", "-n", min=1, max=1000, help="Number of the newest entries.")
]
_SHOWN = (InstanceState.RUNNING, InstanceState.STARTING, InstanceState.PENDING, InstanceState.TERMINATING)


def events(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only of this function.", show_default=False)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Only this kind: scaling, instance or secret.", show_default=False),
    ] = None,
    limit: LimitOption = 50,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what happened to functions: scaling, instances.

    \b
    Examples:
      nvcf events
      nvcf events hello --kind instance --limit 10
    """

    async def work(api: Api) -> list[Json]:
        if name is None:
            return await api.events(kind=kind, limit=limit)
        return await _events_of(api, require_function(await api.functions(), name), kind, limit)

    found = Access(data, url, key_file).run(work)
    if as_json:
        print_json(found)
        return
    # The newest is the last line, as in a log.
    rows = [
        (
            age(each.get("at")),
            cell(each, "functionName"),
            cell(each, "kind"),
            cell(each, "text").partition("\n")[0],
        )
        for each in reversed(found)
    ]
    print_table(("AGE", "FUNCTION", "KIND", "WHAT"), rows, "nothing has happened yet")


def scaling(
    name: NameArgument,
    limit: LimitOption = 10,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how many instances a function has, and the last decisions about that with their reasons.

    \b
    Examples:
      nvcf scaling hello
      nvcf scaling hello --json --limit 100
    """

    async def work(api: Api) -> tuple[Found, list[Json], list[Json]]:
        found = require_function(await api.functions(), name)
        versions = {str(each["versionId"]) for each in found.versions}
        instances = [each for each in await api.instances() if each.get("functionVersionId") in versions]
        return found, instances, await _events_of(api, found, "scaling", limit)

    found, instances, decisions = Access(data, url, key_file).run(work)
    if as_json:
        print_json({"name": found.name, "instances": instances, "decisions": decisions})
        return
    console().print(Text(f"{found.name}: {instances_text(instances)}"))
    rows = [
        (age(each.get("at")), cell(each, "functionVersionId")[:8], *decision_text(each))
        for each in reversed(decisions)
    ]
    print_table(("AGE", "VERSION", "INSTANCES", "WHY"), rows, "nothing has been decided yet")


def instances_text(instances: Iterable[Json]) -> str:
    """Return living instances by state and cluster: `3 running (2 on one, 1 on two)`. Pure."""
    living = [each for each in instances if each.get("state") in _SHOWN]
    texts = []
    for state in _SHOWN:
        clusters = Counter(name_of(each) for each in living if each.get("state") == state)
        if clusters:
            where = ", ".join(f"{count} on {cluster}" for cluster, count in sorted(clusters.items()))
            texts.append(f"{clusters.total()} {state.lower()} ({where})")
    return ", ".join(texts) or "no instances"


async def _events_of(api: Api, found: Found, kind: str | None, limit: int) -> list[Json]:
    """Return the last events of all versions of a function, newest first."""
    lists = await asyncio.gather(
        *(api.events(str(each["versionId"]), kind=kind, limit=limit) for each in found.versions)
    )
    merged = [event for part in lists for event in part]
    return sorted(merged, key=lambda event: str(event.get("at", "")), reverse=True)[:limit]
