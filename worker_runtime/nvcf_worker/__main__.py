"""`python -m nvcf_worker FILE[:NAME]`: serve a handler of a Python file; `sidecar` and `run` do more."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from nvcf_worker.errors import ConfigurationError, HandlerError
from nvcf_worker.serving import has_served, serve

DEFAULT_NAME = "handler"
EXIT_USAGE = 2
COMMANDS = {"sidecar": "nvcf_worker.sidecar_command", "run": "nvcf_worker.local.command"}


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `nvcf-worker`. Exits with code 2 when there is nothing to serve."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        try:
            import_module(COMMANDS[arguments[0]]).main(arguments[1:])
        except ConfigurationError as error:
            _fail(str(error))
        return
    parser = argparse.ArgumentParser(
        prog="nvcf-worker",
        description="Serve a handler of a Python file as a worker of the platform.",
        epilog="Also: `nvcf-worker sidecar --port N` serves an HTTP server that listens on a port, "
        "`nvcf-worker run FILE` serves a handler by HTTP alone, to try it on this machine. "
        "A file of such a name is written ./run.",
    )
    parser.add_argument(
        "target",
        metavar="FILE[:NAME]",
        help="with NAME that attribute is served; without it the file is run and may call serve() itself, "
        f"else its `{DEFAULT_NAME}` is served",
    )
    target = parser.parse_args(arguments).target
    file, name = split_target(target)
    path = Path(file).resolve()
    if not path.is_file():
        _fail(f"there is no file {file}")
    # As `python FILE` does, so that the file finds its neighbours.
    sys.path.insert(0, str(path.parent))
    module = load(path, "__main__" if name is None else path.stem)
    if name is None and has_served():
        return
    handler = getattr(module, name or DEFAULT_NAME, None)
    if handler is None:
        wanted = f"no attribute {name!r}" if name else f"neither a call of serve() nor a {DEFAULT_NAME!r}"
        _fail(f"{file} has {wanted}")
    try:
        serve(handler)
    except HandlerError as error:
        _fail(f"{file}: {error}")


def split_target(target: str) -> tuple[str, str | None]:
    """`FILE:NAME` -> (FILE, NAME); without a Python name after the last colon all of it is the file."""
    file, colon, name = target.rpartition(":")
    if colon and file and name.isidentifier():
        return file, name
    return target, None


def load(path: Path, name: str) -> types.ModuleType:
    """Run a file as the module `name` and return it."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        _fail(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _fail(reason: str) -> NoReturn:
    print(f"nvcf-worker: {reason}", file=sys.stderr)  # noqa: T201 - a command's answer to its user
    raise SystemExit(EXIT_USAGE)


if __name__ == "__main__":
    main()
