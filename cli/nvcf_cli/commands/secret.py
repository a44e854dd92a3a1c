"""`nvcf secret set`, `list`, `delete`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.access import Access, DataOption, JsonOption, KeyFileOption, NameArgument, UrlOption
from nvcf_cli.api import Api, Json
from nvcf_cli.catalog import Found, require_function
from nvcf_cli.errors import CliError
from nvcf_cli.screen import cell, console, print_json, print_table
from nvcf_cli.secret_values import check_secret_name, parsed, read_value

app = typer.Typer(
    help="Secrets of functions: set, rotate, list their names, delete.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SecretArgument = Annotated[
    str, typer.Argument(metavar="SECRET", help="The secret's name.", show_default=False)
]
VersionOption = Annotated[
    str | None,
    typer.Option(
        "--version",
        metavar="ID",
        help="Only this version. [default: the deployed ones, else the newest]",
        show_default=False,
    ),
]


def versions_of(found: Found, version_id: str | None) -> list[Json]:
    """Return the versions that are meant. Raises `CliError` for an unknown one. Pure."""
    if version_id is None:
        return list(found.deployed) or [found.newest]
    chosen = [each for each in found.versions if each.get("versionId") == version_id]
    if not chosen:
        raise CliError(f"{found.name} has no version {version_id}: see nvcf functions --all")
    return chosen


def secrets_path(version: Json) -> str:
    """Return the path of a version's secrets."""
    return f"/v2/nvcf/secrets/functions/{version['id']}/versions/{version['versionId']}"


@app.command("set")
def set_secret(
    name: NameArgument,
    secret: SecretArgument,
    from_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with the value. [default: standard input]"),
    ] = None,
    value_json: Annotated[bool, typer.Option("--value-json", help="The value is JSON, not a text.")] = False,
    version: VersionOption = None,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set a secret of a function, or rotate it; a running function sees it within seconds.

    The value comes from a file, from standard input, or is asked for. A line break at its end is left out.

    \b
    Examples:
      nvcf secret set hello API_TOKEN
      nvcf secret set hello API_TOKEN --from-file token.txt
      openssl rand -base64 32 | nvcf secret set hello SESSION_KEY
    """
    check_secret_name(secret)
    value = parsed(read_value(from_file, f"value of {secret}"), is_json=value_json)

    async def work(api: Api) -> list[str]:
        chosen = versions_of(require_function(await api.functions(), name), version)
        for each in chosen:
            body = {"secrets": [{"name": secret, "value": value}]}
            await api.call("PUT", secrets_path(each), body)
        return [str(each["versionId"]) for each in chosen]

    done = Access(data, url, key_file).run(work)
    if as_json:
        print_json({"name": secret, "functionVersionIds": done})
        return
    console().print(Text(f"{name}: {secret} is set ({_count(done)})"))


@app.command("list")
def list_secrets(
    name: NameArgument,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the names of a function's secrets. Nothing shows their values.

    \b
    Examples:
      nvcf secret list hello
      nvcf secret list hello --json
    """

    async def work(api: Api) -> list[Json]:
        return list(require_function(await api.functions(), name).versions)

    versions = Access(data, url, key_file).run(work)
    if as_json:
        members = ("versionId", "status")
        print_json(
            [
                {**{each: version.get(each) for each in members}, "secrets": version.get("secrets", [])}
                for version in versions
            ]
        )
        return
    rows = [
        (str(secret), cell(version, "status"), cell(version, "versionId"))
        for version in versions
        for secret in version.get("secrets") or ()
    ]
    empty = f"{name} has no secrets: nvcf secret set {name} NAME sets one"
    print_table(("SECRET", "STATUS", "VERSION"), rows, empty)


@app.command()
def delete(
    name: NameArgument,
    secret: SecretArgument,
    version: VersionOption = None,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a secret of a function; a running function loses it within seconds.

    \b
    Examples:
      nvcf secret delete hello API_TOKEN
      nvcf secret delete hello API_TOKEN --json
    """

    async def work(api: Api) -> list[str]:
        chosen = versions_of(require_function(await api.functions(), name), version)
        having = [each for each in chosen if secret in (each.get("secrets") or ())]
        if not having:
            raise CliError(f"{name} has no secret {secret}: see nvcf secret list {name}")
        for each in having:
            await api.call("DELETE", f"{secrets_path(each)}/names/{secret}")
        return [str(each["versionId"]) for each in having]

    done = Access(data, url, key_file).run(work)
    if as_json:
        print_json({"name": secret, "functionVersionIds": done})
        return
    console().print(Text(f"{name}: {secret} is deleted ({_count(done)})"))


def _count(versions: list[str]) -> str:
    return "1 version" if len(versions) == 1 else f"{len(versions)} versions"
