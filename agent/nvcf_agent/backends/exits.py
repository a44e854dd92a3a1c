"""How a process ended, in words, and whether that is a crash or want of memory. Pure."""

import signal

from nvcf_agent.request import Category
from nvcf_broker.process import describe_exit

_MIB = 2**20


def describe_end(
    code: int,
    *,
    told_to_leave: bool,
    limit: int | None,
    group_oom_kills: int,
    machine_oom_kills: int,
) -> tuple[Category, str]:
    """Category and first line of the reason.

    `code` is an exit code as `asyncio` reports it, `limit` the instance's memory limit in bytes;
    `group_oom_kills` counts those of the kernel in the instance's own group, `machine_oom_kills` those on the
    whole machine while it ran, which are a guess at this process only.
    """
    how = describe_exit(code)
    if group_oom_kills > 0:
        size = f" of {limit // _MIB} MiB" if limit is not None else ""
        return Category.OUT_OF_MEMORY, f"out of memory: it reached its limit{size} ({how})"
    if code == -signal.SIGKILL and machine_oom_kills > 0 and not told_to_leave:
        return Category.OUT_OF_MEMORY, f"out of memory: the machine had none left ({how})"
    return Category.CRASH, how
