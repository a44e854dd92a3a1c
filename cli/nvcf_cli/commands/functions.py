"""`nvcf deploy`, `undeploy`, `functions`, `instances`."""

import asyncio
from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.api import Api, Json
from nvcf_cli.catalog import INACTIVE, require_function
from nvcf_cli.deploying import (
    Deployed,
    DeployFailed,
    DeployRequest,
    check_name,
    deploy,
    find_file,
    find_python,
    name_from_file,
    parse_environment,
    split_target,
)
from nvcf_cli.options import Access, DataOption, JsonOption, KeyFileOption, NameArgument, UrlOption
from nvcf_cli.screen import Progress, age, console, print_json, print_table
from nvcf_cli.tailing import readable


def deploy_command(
    target: Annotated[
        str, typer.Argument(metavar="FILE[:HANDLER]", help="A Python file.", show_default=False)
    ],
    name: Annotated[
        str | None, typer.Option(help="The function's name. [default: the file's]", show_default=False)
    ] = None,
    instances: Annotated[int, typer.Option("--instances", "-n", min=0, max=1000, help="Processes.")] = 1,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", min=1, max=1024, help="Requests at a time per process.")
    ] = 1,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="NAME=VALUE", help="A variable for the function; repeatable."),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="The function's Python. [default: nvcf's own]", show_default=False),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until all instances are ready.")] = True,
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="For --wait.")] = 1800.0,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Deploy a Python file as a function.

    The same name again makes a new version of it.
    The version before serves until the new one is ready. A new one that does not start is taken back.

    \b
    Examples:
      nvcf deploy hello.py
      nvcf deploy models.py:Summarizer --name summarize --instances 2 --concurrency 4
      nvcf deploy app.py --python ./venv/bin/python --env MODEL=small
    """
    file_text, handler = split_target(target)
    file = find_file(file_text)
    request = DeployRequest(
        name=check_name(name) if name else name_from_file(file),
        file=file,
        handler=handler,
        python=find_python(python),
        environment=parse_environment(env or []),
        instances=instances,
        concurrency=concurrency,
    )

    async def work(api: Api) -> Deployed:
        with Progress() as progress:
            return await deploy(
                api,
                request,
                wait=wait,
                timeout=timeout,
                show=lambda text: progress.show(f"{request.name}: {text}"),
            )

    try:
        done = asyncio.run(Access(data, url, key_file).use(work))
    except DeployFailed as failure:
        out = console(stderr=True)
        for line in failure.words:
            out.print(Text(f"  {readable(line)}", style="dim"))
        raise
    _report(done, request, as_json=as_json)


def _report(done: Deployed, request: DeployRequest, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "name": done.name,
                "functionId": done.function_id,
                "functionVersionId": done.version_id,
                "readySeconds": None if done.seconds is None else round(done.seconds, 3),
                "replacedVersions": done.replaced,
            }
        )
        return
    outcome = "deployed" if done.seconds is None else f"ready in {done.seconds:.1f} s"
    text = f"{done.name}: {outcome}"
    if request.instances != 1:
        text += f", {request.instances} instances"
    if done.replaced:
        text += ", the version before is ending"
    out = console()
    out.print(Text(text))
    out.print(Text(f"  function {done.function_id}  version {done.version_id}", style="dim"))


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
            _text(each, "name"),
            _text(each, "status"),
            str(each.get("instances", "")),
            age(each.get("createdAt")),
            _text(each, "versionId"),
        )
        for each in shown
    ]
    print_table(("NAME", "STATUS", "INSTANCES", "AGE", "VERSION"), rows, empty)


def instances(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only of this function.", show_default=False)
    ] = None,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List instances, their state, and why they failed.

    \b
    Examples:
      nvcf instances
      nvcf instances hello --json
    """

    async def work(api: Api) -> tuple[list[Json], dict[str, str]]:
        listed = await api.functions()
        names = {str(each.get("versionId")): str(each.get("name")) for each in listed}
        found = await api.instances()
        if name is not None:
            wanted = {str(each["versionId"]) for each in require_function(listed, name).versions}
            found = [each for each in found if each.get("functionVersionId") in wanted]
        return found, names

    found, names = asyncio.run(Access(data, url, key_file).use(work))
    if as_json:
        print_json(found)
        return
    rows = [
        (
            names.get(_text(each, "functionVersionId"), ""),
            _text(each, "state"),
            _text(each, "pid"),
            _text(each, "restarts"),
            age(each.get("createdAt")),
            _text(each, "instanceId"),
            _text(each, "reason").partition("\n")[0],
        )
        for each in found
    ]
    print_table(("FUNCTION", "STATE", "PID", "RESTARTS", "AGE", "INSTANCE", "REASON"), rows, "no instances")


def _text(record: Json, name: str) -> str:
    value = record.get(name)
    return "" if value is None else str(value)
