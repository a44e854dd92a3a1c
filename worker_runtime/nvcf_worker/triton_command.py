"""A Triton server as a function: `triton_server()`, and the command `nvcf-worker triton`."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Sequence

from nvcf_worker.errors import ConfigurationError
from nvcf_worker.function.handlers import Handler, Kind
from nvcf_worker.process.durations import ready_seconds
from nvcf_worker.process.imported import for_definitions_only
from nvcf_worker.run.tritonserver.settings import attached, choices, started
from nvcf_worker.serving import run_worker
from nvcf_worker.sidecar_command import add_worker_options, read_command

MODEL_REPOSITORY = "NVCF_TRITON_MODEL_REPOSITORY"
"""[ext] The model repository of `nvcf-worker triton`, if there is no --model-repository."""
MODELS = "NVCF_TRITON_MODELS"
"""[ext] The models of `nvcf-worker triton`, `NAME[:VERSION]` with commas between, if there is no --model."""


def triton_server(
    model_repository: str | Sequence[str] = (),
    *,
    models: Sequence[str] = (),
    model_configs: Sequence[str] = (),
    url: str | None = None,
    grpc_port: int | None = None,
    arguments: Sequence[str] = (),
    allow_model_control: bool = False,
    ready_timeout: float | str | None = None,
    concurrency: int | None = None,
    time_limit: float | None = None,
    grace_seconds: float | None = None,
    log_level: str | None = None,
    metrics: str | None = None,
) -> None:
    """Serve requests with a Triton Inference Server. Returns as `serve` does.

    model_repository: one or more folders, or addresses that Triton reads; default
        NVCF_TRITON_MODEL_REPOSITORY. tritonserver is started as a child, and started again when it ends.
    models: `NAME` or `NAME:VERSION` of the models to load; default NVCF_TRITON_MODELS, else all.
    model_configs: `NAME=FILE` with a whole model configuration as JSON, in place of the repository's.
    url: HTTP address of a Triton server that runs already; then nothing is started.
    grpc_port: the gRPC port of that server, default 8001.
    arguments: more arguments of tritonserver.
    allow_model_control: callers may load and unload models.
    ready_timeout: how long the server, and after that its models, may take to start; default 30 min.
    concurrency: requests in flight at once. By default the number follows Triton's queue, from 64 on, up to
        MAX_REQUEST_CONCURRENCY, or to 256 where that is 1 or not set.
    time_limit, grace_seconds, log_level, metrics: as for `serve`.

    Raises ConfigurationError for invalid arguments.
    """
    if for_definitions_only():
        return
    wanted = choices(models or _listed(os.environ.get(MODELS, "")), model_configs)
    if url is not None:
        if model_repository or arguments:
            raise ConfigurationError("--url is a server that runs: it takes no repository and no arguments")
        settings = attached(url, grpc_port, wanted)
    else:
        given = [model_repository] if isinstance(model_repository, str) else list(model_repository)
        repositories = given or [each for each in (os.environ.get(MODEL_REPOSITORY, ""),) if each]
        settings = started(repositories, wanted, arguments, control=allow_model_control)
    seconds = ready_seconds(ready_timeout)
    # Imported here because it imports the HTTP client, which `import nvcf_worker` must not.
    from nvcf_worker.run.tritonserver.server import TritonServer

    server = TritonServer(settings, seconds, allow_model_control=allow_model_control)
    run_worker(
        Handler(server.handle, Kind.ASYNC, None, "Triton", takes_polls=False),
        server,
        concurrency=concurrency,
        grace_seconds=grace_seconds,
        time_limit=time_limit,
        log_level=log_level,
        session_port=settings.grpc_port,
        session_host=settings.host,
        metrics=metrics,
        # The models have this process' user and could read the file.
        cache_token=not settings.command,
    )


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def parser() -> argparse.ArgumentParser:
    """Return the parser of `nvcf-worker triton`."""
    result = argparse.ArgumentParser(
        prog="nvcf-worker triton",
        description="Serve a function with a Triton Inference Server.",
        epilog="Example: nvcf-worker triton --model-repository models --model bert -- --log-verbose=1",
    )
    add = result.add_argument
    repeated = functools.partial(add, action="append", default=[])
    where = f"folder or address of models; repeatable [{MODEL_REPOSITORY}]"
    repeated("--model-repository", metavar="DIR", help=where)
    which = f"a model to load; repeatable [{MODELS}, else all models of the repository]"
    repeated("--model", dest="models", metavar="NAME[:VERSION]", help=which)
    config = "configuration (JSON) in place of the repository's; repeatable"
    repeated("--model-config", dest="model_configs", metavar="NAME=FILE", help=config)
    add("--url", metavar="http://HOST:PORT", help="a Triton server that runs already; nothing is started")
    add("--grpc-port", type=int, metavar="PORT", help="gRPC port of the server of --url [8001]")
    control = "let callers load and unload models"
    add("--allow-model-control", action="store_true", help=control)
    add(
        "--ready-timeout", metavar="TIME", help="time for the server's start, and again for its models' [30m]"
    )
    limit = "how long one request may run [no limit but the deployment's]"
    add("--time-limit", type=float, metavar="SECONDS", help=limit)
    add_worker_options(result, slots="by Triton's queue; at most MAX_REQUEST_CONCURRENCY, else 256")
    add("command", nargs="*", metavar="-- ARGUMENT", help="more arguments of tritonserver")
    return result


def main(arguments: list[str]) -> None:
    """Run `nvcf-worker triton`. Raises ConfigurationError."""
    options, theirs = read_command(parser(), arguments, "arguments of tritonserver come")
    triton_server(options.pop("model_repository"), arguments=theirs, **options)
