"""`nvcf invoke` and `nvcf logs`."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated

import aiohttp
import typer
from rich.text import Text

from nvcf_cli.access import Access, DataOption, KeyFileOption, NameArgument, UrlOption
from nvcf_cli.api import Api, Json
from nvcf_cli.catalog import FINISHED, require_function
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.instance_ids import is_named, short_id
from nvcf_cli.invoking import Call, invoke, parse_headers
from nvcf_cli.screen import console
from nvcf_cli.tailing import LogFile, follow, readable

_DISCOVER_SECONDS = 1.0


def read_data(data: str | None) -> bytes:
    """Return the request body: `@FILE`, `-` for standard input, else the text. Raises `UsageError`."""
    if data is None:
        return b""
    if data == "-":
        return sys.stdin.buffer.read()
    if not data.startswith("@"):
        return data.encode()
    try:
        return Path(data[1:]).expanduser().read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {data[1:]}: {error.strerror}") from error


def invoke_command(
    name: NameArgument,
    body: Annotated[
        str | None,
        typer.Option("--data", "-d", metavar="@FILE|TEXT|-", help="Request body.", show_default=False),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Ask for an event stream, show it as it arrives.")
    ] = False,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", metavar="NAME=VALUE", help="Request header; repeatable."),
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(metavar="/PATH", help="Path and query that the function sees.", show_default=False),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", "-X", help="HTTP method. [default: POST]", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, max=3600, metavar="SECONDS", help="Longest wait.")] = 60.0,
    include: Annotated[bool, typer.Option("--include", "-i", help="Show status and headers first.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            "--platform", metavar="DIR", help="Data folder of the local platform.", show_default=False
        ),
    ] = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Send a request to a function and print its response.

    \b
    Examples:
      nvcf invoke hello --data '{"name": "Ada"}'
      nvcf invoke ocr --data @picture.png > text.json
      cat words.txt | nvcf invoke stream --data - --stream
      nvcf invoke api --method GET --path '/items?limit=3'
    """
    headers = parse_headers(header or [])
    content = read_data(body)

    async def work(api: Api) -> None:
        found = require_function(await api.functions(), name)
        if not found.deployed:
            raise CliError(f"{name} is not deployed: nvcf deploy does that")
        call = Call(found.id, content, headers, method, path, timeout, stream)
        await invoke(api, call, write=writer, head=_show_head if include else None)

    writer = Writer()
    Access(data, url, key_file).run(work)
    writer.finish()


class Writer:
    """Bytes to standard output at once; a terminal gets a final line end."""

    def __init__(self) -> None:
        self._ended = True

    def __call__(self, chunk: bytes) -> None:
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
        self._ended = chunk.endswith(b"\n")

    def finish(self) -> None:
        if not self._ended and sys.stdout.isatty():
            self(b"\n")


def _show_head(response: aiohttp.ClientResponse) -> None:
    out = console(stderr=True)
    out.print(Text(f"HTTP {response.status} {response.reason or ''}"))
    for key, value in response.headers.items():
        out.print(Text(f"{key}: {value}"))
    out.print()


def logs(
    name: NameArgument,
    following: Annotated[
        bool, typer.Option("--follow", "-f", help="Show lines as they are written.")
    ] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Last lines of each instance.")] = 50,
    instance: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Only of this instance; the beginning of its id is enough.", show_default=False
        ),
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="JSON log lines as they are.")] = False,
    data: DataOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
) -> None:
    """Show what a function's instances print. Of a platform that is down, the last instance's output.

    \b
    Examples:
      nvcf logs hello
      nvcf logs hello -f
      nvcf logs hello -n 500 --raw
    """
    access = Access(data, url, key_file)
    if not access.platform_runs and not following:
        _show_last(access.installation.function_logs(name), name, instance, lines, raw=raw)
        return

    async def work(api: Api) -> None:
        function = require_function(await api.functions(), name)

        async def paths() -> dict[str, Path]:
            versions = {str(each["versionId"]) for each in function.versions}
            records = [each for each in await api.instances() if each.get("functionVersionId") in versions]
            return _log_paths(records, access.installation.function_logs(function.name), instance)

        files = {key: LogFile(path) for key, path in (await paths()).items()}
        if not files and not following:
            raise CliError(f"{name} has no instance with a log" + (f" {instance}" if instance else ""))
        show = _Printer(raw=raw, several=len(files) > 1)
        for key, file in files.items():
            for line in await asyncio.to_thread(file.last_lines, lines):
                show(key, line)
        if following:
            await _follow(paths, files, show)

    access.run(work)


def _show_last(folders: list[Path], name: str, instance: str | None, lines: int, *, raw: bool) -> None:
    """Print the log of the last instance of a function by name, without a platform. Raises `CliError`."""
    found = _log_paths([], folders, instance)
    if not found:
        raise CliError(f"no platform runs here, and there is no log of a function called {name}")
    for key, path in found.items():
        show = _Printer(raw=raw, several=False)
        for line in LogFile(path).last_lines(lines):
            show(key, line)


async def _follow(
    paths: Callable[[], Awaitable[dict[str, Path]]], files: dict[str, LogFile], show: "_Printer"
) -> None:
    async def discover() -> AsyncIterator[dict[str, Path]]:
        found = await paths()
        asked = time.monotonic()
        while True:
            if time.monotonic() - asked > _DISCOVER_SECONDS:
                found, asked = await paths(), time.monotonic()
            yield found

    async for key, line in follow(discover, files):
        show(key, line)


def _log_paths(records: list[Json], folders: list[Path], instance: str | None) -> dict[str, Path]:
    """Log files by instance id: of the present instances, else of the last one there was."""
    wanted = instance or ""
    named = [
        each for each in records if each.get("logPath") and is_named(str(each.get("instanceId")), wanted)
    ]
    live = [each for each in named if each.get("state") not in FINISHED]
    found = {str(each.get("instanceId")): Path(str(each["logPath"])) for each in live}
    missing = next((path for path in found.values() if not path.exists()), None)
    if missing is not None:
        raise CliError(f"the log is on the machine of the function's agent, at {missing}")
    if not found:
        logs = (path for folder in folders for path in folder.glob("*.log"))
        listed = [path for path in logs if is_named(path.stem, wanted)]
        old = sorted(listed, key=lambda path: path.stat().st_mtime)
        found = {path.stem: path for path in old[-1:]}
    return found


class _Printer:
    """Log lines to standard output, with the instance's first characters where there are several."""

    def __init__(self, *, raw: bool, several: bool) -> None:
        self._raw = raw
        self._several = several
        self._last: str | None = None

    def __call__(self, instance: str, line: str) -> None:
        self._several = self._several or self._last not in (None, instance)
        self._last = instance
        prefix = f"{short_id(instance)} " if self._several else ""
        sys.stdout.write(prefix + (line if self._raw else readable(line)) + "\n")
        sys.stdout.flush()
