"""`nvcf request`: requests that were answered 202 and go on without their caller."""

import time
from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.access import Access, DataOption, KeyFileOption, UrlOption
from nvcf_cli.api import Api
from nvcf_cli.commands.calls import Writer
from nvcf_cli.errors import UsageError
from nvcf_cli.invoking import cancel, fetch
from nvcf_cli.screen import console
from nvcf_proto.errors import InvalidId
from nvcf_proto.ids import parse_id

app = typer.Typer(no_args_is_help=True, help="Fetch the answer of a request that goes on, or cancel it.")

RequestArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Id of the request, as nvcf invoke prints it (NVCF-REQID).")
]


def _checked(request_id: str) -> str:
    try:
        return parse_id(request_id, "request id")
    except InvalidId as error:
        raise UsageError(str(error)) from error


@app.command("result")
def result(
    request_id: RequestArgument,
    timeout: Annotated[float, typer.Option(min=1, max=3600, metavar="SECONDS", help="Longest wait.")] = 60.0,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Wait for the answer of a request and print it.

    Without an idempotency key an answer can be fetched once.

    \b
    Examples:
      nvcf request result 5b1c0a52-5d4c-4b8f-9a61-0c9e6a1f7d11
      nvcf request result 5b1c0a52-5d4c-4b8f-9a61-0c9e6a1f7d11 --timeout 600
    """
    known, writer = _checked(request_id), Writer()

    async def work(api: Api) -> None:
        await fetch(api, known, time.monotonic() + timeout, write=writer)

    Access(data, url, key_file).run(work)
    writer.finish()


@app.command("cancel")
def cancel_command(
    request_id: RequestArgument,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Cancel a request, whether it waits in the queue or a worker has it.

    \b
    Examples:
      nvcf request cancel 5b1c0a52-5d4c-4b8f-9a61-0c9e6a1f7d11
    """
    known = _checked(request_id)

    async def work(api: Api) -> None:
        await cancel(api, known)

    Access(data, url, key_file).run(work)
    console().print(Text(f"request {known} is cancelled"))
