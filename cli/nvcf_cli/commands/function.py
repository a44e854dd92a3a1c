"""`nvcf function create`, `list`, `show`, `update`, `delete`."""

from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.access import Access, DataOption, JsonOption, KeyFileOption, NameArgument, UrlOption
from nvcf_cli.api import Api, ApiProblem, Json
from nvcf_cli.catalog import INACTIVE, Found, require_function
from nvcf_cli.commands import functions
from nvcf_cli.deploying import check_name, parse_environment
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.images import Artifact, creation, served_models
from nvcf_cli.screen import age, cell, console, print_json

app = typer.Typer(
    help="Functions and their versions, as records: nvcf deploy makes and deploys one in a single step.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The function's name.", show_default=False)],
    image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="Container image to run.", show_default=False)
    ] = None,
    helm_chart: Annotated[
        str | None, typer.Option(metavar="URL", help="Helm chart to install instead.", show_default=False)
    ] = None,
    helm_service: Annotated[
        str | None, typer.Option(metavar="NAME", help="The chart's service to call.", show_default=False)
    ] = None,
    args: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The container's arguments.", show_default=False)
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="NAME=VALUE", help="A variable of the container; repeatable."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of the function's server.", show_default=False),
    ] = None,
    inference_url: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Path of calls; /gRPC for gRPC. [default: /]", show_default=False),
    ] = None,
    health: Annotated[
        str | None, typer.Option(metavar="PATH", help="Path of its health check.", show_default=False)
    ] = None,
    library: Annotated[
        bool,
        typer.Option("--library", help="The image calls serve() itself: no worker beside it."),
    ] = False,
    kind: Annotated[
        str, typer.Option("--type", metavar="NAME", help="DEFAULT, STREAMING or LLM.")
    ] = "DEFAULT",
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH[,PATH]", help="A model and its OpenAI paths, for LLM; repeatable."),
    ] = None,
    token_rate: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="Tokens of an account at a model: 100000-M.", show_default=False),
    ] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", show_default=False)] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Repeatable.")] = None,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a function of an image or a Helm chart, or a new version of it. It is not deployed.

    \b
    Examples:
      nvcf function create echo --image registry.example.com/echo:1 --port 8000
      nvcf function create rag --helm-chart https://charts.example.com/charts/rag-1.0.tgz --helm-service api
      nvcf function create chat --image vllm:1 --port 8000 --type LLM --model tiny=/v1/chat/completions
    """
    artifact = Artifact(
        image=image,
        chart=helm_chart,
        chart_service=helm_service,
        arguments=args,
        environment=parse_environment(env or []),
        port=port,
        inference_url=inference_url,
        health=health,
        library=library,
    )
    body = creation(artifact, name=check_name(name), kind=kind, description=description, tags=tag or ())
    body |= served_models(model or (), kind, token_rate)

    async def work(api: Api) -> Json:
        known = [each for each in await api.functions() if each.get("name") == name]
        function_id = require_function(known, name).id if known else None
        return await api.create_version(body, function_id)

    made = Access(data, url, key_file).run(work)
    if as_json:
        print_json(made)
        return
    out = console()
    out.print(Text(f"{name}: created"))
    out.print(Text(f"  function {cell(made, 'id')}  version {cell(made, 'versionId')}", style="dim"))


app.command("list")(functions.functions)


@app.command()
def show(
    name: NameArgument,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a function: its versions, what they run, and how they are deployed.

    \b
    Examples:
      nvcf function show hello
      nvcf function show hello --json
    """

    async def work(api: Api) -> tuple[Found, dict[str, Json]]:
        found = require_function(await api.functions(), name)
        deployments = {}
        for each in found.deployed:
            version_id = str(each["versionId"])
            try:
                deployments[version_id] = await api.deployment(found.id, version_id)
            except ApiProblem as problem:
                # It has been undeployed meanwhile.
                if problem.status != 404:
                    raise
        return found, deployments

    found, deployments = Access(data, url, key_file).run(work)
    if as_json:
        versions = [
            {**each, "deployment": deployments.get(str(each["versionId"]))} for each in found.versions
        ]
        print_json({"id": found.id, "name": found.name, "versions": versions})
        return
    out = console()
    out.print(Text(found.name, style="bold"))
    out.print(Text(f"  id         {found.id}"))
    for each in found.versions:
        version_id = cell(each, "versionId")
        status = cell(each, "status").lower()
        out.print(Text(f"\n  version    {version_id}  {status}, {age(each.get('createdAt'))} old"))
        for label, text in version_facts(each, deployments.get(version_id)):
            out.print(Text(f"    {label:<9}{text}"))


def version_facts(version: Json, deployment: Json | None) -> list[tuple[str, str]]:
    """Return what to say about a version, as labels and texts. Pure."""
    process = version.get("process") or {}
    found = [
        ("image", cell(version, "containerImage")),
        ("chart", cell(version, "helmChart")),
        ("file", cell(process, "file") if isinstance(process, dict) else ""),
        ("type", cell(version, "functionType")),
        ("about", cell(version, "description")),
        ("tags", ", ".join(map(str, version.get("tags") or ()))),
    ]
    for each in (deployment or {}).get("deploymentSpecifications") or ():
        kind = f"{cell(each, 'gpu')} {cell(each, 'instanceType')}"
        numbers = f"{cell(each, 'minInstances')} to {cell(each, 'maxInstances')} instances"
        found.append(("deployed", f"{kind}, {numbers}, {cell(each, 'maxRequestConcurrency')} at once"))
    return [(label, text) for label, text in found if text]


@app.command()
def update(
    name: NameArgument,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="All its tags; repeatable.", show_default=False)
    ] = None,
    version: Annotated[
        str | None, typer.Option(metavar="ID", help="[default: the newest]", show_default=False)
    ] = None,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change the tags of a version. What it runs never changes: nvcf function create makes a new version.

    \b
    Examples:
      nvcf function update hello --tag team:vision --tag stage:prod
    """
    if not tag:
        raise UsageError("nothing to change: give --tag")

    async def work(api: Api) -> Json:
        found = require_function(await api.functions(), version or name)
        version_id = version or str(found.newest["versionId"])
        path = f"/v2/nvcf/metadata/functions/{found.id}/versions/{version_id}"
        return await api.call("PUT", path, {"tags": tag})

    answer = Access(data, url, key_file).run(work)
    if as_json:
        print_json(answer.get("function", answer))
    else:
        console().print(Text(f"{name}: {', '.join(tag)}"))


@app.command()
def delete(
    name: NameArgument,
    version: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this version.", show_default=False)
    ] = None,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a function, or one version of it. It must not be deployed.

    \b
    Examples:
      nvcf function delete hello
      nvcf function delete hello --version 7f0c2d3e-5b6a-4c1d-8e9f-0a1b2c3d4e5f
    """

    async def work(api: Api) -> Json:
        found = require_function(await api.functions(), name)
        chosen = [each for each in found.versions if version in (None, each.get("versionId"))]
        if not chosen:
            raise CliError(f"{found.name} has no version {version}")
        if any(each.get("status") != INACTIVE for each in chosen):
            raise CliError(f"{found.name} is deployed: nvcf undeploy {found.name} comes first")
        if version is None:
            await api.call("DELETE", f"/v2/nvcf/functions/{found.id}")
        else:
            await api.delete_version(found.id, version)
        return {"id": found.id, "versions": [each["versionId"] for each in chosen]}

    gone = Access(data, url, key_file).run(work)
    if as_json:
        print_json(gone)
    else:
        console().print(Text(f"{name}: {'deleted' if version is None else f'version {version} deleted'}"))
