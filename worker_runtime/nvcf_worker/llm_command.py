"""An LLM engine as a function: `llm_engine()`, and the command `nvcf-worker llm`."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence

from nvcf_worker.errors import ConfigurationError
from nvcf_worker.function.handlers import Handler, Kind
from nvcf_worker.process.durations import ready_seconds
from nvcf_worker.process.imported import for_definitions_only
from nvcf_worker.run.llm.engines import ENGINES
from nvcf_worker.run.llm.settings import settings
from nvcf_worker.serving import run_worker
from nvcf_worker.sidecar_command import add_worker_options, read_command


def llm_engine(
    command: Sequence[str] = (),
    *,
    url: str | None = None,
    engine: str | None = None,
    models: Sequence[str] = (),
    open_paths: Sequence[str] = (),
    ready_timeout: float | str | None = None,
    concurrency: int | None = None,
    time_limit: float | None = None,
    grace_seconds: float | None = None,
    log_level: str | None = None,
    metrics: str | None = None,
) -> None:
    """Serve requests with an LLM engine that has OpenAI's HTTP routes. Returns as `serve` does.

    command: starts the engine as a child, and again when it ends. `{port}` in it is replaced by a free
        port; without that and without `--port`, `--port PORT` is added for engines that are known.
    url: HTTP address of an engine that runs already; then nothing is started.
    engine: "vllm", "sglang", "tgi", "tensorrt-llm", "llama.cpp" or "nim"; default by the command.
    models: names that GET /v1/models must have, else the instance ends; default: any.
    open_paths: paths that callers may use beside OpenAI's routes.
    ready_timeout: how long the engine may take to load; default 30 min.
    concurrency: requests in flight at once; default what the engine runs at once, by its command line or
        its own word. MAX_REQUEST_CONCURRENCY is an upper bound if it is above 1.
    time_limit, grace_seconds, log_level, metrics: as for `serve`.

    Raises ConfigurationError for invalid arguments.
    """
    if for_definitions_only():
        return
    chosen = settings(url, command, engine, models)
    for path in open_paths:
        if not path.startswith("/"):
            raise ConfigurationError(f"--open-path {path}: a path begins with '/'")
    seconds = ready_seconds(ready_timeout)
    # Imported here because it imports the HTTP client, which `import nvcf_worker` must not.
    from nvcf_worker.run.llm.server import LlmEngine

    server = LlmEngine(chosen, seconds, frozenset(open_paths))
    run_worker(
        Handler(server.handle, Kind.ASYNC, None, chosen.engine.name, takes_polls=False),
        server,
        concurrency=concurrency,
        grace_seconds=grace_seconds,
        time_limit=time_limit,
        log_level=log_level,
        metrics=metrics,
        # The engine has this process' user and could read the file.
        cache_token=not chosen.command,
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of `nvcf-worker llm`."""
    result = argparse.ArgumentParser(
        prog="nvcf-worker llm",
        description="Serve a function with an LLM engine that has OpenAI's HTTP routes.",
        epilog="Examples: nvcf-worker llm -- vllm serve Qwen/Qwen3-8B --max-num-seqs 64 | "
        "nvcf-worker llm -- llama-server -m model.gguf --alias small --parallel 4 | "
        "nvcf-worker llm --engine nim --engine-url http://127.0.0.1:8000",
    )
    add = result.add_argument
    add("--engine-url", dest="url", metavar="http://HOST:PORT", help="an engine that runs already")
    add("--engine", choices=tuple(ENGINES), help="the kind of engine [by the command]")
    repeated = functools.partial(add, action="append", default=[])
    which = "a model that the engine must serve; repeatable [any]"
    repeated("--model", dest="models", metavar="NAME", help=which)
    paths = "a path that callers may use beside OpenAI's routes; repeatable"
    repeated("--open-path", dest="open_paths", metavar="/PATH", help=paths)
    add(
        "--ready-timeout",
        metavar="TIME",
        help="time for the engine's start, with the load of its model [30m]",
    )
    limit = "how long one request may run [no limit but the deployment's]"
    add("--time-limit", type=float, metavar="SECONDS", help=limit)
    add_worker_options(result, slots="what the engine runs at once")
    add("command", nargs="*", metavar="-- COMMAND", help="command that starts the engine")
    return result


def main(arguments: list[str]) -> None:
    """Run `nvcf-worker llm`. Raises ConfigurationError."""
    options, command = read_command(parser(), arguments, "the engine's command comes")
    llm_engine(command, **options)
