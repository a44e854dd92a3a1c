"""`serve(..., isolation="process")`: the worker's handler becomes one that hands requests to children."""

from __future__ import annotations

import os
import sys

from nvcf_worker.errors import HandlerError
from nvcf_worker.function.adaptive import Adaptive, choose, most, useful_slots
from nvcf_worker.function.handlers import Handler, Kind
from nvcf_worker.run.processes.gpus import child_environments
from nvcf_worker.run.processes.host import ProcessHost, child_command

MAX_PROCESSES = 256
GRPC_FORK = "GRPC_ENABLE_FORK_SUPPORT"
"""Internal: read by gRPC at import."""


def hosted(
    handler: Handler, processes: int | None, concurrency: int | Adaptive | None, *, retry: bool
) -> tuple[Handler, ProcessHost, int | Adaptive]:
    """Handler, companion and concurrency of a worker with `processes` children (None: one a GPU, else one).

    Without a number there are slots for all children to be busy. Raises HandlerError.
    """
    if processes is not None and not 1 <= processes <= MAX_PROCESSES:
        raise HandlerError(f"processes is {processes}; it must be 1 to {MAX_PROCESSES}")
    environments = child_environments(os.environ, processes)
    quieten_grpc()
    chosen = choose(concurrency, os.environ, useful=len(environments) * useful_slots())
    total = most(chosen, os.environ)
    # Rounded up: the worker's slots are the bound, this only spreads them.
    per_child = -(-total // len(environments))
    host = ProcessHost(child_command(sys.executable, sys.orig_argv), environments, per_child, retry=retry)
    # Routes and media types are the children's business: what comes from them is complete.
    outer = Handler(host.handle, Kind.ASYNC, None, handler.name, elsewhere=True)
    return outer, host, total if chosen is None else chosen


def quieten_grpc() -> None:
    """Keep gRPC from logging a line for each child: nothing but exec happens after these forks.

    Read by gRPC when it is imported, and taken back then, so that the children have the user's setting.
    """
    if GRPC_FORK in os.environ:
        return
    os.environ[GRPC_FORK] = "0"
    import grpc  # noqa: F401 - for its reading of the variable

    del os.environ[GRPC_FORK]
