"""`serve(..., isolation="process")`: replace the handler by one that passes requests to child processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from nvcf_proto.environment import ATTACHED_GPU_COUNT
from nvcf_worker.errors import HandlerError
from nvcf_worker.function.adaptive import Adaptive, choose, most, useful_slots
from nvcf_worker.function.handlers import Handler, Kind
from nvcf_worker.run.processes.host import ProcessHost

MAX_PROCESSES = 256
GRPC_FORK = "GRPC_ENABLE_FORK_SUPPORT"
"""Internal: read by gRPC at import."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""GPUs of the instance. Process isolation divides them among the children. Default: all."""
INDEX = "NVCF_PROCESS_INDEX"
"""[ext] Set for child processes of process isolation: the child's number, from 0."""
COUNT = "NVCF_PROCESS_COUNT"
"""[ext] Set for child processes of process isolation: the number of children."""


def isolate(
    handler: Handler, processes: int | None, concurrency: int | Adaptive | None, *, retry: bool
) -> tuple[Handler, ProcessHost, int | Adaptive]:
    """Return handler, companion and concurrency of a worker with `processes` children.

    processes: None means one per GPU, or one. concurrency: None means enough slots to keep all children busy.
    retry: whether requests of a child that died are run once more. Raises HandlerError.
    """
    if processes is not None and not 1 <= processes <= MAX_PROCESSES:
        raise HandlerError(f"processes is {processes}; it must be 1 to {MAX_PROCESSES}")
    environments = child_environments(os.environ, processes)
    quieten_grpc()
    chosen = choose(concurrency, os.environ, useful=len(environments) * useful_slots())
    total = most(chosen, os.environ)
    # Rounded up: the limit is the number of the worker's slots, this only distributes them.
    per_child = -(-total // len(environments))
    # The command line that started this process makes a child run the same file up to `serve`.
    host = ProcessHost([sys.executable, *sys.orig_argv[1:]], environments, per_child, retry=retry)
    # Routes and media types are applied in the children, whose responses are complete.
    outer = Handler(host.handle, Kind.ASYNC, None, handler.name, elsewhere=True)
    return outer, host, total if chosen is None else chosen


def quieten_grpc() -> None:
    """Keep gRPC from logging a line for each child; its fork support is not needed, because exec follows.

    gRPC reads the variable when it is imported. Then the variable is removed, so that children get the user's
    own setting.
    """
    if GRPC_FORK in os.environ:
        return
    os.environ[GRPC_FORK] = "0"
    import grpc  # noqa: F401 - reads the variable

    del os.environ[GRPC_FORK]


def attached_gpus(environ: Mapping[str, str]) -> list[str]:
    """Return the GPUs of this worker in the form of CUDA_VISIBLE_DEVICES: indices or UUIDs.

    Without that variable ATTACHED_GPU_COUNT gives their number.
    """
    visible = environ.get(VISIBLE)
    if visible is None:
        count = environ.get(ATTACHED_GPU_COUNT, "").strip()
        return [str(index) for index in range(int(count))] if count.isascii() and count.isdigit() else []
    valid = []
    # As in CUDA, the first name that is not a device (usually "-1") ends the list.
    for name in [name.strip() for name in visible.split(",")]:
        if not (name.isdigit() or name.startswith(("GPU-", "MIG-"))):
            break
        valid.append(name)
    return valid


def split(gpus: list[str], processes: int) -> list[list[str]]:
    """Divide the GPUs among the processes in equal shares. If there are more processes, they share GPUs."""
    if not gpus:
        return [[] for _ in range(processes)]
    if processes >= len(gpus):
        return [[gpus[index % len(gpus)]] for index in range(processes)]
    small, larger = divmod(len(gpus), processes)
    shares, at = [], 0
    for index in range(processes):
        size = small + (index < larger)
        shares.append(gpus[at : at + size])
        at += size
    return shares


def child_environments(environ: Mapping[str, str], processes: int | None) -> list[dict[str, str]]:
    """Return the variables of each child that differ from the worker's. Default: one child per GPU."""
    gpus = attached_gpus(environ)
    count = processes if processes is not None else max(1, len(gpus))
    environments = []
    for index, share in enumerate(split(gpus, count)):
        changes = {INDEX: str(index), COUNT: str(count)}
        if share:
            changes[VISIBLE] = ",".join(share)
            changes[ATTACHED_GPU_COUNT] = str(len(share))
        environments.append(changes)
    return environments
