"""`nvcf new`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from nvcf_cli.scaffold import TEMPLATES, project, write_project
from nvcf_cli.screen import console


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The function's name.", show_default=False)],
    template: Annotated[
        str, typer.Option("--template", "-t", help=f"One of {', '.join(TEMPLATES)}.")
    ] = "hello",
    folder: Annotated[
        Path | None,
        typer.Option("--folder", metavar="DIR", help="[default: the name, here]", show_default=False),
    ] = None,
) -> None:
    """Write a folder for a new function: code, test, Dockerfile, requirements, README.

    \b
    Examples:
      nvcf new greeter
      nvcf new speaker --template stream
      nvcf new api --template asgi --folder functions/api
    """
    target = folder or Path(name)
    written = write_project(target, project(name, template))
    out = console()
    out.print(Text(f"{name}: {len(written)} files in {target}"))
    for path in written:
        out.print(Text(f"  {path.name}", style="dim"))
    out.print(
        Text(f"\nNext:\n  cd {shlex.quote(str(target))}\n  pip install -r requirements.txt pytest && pytest")
    )
    out.print(Text(f"  {TEMPLATES[template].run}"))
    out.print(Text(f"  nvcf deploy function.py --name {shlex.quote(name)}    # with nvcf up"))
