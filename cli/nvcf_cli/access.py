"""How a command reaches a platform: the options that commands share, and the platform that they mean."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from nvcf_cli.api import Api, Target
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.local.state import HOME_VARIABLE, Installation, default_data_folder, read_state

T = TypeVar("T")

URL_VARIABLE = "NVCF_URL"
"""URL of a platform elsewhere. Default: the local platform."""
KEY_VARIABLE = "NVCF_API_KEY"
"""API key for that platform. Default: the local admin key."""

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help=f"Data folder of the local platform. [default: ${HOME_VARIABLE} or ~/.nvcf]",
        show_default=False,
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help=f"A platform elsewhere; also ${URL_VARIABLE}. [default: the local one]",
        show_default=False,
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        help=f"File with the API key, or the key in ${KEY_VARIABLE}. [default: the local admin key]",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The function's name or id.", show_default=False)
]


@dataclass(frozen=True)
class Access:
    """How a command reaches the platform."""

    data: Path | None = None
    url: str | None = None
    key_file: Path | None = None

    @property
    def installation(self) -> Installation:
        """The local data folder, whether or not something runs on it."""
        return Installation(self.data.expanduser().absolute() if self.data else default_data_folder())

    @property
    def platform_runs(self) -> bool:
        """Whether there is a platform to ask: one elsewhere is named, or the local one runs."""
        address = self.url or os.environ.get(URL_VARIABLE)
        return bool(address) or read_state(self.installation) is not None

    def run(self, work: Callable[[Api], Coroutine[Any, Any, T]]) -> T:
        """Do `work` with an open session and return its result. Raises `CliError`."""

        async def with_session() -> T:
            async with Api(find_target(self.installation, self.url, self.key_file)) as api:
                return await work(api)

        return asyncio.run(with_session())


def find_target(installation: Installation, url: str | None, key_file: Path | None) -> Target:
    """Return the platform that `--url` or NVCF_URL names, else the one that `nvcf up` runs.

    Raises `CliError`.
    """
    address = url or os.environ.get(URL_VARIABLE) or None
    key = read_key(key_file) if key_file is not None else os.environ.get(KEY_VARIABLE) or None
    if address is None:
        state = read_state(installation)
        if state is None:
            raise CliError(
                f"no platform runs on {installation.data}: start one with nvcf up, or name one with --url"
            )
        return Target(state.url, key or read_key(Path(state.key_file)))
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"{address} is no address: it must begin with http:// or https://")
    if key is None:
        raise UsageError(f"a key is needed for {address}: give --key-file FILE or set {KEY_VARIABLE}")
    return Target(address.rstrip("/"), key)


def read_key(path: Path) -> str:
    """Return the API key in a file. Raises `CliError`."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"cannot read the key file {path}: {error}") from error
    if not text or any(character.isspace() for character in text):
        raise CliError(f"{path} does not hold one API key")
    return text
