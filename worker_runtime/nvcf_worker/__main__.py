"""`python -m nvcf_worker FILE[:NAME]`: serve a handler of a Python file; `sidecar`, `run`, `fetch`: more."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import os
import sys
import types
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from nvcf_proto.environment import INFERENCE_PORT
from nvcf_worker.errors import ConfigurationError, HandlerError
from nvcf_worker.process.imported import for_definitions
from nvcf_worker.serving import capture, has_served, serve

DEFAULT_NAME = "handler"
EXIT_USAGE = 2
COMMANDS = {
    "sidecar": "nvcf_worker.sidecar_command",
    "triton": "nvcf_worker.triton_command",
    "llm": "nvcf_worker.llm_command",
    "run": "nvcf_worker.local.command",
    "fetch": "nvcf_worker.fetch.command",
    "task": "nvcf_worker.tasks.command",
    "task-companion": "nvcf_worker.tasks.companion",
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `nvcf-worker`. Exits with code 2 when there is nothing to serve."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        from nvcf_proto.launch import version_text

        print(version_text("nvcf-worker"))  # noqa: T201 - a command's answer to its user
        return
    if not arguments and os.environ.get(INFERENCE_PORT):
        # A container beside a function's own server, started as NVIDIA's agent starts it: without arguments.
        arguments = ["sidecar"]
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
        "`nvcf-worker triton --model-repository DIR` serves a Triton server, "
        "`nvcf-worker llm -- COMMAND` serves an LLM engine, "
        "`nvcf-worker run FILE` serves a handler by HTTP alone, to try it on this machine, "
        "`nvcf-worker fetch` downloads models and resources, "
        "`nvcf-worker task FILE` runs a file to its end and reports to the platform, "
        "`nvcf-worker task-companion` reports for a task in another container of its pod. "
        "A folder is served as a model repository of Triton. "
        "A file of such a name is written ./run. `nvcf-worker --version` prints the version.",
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
    if path.is_dir():
        # As an agent of the process backend starts what `nvcf deploy DIR --triton` has deployed.
        main(["triton", "--model-repository", str(path)])
        return
    if not path.is_file():
        _fail(f"there is no file {file}")
    # As `python FILE` does, so that the file finds its neighbours.
    sys.path.insert(0, str(path.parent))
    try:
        if name is None:
            module = load(path, "__main__")
            if not has_served():
                serve(find_handler(module, file, DEFAULT_NAME))
            return
        handler, options = load_named(path, file, name)
        serve(handler, **options)
    except (ConfigurationError, HandlerError) as error:
        _fail(str(error) if isinstance(error, ConfigurationError) else f"{file}: {error}")


def load_named(path: Path, file: str, name: str) -> tuple[Any, dict[str, Any]]:
    """Run a file for one of its handlers; return that and the arguments with which the file serves it, if so.

    Raises ConfigurationError when there is no such handler.
    """
    calls: list[tuple[Any, dict[str, Any]]] = []
    capture(lambda handler, options: calls.append((handler, options)))
    try:
        with for_definitions():
            module = load(path, path.stem)
    finally:
        capture(None)
    found = find_handler(module, file, name)
    return next((call for call in calls if found is call[0] or found is call[1]["asgi"]), (found, {}))


def find_handler(module: types.ModuleType, file: str, name: str) -> Any:
    """Return an attribute of a file. Raises ConfigurationError with the names that there are."""
    found = getattr(module, name, None)
    if found is not None:
        return found
    known = sorted(each for each, value in vars(module).items() if _may_serve(each, value, module.__name__))
    near = difflib.get_close_matches(name, known, 1)
    reason = (
        f"no attribute {name!r}"
        if has_served() or name != DEFAULT_NAME
        else f"neither a call of serve() nor a {name!r}"
    )
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigurationError(f"{file} has {reason}{hint}; it has " + (", ".join(known[:20]) or "no handler"))


def _may_serve(name: str, value: Any, module: str) -> bool:
    if name.startswith("_") or isinstance(value, types.ModuleType):
        return False
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return value.__module__ == module
    return callable(value) or hasattr(value, "_as_handler")


def split_target(target: str) -> tuple[str, str | None]:
    """`FILE:NAME` -> (FILE, NAME); without a Python name after the last colon all of it is the file."""
    file, colon, name = target.rpartition(":")
    if colon and file and name.isidentifier():
        return file, name
    return target, None


def load(path: Path, name: str) -> types.ModuleType:
    """Run a file as the module `name` and return it. As `__main__` it is what `python FILE` makes of it."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        _fail(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    if name == "__main__":
        # By a spec, multiprocessing would look for the module under that name and not find it.
        module.__spec__ = None
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _fail(reason: str) -> NoReturn:
    print(f"nvcf-worker: {reason}", file=sys.stderr)  # noqa: T201 - a command's answer to its user
    raise SystemExit(EXIT_USAGE)


if __name__ == "__main__":
    main()
