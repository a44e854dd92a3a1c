"""Options that several commands share."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from nvcf_cli.api import Api
from nvcf_cli.state import HOME_VARIABLE, Installation, default_data_folder
from nvcf_cli.target import KEY_VARIABLE, URL_VARIABLE, find_target

T = TypeVar("T")

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

    async def use(self, work: Callable[[Api], Coroutine[Any, Any, T]]) -> T:
        """Do `work` with an open session. Raises `CliError`."""
        async with Api(find_target(self.installation, self.url, self.key_file)) as api:
            return await work(api)
