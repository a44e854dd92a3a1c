"""`nvcf key create`, `list`, `delete`."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from nvcf_broker.files import write_private
from nvcf_cli.access import Access, DataOption, JsonOption, KeyFileOption, UrlOption
from nvcf_cli.api import Api, Json, objects
from nvcf_cli.catalog import require_function
from nvcf_cli.errors import CliError
from nvcf_cli.screen import age, cell, console, print_json, print_table

app = typer.Typer(
    help="API keys of your account.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def create(
    scope: Annotated[
        list[str],
        typer.Option(
            "--scope",
            "-s",
            help="invoke, list, manage, deploy, admin or operator; repeatable.",
            show_default=False,
        ),
    ],
    description: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What it is for.", show_default=False)
    ] = None,
    function: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only for this function; repeatable.")
    ] = None,
    days: Annotated[
        float | None,
        typer.Option(min=0.001, max=36_500, help="Its life. [default: for ever]", show_default=False),
    ] = None,
    key_out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the key to this file instead of the terminal.", show_default=False
        ),
    ] = None,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key. Its text is shown this once.

    \b
    Examples:
      nvcf key create --scope invoke --function hello --days 30
      nvcf key create -s deploy -s list --description ci --key-out ci.key
    """

    async def work(api: Api) -> Json:
        body: Json = {"scopes": scope}
        if function:
            listed = await api.functions()
            body["functionIds"] = [require_function(listed, each).id for each in function]
        if description is not None:
            body["description"] = description
        if days is not None:
            body["expiresAt"] = (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="seconds")
        made: Json = (await api.call("POST", "/v2/nvcf/keys", body))["key"]
        return made

    made = Access(data, url, key_file).run(work)
    if key_out is not None:
        try:
            write_private(key_out, f"{made['key']}\n")
        except OSError as error:
            raise CliError(f"cannot write {key_out}: {error.strerror}; the key is {made['key']}") from error
        made = {name: value for name, value in made.items() if name != "key"}
    if as_json:
        print_json(made)
        return
    where = f"in {key_out}" if key_out is not None else f"{made['key']}    (shown this once)"
    console().print(Text(f"key {made['id']}: {where}"))


@app.command("list")
def list_keys(
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the API keys of your account, without their text.

    \b
    Examples:
      nvcf key list
      nvcf key list --json
    """

    async def work(api: Api) -> list[Json]:
        return objects(await api.call("GET", "/v2/nvcf/keys"), "keys")

    found = Access(data, url, key_file).run(work)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            cell(each, "id"),
            ", ".join(map(str, each.get("scopes") or ())),
            age(each.get("createdAt")),
            cell(each, "expiresAt"),
            f"{len(each.get('functionIds') or ())} functions" if each.get("functionIds") else "all",
            cell(each, "description"),
        )
        for each in found
    ]
    print_table(("KEY", "SCOPES", "AGE", "EXPIRES", "FUNCTIONS", "DESCRIPTION"), rows, "no keys")


@app.command()
def delete(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Its id, 12 hex digits.", show_default=False)],
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke an API key; it is refused from now on.

    \b
    Examples:
      nvcf key delete 0123456789ab
    """
    # The id is the part of the text between the dashes: take the text as well.
    parts = key_id.split("-")
    wanted = parts[1] if len(parts) > 2 and parts[0] == "nvcf" else key_id

    async def work(api: Api) -> None:
        await api.call("DELETE", f"/v2/nvcf/keys/{wanted}")

    Access(data, url, key_file).run(work)
    if as_json:
        print_json({"id": wanted, "revoked": True})
    else:
        console().print(Text(f"key {wanted}: revoked"))
