"""What becomes of the requests of a child that died."""

from __future__ import annotations

import enum
import signal
from collections import OrderedDict

from nvcf_broker.process import describe_exit

MAX_TRIES = 3
REMEMBERED = 1024
STABLE_SECONDS = 60.0


class Verdict(enum.Enum):
    """Another try here, back to the queue for one, or an error for the caller."""

    REPEAT = "repeat"
    HAND_BACK = "hand back"
    FAIL = "fail"


def verdict(tries: int, *, alone: bool, retry: bool, repeatable: bool) -> Verdict:
    """Decide on one request. `tries` counts deliveries and repetitions from 1; `alone`: nothing else ran in
    the child; `repeatable`: all that it needs for another try is here.

    A first crash may be anybody's fault, the memory's for instance. Whoever was alone at a later one is
    to blame; the others get one more try. A try here costs none of the queue's few deliveries.
    """
    if not retry or (tries > 1 and alone) or tries >= MAX_TRIES:
        return Verdict.FAIL
    return Verdict.REPEAT if repeatable else Verdict.HAND_BACK


def describe_death(code: int) -> str:
    """How a child ended, in words, with the usual cause where there is one."""
    text = describe_exit(code)
    if code == -signal.SIGKILL:
        return f"{text}, which is what happens when memory runs out"
    if code == -signal.SIGSEGV:
        return f"{text}, a fault in native code"
    return text


class Suspects:
    """Ids of requests that were in a child when it died; the newest are remembered."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def add(self, request_id: str) -> None:
        """Remember one."""
        self._ids[request_id] = None
        self._ids.move_to_end(request_id)
        if len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)

    def must_run_alone(self, request_id: str, attempt: int) -> bool:
        """Whether this delivery shall share a child with nobody, so that a further crash hits nobody else."""
        return request_id in self._ids or attempt >= MAX_TRIES


def next_start(failures: int, lived: float) -> int:
    """How many failures in a row the back-off counts, after a child that lived for so many seconds."""
    return 0 if lived >= STABLE_SECONDS else failures + 1
