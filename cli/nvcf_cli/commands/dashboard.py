"""`nvcf dashboard`: the platform's built-in page."""

import os
import sys
import webbrowser
from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.access import Access, DataOption, KeyFileOption, UrlOption
from nvcf_cli.api import Api, ApiProblem
from nvcf_cli.errors import CliError
from nvcf_cli.screen import console

_NO_PAGE = 404


def dashboard(
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address instead of opening it.")
    ] = False,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Open the platform's page: functions, instances, queues, latencies, scaling decisions, live.

    The address signs the page in. It is good for two minutes, once opened the page reads for twelve hours.
    Your API key is not in it.

    \b
    Examples:
      nvcf dashboard
      nvcf dashboard --no-browser
    """
    access = Access(data, url, key_file)
    address = access.run(page_address)
    if no_browser or not has_display(dict(os.environ), sys.platform) or not webbrowser.open(address):
        # The address alone on standard output, for `xdg-open $(nvcf dashboard --no-browser)`.
        sys.stdout.write(address + "\n")
        console(stderr=True).print(Text("valid for two minutes, for anybody who has it", style="dim"))
        return
    console().print(Text(f"opened {address.partition('#')[0]}"))


async def page_address(api: Api) -> str:
    """Return the page's address with a new ticket. Raises `CliError`."""
    try:
        answer = await api.call("POST", "/v2/nvcf/dashboard/tickets")
    except ApiProblem as problem:
        if problem.status == _NO_PAGE:
            raise CliError(
                "this platform serves no dashboard (--no-dashboard, or an older gateway): try nvcf top"
            ) from problem
        raise
    # In the fragment, which a browser keeps to itself: it is in no request and no server's log.
    return f"{api.url}/dashboard/#ticket={answer.get('ticket', '')}"


def has_display(environment: dict[str, str], platform: str) -> bool:
    """Return whether a browser can be seen here: not over SSH, nor in a container. Pure."""
    if environment.get("SSH_CONNECTION") and not environment.get("DISPLAY"):
        return False
    if platform in ("darwin", "win32"):
        return True
    return any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
