"""`nvcf new`, `functions`, `undeploy`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.access import Access, DataOption, JsonOption, KeyFileOption, NameArgument, UrlOption
from nvcf_cli.api import Api
from nvcf_cli.catalog import INACTIVE, require_function
from nvcf_cli.errors import UsageError
from nvcf_cli.scaffold import TEMPLATES, project, write_project
from nvcf_cli.screen import age, cell, console, print_json, print_table


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The function's name.", show_default=False)],
    template: Annotated[
        str, typer.Option("--template", "-t", help=f"One of {', '.join(TEMPLATES)}.")
    ] = "hello",
    folder: Annotated[
        Path | None,
        typer.Option("--folder", metavar="DIR", help="[default: the name, here]", show_default=False),
    ] = None,
) -> None:
    """Write a folder for a new function: code, test, Dockerfile, requirements, README.

    \b
    Examples:
      nvcf new greeter
      nvcf new speaker --template stream
      nvcf new api --template asgi --folder functions/api
    """
    target = folder or Path(name)
    written = write_project(target, project(name, template))
    out = console()
    out.print(Text(f"{name}: {len(written)} files in {target}"))
    for path in written:
        out.print(Text(f"  {path.name}", style="dim"))
    out.print(
        Text(f"\nNext:\n  cd {shlex.quote(str(target))}\n  pip install -r requirements.txt pytest && pytest")
    )
    out.print(Text(f"  {TEMPLATES[template].run}"))
    out.print(Text(f"  nvcf deploy function.py --name {shlex.quote(name)}    # with nvcf up"))


def undeploy(
    name: NameArgument,
    delete: Annotated[bool, typer.Option("--delete", help="Also delete the function and its queue.")] = False,
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

    count = Access(data, url, key_file).run(work)
    text = f"{name}: undeployed" if count else f"{name}: was not deployed"
    console().print(Text(f"{text}, removed" if delete else text))


def delete(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)] = "NAME",
) -> None:
    """Say which command deletes a function."""
    raise UsageError(f"there is no nvcf delete: use nvcf undeploy {shlex.quote(name)} --delete")


def functions(
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also versions that are not deployed.")
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
    listed = Access(data, url, key_file).run(lambda api: api.functions())
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
