"""How far a deployment has come, read from its instances' records. Pure."""

from dataclasses import dataclass

from nvcf_cli.api import Json

# What an agent puts before the reason of an instance that waits for something outside the function.
WAITING = "waiting: "
# Failures of a place, not of the function: the platform tries others.
_ELSEWHERE = ("capacity", "lost")


@dataclass(frozen=True)
class Progress:
    """How far the instances of a version are. `failure` is set once one of them died."""

    ready: int
    text: str
    failure: str | None = None
    log_path: str | None = None


def judge(instances: list[Json], wanted: int) -> Progress:
    """Read the instance records of a version that is being deployed."""
    ready = sum(each.get("state") == "RUNNING" for each in instances)
    waiting = None
    for each in instances:
        reason = str(each.get("reason") or "")
        category, text = split_reason(reason) if each.get("state") == "FAILED" else ("", reason)
        if not reason or each.get("state") not in ("FAILED", "STARTING", "PENDING"):
            continue
        if category in _ELSEWHERE or each.get("state") == "PENDING" or reason.startswith(WAITING):
            waiting = text.removeprefix(WAITING).splitlines()[0]
            continue
        # A dead process is started again at once: its record says STARTING, and still carries the reason.
        return Progress(ready, "failed", text, each.get("logPath"))
    if ready < wanted and waiting is not None:
        return Progress(ready, f"waiting: {waiting}")
    if not instances:
        return Progress(0, "waiting for an instance")
    return Progress(ready, f"starting ({ready} of {wanted} ready)" if wanted > 1 else "starting")


def split_reason(reason: str) -> tuple[str, str]:
    """A failed instance's reason, `CATEGORY: text`, as (category, text); no category is empty."""
    category, separator, text = reason.partition(": ")
    plain = category.replace("-", "")
    return (category, text) if separator and plain.isalpha() and plain.islower() else ("", reason)
