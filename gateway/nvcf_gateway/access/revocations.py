"""What is open ends when the right to it ends: a key is revoked, a share taken back, a version undeployed.

Rights are checked when something begins. What stays open for long, sessions and calls that wait, is checked
again every `CHECK_SECONDS` against the records that each gateway mirrors. A gateway that has lost the broker
keeps the records it knows, and so ends nothing.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from nvcf_gateway.access.authorization import Caller
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.registry import Registry

CHECK_SECONDS = 2.0
UNDEPLOYED_CHECKS = 5
"""So many checks in a row find the version undeployed: its instances have time to end sessions in order."""


def void(registry: Registry, caller: Caller, function_id: str) -> HttpProblem | None:
    """Return why the caller may not use the function any more, None while it may."""
    key = registry.keys.get(caller.key.id)
    if key is None or key.revoked_at is not None:
        return HttpProblem(401, "the API key has been revoked")
    function = registry.functions.get(function_id)
    if function is None or not function.may_be_invoked_by(caller.nca_id):
        return HttpProblem(404, f"no function {function_id} for this account any more")
    return None


class OpenOfAccount(set["WatchedCall | WatchedSession"]):
    """What one account has open at this replica. `most` is how much it may have."""

    def __init__(self, most: int | None) -> None:
        super().__init__()
        self.most = sys.maxsize if most is None else most


class WatchedCall:
    """A call that its caller waits for, as a `with` block, which raises HttpProblem when the right ends."""

    __slots__ = ("_calls", "_cancelling", "_task", "caller", "function_id", "problem")

    def __init__(self, calls: OpenOfAccount, caller: Caller, function_id: str) -> None:
        self._calls = calls
        self.caller = caller
        self.function_id = function_id
        self.problem: HttpProblem | None = None

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 # requests are served in tasks
        self._task, self._cancelling = task, task.cancelling()
        self._calls.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.discard(self)
        if self.problem is None:
            return
        # As asyncio.timeout does: a cancellation by somebody else goes on.
        if self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise self.problem from None

    def end(self, problem: HttpProblem) -> None:
        """End the wait."""
        self.problem = problem
        self._task.cancel()


@dataclass(eq=False)
class WatchedSession:
    """A session that may outlive its right."""

    caller: Caller
    function_id: str
    version_id: str
    is_over: Callable[[], bool]
    end: Callable[[], None]
    undeployed: int = 0


class Revocations:
    """Everything that is open at this replica and may lose its right."""

    def __init__(
        self,
        registry: Registry,
        most: Callable[[str], int | None] = lambda _: None,
        refuse: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`most`: what an account may have open here. `refuse` raises HttpProblem for one that has it."""
        self._registry = registry
        self._most = most
        self._refuse = refuse
        self._open: dict[str, OpenOfAccount] = {}

    def open_of(self, account: str) -> int:
        """Return how many calls and sessions an account has open here."""
        return len(self._open.get(account, ()))

    def call(self, caller: Caller, function_id: str) -> WatchedCall:
        """Return the block in which a call is served. Raises HttpProblem 429 at the account's quota."""
        account = caller.nca_id
        if account not in self._open:
            self._open[account] = OpenOfAccount(self._most(account))
        opened = self._open[account]
        if len(opened) >= opened.most:
            self._refuse(account)
        return WatchedCall(opened, caller, function_id)

    def require_room(self, account: str) -> None:
        """Raise HttpProblem 429 for an account that may open no more."""
        opened = self._open.get(account)
        if opened is not None and len(opened) >= opened.most:
            self._refuse(account)

    def watch_session(
        self,
        caller: Caller,
        function_id: str,
        version_id: str,
        is_over: Callable[[], bool],
        end: Callable[[], None],
    ) -> None:
        """Call `end` when the right to a session ends, unless it `is_over`."""
        account = caller.nca_id
        if account not in self._open:
            self._open[account] = OpenOfAccount(self._most(account))
        self._open[account].add(WatchedSession(caller, function_id, version_id, is_over, end))

    async def follow(self) -> None:
        """Check again and again, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self.check(time.time())

    def check(self, now: float) -> None:
        """End what has lost its right."""
        for account, opened in tuple(self._open.items()):
            for each in tuple(opened):
                if isinstance(each, WatchedSession):
                    self._check_session(opened, each, now)
                elif each.problem is None:
                    problem = void(self._registry, each.caller, each.function_id)
                    if problem is not None:
                        each.end(problem)
            if not opened:
                del self._open[account]

    def _check_session(self, opened: OpenOfAccount, session: WatchedSession, now: float) -> None:
        if session.is_over():
            opened.discard(session)
        elif self._has_ended(session, now):
            opened.discard(session)
            session.end()

    def _has_ended(self, session: WatchedSession, now: float) -> bool:
        deployed = self._registry.index.is_deployed(session.version_id)
        session.undeployed = 0 if deployed else session.undeployed + 1
        key = self._registry.keys.get(session.caller.key.id)
        expired = key is not None and not key.is_live(now)
        gone = session.undeployed >= UNDEPLOYED_CHECKS
        return expired or gone or void(self._registry, session.caller, session.function_id) is not None
