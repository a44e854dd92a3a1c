"""The disk budget of the broker's store: how large it is, and how it is divided. Pure arithmetic.

The control plane's records have a reserve of their own. What tenants store has the rest, and each of its
stores a share. A share bounds a store; the sum of all shares is less than the whole, so that request queues,
which have no bound in bytes each, find room beside stores that are full.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvcf_proto.errors import ContractError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

DISK_SHARE = 0.5
"""Part of a file system that the store may use by default."""
LEAST_BUDGET = 256 * MIB
DEFAULT_DATA_BUDGET = 8 * GIB
"""Budget of tenants' data in a broker account without a limit."""
_CONTROL_SHARE, _LEAST_CONTROL, _MOST_CONTROL = 0.1, 64 * MIB, GIB
_LEAST_MARGIN, _MOST_MARGIN = 256 * MIB, GIB
# The broker takes a change of a bound only while the sum of all bounds fits its limit.
SHRINKS_TO = 0.8


class TooLittleDisk(ContractError):
    """The disk has no room for the store."""


@dataclass(frozen=True)
class DiskBudget:
    """Bytes that the broker may store: `control` for the platform's records, `data` for tenants' data."""

    total: int

    @property
    def control(self) -> int:
        """Reserve of functions, deployments, keys, leases, instances and events."""
        return min(max(int(self.total * _CONTROL_SHARE), _LEAST_CONTROL), _MOST_CONTROL)

    @property
    def data(self) -> int:
        """Limit of everything that tenants store."""
        return self.total - self.control


def size_text(size: int) -> str:
    """Return a size for people, e.g. `3.5 GiB`."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size // MIB} MiB"


def choose_budget(
    wanted: int | None, kept: int | None, *, disk_total: int, disk_free: int, used: int = 0
) -> DiskBudget:
    """Return the budget of this start. Raises TooLittleDisk with sizes and the way out.

    `wanted` is what the user asks for, `kept` the budget of the last start, `used` what the store holds. A
    kept budget holds whatever is free at the moment. A smaller one than that is reached in steps.
    """
    if wanted is None and kept is not None:
        return DiskBudget(kept)
    room = disk_free + used
    if wanted is not None:
        if wanted < LEAST_BUDGET:
            raise TooLittleDisk(f"--data-max {size_text(wanted)}: at least {size_text(LEAST_BUDGET)} needed")
        if wanted > room and wanted > (kept or 0):
            raise TooLittleDisk(
                f"--data-max {size_text(wanted)} is more than the {size_text(room)} that the disk has: "
                "choose a smaller one, or another folder with --data"
            )
        return DiskBudget(max(wanted, int((kept or 0) * SHRINKS_TO)))
    margin = min(max(disk_total // 10, _LEAST_MARGIN), _MOST_MARGIN)
    budget = min(int(disk_total * DISK_SHARE), room - margin)
    if budget < LEAST_BUDGET:
        raise TooLittleDisk(
            f"the disk has {size_text(disk_free)} free of {size_text(disk_total)}; the platform's data needs "
            f"{size_text(LEAST_BUDGET)} and leaves {size_text(margin)} free: make room, choose another "
            "folder with --data, or set the size with --data-max"
        )
    return DiskBudget(budget)
