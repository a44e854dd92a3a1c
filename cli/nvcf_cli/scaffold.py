"""A new function's folder, from a template."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from nvcf_cli.deploying import check_name
from nvcf_cli.errors import CliError, UsageError

SUFFIX = ".in"
_PLACE = re.compile(r"@([A-Z]+)@")
_FUNCTION = "| `function.py` | the function |"


@dataclass(frozen=True)
class Template:
    """What differs between templates beside their files."""

    about: str
    requirements: tuple[str, ...] = ()
    listing: str = _FUNCTION
    command: str = '["nvcf-worker", "function.py"]'
    run: str = "nvcf-worker run function.py --reload"
    call: str = 'curl localhost:8000 -d \'{"name": "Ada"}\''
    invoke: str = '--data \'{"name": "Ada"}\''


_TEXT = '{"text": "a great idea"}'
_APP = ("fastapi>=0.115,<1",)

TEMPLATES = {
    "hello": Template("Greets by name: the smallest function."),
    "stream": Template(
        "Sends words one by one as server-sent events.",
        call=f"curl -N localhost:8000 -d '{_TEXT}'",
        invoke=f"--data '{_TEXT}' --stream",
    ),
    "batch": Template(
        "Collects requests and answers them with one call of the model.",
        call=f"curl localhost:8000 -d '{_TEXT}'",
        invoke=f"--data '{_TEXT}'",
    ),
    "class": Template(
        "Loads a model once an instance, then answers with it.",
        call=f"curl localhost:8000 -d '{_TEXT}'",
        invoke=f"--data '{_TEXT}'",
    ),
    "sidecar": Template(
        "An HTTP server of its own (FastAPI here; any other will do), with the worker in front of it.",
        (*_APP, "uvicorn>=0.34,<1"),
        "| `app.py` | the server; it knows nothing of the platform |\n"
        "| `function.py` | starts it on any free port and passes requests on |",
        '["nvcf-worker", "sidecar", "--port", "8000", "--health", "/health", "--concurrency", "16", '
        '"--", "uvicorn", "app:app", "--port", "8000"]',
        "uvicorn app:app --reload",
        "curl localhost:8000 -H 'Content-Type: application/json' -d '{\"name\": \"Ada\"}'",
        '-H Content-Type=application/json --data \'{"name": "Ada"}\'',
    ),
    "asgi": Template(
        "A FastAPI application, served in the worker's own process: no port, no proxy.",
        _APP,
        call="curl localhost:8000 -H 'Content-Type: application/json' -d '{\"name\": \"Ada\"}'",
        invoke='-H Content-Type=application/json --data \'{"name": "Ada"}\'',
    ),
    # Their READMEs say how to run them: they need a Triton server, or an engine.
    "triton": Template("A model repository, served by a Triton server without code."),
    "llm": Template("A language model with OpenAI's routes, served by vLLM or another engine."),
}


def render(text: str, values: dict[str, str]) -> str:
    """Put values in the places that `@NAME@` marks; a place without a value stays."""
    return _PLACE.sub(lambda place: values.get(place[1], place[0]), text)


def project(name: str, template: str) -> dict[str, str]:
    """Return the files of a new function by name. Raises UsageError for a bad template or name."""
    kind = TEMPLATES.get(template)
    if kind is None:
        raise UsageError(f"there is no template {template}; there are {', '.join(TEMPLATES)}")
    values = {
        "NAME": check_name(name, "NAME"),
        "ABOUT": kind.about,
        "FILES": kind.listing,
        "COMMAND": kind.command,
        "RUN": kind.run,
        "CALL": kind.call,
        "INVOKE": kind.invoke,
    }
    root = files("nvcf_cli") / "templates"
    found = {
        name.removesuffix(SUFFIX): render(entry.read_text(encoding="utf-8"), values)
        for folder in (root / "common", root / template)
        for name, entry in _entries(folder)
    }
    found["requirements.txt"] = "\n".join(("nvcf-worker", *kind.requirements, ""))
    return found


def _entries(folder: Traversable, place: str = "") -> Iterator[tuple[str, Traversable]]:
    """Return the files of a template's folder and of those in it, by their paths in the project."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _entries(entry, f"{place}{entry.name}/")
        elif entry.name.endswith(SUFFIX):
            yield place + entry.name, entry


def write_project(folder: Path, contents: dict[str, str]) -> list[Path]:
    """Write the files into a new or empty folder; returns their paths. Raises CliError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise CliError(f"{folder} is there already and not empty")
        written = []
        for name, text in sorted(contents.items()):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            written.append(path)
    except OSError as error:
        raise CliError(f"cannot write {folder}: {error.strerror}") from error
    return written
