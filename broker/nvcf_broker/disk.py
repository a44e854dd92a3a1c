"""The disk budget of a local broker: chosen at the first start, kept in its folder."""

import json
import shutil
from pathlib import Path

from nvcf_broker.configuration import CONTROL_ACCOUNT, PLATFORM_ACCOUNT
from nvcf_broker.errors import BrokerError
from nvcf_broker.files import private_directory, write_private
from nvcf_proto.budget import DiskBudget, TooLittleDisk, choose_budget
from nvcf_proto.stores import CONTROL_STREAMS


def disk_budget(file: Path, store: Path, wanted: int | None) -> DiskBudget:
    """Return the budget of this start, `wanted` or a part of the disk, and keep it in `file`.

    Later starts take the kept one and do not depend on what is free then. Raises `BrokerError` with the way
    out.
    """
    kept, target = _kept(file, "dataMaxBytes"), _kept(file, "targetBytes")
    if wanted is None and kept is not None and target is not None and target < kept:
        wanted = target
    disk = shutil.disk_usage(store)
    used = 0 if wanted is None else sum(each.stat().st_size for each in store.rglob("*") if each.is_file())
    try:
        budget = choose_budget(wanted, kept, disk_total=disk.total, disk_free=disk.free, used=used)
    except TooLittleDisk as error:
        raise BrokerError(str(error)) from error
    # A smaller budget is reached in steps, also by starts that do not name it again.
    goal = budget.total if wanted is None else min(wanted, budget.total)
    if (budget.total, goal) != (kept, target):
        write_private(file, json.dumps({"dataMaxBytes": budget.total, "targetBytes": goal}) + "\n")
    return budget


def move_control_streams(store: Path) -> None:
    """Move the control plane's streams of an earlier release into its account. The broker must not run."""
    accounts = store / "jetstream"
    old, new = accounts / PLATFORM_ACCOUNT / "streams", accounts / CONTROL_ACCOUNT / "streams"
    for name in CONTROL_STREAMS:
        if (old / name).exists() and not (new / name).exists():
            private_directory(new.parent)
            private_directory(new)
            (old / name).rename(new / name)


def _kept(file: Path, member: str) -> int | None:
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))[member])
    except (OSError, ValueError, KeyError, TypeError):
        return None
