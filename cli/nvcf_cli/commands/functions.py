"""`nvcf undeploy`, `functions`."""

import asyncio
from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.api import Api
from nvcf_cli.catalog import INACTIVE, require_function
from nvcf_cli.options import Access, DataOption, JsonOption, KeyFileOption, NameArgument, UrlOption
from nvcf_cli.screen import age, cell, console, print_json, print_table


def undeploy(
    name: NameArgument,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the function too, with its queue.")
    ] = False,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Take a function's instances away; they finish what they hold.

    \b
    Examples:
      nvcf undeploy hello
      nvcf undeploy hello --delete
    """

    async def work(api: Api) -> int:
        found = require_function(await api.functions(), name)
        count = 0
        for version in found.versions:
            count += await api.undeploy(found.id, str(version["versionId"]))
        if delete:
            await api.call("DELETE", f"/v2/nvcf/functions/{found.id}")
        return count

    count = asyncio.run(Access(data, url, key_file).use(work))
    text = f"{name}: undeployed" if count else f"{name}: was not deployed"
    console().print(Text(f"{text}, removed" if delete else text))


def functions(
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Versions that are not deployed, too.")
    ] = False,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List functions and their versions.

    \b
    Examples:
      nvcf functions
      nvcf functions --all --json
    """
    listed = asyncio.run(Access(data, url, key_file).use(lambda api: api.functions()))
    shown = [each for each in listed if everything or each.get("status") != INACTIVE]
    if as_json:
        print_json(shown)
        return
    hidden = len(listed) - len(shown)
    empty = (
        f"nothing is deployed ({hidden} inactive: --all)"
        if hidden
        else "no functions: try nvcf deploy function.py"
    )
    rows = [
        (
            cell(each, "name"),
            cell(each, "status"),
            str(each.get("instances", "")),
            age(each.get("createdAt")),
            cell(each, "versionId"),
        )
        for each in shown
    ]
    print_table(("NAME", "STATUS", "INSTANCES", "AGE", "VERSION"), rows, empty)
