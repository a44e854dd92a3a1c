"""`nvcf registry add`, `list`, `delete`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.access import Access, DataOption, JsonOption, KeyFileOption, UrlOption
from nvcf_cli.api import Api, Json, objects
from nvcf_cli.errors import CliError
from nvcf_cli.screen import age, cell, console, print_json, print_table
from nvcf_cli.secret_values import login, read_value
from nvcf_cli.telemetry import word
from nvcf_proto.models import ArtifactType

app = typer.Typer(
    help="Logins for registries of images, charts, models and resources.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

BASE = "/v2/nvcf/registry-credentials"
HostArgument = Annotated[
    str, typer.Argument(metavar="HOST", help="Its host name, e.g. ghcr.io.", show_default=False)
]


@app.command()
def add(
    host: HostArgument,
    user: Annotated[str, typer.Option(metavar="NAME", help="User; $oauthtoken for NGC.", show_default=False)],
    artifact: Annotated[
        list[str] | None,
        typer.Option(
            metavar="container|helm|model|resource", help="What it is for; repeatable. [default: container]"
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="A name for it.", show_default=False)
    ] = "registry-login",
    from_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with the password. [default: standard input]"),
    ] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="What it is.")] = None,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a login for a registry. The password or token is read, never shown again.

    \b
    Examples:
      nvcf registry add ghcr.io --user robot --from-file token.txt
      nvcf registry add nvcr.io --user '$oauthtoken' --artifact container --artifact helm < ngc-key.txt
    """
    kinds = [word(ArtifactType, "--artifact", each).value for each in artifact or ["container"]]
    body: Json = {
        "registryHostname": host,
        "secret": {"name": name, "value": login(user, read_value(from_file, f"password of {user}"))},
        "artifactTypes": kinds,
    }
    if description is not None:
        body["description"] = description
    answer = Access(data, url, key_file).run(lambda api: api.call("POST", BASE, body))
    made: Json = answer["registryCredential"]
    if as_json:
        print_json(made)
        return
    console().print(Text(f"{host}: added for {', '.join(each.lower() for each in kinds)}"))


@app.command("list")
def list_all(
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the account's logins, without their passwords.

    \b
    Examples:
      nvcf registry list
      nvcf registry list --json
    """
    found = Access(data, url, key_file).run(_all)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            cell(each, "registryHostname"),
            " ".join(str(kind).lower() for kind in each.get("artifactTypes", [])),
            cell(each, "registryCredentialName"),
            age(each.get("lastUpdatedAt")),
            cell(each, "registryCredentialId"),
        )
        for each in found
    ]
    print_table(("HOST", "FOR", "NAME", "AGE", "ID"), rows, "no logins: try nvcf registry add")


@app.command()
def delete(
    host: Annotated[str, typer.Argument(metavar="HOST|ID", help="Its host or id.", show_default=False)],
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a login; by host all of that host.

    \b
    Examples:
      nvcf registry delete ghcr.io
      nvcf registry delete ghcr.io --json
    """

    async def work(api: Api) -> list[str]:
        meant = [
            str(each["registryCredentialId"])
            for each in await _all(api)
            if host in (each.get("registryHostname"), each.get("registryCredentialId"))
        ]
        if not meant:
            raise CliError(f"there is no login for {host}: see nvcf registry list")
        for each in meant:
            await api.call("DELETE", f"{BASE}/{each}")
        return meant

    done = Access(data, url, key_file).run(work)
    if as_json:
        print_json({"registryCredentialIds": done})
        return
    console().print(Text(f"{host}: deleted"))


async def _all(api: Api) -> list[Json]:
    return objects(await api.call("GET", BASE), "registryCredentials")
