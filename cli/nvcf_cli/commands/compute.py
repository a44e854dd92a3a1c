"""`nvcf instances`."""

from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.access import Access, DataOption, JsonOption, KeyFileOption, UrlOption
from nvcf_cli.api import Api, Json
from nvcf_cli.catalog import require_function
from nvcf_cli.clusters import name_of
from nvcf_cli.instance_ids import short_ids
from nvcf_cli.screen import age, cell, console, print_json, print_table, shortened
from nvcf_proto.models import InstanceState

# A narrower terminal gets fewer columns.
_WIDE = 120


def instances(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only of this function.", show_default=False)
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also instances that ended lately.")
    ] = False,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List instances, where they run, their state, and why they failed.

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

    found, names = Access(data, url, key_file).run(work)
    if not everything:
        found = [each for each in found if each.get("state") != InstanceState.COMPLETED]
    if as_json:
        print_json(found)
        return
    out = console()
    if out.is_terminal and out.width < _WIDE:
        _narrow(found, names)
        return
    rows = [
        (
            names.get(cell(each, "functionVersionId"), ""),
            cell(each, "state"),
            name_of(each),
            gpu_text(each),
            cell(each, "pid"),
            cell(each, "restarts"),
            age(each.get("createdAt")),
            cell(each, "instanceId"),
            cell(each, "reason").partition("\n")[0],
        )
        for each in found
    ]
    columns = ("FUNCTION", "STATE", "CLUSTER", "GPU", "PID", "RESTARTS", "AGE", "INSTANCE", "REASON")
    print_table(columns, rows, "no instances")


def _narrow(found: list[Json], names: dict[str, str]) -> None:
    """Print fewer columns, short ids, and the reasons below."""
    ids = short_ids(cell(each, "instanceId") for each in found)
    rows = [
        (
            shortened(names.get(cell(each, "functionVersionId"), ""), 24),
            cell(each, "state"),
            shortened(name_of(each), 12),
            gpu_text(each),
            age(each.get("createdAt")),
            ids[cell(each, "instanceId")],
        )
        for each in found
    ]
    print_table(("FUNCTION", "STATE", "CLUSTER", "GPU", "AGE", "INSTANCE"), rows, "no instances")
    for each in found:
        if reason := cell(each, "reason").partition("\n")[0]:
            console().print(Text(f"{ids[cell(each, 'instanceId')]}: {reason}", style="dim"))


def gpu_text(instance: Json) -> str:
    """Return an instance's GPU with the numbers of its devices: `L40S 0,1`. Pure."""
    devices = cell(instance, "visibleDevices")
    return f"{cell(instance, 'gpu')} {devices}".strip()
