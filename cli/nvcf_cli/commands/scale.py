"""`nvcf scale`."""

from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.access import Access, DataOption, JsonOption, KeyFileOption, NameArgument, UrlOption
from nvcf_cli.api import Api, Json
from nvcf_cli.catalog import require_function
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.scale import Scale, rescaled
from nvcf_cli.screen import console, print_json


def scale(
    name: NameArgument,
    minimum: Annotated[
        int | None,
        typer.Option("--min", min=0, max=1000, help="Least instances; 0: scale to zero.", show_default=False),
    ] = None,
    maximum: Annotated[
        int | None,
        typer.Option("--max", min=1, max=1000, help="Largest number of instances.", show_default=False),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            "-c",
            min=1,
            max=1024,
            help="Requests that one instance runs at once; instances are replaced.",
            show_default=False,
        ),
    ] = None,
    specification: Annotated[
        int,
        typer.Option(
            "--specification", min=1, metavar="N", help="Which GPU specification, if there are several."
        ),
    ] = 1,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change how many instances a function has; requests go on meanwhile.

    What is not given stays as it is. A --min above the --max of before raises that, too.

    \b
    Examples:
      nvcf scale hello --min 0 --max 8
      nvcf scale hello --concurrency 4
    """
    if minimum is maximum is concurrency is None:
        raise UsageError("nothing to change: give --min, --max or --concurrency")

    async def work(api: Api) -> Json:
        found = require_function(await api.functions(), name)
        if not found.deployed:
            raise CliError(f"{found.name} is not deployed: nvcf deploy does that")
        version_id = str(found.newest["versionId"])
        deployment = await api.deployment(found.id, version_id)
        wanted = rescaled(deployment, specification, minimum, maximum, concurrency)
        return await api.change_deployment(found.id, version_id, wanted)

    changed = Access(data, url, key_file).run(work)
    if as_json:
        print_json(changed)
        return
    each = changed["deploymentSpecifications"][specification - 1]
    low, high, slots = each["minInstances"], each["maxInstances"], each.get("maxRequestConcurrency", 1)
    text = Scale(minimum=low, maximum=high).text
    console().print(Text(f"{name}: {text}, {slots} request{'s' * (slots != 1)} at once in each"))
