"""Write the generated parts of the documentation: settings, command line, HTTP routes and metrics.

Each part stands between two marker lines in its page. `--check` writes nothing and exits 1 when a page is
stale; page names as arguments (`metrics.md`) limit both to these pages.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from nvcf_proto.budget import KIB, MIB, size_text
from nvcf_proto.stores import STORES

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
END = "<!-- end of the generated part -->"
NONE, WORKER = "none", "nvcf_worker.__main__"

# Sources whose constants name environment variables; the text below a constant is its documentation.
WORKER_VARIABLES = ("proto/nvcf_proto/environment.py", "worker_runtime/nvcf_worker")
CLI_VARIABLES = ("cli/nvcf_cli",)
_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")

# OpenTelemetry's variables. `main` fails when one that nvcf_otel.settings really reads is missing here.
OTEL = {
    "OTEL_SDK_DISABLED": ("`true` turns all telemetry off", "false"),
    "OTEL_SERVICE_NAME": ("name of the service; wins over the platform's", "the process or function"),
    "OTEL_RESOURCE_ATTRIBUTES": ("`name=value,…`; wins over the platform's attributes", NONE),
    "OTEL_{SIGNAL}_EXPORTER": ("`otlp`, or `none` to turn a signal off", "otlp with an endpoint"),
    "OTEL_EXPORTER_OTLP_[{SIGNAL}_]ENDPOINT": ("where telemetry goes", "nowhere"),
    "OTEL_EXPORTER_OTLP_[{SIGNAL}_]PROTOCOL": ("`grpc` or `http/protobuf`", "grpc; port 4318: http/protobuf"),
    "OTEL_EXPORTER_OTLP_[{SIGNAL}_]HEADERS": ("`name=value,…`, sent with each export; secret", NONE),
    "OTEL_EXPORTER_OTLP_[{SIGNAL}_]TIMEOUT": ("longest time of one export, in milliseconds", "10000"),
    "OTEL_EXPORTER_OTLP_[{SIGNAL}_]COMPRESSION": ("`gzip`", NONE),
    "OTEL_EXPORTER_OTLP_[{SIGNAL}_]INSECURE": ("`true`: no TLS for gRPC endpoints without a scheme", "false"),
    "OTEL_EXPORTER_OTLP_[{SIGNAL}_]CERTIFICATE": ("PEM file of the authority to trust", "the system's"),
    "OTEL_EXPORTER_OTLP_[{SIGNAL}_]CLIENT_KEY": ("PEM file of the client's key", NONE),
    "OTEL_EXPORTER_OTLP_[{SIGNAL}_]CLIENT_CERTIFICATE": ("PEM file of the client's certificate", NONE),
    "OTEL_PROPAGATORS": ("trace headers: tracecontext, baggage, b3, b3multi, none", "tracecontext,baggage"),
    "OTEL_TRACES_SAMPLER": ("which traces are recorded", "parentbased_traceidratio"),
    "OTEL_TRACES_SAMPLER_ARG": ("share of traces to record, 0 to 1", "0.01; 1 with OTEL_TRACES_SAMPLER"),
    "OTEL_METRIC_EXPORT_INTERVAL": ("time between two exports of metrics, in milliseconds", "60000"),
    "OTEL_METRIC_EXPORT_TIMEOUT": ("longest time of one export of metrics, in milliseconds", "30000"),
    "OTEL_BSP_SCHEDULE_DELAY": ("time between two exports of spans, in milliseconds", "5000"),
    "OTEL_BLRP_SCHEDULE_DELAY": ("time between two exports of log records, in milliseconds", "1000"),
    "OTEL_{QUEUE}_MAX_QUEUE_SIZE": ("items that wait at most; further ones are dropped and counted", "2048"),
    "OTEL_{QUEUE}_MAX_EXPORT_BATCH_SIZE": ("items in one export", "512"),
}  # fmt: skip


class StaleError(Exception):
    """A source has something that its documentation lacks."""


def table(head: str, rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    columns = head.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


# Command lines


class _Parser(BaseException):
    """Carries the parser of a process out of its entry point."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parser_of(module: str, *arguments: str) -> argparse.ArgumentParser:
    """Return the parser that a process makes, whatever module it lies in."""

    def caught(self: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        raise _Parser(self)

    original, words = argparse.ArgumentParser.parse_args, sys.argv
    argparse.ArgumentParser.parse_args = caught  # type: ignore[assignment,method-assign]
    sys.argv = [module, *arguments]
    try:
        import_module(module).main()
    except _Parser as found:
        return found.parser
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]
        sys.argv = words
    raise StaleError(f"{module}.main parses no arguments")


def flags(parser: argparse.ArgumentParser) -> str:
    """Return the options of an argparse parser as a table."""
    rows = []
    for action in parser._actions:
        if not action.option_strings or action.dest == "help" or action.help == argparse.SUPPRESS:
            continue
        value = "" if action.nargs == 0 else f" {action.metavar or action.dest.rpartition('_')[2].upper()}"
        text, default = stated((action.help or "") % {"default": action.default}, _default(action))
        if action.choices:
            text = f"{text}: {', '.join(f'`{each}`' for each in action.choices)}".strip(": ")
        rows.append([f"`{action.option_strings[-1]}{value}`", default, sentence(text)])
    return table("flag | default | meaning", rows)


def _default(action: argparse.Action) -> str:
    if action.required:
        return "required"
    if action.nargs == 0:
        return "off"
    if action.default in (None, "", []):
        return NONE
    return f"{action.default:g}" if isinstance(action.default, float) else str(action.default)


def stated(text: str, default: str) -> tuple[str, str]:
    """Return a help text without its `[default: ...]`, and the default that it states."""
    found = re.search(r"\s*(?:[\[(]default: |\[)(.*?)[\])]$", text)
    return (text.replace(found.group(0), ""), found.group(1)) if found else (text, default)


def commands() -> Iterator[tuple[str, Any]]:
    """Yield the commands of `nvcf` by their full names."""
    from typer.main import get_command

    from nvcf_cli.main import app

    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        for each, child in getattr(command, "commands", {}).items():
            if child.hidden:
                continue
            if hasattr(child, "commands"):
                yield from below(f"{name} {each}", child)
            else:
                yield f"{name} {each}", child

    yield from below("nvcf", get_command(app))


def options(command: Any) -> str:
    """Return the arguments and options of a command as a table."""
    rows = []
    for each in command.params:
        if getattr(each, "hidden", False):
            continue
        text, default = stated(each.help or "", "" if each.default is None else str(each.default))
        if each.param_type_name == "argument":
            name = re.sub(r"^\[(.*)\]$", r"\1", str(each.metavar or each.name.upper()))
            default = "required" if each.required else default
        else:
            is_flag = getattr(each, "is_flag", False)
            value = "" if is_flag else f" {each.metavar or _kind(each.default)}"
            name = ", ".join(each.opts + each.secondary_opts) + value
            default = ("on" if each.default else "off") if is_flag else default
        rows.append([f"`{name}`", default if default and default != "()" else NONE, sentence(text)])
    return table("option | default | meaning", rows)


def _kind(default: object) -> str:
    return "TEXT" if isinstance(default, str) else "N"


def sentence(text: str) -> str:
    """Return a help text as a sentence."""
    text = " ".join(text.split()).rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if re.match(r"[a-z]+\b", text) else f"{text}." if text else ""


def command_line() -> str:
    """Return the reference of the `nvcf` command."""
    parts = []
    for name, command in commands():
        prose, _, examples = (command.help or "").partition("\b\nExamples:\n")
        lines = textwrap.dedent(examples).strip().splitlines()
        parts += [f"## {name}", prose.strip(), options(command)]
        if lines:
            parts.append("\n".join(["```sh", *lines, "```"]))
    return "\n\n".join(parts)


# Settings


def variables(places: tuple[str, ...]) -> dict[str, str]:
    """Return the environment variables that constants name, with the text below each constant."""
    found: dict[str, str] = {}
    for place in places:
        path = ROOT / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            body = ast.parse(file.read_text()).body
            for node, below in zip(body, [*body[1:], ast.Pass()], strict=False):
                match node:
                    case ast.Assign(value=ast.Constant(value=str(name))) if _VARIABLE.fullmatch(name):
                        pass
                    case _:
                        continue
                match below:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        found.setdefault(name, " ".join(text.split()))
                    case _ if name not in found:
                        raise StaleError(f"{file.relative_to(ROOT)}: {name} has no text below it")
    return {name: text for name, text in found.items() if not text.startswith("Internal:")}


def variable_table(found: Mapping[str, str]) -> str:
    """Return environment variables as a table."""
    rows = []
    for name, text in found.items():
        meaning, _, default = text.partition(" Default: ")
        if meaning.endswith(" Required."):
            meaning, default = meaning.removesuffix(" Required."), "required"
        rows.append([f"`{name}`", default.rstrip(".") or NONE, meaning])
    return table("variable | default | meaning", rows)


class _Read(dict[str, str]):
    """An environment that notes which variables are read."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4317"}.get(name, default)


def otel_table() -> str:
    """Return OpenTelemetry's variables as a table. Raises StaleError for one without a description."""
    from nvcf_otel.settings import settings_from

    read = _Read()
    settings_from(read)
    signal, queue = "(TRACES|METRICS|LOGS)", "(BSP|BLRP)"
    known = "|".join(
        name.replace("[{SIGNAL}_]", f"({signal}_)?").replace("{SIGNAL}", signal).replace("{QUEUE}", queue)
        for name in OTEL
    )
    unknown = sorted(name for name in read.names if not re.fullmatch(known, name))
    if unknown:
        raise StaleError(f"scripts/generate_docs.py does not describe {', '.join(unknown)}")
    return table("variable | default | meaning", [[f"`{n}`", d, sentence(t)] for n, (t, d) in OTEL.items()])


def settings() -> str:
    """Return the configuration reference."""
    worker = variables(WORKER_VARIABLES)
    tasks = {name: text for name, text in worker.items() if name.startswith("NVCT_")}
    mark = "Sidecar: "
    sidecar = {name: sentence(text[len(mark) :]) for name, text in worker.items() if text.startswith(mark)}
    rest = {name: text for name, text in worker.items() if name not in tasks and name not in sidecar}
    rest.pop("OTEL_EXPORTER_OTLP_ENDPOINT")
    parts = {
        "nvcf up": options(next(command for name, command in commands() if name == "nvcf up")),
        "nvcf: environment": variable_table(variables(CLI_VARIABLES)),
        "nvcf-gateway": flags(parser_of("nvcf_gateway.__main__")),
        "nvcf-autoscaler": flags(parser_of("nvcf_autoscaler.__main__")),
        "nvcf-agent": flags(parser_of("nvcf_agent.__main__")),
        "Worker: environment": variable_table(rest),
        "nvcf-worker sidecar": flags(parser_of(WORKER, "sidecar")),
        "Sidecar: environment": variable_table(sidecar),
        **{f"nvcf-worker {each}": flags(parser_of(WORKER, each)) for each in ("triton", "llm")},
        "nvcf-worker run": flags(parser_of(WORKER, "run", "function.py")),
        "nvcf-worker fetch": flags(parser_of(WORKER, "fetch")),
        "Tasks: environment": variable_table(tasks),
        "All processes: OpenTelemetry": otel_table(),
    }
    return "\n\n".join(f"## {head}\n\n{text}" for head, text in parts.items())


# HTTP routes and metrics


def http_routes() -> str:
    """Return all HTTP routes of the gateway, by subject."""
    from nvcf_gateway.openapi import document

    found: dict[str, list[list[str]]] = {}
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            if method != "parameters" and "/{nca_id}/" not in path:
                key = "no" if operation.get("security") == [] else "yes"
                row = [f"`{method.upper()} {path}`", key, operation["summary"]]
                found.setdefault(operation["tags"][0], []).append(row)
    return "\n\n".join(
        f"## {tag.capitalize()}\n\n{table('route | key | what it does', rows)}" for tag, rows in found.items()
    )


def metrics() -> str:
    """Return all metrics, and those of NVIDIA's worker by their names."""
    from nvcf_otel import compatible, instruments

    peer, first = set(compatible.ALL), f"{compatible.PREFIXES[0]}_"

    def attributes(keys: Any) -> str:
        return ", ".join(f"`{key}`" for key in keys)

    own = [
        [
            f"`{each.name}`",
            f"`{each.prometheus_name}`",
            each.unit,
            attributes(each.attributes),
            each.description,
        ]
        for each in instruments.ALL
        if each not in peer
    ]
    short = [
        [
            f"`{each.name.removeprefix(first)}`",
            attributes(key for key in each.attributes if key not in compatible.IDS),
            each.description,
        ]
        for each in compatible.ALL
        if each.name.startswith(first)
    ]
    return "\n\n".join(
        [
            table("OpenTelemetry | Prometheus | unit | attributes | meaning", own),
            "Names of NVIDIA's worker, each with the prefix `nvcf_worker_service_` and with `nvcf_`:",
            table("name | attributes | meaning", short),
        ]
    )


def stores() -> str:
    """Return the table of all streams and buckets with their bounds."""
    rows = [
        [
            f"`{each.name}`",
            each.account,
            each.writer,
            size_text(each.max_message) if each.max_message >= MIB else f"{each.max_message // KIB} KiB",
            f"{each.share:.0%}" if each.share else size_text(each.most) if each.most else "",
            each.max_age,
            "any" if each.per_subject is None else str(each.per_subject),
            each.at_bound,
        ]
        for each in STORES
    ]
    return table(
        "store | account | written by | largest message | share | age | messages a subject | at the bound",
        rows,
    )


PARTS: dict[str, Callable[[], str]] = {
    "operate/configuration.md": settings,
    "operate/metrics.md": metrics,
    "operate/stores.md": stores,
    "reference/cli.md": command_line,
    "reference/http.md": http_routes,
}


def fresh(page: str, text: str, part: str) -> str:
    """Return a page with its generated part replaced. Raises StaleError when it has no place for one."""
    begin = "<!-- generated by scripts/generate_docs.py -->"
    before, opening, rest = text.partition(begin)
    _, closing, after = rest.partition(END)
    if not opening or not closing:
        raise StaleError(f"docs/{page} has no lines {begin} and {END}")
    return f"{before}{begin}\n\n{part}\n\n{END}{after}"


def main() -> int:
    """Entry point."""
    check = "--check" in sys.argv[1:]
    wanted = [name for name in sys.argv[1:] if not name.startswith("-")]
    stale = []
    try:
        for page, make in PARTS.items():
            if wanted and Path(page).name not in wanted:
                continue
            path = DOCS / page
            text = path.read_text(encoding="utf-8")
            new = fresh(page, text, make())
            if new != text:
                stale.append(page)
                if not check:
                    path.write_text(new, encoding="utf-8")
    except StaleError as error:
        print(error, file=sys.stderr)
        return 1
    if check and stale:
        print(f"stale: docs/{', docs/'.join(stale)}; run python scripts/generate_docs.py", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
