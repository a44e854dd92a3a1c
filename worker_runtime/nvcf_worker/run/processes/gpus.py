"""Which GPUs each child process sees."""

from __future__ import annotations

from collections.abc import Mapping

from nvcf_proto.environment import ATTACHED_GPU_COUNT

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""GPUs of the instance. Process isolation divides them among the children. Default: all."""
INDEX = "NVCF_PROCESS_INDEX"
"""[ext] Set for child processes of process isolation: the child's number, from 0."""
COUNT = "NVCF_PROCESS_COUNT"
"""[ext] Set for child processes of process isolation: the number of children."""


def attached_gpus(environ: Mapping[str, str]) -> list[str]:
    """The GPUs of this worker as CUDA_VISIBLE_DEVICES names them: indices or UUIDs.

    Without that variable ATTACHED_GPU_COUNT tells how many there are.
    """
    visible = environ.get(VISIBLE)
    if visible is None:
        count = environ.get(ATTACHED_GPU_COUNT, "").strip()
        return [str(index) for index in range(int(count))] if count.isascii() and count.isdigit() else []
    names = [name.strip() for name in visible.split(",")]
    # CUDA takes what stands before the first name that is no device, "-1" by custom.
    valid = []
    for name in names:
        if not (name.isdigit() or name.startswith(("GPU-", "MIG-"))):
            break
        valid.append(name)
    return valid


def split(gpus: list[str], processes: int) -> list[list[str]]:
    """The GPUs of each process: all of them, in equal shares; with more processes than GPUs they share."""
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
    """What each child's environment has in place of the worker's; without a number one child a GPU."""
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
